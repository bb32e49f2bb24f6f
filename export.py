"""Export a run's network for other programs, with RGB images in [0,1], and check the exported file.

    python export.py --best --loss L1+TLW --to onnx         for onnxruntime, chaiNNer and others; any height and width
    python export.py --best --loss L1+TLW --to spandrel     for spandrel, ComfyUI, chaiNNer: RCAN, HAT, RRDBNet
    python export.py --best --loss L1 --to edsr             for the EDSR authors' code, which takes [0,255]
    python export.py --best --loss L1 --to safetensors      for this project: infer.py --weights, train.py --init

The exported file is loaded by the program that it is for, and its images are compared with those of the run's network;
an export that differs is refused. The conversions are in models/export.py.
"""

import argparse

import configs


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Parse the command line; exit with code 2 if it is wrong."""
    about, examples = __doc__.split("\n\n", 1)
    parser = configs.OneLineParser(prog="export.py", description=about, epilog=f"examples:\n{examples}")
    path = configs.typed_path
    parser.add_argument(
        "--modelpath", type=path, metavar="DIR", help="folder of a run (default: the newest in checkpoints/)"
    )
    parser.add_argument("--loss", metavar="LOSS", help="export this loss's network (default: the run's only one)")
    parser.add_argument("--best", action="store_true", help="its best checkpoint (default: the last)")
    parser.add_argument("--checkpoint", metavar="NAME", help="a checkpoint that --keep-every kept, such as step_1000")
    formats = ("safetensors", "onnx", "spandrel", "edsr")
    parser.add_argument("--to", required=True, choices=formats, help="the format: see the examples below")
    parser.add_argument("--fp16", action="store_true", help="half the size; the images differ a little (printed)")
    parser.add_argument(
        "-o", "--output", type=path, metavar="FILE", help="file to write (default: export_LOSS_... in the run's folder)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    return parser.parse_args(argv)


if __name__ == "__main__":  # importing torch takes seconds: answer --help and typing errors before it
    parse(None)

import io
import json
import os
import shlex
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from configs import Config
from models.export import (
    UnitRange,
    checksum,
    describe,
    from_safetensors,
    rounded_to_half,
    run_edsr,
    to_edsr,
    to_onnx,
    to_safetensors,
    to_spandrel,
)
from models.layouts import defaults_of
from models.spandrel_network import PREFIX
from runs.atomic import write_or_report
from runs.checkpoint import load_networks, load_states
from runs.folder import newest_run_dir
from runs.output import escape_unencodable_output, script_command
from runs.weights_file import read_weights_file

SIZES = ((24, 40), (33, 21))  # heights and widths of the LR images to compare on: even and odd
FP32, FP16 = 1e-5, 2e-2  # largest allowed difference, relative to 1 or to the network's largest value above 1
# Settings left out of the metadata: this machine's paths and device, and the model, which describe() states.
PATHS = {field.name for field in fields(Config) if field.metadata["path"]} | {"model", "device"}

Run = Callable[[Tensor], Tensor]  # (1,3,h,w) in [0,1] -> (1,3,s*h,s*w), not clamped


class Source(NamedTuple):
    """A network to export, with its settings and the metadata for its file."""

    net: nn.Module
    config: Config
    metadata: dict[str, str]
    half: bool

    @property
    def weights(self) -> dict[str, Tensor]:
        """The state dict to export."""
        return rounded_to_half(self.net.state_dict()) if self.half else self.net.state_dict()

    @property
    def identity(self) -> tuple[str, int, Mapping | None]:
        return self.config.model, self.config.scale, self.config.network_options


class Format(NamedTuple):
    """A format to export to."""

    suffixes: tuple[str, ...]  # of the file's name; the first is the default
    write: Callable[[Source], bytes]
    load: Callable[[Path], Run]  # the file as another program runs it
    checked_by: str  # that program


def write_safetensors(source: Source) -> bytes:
    return to_safetensors(source.weights, source.metadata)


def load_safetensors(path: Path) -> Run:
    return from_safetensors(*read_weights_file(path))


def write_onnx(source: Source) -> bytes:
    return to_onnx(source.net, source.metadata, source.half)


def load_onnx(path: Path) -> Run:
    """Load it with onnxruntime. Raises ValueError if onnxruntime is missing."""
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX is checked by a package that is not installed; pip install onnx onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])


def write_spandrel(source: Source) -> bytes:
    theirs = to_spandrel(*source.identity, source.net.state_dict())
    theirs = rounded_to_half(theirs) if source.half else theirs
    metadata = source.metadata | {"checksum": checksum(source.net.state_dict())}
    return save({name: value.contiguous() for name, value in theirs.items()}, metadata)


def load_spandrel(path: Path) -> Run:
    """Load it with spandrel, without spandrel's final clamp if its network needs no padding.

    Raises ValueError if spandrel is missing.
    """
    try:
        import spandrel
    except ImportError:
        raise ValueError("the file is checked by spandrel, which is not installed; pip install spandrel") from None
    with warnings.catch_warnings(action="ignore"):  # torch warns of deprecated calls in spandrel's networks
        found = spandrel.ModelLoader().load_from_state_dict(load_file(path)).eval()
    padded = [found.size_requirements.get_padding(w, h) for h, w in SIZES]
    if any(map(any, padded)):  # __call__ pads, and clamps too
        return lambda lr: found(lr.clone())
    return lambda lr: found._call_fn(found.model, lr.clone())  # clone: spandrel's RCAN changes its input in place


def write_edsr(source: Source) -> bytes:
    """Write the bare state dict that EDSR-PyTorch's --pre_train loads, with the metadata in `_metadata`."""
    theirs = OrderedDict(to_edsr(source.identity[0], source.identity[2], source.net.state_dict()))
    theirs = OrderedDict(rounded_to_half(theirs)) if source.half else theirs
    # torch keeps module versions in _metadata; the authors' loader takes every other entry for a parameter.
    theirs._metadata = OrderedDict(
        {"": source.metadata | {"version": 1, "checksum": checksum(source.net.state_dict())}}
    )
    file = io.BytesIO()
    torch.save(theirs, file)
    return file.getvalue()


