"""Trainings that begin from weights (--init RUN|FILE), and of networks that spandrel reads (--model spandrel:FILE)."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import configs
import export
import train
from models import build_network
from models.export import UnitRange
from runs.checkpoint import SR_NETWORK, load_checkpoint, load_networks
from training.initial import network_settings

NETWORK = ["--model", "EDSR", "--model-options", "blocks=1", "channels=8", "--scale", "4"]


@pytest.fixture(scope="module")
def common(images):
    """A command line without a network: two steps an epoch."""
    return [
        *("--judge", "tiny", "--metrics", "tiny", "--device", "cpu", "--patch", "32", "--batchsize", "2"),
        *("--trainpath", str(images), "--valpath", str(images), "--repeat", "1", "--endepoch", "1"),
    ]


def trainer(argv) -> train.Trainer:
    return train.Trainer(configs.load(argv, complete=network_settings))


@pytest.fixture(scope="module")
def source(common, tmp_path_factory):
    """A run of L1 and L1+TLW, EDSR x4, and its exports as safetensors and for the EDSR authors' code."""
    run = tmp_path_factory.mktemp("source") / "run"
    trainer([*NETWORK, "--losses", "L1", "L1+TLW", *common, "--modelpath", str(run)]).fit()
    for to in ("safetensors", "edsr"):
        export.main(["--modelpath", str(run), "--loss", "L1", "--to", to])
    return run


def weights(run: Path, loss: str, which: str = "last") -> dict:
    return load_networks(run, which, [loss])[1][loss].state_dict()


def equal(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(x, b[name]) for name, x in a.items())


@pytest.fixture
def refused(workplace, capsys):
    def check(*argv: str) -> str:
        before = sorted(Path(".").rglob("*"))
        with pytest.raises(SystemExit) as caught:
            train.main([*argv])
        out, err = capsys.readouterr()
        assert caught.value.code == 2 and err.count("\n") == 1 and err.startswith("train.py: error: ")
        assert sorted(Path(".").rglob("*")) == before
        return err

    return check


def test_all_learners_start_equal_from_one_loss_of_a_run(source, common, workplace):
    """The recipe: L1 first, TLW for what is left. Model, scale and options are the run's."""
    run = trainer(["--init", str(source), "--init-loss", "L1", "--losses", "L1", "L1+TLW", *common])
    assert f"init: 14 of 14 tensors from {source} (last, L1)" in run.experiment.notes
    assert run.config.model_options == {"blocks": 1, "channels": 8} and run.config.init == str(source)
    for learner in run.experiment.learners:
        assert equal(dict(learner.net.state_dict()), weights(source, "L1"))
    run.fit()
    lines = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert any(line.get("note", "").startswith("init: 14 of 14 tensors") for line in lines)


def test_best_and_last(source, common, workplace):
    state = load_checkpoint(source / "best_L1+TLW.pt")
    shutil.copytree(source, "other")
    state[SR_NETWORK] = {name: 2 * x for name, x in state[SR_NETWORK].items()}
    torch.save(state, "other/best_L1+TLW.pt")
    argv = ["--init", "other", "--init-loss", "L1+TLW", "--losses", "L1", *common]
    for flags, which in (([], "last"), (["--init-best"], "best")):
        net = trainer([*argv, *flags]).experiment.learners[0].net
        assert equal(dict(net.state_dict()), weights(Path("other"), "L1+TLW", which))
    net = trainer(["--init", "other/best_L1+TLW.pt", "--losses", "L1", *common]).experiment.learners[0].net
    assert equal(dict(net.state_dict()), weights(Path("other"), "L1+TLW", "best"))


def test_the_weighting_network_too(source, common, workplace):
    argv = ["--init", str(source), "--init-loss", "L1+TLW", "--losses", "L1", "L1+TLW", "MSE+TLW", *common]
    theirs = load_checkpoint(source / "last.pt")["learners"]["L1+TLW"]["loss"]
    for flags in ([], ["--init-weighting"]):
        learners = trainer([*argv, *flags]).experiment.learners
        for learner in learners[1:]:
            ours = {f"helper.{name}": x for name, x in learner.loss.weighting.state_dict().items()}
            assert all(torch.equal(x, theirs[name]) for name, x in ours.items()) == bool(flags)


def test_resuming_is_exact_and_needs_the_source_no_more(source, common, workplace, same_files, monkeypatch):
    shutil.copytree(source, "source")
    argv = ["--init", "source", "--init-loss", "L1+TLW", "--init-weighting", "--losses", "L1", "L1+TLW", *common]
    trainer([*argv, "--endepoch", "2", "--modelpath", "whole"]).fit()
    trainer([*argv, "--modelpath", "parts"]).fit()
    shutil.rmtree("source")
    trainer(["--load", "--modelpath", "parts", "--endepoch", "2"]).fit()
    same_files(Path("whole"), Path("parts"))


