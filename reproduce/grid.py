"""Train and evaluate a grid of networks, scales, losses and seeds, and compare the losses.

    python -m reproduce.grid --models "EDSR[blocks=8,channels=32]" VDSR --scales 2 4 --losses L1 L1+TLW --seeds 6 \
        --trainpath T91 BSDS200 --folder Set5 Set14 --steps 5000 --patch 96 --batchsize 8 --out checkpoints/grid
    ... --rates checkpoints/sweep/rates.json    each loss at the rate that reproduce.sweep chose
    ... --budget time                           equal time instead of equal steps
    ... --null L1                               L1 against itself: what the statistics find if there is no difference
    ... --init "checkpoints/L1_seed{seed}"      each seed starts from its own weights
    ... --collect                               the tables of the finished cells, training nothing

A cell is one network, scale, loss and seed: a run of train.py, evaluated by val.py at its best validation and at its
end. All cells of a seed have the same initial weights and batches. A share of the training images is held out for
validation (--holdout). Every setting of train.py is a flag here too. If the grid is killed, start it again: it skips
finished cells and resumes the others. Exit codes: 0 all cells finished; 1 some failed, named at the end; 2 bad input;
128 + the signal's number: stopped by a signal.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch

import configs
from configs import Config
from data import list_images
from metrics.judges import JUDGES, METRICS
from models import SR_MODELS
from runs.folder import CHECKPOINTS
from training.learner import build_learners

from . import budget, collect, holdout, report
from .cells import Cell, in_a_file_name
from .cluster import Jobs
from .papers import Paper
from .running import cores, exit_if_failed, run_all, threads_of_a_job

OURS = {"model", "scale", "seed", "modelpath", "load", "checkpoint"}  # settings that the grid sets for each cell


@dataclass(frozen=True)
class Preset:
    """A grid's defaults, and the paper whose numbers its tables show beside ours."""

    program: str = "reproduce.grid"
    models: tuple[str, ...] = ("EDSR",)
    scales: tuple[int, ...] = (4,)
    config: str | None = None
    paper: Paper = Paper()


