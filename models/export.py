"""Our networks in what other programs load: RGB in [0,1] in and out, with metadata.

    safetensors   names as in UnitRange, read back by `from_safetensors`
    ONNX          one file, any height and width
    spandrel      the layouts of RCAN, HAT and RRDBNet that it reads, exactly, or an error that says why not
    EDSR          the EDSR authors' layout, in [0,255]

Tried with onnxruntime 1.32 and spandrel 0.4.2.
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
    """A network of ours for images in [0,1]: lr (B,3,h,w) -> sr (B,3,s*h,s*w), not clamped, float32.

    The names of its state dict begin with "network.": no program takes them for a network in another range.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, lr: Tensor) -> Tensor:
        sr = self.network((2 * lr - 1).to(next(self.network.parameters()).dtype))
        return (sr.float() + 1) / 2


def checksum(state_dict: Mapping[str, Tensor]) -> str:
    """A SHA-256 of names, shapes and values, in the order of names, floats as float32; for any format."""
    digest = hashlib.sha256()
    for name, value in sorted(state_dict.items()):
        value = value.float() if value.is_floating_point() else value.long()
        digest.update(f"{name} {tuple(value.shape)} ".encode())
        digest.update(value.contiguous().cpu().numpy().astype("<f4" if value.is_floating_point() else "<i8").tobytes())
    return f"sha256:{digest.hexdigest()}"


