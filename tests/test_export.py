"""export.py: other programs load its files and make the run's images of them; what cannot be exact is refused."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import configs
import convert
import export
from models import build_network, model_id, scales_of
from models.export import UnitRange, checksum, from_safetensors, to_onnx
from models.spandrel_network import SpandrelNetwork
from runs.checkpoint import SR_NETWORK, load_networks, save_checkpoint
from runs.weights_file import read_weights_file

HAT = {"embed": 24, "depths": [2], "heads": [2], "window": 4, "squeeze_factor": 2, "channels": 8}
TLW_HAT = {"embed": 24, "depths": [2], "heads": [2], "squeeze_factor": 2, "channels": 8}
RCAN = {"channels": 16, "groups": 2, "blocks": 2, "reduction": 2}
RRDB = {"channels": 8, "blocks": 2}
SMALL = {"channels": 8, "blocks": 2}


def network(model: str, scale: int, options: dict) -> torch.nn.Module:
    """A network whose images are not grey: weights that keep a signal's size."""
    net = build_network(model, scale, options)
    torch.manual_seed(0)
    for p in net.parameters():
        p.data = torch.randn_like(p) * (0.5 / max(1, p[0].numel())) ** 0.5
    return net.eval().requires_grad_(False)


@pytest.fixture
def run_of(workplace):
    """run_of(model, scale, options): a run's folder with such a network as the best of L1+TLW, and the network."""

    def make(model: str, scale: int, options: dict, change=lambda net: None) -> tuple[str, torch.nn.Module]:
        net = network(model, scale, options)
        change(net)
        config = configs.Config(model=model, scale=scale, model_options=options, losses=("L1+TLW",), seed=7)
        Path("run").mkdir(exist_ok=True)
        Path("run/config.yaml").write_bytes(configs.to_yaml(config))
        state = {SR_NETWORK: net.state_dict(), "model_id": model_id(model, scale, options), "judges": [], "step": 12}
        save_checkpoint(state, Path("run/best_L1+TLW.pt"))
        return "run", net

    return make


def exported(run: str, to: str, *flags: str) -> Path:
    export.main(["--modelpath", run, "--best", "--to", to, "--output", f"out{export.FORMATS[to].suffixes[0]}", *flags])
    return Path(f"out{export.FORMATS[to].suffixes[0]}")


@pytest.fixture
def refused(capsys):
    """refused(*argv): the one line that export.py says, with code 2 and nothing written."""

    def check(*argv: str) -> str:
        before = sorted(Path(".").rglob("*"))
        with pytest.raises(SystemExit) as caught:
            export.main([*argv])
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and err.count("\n") == 1 and err.startswith("export.py: error: ")
        assert sorted(Path(".").rglob("*")) == before
        return err

    return check


def images(size=(1, 3, 19, 26)) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(3))


def far(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.detach() - wanted).abs().max() / wanted.abs().max().clamp(1))


CONVOLUTIONAL = [
    ("EDSR", SMALL | {"padding": "mean"}),
    ("RCAN", RCAN),
    ("VDSR", SMALL),
    ("SRResNet", SMALL | {"padding": "black"}),
    ("RRDBNet", RRDB | {"growth": 4}),
]


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
@pytest.mark.parametrize(("model", "options"), CONVOLUTIONAL, ids=[model for model, _ in CONVOLUTIONAL])
def test_onnx_by_onnxruntime(model, options, scale):
    ort = pytest.importorskip("onnxruntime")
    if scale not in scales_of(model):
        pytest.skip(f"{model} does not come in x{scale}")
    net = network(model, scale, options)
    session = ort.InferenceSession(to_onnx(net, {"network": model}))
    for size in ((1, 3, 24, 40), (1, 3, 5, 3), (1, 3, 40, 17)):  # the export's own image is another still
        found = session.run(["sr"], {"lr": images(size).numpy()})[0]
        assert far(torch.from_numpy(found), UnitRange(net)(images(size))) < 5e-6


