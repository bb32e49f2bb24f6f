"""Initial weights (--init RUN|FILE): from a run, an exported file, or another toolkit's file."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import configs
from configs import Config
from models import SpandrelNetwork
from models.layouts import sources_of, unwrap
from models.padding import shift_padding
from models.spandrel_network import PREFIX, describe
from runs.checkpoint import SR_NETWORK, check_weights, load_states
from runs.weights_file import import_file, read_spandrel_file, read_weights_file

# The first convolution of each network whose padding is an option.
FIRST = {"EDSR": "head.0", "RCAN": "head.0", "RRDBNet": "conv_first", "SRResNet": "conv_first"}
KEPT = re.compile(r"step_\d+")  # checkpoints of --keep-every
UPSAMPLER = re.compile(r"(spandrel\.)?(tail\.0|upsample|upsampler|upconv\d|conv_up\d)\.")  # parameters, for notes


class Initial(NamedTuple):
    """A network to start from; loss: the state dict of the loss that it was trained with, if known."""

    label: str
    model: str
    scale: int | None
    options: dict
    weights: Mapping[str, Tensor]
    loss: Mapping[str, Tensor] | None = None


def read_initial(config: Mapping) -> Initial:
    """Read the network that the settings init, init_loss and init_best name.

    If the setting model is "spandrel:FILE", spandrel reads a file. Raises ValueError, which names --init.
    """
    path, loss, best = Path(config["init"]), config.get("init_loss"), config.get("init_best", False)
    try:
        if not path.exists():
            raise ValueError("no such run or file; expected pytorch, paper, a run's folder or a file of weights")
        run, which, found = _run_of(path, loss, best)
        if run is not None:
            return _of_run(run, which, found)
        given = [f"--init-{name}" for name, value in (("loss", loss), ("best", best)) if value]
        if given:
            raise ValueError(f"one network, not a run; leave out {' and '.join(given)}")
        if str(config.get("model")).startswith(PREFIX):
            net = SpandrelNetwork(unwrap(read_weights_file(path)[0])[0])
            return Initial(str(path), str(config["model"]), net.scale, {}, net.state_dict())
        _refuse_two_sources(path)
        imported = import_file(path)
        label = ", ".join([str(path), *imported.assumed])
        return Initial(label, imported.model, imported.scale, imported.options, imported.state_dict)
    except (ValueError, OSError) as error:
        text = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"--init {path}: {text}") from None


def _run_of(path: Path, loss: str | None, best: bool) -> tuple[Path | None, str, str | None]:
    """The run that path is, or is a checkpoint of, with checkpoint and loss; a None run for another file."""
    if path.is_dir():
        return path, "best" if best else "last", loss
    if not (path.parent / "config.yaml").is_file() or path.suffix != ".pt":
        return None, "", None
    if path.name in ("last.pt", "previous.pt"):
        return path.parent, "last", loss
    if KEPT.fullmatch(path.stem):
        return path.parent, path.stem, loss
    if not (path.stem.startswith("best_") and loss in (None, path.stem.removeprefix("best_"))):
        return None, "", None
    return path.parent, "best", path.stem.removeprefix("best_")


def _of_run(run: Path, which: str, loss: str | None) -> Initial:
    if which == "last" and not any((run / name).exists() for name in ("last.pt", "previous.pt")):
        if any(run.glob("best_*.pt")):
            raise ValueError("has no last.pt; add --init-best")
    config, states = load_states(run, which, [loss] if loss else None)
    if len(states) > 1:
        raise ValueError(f"holds networks of {' '.join(states)}; name one with --init-loss")
    ((name, state),) = states.items()
    return Initial(
        f"{run} ({which}, {name})",
        config.model,
        config.scale,
        dict(config.network_options or {}),
        state[SR_NETWORK],
        state.get("loss"),
    )


def _refuse_two_sources(path: Path) -> None:
    weights, _ = unwrap(read_weights_file(path)[0])
    if len(sources := sources_of(weights)) > 1:
        raise ValueError(
            "an EDSR can be of two sources, which differ in range and channel order; convert it first with: "
            f"python convert.py {path} --source {' (or '.join(sources)}), and name the run that it writes"
        )


def is_path(init: object) -> bool:
    """True if a value of --init names weights to read, not a way to draw them."""
    return isinstance(init, str) and init not in configs.INIT_WORDS


def network_settings(values: Mapping) -> dict:
    """The settings model, scale, color and model_options that follow from the files of model and init.

    values: the settings given; they are not replaced, but model_options are completed. Raises ValueError.
    """
    if values.get("load"):
        return {}
    texts = {name: values[name] for name in ("init", "model") if isinstance(values.get(name), str)}
    values = {**values, **{name: configs.expand_path(text) for name, text in texts.items()}}
    model = values.get("model")
    if is_path(values.get("init")):
        initial = read_initial(values)
        if model not in (None, initial.model):
            return _scale_of(model, values)
        found = {"model": initial.model, "scale": initial.scale}
        options = values.get("model_options") or {}
        if initial.options.pop("colours", 3) == 1:
            found["color"] = "grey"
        if isinstance(options, dict) and (initial.options or options):
            found["model_options"] = {**initial.options, **options}
        return {k: v for k, v in found.items() if v is not None and (k not in values or k == "model_options")}
    return _scale_of(model, values)


def _scale_of(model: object, values: Mapping) -> dict:
    if not isinstance(model, str) or not model.startswith(PREFIX) or "scale" in values:
        return {}
    try:
        return {"scale": describe(read_spandrel_file(model)).scale}
    except ValueError as error:
        raise ValueError(f"--model {model}: {str(error).removeprefix(f'--model {model}: ')}") from None


def begin_from(net: nn.Module, config: Config) -> tuple[Initial, str]:
    """Load the weights that --init names into net, as far as they fit; return them and a note.

    Raises ValueError if they are of another network, or none fits.
    """
    initial = read_initial({name: getattr(config, name) for name in ("model", "init", "init_loss", "init_best")})
    ours, theirs = (name.split(":")[0].removesuffix("-TLW") for name in (config.model, initial.model))
    if ours != theirs:
        raise ValueError(
            f"--init {config.init}: has weights of {initial.model}; expected {config.model}, as --model says"
        )
    weights = dict(initial.weights)
    if config.model in FIRST:
        chosen = [(o or {}).get("padding", "grey") for o in (initial.options, config.network_options)]
        first = FIRST[config.model]
        if chosen[0] != chosen[1] and {f"{first}.weight", f"{first}.bias"} <= weights.keys():
            weights[f"{first}.bias"] = shift_padding(
                *(weights[f"{first}.{part}"] for part in ("weight", "bias")), *chosen
            )
    own = net.state_dict()
    learned = [name for name, value in own.items() if value.is_floating_point()]
    taken = {name: weights[name] for name in learned if name in weights and weights[name].shape == own[name].shape}
    if not any(x.ndim > 1 for x in taken.values()):  # a bias of three channels fits any network
        raise ValueError(
            f"--init {config.init}: none of its weights fits {config.model} x{config.scale} with these options"
        )
    net.load_state_dict(own | taken)
    note = f"init: {len(taken)} of {len(learned)} tensors from {initial.label}"
    fresh = _grouped(name for name in learned if name not in taken)
    left_out = _grouped(name for name, x in weights.items() if name not in taken and x.is_floating_point())
    return initial, "; ".join([note, *(f"{line} fresh" for line in fresh), *(f"{line} left out" for line in left_out)])


def _grouped(names) -> list[str]:
    """Count parameters' names by group: ["upsampler: 4 tensors", "body: 2 tensors"]."""
    counts: dict[str, int] = {}
    for name in names:
        group = "upsampler" if UPSAMPLER.match(name) else name.removeprefix("spandrel.").split(".")[0]
        counts[group] = counts.get(group, 0) + 1
    return [f"{group}: {count} tensor{'s' * (count > 1)}" for group, count in counts.items()]


def begin_weighting_from(initial: Initial, weighting: nn.Module) -> None:
    """Load the weights of the weighting network that `initial` was trained with. Raises ValueError."""
    names = [*weighting.state_dict()]
    ends = [name for name in initial.loss or () if name.endswith(f".{names[0]}")]
    if not ends:
        raise ValueError(
            f"--init-weighting: no weighting network in {initial.label}; name a loss with TLW: --init-loss"
        )
    prefix = ends[0].removesuffix(names[0])
    weights = {name.removeprefix(prefix): x for name, x in initial.loss.items() if name.startswith(prefix)}
    # The TLW authors' files lack BatchNorm's num_batches_tracked, which nothing uses.
    counts = {name: torch.tensor(0) for name in names if name.endswith("num_batches_tracked")}
    check_weights(weighting, counts | weights, f"--init {initial.label}", "this weighting network")
    weighting.load_state_dict(counts | weights)
