"""Released checkpoints -> a run that val.py reads."""

import json
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

import configs
import convert
import val
from losses import LOSSES
from losses.uncertainty import UncertaintyHead
from losses.weighting import WeightingNet
from metrics.evaluate import evaluate
from models import SR_MODELS
from models.released import from_released_tlw
from runs.checkpoint import load_checkpoint, load_last, load_networks
from runs.evaluations import read_evaluations
from training.validation import read_validation_set

GOLDEN = np.load(Path(__file__).parent / "golden" / "models_golden.npz")
KEYS = json.loads(GOLDEN["keys"].tobytes())


def random_state(shapes: dict, seed: int = 0) -> dict[str, torch.Tensor]:
    """Small random parameters of these names and shapes, and HAT's tables of indices as they are."""
    random = torch.Generator().manual_seed(seed)
    tables = (
        {f"net.{k}": v for k, v in SR_MODELS["HAT-TLW"](scale=4).state_dict().items()}
        if any("index" in name for name in shapes)
        else {}
    )
    return {
        name: tables[name]
        if "index" in name
        else torch.randn(shape, generator=random) * (0.5 / max(1, prod(shape[1:]))) ** 0.5
        for name, shape in shapes.items()
        if "num_batches" not in name
    }


def released_folder(folder: Path, network="EDSR_x4", tags=("tlw1", "l1"), both=True, weighting=True) -> Path:
    """A folder as the TLW authors publish it, with random weights."""
    folder.mkdir()
    for seed, tag in enumerate(tags):
        for suffix in ("_best", "") if both else ("_best",):
            torch.save(random_state(KEYS[network], seed + len(suffix)), folder / f"SRModel_{tag}{suffix}.pth")
            if weighting and tag.startswith("tlw"):
                torch.save(weighting_state(seed + len(suffix)), folder / f"WNet_{tag}{suffix}.pth")
    return folder


def weighting_state(seed):
    shapes = {name: tuple(value.shape) for name, value in WeightingNet().state_dict().items()}
    state = random_state(shapes, seed)
    state = {name: value.abs() + 0.1 if name.endswith("running_var") else value for name, value in state.items()}
    return state | {name: torch.tensor(7) for name in shapes if "num_batches" in name}


def test_the_commands_shown_are_for_a_shell(workplace, capsys):
    """As for folders with a space in their names."""
    released_folder(workplace / "of others")
    with pytest.raises(SystemExit):
        val.main(["--modelpath", "of others", "--device", "cpu"])
    assert capsys.readouterr().err.endswith(f"python {convert.__file__} 'of others'\n")
    convert.main(["of others", "--modelpath", "my run"])
    assert f"next: python {val.__file__} --modelpath 'my run' --best" in capsys.readouterr().out


def test_a_released_folder_becomes_a_run(workplace, images, capsys):
    released_folder(workplace / "released")
    convert.main(["released", "--modelpath", "run"])
    out, err = capsys.readouterr()
    assert err == "" and "EDSR x4: 2 best and 2 last networks written to run" in out
    assert f"next: python {val.__file__} --modelpath run --best" in out
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml", "best_L1+TLW.pt", "best_L1.pt", "last.pt"}

    for flags in (["--best"], []):
        val.main(["--modelpath", "run", "--folder", str(images), "--lpips", "--device", "cpu", *flags])
        result = read_evaluations(Path("run/val.json"))[-1]
        assert [row["loss"] for row in result["rows"]] == ["bicubic", "L1+TLW", "L1"]
        # the numbers are those of the released network, seen through BGR
        name = "SRModel_l1_best.pth" if flags else "SRModel_l1.pth"
        net = SR_MODELS["EDSR"](scale=4)
        net.load_state_dict(from_released_tlw(torch.load(f"released/{name}"), "EDSR"))
        expected = evaluate(net, read_validation_set([images], 4, "paper"), {}, "paper")
        found = [image["PSNR-Y"] for image in result["rows"][2]["per_image"].values()]
        assert found == pytest.approx(expected["PSNR-Y"], abs=1e-6)


def test_the_channels_are_swapped(workplace):
    released_folder(workplace / "released", tags=("l1",))
    convert.main(["released", "--modelpath", "run"])
    theirs = torch.load("released/SRModel_l1_best.pth")
    ours = load_checkpoint(Path("run/best_L1.pt"))["sr_network"]
    assert torch.equal(ours["head.0.weight"], theirs["head.0.weight"][:, [2, 1, 0]])
    assert torch.equal(ours["tail.1.bias"], theirs["tail.1.bias"][[2, 1, 0]])