def test_the_command_writes_onnx(run_of, capsys):
    ort, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    run, net = run_of("EDSR", 4, SMALL)
    path = exported(run, "onnx", "--loss", "L1+TLW")
    out = capsys.readouterr().out
    assert "EDSR x4, L1+TLW (best): out.onnx" in out and "checked: run by onnxruntime" in out and "next: " in out
    session = ort.InferenceSession(path)
    found = session.run(["sr"], {"lr": images().numpy()})[0]
    assert found.dtype == np.float32 and far(torch.from_numpy(found), UnitRange(net)(images())) < 5e-6
    assert session.get_inputs()[0].shape == [1, 3, "height", "width"]
    about = session.get_modelmeta().custom_metadata_map
    assert (about["network"], about["scale"], about["loss"], about["step"]) == ("EDSR", "4", "L1+TLW", "12")
    assert about["checksum"] == checksum(net.state_dict()) and json.loads(about["training"])["seed"] == 7
    assert [x.version for x in onnx.load(path).opset_import] == [17] and [*Path(".").glob("out*")] == [path]


SPANDREL = {
    "RCAN x2": ("RCAN", 2, RCAN),
    "RCAN x3": ("RCAN", 3, RCAN | {"padding": "black"}),
    "RCAN x4 in two steps": ("RCAN", 4, RCAN | {"upsample": "two-step"}),
    "RCAN x8 in three steps": ("RCAN", 8, RCAN | {"upsample": "two-step"}),
    "HAT x2": ("HAT", 2, HAT),
    "HAT x3": ("HAT", 3, HAT),
    "HAT-TLW x4": ("HAT-TLW", 4, TLW_HAT),
    "RRDBNet x2": ("RRDBNet", 2, RRDB | {"padding": "black"}),
    "RRDBNet x4": ("RRDBNet", 4, RRDB | {"padding": "black"}),
}


@pytest.mark.parametrize(("model", "scale", "options"), SPANDREL.values(), ids=SPANDREL)
def test_spandrel_makes_the_same_images(run_of, model, scale, options):
    spandrel = pytest.importorskip("spandrel")
    run, net = run_of(model, scale, options)
    found = spandrel.ModelLoader().load_from_file(exported(run, "spandrel")).eval()
    assert found.scale == scale and found.input_channels == 3
    lr = images()
    assert far(found.model(lr.clone()), UnitRange(net)(lr)) < 3e-6
    assert torch.equal(found(lr.clone()), found.model(lr.clone()).clamp(0, 1))  # its RCAN writes into what it is given
    assert UnitRange(net)(lr).std() > 0.01
    with safe_open("out.safetensors", "pt") as file:
        assert file.metadata()["checksum"] == checksum(net.state_dict()) and file.metadata()["network"] == model


def test_warnings_of_spandrel_s_networks_are_not_the_user_s(run_of, monkeypatch):
    """Building HAT there has torch warn of its meshgrid, in the midst of what the command prints."""
    spandrel = pytest.importorskip("spandrel")
    load = spandrel.ModelLoader.load_from_state_dict

    def warning(self, state_dict):
        warnings.warn("torch.meshgrid: in an upcoming release", stacklevel=2)
        return load(self, state_dict)

    monkeypatch.setattr(spandrel.ModelLoader, "load_from_state_dict", warning)
    run, _ = run_of("RCAN", 2, RCAN)
    with warnings.catch_warnings(record=True, action="always") as said:
        SpandrelNetwork(load_file(exported(run, "spandrel")))
    assert not [x for x in said if "meshgrid" in str(x.message)]


@pytest.mark.parametrize(("model", "scale", "options"), SPANDREL.values(), ids=SPANDREL)
def test_what_spandrel_reads_comes_back(run_of, model, scale, options):
    """convert.py on an export: the network that it was."""
    pytest.importorskip("spandrel")
    run, net = run_of(model, scale, options)
    convert.main([str(exported(run, "spandrel")), "--modelpath", "back"])
    config, nets, _ = load_networks(Path("back"), "best")
    assert far(UnitRange(nets["L1"].eval())(images()), UnitRange(net)(images())) < 3e-6
    assert config.scale == scale and (config.model_options or {}).get("padding", "grey") == options.get(
        "padding", "grey"
    )


