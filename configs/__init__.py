"""The settings of a run: one set of names for YAML files and flags.

`load(argv)` reads the defaults, then --config FILE, then the flags. A YAML key is a flag's name with or
without hyphens ("k-start" or "k_start"); whatever is unknown is an error that suggests the nearest name.
"""

import argparse
import dataclasses
import os
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import get_args, get_origin

import yaml

from .errors import OneLineParser, choose, expect, flag_of, one_line_errors
from .reading import parse_pairs, read_yaml
from .variants import Variant, variants_of

__all__ = [
    "Config",
    "OneLineParser",
    "Variant",
    "add_settings",
    "check_resumable",
    "choose",
    "expect",
    "flag_of",
    "from_mapping",
    "is_of_a_run",
    "load",
    "one_line_errors",
    "parse_pairs",
    "read_yaml",
    "to_yaml",
]

# What --load may change; all else a run keeps for life.
RESUMABLE = {
    "endepoch",
    "steps",
    "learning_rate",
    "schedule",
    "step_epochs",
    "step_gamma",
    "precision",
    "device",
    "workers",
    "judge_weights",
    "judge_memory",
    "compile",
    "bad_images",
    "valpath",
    "vallrpath",
    "metrics",
    "protocol",
    "log_every",
    "load",
    "modelpath",
    "milestones",
    "extractor_weights",
    "save_every",
    "save_minutes",
    "clip_grad",
    "max_skipped",
}
# Other names of settings, in YAML files and as flags.
ALIASES = {"resume": "load", "lpips": "metrics"}
# Beyond these a run would not fail but fill the memory, before its first step or some day.
MOST = {
    "batchsize": 65536,
    "judge_memory": 10**9,
    "repeat": 10**6,
    "samples": 1000,
    "workers": 1000,
    "step_gamma": 1.0,
    "weighting_channels": 4096,
}
KIND_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", dict: "NAME: VALUE pairs"}


