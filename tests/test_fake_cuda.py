"""Every loss and every network through train.py's step under fake CUDA tensors, which need no GPU.

They know their devices and hold no values: tensors on devices that do not fit raise at once, and so does whatever the
host would wait for the device for within a step, a value that it reads or a copy between the two. A backward wants a
real device, so everything runs under no_grad, and each backward of the step only leaves a gradient behind.
"""

from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import train
from benchmarks.judges import untrained
from configs import Config
from losses import LOSSES, build_loss
from metrics.extractors import FeatureDistance
from metrics.judges import JUDGES
from models import SR_MODELS, build_network
from training.device import place_frozen
from training.learner import Learner

CUDA = torch.device("cuda")
SMALL = {
    "EDSR": {"blocks": 1, "channels": 8},
    "RCAN": {"groups": 1, "blocks": 1, "channels": 8, "reduction": 4},
    "VDSR": {"channels": 8},
    "SRResNet": {"blocks": 1, "channels": 8},
    "RRDBNet": {"blocks": 1, "channels": 8, "growth": 4},
    "HAT": {"embed": 24, "depths": [2], "heads": [2], "window": 4, "squeeze_factor": 2, "channels": 8},
    "HAT-TLW": {"embed": 24, "depths": [2], "heads": [2], "squeeze_factor": 2, "channels": 8},
}
INITIALISERS = ("normal", "uniform", "trunc_normal", "kaiming_normal", "kaiming_uniform")
TLW_SETTINGS = [
    "weights=uniform",
    "weights=shuffled",
    "weights=inverted",
    "wc=normalised",
    "wc=one",
    "m_step=released",
    "e_every=2",
    "reuse_mu=true",
    "weighting_scale=2",
    "weighting_channels=8",
]
SETTINGS = [
    *(f"L1+TLW[{setting}]" for setting in TLW_SETTINGS),
    *("L1+UDL[udl_minimum=batch]", "L1+UDL[udl_head=tlw]", "L1+PSPL[pspl_ssim=authors]", "L1+DP+GAN[gan=ragan]"),
    *("L1+DP[dp_dynamic=false]", "L1+TLW[clip_grad=1]", "L1[clip_grad=1]", "L1+TLW[optimizer=adamw]"),
]


STEPS = [(loss, "fp32") for loss in (*LOSSES, *SETTINGS)] + [(loss, "bf16") for loss in LOSSES]


class HostDeviceCopyError(Exception):
    """A copy between the host and the device, for which the host waits."""


class NoCopies(TorchDispatchMode):
    """Copies between the host and the device raise, which FakeTensorMode lets through."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        into = {x.device.type for x in (args[0] if func._schema.is_mutable else out,) if isinstance(x, Tensor)}
        read = {x.device.type for x in args if isinstance(x, Tensor)}
        if into and read and into | read == {"cpu", "cuda"} and "copy" in func.__name__:
            raise HostDeviceCopyError(f"{func}: from {read} to {into}")
        return out


def to_fake(module: nn.Module, *args, **kwargs) -> nn.Module:
    """nn.Module.to for a module of real tensors: it gets fake ones without values there, in place."""
    device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is None:
                    continue
                kind = dtype if dtype and old.is_floating_point() else old.dtype
                new = torch.empty(old.shape, dtype=kind, device=device or old.device)
                new = new.contiguous(memory_format=layout) if layout and old.ndim == 4 else new
                tensors[name] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    return module


@pytest.fixture
def fake_cuda():
    """The mode in which a device that is not there has fake tensors."""
    state, generator = torch.get_rng_state(), torch.Generator
    with ExitStack() as stack:
        for name, stand_in in (
            ("torch.Generator", lambda kind="cpu": generator("cpu")),
            ("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),  # else autocast would do nothing
            ("torch.cuda.is_bf16_supported", lambda *_: True),
            ("torch.get_rng_state", lambda: state),  # random streams' states are the host's own, on a GPU too
            ("torch.set_rng_state", lambda state: None),
            ("torch.cuda.get_rng_state", lambda device: state),
            ("torch.cuda.set_rng_state", lambda state, device: None),
            ("torch.nn.Module.to", to_fake),
            *((f"torch.nn.init.{name}_", lambda tensor, *_, **__: tensor) for name in INITIALISERS),  # which take long
        ):
            stack.enter_context(mock.patch(name, stand_in))
        yield FakeTensorMode()


def fake_backward(learner: Learner):
    """In place of a loss's backward: gradients for whatever learns."""

    def backward(loss: Tensor) -> None:
        assert loss.device.type == "cuda" and loss.dtype == torch.float32 and loss.shape == ()
        for part in (learner.net, learner.loss):
            for p in part.parameters():
                p.grad = torch.empty_like(p) if p.requires_grad else None

    return backward