def load_edsr(path: Path) -> Run:
    theirs, _ = read_weights_file(path)
    return lambda lr: run_edsr(theirs, 255 * lr) / 255


FORMATS = {
    "safetensors": Format((".safetensors",), write_safetensors, load_safetensors, "safetensors and our network"),
    "onnx": Format((".onnx",), write_onnx, load_onnx, "onnxruntime"),
    "spandrel": Format((".safetensors",), write_spandrel, load_spandrel, "spandrel"),
    "edsr": Format((".pt", ".pth"), write_edsr, load_edsr, "a transcription of EDSR-PyTorch's forward"),
}


def read_source(run: Path, which: str, loss: str | None, half: bool) -> Source:
    """Read the run's network for this loss (None: its only one). Raises ValueError."""
    config, states = load_states(run, which, [loss] if loss else None)
    if len(states) > 1:
        raise ValueError(f"--loss: {run} holds networks of {' '.join(states)}; name one")
    ((loss, state),) = states.items()
    config, nets, _ = load_networks(run, which, [loss])
    default, settings = asdict(Config()), asdict(config)
    training = {name: value for name, value in settings.items() if value != default[name] and name not in PATHS}
    training |= {f"{name} (names)": [Path(p).name for p in settings[name]] for name in ("trainpath", "valpath")}
    about = {"loss": loss, "checkpoint": which, "run": run.resolve().name, "training": json.dumps(training)}
    about |= {name: str(state[name]) for name in ("epoch", "step", "source") if name in state}
    about |= {"precision": "fp16"} if half else {}
    net = nets[loss].float().eval().requires_grad_(False)
    return Source(net, config, describe(config.model, config.scale, config.network_options, **about), half)


@torch.no_grad()
def largest_difference(run: Run, net: nn.Module, scale: int) -> float:
    """The largest difference of run's images from net's, relative to net's largest value or 1.

    Raises ValueError if the shapes differ.
    """
    random, worst = torch.Generator().manual_seed(0), 0.0
    for size in SIZES:
        lr = torch.rand(1, getattr(net, "colours", 3), *size, generator=random)
        wanted, found = UnitRange(net)(lr), run(lr)
        if found.shape != wanted.shape:
            raise ValueError(f"it makes {tuple(found.shape)} of {tuple(lr.shape)}; expected {tuple(wanted.shape)}")
        if found.min() >= 0 and found.max() <= 1:  # clamped, as by spandrel's __call__
            wanted = wanted.clamp(0, 1)
        worst = max(worst, float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max())))
    return worst


