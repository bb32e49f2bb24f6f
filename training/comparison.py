"""SR images of several methods: save them, and draw them side by side where two differ most."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from metrics.evaluate import PROTOCOLS, finish

from .figures import Crops, most_different, side_by_side
from .rows import Method, Row, most_different_images
from .validation import EvaluationSet, Upscale

CROP = 96  # pixels of the crops


@torch.inference_mode()
def draw_worst(
    rows: Sequence[Row],
    sets: Mapping[str, EvaluationSet],
    methods: Mapping[str, Mapping[str, Mapping[Method, Upscale]]],
    count: int,
    device,
    precision: str,
) -> bytes:
    """Draw a PNG of the `count` images on which two methods differ most, cropped to where they do.

    Only the first protocol is used. Raises ValueError if no two methods can be compared.
    """
    protocol, crops = rows[0].protocol, []
    rows = [row for row in rows if row.protocol == protocol]
    for name, i, one, other in most_different_images(rows, count):
        images = sets[name]
        lr, hr = (image[None].to(device) for image in images.pair(i)[protocol])

        def upscaled(method: Method) -> Tensor:
            with torch.autocast(lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
                return finish(methods[name][protocol][method](i, lr).float(), PROTOCOLS[protocol])

        box = (..., *most_different(upscaled(one), upscaled(other), CROP))
        shown, captions = {"reference": hr[box][0]}, {}
        for row in rows:
            if row.dataset == name:
                title = f"{row.method.loss} {row.method.checkpoint}".strip()
                shown[title] = upscaled(row.method)[box][0].clone()
                captions[title] = "\n".join(f"{metric} {values[i]:.4f}" for metric, values in row.scores.items())
        crops.append(Crops(f"{name}, {protocol}\n{images.names[i]}", shown, captions))
    if not crops:
        raise ValueError("--worst: no image on which two methods can be compared")
    return side_by_side(crops)


class ImageFiles:
    """Saves SR images as 8-bit PNG: FOLDER/DATASET/[PROTOCOL/]METHOD/NAME.png.

    failed: True once a file could not be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.failed = folder, False

    def save(self, dataset: str, images: EvaluationSet, index: int, protocol: str, method: Method, sr: Tensor) -> None:
        """Write sr (1,3 or 1,H,W) in [-1,1]; after a failure, which is printed, do nothing."""
        if self.failed:
            return
        parts = [dataset, *[protocol] * (len(images.protocols) > 1), " ".join(filter(None, method))]
        name = Path(images.names[index]).with_suffix(".png").as_posix()
        path = self.folder.joinpath(*(re.sub(r"[^\w.+=,() -]+", "_", part).strip("_") for part in (*parts, name)))
        aside = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            levels = sr[0].double().add(1).mul(127.5).round().to(torch.uint8)
            levels = levels.permute(1, 2, 0) if len(levels) == 3 else levels[0]
            Image.fromarray(levels.cpu().numpy()).save(aside, format="PNG", compress_level=3)
            aside.replace(path)
        except OSError as error:
            self.failed = True
            print(
                f"val.py: error: not written: {path} ({error.strerror or error}); no more images are written",
                file=sys.stderr,
            )
