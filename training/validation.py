"""Validation and evaluation: images under protocols, perceptual metrics, and scores."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

import configs
from data import ImageCache, PairedDataset, make_pair, match_sr, read_rgb, to_grey
from metrics.base import PerceptualMetric
from metrics.evaluate import MEMORY, PROTOCOLS, build_metrics, check_scale, finish, least_size, too_small
from metrics.references import prepare
from models.bicubic import Bicubic, MatlabBicubic

from .device import place_frozen

# The upscaler of a protocol's bicubic row.
BICUBIC: dict[str, type[nn.Module]] = {"paper": Bicubic, "standard": MatlabBicubic, "table2": Bicubic}
Upscale = Callable[[int, Tensor], Tensor]  # index of the image, lr (1,3,h,w) -> sr (1,3,s*h,s*w)


def read_validation_set(
    folders,
    scale: int,
    protocol: str,
    lr_folders=(),
    lr_template: str | None = None,
    cache: ImageCache | None = None,
    progress: bool = True,
    grey: bool = False,
) -> PairedDataset:
    """Read pairs of HR images and the protocol's LR, or the LR of lr_folders. Raises ValueError.

    grey: of both the luminance.
    """
    check_scale(protocol, scale)
    configs.expect(scale > 1 or bool(lr_folders), "scale", scale, "--vallrpath beside it, the images to restore")
    p = PROTOCOLS[protocol]
    return PairedDataset(
        folders,
        scale,
        p.multiple or scale,
        lr_folders=lr_folders or None,
        lr_template=lr_template,
        round_lr=p.eight_bit,
        cache=cache,
        progress=progress,
        grey=grey,
    )


def metrics_on(
    device, nets, weights: tuple = (), bgr: bool = False, memory: int = MEMORY
) -> dict[str, PerceptualMetric]:
    """Build the perceptual metrics `nets` on the device, as `metrics.evaluate.build_metrics` does."""
    metrics = build_metrics(nets, weights, bgr, memory)
    return {name: place_frozen(metric, torch.device(device), "fp32") for name, metric in metrics.items()}


class EvaluationSet:
    """A folder of images to evaluate under several protocols; each image is read once for all of them.

    grey: use the luminance, lr (1,h,w) and hr (1,s*h,s*w).
    paths, names: of the images in use, by index; left_out: a line for each other image; notes: on the folders.
    Raises ValueError as PairedDataset does, and for a protocol that does not fit the scale.
    """

    def __init__(
        self,
        folder: str,
        scale: int,
        protocols,
        lr_folder: str | None = None,
        bad_images: str = "stop",
        lr_template: str | None = None,
        grey: bool = False,
    ):
        for protocol in protocols:
            check_scale(protocol, scale)
        configs.expect(
            scale > 1 or lr_folder is not None, "scale", scale, "--lrfolder beside it, the images to restore"
        )
        self.folder, self.lr_folder, self.scale, self.protocols = folder, lr_folder, scale, tuple(protocols)
        self._pairs = PairedDataset(
            [folder],
            scale,
            scale,
            lr_folders=lr_folder and [lr_folder],
            lr_template=lr_template,
            round_lr=True,
            bad_images=bad_images,
            grey=grey,
        )
        self.grey = grey
        self._used = list(range(len(self._pairs)))
        self.left_out = list(self._pairs.skipped.values())
        self.notes = self._pairs.notes

    def __len__(self) -> int:
        return len(self._used)

    @property
    def paths(self) -> list[Path]:
        return [self._pairs.paths[i] for i in self._used]

    @property
    def names(self) -> list[str]:
        """The file names; the paths of files that share a name."""
        names = [path.name for path in self.paths]
        return [str(path) if names.count(path.name) > 1 else path.name for path in self.paths]

    def size(self, index: int, protocol: str) -> tuple[int, int]:
        """The height and width of an image as the protocol crops it."""
        multiple = PROTOCOLS[protocol].multiple or self.scale
        return tuple(x // multiple * multiple for x in self._pairs.sizes[self._used[index]])

    def leave_out(self, reasons: Mapping[int, str]) -> None:
        """Leave out the images with these indices. Raises ValueError if none is left."""
        if len(reasons) == len(self) > 0:
            raise ValueError(
                f"{self.folder}: no image is left of {len(self)}, the first: {next(iter(reasons.values()))}"
            )
        self.left_out += reasons.values()
        self._used = [at for i, at in enumerate(self._used) if i not in reasons]

    def check_sizes(
        self, metrics: Mapping[str, PerceptualMetric], skip_small: bool = False, inside: bool = False
    ) -> None:
        """Leave out the images that are too small for a metric; without skip_small raise ValueError.

        inside: the metrics leave out the border that a protocol shaves.
        """
        small = {}
        for protocol in self.protocols:
            needed = least_size(self.scale, metrics, protocol, inside)
            for i, path in enumerate(self.paths):
                size = self.size(i, protocol)
                if min(size) < needed:
                    small.setdefault(i, too_small(path, size, needed, metrics, protocol))
        if small and not skip_small:
            raise ValueError(
                f"{next(iter(small.values()))}; remove it, or leave out all that are too small with --skip-small"
            )
        self.leave_out(small)

    def pair(self, index: int) -> dict[str, tuple[Tensor, Tensor]]:
        """The image's lr (3,h,w) and hr (3,s*h,s*w) in [-1,1], by protocol. Raises ImageReadError."""
        lr, hr = self._pairs[self._used[index]]
        return {protocol: self._cropped(lr, hr, index, protocol) for protocol in self.protocols}

    def _cropped(self, lr: Tensor, hr: Tensor, index: int, protocol: str) -> tuple[Tensor, Tensor]:
        p, (height, width) = PROTOCOLS[protocol], self.size(index, protocol)
        if self.lr_folder:
            return lr[:, : height // self.scale, : width // self.scale], hr[:, :height, :width]
        if p.multiple is None and p.eight_bit:
            return lr, hr
        levels = ((hr + 1) * 127.5).round_().to(torch.uint8)
        return make_pair(levels.permute(1, 2, 0).numpy(), self.scale, p.multiple or self.scale, p.eight_bit)

    def pairs(self) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
        """Yield `pair` of each image; a thread reads the next one meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead = [pool.submit(self.pair, 0)] if len(self) else []
            for i in range(len(self)):
                current = ahead.pop()
                if i + 1 < len(self):
                    ahead.append(pool.submit(self.pair, i + 1))
                yield current.result()


class FinishedImages:
    """Finished SR images of any method, as 8-bit files: an Upscale for the images of one EvaluationSet.

    Files are found by the images' names: see `data.partners.match_sr`.
    missing: by index, the error of each image without a file of the right size.
    Raises ValueError for a missing folder, and if two files match one image.
    """

    def __init__(self, name: str, folder: str, images: EvaluationSet) -> None:
        self.name, self.images = name, images
        below = Path(folder) / Path(images.folder).name
        self.folder = str(below) if below.is_dir() else folder
        self.paths = match_sr(images.folder, self.folder, images.scale)
        self.missing: dict[int, str] = {}
        with ThreadPoolExecutor(8) as pool:
            checks = pool.map(self._check, range(len(images)))
            bar = tqdm(checks, f"reading {name}", len(images), leave=False, disable=None)
            self.missing = {i: wrong for i, wrong in enumerate(bar) if wrong}

    def _check(self, index: int) -> str | None:
        hr, scale = self.images.paths[index], self.images.scale
        path = self.paths.get(hr)
        if path is None:
            forms = ", ".join(f"{hr.stem}{more}.png" for more in ("", f"_x{scale}", "_SR"))
            return f"{self.name}: no SR image of {hr} in {self.folder}; expected a name such as {forms}"
        try:
            found, whole = read_rgb(path).shape[:2], read_rgb(hr).shape[:2]
        except ValueError as error:
            return str(error)
        sizes = [whole, tuple(x // scale * scale for x in whole)]
        sizes += [self.images.size(index, protocol) for protocol in self.images.protocols]
        if found not in sizes:
            wanted = " or ".join(f"{height}x{width}" for height, width in dict.fromkeys(sizes))
            return f"{self.name}: {path} is {found[0]}x{found[1]}; expected {wanted}, as {hr} and its crops are"
        smaller = [p for p in self.images.protocols if min(map(int.__sub__, found, self.images.size(index, p))) < 0]
        return f"{self.name}: {path} is smaller than --protocol {smaller[0]} asks for" if smaller else None

    def __call__(self, index: int, lr: Tensor) -> Tensor:
        height, width = (x * self.images.scale for x in lr.shape[-2:])
        levels = read_rgb(self.paths[self.images.paths[index]])[:height, :width]
        levels = to_grey(levels) if self.images.grey else levels
        return (torch.from_numpy(levels).permute(2, 0, 1)[None].to(lr.device).double() / 255 * 2 - 1).float()


@torch.inference_mode()
def score(
    images: EvaluationSet,
    methods: Mapping[str, Mapping[str, Upscale]],
    metrics: Mapping[str, PerceptualMetric],
    device="cpu",
    label: str = "",
    precision: str = "fp32",
    rgb: bool = False,
    inside: bool = False,
    show: Callable[[int, str, str, Tensor], None] | None = None,
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Compute {protocol: {method: {metric: [score per image]}}} in one pass over the images.

    Args:
        methods: by protocol and name, what makes the SR images; called once for an LR image that two protocols share.
        label: the progress bar's label; "" for no bar.
        precision: the networks', "fp32" or "bf16"; metrics compute in fp32 or more.
        rgb: measure PSNR and SSIM on RGB too.
        inside: compute perceptual metrics, too, without the border that a protocol shaves; their names then end in
            "-shaved".
        show: called with the image's index, protocol, method and sr (1,3,H,W) as measured.
    """
    scores = {protocol: {name: {} for name in of} for protocol, of in methods.items()}
    total = len(images) * sum(map(len, methods.values()))
    with tqdm(total=total, desc=label, leave=False, disable=None if label else True, unit="image") as bar:
        for i, by_protocol in enumerate(images.pairs()):
            made: dict[tuple, Tensor] = {}
            left = list(by_protocol)
            for protocol, (lr, hr) in by_protocol.items():
                left.remove(protocol)
                same = [other for other in left if torch.equal(by_protocol[other][0], lr)]
                p = PROTOCOLS[protocol]
                shave = p.border(images.scale)
                border = shave if inside else 0
                reference = prepare(lr, hr, metrics, shave, device, rgb, border)
                for name, upscale in methods[protocol].items():
                    sr = made.pop((protocol, upscale), None)
                    if sr is None:
                        with torch.autocast(reference.lr.device.type, torch.bfloat16, enabled=precision == "bf16"):
                            sr = upscale(i, reference.lr).float()
                        made |= {(o, upscale): sr.clone() for o in same if upscale in methods[o].values()}
                    sr = finish(sr, p)
                    for metric, value in reference.scores(sr).items():
                        metric += "-shaved" if border and metric in metrics else ""
                        scores[protocol][name].setdefault(metric, []).append(value.item())
                    if show is not None:
                        show(i, protocol, name, sr)
                    bar.update()
    return scores
