"""Checkpoints that others released, converted to state dicts of our networks.

Two kinds: the TLW authors' (arXiv 2301.10575; BGR, [-1,1]) and the HAT authors' (arXiv 2205.04437; RGB, [0,1]).
Functions take a state dict as torch.load returns it and do not change it.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .padding import DIV2K_MEAN, padding_colour

StateDict = Mapping[str, Tensor]

RELEASED_TLW = ("EDSR", "RCAN", "VDSR", "HAT-TLW")
HEAD = "u_estimator."  # the uncertainty head of UHAT, which is HAT-TLW with that head

# One key that identifies each kind of checkpoint; the first match counts.
SIGNATURES = {
    "UHAT": "u_estimator.1.weight",
    "HAT-TLW": "net.conv_first.weight",
    "VDSR": "conv1.0.weight",
    "RCAN": "sf.weight",
    "EDSR": "body.0.body.2.weight",
    "weighting network": "conv.9.weight",
    "converted HAT": "mean",
    "published HAT": "layers.0.residual_group.overlap_attn.qkv.weight",
}

# The advice for each kind if another was expected.
REMEDIES = {
    "UHAT": "convert without_uncertainty(state_dict) as HAT-TLW, its head with uncertainty_from_released(state_dict)",
    **{name: f"convert it with from_released_tlw(state_dict, {name!r})" for name in RELEASED_TLW},
    "weighting network": "convert it with weighting_from_released(state_dict)",
    "converted HAT": "load it into HAT as it is",
    "published HAT": "convert it with from_published_hat(state_dict)",
}

# (pattern, replacement) pairs that turn the released names into ours.
RENAMES = {
    "EDSR": (),
    "RCAN": (
        (r"^(rgs\.\d+\.module\.\d+\.module\.3)\.module\.1\.", r"\1.conv_du.0."),
        (r"^(rgs\.\d+\.module\.\d+\.module\.3)\.module\.3\.", r"\1.conv_du.2."),
        (r"\.module\.", ".body."),
        (r"^rgs\.", "body."),
        (r"^sf\.", "head.0."),
        (r"^conv1\.", "body.10."),
        (r"^upscale\.", "tail.0."),
        (r"^conv2\.", "tail.1."),
    ),
    "VDSR": ((r"^conv1\.", "head."), (r"^trunk\.(\d+)\.conv\.", r"body.\1.0."), (r"^conv2\.", "tail.")),
    "HAT-TLW": ((r"^net\.", ""),),
}
# Our names of the first and last convolutions.
OUTER_CONVS = {
    "EDSR": ("head.0", "tail.1"),
    "RCAN": ("head.0", "tail.1"),
    "VDSR": ("head.0", "tail"),
    "HAT-TLW": ("conv_first", "conv_last"),
}


def looks_like(state_dict: StateDict) -> str:
    """Name the kind of a state dict: a key of SIGNATURES, or a phrase that describes it as unknown."""
    for kind, key in SIGNATURES.items():
        if key in state_dict:
            return kind
    return f"something unknown (first entry {next(iter(state_dict), None)!r})"


def expect(state_dict: StateDict, *kinds: str) -> str:
    """Return the state dict's kind; raise ValueError if it is none of `kinds`."""
    found = looks_like(state_dict)
    if found not in kinds:
        remedy = REMEDIES.get(found, "check which network the file holds")
        raise ValueError(f"the state dict looks like {found}; expected {' or '.join(kinds)}; {remedy}")
    return found


def released_model_of(state_dict: StateDict) -> str:
    """Name the TLW authors' network in a state dict: "EDSR", "RCAN", "VDSR" or "HAT-TLW"; else ValueError.

    The EDSR authors' release (RGB, 0-255), the TLW authors' EDSR and ours have the same parameter names: only a file's
    origin tells them apart.
    """
    return expect(state_dict, *RELEASED_TLW)


