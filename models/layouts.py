"""Convert state dicts from other toolkits' layouts to ours. models/export.py converts them back.

Our networks map RGB in [-1,1], theirs [0,1] or [0,255], some with mean shifts around the network. Their first
convolution takes a * (x - colour), x the image in [-1,1]; ours takes x - colour (see models/padding.py). (Leaky) ReLU
is homogeneous: if we keep the weights and divide all biases by a, our features are theirs divided by a, and the last
convolution restores range and offset. Only the gates of RCAN's channel attention need their original input, so the
weights before them are multiplied by a. The result is exact up to rounding, borders included. The weights keep their
magnitude, so that training can continue with the usual learning rate.

The names and ranges were checked against spandrel 0.4 and, in the tests, against networks written from the papers.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from . import option_defaults, released
from .padding import DIV2K_MEAN, padding_colour

StateDict = Mapping[str, Tensor]

# The values of --source, and their descriptions.
SOURCES = {
    "tlw": "the TLW authors' (BGR, [-1,1])",
    "edsr": "the EDSR authors' (RGB, 0-255, mean shift)",
    "rcan": "the RCAN authors' (RGB, 0-255, mean shift)",
    "basicsr": "BasicSR's (RGB, [0,1])",
    "hat": "the HAT authors' (RGB, [0,1])",
}
# Keys under which files hold their weights; the first one found is used.
WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
LAST = {"EDSR": "tail.1", "RCAN": "tail.1", "RRDBNet": "conv_last", "SRResNet": "conv_last"}


class Imported(NamedTuple):
    """An imported network: arguments of build_network, its state dict, and one line per assumption made."""

    model: str
    scale: int | None  # None: the weights do not tell
    options: dict
    state_dict: dict[str, Tensor]
    assumed: list[str]


def unwrap(state_dict: Mapping) -> tuple[dict[str, Tensor], str]:
    """Return a file's weights, without DataParallel's "module.", and the key that held them ("" if none).

    Raises ValueError unless they are tensors by name.
    """
    key = next((key for key in WRAPPERS if isinstance(state_dict.get(key), Mapping)), "")
    weights = dict(state_dict[key] if key else state_dict)
    if not weights or not all(isinstance(x, Tensor) and isinstance(n, str) for n, x in weights.items()):
        found = ", ".join(map(str, weights))[:160] or "nothing"
        raise ValueError(f"expected the tensors of a state dict by their names, found {found}")
    if all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights, key


def sources_of(weights: StateDict) -> list[str]:
    """The SOURCES that the weights may come from, by their names: none, one or, for an EDSR, two."""
    kind = released.looks_like(weights)
    if kind in ("UHAT", "HAT-TLW", "VDSR", "RCAN"):
        return ["tlw"]
    if kind == "published HAT":
        return ["hat"]
    if "body.0.body.0.body.3.conv_du.0.weight" in weights:
        return ["rcan"]
    if any(all(name in weights for name in names) for names in BASICSR):
        return ["basicsr"]
    if kind != "EDSR":
        return []
    shift = weights.get("sub_mean.weight", torch.zeros(9))
    ours = shift.numel() == 9 and torch.allclose(shift.reshape(3, 3).float(), 2 / 255 * torch.eye(3), atol=1e-6)
    return ["edsr"] if ours else ["tlw", "edsr"]  # export.py's mean shift tells its files from the others


def import_weights(
    content: Mapping, source: str | None = None, scale: int | None = None, res_scale: float | None = None
) -> Imported:
    """Convert a file's content, as torch.load returns it, to a network of ours with the same output.

    Args:
        content: a state dict, perhaps under one of WRAPPERS; it is not changed.
        source: one of SOURCES; None: found by the names.
        scale: for weights whose shapes do not tell it (VDSR).
        res_scale: EDSR's residual scaling, which the weights do not tell; None: the authors' for this width.

    Raises ValueError for unknown or ambiguous names, or if source or scale contradicts the weights.
    """
    weights, key = unwrap(content)
    found = sources_of(weights)
    if source is None and len(found) > 1:
        choices = " or ".join(f"--source {name} for {SOURCES[name]}" for name in found)
        raise ValueError(f"an EDSR can be of two sources, which differ in range and channel order; expected {choices}")
    if not found or source not in (None, *found):
        names = ", ".join([*weights][:3])
        said = f"names like those of {' or '.join(SOURCES[name] for name in found)}" if found else f"names like {names}"
        expected = SOURCES[source] if source else "one of: " + ", ".join(SOURCES.values())
        remedy = (
            f"use --source {found[0]}" if found else "networks that spandrel reads train with --model spandrel:FILE"
        )
        raise ValueError(f"{said}; expected {expected}; {remedy}")
    floats = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    imported = IMPORTERS[source or found[0]](floats, res_scale)
    assumed = [f"{SOURCES[found[0]]} layout by its names"] if source is None else []
    assumed += [f"the weights under {key}"] if key else []
    if scale is not None and imported.scale not in (None, scale):
        raise ValueError(f"is x{imported.scale}, not --scale {scale}; leave that out")
    return imported._replace(scale=imported.scale or scale, assumed=assumed + imported.assumed)


def count(weights: StateDict, pattern: str) -> int:
    """One more than the largest number that the pattern's group matches in the names; 0 without a match."""
    return 1 + max((int(m[1]) for name in weights if (m := re.match(pattern, name))), default=-1)