def test_the_weighting_network_goes_along(workplace):
    released_folder(workplace / "released", tags=("tlw1", "tlw2", "l1", "mse"), both=False)
    convert.main(["released", "--modelpath", "run"])
    assert not Path("run/last.pt").exists()
    random = torch.Generator().manual_seed(0)
    hr, sr = (torch.rand(1, 3, 24, 24, generator=random) * 2 - 1 for _ in range(2))
    for tag, loss in (("tlw1", "L1+TLW"), ("tlw2", "MSE+TLW")):
        state = load_checkpoint(Path(f"run/best_{loss}.pt"))["loss"]
        ours, theirs = WeightingNet().eval(), WeightingNet().eval()
        missing, unexpected = ours.load_state_dict(
            {k.removeprefix("helper."): v for k, v in state.items()}, strict=False
        )
        assert not unexpected and all("num_batches" in name for name in missing)
        theirs.load_state_dict(torch.load(f"released/WNet_{tag}_best.pth"), strict=False)
        with torch.no_grad():
            assert torch.allclose(ours(hr, sr, 0.4), theirs(hr.flip(1), sr.flip(1), 0.4).flip(1), atol=1e-6)
    for loss in ("L1", "MSE"):
        assert "loss" not in load_checkpoint(Path(f"run/best_{loss}.pt"))


def test_without_weighting_networks(workplace):
    released_folder(workplace / "released", tags=("tlw1",), weighting=False)
    convert.main(["released", "--modelpath", "run"])
    assert "loss" not in load_checkpoint(Path("run/best_L1+TLW.pt"))


@pytest.mark.parametrize("network", ["EDSR_x2", "EDSR_x3", "RCAN_x2", "HAT_x4"])
def test_model_and_scale_are_read_off(workplace, network):
    released_folder(workplace / "released", network, tags=("l1",), both=False)
    convert.main(["released"])
    model, scale = network.replace("HAT", "HAT-TLW").split("_x")
    run = Path(f"checkpoints/{model}_x{scale}_001")
    config = load_networks(run, "best")[0]
    assert (config.model, config.scale, config.losses) == (model, int(scale), ("L1",))


def test_vdsr_needs_the_scale(workplace, capsys):
    released_folder(workplace / "released", "VDSR_x3", tags=("mse",))
    with pytest.raises(SystemExit) as caught:
        convert.main(["released"])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and err.count("\n") == 1 and "add --scale" in err
    assert not Path("checkpoints").exists()
    convert.main(["released", "--scale", "3"])
    assert load_networks(Path("checkpoints/VDSR_x3_001"), "last")[0].scale == 3


def test_numbering_and_one_file(workplace):
    released_folder(workplace / "released", tags=("l1",), both=False)
    for _ in range(2):
        convert.main(["released/SRModel_l1_best.pth"])
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["EDSR_x4_001", "EDSR_x4_002"]


@pytest.fixture
def uhat(workplace, monkeypatch):
    """A small UHAT as the TLW authors release theirs, with random weights."""
    small = dict(
        embed=12, depths=(1,), heads=(2,), window=4, channels=8, compress_ratio=3, squeeze_factor=6, overlap_ratio=0.0
    )
    HAT = SR_MODELS["HAT-TLW"].func
    monkeypatch.setitem(SR_MODELS, "HAT-TLW", lambda scale: HAT(scale, **small))
    torch.manual_seed(0)
    body = {f"net.{name}": value for name, value in HAT(4, **small).state_dict().items() if name != "mean"}
    return body | {f"u_estimator.{name}": value for name, value in UncertaintyHead(8, 4, "tlw").state_dict().items()}


@pytest.mark.parametrize("source", ["released", "released/SRModel_udl_best.pth", "any_name.pth"])
def test_uhat_becomes_a_run_of_udl(uhat, images, capsys, source):
    Path("released").mkdir()
    torch.save(uhat, "released/SRModel_udl_best.pth")
    torch.save(uhat, "any_name.pth")
    convert.main([source, "--scale", "4", "--modelpath", "run"])
    out, err = capsys.readouterr()
    assert err == "" and "left out" not in out and "HAT-TLW x4: 1 best" in out
    assert {path.name for path in Path("run").iterdir()} == {"config.yaml", "best_L1+UDL.pt"}

    val.main(["--modelpath", "run", "--best", "--folder", str(images), "--lpips", "--device", "cpu"])
    net = SR_MODELS["HAT-TLW"](scale=4)
    net.load_state_dict(from_released_tlw({name: x for name, x in uhat.items() if name.startswith("net.")}, "HAT-TLW"))
    expected = evaluate(net, read_validation_set([images], 4, "paper"), {}, "paper")
    (result,) = read_evaluations(Path("run/val.json"))
    (row,) = [row for row in result["rows"] if row["loss"] == "L1+UDL"]
    found = [image["PSNR-Y"] for image in row["per_image"].values()]
    assert found == pytest.approx(expected["PSNR-Y"], abs=1e-6)

    config, nets, *_ = load_networks(Path("run"), "best")
    loss = LOSSES["L1+UDL"](config, nets["L1+UDL"])
    missing, unexpected = loss.load_state_dict(load_checkpoint(Path("run/best_L1+UDL.pt"))["loss"], strict=False)
    assert not unexpected and all(name.startswith("frozen.") for name in missing if name != "_extra_state")
    assert all(torch.equal(value, uhat[f"u_estimator.{name}"]) for name, value in loss.head.state_dict().items())