def check_output(path: Path, to: Format, overwrite: bool) -> None:
    """Raise ValueError for a wrong suffix, an existing file or a folder that cannot be written to."""
    configs.expect(path.suffix in to.suffixes, "output", path, f"a file that ends in {' or '.join(to.suffixes)}")
    configs.expect(not path.is_dir(), "output", path, "a file, not a folder")
    configs.expect(overwrite or not path.exists(), "output", path, "no file there; add --overwrite, or name another")
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    configs.expect(
        existing.is_dir() and os.access(existing, os.W_OK), "output", path, "a folder that can be written to"
    )


def default_output(run: Path, source: Source, to: str) -> Path:
    """The path of the export if --output is not given: in the run's folder."""
    name = "_".join((source.metadata["loss"], source.metadata["checkpoint"]))
    name += "" if to in ("onnx", "safetensors") else f"_{to}"
    return run / f"export_{name}{'_fp16' if source.half else ''}{FORMATS[to].suffixes[0]}"


def export(source: Source, to: Format, path: Path) -> float | None:
    """Write path and check it; return the largest difference, or None if it could not be written.

    path changes only if the check passes; otherwise raises ValueError.
    """
    aside = path.with_name(f".unchecked-{path.name}")
    try:
        if not write_or_report("export.py", aside, to.write(source)):
            return None
        difference = largest_difference(to.load(aside), source.net, source.config.scale)
        most = FP16 if source.half else FP32
        if not difference <= most:
            remedy = "leave out --fp16" if source.half else "use --to safetensors"
            raise ValueError(
                f"its images differ from the run's by up to {difference:.1e}, more than {most:g}; {remedy}"
            )
        os.replace(aside, path)
        return difference
    finally:
        aside.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    to = FORMATS[args.to]
    with configs.one_line_errors("export.py"):
        configs.expect(args.modelpath != "", "modelpath", '""', "a run's folder; leave it out for the newest")
        configs.expect(args.output != "", "output", '""', f"a file, such as network{to.suffixes[0]}")
        run = Path(args.modelpath) if args.modelpath else newest_run_dir()
        if args.output:
            check_output(Path(args.output), to, args.overwrite)
        both = args.checkpoint and args.best
        configs.expect(not both, "checkpoint", args.checkpoint, "no --best beside it")
        which = (args.checkpoint or ("best" if args.best else "last")).removesuffix(".pt")
        source = read_source(run, which, args.loss, args.fp16)
        path = Path(args.output) if args.output else default_output(run, source, args.to)
        check_output(path, to, args.overwrite)
        try:
            difference = export(source, to, path)
        except ValueError as error:
            raise ValueError(f"--to {args.to}: {error}") from None
    if difference is None:
        raise SystemExit(1)
    report(source, args.to, path, difference)


def report(source: Source, to: str, path: Path, difference: float) -> None:
    """Print the file's path, how it was checked and how to use it."""
    model, scale, options = source.identity
    edsr = defaults_of("EDSR") | dict(options or {})
    name = source.net.architecture if model.startswith(PREFIX) else model
    print(f"{name} x{scale}, {source.metadata['loss']} ({source.metadata['checkpoint']}): {path}")
    image = f"lr: float32 (1,{1 if source.config.color == 'grey' else 3},h,w)"
    size = f"{path.stat().st_size / 10**6:.2g} MB"
    print(f"{size}, checked: run by {FORMATS[to].checked_by}, its images differ from the run's by", end=" ")
    print(f"at most {difference:.1e} of [0,1]" + (" (half precision)" if source.half else ""))
    use = {
        "safetensors": script_command("train.py", "--init", path),
        "onnx": f"onnxruntime.InferenceSession({str(path)!r}).run(None, {{'lr': lr}})    {image}",
        "spandrel": f"spandrel.ModelLoader().load_from_file({str(path)!r})",
        "edsr": f"python main.py --test_only --pre_train {shlex.quote(str(path))} --scale {scale} "
        f"--n_resblocks {edsr['blocks']} --n_feats {edsr['channels']} --res_scale 1 --rgb_range 255    (EDSR-PyTorch)",
    }
    print(f"next: {use[to]}")


if __name__ == "__main__":
    escape_unencodable_output()
    main()
