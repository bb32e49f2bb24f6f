"""An experiment: networks, data and metrics, built from a run's settings."""

import math
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.utils.data import Dataset

import configs
from configs import Config
from data import DEGRADATIONS, ImageCache, PairedDataset, PatchDataset, ResumableBatchSampler
from losses import Loss
from metrics.backbones import WeightsNotFoundError, at_hand, unused_files
from metrics.evaluate import PROTOCOLS, check_sizes
from metrics.extractors import build_extractor
from metrics.judges import JUDGES, MEMORY, METRICS, build_judge, metric_of, word_of

from . import distributed
from .board import check_tensorboard
from .device import check_compile, place_frozen, set_deterministic, setup_device
from .learner import Learner, build_learners
from .schedule import first_and_last_step
from .validation import metrics_on, read_validation_set


@dataclass
class Experiment:
    """The parts of a run; `add_teachers` adds the judge, the extractors and the metrics."""

    config: Config
    device: torch.device
    learners: list[Learner]
    patches: PatchDataset
    validation: PairedDataset
    val_shard: Dataset  # the part of validation that this process measures
    repeat: int  # draws of each image per epoch
    epoch_steps: int
    first_step: int
    last_step: int
    left_out: list[str]  # a line for each training image that --bad-images skip left out
    notes: list[str]  # on the settings
    metric_names: tuple[str, ...]  # the perceptual metrics of validation
    judge: nn.Module | None = None
    extractors: dict[str, nn.Module] = field(default_factory=dict)
    metrics: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def small_images(self) -> int:
        """The number of training images that are smaller than the patch and left out."""
        return len(self.patches.pairs) - len(self.patches.used)

    @property
    def data_notes(self) -> list[str]:
        """Notes on the folders of images."""
        return list(dict.fromkeys(self.patches.pairs.notes + self.validation.notes))

    @property
    def best_by(self) -> str:
        """The metric that chooses `best`, in the form of `word_of`."""
        return word_of(self.config.best_by) if self.config.best_by else self.metric_names[0]

    @property
    def selection_criterion(self) -> list[str]:
        """The metric, the protocol and the images (by checksum) that choose `best`."""
        checksum = zlib.crc32(repr(self.validation.checksums).encode())
        images = f"{len(self.validation)} images of checksum {checksum:08x}"
        return [self.best_by, self.config.protocol, images]

    def validation_is_due(self, step: int, config: Config | None = None) -> bool:
        """True at every --validate-every steps (by default every epoch) and at the last step.

        config: the settings of the run before it was resumed, if these are meant.
        """
        config = config or self.config
        last_step = first_and_last_step(config, self.epoch_steps)[1]
        return step == last_step or step % (config.validate_every or self.epoch_steps) == 0

    def next_stop(self, step: int) -> int:
        """The first step beyond `step` that ends an epoch or the run, or has a validation."""
        intervals = (self.epoch_steps, self.config.validate_every or self.epoch_steps)
        return min(*((step // n + 1) * n for n in intervals), self.last_step)

    def sampler(self, first_step: int, last_step: int, share: tuple[int, int] = (0, 1)) -> ResumableBatchSampler:
        """The batches of these steps; share: rank and world size."""
        config = self.config
        return ResumableBatchSampler(
            len(self.patches), config.images_per_step, config.seed, first_step, last_step, self.repeat, share
        )


def build_experiment(config: Config) -> Experiment:
    """Build the networks and data of a run; write nothing but the image cache. Raises ValueError."""
    set_deterministic(config.deterministic)
    device = distributed.local_device(setup_device(config.device))
    world_size = distributed.get_world_size()
    configs.expect(
        config.batchsize % world_size == 0,
        "batchsize",
        config.batchsize,
        f"a multiple of {world_size}, the number of torchrun's processes, which share it",
    )
    configs.choose(config.judge, JUDGES, "judge")
    if config.compile:
        check_compile(device)
    if config.tensorboard:
        check_tensorboard()
    begun_from: list[str] = []
    learners = build_learners(config, device, begun_from)
    losses = [learner.loss for learner in learners]
    metric_names, notes = choose_metrics(config, losses)
    notes += begun_from + unused_weights(config, losses, metric_names)
    notes += not_accumulated(config, learners)
    cache = image_cache(config)
    patches, left_out = build_patches(config, cache)
    with says_where(config, "valpath", "vallrpath"):
        validation = read_validation_set(
            config.valpath,
            config.scale,
            config.protocol,
            config.vallrpath,
            config.lr_template,
            cache,
            distributed.is_main_process(),
            config.color == "grey",
        )
    repeat = config.repeat or patches.draws_to_cover
    epoch_steps = ResumableBatchSampler(len(patches), config.images_per_step, 0, repeat=repeat).steps_per_epoch
    first_step, last_step = first_and_last_step(config, epoch_steps)
    return Experiment(
        config,
        device,
        learners,
        patches,
        validation,
        distributed.shard_images(validation),
        repeat,
        epoch_steps,
        first_step,
        last_step,
        left_out,
        notes,
        metric_names,
    )


def not_accumulated(config: Config, learners: list[Learner]) -> list[str]:
    """A line that names the losses for which --accumulate differs from a larger batch, if there are any."""
    names = [learner.name for learner in learners if learner.batch_norms] if config.accumulate > 1 else []
    size, whole = config.batchsize, config.images_per_step
    return [f"accumulate: BatchNorm sees {size} images at a time, not {whole}: {' '.join(names)}"] if names else []


def image_cache(config: Config) -> ImageCache | None:
    """The disk cache for decoded images of large data sets; None with --cache none."""
    if config.cache == "none":
        return None
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return ImageCache(config.cache or f"{base}/trainable-loss-weights", limit=int(config.cache_size * 2**30))


@contextmanager
def says_where(config: Config, *names: str) -> Iterator[None]:
    """Add to a ValueError, if a resumed run's folder is missing, which flags name the new folders."""
    try:
        yield
    except ValueError as error:
        folders = [folder for name in names for folder in getattr(config, name) if not folder.startswith("skimage:")]
        if not config.load or all(map(os.path.isdir, folders)):
            raise
        given = " and ".join(f"{configs.flag_of(name)} DIR" for name in names if getattr(config, name))
        raise ValueError(f"{error}; if the images have moved, name their folders: {given}") from None


def choose_metrics(config: Config, losses: list[Loss]) -> tuple[tuple[str, ...], list[str]]:
    """Choose the perceptual metrics of validation; return them, and a note if the judge's is left out.

    The default is the judge's metric; but nothing is downloaded for a default judge that no loss needs. Raises
    ValueError if --best-by is none of them.
    """
    notes, metrics = [], config.metrics or (metric_of(config.judge),)
    needed = any(loss.needs_judge for loss in losses)
    named = config.metrics or needed or config.judge != Config.judge
    if not named and not distributed.all_gather(at_hand(metrics[0], config.judge_weights))[0]:
        net = metrics[0]
        notes.append(f"LPIPS-{net} is left out: its weights are not on this machine; --metrics {net} downloads them")
        metrics = ("tiny",)
    if config.best_by:
        known, word = ["PSNR-Y", "SSIM-Y", *metrics], word_of(config.best_by)
        remedy = f"; or add --metrics {' '.join([*metrics, word])}" if word in METRICS else ""
        fits = word in map(str.lower, known)
        configs.expect(fits, "best_by", config.best_by, f"one of {', '.join(known)}{remedy}")
    return metrics, notes


def unused_weights(config: Config, losses: list[Loss], metrics: tuple[str, ...]) -> list[str]:
    """A line for each weights file that no network uses. Raises ValueError if one cannot be read."""
    used = [*metrics, *(name for loss in losses for name in loss.extractors)]
    used += [config.judge] * any(loss.needs_judge for loss in losses)
    files = config.judge_weights + config.extractor_weights
    return [f"{path} is not used: it holds {net}'s weights" for path, net in unused_files(files, map(metric_of, used))]


def build_patches(config: Config, cache: ImageCache | None = None) -> tuple[PatchDataset, list[str]]:
    """Read the training images; return their patches and a line per image left out. Raises ValueError."""
    for name in ("trainpath", "valpath"):
        configs.expect(len(getattr(config, name)) > 0, name, "", "one or more folders of HR images")
    configs.expect(config.patch or not config.tiles, "tiles", "alone", "--patch beside it, the size of the tiles")
    alone = config.degradation == "bicubic" or not config.lrpath
    configs.expect(alone, "degradation", config.degradation, "no --lrpath beside it, for that is LR already")
    given = config.scale > 1 or config.lrpath or config.degradation != "bicubic"
    configs.expect(bool(given), "scale", 1, "--lrpath beside it, the images to restore, or a --degradation")
    whole = PROTOCOLS[config.protocol].multiple or math.lcm(PROTOCOLS["paper"].multiple, config.scale)
    multiple = config.scale if config.patch else whole
    with says_where(config, "trainpath", "lrpath"):
        pairs = PairedDataset(
            config.trainpath,
            config.scale,
            multiple,
            lr_folders=config.lrpath or None,
            lr_template=config.lr_template,
            cache=cache,
            degradation=DEGRADATIONS[config.degradation],
            progress=distributed.is_main_process(),
            bad_images=config.bad_images,
            grey=config.color == "grey",
        )
    patches = PatchDataset(pairs, config.patch, config.augment, config.seed, config.skip_small, config.tiles)
    shapes = {size[::turn] for size in pairs.sizes for turn in ((1, -1) if config.augment else (1,))}
    if config.patch is None and config.images_per_step > 1 and len(shapes) > 1:
        name = "batchsize" if config.batchsize > 1 else "accumulate"
        raise ValueError(f"--{name} {getattr(config, name)}: images of different sizes; add --patch or take 1")
    return patches, list(pairs.skipped.values())


@contextmanager
def instead(flag: str) -> Iterator[None]:
    """Add to the error of missing weights a flag that needs none."""
    try:
        yield
    except WeightsNotFoundError as error:
        raise ValueError(f"{error}; or take {flag}, which needs none") from None


def add_teachers(experiment: Experiment) -> None:
    """Add the judge, extractors and metrics to the experiment; their weights may take long to download.

    Raises ValueError.
    """
    config, device = experiment.config, experiment.device
    smallest = config.patch or min(map(min, experiment.patches.pairs.sizes))
    losses = [learner.loss for learner in experiment.learners]
    if any(loss.needs_judge for loss in losses):
        memory = (config.judge_memory or MEMORY[device.type]) << 20
        with instead("--judge tiny"):
            judge = build_judge(config.judge, config.judge_weights, memory)
        experiment.judge = place_frozen(judge, device, config.precision)
        configs.expect(
            smallest >= judge.min_size, "patch", smallest, f"at least {judge.min_size} pixels for {config.judge}"
        )
    for name in dict.fromkeys(name for loss in losses for name in loss.extractors):
        extractor = build_extractor(name, config.extractor_weights)
        experiment.extractors[name] = place_frozen(extractor, device, config.precision)
        configs.expect(
            smallest >= extractor.min_size, "patch", smallest, f"at least {extractor.min_size} pixels for {name}"
        )
    files = config.judge_weights + config.extractor_weights
    with instead("--metrics tiny"):
        experiment.metrics = metrics_on(device, experiment.metric_names, files)
    check_sizes(experiment.validation, experiment.metrics, config.protocol)