def test_another_scale_takes_what_fits(source, common, workplace):
    run = trainer(
        ["--init", str(source), "--init-loss", "L1", "--scale", "3", "--losses", "L1", *common, "--patch", "33"]
    )
    (note,) = run.experiment.notes  # x4 has two steps of upsampling, x3 one
    taken = f"init: 10 of 12 tensors from {source} (last, L1)"
    assert note == f"{taken}; upsampler: 2 tensors fresh; upsampler: 4 tensors left out"
    net, theirs = run.experiment.learners[0].net.state_dict(), weights(source, "L1")
    assert torch.equal(net["body.0.body.0.weight"], theirs["body.0.body.0.weight"])
    assert torch.equal(net["tail.1.weight"], theirs["tail.1.weight"])


def test_another_padding_keeps_the_inside(source, common, workplace):
    argv = ["--init", str(source), "--init-loss", "L1", "--model-options", "padding=black", "--losses", "L1", *common]
    run = trainer(argv)
    assert run.config.model_options == {"blocks": 1, "channels": 8, "padding": "black"}
    ours, theirs = run.experiment.learners[0].net, load_networks(source, "last", ["L1"])[1]["L1"]
    lr = torch.rand(1, 3, 40, 40) * 2 - 1
    with torch.no_grad():
        apart = (ours.eval()(lr) - theirs.eval()(lr)).abs().amax((0, 1))
    assert apart[32:-32, 32:-32].max() < 1e-5 < apart.max()


def test_from_an_export_of_ours(source, common, workplace):
    path = source / "export_L1_last.safetensors"
    run = trainer(["--init", str(path), "--losses", "L1", *common])
    assert equal(dict(run.experiment.learners[0].net.state_dict()), weights(source, "L1"))
    # the EDSR authors' layout tells whose it is by the scale of its mean shift
    run = trainer(["--init", str(source / "export_L1_last_edsr.pt"), "--losses", "L1", *common])
    with torch.no_grad():
        lr = torch.rand(1, 3, 12, 9) * 2 - 1
        wanted = load_networks(source, "last", ["L1"])[1]["L1"](lr)
        assert torch.allclose(run.experiment.learners[0].net(lr), wanted, atol=1e-5)


def test_from_a_file_of_another_toolkit(common, workplace):
    pytest.importorskip("spandrel")
    save_esrgan(Path("esrgan.pth"))
    run = trainer(["--init", "esrgan.pth", "--losses", "L1", *common])
    assert (run.config.model, run.config.scale) == ("RRDBNet", 2) and run.config.model_options["padding"] == "black"
    import spandrel

    theirs, lr = spandrel.ModelLoader().load_from_file("esrgan.pth"), torch.rand(1, 3, 12, 9)
    with torch.no_grad():
        assert torch.allclose(UnitRange(run.experiment.learners[0].net)(lr), theirs.eval().model(lr), atol=1e-6)


def test_bad_input(source, common, refused):
    Path("text.pth").write_text("weights")
    Path("text.safetensors").write_text("weights")
    torch.save({"a": torch.zeros(1)}, "unknown.pth")
    edsr = build_network("EDSR", 4, {"blocks": 1, "channels": 8})
    torch.save(edsr.state_dict(), "bare.pth")
    shutil.copytree(source, "converted")
    (Path("converted") / "last.pt").unlink(), (Path("converted") / "previous.pt").unlink(missing_ok=True)
    run = str(source)
    for argv, said in (
        (["--init", "nowhere"], "no such run or file; expected pytorch, paper, a run's folder or a file of weights"),
        (["--init", ""], "no config.yaml there"),
        (["--init", run], "holds networks of L1 L1+TLW; name one with --init-loss"),
        (["--init", run, "--init-loss", "MSE"], "unknown loss in"),
        (["--init", "converted", "--init-loss", "L1"], "--init converted: has no last.pt; add --init-best"),
        (
            ["--init", run, "--init-loss", "L1", "--model", "RCAN"],
            "has weights of EDSR; expected RCAN, as --model says",
        ),
        (["--init", run, "--init-loss", "L1", "--model-options", "channels=4"], "none of its weights fits EDSR x4"),
        (["--init", run, "--init-loss", "L1", "--init-weighting"], "name a loss with TLW: --init-loss"),
        (["--init", run, "--init-loss", "L1+TLW", "--init-weighting", "--losses", "L1"], "has a weighting network"),
        (["--init-weighting"], "--init-weighting beside --init pytorch: expected --init RUN"),
        (["--init", "text.pth"], "--init text.pth: cannot be read as a checkpoint"),
        (["--init", "text.safetensors"], "--init text.safetensors: cannot be read as safetensors"),
        (["--init", "unknown.pth"], "--init unknown.pth: names like a; expected one of"),
        (["--init", "bare.pth"], "python convert.py bare.pth --source tlw (or edsr)"),
        (["--init", "bare.pth", "--init-loss", "L1"], "one network, not a run; leave out --init-loss"),
    ):
        assert said in refused("--losses", "L1+TLW", *common, *argv)


