"""Every setting of a run: its default, its bounds, its help text."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import choose, expect
from .habits import ALIASES
from .reading import read_yaml
from .schedules import SCHEDULES
from .setting import OF_FILE, Bounds, convert, setting, shown, value_kind
from .variants import Variant, variants_of

# The settings that may change when a run is resumed.
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
    "deterministic",
    "bad_images",
    "valpath",
    "vallrpath",
    "metrics",
    "best_by",
    "protocol",
    "log_every",
    "watch",
    "tensorboard",
    "load",
    "auto_resume",
    "modelpath",
    "milestones",
    "restart_every",
    "extractor_weights",
    "save_every",
    "save_minutes",
    "clip_grad",
    "max_skipped",
    "on_divergence",
    "warmup",
    "weight_decay",
    "ema",
    "validate_every",
    "keep_every",
    "checkpoint",
    "trainpath",
    "lrpath",
    "lr_template",
    "cache",
    "cache_size",
}

# Values of --init and --cache that are not paths.
INIT_WORDS = ("pytorch", "paper")
WORDS = (*INIT_WORDS, "none")


def _from(least: float, most: float) -> Bounds:
    return Bounds(least=least, most=most)


def _above(above: float, most: float) -> Bounds:
    return Bounds(above=above, most=most)


# Beyond these bounds a run would not fail at once, but fill the memory later or never end.
_STEPS, _EPOCHS, _FACTOR = _from(1, 10**12), _from(0, 2**32 - 1), _from(0, 10**6)
_POSITIVE = _above(0, 10**6)
_SHARE = Bounds(above=0, below=1)


@dataclass(frozen=True)
class Config:
    """The settings of train.py. Defaults are the paper's (arXiv 2301.10575) if it gives a value."""

    model: str = setting(
        "EDSR",
        "SR network, or spandrel:FILE for a file that spandrel reads",
        names="model",
        group="what to train, on what, and where to write it",
    )
    scale: int = setting(
        4,
        "super-resolution factor; 1 restores images: give --vallrpath, and --lrpath or --degradation; 1 and 8 are for "
        "EDSR, RCAN and VDSR",
        (1, 2, 3, 4, 8),
        bounds=_from(1, 8),
    )
    losses: tuple[str, ...] = setting(
        ("L1+TLW", "MSE+TLW", "L1", "MSE"),
        "losses to train with, one network each; settings of one loss: 'L1+TLW[weights=uniform,label=NAME]'",
        names="loss",
    )
    judge: str = setting("lpips-vgg", "judge of TLW; tiny needs no download", names="judge")
    trainpath: tuple[str, ...] = setting(
        ("skimage:astronaut,hubble,ihc,motorcycle,rocket",),
        "folders of HR training images, or photographs of scikit-image",
        path="DIR",
    )
    valpath: tuple[str, ...] = setting(("skimage:chelsea,coffee",), "folders of HR validation images", path="DIR")
    patch: int | None = setting(
        None,
        "side of a random square patch in HR pixels; default: whole images, as in the paper",
        bounds=_from(1, 65536),
    )
    batchsize: int = setting(1, "images per batch", bounds=_from(1, 65536))
    accumulate: int = setting(
        1,
        "batches per optimizer step: the same step as with one batch of all their images, except that BatchNorm (as in "
        "TLW's weighting network) sees one batch at a time",
        bounds=_from(1, 65536),
    )
    learning_rate: float = setting(1e-4, "the optimizer's learning rate", bounds=_above(0, 1000))
    endepoch: int = setting(100, "stop before this epoch; epochs count from 0", bounds=_from(1, 2**32 - 1))
    steps: int | None = setting(None, "stop after this many steps instead of at --endepoch", bounds=_STEPS)
    device: str | None = setting(None, "cpu, cuda, cuda:1; default: cuda if there is a GPU")
    modelpath: str | None = setting(None, "the run's folder; default: checkpoints/MODEL_xSCALE_NUMBER", path="DIR")
    load: bool = setting(False, "resume a run: DIR, DIR/step_N.pt or, without a name, --modelpath or the newest run")
    checkpoint: str | None = setting(None, "with --load: go back to this step_N of --keep-every; default: last")
    auto_resume: bool = setting(False, "resume the run in --modelpath if there is one, else start it")
    # data
    lrpath: tuple[str, ...] = setting(
        (), "folders of LR training images; default: made from HR (MATLAB bicubic)", path="DIR", group="training images"
    )
    lr_template: str | None = setting(None, "names of LR images, such as {}_small; default: {}, {}x4, {}_LR and so on")
    tiles: bool = setting(False, "cut images into adjacent patches, each drawn once per epoch, not random ones")
    degradation: str = setting(
        "bicubic",
        "how LR is made from HR: MATLAB's bicubic imresize, or blur, noise and JPEG of random strength",
        ("bicubic", "blur-noise-jpeg"),
    )
    augment: bool = setting(False, "random flips and rotations")
    repeat: int | None = setting(
        None, "patches drawn from each image per epoch; default: enough to cover it", bounds=_from(1, 10**6)
    )
    skip_small: bool = setting(False, "leave out images smaller than the patch instead of stopping")
    bad_images: str = setting("stop", "on damaged training images: stop, or skip and name them", ("stop", "skip"))
    workers: int = setting(0, "processes that load data; 0: load in the main process", bounds=_from(0, 1000))
    cache: str | None = setting(None, "folder for decoded images, or none: no cache; default: in ~/.cache", path="DIR")
    cache_size: float = setting(32.0, "largest size of --cache in GiB", bounds=_above(0, 10**6))
    # validation
    metrics: tuple[str, ...] = setting(
        (), "perceptual metrics; default: the judge's", names="perceptual metric", group="validation"
    )
    best_by: str | None = setting(
        None, "metric that chooses `best`: PSNR-Y, SSIM-Y or one of --metrics; default: the first of --metrics"
    )
    protocol: str = setting("paper", "evaluation protocol", ("paper", "standard", "table2"))
    validate_every: int | None = setting(
        None, "steps between validations; default: validate after each epoch", bounds=_STEPS
    )
    vallrpath: tuple[str, ...] = setting((), "folders of LR validation images; default: made from HR", path="DIR")
    # network
    color: str = setting(
        "rgb",
        "channels of images and networks: rgb, or grey (luminance; judges see it as three equal channels)",
        ("rgb", "grey"),
        group="network",
    )
    model_options: dict | None = setting(
        None, "options of the network (see the list above), such as blocks=4 channels=32"
    )
    init: str = setting(
        "pytorch", "initial weights: pytorch, paper (N(0, 0.02^2)), or those of a run or a file", path="RUN|FILE"
    )
    init_loss: str | None = setting(None, "with --init RUN: take this loss's network; default: the only one")
    init_best: bool = setting(False, "with --init RUN: take the best network, not the last")
    init_weighting: bool = setting(False, "with --init RUN: take the weighting network too")
    # optimisation
    schedule: str = setting(
        "constant",
        "learning-rate schedule; restarts: repeated cosines, each from the full rate to 0",
        SCHEDULES,
        group="optimisation",
    )
    step_epochs: int = setting(50, "schedule step: epochs between drops", bounds=_from(1, 2**32 - 1))
    step_gamma: float = setting(0.5, "schedules step and milestones: factor of each drop", bounds=_above(0, 1))
    milestones: tuple[int, ...] = setting((), "schedule milestones: steps at which the rate drops", bounds=_STEPS)
    restart_every: int | None = setting(None, "schedule restarts: steps of each cosine", bounds=_STEPS)
    optimizer: str = setting(
        "adam", "optimizer of the SR network and of the weighting network or discriminator", ("adam", "adamw")
    )
    betas: tuple[float, ...] = setting((0.5, 0.999), "Adam's betas", bounds=Bounds(least=0, below=1))
    weight_decay: float | None = setting(
        None, "weight decay; default: PyTorch's, 0 for adam and 0.01 for adamw", bounds=_from(0, 1000)
    )
    ema: float | None = setting(
        None,
        "keep an exponential moving average of the SR network with this decay, such as 0.999; it is what is validated, "
        "saved and used; default: none",
        bounds=_SHARE,
    )
    warmup: int = setting(0, "steps over which the learning rate rises linearly at the start", bounds=_EPOCHS)
    clip_grad: float | None = setting(
        None, "clip gradients to this norm; default: no clipping", bounds=_above(0, 10**12)
    )
    max_skipped: int = setting(
        10, "stop after more steps in a row than this whose loss or gradient is not finite", bounds=_from(1, 10**6)
    )
    on_divergence: str = setting("warn", "if a loss grows to 10 times its median: warn or stop", ("warn", "stop"))
    startepoch: int = setting(0, "number of the first epoch; k depends on it", bounds=_EPOCHS)
    seed: int = setting(0, "seed of initial weights, batches and weight samples", bounds=_EPOCHS)
    precision: str = setting("fp32", "arithmetic of the networks", ("fp32", "bf16"))
    compile: bool = setting(False, "use torch.compile on the trained networks")
    deterministic: bool = setting(
        False, "make runs on a GPU bitwise reproducible, with slower algorithms; runs on a CPU always are"
    )
    # judge and TLW
    judge_weights: tuple[str, ...] = setting(
        (), "local files of the backbones of judge and LPIPS, in any order", path="FILE", group="judge and TLW"
    )
    judge_memory: int | None = setting(
        None,
        "MiB for the judge's activations; larger batches are judged in chunks; default: 128, on a GPU 4096",
        bounds=_from(1, 10**9),
    )
    samples: int = setting(3, "T: weight samples per M-step", bounds=_from(1, 1000))
    eps: float = setting(1e-3, "epsilon of the weight criterion", bounds=_POSITIVE)
    k_start: float = setting(0.3, "k, the mean weight, at epoch 0", bounds=_SHARE)
    k_end: float = setting(0.9, "limit of k", bounds=_SHARE)
    k_epochs: float = setting(
        200.0, "time constant of k: epochs after which it is 1 - 1/e of the way to its limit", bounds=_above(0, 10**9)
    )
    m_step: str = setting("paper", "M-step: Eq. 13, or the released code's log-mean-exp", ("paper", "released"))
    weights: str = setting(
        "learned",
        "TLW, M-step: the learned map (the paper's) or a control: k everywhere, that map with its pixels permuted, or "
        "that map inverted",
        ("learned", "uniform", "shuffled", "inverted"),
    )
    wc: str = setting(
        "sum",
        "TLW, M-step: WC as in the paper's Eq. 13, divided by its mean over batch and samples, or replaced by 1",
        ("sum", "normalised", "one"),
    )
    e_every: int = setting(1, "TLW: make an E-step every N steps (the paper's: 1)", bounds=_from(1, 10**6))
    reuse_mu: bool = setting(
        False, "TLW: use the E-step's mu, from before its update, in the M-step too; saves a forward pass"
    )
    weighting_scale: int = setting(
        1, "TLW: run the weighting network at full (1, the paper's) or half (2) resolution", (1, 2), bounds=_from(1, 2)
    )
    weighting_channels: int = setting(64, "TLW: width of the weighting network", bounds=_from(1, 4096))
    # other losses
    udl_epoch: int = setting(10, "UDL: epoch at which the second stage begins", bounds=_EPOCHS, group="other losses")
    udl_head: str = setting(
        "authors",
        "UDL: the authors' head (a map per colour channel), or that of TLW's code (one map for all)",
        ("authors", "tlw"),
    )
    udl_plus_one: bool = setting(True, "UDL: least weight of the second stage: 1 (the authors' code), or else 0")
    udl_minimum: str = setting(
        "image",
        "UDL: subtract from these weights the minimum of each image, or of the batch (TLW's code)",
        ("image", "batch"),
    )
    udl_restart: bool = setting(
        False, "UDL: begin the second stage with a new optimizer and schedule, as in the authors' code"
    )
    pspl_alpha: float = setting(1.0, "PSPL: growth of sigma per epoch", bounds=_FACTOR)
    pspl_beta: float = setting(0.0, "PSPL: sigma at epoch 0", bounds=_FACTOR)
    pspl_max: float = setting(2.0, "PSPL: weight of the worst pixels", bounds=_POSITIVE)
    pspl_epoch: int = setting(1000, "PSPL: steps per epoch of sigma's growth (the authors': 1000)", bounds=_STEPS)
    pspl_ssim: str = setting(
        "standard",
        "PSPL: SSIM's standard constants for these images, or the smaller ones of the authors' code",
        ("standard", "authors"),
    )
    dp_extractors: tuple[str, ...] = setting(
        ("vgg19:conv5_4", "resnet50:layer3"),
        "DP: NETWORK:LAYER+LAYER of one or two perceptual terms; NETWORK-unnormalised gets images in [0,1]",
    )
    dp_mu: float = setting(0.5, "DP: the second term is kept at 1/mu of the first", bounds=_POSITIVE)
    dp_dynamic: bool = setting(True, "DP: weight the second term as --dp-mu says, or else just add it")
    extractor_weights: tuple[str, ...] = setting(
        (), "DP: local files of the extractors' weights, in any order", path="FILE"
    )
    pixel_weight: float = setting(
        0.005, "DP: weight of the pixel term; the paper's 0.01 is for images in [0,1]", bounds=_FACTOR
    )
    gan_weight: float = setting(0.005, "GAN: weight of the adversarial term", bounds=_POSITIVE)
    gan: str = setting(
        "vanilla", "GAN: adversarial losses of SRGAN (vanilla) or ESRGAN (relativistic average)", ("vanilla", "ragan")
    )
    pretrain_epochs: float = setting(
        0.0, "DP, GAN: first train this many epochs with the pixel term alone", bounds=_from(0, 10**9)
    )
    # the run
    save_every: int | None = setting(
        None,
        "steps between saves, besides those of --save-minutes and after validations",
        bounds=_STEPS,
        group="saving and logging",
    )
    save_minutes: float = setting(
        10.0, "minutes between saves, besides those after validations; 0: none", bounds=_FACTOR
    )
    keep_every: int | None = setting(None, "keep a checkpoint step_N.pt every N steps; default: none", bounds=_STEPS)
    log_every: int = setting(10, "steps between lines of the log", bounds=_from(1, 10**6))
    watch: int = setting(0, "at each validation, keep crops and weight maps of this many images", bounds=_from(0, 16))
    tensorboard: bool = setting(False, "write the log, SR crops and weight maps for TensorBoard too")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, bounds = getattr(self, field.name), field.metadata["bounds"]
            for number in value if isinstance(value, (tuple, list)) else [value]:
                fits = bounds is None or value is None or number in bounds
                expect(fits, field.name, shown(value), f"{value_kind(field)} {bounds}")
        own = "colours" in (self.model_options or {})
        expect(not own, "model_options", "colours", "--color grey instead, which the images need too")
        most = 65536 // self.batchsize
        expect(self.accumulate <= most, "accumulate", self.accumulate, f"up to {most} batches of {self.batchsize}")
        named = len(set(self.dp_extractors)) == len(self.dp_extractors) in (1, 2)
        expect(named, "dp_extractors", " ".join(self.dp_extractors), "one feature extractor, or two different ones")
        rising = list(self.milestones) == sorted(set(self.milestones))
        expect(rising, "milestones", shown(self.milestones), "increasing numbers of steps")
        given = self.schedule != "milestones" or len(self.milestones) > 0
        expect(given, "schedule", self.schedule, "--milestones beside it")
        given = self.schedule != "restarts" or self.restart_every is not None
        expect(given, "schedule", self.schedule, "--restart-every beside it")
        expect(self.k_end >= self.k_start, "k_end", self.k_end, f"at least k_start={self.k_start} and below 1")
        expect(self.endepoch > self.startepoch, "endepoch", self.endepoch, f"more than startepoch={self.startepoch}")
        expect(len(self.betas) == 2, "betas", shown(self.betas), "two values from 0 to below 1")
        pairs = len(self.vallrpath) in (0, len(self.valpath))  # otherwise val.py refuses them after the training
        expect(pairs, "vallrpath", " ".join(self.vallrpath), "one folder for each of --valpath")
        template = self.lr_template is None or "{}" in self.lr_template and "/" not in self.lr_template
        expect(template, "lr_template", self.lr_template, "a name with {} in it and no /, such as {}_small")
        expect(self.cache != "", "cache", '""', "a folder, or none; leave it out for the one in ~/.cache")
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
    def network_options(self) -> dict | None:
        """The options of the network: --model-options, and `colours` for --color grey."""
        return {**(self.model_options or {}), "colours": 1} if self.color == "grey" else self.model_options

    @property
    def images_per_step(self) -> int:
        """The number of images per optimizer step, in all processes together."""
        return self.batchsize * self.accumulate

    @property
    def variants(self) -> dict[str, Variant]:
        """The losses by name, each with the settings that it trains with. Raises ValueError."""
        return variants_of(self, convert)


