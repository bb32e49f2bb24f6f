"""Train and evaluate the cells of the TLW paper's Table I, and make the table.

    python -m reproduce.table1 --models RCAN VDSR EDSR --scales 2 3 4 --seeds 3 --trainpath DIR ... --valpath DIR
    python -m reproduce.table1 --collect --seeds 3           the table of what is finished, training nothing

A cell is one model, scale and seed: one run of train.py with all losses, evaluated by val.py at its best epochs. Every
setting of train.py is a flag here too. What is finished is skipped, what was begun goes on: killed, start it again.
Exit codes: 0 all cells finished; 1 some failed, named at the end; 2 bad input; 128 + its number: stopped by a signal.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import configs
from configs import Config
from data import list_images
from losses import LOSSES
from metrics.judges import JUDGES, METRICS
from models import SR_MODELS, build_network
from runs.folder import CHECKPOINTS
from training import stop_signals
from training.evaluation import label_folders

from . import collect, report
from .cells import Cell, Failed, Work, read_evaluation
from .cluster import Jobs

PROGRAM = "reproduce.table1"
OURS = {"model", "scale", "seed", "modelpath", "load"}  # settings that the grid gives each cell


def parse(argv: list[str] | None):
    parser = configs.OneLineParser(prog=PROGRAM, description="Table I of the TLW paper: train, evaluate, tabulate.")
    parser.add_argument(
        "--models",
        nargs="+",
        default=["RCAN", "VDSR", "EDSR"],
        metavar="MODEL",
        help="(default: the paper's RCAN VDSR EDSR)",
    )
    parser.add_argument("--scales", nargs="+", type=int, default=[2, 3, 4], choices=(2, 3, 4), help="(default: 2 3 4)")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="seeds 0 to N-1 (default: 3)")
    parser.add_argument(
        "--config",
        default="configs/table1.yaml",
        metavar="FILE",
        help="settings of train.py for all cells, such as configs/table1_released.yaml (default: "
        "configs/table1.yaml); flags below win",
    )
    parser.add_argument(
        "--folder", nargs="+", default=[], metavar="DIR", help="data sets to evaluate on (default: --valpath)"
    )
    parser.add_argument("--bgr", action="store_true", help="show LPIPS the channels as BGR, as the paper's code does")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the cells and of the table (default: checkpoints/, then --config's name)",
    )
    parser.add_argument(
        "--executor",
        default="none",
        choices=("none", "local", "slurm"),
        help="none: one cell after "
        "the other, here; slurm: as jobs, by submitit; local: submitit's rehearsal (default: none)",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="parameters of submitit's jobs: "
        "partition gpus_per_node timeout_min cpus_per_task mem_gb array_parallelism ...",
    )
    parser.add_argument("--collect", action="store_true", help="only make the table of the cells that are finished")
    group = parser.add_argument_group("settings of train.py, the same for all cells")
    configs.add_settings(group, [field.name for field in fields(Config) if field.name not in OURS])
    return parser.parse_args(argv)


def as_words(settings: dict) -> list[str]:
    """Parsed flags as a command line again."""
    words = []
    for name, value in settings.items():
        flag = configs.flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else "--no-" + flag[2:])
        else:
            words += [flag, *map(str, value if isinstance(value, list) else [value])]
    return words


def make_cells(args) -> list[Cell]:
    """The grid's cells, the first seed of all networks first. Raises ValueError or exits like train.py."""
    names = {field.name for field in fields(Config)}
    shared = ["--config", args.config, *as_words({k: v for k, v in vars(args).items() if k in names})]
    out = args.out or CHECKPOINTS / Path(args.config).stem
    for name in ("models", "scales"):
        given = getattr(args, name)
        configs.expect(len(set(given)) == len(given), name, " ".join(map(str, given)), "each once")
    configs.expect(args.seeds > 0, "seeds", args.seeds, "a number of seeds above 0")
    configs.expect(args.executor != "none" or not args.slurm, "slurm", " ".join(args.slurm), "--executor slurm too")
    existing = next(path for path in (out, *out.absolute().parents) if path.exists())
    configs.expect(existing.is_dir() and os.access(existing, os.W_OK), "out", out, "a folder that can be written to")
    cells = []
    for seed in range(args.seeds):
        for model in args.models:
            configs.choose(model, SR_MODELS, "model")
            for scale in args.scales:
                folder = out / f"{model}_x{scale}_seed{seed}"
                own = ["--model", model, "--scale", str(scale), "--seed", str(seed), "--modelpath", str(folder)]
                cells.append(Cell(configs.load([*shared, *own]), (*shared, *own), tuple(args.folder), args.bgr))
    return cells


def check(cells: list[Cell]) -> None:
    """Raise ValueError where a cell could not be trained or evaluated as far as can be told without training."""
    config = cells[0].config
    for variant in config.variants.values():
        configs.choose(variant.loss, LOSSES, "loss")
    configs.choose(config.judge, JUDGES, "judge")
    for net in config.metrics:
        configs.choose(net, METRICS, "perceptual metric")
    for name in ("trainpath", "valpath"):
        configs.expect(len(getattr(config, name)) > 0, name, "", "one or more folders of HR images")
    for folder in (*config.trainpath, *config.valpath, *cells[0].folders):
        list_images(folder)
    for path in config.judge_weights + config.extractor_weights:
        configs.expect(Path(path).is_file(), "judge-weights", path, "a file")
    for cell in cells:
        if cell.config.seed == 0:
            configs.choose(cell.config.model, SR_MODELS, "model")
            build_network(cell.config.model, cell.config.scale, cell.config.model_options)
        cell.check()


