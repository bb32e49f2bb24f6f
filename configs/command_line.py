"""The command line of train.py: flags, --help, --config, --load."""

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from . import catalogue
from .config import INIT_WORDS, RESUMABLE, Config, canonical, from_mapping
from .errors import OneLineParser, choose, flag_of, one_line_errors
from .habits import ALIASES
from .reading import expand_path, has_commas, parse_pairs, read_yaml
from .setting import KIND_NAMES, OF_FILE, kind_of, shown

EXAMPLES = """\
examples:
  python train.py --config configs/quickstart.yaml                      minutes on a CPU, nothing to download
  python train.py --judge tiny --patch 96 --batchsize 8 --trainpath DIR --valpath DIR
  python train.py --model RCAN --losses L1 L1+TLW --device cuda --trainpath DIR --valpath DIR --modelpath runs/rcan
  python train.py --load runs/rcan --endepoch 200                       resumes a run
  torchrun --nproc-per-node 4 train.py --batchsize 16 --patch 96 --trainpath DIR --valpath DIR

exit codes: 0 done; 1 failed; 2 bad input; 130, 138, 143 saved and stopped by SIGINT, SIGUSR1, SIGTERM"""


def add_settings(parser, only: Iterable[str] | None = None) -> None:
    """Add a flag for each field of Config, or each in `only`; a flag not given is absent from the result."""
    target = parser
    for field in dataclasses.fields(Config):
        if only is None and field.metadata["group"]:
            target = parser.add_argument_group(field.metadata["group"], _about_group(field.metadata["group"]))
        if only is None or field.name in only:
            _add_flag(target, field)


def _add_flag(target, field) -> None:
    kind, many = kind_of(field.type)
    of_a_kind = f": {' '.join(catalogue.names(field.metadata['names']))}" if field.metadata["names"] else ""
    default = "" if field.default in (None, ()) or field.default is False else f" (default: {shown(field.default)})"
    text = (field.metadata["help"] + of_a_kind + default).replace("%", "%%")
    options = {"help": text, "default": argparse.SUPPRESS}
    flags = [flag_of(name) for name in (field.name, *(alias for alias, name in ALIASES.items() if name == field.name))]
    if field.name == "load":
        target.add_argument(*flags, nargs="?", const=True, metavar="DIR", **options)
        target.add_argument(
            "--no-load", dest="load", action="store_false", default=argparse.SUPPRESS, help="start a new run"
        )
        return
    if kind is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif kind is dict:
        options |= {"nargs": "*", "metavar": "NAME=VALUE"}
    else:
        metavar = field.metadata["path"] or {int: "N", float: "X", str: "NAME"}[kind]
        options |= {"type": _reader(kind), "metavar": metavar} | ({"nargs": "+"} if many else {})
        if field.metadata["choices"]:
            options |= {"choices": field.metadata["choices"], "metavar": None}
    target.add_argument(*flags, **options)


def _reader(kind: type) -> Callable:
    """A converter to kind for argparse, with an error that says what was expected."""

    def read(word: str):
        try:
            return kind(word)
        except ValueError:
            commas = "; separate with spaces" if has_commas(word) else ""
            raise argparse.ArgumentTypeError(f"{word}: expected {KIND_NAMES[kind]}{commas}") from None

    return read


def _about_group(group: str) -> str | None:
    if group != "network":
        return None
    lines = ["options of each network, as --model-options takes them, with their defaults:"]
    for model in catalogue.names("model"):
        options = catalogue.shown_options(catalogue.model_options(model))
        lines += textwrap.wrap(options, 98, initial_indent=f"{model:9} ", subsequent_indent=" " * 10)
    return "\n".join(lines)


