"""SR networks from settings and from a run's checkpoints."""

import reprlib
import shlex
from pathlib import Path

import torch
from torch import nn

import configs
import heap
import rundir
import states
from models import SR_MODELS


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, or the best one this machine has. Raises ValueError where it is not there.

    From then on fp32 means fp32 on a GPU too: its convolutions would round to TF32, and metrics with them. On the CPU
    freed memory is kept for the next tensors.
    """
    torch.backends.cudnn.allow_tf32 = False
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"--device {name}: not available here ({reason}); use --device cpu, or leave it out") from None
    configs.expect(device.type in ("cpu", "cuda"), "device", name, "cpu or cuda")
    if device.type == "cpu":
        heap.keep_freed()
    return device


def layout(device: torch.device, precision: str) -> torch.memory_format:
    """The memory format in which networks train fastest.

    channels_last, but for fp32 on CPUs without AVX-512: there the gradients of the weights take twice as long in it.
    """
    slow = device.type == "cpu" and precision == "fp32" and "AVX512" not in torch.backends.cpu.get_cpu_capability()
    return torch.contiguous_format if slow else torch.channels_last


def place_frozen(module: nn.Module, device: torch.device, precision: str) -> nn.Module:
    """module, which does not learn (a judge, a network to evaluate), on the device in the layout of its fast kernels.

    Under bf16 its convolutions hold the weights that autocast would make of them anew at each use: the same values.
    """
    module.to(device, memory_format=torch.channels_last)
    if precision == "bf16":
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                layer.to(torch.bfloat16)
    return module


def check_compiler(device: torch.device) -> None:
    """Raise ValueError where torch.compile does not work on the device, as without a C++ compiler."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # whatever it is, of torch's or of the compiler's own
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None


def build_network(config: configs.Config) -> nn.Module:
    """The SR network that the settings name, with fresh weights. Raises ValueError on a wrong name or option."""
    build = SR_MODELS[configs.choose(config.model, SR_MODELS, "model")]
    options = config.model_options or {}
    configs.expect("scale" not in options, "model_options", options, "no scale, which is --scale")
    for name, value in options.items():  # a network of a milliard of blocks is built for hours
        numbers = value if isinstance(value, list) else [value]
        fit = all(n <= 4096 for n in numbers if isinstance(n, int | float)) and len(numbers) <= 64
        configs.expect(fit, "model_options", f"{name}={reprlib.repr(value)}", "numbers up to 4096, lists of up to 64")
    try:
        net = build(scale=config.scale, **options)
        if options:  # some wrong options show in the first forward only
            with torch.no_grad():
                net(torch.zeros(1, 3, 8, 8))
    except Exception as error:  # options may be of any type and value, and networks do not check them
        if not options:
            raise
        reason = f"{type(error).__name__}: {str(error).split('() ')[-1]}"[:160]
        raise ValueError(f"--model-options {options}: {config.model} cannot be built with them ({reason})") from None
    return net


def identity(config: configs.Config) -> str:
    """What a checkpoint of this network is called: weights of two scales may have the same shapes."""
    options = " ".join(f"{name}={value}" for name, value in sorted((config.model_options or {}).items()))
    return f"{config.model} x{config.scale}{' ' if options else ''}{options}"


def fill_network(net: nn.Module, state: dict, source: str, wanted: str) -> None:
    """Load state["net"] into net after checking that every name, shape and type fits and that state["of"] is `wanted`.

    source: the state's file; wanted: net's identity. Raises ValueError, net untouched.
    """
    if state.get("of", wanted) != wanted:
        raise ValueError(f"{source}: a checkpoint of {state['of']}; expected one of {wanted}")
    states.check_weights(net, state.get("net"), source, wanted)
    net.load_state_dict(state["net"])


def load_networks(run: Path, which: str, losses=None) -> tuple[configs.Config, dict[str, nn.Module], list[str]]:
    """The settings of a run, its SR networks by loss (all, or those named), and what judges and extractors they had.

    which: "best" (each loss's epoch of the lowest LPIPS) or "last". Raises ValueError.
    """
    if not (run / "config.yaml").is_file():
        released = sorted(run.glob("SRModel_*.pth"))
        convert = f"convert the released files with: python convert.py {shlex.quote(str(run))}"
        remedy = convert if released else "expected a run's folder"
        raise ValueError(f"--modelpath {run}: no config.yaml there; {remedy}")
    config = configs.from_mapping(configs.read_yaml(run / "config.yaml"), source=str(run / "config.yaml"))
    nets, judges = {}, []
    last = {}
    if which == "last":
        state, path, wrong = rundir.load_last(run)
        last = rundir.learner_states(state, path)
        if wrong:
            print(f"{wrong}; {path.name} of step {state.get('step')} stands in for it")
    names = list(config.variants)
    for loss in [configs.choose(loss, names, f"loss in {run}") for loss in losses or names]:
        if which == "last" and loss not in last:
            raise ValueError(f"{run / 'last.pt'}: holds no network of {loss}; add --best")
        state = rundir.load_state(run / f"best_{loss}.pt") if which == "best" else last[loss]
        net = build_network(config)
        fill_network(net, state, f"{run} ({which}, {loss})", identity(config))
        nets[loss] = net
        judges += [judge for judge in state.get("judges", ()) if judge not in judges]
    return config, nets, judges
