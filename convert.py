"""Turn checkpoints that others released into a run that val.py reads.

    python convert.py FOLDER --scale 2      the TLW authors' SRModel_{tlw1,tlw2,l1,mse,udl}[_best].pth (and WNet_*)
    python convert.py HAT_SRx4.pth          one file: one of those (UHAT becomes L1+UDL), or the HAT authors' network

What is converted, and how, stands in models/released.py.
"""

import argparse
from contextlib import contextmanager
from pathlib import Path

import configs


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line; a wrong one ends the program with exit code 2."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="convert.py", description=about, epilog=f"examples:\n{examples}")
    parser.add_argument("source", type=configs.typed_path, help="a folder of the TLW authors' files, or one file")
    parser.add_argument("--scale", type=int, choices=(2, 3, 4), help="needed for VDSR, whose weights do not tell it")
    parser.add_argument(
        "--modelpath",
        type=configs.typed_path,
        metavar="DIR",
        help="the run to write; default: the next free in checkpoints/",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":  # --help and slips of the pen are answered before torch is imported, which takes seconds
    parse(None)

from losses.uncertainty import UncertaintyHead
from losses.weighting import WeightingNet
from models import build_network, model_id, released
from runs.atomic import write_or_report
from runs.checkpoint import check_weights, load_checkpoint, load_network, serialize
from runs.folder import check_new_run, next_run_dir
from runs.output import escape_unencodable_output, script_command

# By the tags in the authors' file names; that of their UHAT is not known, and udl is named after the others.
LOSSES = {"tlw1": "L1+TLW", "tlw2": "MSE+TLW", "l1": "L1", "mse": "MSE", "udl": "L1+UDL"}


def released_files(folder: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """(loss, "best" or "last") -> the authors' SR checkpoint and weighting checkpoint (which may not exist)."""
    found = {}
    for tag, loss in LOSSES.items():
        for which, suffix in (("best", "_best"), ("last", "")):
            path = folder / f"SRModel_{tag}{suffix}.pth"
            if path.is_file():
                found[loss, which] = path, folder / f"WNet_{tag}{suffix}.pth"
    if not found:
        names = f"SRModel_{{{','.join(LOSSES)}}}[_best].pth"
        raise ValueError(f"{folder}: no {names} there; name the folder that holds them, or one file")
    return found


def one_file(path: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """What released_files gives, of a single file, whatever its name."""
    loss = "L1+UDL" if released.looks_like(load_checkpoint(path)) == "UHAT" else "L1"
    return {(loss, "best"): (path, path.with_suffix(".none"))}


@contextmanager
def naming(path: Path):
    """Put the file's name before what is wrong with its content."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{path}: lacks the entry {missing}") from None
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: {error}") from None


def convert_network(path: Path, scale: int | None) -> tuple[str, int, dict, dict | None]:
    """An SR checkpoint -> (model, scale, our state dict, that of its uncertainty head if it has one).

    Raises ValueError where it is of no kind that was released.
    """
    state, head = load_checkpoint(path), None
    bare = state.get("params_ema", state.get("params", state))
    with naming(path):
        if released.looks_like(bare) == "published HAT":
            model, ours = "HAT", released.from_published_hat(state)
        elif released.looks_like(state) == "UHAT":
            model, head = "HAT-TLW", released.uncertainty_from_released(state)
            ours = released.from_released_tlw(released.without_uncertainty(state), model)
        else:
            model = released.released_model_of(state)
            ours = released.from_released_tlw(state, model)
    found = released.scale_from_shapes(ours)
    if found is None and scale is None:
        raise ValueError(f"{path}: {model}'s weights do not tell their scale; add --scale")
    if scale not in (None, found) and found is not None:
        raise ValueError(f"--scale {scale}: {path} is x{found}; leave --scale out")
    return model, found or scale, ours, head


def convert(source: Path, scale: int | None) -> tuple[configs.Config, dict[str, dict], dict[str, dict]]:
    """A file or folder -> the run's settings and its `best` and `last` states by loss, each checked to fit."""
    sources = released_files(source) if source.is_dir() else one_file(source)
    states, config = {"best": {}, "last": {}}, None
    for (loss, which), (path, weighting_path) in sources.items():
        model, found, ours, head = convert_network(path, scale)
        if config is None:
            losses = tuple(dict.fromkeys(loss for loss, _ in sources))
            theirs = {"judge": "lpips-vgg-unweighted", "udl_head": "tlw"}
            config = configs.Config(model=model, scale=found, losses=losses, **theirs)
        configs.expect(
            (model, found) == (config.model, config.scale),
            "modelpath",
            path,
            f"{config.model} x{config.scale} like the other files, found {model} x{found}",
        )
        judges = [config.judge] if loss.endswith("+TLW") else []
        states[which][loss] = {"net": ours, "model_id": model_id(model, found), "judges": judges, "source": path.name}
        net = build_network(model, found)
        load_network(net, states[which][loss], str(path), model_id(model, found))
        if head is not None:
            fitting = UncertaintyHead(net.feature_channels, net.scale // net.feature_scale, config.udl_head)
            check_weights(fitting, head, str(path), "UHAT's uncertainty head")
            if loss == "L1+UDL":
                states[which][loss]["loss"] = {f"head.{name}": value for name, value in head.items()}
            else:
                print(f"left out: the uncertainty head in {path}, for which {loss} has no use")
        if weighting_path.is_file():
            released_helper = load_checkpoint(weighting_path)
            with naming(weighting_path):
                helper = released.weighting_from_released(released_helper)
            check_weights(WeightingNet(), helper, str(weighting_path), "the weighting network")
            states[which][loss]["loss"] = {f"helper.{name}": value for name, value in helper.items()}
    return config, states["best"], states["last"]


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    with configs.one_line_errors("convert.py"):
        source = Path(args.source)
        configs.expect(source.exists(), "source", source, "an existing file or folder")
        config, best, last = convert(source, args.scale)
        configs.expect(args.modelpath != "", "modelpath", '""', "a folder; leave it out for a new one in checkpoints/")
        run = Path(args.modelpath) if args.modelpath else next_run_dir(config.model, config.scale)
        check_new_run(run)
        configs.expect(not run.exists() or not any(run.iterdir()), "modelpath", run, "a new or empty folder")
    contents = {"config.yaml": configs.to_yaml(config)}
    contents |= {f"best_{loss}.pt": serialize(state) for loss, state in best.items()}
    contents |= {"last.pt": serialize({"learners": last})} if last else {}
    if not all(write_or_report("convert.py", run / name, content) for name, content in contents.items()):
        raise SystemExit(1)
    print(f"{config.model} x{config.scale}: {len(best)} best and {len(last)} last networks written to {run}")
    print(f"next: {script_command('val.py', '--modelpath', run, *['--best'] * bool(best))} --folder DIR")


if __name__ == "__main__":
    escape_unencodable_output()
    main()
