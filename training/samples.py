"""Crops of validation images from a run's networks: kept by --watch, or made from its checkpoints."""

import base64
import io
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from configs import Config
from data import PairedDataset
from runs.checkpoint import load_networks

from .device import place_frozen
from .experiment import image_cache
from .validation import BICUBIC, read_validation_set
from .watch import FOLDER, Watch, pixels

MAPS = 6  # validations whose weights are shown, at most
REFERENCE, BICUBIC_NAME = "reference", "bicubic"


class Sample(NamedTuple):
    """The crop of one image.

    images: by method, uint8 (h,w,3); weights: by loss, pairs of a label and a map, uint8 (h,w), 255 for 1.
    """

    name: str
    about: str
    images: dict[str, np.ndarray]
    weights: dict[str, list[tuple[str, np.ndarray]]]


def watched_files(run: Path) -> dict[str, Path]:
    """The files that --watch kept, in order: {"epoch 7" or "step 700": path}."""
    found = []
    for path in (run / FOLDER).glob("*.npz"):
        if match := re.fullmatch(r"(step_)?(\d+)", path.stem):
            found.append((bool(match[1]), int(match[2]), path))
    return {f"{'step' if by_step else 'epoch'} {number}": path for by_step, number, path in sorted(found)}


def read_watched(run: Path) -> list[Sample]:
    """Read the watched images of the last validation, and the weights of up to MAPS validations.

    Empty if none were kept. Raises ValueError if a file is damaged.
    """
    files = watched_files(run)
    if not files:
        return []
    labels = [list(files)[i] for i in np.unique(np.linspace(0, len(files) - 1, MAPS).round().astype(int))]
    kept = {}
    for label in labels:
        try:
            with np.load(files[label]) as file:
                kept[label] = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{files[label]}: cannot be read ({error}); remove it") from None
    last = kept[labels[-1]]
    samples = []
    for name in dict.fromkeys(key.split("/")[0] for key in last):
        keys = {key.removeprefix(f"{name}/"): key for key in last if key.startswith(f"{name}/")}
        losses = [key.removesuffix("/sr") for key in keys if key.endswith("/sr")]
        images = {BICUBIC_NAME: last[keys["bicubic"]]} if "bicubic" in keys else {}
        images |= {loss: last[keys[f"{loss}/sr"]] for loss in losses} | {REFERENCE: last[keys["hr"]]}
        weights = {}
        for loss in losses:
            for label, found in kept.items():
                key = f"{name}/{loss}"
                if f"{key}/weights" in found:
                    shown = f"{label}, k = {float(found[f'{key}/k']):.2f}"
                    weights.setdefault(loss, []).append((shown, found[f"{key}/weights"]))
        samples.append(Sample(name, f"The middle of the image, by the networks of {labels[-1]}.", images, weights))
    return samples


def validation_set(config: Config) -> PairedDataset:
    """Read a run's validation images. Raises ValueError if they are gone."""
    return read_validation_set(
        config.valpath,
        config.scale,
        config.protocol,
        config.vallrpath,
        config.lr_template,
        image_cache(config),
        grey=config.color == "grey",
    )


@torch.inference_mode()
def make_samples(run: Path, count: int, device: torch.device, validation: PairedDataset | None = None) -> list[Sample]:
    """Upscale the first `count` validation images' middles with each loss's best, else last, network.

    validation: the run's validation images, if already loaded. Raises ValueError.
    """
    which = "best" if any(run.glob("best_*.pt")) else "last"
    config, nets, _ = load_networks(run, which)
    watch = Watch(validation or validation_set(config), count, BICUBIC[config.protocol](config.scale))
    nets = {loss: place_frozen(net.eval(), device, "fp32") for loss, net in nets.items()}
    samples = []
    for name in watch.parts:
        images = {BICUBIC_NAME: watch.always[f"{name}/bicubic"]}
        images |= {loss: pixels(watch.upscaled(name, net, device)[0]) for loss, net in nets.items()}
        about = f"The middle of the image, by each loss's {which} network."
        samples.append(Sample(name, about, images | {REFERENCE: watch.always[f"{name}/hr"]}, {}))
    return samples


def merged(samples: Sequence[tuple[str, Sample]]) -> list[Sample]:
    """Merge samples of the same image in several runs; the losses get their runs' names in front.

    samples: pairs of a run's name and a sample.
    """
    groups: list[list[tuple[str, Sample]]] = []
    for run, sample in samples:
        same = next((group for group in groups if _same(group[0][1], sample)), None)
        if same is None:
            groups.append([(run, sample)])
        else:
            same.append((run, sample))
    return [_merged(group) for group in groups]


def _merged(group: Sequence[tuple[str, Sample]]) -> Sample:
    shared = {BICUBIC_NAME, REFERENCE}
    _, first = group[0]
    images = {name: image for _, sample in group for name, image in sample.images.items() if name == BICUBIC_NAME}
    for run, sample in group:
        images |= {f"{run}: {name}": image for name, image in sample.images.items() if name not in shared}
    abouts = {run: sample.about for run, sample in group}
    alike = len(set(abouts.values())) == 1
    about = first.about if alike else " ".join(f"{run}: {text[0].lower()}{text[1:]}" for run, text in abouts.items())
    weights = {f"{run}: {loss}": maps for run, sample in group for loss, maps in sample.weights.items()}
    return Sample(first.name, about, images | {REFERENCE: first.images[REFERENCE]}, weights)


def _same(one: Sample, other: Sample) -> bool:
    return one.name == other.name and np.array_equal(one.images[REFERENCE], other.images[REFERENCE])


def data_uri(image: np.ndarray, palette: bytes | None = None) -> str:
    """A PNG as a data URI, of uint8 (h,w,3), or of levels (h,w) coloured by a palette of 256 colours."""
    picture = Image.fromarray(image)
    if palette is not None:
        picture = picture.convert("L")
        picture = Image.frombytes("P", picture.size, picture.tobytes())
        picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return png_uri(file.getvalue())


def png_uri(content: bytes) -> str:
    """The content of a PNG file as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
