"""Our networks in the formats that other programs load. Images are in [0,1], unless said otherwise.

    safetensors   UnitRange's state dict, read back by `from_safetensors`
    ONNX          one file, for one image of any height and width
    spandrel      the layouts of RCAN, HAT and RRDBNet, or an error that says why a network does not fit
    EDSR          the EDSR authors' layout, in [0,255]

Tested with onnxruntime 1.32 and spandrel 0.4.2.
"""

import copy
import hashlib
import io
import json
import math
import re
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from . import build_network
from .hat import HAT
from .layouts import count, defaults_of, rescaled
from .padding import padding_colour
from .spandrel_network import PREFIX

OPSET = 17


class UnitRange(nn.Module):
    """One of our networks for images in [0,1]: lr (B,3,h,w) -> sr (B,3,s*h,s*w), not clamped, float32.

    The prefix "network." in its state dict keeps programs from loading it as a network for another range.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> Tensor:
        sr = self.network((2 * lr - 1).to(next(self.network.parameters()).dtype))
        return (sr.float() + 1) / 2


def checksum(state_dict: Mapping[str, Tensor]) -> str:
    """The SHA-256 of a state dict's sorted names, shapes and values, floats as float32."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        value = value.float() if value.is_floating_point() else value.long()
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().cpu().numpy().astype("<f4" if value.is_floating_point() else "<i8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def rounded_to_half(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Round floats to half precision, except the mean shifts, whose rounding would shift all colours."""
    return {
        name: value.half() if value.is_floating_point() and not name.startswith(("sub_mean.", "add_mean.")) else value
        for name, value in state_dict.items()
    }


def describe(model: str, scale: int, options: Mapping | None, **about: str) -> dict[str, str]:
    """The metadata of an exported network; about: further entries."""
    return {
        "network": PREFIX if model.startswith(PREFIX) else model,
        "scale": str(scale),
        "options": json.dumps(dict(options or {})),
        "images": "grey in [0,1], (B,1,H,W)" if _is_grey(options) else "RGB in [0,1], (B,3,H,W)",
        **about,
    }


def _is_grey(options: Mapping | None) -> bool:
    return (options or {}).get("colours", 3) == 1


def to_safetensors(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Encode the state dict of one of our networks as a safetensors file of UnitRange."""
    tensors = {f"network.{name}": value.contiguous() for name, value in state_dict.items()}
    return save(tensors, {**metadata, "checksum": checksum(state_dict)})


def is_our_export(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """True if these tensors and metadata look like a file that to_safetensors wrote."""
    return "network" in metadata and all(name.startswith("network.") for name in tensors)


def split_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int, dict, dict]:
    """Return name, scale, options and float32 state dict of the network in a file of to_safetensors.

    Raises ValueError for other files and for a wrong checksum.
    """
    try:
        options, scale, name = json.loads(metadata["options"]), int(metadata["scale"]), metadata["network"]
    except (KeyError, ValueError):
        raise ValueError("the metadata lacks network, scale or options; expected a file of export.py") from None
    state = {key.removeprefix("network."): value for key, value in tensors.items()}
    if checksum(state) != metadata.get("checksum"):
        raise ValueError("the weights are not those that were exported (wrong checksum)")
    return name, scale, options, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def from_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> UnitRange:
    """Build the network in a file of to_safetensors, in eval mode. Raises ValueError if it does not fit."""
    name, scale, options, state = split_safetensors(tensors, metadata)
    network = build_network(name, scale, options, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights are not {name}'s ({' '.join(str(error).split())[:160]})") from None
    return UnitRange(network).eval()


def to_onnx(network: nn.Module, metadata: Mapping[str, str], half: bool = False) -> bytes:
    """Encode a network as ONNX: "lr" (1,3 or 1,height,width) -> "sr", float32 in [0,1], not clamped.

    half: the network computes in float16 inside.

    Raises ValueError if onnx is not installed or cannot represent the network.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX needs a package that is not installed; pip install onnx onnxruntime") from None
    if isinstance(network, HAT):
        raise ValueError("HAT lays out its windows by the image's size, an ONNX graph cannot; use --to spandrel")
    network = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    file: Any = io.BytesIO()
    # On failure the exporter prints the whole graph.
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # torch deprecates this exporter; the new one needs another package
        try:
            torch.onnx.export(
                UnitRange(network.half() if half else network),
                (torch.rand(1, getattr(network, "colours", 3), 24, 20),),
                file,
                dynamo=False,
                opset_version=OPSET,
                input_names=["lr"],
                output_names=["sr"],
                dynamic_axes={"lr": {2: "height", 3: "width"}, "sr": {2: "sr_height", 3: "sr_width"}},
            )
        except Exception as error:  # the exporter raises many kinds for operations that ONNX lacks
            reason = " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__
            raise ValueError(f"ONNX cannot hold this network ({reason})") from None
    model = onnx.load_model_from_string(file.getvalue())
    onnx.helper.set_model_props(model, dict(metadata) | {"checksum": checksum(network.state_dict())})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _mean_shift_entries(padding: str) -> dict[str, Tensor]:
    """Mean shifts from [0,255] to our [-1,1] minus the padding's colour, and from our output to [0,255]."""
    return {
        "sub_mean.weight": 2 / 255 * torch.eye(3).view(3, 3, 1, 1),
        "sub_mean.bias": -1 - padding_colour(padding).flatten(),
        "add_mean.weight": 127.5 * torch.eye(3).view(3, 3, 1, 1),
        "add_mean.bias": torch.full((3,), 127.5),
    }


def to_edsr(model: str, options: Mapping | None, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert our EDSR to the EDSR authors' layout (RGB in [0,255], res_scale 1).

    Raises ValueError for other networks and for grey images.
    """
    if model != "EDSR":
        raise ValueError(f"the EDSR authors' code has no {model}; use --to onnx or --to safetensors")
    if _is_grey(options):
        raise ValueError("the EDSR authors' layout takes RGB, this network grey; use --to onnx or --to safetensors")
    folded = dict(state_dict)
    for name in state_dict:
        if re.fullmatch(r"body\.\d+\.body\.2\.(weight|bias)", name):
            folded[name] = state_dict[name] * (options or {}).get("res_scale", 1.0)
    return {**_mean_shift_entries((options or {}).get("padding", "grey")), **folded}


def run_edsr(weights: Mapping[str, Tensor], lr: Tensor) -> Tensor:
    """Run weights in the EDSR authors' layout: lr (B,3,h,w) -> sr (B,3,s*h,s*w), both in [0,255]."""

    def conv(x: Tensor, name: str) -> Tensor:
        weight = weights[f"{name}.weight"].float()
        return F.conv2d(x, weight, weights[f"{name}.bias"].float(), padding=weight.shape[2] // 2)

    blocks = count(weights, r"body\.(\d+)\.body\.")
    x = conv(conv(lr, "sub_mean"), "head.0")
    y = x
    for i in range(blocks):
        y = y + conv(F.relu(conv(y, f"body.{i}.body.0")), f"body.{i}.body.2")
    x = x + conv(y, f"body.{blocks}")
    for step in range((count(weights, r"tail\.0\.(\d+)\.") + 1) // 2):
        x = conv(x, f"tail.0.{2 * step}")
        x = F.pixel_shuffle(x, math.isqrt(x.shape[1] // len(weights["head.0.weight"])))
    return conv(conv(x, "tail.1"), "add_mean")


def to_spandrel(model: str, scale: int, options: Mapping | None, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert one of our networks to the layout that spandrel reads, for images in [0,1].

    Raises ValueError, with the reason and a remedy, for a network that spandrel cannot represent exactly.
    """
    others = "use --to onnx or --to safetensors"
    if model.startswith(PREFIX):
        return {name.removeprefix("spandrel."): value for name, value in state_dict.items()}
    if _is_grey(options):
        raise ValueError(f"spandrel's networks take RGB, this one grey; {others}")
    chosen = defaults_of(model) | dict(options or {})
    if model == "RCAN":
        if scale in (4, 8) and chosen["upsample"] != "two-step":
            raise ValueError(
                f"spandrel's RCAN x{scale} upsamples in {scale.bit_length() - 1} steps, this one in one; "
                "train with --model-options upsample=two-step (--init takes all but the upsampler from here), "
                f"or {others}"
            )
        return {**_mean_shift_entries(chosen["padding"]), **state_dict}
    if model == "RRDBNet":
        if scale == 3:
            raise ValueError(f"spandrel silently loads an RRDBNet x3 as x2; {others}")
        if chosen["growth"] != 32:
            raise ValueError(f"spandrel reads RRDBNet with growth=32 only, this one has {chosen['growth']}; {others}")
        if chosen["padding"] != "black":
            raise ValueError(
                f"spandrel's RRDBNet pads images with black, this one with {chosen['padding']}: borders differ; "
                f"go on training with --model-options padding=black (--init changes the borders alone), or {others}"
            )
        return rescaled(state_dict, 2.0, "conv_last", offset=0.5)
    if model in ("HAT", "HAT-TLW"):
        if (state_dict["mean"] - padding_colour("mean")).abs().max() > 1e-6:
            raise ValueError(
                "spandrel's HAT subtracts DIV2K's RGB mean, this one another mean (the TLW authors'); "
                "use --to safetensors"
            )
        if chosen["conv_scale"] != 0.01:
            found = chosen["conv_scale"]
            raise ValueError(f"spandrel reads HAT with conv_scale=0.01, this one has {found}; use --to safetensors")
        theirs = {name: value for name, value in state_dict.items() if name != "mean"}
        halved = {name: 0.5 * theirs[name] for name in ("conv_last.weight", "conv_last.bias")}
        return theirs | halved | {"conv_first.weight": 2 * theirs["conv_first.weight"]}
    raise ValueError(f"spandrel has no {model}; use --to onnx, safetensors{' or edsr' if model == 'EDSR' else ''}")