def rounded_to_half(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The floating-point values in half precision, but those of mean shifts, which carry the whole range."""
    return {
        name: value.half() if value.is_floating_point() and not name.startswith(("sub_mean.", "add_mean.")) else value
        for name, value in state_dict.items()
    }


def describe(model: str, scale: int, options: Mapping | None, **about: str) -> dict[str, str]:
    """The metadata of an exported network; about: what else is to be said of it."""
    name = PREFIX if model.startswith(PREFIX) else model
    return {
        "network": name,
        "scale": str(scale),
        "options": json.dumps(dict(options or {})),
        "images": "grey in [0,1], (B,1,H,W)" if _is_grey(options) else "RGB in [0,1], (B,3,H,W)",
        **about,
    }


def _is_grey(options: Mapping | None) -> bool:
    return (options or {}).get("colours", 3) == 1


def to_safetensors(state_dict: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A state dict of ours as a safetensors file of UnitRange."""
    tensors = {f"network.{name}": value.contiguous() for name, value in state_dict.items()}
    return save(tensors, {**metadata, "checksum": checksum(state_dict)})


def is_our_export(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bool:
    """True if a file of these tensors and metadata was written by to_safetensors."""
    return "network" in metadata and all(name.startswith("network.") for name in tensors)


def split_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[str, int, dict, dict]:
    """Read what to_safetensors wrote: the network's name, scale, options and state dict in float32.

    Raises ValueError where it is no such file, or the weights are not those that were written.
    """
    try:
        options, scale, name = json.loads(metadata["options"]), int(metadata["scale"]), metadata["network"]
    except (KeyError, ValueError):
        raise ValueError("no metadata of an export of ours (network, scale, options)") from None
    state = {key.removeprefix("network."): value for key, value in tensors.items()}
    if checksum(state) != metadata.get("checksum"):
        raise ValueError("the weights are not those that were exported (wrong checksum)")
    return name, scale, options, {k: v.float() if v.is_floating_point() else v for k, v in state.items()}


def from_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> UnitRange:
    """The tensors and metadata of such a file -> the network, in eval mode. Raises ValueError."""
    name, scale, options, state = split_safetensors(tensors, metadata)
    network = build_network(name, scale, options, state)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights are not {name}'s ({' '.join(str(error).split())[:160]})") from None
    return UnitRange(network).eval()


def to_onnx(network: nn.Module, metadata: Mapping[str, str], half: bool = False) -> bytes:
    """An ONNX file: input "lr" (1,3,height,width) -> output "sr", float32 in [0,1].

    half: the network computes in float16 inside.

    Raises ValueError if a package is missing, or the network cannot be written so.
    """
    try:
        import onnx
    except ImportError:
        raise ValueError("ONNX needs a package that is not installed; pip install onnx onnxruntime") from None
    if isinstance(network, HAT):
        raise ValueError("HAT lays out its windows by the image's size, which an ONNX graph cannot; use --to spandrel")
    network = copy.deepcopy(network).eval().requires_grad_(False).to(memory_format=torch.contiguous_format)
    file: Any = io.BytesIO()
    # On failure the exporter prints all of the graph.
    with warnings.catch_warnings(), torch.no_grad(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")  # that this exporter is the older one; the newer needs one more package
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
        except Exception as error:  # whatever an operation that ONNX does not have makes the exporter raise
            reason = " ".join(str(error).split("\n")[0].split())[:160] or type(error).__name__
            raise ValueError(f"ONNX cannot hold this network ({reason})") from None
    model = onnx.load_model_from_string(file.getvalue())
    onnx.helper.set_model_props(model, dict(metadata) | {"checksum": checksum(network.state_dict())})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _mean_shift_entries(padding: str) -> dict[str, Tensor]:
    """The mean shifts from [0,255] to our [-1,1] less the padding's colour, and from our output back."""
    return {
        "sub_mean.weight": 2 / 255 * torch.eye(3).view(3, 3, 1, 1),
        "sub_mean.bias": -1 - padding_colour(padding).flatten(),
        "add_mean.weight": 127.5 * torch.eye(3).view(3, 3, 1, 1),
        "add_mean.bias": torch.full((3,), 127.5),
    }


def to_edsr(model: str, scale: int, options: Mapping | None, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our EDSR -> the EDSR authors' layout (RGB, 0-255), res_scale 1. Raises ValueError for others."""
    if model != "EDSR":
        raise ValueError(f"the EDSR authors' code has no {model}; use --to onnx or --to safetensors")
    if _is_grey(options):
        raise ValueError("the EDSR authors' layout is of RGB, this network of grey; use --to onnx or --to safetensors")
    folded = dict(state_dict)
    for name in state_dict:  # the factor of a block's residual is that of its last convolution
        if re.fullmatch(r"body\.\d+\.body\.2\.(weight|bias)", name):
            folded[name] = state_dict[name] * (options or {}).get("res_scale", 1.0)
    return {**_mean_shift_entries((options or {}).get("padding", "grey")), **folded}


def run_edsr(weights: Mapping[str, Tensor], lr: Tensor) -> Tensor:
    """Run a file in the EDSR authors' layout as their code does: lr (B,3,h,w) in [0,255] -> sr in [0,255]."""

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
    """A network of ours -> the layout that spandrel reads, for images in [0,1].

    Raises ValueError with the reason and the way out where spandrel has no place for it.
    """
    others = "use --to onnx or --to safetensors"
    if model.startswith("spandrel:"):
        return {name.removeprefix("spandrel."): value for name, value in state_dict.items()}
    if _is_grey(options):
        raise ValueError(f"for spandrel the network is of RGB, this one of grey; {others}")
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
            raise ValueError(f"spandrel takes an RRDBNet x3 for x2 without a word; {others}")
        if chosen["growth"] != 32:
            raise ValueError(f"spandrel reads RRDBNet with growth=32 alone, this one has {chosen['growth']}; {others}")
        if chosen["padding"] != "black":
            raise ValueError(
                f"spandrel's RRDBNet pads images with black, this one with {chosen['padding']}: other near borders; "
                f"train on from here with --model-options padding=black (--init keeps the inside), or {others}"
            )
        return rescaled(state_dict, 2.0, "conv_last", offset=0.5)
    if model in ("HAT", "HAT-TLW"):
        if (state_dict["mean"] - padding_colour("mean")).abs().max() > 1e-6:
            raise ValueError(
                "spandrel's HAT subtracts DIV2K's RGB mean, this one another (the TLW authors'); use --to safetensors"
            )
        if chosen["conv_scale"] != 0.01:
            found = chosen["conv_scale"]
            raise ValueError(f"spandrel reads HAT with conv_scale=0.01, this one has {found}; use --to safetensors")
        theirs = {name: value for name, value in state_dict.items() if name != "mean"}
        halved = {name: 0.5 * theirs[name] for name in ("conv_last.weight", "conv_last.bias")}
        return theirs | halved | {"conv_first.weight": 2 * theirs["conv_first.weight"]}
    raise ValueError(f"spandrel has no {model}; use --to onnx, safetensors{' or edsr' if model == 'EDSR' else ''}")