def _divisor(whole: int, part: int, usual: int) -> int:
    """Find r with whole // r == part: `usual` if it fits, else the smallest.

    Raises ValueError if there is none.
    """
    for r in (usual, *range(1, whole + 1)):
        if whole // r == part:
            return r
    raise ValueError(f"its attention has {part} of {whole} channels; expected a HAT file's sizes")


def _ratio(part: int, whole: int) -> float:
    """Find r with int(whole * r) == part: part / whole if rounding allows it."""
    return part / whole if int(whole * (part / whole)) == part else (part + 0.5) / whole


def _hat_options(w: StateDict) -> dict:
    embed, first = len(w["conv_first.weight"]), "layers.0.residual_group.blocks.0."
    window = math.isqrt(w["relative_position_index_SA"].shape[0])
    layers = range(count(w, r"layers\.(\d+)\."))
    table = "residual_group.overlap_attn.relative_position_bias_table"
    return {
        "embed": embed,
        "depths": [count(w, rf"layers\.{i}\.residual_group\.blocks\.(\d+)\.") for i in layers],
        "heads": [w[f"layers.{i}.{table}"].shape[1] for i in layers],
        "window": window,
        "compress_ratio": _divisor(embed, len(w[first + "conv_block.cab.0.weight"]), 3),
        "squeeze_factor": _divisor(embed, len(w[first + "conv_block.cab.3.attention.1.weight"]), 30),
        "overlap_ratio": _ratio(math.isqrt(w["relative_position_index_OCA"].shape[1]) - window, window),
        "mlp_ratio": _ratio(len(w[first + "mlp.fc1.weight"]), embed),
        "channels": w["conv_last.weight"].shape[1],
    }


def options_of(model: str, w: StateDict) -> dict:
    """The options of our network `model` that its shapes reveal and that differ from the defaults."""
    if model == "EDSR":
        options = {"channels": len(w["head.0.weight"]), "blocks": count(w, r"body\.(\d+)\.body\.")}
    elif model == "RCAN":
        channels = len(w["head.0.weight"])
        options = {
            "channels": channels,
            "groups": count(w, r"body\.(\d+)\.body\."),
            "blocks": count(w, r"body\.0\.body\.(\d+)\.body\."),
            "reduction": channels // len(w["body.0.body.0.body.3.conv_du.0.weight"]),
            "upsample": "two-step" if "tail.0.2.weight" in w else "one-step",
        }
    elif model == "RRDBNet":
        options = {"channels": len(w["conv_first.weight"]), "blocks": count(w, r"body\.(\d+)\.rdb1\.")}
        options["growth"] = len(w["body.0.rdb1.conv1.weight"])
    elif model == "SRResNet":
        options = {"channels": len(w["conv_first.weight"]), "blocks": count(w, r"body\.(\d+)\.conv1\.")}
    elif model == "HAT":
        options = _hat_options(w)
    else:  # HAT-TLW and VDSR, as their authors released them
        options = {}
    return without_defaults(model, options)