def make_parser() -> OneLineParser:
    """The parser of train.py's command line."""
    about = "Train SR networks, one per loss, from the same initial weights on the same batches."
    parser = OneLineParser(
        prog="train.py", description=about, epilog=EXAMPLES, usage="train.py [--config FILE] [settings]"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below; flags override it")
    add_settings(parser)
    return parser


def load(
    argv: list[str] | None = None,
    newest_run: Callable[..., Path] | None = None,
    complete: Callable[[Mapping], Mapping] | None = None,
) -> Config:
    """Read the settings: defaults, then --config, then flags. Exits with code 2 if one is wrong.

    Args:
        newest_run: newest_run(resumable=True) returns the folder that --load alone resumes, or raises ValueError.
        complete: takes the settings given and returns more that follow from them; may raise ValueError.
    """
    parser = make_parser()
    flags = vars(parser.parse_args(argv))
    file = flags.pop("config")
    try:
        if isinstance(flags.get("model_options"), list):
            flags["model_options"] = parse_pairs(flags["model_options"], "--model-options", "blocks=4")
        path = None if file is None else expand_path(file)
        written = {} if path is None else canonical(read_yaml(path), path)
        values = {**_with_folder(written), **_with_folder(flags)}
        if "endepoch" in flags and "steps" not in flags:
            values["steps"] = None  # the typed end replaces the file's
        values = _with_run(values, newest_run)
        if values.get("load") is True and path is None:
            path = str(settings_of(values.get("modelpath")))
            values = read_yaml(path) | values
        if complete is not None:
            values = canonical(values, path or "the flags")
            values |= complete(values)
        config = from_mapping(values, source=path or "the flags")
        if config.load:
            saved = settings_of(config.modelpath)
            check_resumable(config, from_mapping(read_yaml(saved), source=str(saved)))
        return config
    except ValueError as error:
        parser.error(str(error))


def _with_folder(values: dict) -> dict:
    """Replace "load: DIR" by "load: true" and "modelpath: DIR".

    "load: DIR/step_1000.pt" gives "checkpoint: step_1000" too. Raises ValueError if other values contradict these.
    """
    folder = values.get("load")
    if not isinstance(folder, str):
        return values
    if folder.endswith(".pt"):
        folder, name = os.path.split(folder)
        folder, name = folder or ".", name.removesuffix(".pt")
        if values.get("checkpoint", name).removesuffix(".pt") != name:
            raise ValueError(f"--load {folder}/{name}.pt: --checkpoint names another; leave one out")
        values = values | {"checkpoint": name}
    other = values.get("modelpath", folder)
    if other != folder:
        raise ValueError(f"--load {folder}: --modelpath {other} names another folder; leave one out")
    return values | {"load": True, "modelpath": folder}


def _with_run(values: dict, newest_run: Callable[..., Path] | None) -> dict:
    """Resolve --auto-resume to `load`, and --load to the `modelpath` that it resumes. Raises ValueError."""
    folder = values.get("modelpath")
    if isinstance(folder, str):
        folder = expand_path(folder)
    if values.get("auto_resume") is True:
        if not isinstance(folder, str):
            raise ValueError("--auto-resume: expected --modelpath DIR beside it, the run to start or resume")
        saved = any(os.path.exists(os.path.join(folder, name)) for name in ("last.pt", "previous.pt"))
        values = values | {"load": saved}
    elif values.get("load") is True and folder is None and newest_run is not None:
        try:
            folder = str(newest_run(resumable=True))
        except ValueError as error:
            raise ValueError(f"--load: {error}") from None
    return values | ({"modelpath": folder} if folder is not None else {})


def settings_of(run: str | None) -> Path:
    """The file of a run's settings. Raises ValueError if there is no such run."""
    # os.path.exists returns False where Path.exists raises, as for a name that is too long.
    if not (run and os.path.exists(Path(run) / "config.yaml")):
        where = "checkpoints without --modelpath" if run is None else run or '""'
        raise ValueError(f"--load: no run in {where} (no config.yaml); name its folder, or leave out --load")
    return Path(run) / "config.yaml"


def check_resumable(config: Config, saved: Config) -> None:
    """Raise ValueError if a setting that a resumed run must keep differs from the saved one."""
    for field in dataclasses.fields(Config):
        wanted, found = getattr(config, field.name), getattr(saved, field.name)
        if field.name not in RESUMABLE and wanted != found:
            flag = flag_of(field.name)
            raise ValueError(f"{flag} {shown(wanted)}: the run was started with {shown(found)}; leave it out")


def check_known(kind: str, given: Iterable[str], *also: str) -> None:
    """Raise ValueError for a name that is neither of this kind (see catalogue.TABLES) nor in `also`."""
    for name in given:
        choose(name, [*catalogue.names(kind), *also], kind)


def typed_path(text: str) -> str:
    """Expand a path as expand_path does: a `type` for argparse."""
    try:
        return expand_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def check_names(config: Config) -> None:
    """Raise ValueError for a name unknown to models, losses or metrics, without importing them."""
    for field in dataclasses.fields(Config):
        kind, value = field.metadata["names"], getattr(config, field.name)
        if kind:
            names = [name.split("[")[0] for name in (value if isinstance(value, tuple) else [value])]
            check_known(kind, [name for name in names if not name.startswith(OF_FILE)])
    if config.model.startswith(OF_FILE):
        return
    options = catalogue.model_options(config.model)
    for name in config.model_options or {}:
        if name not in options:
            listed = f"{config.model}'s, with their defaults: {catalogue.shown_options(options)}"
            raise ValueError(f"--model-options {name}: {config.model} has no such option; {listed}")


def check_command_line(newest_run: Callable[..., Path]) -> None:
    """Answer --help and refuse a wrong command line of train.py before torch is imported.

    Does nothing under torchrun, where the main process reports errors for all. Settings that depend on a file of
    weights are checked later.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        with one_line_errors("train.py"), suppress(_OfWeights):
            check_names(load(newest_run=newest_run, complete=_refuse_weights))


class _OfWeights(Exception):
    """Raised for settings that a file of weights has to complete."""


def _refuse_weights(values: Mapping) -> Mapping:
    if values.get("init", "pytorch") not in INIT_WORDS or str(values.get("model")).startswith(OF_FILE):
        raise _OfWeights
    return {}
