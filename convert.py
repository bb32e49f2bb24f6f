"""Convert checkpoints that others released into a run that val.py reads.

    python convert.py FOLDER --scale 2      the TLW authors' SRModel_{tlw1,tlw2,l1,mse,udl}[_best].pth (and WNet_*)
    python convert.py HAT_SRx4.pth          one file: one of those (UHAT becomes L1+UDL), the HAT authors' network,
                                            BasicSR's EDSR, RCAN, MSRResNet or RRDBNet, the RCAN authors', our exports
    python convert.py edsr_x4.pt --source edsr      if the parameters' names do not tell its origin

The converted network gives the original's images, up to rounding. The conversions are in models/released.py (the TLW
and HAT authors') and models/layouts.py (all others).
"""

import argparse
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import configs


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="convert.py", description=about, epilog=f"examples:\n{examples}")
    parser.add_argument("path", type=configs.typed_path, help="a folder of the TLW authors' files, or one file")
    names = ("tlw", "edsr", "rcan", "basicsr", "hat")  # of models.layouts.SOURCES
    parser.add_argument("--source", choices=names, help="the file's origin (default: recognised by parameter names)")
    parser.add_argument(
        "--res-scale", type=float, metavar="X", help="residual scaling of EDSR (default: its authors', by size)"
    )
    parser.add_argument(
        "--scale", type=int, choices=(1, 2, 3, 4, 8), help="needed for VDSR, whose weights do not tell it"
    )
    parser.add_argument(
        "--modelpath",
        type=configs.typed_path,
        metavar="DIR",
        help="the run's folder to write (default: the next free one in checkpoints/)",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    parse(None)

from losses.uncertainty import UncertaintyHead
from losses.weighting import WeightingNet
from models import build_network, model_id, released
from models.layouts import Imported, unwrap
from runs.atomic import write_or_report
from runs.checkpoint import SR_NETWORK, check_weights, load_checkpoint, load_network, serialize
from runs.folder import check_new_run, next_run_dir
from runs.output import escape_unencodable_output, script_command
from runs.weights_file import import_file, read_weights_file

# Tags in the authors' file names. The tag of their UHAT is unknown; "udl" follows the pattern of the others.
LOSSES = {"tlw1": "L1+TLW", "tlw2": "MSE+TLW", "l1": "L1", "mse": "MSE", "udl": "L1+UDL"}


def released_files(folder: Path) -> dict[tuple[str, str], tuple[Path, Path]]:
    """Find the authors' files: (loss, "best" or "last") -> SR checkpoint, weighting checkpoint.

    The latter may not exist. Raises ValueError if there is no SR checkpoint.
    """
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


@contextmanager
def naming(path: Path):
    """Turn an error of the file's content into a ValueError that names the file."""
    try:
        yield
    except KeyError as missing:
        raise ValueError(f"{path}: lacks the entry {missing}") from None
    except (ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def source_of(path: Path, named: str | None) -> str | None:
    """The file's origin: `named`, else "tlw" if its name is like theirs; None: its content has to tell."""
    return "tlw" if named is None and path.name.startswith("SRModel_") else named


class Network(NamedTuple):
    """A converted file; head: the state dict of its uncertainty head, or None."""

    imported: Imported
    head: dict | None


def convert_network(path: Path, args: argparse.Namespace) -> Network:
    """Convert an SR checkpoint to our network.

    Raises ValueError if its kind or scale is unknown, or its weights do not fit that kind.
    """
    imported = import_file(path, source_of(path, args.source), args.scale, args.res_scale)
    if imported.scale is None:
        raise ValueError(f"{path}: {imported.model}'s weights do not tell their scale; add --scale")
    weights, _ = unwrap(read_weights_file(path)[0])
    head = None
    if released.looks_like(weights) == "UHAT":
        with naming(path):
            head = released.uncertainty_from_released(weights)
    return Network(imported, head)


def convert(args: argparse.Namespace) -> tuple[configs.Config, dict[str, dict], dict[str, dict]]:
    """Convert a file or folder to a run's settings and its `best` and `last` states by loss.

    Each state is checked to fit. Raises ValueError.
    """
    if args.source is not None and args.path.is_dir():
        configs.expect(args.source == "tlw", "source", args.source, "one file, not a folder")
    sources = released_files(args.path) if args.path.is_dir() else {(None, "best"): (args.path, Path())}
    states, config, losses = {"best": {}, "last": {}}, None, tuple(dict.fromkeys(loss for loss, _ in sources))
    for (loss, which), (path, weighting_path) in sources.items():
        imported, head = convert_network(path, args)
        loss = loss or ("L1+UDL" if head else "L1")
        model, found, options = imported.model, imported.scale, imported.options or None
        if config is None:
            theirs = {"judge": "lpips-vgg-unweighted", "udl_head": "tlw"} if source_of(path, None) or head else {}
            losses = losses if losses != (None,) else (loss,)
            own = {name: value for name, value in (options or {}).items() if name != "colours"} or None
            theirs |= {"color": "grey"} if own != options else {}
            config = configs.Config(model=model, scale=found, model_options=own, losses=losses, **theirs)
        configs.expect(
            (model, found, options) == (config.model, config.scale, config.network_options),
            "modelpath",
            path,
            f"{config.model} x{config.scale} like the other files, found {model} x{found}",
        )
        for line in imported.assumed:
            print(f"{path}: taken: {line}")
        judges = [config.judge] if loss.endswith("+TLW") else []
        identity = model_id(model, found, options)
        states[which][loss] = {
            SR_NETWORK: imported.state_dict,
            "model_id": identity,
            "judges": judges,
            "source": path.name,
        }
        net = build_network(model, found, options, imported.state_dict)
        load_network(net, states[which][loss], str(path), identity)
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
        args.path = Path(args.path)
        configs.expect(args.path.exists(), "path", args.path, "an existing file or folder")
        if args.res_scale is not None:
            configs.expect(0 < args.res_scale <= 1, "res_scale", args.res_scale, "a number above 0, up to 1")
        config, best, last = convert(args)
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