def defaults_of(model: str) -> dict:
    """The options of our network `model` with their defaults, tuples as lists."""
    return {name: list(x) if isinstance(x, tuple) else x for name, x in option_defaults(model).items()}


def without_defaults(model: str, options: Mapping) -> dict:
    """The options that differ from the defaults."""
    defaults = defaults_of(model)
    return {name: value for name, value in options.items() if value != defaults[name]}


def rescaled(
    state_dict: StateDict, a: float, last: str, gain: float = 1.0, offset: float | Tensor = 0.0
) -> dict[str, Tensor]:
    """Divide a network's features by a, and turn its output y into gain * y / a + offset.

    last: the name of its last convolution. offset: a number, or one for each channel.
    """
    exact = {name: value.double() if value.is_floating_point() else value for name, value in state_dict.items()}
    for name in exact:
        if name.endswith(".bias") and ".conv_du." not in name:
            exact[name] = exact[name] / a
        elif name.endswith(".conv_du.0.weight"):
            exact[name] = exact[name] * a
    exact[f"{last}.weight"] = gain * exact[f"{last}.weight"]
    exact[f"{last}.bias"] = gain * exact[f"{last}.bias"] + torch.as_tensor(offset, dtype=torch.float64)
    return {name: value.to(state_dict[name].dtype) for name, value in exact.items()}


class MeanShift(NamedTuple):
    """The mean shifts around a network: scale * x + shift before it, back_scale * y + back_shift after it.

    Images x are in [0,255].
    """

    scale: float
    shift: Tensor  # (3,)
    back_scale: float
    back_shift: Tensor


DIV2K_SHIFT = MeanShift(1.0, -255 * torch.tensor(DIV2K_MEAN), 1.0, 255 * torch.tensor(DIV2K_MEAN))


def _split_mean_shift(weights: StateDict) -> tuple[dict[str, Tensor], MeanShift | None]:
    """Separate the weights from the mean shift, which is None if an entry is missing.

    Raises ValueError if a shift mixes channels or scales them differently.
    """
    rest = {name: value for name, value in weights.items() if not name.startswith(("sub_mean.", "add_mean."))}
    if "sub_mean.weight" not in weights or "add_mean.weight" not in weights:
        return rest, None
    scales = []
    for name in ("sub_mean.weight", "add_mean.weight"):
        matrix = weights[name].reshape(3, 3)
        if not torch.allclose(matrix, matrix[0, 0] * torch.eye(3)) or matrix[0, 0] <= 0:
            raise ValueError(f"{name} is no multiple of the identity; our networks cannot represent such a mean shift")
        scales.append(float(matrix[0, 0]))
    return rest, MeanShift(scales[0], weights["sub_mean.bias"], scales[1], weights["add_mean.bias"])


def _in_our_range(model: str, weights: StateDict, shift: MeanShift) -> tuple[dict[str, Tensor], str]:
    """Convert weights (in our names) with this mean shift to our state dict and option `padding`."""
    a = 127.5 * shift.scale  # the first convolution takes scale * 127.5 * (x + 1) + shift = a * (x - colour)
    colour = -(a + shift.shift.double()) / a
    padding = next(
        (p for p in ("mean", "grey", "black") if (padding_colour(p).flatten() - colour).abs().max() < 1e-5), ""
    )
    if not padding:
        found = ", ".join(f"{(c + 1) / 2:.4f}" for c in colour.tolist())
        raise ValueError(f"its mean shift is by ({found}) in [0,1]; expected DIV2K's mean, 0.5 or 0")
    offset = shift.back_shift.double() / 127.5 - 1
    return rescaled(weights, a, LAST[model], shift.back_scale * a / 127.5, offset), padding