def setting(default, help: str, choices: tuple = ()):
    """A field of Config: its default, its help text and, where they are few and fixed, its values."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    """Every setting of train.py. Defaults are the paper's (arXiv 2301.10575) where it names a value."""

    # network
    model: str = setting("EDSR", "SR network: EDSR, RCAN, VDSR, SRResNet, RRDBNet, HAT, HAT-TLW (TLW's small one)")
    model_options: dict | None = setting(None, "the network's own options, such as blocks=4 channels=32")
    scale: int = setting(4, "super-resolution factor", (2, 3, 4))
    init: str = setting("pytorch", "first weights: PyTorch's own, or the paper's N(0, 0.02^2)", ("pytorch", "paper"))
    # losses
    losses: tuple[str, ...] = setting(
        ("L1+TLW", "MSE+TLW", "L1", "MSE"),
        "losses to train with, one network each; with settings of its own: 'L1+TLW[weights=uniform,label=NAME]'",
    )
    judge: str = setting("lpips-vgg", "judge of TLW: lpips-{vgg,alex,squeeze}, each also -unweighted; tiny; ms-ssim")
    judge_weights: tuple[str, ...] = setting((), "local backbone files of judge and LPIPS, in any order")
    judge_memory: int | None = setting(
        None, "MiB that the judge's activations may take, beyond it mixtures go in chunks; default: 128, on a GPU 4096"
    )
    samples: int = setting(3, "T: weight samples per M-step")
    eps: float = setting(1e-3, "epsilon of the weight criterion")
    k_start: float = setting(0.3, "k, the mean weight, at epoch 0")
    k_end: float = setting(0.9, "k that the schedule tends to")
    k_epochs: float = setting(200.0, "epochs until k has gone 1 - 1/e of its way")
    m_step: str = setting("paper", "M-step: Eq. 13, or the released code's log-mean-exp", ("paper", "released"))
    weights: str = setting(
        "learned",
        "TLW, M-step: the paper's weights, or a control: k everywhere, the learned map with its pixels permuted, or "
        "the most weight where that has the least",
        ("learned", "uniform", "shuffled", "inverted"),
    )
    wc: str = setting(
        "sum",
        "TLW, M-step: WC as in the paper's Eq. 13, divided by its mean over batch and samples, or 1 in its place",
        ("sum", "normalised", "one"),
    )
    e_every: int = setting(1, "TLW: steps from one E-step to the next (the paper's: 1)")
    reuse_mu: bool = setting(False, "TLW: the M-step takes the E-step's mu, of before its update, and saves a forward")
    weighting_scale: int = setting(1, "TLW: weighting network at full resolution (the paper's) or half", (1, 2))
    weighting_channels: int = setting(64, "TLW: width of the weighting network")
    udl_epoch: int = setting(10, "UDL: epoch at which the second stage begins")
    udl_head: str = setting("authors", "UDL: a head for each colour channel, or TLW's for all", ("authors", "tlw"))
    udl_plus_one: bool = setting(True, "UDL: second stage's weights from 1 on, as in the authors' code, or from 0")
    pspl_alpha: float = setting(1.0, "PSPL: growth of sigma in an epoch")
    pspl_beta: float = setting(0.0, "PSPL: sigma at epoch 0")
    pspl_max: float = setting(2.0, "PSPL: weight of the worst pixels")
    pspl_epoch: int = setting(1000, "PSPL: steps in the epoch that sigma grows in, whatever an epoch of the run has")
    pspl_ssim: str = setting(
        "standard",
        "PSPL: SSIM with its constants for these images, or as small as its authors' code has them",
        ("standard", "authors"),
    )
    dp_extractors: tuple[str, ...] = setting(
        ("vgg19:conv5_4", "resnet50:layer3"),
        "DP: NETWORK:LAYER+LAYER of the two perceptual terms, or of one alone; NETWORK-unnormalised sees [0,1]",
    )
    dp_mu: float = setting(0.5, "DP: the second term is 1/mu of the first")
    dp_dynamic: bool = setting(True, "DP: the second term weighted to 1/mu of the first, or only added to it")
    extractor_weights: tuple[str, ...] = setting((), "DP: local files of the extractors' weights, in any order")
    pixel_weight: float = setting(
        0.005, "DP: weight of the pixel term beside the perceptual ones; the paper's 0.01 is for images in [0,1]"
    )
    gan_weight: float = setting(0.005, "GAN: weight of the adversarial term")
    gan: str = setting(
        "vanilla", "GAN: the adversarial losses, SRGAN's or ESRGAN's relativistic average", ("vanilla", "ragan")
    )
    pretrain_epochs: float = setting(0.0, "DP, GAN: epochs with the pixel term alone, before the other terms act")
    # data
    trainpath: tuple[str, ...] = setting(
        ("skimage:astronaut,hubble,ihc,motorcycle,rocket",), "folders of HR training images (or photographs in skimage)"
    )
    lrpath: tuple[str, ...] = setting((), "folders of LR training images; default: made from HR (MATLAB bicubic)")
    valpath: tuple[str, ...] = setting(("skimage:chelsea,coffee",), "folders of HR validation images")
    vallrpath: tuple[str, ...] = setting((), "folders of LR validation images; default: made from HR")
    patch: int | None = setting(None, "HR pixels of a random square patch; default: whole images, as in the paper")
    bad_images: str = setting("stop", "damaged training images: stop, or skip and name them", ("stop", "skip"))
    skip_small: bool = setting(False, "leave out images smaller than the patch instead of stopping")
    augment: bool = setting(False, "random flips and rotations")
    repeat: int | None = setting(
        None, "times that each image is drawn in an epoch; default: once, patches as often as they cover the images"
    )
    batchsize: int = setting(1, "images per batch")
    workers: int = setting(0, "processes that load data (0: none besides this one)")
    # optimisation
    learning_rate: float = setting(1e-4, "Adam's learning rate")
    betas: tuple[float, ...] = setting((0.5, 0.999), "Adam's betas")
    schedule: str = setting("constant", "learning rate over the run", ("constant", "step", "milestones", "cosine"))
    step_epochs: int = setting(50, "schedule step: epochs between two drops")
    step_gamma: float = setting(0.5, "schedules step and milestones: factor of each drop")
    milestones: tuple[int, ...] = setting((), "schedule milestones: steps from which the rate has dropped once more")
    clip_grad: float | None = setting(None, "largest norm of a gradient, beyond which it is scaled down; default: none")
    max_skipped: int = setting(10, "steps in a row that may be skipped for a loss or gradient that is not finite")
    startepoch: int = setting(0, "number of the first epoch (k is that of this epoch)")
    endepoch: int = setting(100, "number of the epoch to stop before")
    steps: int | None = setting(None, "stop after this many steps instead of at --endepoch")
    seed: int = setting(0, "seed of first weights, batches and samples")
    precision: str = setting("fp32", "arithmetic of the networks", ("fp32", "bf16"))
    compile: bool = setting(False, "have torch.compile translate the networks that learn, at the run's beginning")
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: what the machine has")
    # the run
    modelpath: str | None = setting(None, "the run's folder; default: checkpoints/MODEL_xSCALE_NUMBER")
    load: bool = setting(False, "go on with the run in --modelpath from where it stopped")
    save_every: int | None = setting(None, "steps between two saves, besides those of --save-minutes and epochs")
    save_minutes: float = setting(10.0, "minutes between two saves, besides those after epochs; 0: those alone")
    metrics: tuple[str, ...] = setting(
        (), "perceptual metrics of validation (alex vgg squeeze tiny ms-ssim), first for `best`; default: the judge's"
    )
    protocol: str = setting("paper", "evaluation protocol", ("paper", "standard"))
    log_every: int = setting(10, "steps between two lines of the log")

    def __post_init__(self):
        positive = (
            "judge_memory",
            "samples",
            "eps",
            "k_epochs",
            "patch",
            "repeat",
            "batchsize",
            "learning_rate",
            "step_epochs",
            "step_gamma",
            "steps",
            "log_every",
            "pspl_max",
            "pspl_epoch",
            "dp_mu",
            "gan_weight",
            "clip_grad",
            "max_skipped",
            "save_every",
            "e_every",
            "weighting_channels",
        )
        for name in positive:
            value = getattr(self, name)
            expect(value is None or value > 0, name, value, "a number above 0")
        for name, most in MOST.items():
            value = getattr(self, name)
            expect(value is None or value <= most, name, value, f"{most} or less")
        for name in ("workers", "startepoch", "seed"):
            expect(0 <= getattr(self, name) < 2**32, name, getattr(self, name), "0 or more, below 2^32")
        for name in ("pspl_alpha", "pspl_beta", "pixel_weight", "pretrain_epochs", "save_minutes"):
            expect(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        named = len(set(self.dp_extractors)) == len(self.dp_extractors) in (1, 2)
        expect(named, "dp_extractors", " ".join(self.dp_extractors), "one feature extractor, or two different ones")
        rising = list(self.milestones) == sorted({step for step in self.milestones if step > 0})
        expect(rising, "milestones", _shown(self.milestones), "numbers of steps above 0, each above the one before")
        given = self.schedule != "milestones" or len(self.milestones) > 0
        expect(given, "schedule", self.schedule, "--milestones beside it")
        expect(0 < self.k_start < 1, "k_start", self.k_start, "a value between 0 and 1")
        expect(self.k_start <= self.k_end < 1, "k_end", self.k_end, f"a value from k_start={self.k_start} to below 1")
        expect(self.endepoch > self.startepoch, "endepoch", self.endepoch, f"more than startepoch={self.startepoch}")
        fit = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        expect(fit, "betas", self.betas, "two values from 0 to below 1")
        pairs = len(self.vallrpath) in (0, len(self.valpath))  # else val.py would refuse them, after the training
        expect(pairs, "vallrpath", " ".join(self.vallrpath), "one folder for each of --valpath")
        expect(self.modelpath != "", "modelpath", '""', "a folder; leave it out for a new one in checkpoints/")
        expect(len(self.losses) > 0, "losses", self.losses, "at least one loss")
        expected = f"sum or one beside --m-step {self.m_step}, which divides by the sum of WC already"
        expect(self.m_step == "paper" or self.wc != "normalised", "wc", self.wc, expected)
        names = {name.lower() for name in self.variants}  # on some disks a.pt and A.pt are one file
        expect(len(names) == len(self.losses), "losses", " ".join(self.losses), "each loss once, or label=NAME in it")
        if self.patch is not None and self.patch % self.scale:
            near = max(self.patch - self.patch % self.scale, self.scale)
            raise ValueError(f"patch={self.patch} is not divisible by scale={self.scale}; use {near}")

    @property
    def variants(self) -> dict[str, Variant]:
        """The losses by their names, each with the settings that it trains with. Raises ValueError."""
        return variants_of(self, _convert)


def add_settings(parser: argparse.ArgumentParser, names: Iterable[str] | None = None) -> None:
    """Give the parser a flag for each field of Config (or for those named); a flag not given is absent."""
    for field in dataclasses.fields(Config):
        if names is None or field.name in names:
            kind, many = _kind(field.type)
            options = {"help": field.metadata["help"] + _default_text(field), "default": argparse.SUPPRESS}
            if kind is bool:
                options["action"] = argparse.BooleanOptionalAction
            elif kind is dict:
                options |= {"nargs": "*", "metavar": "NAME=VALUE"}
            else:
                options |= {"type": kind, "metavar": field.name.upper().split("_")[-1]}
                if many:
                    options["nargs"] = "+"
                if field.metadata["choices"]:
                    options |= {"choices": field.metadata["choices"], "metavar": None}
            aliases = [flag_of(alias) for alias, name in ALIASES.items() if name == field.name]
            parser.add_argument(flag_of(field.name), *aliases, **options)


def from_mapping(values: Mapping, source: str = "settings") -> Config:
    """A Config from the names and values of a YAML file or of parsed flags; ValueError names what does not fit."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    values = {ALIASES.get(name, name): value for name, value in values.items()}
    for name in values:
        choose(name, known, f"key in {source}")
    return Config(**{name: _convert(known[name], value) for name, value in values.items()})


def load(argv: list[str] | None = None) -> Config:
    """The settings of a command line: defaults, then --config, then flags. Exits with code 2 on a bad one."""
    codes = "exit codes: 0 done; 1 gone wrong; 2 bad input; 130, 138, 143 stopped by SIGINT, SIGUSR1, SIGTERM and saved"
    about = "Train SR networks, one per loss, from one start on one data."
    parser = OneLineParser(prog="train.py", description=about, epilog=codes)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the settings below; flags win")
    add_settings(parser)
    flags = vars(parser.parse_args(argv))
    path = flags.pop("config")
    try:
        if path is None and flags.get("load"):
            path = settings_of(flags.get("modelpath"))
        if isinstance(flags.get("model_options"), list):
            flags["model_options"] = parse_pairs(flags["model_options"], "--model-options", "blocks=4")
        values = {} if path is None else read_yaml(path)
        if "endepoch" in flags and "steps" not in flags:
            values["steps"] = None  # of the two ends the one that was typed
        config = from_mapping({**values, **flags}, source=str(path or "the flags"))
        if config.load:
            saved = settings_of(config.modelpath)
            check_resumable(config, from_mapping(read_yaml(saved), source=str(saved)))
        return config
    except ValueError as error:
        parser.error(str(error))


def settings_of(run: str | None) -> Path:
    """The file of a run's settings. Raises ValueError where there is no such run."""
    # os.path.exists says no where Path's raises, as for too long a name.
    if not (run and os.path.exists(Path(run) / "config.yaml")):
        where = "checkpoints without --modelpath" if run is None else run or '""'
        raise ValueError(f"--load: no run in {where} (no config.yaml); name its folder, or leave out --load")
    return Path(run) / "config.yaml"


def check_resumable(config: Config, saved: Config) -> None:
    """Raise ValueError where a setting that a run keeps for life differs from the saved one."""
    for field in dataclasses.fields(Config):
        wanted, found = getattr(config, field.name), getattr(saved, field.name)
        if field.name not in RESUMABLE and wanted != found:
            flag = flag_of(field.name)
            raise ValueError(f"{flag} {_shown(wanted)}: the run was begun with {_shown(found)}; leave it out")


def to_yaml(config: Config) -> bytes:
    """The file of every setting, which --config reads back."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return yaml.safe_dump(values, sort_keys=False).encode()


def is_of_a_run(path: Path) -> bool:
    """Whether the file is as to_yaml wrote it, every setting in its place and nothing else."""
    try:
        return path.read_bytes() == to_yaml(from_mapping(read_yaml(path)))
    except (OSError, ValueError):
        return False


def _kind(annotation) -> tuple[type, bool]:
    """The type of one value, and whether there may be many: tuple[str, ...] -> (str, True)."""
    if get_origin(annotation) is tuple:
        return get_args(annotation)[0], True
    if isinstance(annotation, UnionType):
        return get_args(annotation)[0], False
    return annotation, False


def _default_text(field) -> str:
    if field.default in (None, ()):
        return ""
    return f" (default: {_shown(field.default)})"


def _shown(value) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _convert(field, value):
    """value as the field's type; ValueError where it is of another."""
    kind, many = _kind(field.type)
    if value is None and field.default is None:
        return None
    if many:
        values = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_convert_one(field, kind, v) for v in values)
    return _convert_one(field, kind, value)


def _convert_one(field, kind: type, value):
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML reads 1e-4 as a string
        except (ValueError, OverflowError):
            pass
    if kind is float and isinstance(value, float):
        expect(abs(value) < float("inf"), field.name, value, "a finite number")
    expect(type(value) is kind, field.name, reprlib.repr(value), KIND_NAMES[kind])
    choices = field.metadata["choices"]
    expect(not choices or value in choices, field.name, value, "one of " + ", ".join(map(str, choices)))
    return value
