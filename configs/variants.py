"""Losses with their own settings: "L1+TLW[weights=uniform]", "L1[learning_rate=8e-4,label=fast]"."""

import dataclasses
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .errors import choose
from .reading import parse_pairs

if TYPE_CHECKING:
    from .config import Config

# The settings that may be set for one loss: the optimizer's, and those of the terms in the loss's name.
OPTIMIZER = ("learning_rate", "betas", "schedule", "step_epochs", "step_gamma", "milestones", "clip_grad", "warmup",
             "optimizer", "weight_decay", "ema", "restart_every")  # fmt: skip
TERMS = {
    "TLW": ("weights", "wc", "samples", "eps", "k_start", "k_end", "k_epochs", "m_step", "e_every", "reuse_mu",
            "weighting_scale", "weighting_channels"),
    "UDL": ("udl_epoch", "udl_head", "udl_plus_one", "udl_minimum", "udl_restart"),
    "PSPL": ("pspl_alpha", "pspl_beta", "pspl_max", "pspl_epoch", "pspl_ssim"),
    "DP": ("dp_extractors", "dp_mu", "dp_dynamic", "pixel_weight", "pretrain_epochs"),
    "GAN": ("gan", "gan_weight"),
}  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9_.+=,\[\]-]{1,100}")  # best_NAME.pt is then a valid file name on every system


class Variant(NamedTuple):
    """One of a run's losses: its name in LOSSES, and the run's settings with this loss's own."""

    loss: str
    config: "Config"


def variants_of(config: "Config", convert: Callable) -> dict[str, Variant]:
    """The losses of a Config by name: the label, or the whole text without one. Raises ValueError.

    convert: convert(field, value) returns the value in the field's type.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    variants = {}
    for text in config.losses:
        try:
            loss, name, own = parse_loss(text, fields)
            own = {key: convert(fields[key], value) for key, value in own.items()}
            variants[name] = Variant(loss, dataclasses.replace(config, losses=(loss,), **own) if own else config)
        except ValueError as error:
            raise ValueError(f"--losses {text}: {error}") from None
    return variants


def parse_loss(text: str, fields) -> tuple[str, str, dict]:
    """Parse an entry of --losses into the loss, its name and its own settings. Raises ValueError.

    fields: the names of all settings of a run.
    """
    if "[" not in text and "]" not in text:
        return text, text, {}
    found = re.fullmatch(r"([^\[\]]+)\[(.+)\]", "".join(text.split()))
    if not found:
        raise ValueError("expected LOSS[SETTING=VALUE,...], such as 'L1+TLW[weights=uniform]'")
    loss, inside = found.groups()
    words = re.split(r",(?![^\[]*\])", inside)  # but not at the comma in betas=[0.9,0.99]
    labels = [word.removeprefix("label=") for word in words if word.startswith("label=")]
    own = parse_pairs([word for word in words if not word.startswith("label=")], "setting", "weights=uniform")
    own = {name.replace("-", "_"): value for name, value in own.items()}
    allowed = [*OPTIMIZER, *(name for term in loss.split("+") for name in TERMS.get(term, ()))]
    for name in own:
        if name in fields and name not in allowed:
            raise ValueError(f"{name} cannot be set for {loss} alone; these can: {', '.join(allowed)}")
        choose(name, [*allowed, "label"], "setting of a loss")
    name = labels[0] if labels else found[0]
    if len(labels) > 1 or not NAME.fullmatch(name) or labels and set(name) & set("=,[]"):
        raise ValueError("not usable as a file name; expected one label=NAME, of letters, digits, . + - and _")
    return loss, name, own