def _imported(model: str, state_dict: dict[str, Tensor], scale: int | None, padding: str, assumed=()) -> Imported:
    options = options_of(model, state_dict)
    options |= {"padding": padding} if padding != "grey" else {}
    return Imported(model, scale, options, state_dict, [*assumed])


def _scale_residuals(weights: StateDict, res_scale: float | None) -> tuple[dict[str, Tensor], list[str]]:
    """Fold EDSR's residual scaling into its convolutions, for res_scale=1; also list the assumption made."""
    wide = len(weights["head.0.weight"]) == 256
    chosen, size = res_scale, "256 channels" if wide else "this size"
    if chosen is None:
        chosen = 0.1 if wide else 1.0
    assumed = [] if res_scale is not None else [f"res_scale {chosen:g}, the authors' for {size} (else: --res-scale)"]
    scaled = {
        name: value * chosen if re.match(r"body\.\d+\.body\.2\.", name) else value for name, value in weights.items()
    }
    return scaled, assumed


def from_tlw(weights: StateDict, res_scale: float | None = None) -> Imported:
    """The TLW authors' EDSR, RCAN, VDSR, HAT-TLW or UHAT (without its uncertainty head) -> ours."""
    if released.looks_like(weights) == "UHAT":
        weights = released.without_uncertainty(weights)
    model = released.released_model_of(weights)
    ours = released.from_released_tlw(weights, model)
    return _imported(model, ours, released.scale_from_shapes(ours), "grey")


def from_edsr(weights: StateDict, res_scale: float | None = None) -> Imported:
    """The EDSR authors' EDSR (EDSR-PyTorch) -> ours."""
    weights, shift = _split_mean_shift(weights)
    weights, assumed = _scale_residuals(weights, res_scale)
    if shift is None:
        shift, assumed = DIV2K_SHIFT, [*assumed, "DIV2K's mean shift, for the file holds none"]
    ours, padding = _in_our_range("EDSR", weights, shift)
    return _imported("EDSR", ours, released.scale_from_shapes(ours), padding, assumed)


def from_rcan(weights: StateDict, res_scale: float | None = None) -> Imported:
    """The RCAN authors' RCAN -> ours; without a mean shift its range is taken as [0,1], as in spandrel."""
    weights, shift = _split_mean_shift(weights)
    if "head.0.weight" not in weights:
        raise ValueError("an RCAN with pixel-unshuffle, which ours has not; train it with --model spandrel:FILE")
    if shift is None:
        ours, padding = rescaled(weights, 0.5, "tail.1", offset=-1.0), "black"
        assumed = ["images in [0,1], for the file holds no mean shift"]
    else:
        (ours, padding), assumed = _in_our_range("RCAN", weights, shift), []
    return _imported("RCAN", ours, released.scale_from_shapes(ours), padding, assumed)


def from_hat(weights: StateDict, res_scale: float | None = None) -> Imported:
    """The HAT authors' HAT of any size -> ours."""
    ours = released.from_published_hat(weights)
    return _imported("HAT", ours, released.scale_from_shapes(ours), "grey")


