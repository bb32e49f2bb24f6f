"""What a run trains, on what, and how it is scored, built from its settings."""

from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn
from torch.utils.data import Dataset

import configs
from configs import Config
from data import PairedDataset, PatchDataset, ResumableBatchSampler
from losses import NEEDS_EXTRACTORS, NEEDS_JUDGE
from metrics.backbones import read_backbone_file
from metrics.evaluate import PROTOCOLS, check_sizes
from metrics.extractors import build_extractor
from metrics.judges import JUDGES, MEMORY, metric_of

from . import distributed
from .device import check_compile, place_frozen, setup_device
from .learner import Learner, build_learners
from .validation import metrics_on, read_validation_set


@dataclass
class Experiment:
    """The parts of a run; `build_experiment` makes all but the judge, the extractors and the metrics."""

    config: Config
    device: torch.device
    learners: list[Learner]
    patches: PatchDataset
    validation: PairedDataset
    val_shard: Dataset  # the part of validation that this process measures
    repeat: int  # how often an epoch draws each image
    epoch_steps: int
    first_step: int
    last_step: int
    left_out: list[str]  # a line for each training image that --bad-images skip left out
    judge: nn.Module | None = None
    extractors: dict[str, nn.Module] = field(default_factory=dict)
    metrics: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def small_images(self) -> int:
        """How many training images are smaller than the patch and left out."""
        return len(self.patches.pairs) - len(self.patches)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """The perceptual metrics of validation; the first chooses `best`."""
        return self.config.metrics or (metric_of(self.config.judge),)

    @property
    def selection_criterion(self) -> list[str]:
        """What `best` is chosen by: the metric, the protocol and the images."""
        return [self.metric_names[0], self.config.protocol, *self.config.valpath]


def build_experiment(config: Config) -> Experiment:
    """Build the networks and the data of a run. Raises ValueError for wrong input; writes nothing."""
    device = distributed.local_device(setup_device(config.device))
    world_size = distributed.get_world_size()
    configs.expect(
        config.batchsize % world_size == 0,
        "batchsize",
        config.batchsize,
        f"a multiple of {world_size}, for it is shared by the processes of torchrun",
    )
    configs.choose(config.judge, JUDGES, "judge")
    if config.compile:
        check_compile(device)
    learners = build_learners(config, device)
    for path in config.judge_weights + config.extractor_weights:  # those that this run has no use for too
        read_backbone_file(path)
    patches, left_out = build_patches(config)
    validation = read_validation_set(config.valpath, config.scale, config.protocol, config.vallrpath)
    repeat = config.repeat or patches.draws_to_cover
    epoch_steps = ResumableBatchSampler(len(patches), config.batchsize, 0, repeat=repeat).steps_per_epoch
    first_step = config.startepoch * epoch_steps
    last_step = first_step + config.steps if config.steps else config.endepoch * epoch_steps
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
    )


def build_patches(config: Config) -> tuple[PatchDataset, list[str]]:
    """Read the training images; return their patches and a line for each image that was left out."""
    for name in ("trainpath", "valpath"):
        configs.expect(len(getattr(config, name)) > 0, name, "", "one or more folders of HR images")
    multiple = config.scale if config.patch else PROTOCOLS[config.protocol].multiple or PROTOCOLS["paper"].multiple
    pairs = PairedDataset(
        config.trainpath, config.scale, multiple, lr_folders=config.lrpath or None, bad_images=config.bad_images
    )
    patches = PatchDataset(pairs, config.patch, config.augment, config.seed, config.skip_small)
    shapes = {size[::turn] for size in pairs.sizes for turn in ((1, -1) if config.augment else (1,))}
    if config.patch is None and config.batchsize > 1 and len(shapes) > 1:
        raise ValueError(f"--batchsize {config.batchsize}: images of different sizes; add --patch or take 1")
    return patches, list(pairs.skipped.values())


def add_teachers(experiment: Experiment) -> None:
    """Give the experiment its judge, extractors and metrics. Their weights may be a long download."""
    config, device = experiment.config, experiment.device
    smallest = config.patch or min(map(min, experiment.patches.pairs.sizes))
    variants = config.variants.values()
    if any(variant.loss in NEEDS_JUDGE for variant in variants):
        memory = (config.judge_memory or MEMORY[device.type]) << 20
        # What data/ reads is in range, however bright.
        judge = JUDGES[config.judge](weights=config.judge_weights, memory=memory, check_range=False)
        experiment.judge = place_frozen(judge, device, config.precision)
        configs.expect(
            smallest >= judge.min_size, "patch", smallest, f"at least {judge.min_size} pixels for {config.judge}"
        )
    named = (variant.config.dp_extractors for variant in variants if variant.loss in NEEDS_EXTRACTORS)
    for name in dict.fromkeys(chain.from_iterable(named)):
        extractor = build_extractor(name, config.extractor_weights)
        experiment.extractors[name] = place_frozen(extractor, device, config.precision)
        configs.expect(
            smallest >= extractor.min_size, "patch", smallest, f"at least {extractor.min_size} pixels for {name}"
        )
    files = config.judge_weights + config.extractor_weights
    experiment.metrics = metrics_on(device, experiment.metric_names, files)
    check_sizes(experiment.validation, experiment.metrics, config.protocol)