@pytest.mark.parametrize(("model", "options"), [("RCAN", RCAN), ("RRDBNet", RRDB), ("HAT", HAT), ("EDSR", SMALL)])
def test_spandrel_refuses_our_checkpoints(run_of, model, options):
    """They are for [-1,1], which spandrel would not notice; so is our safetensors file, which takes [0,1] by itself."""
    spandrel = pytest.importorskip("spandrel")
    run, _ = run_of(model, 2, options)
    save_checkpoint({"learners": {"L1+TLW": torch.load("run/best_L1+TLW.pt")}}, Path("last.pt"))
    for path in (Path("run/best_L1+TLW.pt"), Path("last.pt"), exported(run, "safetensors")):
        with pytest.raises(spandrel.UnsupportedModelError):
            spandrel.ModelLoader().load_from_file(path)


@pytest.mark.parametrize("model", ["EDSR", "HAT"])
def test_safetensors_and_our_network(run_of, model):
    run, net = run_of(model, 2, HAT if model == "HAT" else SMALL)
    path = exported(run, "safetensors")
    tensors, metadata = read_weights_file(path)
    assert torch.equal(from_safetensors(tensors, metadata)(images()), UnitRange(net)(images()))
    tensors["network.conv_last.bias" if model == "HAT" else "network.tail.1.bias"][0] += 1e-3
    with pytest.raises(ValueError, match="wrong checksum"):
        from_safetensors(tensors, metadata)
    with pytest.raises(ValueError, match="the metadata lacks"):
        from_safetensors(tensors, {})


def test_fp16(run_of, capsys):
    pytest.importorskip("spandrel"), pytest.importorskip("onnxruntime")
    run, net = run_of("RCAN", 2, RCAN)
    for to in ("safetensors", "onnx", "spandrel"):
        sizes = [exported(run, to, "--overwrite", *flags).stat().st_size for flags in ([], ["--fp16"])]
        assert sizes[1] < 0.7 * sizes[0]
        assert "(half precision)" in capsys.readouterr().out
    with safe_open("out.safetensors", "pt") as file:
        kinds = {file.get_tensor(name).dtype for name in file.keys() if "mean" not in name}
        assert kinds == {torch.half} and file.get_tensor("sub_mean.weight").dtype == torch.float32


def test_edsr_carries_metadata(run_of):
    run, net = run_of("EDSR", 2, SMALL)
    state = torch.load(exported(run, "edsr"), weights_only=True)
    assert state._metadata[""]["network"] == "EDSR" and state._metadata[""]["checksum"] == checksum(net.state_dict())
    assert {name.split(".")[0] for name in state} == {"sub_mean", "head", "body", "tail", "add_mean"}


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("to", ["edsr", "onnx", "safetensors"])
def test_edsr_x1_and_x8(run_of, to, scale, capsys):
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    run, _ = run_of("EDSR", scale, SMALL)
    exported(run, to)
    assert f"EDSR x{scale}, L1+TLW (best)" in capsys.readouterr().out


def converted_mean(net):
    net.mean.copy_(torch.tensor([0.404, 0.4371, 0.4488]).view(1, 3, 1, 1))


REFUSED = {
    "RCAN x4 in one step": ("RCAN", 4, RCAN, "spandrel", "--model-options upsample=two-step"),
    "RRDBNet x3": ("RRDBNet", 3, RRDB | {"padding": "black"}, "spandrel", "use --to onnx or --to safetensors"),
    "RRDBNet padded with grey": ("RRDBNet", 4, RRDB, "spandrel", "--model-options padding=black"),
    "RRDBNet of another growth": ("RRDBNet", 4, RRDB | {"growth": 4, "padding": "black"}, "spandrel", "growth=32 only"),
    "HAT of another conv_scale": ("HAT", 2, HAT | {"conv_scale": 0.1}, "spandrel", "conv_scale=0.01"),
    "EDSR": ("EDSR", 2, SMALL, "spandrel", "spandrel has no EDSR; use --to onnx, safetensors or edsr"),
    "VDSR": ("VDSR", 2, SMALL, "spandrel", "spandrel has no VDSR; use --to onnx, safetensors"),
    "VDSR as EDSR": ("VDSR", 2, SMALL, "edsr", "the EDSR authors' code has no VDSR; use --to onnx"),
    "HAT as ONNX": ("HAT", 2, HAT, "onnx", "HAT lays out its windows by the image's size"),
}