# Names that identify BasicSR's networks, and ESRGAN's two older layouts -> our network, and (pattern, replacement)
# pairs that turn the names into ours. {N} is the number of blocks or groups, {M} that of blocks in a group.
TAIL = ((r"^upsample\.", "tail.0."), (r"^conv_last\.", "tail.1."))
BASICSR = {
    ("body.0.conv1.weight", "conv_after_body.weight"): (
        "EDSR",
        ((r"^conv_first\.", "head.0."), (r"^body\.(\d+)\.conv1\.", r"body.\1.body.0."))
        + ((r"^body\.(\d+)\.conv2\.", r"body.\1.body.2."), (r"^conv_after_body\.", "body.{N}."), *TAIL),
    ),
    ("body.0.residual_group.0.rcab.0.weight",): (
        "RCAN",
        ((r"^conv_first\.", "head.0."), (r"\.rcab\.3\.attention\.1\.", ".rcab.3.conv_du.0."))
        + (
            (r"\.rcab\.3\.attention\.3\.", ".rcab.3.conv_du.2."),
            (r"\.residual_group\.(\d+)\.rcab\.", r".body.\1.body."),
        )
        + ((r"^(body\.\d+)\.conv\.", r"\1.body.{M}."), (r"^conv_after_body\.", "body.{N}."), *TAIL),
    ),
    ("body.0.rdb1.conv1.weight",): ("RRDBNet", ()),
    ("RRDB_trunk.0.RDB1.conv1.weight",): (
        "RRDBNet",
        ((r"^RRDB_trunk\.(\d+)\.RDB(\d)\.", r"body.\1.rdb\2."), (r"^trunk_conv\.", "conv_body."))
        + ((r"^upconv(\d)\.", r"conv_up\1."), (r"^HRconv\.", "conv_hr.")),
    ),
    ("model.1.sub.0.RDB1.conv1.0.weight",): (
        "RRDBNet",
        ((r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."),)
        + ((r"^model\.1\.sub\.\d+\.(weight|bias)", r"conv_body.\1"), (r"^model\.0\.", "conv_first.")),
    ),
    ("body.0.conv1.weight", "upconv1.weight"): ("SRResNet", ()),
}


def from_basicsr(weights: StateDict, res_scale: float | None = None) -> Imported:
    """BasicSR's EDSR, RCAN, MSRResNet or RRDBNet, and ESRGAN's in its older layouts -> ours."""
    model, renames = next(kind for names, kind in BASICSR.items() if all(name in weights for name in names))
    groups = count(weights, r"body\.(\d+)\.")
    blocks = count(weights, r"body\.0\.residual_group\.(\d+)\.")
    if "model.0.weight" in weights:  # ESRGAN's first layout numbers its layers: two upsampling steps at x4, one at x2
        ups = (count(weights, r"model\.(\d+)\.") - 5) // 3
        renames += tuple((rf"^model\.{3 * i}\.", f"conv_up{i}.") for i in range(1, ups + 1))
        renames += ((rf"^model\.{3 * ups + 2}\.", "conv_hr."), (rf"^model\.{3 * ups + 4}\.", "conv_last."))
    named = {}
    for name, value in weights.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement.replace("{N}", str(groups)).replace("{M}", str(blocks)), name)
        named[name] = value
    first = named.get("head.0.weight", named.get("conv_first.weight"))
    if first is not None and first.shape[1] != 3:
        raise ValueError(
            f"takes {first.shape[1]} channels: Real-ESRGAN's network with pixel-unshuffle, or not RGB; "
            "train it with --model spandrel:FILE"
        )
    if model in ("EDSR", "RCAN"):
        named, assumed = _scale_residuals(named, res_scale) if model == "EDSR" else (named, [])
        ours, padding = _in_our_range(model, named, DIV2K_SHIFT)
        return _imported(model, ours, released.scale_from_shapes(ours), padding, assumed)
    # SRResNet's output is a residual, which the change of range does not shift.
    ours = rescaled(named, 0.5, "conv_last", offset=0.0 if model == "SRResNet" else -1.0)
    scale = released.scale_from_shapes(ours) if model == "SRResNet" else 2 ** count(named, r"conv_up(\d)\.") // 2
    if scale not in (2, 4) and model == "RRDBNet":
        raise ValueError("an RRDBNet without upsampling; train it with --model spandrel:FILE")
    return _imported(model, ours, scale, "black")


IMPORTERS: dict[str, Callable[..., Imported]] = {
    "tlw": from_tlw,
    "edsr": from_edsr,
    "rcan": from_rcan,
    "basicsr": from_basicsr,
    "hat": from_hat,
}