def take_steps(
    fake: FakeTensorMode, loss: str, model: str = "EDSR", judge: str = "tiny", precision: str = "fp32", change=None
) -> list[dict]:
    """Two steps in two epochs, UDL's second stage from the second one on; change(learner) before."""
    config = Config(
        model=model, model_options=SMALL[model], scale=4, losses=(loss,), patch=64, batchsize=2, udl_epoch=1,
        precision=precision,
    )  # fmt: skip
    (name, variant), *_ = config.variants.items()
    net = build_network(config.model, config.scale, config.model_options)
    loss = build_loss(variant.loss, variant.config, net)
    extractors = {name: FeatureDistance(name) for name in loss.extractors}
    judge = untrained(judge, check_range=False) if loss.needs_judge else None
    values = []
    with fake, CUDA:
        learner = Learner(name, net, loss, variant, CUDA)
        extractors = {name: place_frozen(extractor, CUDA, precision) for name, extractor in extractors.items()}
        judge = judge and place_frozen(judge, CUDA, precision)
        lr = (torch.rand(2, 3, 16, 16) * 2 - 1).contiguous(memory_format=torch.channels_last)
        hr = (torch.rand(2, 3, 64, 64) * 2 - 1).contiguous(memory_format=torch.channels_last)
        if change:
            change(learner)
        for step in range(2):
            learner.begin_epoch(step)
            learner.loss.begin_step(step)
            with torch.no_grad(), NoCopies(), mock.patch.object(Tensor, "backward", fake_backward(learner)):
                values.append(train.train_step([learner], judge, extractors, lr, hr, float(step), precision)[name])
        assert {x.device.type for x in (learner.found_inf, learner.skips, *learner.net.parameters())} == {"cuda"}
    return values


@pytest.mark.parametrize(("loss", "precision"), STEPS)
def test_loss(fake_cuda, loss, precision):
    values = take_steps(fake_cuda, loss, precision=precision)
    learns = ("TLW" in loss or "GAN" in loss) and "weights=uniform" not in loss
    assert [helper_loss is not None for helper_loss, _ in values] == [learns and "e_every" not in loss, learns]


@pytest.mark.parametrize("model", SR_MODELS)
def test_network(fake_cuda, model):
    take_steps(fake_cuda, "L1", model)
    take_steps(fake_cuda, "L1+UDL", model, precision="bf16")


@pytest.mark.parametrize("judge", [name for name in JUDGES if not name.endswith("-unweighted")])
def test_judge(fake_cuda, judge):
    take_steps(fake_cuda, "L1+TLW", judge=judge)


# What raises.


def test_bf16_is_what_autocast_makes(fake_cuda):
    with fake_cuda, CUDA, torch.autocast("cuda", torch.bfloat16):
        assert nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)).dtype == torch.bfloat16


FAULTS = {
    "item": lambda x: x.mean().item(),
    "float": lambda x: float(x.mean()),
    "tolist": lambda x: x.tolist(),
    "truth": lambda x: bool(x.mean() > 0),
    "how many": lambda x: x[x > 0],
    "nonzero": lambda x: x.nonzero(),
    "cpu": lambda x: x.cpu(),
    "copy": lambda x: torch.empty(x.shape, device="cpu").copy_(x),
    "to the device": lambda x: torch.ones(3, 1, 1, device="cpu").to(x.device),
    "another device": lambda x: x + torch.ones(3, 1, 1, device="cpu"),
    "a tensor made before": lambda x: x + REAL,
}
REAL = torch.ones(3, 1, 1)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("where", ["loss", "helper_loss", "net"])
def test_a_fault_in_the_step_raises(fake_cuda, fault, where):
    def change(learner):
        owner, name = (learner.loss, {"loss": "forward"}.get(where, where))
        if where == "net":
            owner, name = learner.forward_with_features, "compute"
        right = getattr(owner, name)

        def wrong(x, *args):
            FAULTS[fault](x)
            return right(x, *args)

        setattr(owner, name, wrong)

    with pytest.raises(Exception) as raised:
        take_steps(fake_cuda, "L1+TLW", change=change)
    assert not isinstance(raised.value, (AttributeError, NameError, TypeError)), raised.value
