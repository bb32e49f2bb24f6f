"""Other toolkits' networks -> ours and back: the same images, borders too, as networks written from the papers.

The networks here are in their authors' ranges and have their parameters' names; spandrel's stand for ESRGAN's.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import convert
from models import build_network
from models.export import UnitRange, run_edsr, to_edsr
from models.layouts import import_weights, sources_of
from runs.checkpoint import load_networks

MEAN = torch.tensor([0.4488, 0.4371, 0.4040])


def conv(channels_in: int, channels_out: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, size, padding=size // 2)


def shift(sign: int) -> nn.Conv2d:
    layer = nn.Conv2d(3, 3, 1)
    layer.weight.data, layer.bias.data = torch.eye(3).view(3, 3, 1, 1), sign * 255 * MEAN
    return layer


def upsampler(channels: int, scale: int) -> nn.Sequential:
    factors = [scale] if scale == 3 else [2] * (scale // 2)
    return nn.Sequential(*(x for f in factors for x in (conv(channels, channels * f * f), nn.PixelShuffle(f))))


class Residual(nn.Module):
    """x + factor * body(x), the body under the name that the authors give it."""

    def __init__(self, name: str, body: nn.Module, factor: float = 1.0):
        super().__init__()
        self.name, self.factor = name, factor
        self.add_module(name, body)

    def forward(self, x):
        return x + self.factor * self.get_submodule(self.name)(x)


class Authors(nn.Module):
    """The EDSR and RCAN authors': [0,1] here, [0,255] and DIV2K's mean less inside."""

    def __init__(self, channels: int, body: list[nn.Module], scale: int):
        super().__init__()
        self.sub_mean, self.add_mean = shift(-1), shift(1)
        self.head = nn.Sequential(conv(3, channels))
        self.body = nn.Sequential(*body, conv(channels, channels))
        self.tail = nn.Sequential(upsampler(channels, scale), conv(channels, 3))

    def forward(self, lr):
        x = self.head(self.sub_mean(255 * lr))
        return self.add_mean(self.tail(x + self.body(x))) / 255


def edsr_authors(scale: int, channels: int = 8, blocks: int = 2, res_scale: float = 1.0) -> nn.Module:
    def block():
        return nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))

    return Authors(channels, [Residual("body", block(), res_scale) for _ in range(blocks)], scale)


class Gate(nn.Module):
    """Channel attention, its layers under `name`, numbered from `first`."""

    def __init__(self, name: str, first: int, channels: int, reduction: int):
        super().__init__()
        pool = [nn.AdaptiveAvgPool2d(1)] * first
        squeeze, excite = conv(channels, channels // reduction, 1), conv(channels // reduction, channels, 1)
        self.name = name
        self.add_module(name, nn.Sequential(*pool, squeeze, nn.ReLU(), excite, nn.Sigmoid()))

    def forward(self, x):
        return x * self.get_submodule(self.name)(x.mean((2, 3), keepdim=True))


def rcan_authors(scale: int, channels: int = 8, groups: int = 2, blocks: int = 3) -> nn.Module:
    def block():
        return nn.Sequential(
            conv(channels, channels), nn.ReLU(), conv(channels, channels), Gate("conv_du", 0, channels, 2)
        )

    def group():
        return nn.Sequential(*(Residual("body", block()) for _ in range(blocks)), conv(channels, channels))

    return Authors(channels, [Residual("body", group()) for _ in range(groups)], scale)


class BasicBlock(nn.Module):
    def __init__(self, channels: int, res_scale: float):
        super().__init__()
        self.conv1, self.conv2, self.res_scale = conv(channels, channels), conv(channels, channels), res_scale

    def forward(self, x):
        return x + self.res_scale * self.conv2(F.relu(self.conv1(x)))


class BasicSR(nn.Module):
    """BasicSR's EDSR and RCAN: (x - mean) * 255 inside, no entry for the mean."""

    def __init__(self, channels: int, body: list[nn.Module], scale: int):
        super().__init__()
        self.conv_first, self.body = conv(3, channels), nn.Sequential(*body)
        self.conv_after_body = conv(channels, channels)
        self.upsample, self.conv_last = upsampler(channels, scale), conv(channels, 3)

    def forward(self, lr):
        mean = MEAN.view(1, 3, 1, 1)
        x = self.conv_first((lr - mean) * 255)
        return self.conv_last(self.upsample(x + self.conv_after_body(self.body(x)))) / 255 + mean


def edsr_basicsr(scale: int, channels: int = 8, blocks: int = 2, res_scale: float = 1.0) -> nn.Module:
    return BasicSR(channels, [BasicBlock(channels, res_scale) for _ in range(blocks)], scale)