@pytest.mark.parametrize(("model", "scale", "options", "to", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exact_is_refused(run_of, refused, model, scale, options, to, said):
    run, _ = run_of(model, scale, options)
    assert said in refused("--modelpath", run, "--best", "--to", to)


def test_a_hat_of_the_tlw_authors_is_refused(run_of, refused):
    run, _ = run_of("HAT-TLW", 4, TLW_HAT, converted_mean)
    assert "another mean (the TLW authors'); use --to safetensors" in refused(
        "--modelpath", run, "--best", "--to", "spandrel"
    )
    exported(run, "safetensors")


def test_a_file_that_gives_other_images_is_not_written(run_of, refused, monkeypatch):
    """Whatever a layout has overlooked is found by the comparison."""
    pytest.importorskip("spandrel")
    run, _ = run_of("RCAN", 2, RCAN)
    right = export.to_spandrel
    monkeypatch.setattr(export, "to_spandrel", lambda *of: {k: 1.001 * v for k, v in right(*of).items()})
    err = refused("--modelpath", run, "--best", "--to", "spandrel", "--output", "x.safetensors")
    assert "its images differ from the run's by up to" in err and "use --to safetensors" in err


def test_bad_input(run_of, refused):
    run, _ = run_of("EDSR", 2, SMALL)
    best = ("--modelpath", run, "--best", "--to", "safetensors")
    Path("there.safetensors").write_text("mine")
    Path("folder.safetensors").mkdir()
    for argv, said in (
        (("--modelpath", run, "--to", "safetensors"), "last.pt: no such checkpoint"),
        ((*best, "--loss", "L2"), "unknown loss in run 'L2'"),
        ((*best, "--output", "x.onnx"), "--output x.onnx: expected a file that ends in .safetensors"),
        ((*best, "--output", "x"), "expected a file that ends in"),
        ((*best, "--output", ""), '--output "": expected a file, such as network.safetensors'),
        ((*best, "--output", "there.safetensors"), "add --overwrite, or name another"),
        ((*best, "--output", "folder.safetensors", "--overwrite"), "expected a file, not a folder"),
        ((*best, "--output", "there.safetensors/x.safetensors"), "a folder that can be written to"),
        (("--modelpath", "nowhere", "--to", "onnx"), "--modelpath nowhere: no config.yaml there"),
        (("--modelpath", "", "--to", "onnx"), '--modelpath "": expected a run\'s folder'),
        (("--to", "onnx"), "no run in"),
        (("--modelpath", run, "--to", "tflite"), "invalid choice: 'tflite'"),
        (("--modelpath", run), "required: --to"),
    ):
        assert said in refused(*argv)
    Path("there.safetensors").write_text("mine")
    export.main([*best, "--output", "there.safetensors", "--overwrite"])
    assert Path("there.safetensors").stat().st_size > 100


def test_two_losses_have_to_be_told_apart(run_of, refused):
    run, _ = run_of("EDSR", 2, SMALL)
    config = configs.from_mapping(configs.read_yaml("run/config.yaml") | {"losses": ["L1+TLW", "L1"]})
    Path("run/config.yaml").write_bytes(configs.to_yaml(config))
    save_checkpoint(torch.load("run/best_L1+TLW.pt"), Path("run/best_L1.pt"))
    assert "--loss: run holds networks of L1+TLW L1; name one" in refused("--modelpath", run, "--best", "--to", "onnx")
    export.main(["--modelpath", run, "--best", "--loss", "L1", "--to", "safetensors"])
    assert Path("run/export_L1_best.safetensors").is_file()


@pytest.mark.parametrize(("to", "package"), [("onnx", "onnx"), ("onnx", "onnxruntime"), ("spandrel", "spandrel")])
def test_a_missing_package_is_named(run_of, refused, monkeypatch, to, package):
    pytest.importorskip(package)
    run, _ = run_of("RCAN", 2, RCAN)
    monkeypatch.setitem(__import__("sys").modules, package, None)
    assert f"pip install {'onnx onnxruntime' if to == 'onnx' else to}" in refused(
        "--modelpath", run, "--best", "--to", to
    )