def canonical(values: Mapping, source: str = "settings") -> dict:
    """The values by their names in Config. Raises ValueError for an unknown name or one given twice."""
    fields, found = [field.name for field in dataclasses.fields(Config)], {}
    for key, value in values.items():
        name = choose(ALIASES.get(str(key), str(key)), fields, f"key in {source}")
        if name in found:
            raise ValueError(f"{source}: {key} and {name} are the same setting; leave one out")
        found[name] = value
    return found


def from_mapping(values: Mapping, source: str = "settings") -> Config:
    """Build a Config from the names and values of a YAML file or of parsed flags. Raises ValueError."""
    known = {field.name: field for field in dataclasses.fields(Config)}
    values = canonical(values, source)
    converted: dict[str, Any] = {name: convert(known[name], value) for name, value in values.items()}
    return Config(**converted)


def absolute_paths(config: Config) -> Config:
    """The config with absolute paths, which mean the same in every working folder."""

    def absolute(path: str) -> str:
        return path if path.startswith("skimage:") else os.path.abspath(path)

    names = [f.name for f in dataclasses.fields(Config) if f.metadata["path"] and getattr(config, f.name) not in WORDS]
    values = {name: getattr(config, name) for name in names}
    values = {name: absolute(x) if isinstance(x, str) else x and tuple(map(absolute, x)) for name, x in values.items()}
    if config.model.startswith(OF_FILE):
        values["model"] = OF_FILE + absolute(config.model.removeprefix(OF_FILE))
    return dataclasses.replace(config, **values)


def to_yaml(config: Config) -> bytes:
    """Write every setting as YAML, which --config reads back."""
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    return yaml.safe_dump(values, sort_keys=False).encode()


def is_of_a_run(path: Path) -> bool:
    """True if the file is exactly what to_yaml writes: the config.yaml of a run."""
    try:
        return path.read_bytes() == to_yaml(from_mapping(read_yaml(path)))
    except (OSError, ValueError):
        return False