def in_sequence(cells: list[Cell], asked: Callable[[], int | None]) -> Iterator[tuple[Cell, str]]:
    """Run the cells here, one after the other; yields each with what went wrong ("": nothing).

    A cell that another process trains is left for later, and waited for at the end. Returns early when `asked` says so.
    """
    left, said = list(cells), False
    while left and not asked():
        cell = next((cell for cell in left if not cell.in_use()), None)
        if cell is None:
            if not said:
                print(f"waiting: another process trains {', '.join(map(str, left))}", flush=True)
            said = True
            time.sleep(1)
            continue
        if not cell.finished():
            print(f"\n=== {cell}: {cell.folder}", flush=True)
        try:
            Work(cell)(asked)
        except (Failed, OSError) as error:
            if asked():
                return
            if cell.in_use():  # another process was faster
                continue
            yield cell, str(error)
        else:
            yield cell, ""
        left.remove(cell)


def duration(seconds: float) -> str:
    """Seconds as 41 s, 5 min, 3.2 h, 2.5 d."""
    for unit, size, top in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 48 * 3600)):
        if seconds < top:
            return f"{seconds / size:.{0 if unit != 'h' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def rest(left: list[Cell], taken: dict[Cell, float]) -> float:
    """How long the cells left will take one after the other, going by the model's own where one has been timed."""
    every = list(taken.values())

    def of(model: str) -> list[float]:
        return [seconds for cell, seconds in taken.items() if cell.config.model == model] or every

    return sum(sum(of(cell.config.model)) / len(of(cell.config.model)) for cell in left)


def run(todo: list[Cell], of: int, outcomes: Iterator[tuple[Cell, str]], together: bool) -> dict[Cell, str]:
    """Say of each cell as it ends how long it took and what is left; returns what failed. together: side by side.

    todo: the cells that outcomes are of; of: how many the grid has.
    """
    left, failed, taken = list(todo), {}, {}
    began = before = time.monotonic()
    for cell, wrong in outcomes:
        now = time.monotonic()
        left.remove(cell)
        took = now - (began if together else before)
        before = now
        if wrong:
            failed[cell] = wrong
            print(f"{PROGRAM}: {cell} failed: {wrong}", file=sys.stderr, flush=True)
        else:
            taken[cell] = took
        expected = f", about {duration(rest(left, taken))}" if taken and left and not together else ""
        print(
            f"=== {cell} {'failed' if wrong else 'finished'} after {duration(took)}; cell {of - len(left)} of {of}, "
            f"{len(left)} left{expected}",
            flush=True,
        )
    return failed


def make_table(cells: list[Cell], folders: list[str], out: Path) -> None:
    """Print the table of the cells that are trained and evaluated, and write it. Raises ValueError where none is."""
    grid = collect.read_grid(cells, label_folders(folders))
    if grid is None:
        raise ValueError(f"--out {out}: none of the grid's {len(cells)} cells is finished there; leave --collect out")
    lacking = [str(cell) for cell in cells if read_evaluation(cell.folder) is None]
    paper = collect.read_paper()
    print(f"\n{report.text(grid, paper, lacking)}")
    report.write(out / "table1", grid, paper, lacking)
    print(f"\nwritten: {out / 'table1.json'}, .csv, .md")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors(PROGRAM):
        cells = make_cells(args)
        out = cells[0].folder.parent
        if args.collect:
            make_table(cells, args.folder, out)
            return
        check(cells)
        todo = [cell for cell in cells if not cell.finished()]
        jobs = Jobs(args.executor, out / "submitit", args.slurm) if args.executor != "none" else None
    print(f"{len(cells)} cells in {out}, {len(cells) - len(todo)} of them finished", flush=True)
    with stop_signals.deferred_signals() as asked:
        outcomes = jobs.outcomes(todo, asked) if jobs else in_sequence(todo, asked)
        failed = run(todo, len(cells), outcomes, together=args.executor == "slurm")
    if asked():
        jobs_go_on = "; the jobs go on: scancel ends them" if args.executor == "slurm" else ""
        print(f"\nstopped by {stop_signals.signal.Signals(asked()).name}{jobs_go_on}; the same command goes on")
        raise SystemExit(128 + asked())
    if any(read_evaluation(cell.folder) for cell in cells):
        with configs.one_line_errors(PROGRAM):
            make_table(cells, args.folder, out)
    if failed:
        print(
            f"\n{PROGRAM}: error: {len(failed)} of {len(cells)} cells failed; the same command tries them again:\n"
            + "\n".join(f"  {cell}: {wrong}" for cell, wrong in failed.items()),
            file=sys.stderr,
        )
        raise SystemExit(1)


if __name__ == "__main__":
    main()