def add_cell_flags(parser, preset: Preset, seeds: int, seeds_help: str) -> None:
    """Add the flags that choose the trainings and where they run."""
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(preset.models),
        metavar="MODEL",
        help=f'networks, with options in brackets: "EDSR[blocks=8,channels=32]" (default: {" ".join(preset.models)})',
    )
    parser.add_argument(
        "--scales",
        nargs="+",
        type=int,
        default=list(preset.scales),
        choices=(2, 3, 4, 8),
        help=f"(default: {' '.join(map(str, preset.scales))})",
    )
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="N", help=f"seeds 0 to N-1{seeds_help} (default: %(default)s)"
    )
    parser.add_argument(
        "--config",
        default=preset.config,
        metavar="FILE",
        help="YAML file with settings of train.py for all cells"
        + (f" (default: {preset.config})" if preset.config else "")
        + "; flags override it",
    )
    parser.add_argument(
        "--holdout",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="share of the training images to hold out for validation, unless --valpath is given (default: 0.05)",
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of the cells (default: checkpoints/ and --config's name)"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at once, if run here (default: 1)")
    parser.add_argument(
        "--executor",
        default="none",
        choices=("none", "local", "slurm"),
        help="none: run the cells here; slurm: as Slurm jobs, by submitit; local: as submitit's local jobs, to try it "
        "out (default: none)",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of submitit's jobs: "
        "partition gpus_per_node timeout_min cpus_per_task mem_gb array_parallelism ...",
    )


def add_settings(parser, without: set[str]) -> None:
    group = parser.add_argument_group("settings of train.py, the same for all cells")
    configs.add_settings(group, [field.name for field in fields(Config) if field.name not in without])


def parse(argv: list[str] | None, preset: Preset = Preset()):
    parser = configs.OneLineParser(prog=preset.program, description="Train, evaluate and compare losses.")
    add_cell_flags(parser, preset, 3, "; no test below six trainings of a loss")
    parser.add_argument("--folder", nargs="+", default=[], metavar="DIR", help="folders of test images")
    parser.add_argument(
        "--rates",
        nargs="+",
        default=[],
        metavar="LOSS=RATE",
        help="a learning rate for each loss, or the rates.json of reproduce.sweep (default: --learning-rate for all)",
    )
    parser.add_argument(
        "--budget",
        choices=("steps", "time"),
        default="steps",
        help="give all losses of a network the same steps, or the same time: that of --steps of the cheapest loss "
        "(default: steps)",
    )
    parser.add_argument("--bgr", action="store_true", help="give LPIPS the channels as BGR, as the released code does")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="folder for the tables and all scores as CSV (default: --out)"
    )
    report.add_flags(parser)
    parser.add_argument("--collect", action="store_true", help="only make the tables of the finished cells")
    add_settings(parser, OURS)
    parser.set_defaults(presets_config=preset.config)
    return parser.parse_args(argv)


def as_words(settings: dict) -> list[str]:
    """Turn parsed flags back into a command line."""
    words = []
    for name, value in settings.items():
        flag = configs.flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def shared_words(args, seed: int = 0) -> list[str]:
    """The flags of train.py that all cells of a seed share; {seed} in --init is replaced by the seed."""
    names = {field.name for field in fields(Config)} - OURS  # --checkpoint is the report's
    given = {name: value for name, value in vars(args).items() if name in names}
    if "init" in given:
        given["init"] = given["init"].replace("{seed}", str(seed))
    return [*(["--config", args.config] if args.config else []), *as_words(given)]


def common_config(args) -> Config:
    """The settings that all cells share. Exits like train.py on a bad setting."""
    return configs.load([*shared_words(args), "--scale", str(args.scales[0])])


def network_words(text: str) -> list[str]:
    """Turn "HAT[embed=60,depths=[6,6]]" into flags of train.py. Raises ValueError."""
    name, bracket, options = text.partition("[")
    words = ["--model", configs.choose(name, SR_MODELS, "model")]
    if not bracket:
        return words
    configs.expect(options.endswith("]"), "models", text, "NAME[OPTION=VALUE,...]")
    pairs, depth = [""], 0
    for letter in options[:-1]:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and not depth:
            pairs.append("")
        else:
            pairs[-1] += letter
    return [*words, "--model-options", *pairs]


def read_rates(args) -> Callable[[str, int, str], list[str]]:
    """Read --rates; return a function from network, scale and loss to the learning rate's flags.

    Both raise ValueError.
    """
    if not args.rates:
        return lambda network, scale, loss: []
    table, path = {}, Path(args.rates[0])
    if len(args.rates) == 1 and path.suffix == ".json":
        configs.expect(path.is_file(), "rates", path, "the rates.json of reproduce.sweep")
        table = {(r["network"], r["scale"], r["loss"]): r["learning_rate"] for r in json.loads(path.read_text())}
    else:
        for word in args.rates:
            loss, _, rate = word.rpartition("=")
            configs.expect(loss and rate, "rates", word, "LOSS=RATE, such as L1=4e-4")
            table[loss] = rate

    def words(network: str, scale: int, loss: str) -> list[str]:
        rate = table.get((network, scale, loss), table.get(loss))
        configs.expect(rate is not None, "rates", " ".join(args.rates), f"a rate for {network} x{scale} {loss} too")
        return ["--learning-rate", str(rate)]

    return words


def split_images(args, config: Config, out: Path) -> dict[str, dict]:
    """Split the images: {"trainpath": training images, "valpath": held-out ones}; {} with --valpath.

    The valpath of a preset's own file does not count: papers chose their best networks on test images. Also {} with
    --collect, which trains nothing. Raises ValueError.
    """
    of_file = args.config != getattr(args, "presets_config", None) and config.valpath != Config().valpath
    if "valpath" in vars(args) or of_file or getattr(args, "collect", False):
        return {}
    configs.expect(not config.lrpath, "lrpath", " ".join(config.lrpath), "--valpath and --vallrpath beside it")
    configs.expect(0 < args.holdout < 1, "holdout", args.holdout, "a share above 0 and below 1")
    trained, held = holdout.split(config.trainpath, args.holdout)
    return {"trainpath": trained, "valpath": held}


def folder_of(args) -> Path:
    return args.out or CHECKPOINTS / (Path(args.config).stem if args.config else "grid")


def timed_losses(args) -> tuple[str, ...]:
    """The losses that get the same time: --losses and that of --null."""
    return tuple(dict.fromkeys([*common_config(args).losses, *([args.null] if args.null else [])]))


def base_cells(args, more: Iterable[str] = ()) -> list[Cell]:
    """Make a cell per network, scale, loss and seed, without its folder and learning rate; seed 0 first.

    more: further flags of train.py. Raises ValueError or exits like train.py.
    """
    out, common = folder_of(args), common_config(args)
    null = getattr(args, "null", None)
    for name in ("models", "scales"):
        given = getattr(args, name)
        configs.expect(len(set(given)) == len(given), name, " ".join(map(str, given)), "each once")
    configs.expect(args.seeds > 0, "seeds", args.seeds, "a number of seeds above 0")
    images = {
        name: holdout.roots(of, out / "images" / name[:-4]) for name, of in split_images(args, common, out).items()
    }
    cells = []
    for seed in range(args.seeds * (2 if null else 1)):
        shared = [*shared_words(args, seed), *as_words(images), *more]
        for model in args.models:
            for scale in args.scales:
                for loss in [null] if null else common.losses:
                    words = [
                        *shared,
                        *network_words(model),
                        "--scale",
                        str(scale),
                        "--seed",
                        str(seed),
                        "--losses",
                        loss,
                    ]
                    cells.append(Cell(configs.load(words), tuple(words)))
    return cells


def with_folder(cell: Cell, args, label: str, more: Iterable[str] = (), **options) -> Cell:
    """The cell with a folder named after its network, scale, label and seed; more: further flags."""
    name = f"{cell.network}_x{cell.config.scale}_{label}_seed{cell.config.seed}"
    words = (*cell.words, *more, "--modelpath", str(folder_of(args) / in_a_file_name(name)))
    return Cell(configs.load(list(words)), words, label=label, **options)


def make_cells(args) -> list[Cell]:
    """Make the grid's cells. Raises ValueError or exits like train.py.

    With --budget time, a loss whose time per step is not measured yet has --steps.
    """
    configs.expect(len(args.folder) > 0, "folder", "", "one or more folders of test images")
    configs.expect(
        args.budget == "steps" or common_config(args).steps, "budget", args.budget, "--steps of the cheapest too"
    )
    rate_of, seconds = read_rates(args), budget.read(folder_of(args)) if args.budget == "time" else {}
    cells = []
    for cell in base_cells(args):
        more, per_step = rate_of(cell.network, cell.config.scale, cell.loss), seconds.get(cell.block, {})
        if cell.loss in per_step:
            least = min(per_step[loss] for loss in timed_losses(args) if loss in per_step)
            more = [*more, *as_words(budget.in_equal_time(cell.config, per_step[cell.loss], least))]
        cells.append(
            with_folder(cell, args, collect.label_of(cell.loss), more, folders=tuple(args.folder), bgr=args.bgr)
        )
    return cells


def check(cells: list[Cell], args) -> None:
    """Raise ValueError if a cell cannot be trained or evaluated, as far as can be told beforehand."""
    config, out = cells[0].config, folder_of(args)
    common = common_config(args)
    configs.expect(0 < args.jobs <= cores(), "jobs", args.jobs, f"1 to {cores()}, as many as there are cores")
    configs.expect(args.executor != "none" or not args.slurm, "slurm", " ".join(args.slurm), "--executor slurm too")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    configs.expect(existing.is_dir() and os.access(existing, os.W_OK), "out", out, "a folder that can be written to")
    configs.choose(config.judge, JUDGES, "judge")
    for net in config.metrics:
        configs.choose(net, METRICS, "perceptual metric")
    for path in config.judge_weights + config.extractor_weights:
        configs.expect(Path(path).is_file(), "judge-weights", path, "a file")
    images = split_images(args, common, out) or {
        name: list_images(getattr(common, name)) for name in ("trainpath", "valpath")
    }
    tests = {"the test images": list_images(cells[0].folders)} if cells[0].folders else {}
    folders = [cell.folder for cell in cells]
    alike = next((cell for cell in cells if folders.count(cell.folder) > 1), None)
    configs.expect(not alike, "losses", alike, "names that give folders of different names")
    holdout.check_disjoint(
        {"the training images": images["trainpath"], "the validation images": images["valpath"], **tests}
    )
    losses = tuple(dict.fromkeys(cell.loss for cell in cells))
    for cell in cells:
        if cell.config.seed == 0 and cell.loss == losses[0]:
            build_learners(replace(cell.config, losses=losses), torch.device("cpu"))
        cell.check()


def prepare(args, cells: list[Cell]) -> list[Cell]:
    """Link the images; with --budget time, measure the losses; return the cells to train."""
    out = folder_of(args)
    for name, images in split_images(args, common_config(args), out).items():
        holdout.link(images, out / "images" / name[:-4])
    if getattr(args, "budget", "steps") == "time":
        losses = timed_losses(args)
        if args.jobs > 1:
            torch.set_num_threads(threads_of_a_job(args.jobs))
        for cell in cells:
            if cell.config.seed == 0 and cell.loss == cells[0].loss:
                seconds = budget.measured(out, cell.block, replace(cell.config, losses=losses))
                least = min(seconds.values())
                print(
                    f"{cell.block}, seconds per step: "
                    + ", ".join(f"{loss} {s:.3g} ({s / least:.2f})" for loss, s in seconds.items())
                )
        cells = make_cells(args)
        for cell in cells:
            cell.check()
    return cells


def make_tables(cells: list[Cell], args, preset: Preset) -> None:
    """Print and write the tables of the finished cells. Raises ValueError if none is finished."""
    out = folder_of(args)
    results = collect.read_cells(cells, args.folder, budget.read(out))
    if results is None:
        raise ValueError(f"--out {out}: none of the grid's {len(cells)} cells is finished there; leave --collect out")
    folder = args.results or out
    collect.write(results, folder)
    results = collect.read(folder)  # rounded as in the files, so that tables made from these later are the same
    print("\n" + report.text(results, args, preset.paper))
    print("\nwritten: " + ", ".join(map(str, report.write(results, args, preset.paper, folder))))
    print(f"the tables again, from these files: python -m reproduce.report {folder}")


def main(argv: list[str] | None = None, preset: Preset = Preset()) -> None:
    args = parse(argv, preset)
    with configs.one_line_errors(preset.program):
        cells = make_cells(args)
        if args.collect:
            make_tables(cells, args, preset)
            return
        check(cells, args)
        out = folder_of(args)
        cluster = Jobs(args.executor, out / "submitit", args.slurm) if args.executor != "none" else None
        cells = prepare(args, cells)
    failed = run_all(preset.program, cells, args.jobs, cluster)
    if any(cell.finished() for cell in cells):
        with configs.one_line_errors(preset.program):
            make_tables(cells, args, preset)
    exit_if_failed(preset.program, failed, len(cells))


if __name__ == "__main__":
    main()