class RcanGroup(nn.Module):
    def __init__(self, channels: int, blocks: int):
        super().__init__()

        def block():
            gate = Gate("attention", 1, channels, 2)
            return nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels), gate)

        self.residual_group = nn.Sequential(*(Residual("rcab", block()) for _ in range(blocks)))
        self.conv = conv(channels, channels)

    def forward(self, x):
        return x + self.conv(self.residual_group(x))


def rcan_basicsr(scale: int, channels: int = 8, groups: int = 2, blocks: int = 3) -> nn.Module:
    return BasicSR(channels, [RcanGroup(channels, blocks) for _ in range(groups)], scale)


class MSRResNet(nn.Module):
    """BasicSR's, in [0,1]."""

    def __init__(self, scale: int, channels: int = 8, blocks: int = 2):
        super().__init__()
        self.scale, self.conv_first = scale, conv(3, channels)
        self.body = nn.Sequential(*(BasicBlock(channels, 1.0) for _ in range(blocks)))
        self.factors = [scale] if scale == 3 else [2] * (scale // 2)
        for i, f in enumerate(self.factors, start=1):
            self.add_module(f"upconv{i}", conv(channels, channels * f * f))
        self.conv_hr, self.conv_last = conv(channels, channels), conv(channels, 3)

    def forward(self, lr):
        x = self.body(F.leaky_relu(self.conv_first(lr), 0.1))
        for i, f in enumerate(self.factors, start=1):
            x = F.leaky_relu(F.pixel_shuffle(self.get_submodule(f"upconv{i}")(x), f), 0.1)
        out = self.conv_last(F.leaky_relu(self.conv_hr(x), 0.1))
        return out + F.interpolate(lr, scale_factor=self.scale, mode="bilinear", align_corners=False)


def esrgan(scale: int) -> nn.Module:
    pytest.importorskip("spandrel")
    from spandrel.architectures.ESRGAN import ESRGAN

    return ESRGAN(num_filters=8, num_blocks=2, scale=scale)


def first_layout(state: dict) -> dict:
    """ESRGAN's first names, which spandrel's network has."""
    return state


def new_layout(state: dict) -> dict:
    """BasicSR's names of the same."""
    top = max(int(name.split(".")[1]) for name in state)
    names = {"model.0.": "conv_first.", "model.1.sub.2.": "conv_body."}
    names |= {f"model.{3 * i}.": f"conv_up{i}." for i in range(1, (top - 4) // 3 + 1)}
    names |= {f"model.{top - 2}.": "conv_hr.", f"model.{top}.": "conv_last."}
    for i in range(2):
        for j in (1, 2, 3):
            names |= {f"model.1.sub.{i}.RDB{j}.conv{k}.0.": f"body.{i}.rdb{j}.conv{k}." for k in range(1, 6)}
    return {
        new + name.removeprefix(old): x
        for name, x in state.items()
        for old, new in names.items()
        if name.startswith(old)
    }


def old_layout(state: dict) -> dict:
    """The names of the ESRGAN authors' second code, and BSRGAN's."""
    words = {
        "body.": "RRDB_trunk.",
        ".rdb": ".RDB",
        "conv_body.": "trunk_conv.",
        "conv_up": "upconv",
        "conv_hr": "HRconv",
    }
    renamed = new_layout(state)
    for new, old in words.items():
        renamed = {
            name.replace(new, old) if not (new == "body." and name.startswith("conv")) else name: x
            for name, x in renamed.items()
        }
    return renamed


def filled(net: nn.Module) -> nn.Module:
    """The network with weights that keep a signal's size, but for the mean shifts; its gates neither open nor shut."""
    torch.manual_seed(0)
    for name, p in net.named_parameters():
        if "_mean" not in name:
            p.data = torch.randn_like(p) * (1.0 / max(1, p[0].numel())) ** 0.5
            p.data *= 0.05 if "conv_du.0.weight" in name or "attention.1.weight" in name else 1
    return net.eval().requires_grad_(False)


CASES = {
    "EDSR, the authors'": ("edsr", edsr_authors, (2, 3, 4)),
    "RCAN, the authors'": ("rcan", rcan_authors, (2, 3, 4)),
    "EDSR, BasicSR's": ("basicsr", edsr_basicsr, (2, 3, 4)),
    "RCAN, BasicSR's": ("basicsr", rcan_basicsr, (2, 3, 4)),
    "MSRResNet": ("basicsr", MSRResNet, (2, 3, 4)),
    "RRDBNet": ("basicsr", esrgan, (2, 4)),
}


def difference(theirs: nn.Module, ours: nn.Module) -> float:
    """The largest between their images and ours, of [0,1] or of the largest value; borders count too."""
    lr = torch.rand(1, 3, 17, 22, generator=torch.Generator().manual_seed(1))
    wanted = theirs(lr)
    return float((UnitRange(ours.eval())(lr) - wanted).abs().max() / wanted.abs().max().clamp(1))


def built(imported) -> nn.Module:
    net = build_network(imported.model, imported.scale, imported.options).requires_grad_(False)
    net.load_state_dict(imported.state_dict)
    return net


@pytest.mark.parametrize(("name", "scale"), [(name, s) for name, case in CASES.items() for s in case[2]])
def test_the_images_are_theirs(name, scale):
    source, make, _ = CASES[name]
    theirs = filled(make(scale))
    state = new_layout(theirs.state_dict()) if name == "RRDBNet" else theirs.state_dict()
    imported = import_weights(state, source)
    assert imported.scale == scale
    assert difference(theirs, built(imported)) < 3e-6
    assert import_weights(state, source).options == imported.options and not torch.equal(
        theirs(torch.zeros(1, 3, 8, 8)), theirs(torch.ones(1, 3, 8, 8))
    )


@pytest.mark.parametrize("layout", [first_layout, new_layout, old_layout])
@pytest.mark.parametrize("scale", [2, 4])
def test_esrgan_in_each_of_its_layouts(layout, scale):
    theirs = filled(esrgan(scale))
    imported = import_weights(layout(theirs.state_dict()))
    assert (imported.model, imported.scale) == ("RRDBNet", scale)
    assert imported.options == {"channels": 8, "blocks": 2, "padding": "black"}
    assert difference(theirs, built(imported)) < 1e-6


def test_padding_alone_would_differ_at_the_border():
    """The test sees borders: grey instead of the mean, as of an EDSR of ours with default options."""
    theirs = filled(edsr_authors(2))
    imported = import_weights(theirs.state_dict(), "edsr")
    net = build_network("EDSR", 2, {k: v for k, v in imported.options.items() if k != "padding"}).requires_grad_(False)
    net.load_state_dict(imported.state_dict)
    assert difference(theirs, net) > 1e-3


@pytest.mark.parametrize("res_scale", [0.1, 0.3])
@pytest.mark.parametrize(("source", "make"), [("edsr", edsr_authors), ("basicsr", edsr_basicsr)])
def test_residual_scaling_is_folded_in(source, make, res_scale):
    theirs = filled(make(2, res_scale=res_scale))
    imported = import_weights(theirs.state_dict(), source, res_scale=res_scale)
    assert difference(theirs, built(imported)) < 3e-6
    assert difference(theirs, built(import_weights(theirs.state_dict(), source))) > 1e-3


@pytest.mark.parametrize(("channels", "assumed"), [(8, "res_scale 1,"), (256, "res_scale 0.1,")])
def test_residual_scaling_is_the_authors_by_size_and_said(channels, assumed):
    imported = import_weights(edsr_authors(2, channels, blocks=1).state_dict(), "edsr")
    assert any(line.startswith(assumed) for line in imported.assumed)


def test_weights_keep_their_size():
    """So that a training goes on with the usual rates: only biases and the gates' first weights change."""
    theirs = filled(rcan_authors(2)).state_dict()
    ours = import_weights(theirs, "rcan").state_dict
    for name, value in ours.items():
        if name.endswith(".weight") and "conv_du.0" not in name:
            assert torch.allclose(value, theirs[name], rtol=1e-6), name


@pytest.mark.parametrize("padding", ["grey", "black", "mean"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_our_edsr_in_the_authors_code(scale, padding):
    options = {"channels": 8, "blocks": 2, "padding": padding}
    ours = filled(build_network("EDSR", scale, options))
    state = to_edsr("EDSR", options, ours.state_dict())
    theirs = edsr_authors(scale).requires_grad_(False)
    theirs.load_state_dict(state)
    assert difference(theirs, ours) < 3e-6
    lr = torch.rand(1, 3, 9, 14)
    assert torch.allclose(run_edsr(state, 255 * lr) / 255, theirs(lr), atol=1e-5)
    back = import_weights(state)  # its mean shift tells whose it is
    assert back.options == {k: v for k, v in options.items() if v != "grey"} and difference(theirs, built(back)) < 3e-6


def test_wrappers_and_parallel_names():
    theirs = filled(MSRResNet(2)).state_dict()
    other = filled(MSRResNet(2)).state_dict()
    parallel = {f"module.{name}": value for name, value in theirs.items()}
    wanted = import_weights(theirs).state_dict
    for content in (parallel, {"params": theirs}, {"params_ema": parallel, "params": other}, {"state_dict": theirs}):
        found = import_weights(content)
        assert all(torch.equal(found.state_dict[name], value) for name, value in wanted.items())
    assert "the weights under params_ema" in import_weights({"params_ema": parallel, "params": other}).assumed
    half = import_weights({name: value.half() for name, value in theirs.items()}).state_dict
    assert all(value.dtype == torch.float32 for value in half.values())


REFUSED = {
    "an EDSR of unknown source": (lambda: edsr_authors(2).state_dict(), None, "an EDSR can be of two sources"),
    "another source than told": (lambda: MSRResNet(2).state_dict(), "edsr", "use --source basicsr"),
    "pixel-unshuffle": (
        lambda: new_layout(esrgan(4).state_dict()) | {"conv_first.weight": torch.zeros(8, 12, 3, 3)},
        None,
        "train it with --model spandrel:FILE",
    ),
    "no tensors": (lambda: {"epoch": 3}, None, "expected the tensors of a state dict by their names, found epoch"),
    "nothing": (dict, None, "found nothing"),
    "an unknown network": (lambda: {"a": torch.zeros(1)}, None, "names like a; expected one of"),
    "a shift of another colour": (
        lambda: edsr_authors(2).state_dict() | {"sub_mean.bias": torch.full((3,), -255 * 0.3)},
        "edsr",
        "its mean shift is by (0.3000, 0.3000, 0.3000)",
    ),
    "a shift that mixes": (
        lambda: edsr_authors(2).state_dict() | {"sub_mean.weight": torch.ones(3, 3, 1, 1)},
        "edsr",
        "no multiple of the identity",
    ),
}


@pytest.mark.parametrize(("make", "source", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_taken_is_refused(make, source, said):
    with pytest.raises(ValueError, match=".") as error:
        import_weights(make(), source)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_sources_are_told_by_names():
    assert sources_of(edsr_authors(2).state_dict()) == ["tlw", "edsr"]
    assert sources_of(rcan_authors(2, blocks=2).state_dict()) == ["rcan"]  # two blocks: a name of EDSR's too
    for make in (edsr_basicsr, rcan_basicsr, MSRResNet):
        assert sources_of(make(2).state_dict()) == ["basicsr"]
    swinir = {"conv_first.weight": 0, "conv_after_body.weight": 0, "layers.0.residual_group.blocks.0.norm1.weight": 0}
    assert sources_of(swinir) == []


@pytest.fixture
def refused(capsys):
    def run(*argv) -> str:
        with pytest.raises(SystemExit) as caught:
            convert.main([*argv])
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and err.count("\n") == 1 and not Path("run").exists()
        return err

    return run


def test_convert_asks_whose_an_edsr_is(workplace, refused, capsys):
    theirs = filled(edsr_authors(4, channels=16, blocks=1))
    torch.save(theirs.state_dict(), "edsr_x4.pt")
    err = refused("edsr_x4.pt", "--modelpath", "run")
    assert "--source tlw for the TLW authors' (BGR, [-1,1]) or --source edsr for the EDSR authors'" in err
    assert "expected" in refused("edsr_x4.pt", "--source", "basicsr", "--modelpath", "run")
    assert "--res-scale" in refused("edsr_x4.pt", "--source", "edsr", "--res-scale", "0", "--modelpath", "run")
    convert.main(["edsr_x4.pt", "--source", "edsr", "--modelpath", "run"])
    out = capsys.readouterr().out
    assert "edsr_x4.pt: taken: res_scale 1, the authors' for this size (else: --res-scale)" in out
    config, nets, _ = load_networks(Path("run"), "best")
    assert config.model_options == {"channels": 16, "blocks": 1, "padding": "mean"}
    assert difference(theirs, nets["L1"].requires_grad_(False)) < 3e-6
    convert.main(["edsr_x4.pt", "--source", "tlw", "--modelpath", "other"])
    assert difference(theirs, load_networks(Path("other"), "best")[1]["L1"].requires_grad_(False)) > 1e-3


@pytest.mark.parametrize("name", ["RCAN, the authors'", "RCAN, BasicSR's", "MSRResNet", "RRDBNet"])
def test_convert_tells_what_it_took(workplace, capsys, name):
    source, make, _ = CASES[name]
    theirs = filled(make(2))
    torch.save({"params": theirs.state_dict()}, "file.pth")
    convert.main(["file.pth", "--modelpath", "run"])
    out = capsys.readouterr().out
    assert "layout by its names" in out and "taken: the weights under params" in out
    config, nets, _ = load_networks(Path("run"), "best")
    assert difference(theirs, nets["L1"].requires_grad_(False)) < 3e-6


def test_a_folder_is_the_tlw_authors(workplace, refused):
    Path("folder").mkdir()
    assert "--source edsr: expected one file, not a folder" in refused(
        "folder", "--source", "edsr", "--modelpath", "run"
    )