def scale_from_shapes(state_dict: StateDict) -> int | None:
    """The scale of a released checkpoint or one of ours, from its upsampler's shapes.

    None for x1 and for VDSR and RRDBNet, whose upsampling has no weights.
    """
    scale = 1
    for name, value in state_dict.items():
        if re.search(r"(^|\.)((tail\.0|upscale|upsample)\.|upconv)\d+\.weight$", name):
            scale *= round((value.shape[0] / value.shape[1]) ** 0.5)
    return scale if scale > 1 else None


def swap_channels(state_dict: dict[str, Tensor], first: str, last: str) -> dict[str, Tensor]:
    """Turn a BGR network into an RGB one; first, last: the names of its first and last convolutions."""
    swapped = dict(state_dict)
    swapped[f"{first}.weight"] = state_dict[f"{first}.weight"].flip(1)
    for name in (f"{last}.weight", f"{last}.bias"):
        if name in state_dict:
            swapped[name] = state_dict[name].flip(0)
    return swapped


def from_released_tlw(state_dict: StateDict, model_name: str) -> dict[str, Tensor]:
    """The TLW authors' EDSR, RCAN, VDSR or HAT-TLW (BGR, [-1,1]) -> the state dict of our network.

    Raises ValueError if state_dict is not of model_name.
    """
    if model_name not in RELEASED_TLW:
        raise ValueError(f"model_name={model_name!r} was not released; use one of {', '.join(RELEASED_TLW)}")
    expect(state_dict, model_name)
    ours = {}
    for name, value in state_dict.items():
        for pattern, replacement in RENAMES[model_name]:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    if model_name == "EDSR":  # the file holds mean shifts that its network never applies
        ours = {name: value for name, value in ours.items() if not name.startswith(("sub_mean.", "add_mean."))}
    if model_name == "HAT-TLW":
        # Their code subtracts the RGB mean of [0,1] images, unchanged, from BGR images in [-1,1].
        ours["mean"] = torch.tensor(DIV2K_MEAN).flip(0).view(1, 3, 1, 1)
    return swap_channels(ours, *OUTER_CONVS[model_name])


def from_published_hat(state_dict: StateDict) -> dict[str, Tensor]:
    """The HAT authors' checkpoint (RGB, [0,1]) -> our HAT's state dict.

    The weights may be under "params_ema" or "params". The outermost convolutions and the mean absorb the change to
    [-1,1]. Raises ValueError for other checkpoints.
    """
    for key in ("params_ema", "params"):
        inner: Any = state_dict.get(key, state_dict)
        state_dict = inner
    expect(state_dict, "published HAT")
    return dict(state_dict) | {
        "mean": padding_colour("mean"),
        "conv_first.weight": 0.5 * state_dict["conv_first.weight"],
        "conv_last.weight": 2 * state_dict["conv_last.weight"],
        "conv_last.bias": 2 * state_dict["conv_last.bias"],
    }


def weighting_from_released(state_dict: StateDict) -> dict[str, Tensor]:
    """The TLW authors' weighting network (BGR) -> our WeightingNet's state dict (RGB)."""
    expect(state_dict, "weighting network")
    ours = swap_channels(dict(state_dict), "conv.0", "conv.9")
    # The input is cat([hr, sr]): the channels are swapped within each image.
    ours["conv.0.weight"] = state_dict["conv.0.weight"].unflatten(1, (2, 3)).flip(2).flatten(1, 2)
    return ours


def uncertainty_from_released(state_dict: StateDict) -> dict[str, Tensor]:
    """The u_estimator of the TLW authors' UHAT -> the state dict of UncertaintyHead(64, 4, head="tlw")."""
    expect(state_dict, "UHAT")
    return {name.removeprefix(HEAD): value for name, value in state_dict.items() if name.startswith(HEAD)}


def without_uncertainty(state_dict: StateDict) -> dict[str, Tensor]:
    """The TLW authors' UHAT without its u_estimator: their HAT-TLW, for from_released_tlw."""
    expect(state_dict, "UHAT")
    return {name: value for name, value in state_dict.items() if not name.startswith(HEAD)}