# --- spandrel's ---


def save_esrgan(path: Path) -> Path:
    from spandrel.architectures.ESRGAN import ESRGAN

    torch.manual_seed(0)
    torch.save({"params_ema": ESRGAN(num_filters=8, num_blocks=1, scale=2).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def community(common, tmp_path_factory):
    """A file that spandrel reads, and a run of two epochs that trained it with L1 and L1+TLW."""
    pytest.importorskip("spandrel")
    folder = tmp_path_factory.mktemp("community")
    model = f"spandrel:{save_esrgan(folder / '2x_tiny.pth')}"
    argv = ["--model", model, "--losses", "L1", "L1+TLW", *common]
    trainer([*argv, "--endepoch", "2", "--modelpath", str(folder / "run")]).fit()
    return folder, argv


def test_a_community_network_learns(community, workplace):
    import spandrel

    folder, argv = community
    run = trainer(argv)
    assert run.config.scale == 2 and run.folder.name == "2x_tiny_x2_001"
    first = spandrel.ModelLoader().load_from_file(folder / "2x_tiny.pth").model.state_dict()
    for learner in run.experiment.learners:
        assert equal(dict(learner.net.spandrel.state_dict()), first)
    for loss in ("L1", "L1+TLW"):
        after = {name.removeprefix("spandrel."): x for name, x in weights(folder / "run", loss).items()}
        assert after.keys() == first.keys() and not equal(after, first)


def test_resume_is_exact_and_evaluation_needs_no_file(community, workplace, same_files):
    folder, argv = community
    moved = folder / "moved.pth"
    trainer([*argv, "--modelpath", "parts"]).fit()
    (folder / "2x_tiny.pth").rename(moved)
    try:
        trainer(["--load", "--modelpath", "parts", "--endepoch", "2"]).fit()
        same_files(folder / "run", Path("parts"))
        assert load_networks(folder / "run", "best")[1].keys() == {"L1", "L1+TLW"}
    finally:
        moved.rename(folder / "2x_tiny.pth")


def test_it_is_exported_as_spandrel_reads_it(community, workplace):
    import spandrel

    folder, argv = community
    export.main(
        ["--modelpath", str(folder / "run"), "--loss", "L1+TLW", "--to", "spandrel", "--output", "x.safetensors"]
    )
    net = load_networks(folder / "run", "last", ["L1+TLW"])[1]["L1+TLW"].eval()
    lr = torch.rand(1, 3, 9, 11)
    with torch.no_grad():
        assert torch.allclose(
            spandrel.ModelLoader().load_from_file("x.safetensors").eval().model(lr), UnitRange(net)(lr), atol=1e-6
        )
    run = trainer([*argv, "--init", "x.safetensors"])
    assert equal(dict(run.experiment.learners[0].net.state_dict()), dict(net.state_dict()))
    run = trainer(["--init", str(folder / "run"), "--init-loss", "L1+TLW", *argv[2:]])
    assert run.config.model == argv[1] and equal(
        dict(run.experiment.learners[1].net.state_dict()), dict(net.state_dict())
    )


def test_bad_files_and_losses(community, common, refused):
    folder, _ = community
    model = f"spandrel:{folder / '2x_tiny.pth'}"
    for argv, said in (
        (["--model", "spandrel:nowhere.pth"], "nowhere.pth: no such checkpoint"),
        (["--model", "spandrel:"], "no such checkpoint"),
        (["--model", model, "--scale", "4"], "is x2, not x4; use --scale 2"),
        (["--model", model, "--model-options", "blocks=2"], "the file decides the network"),
        (["--model", model, "--init", "paper"], "--init paper: expected a network of ours"),
        (
            ["--model", model, "--losses", "L1+UDL"],
            "reads the network's features, which spandrel's networks do not return",
        ),
        (
            ["--model", f"spandrel:{folder / 'run' / 'best_L1.pt'}"],
            "expected the tensors of a state dict by their names, found sr_network",
        ),
    ):
        assert said in refused("--losses", "L1", *common, *argv), argv