def test_an_uncertainty_head_without_use_is_said(uhat, capsys):
    Path("released").mkdir()
    torch.save(uhat, "released/SRModel_l1.pth")
    convert.main(["released", "--modelpath", "run"])
    assert (
        "left out: the uncertainty head in released/SRModel_l1.pth, for which L1 has no use" in capsys.readouterr().out
    )
    assert "loss" not in load_last(Path("run"))[0]["learners"]["L1"]


@pytest.mark.parametrize(
    "name, value, said",
    [
        (
            "u_estimator.1.weight",
            None,
            "HAT-TLW x4 (5 entries do not fit: u_estimator.1.bias (8) is not expected; u_est",
        ),
        (
            "u_estimator.3.bias",
            None,
            "not a checkpoint of UHAT's uncertainty head (1 entries do not fit: 3.bias (8) is missing)",
        ),
        (
            "u_estimator.5.weight",
            torch.zeros(3, 8, 3, 3),
            "UHAT's uncertainty head (1 entries do not fit: 5.weight is 3x8x3x3, expected 1x8x3x3)",
        ),
        (
            "u_estimator.7.weight",
            torch.zeros(1),
            "UHAT's uncertainty head (1 entries do not fit: 7.weight (1) is not expected)",
        ),
        ("net.conv_last.bias", None, "HAT-TLW x4 (1 entries do not fit: conv_last.bias (3) is missing)"),
        ("net.norm.bias", torch.zeros(5), "HAT-TLW x4 (1 entries do not fit: norm.bias is 5, expected 12)"),
    ],
)
def test_a_damaged_uhat_is_refused(uhat, capsys, name, value, said):
    changed = {key: x for key, x in (uhat | {name: value}).items() if x is not None}
    torch.save(changed, "uhat.pth")
    with pytest.raises(SystemExit) as caught:
        convert.main(["uhat.pth"])
    out, err = capsys.readouterr()
    assert (
        caught.value.code == 2
        and err.count("\n") == 1
        and err.startswith("convert.py: error: uhat.pth: ")
        and said in err
    )
    assert not Path("checkpoints").exists()


def test_hat_of_sizes_that_do_not_fit(workplace, capsys):
    net = SR_MODELS["HAT"](
        4, embed=12, depths=(1,), heads=(2,), window=4, channels=8, compress_ratio=3, squeeze_factor=6
    )
    theirs = {name: value for name, value in net.state_dict().items() if name != "mean"}
    name = "layers.0.residual_group.blocks.0.conv_block.cab.0.weight"
    torch.save({"params": theirs | {name: torch.zeros(50, 12, 3, 3)}}, "HAT_SRx4.pth")
    with pytest.raises(SystemExit):
        convert.main(["HAT_SRx4.pth", "--modelpath", "run"])
    err = capsys.readouterr().err
    assert err == (
        "convert.py: error: HAT_SRx4.pth: its attention has 50 of 12 channels; expected a HAT file's sizes\n"
    )


@pytest.mark.parametrize("key", ["params_ema", "params", None])
def test_published_hat(workplace, key):
    small = dict(embed=12, depths=(1,), heads=(2,), window=4, channels=8, compress_ratio=3, squeeze_factor=6)
    torch.manual_seed(0)
    reference = SR_MODELS["HAT"](4, **small).eval()
    theirs = {name: value.clone() for name, value in reference.state_dict().items() if name != "mean"}
    torch.save({key: theirs} if key else theirs, "HAT_SRx4.pth")
    convert.main(["HAT_SRx4.pth", "--modelpath", "run"])
    config, nets, *_ = load_networks(Path("run"), "best")
    assert (config.model, config.scale) == ("HAT", 4)
    lr = torch.rand(1, 3, 8, 8)
    reference.mean.copy_(torch.tensor([0.4488, 0.4371, 0.4040]).view(1, 3, 1, 1))  # their network works in [0,1]
    with torch.no_grad():
        assert torch.allclose(nets["L1"].eval()(2 * lr - 1), 2 * reference(lr) - 1, atol=1e-5)


def test_the_settings_can_be_read_back(workplace):
    released_folder(workplace / "released", tags=("tlw1", "l1"))
    convert.main(["released", "--modelpath", "run"])
    config = configs.load(["--config", "run/config.yaml"])
    assert (config.model, config.losses) == ("EDSR", ("L1+TLW", "L1")) and not config.load
