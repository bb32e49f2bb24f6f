"""Bad input: exit code 2, one line on stderr that says what is wrong, and nothing written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import convert
import train
import val
from models import SR_MODELS

ROOT = Path(__file__).parents[1]
PROGRAMS = {"train.py": train.main, "val.py": val.main, "convert.py": convert.main}


class Bomb:
    """Unpickling it runs code: it makes the folder `ran`."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_args):
    """A finished run of one epoch; for reading only."""
    folder = tmp_path_factory.mktemp("run") / "run"
    config = train.configs.load([*tiny_args, "--losses", "L1", "--modelpath", str(folder)])
    train.Trainer(config).fit()
    return folder


def released(network_shapes: dict, path: Path, **change):
    path.parent.mkdir(exist_ok=True)
    torch.save({name: torch.zeros(shape) for name, shape in network_shapes.items()} | change, path)


def edsr_shapes(scale=2) -> dict:
    return {name: tuple(value.shape) for name, value in SR_MODELS["EDSR"](scale=scale).state_dict().items()}


@pytest.fixture
def place(workplace, images, run_folder, squeeze_file, alex_file):
    """A working folder full of traps."""
    for link, target in (("good", images), ("squeeze.pth", squeeze_file), ("alexnet.pth", alex_file)):
        (workplace / link).symlink_to(target)
    for name in ("empty", "words", "cut", "fake", "tiny", "small", "bad_lr", "same/good"):
        (workplace / name).mkdir(parents=True)
    data = (images / "coffee.png").read_bytes()
    (workplace / "words/readme.txt").write_text("no image")
    (workplace / "cut/coffee.png").write_bytes(data[: len(data) // 2])
    (workplace / "fake/coffee.png").write_text("no image")
    (workplace / "file").write_text("a file")
    (workplace / "same/good/a.png").write_bytes(data)
    for name, size in (("tiny", 11), ("small", 12)):
        Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(workplace / name / "dot.png")
    for path in images.iterdir():
        Image.new("RGB", (5, 5)).save(workplace / "bad_lr" / path.name)

    def copy_run(name):
        folder = workplace / name
        folder.mkdir()
        for path in run_folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        return folder

    copy_run("run")
    for name, old, new in (
        ("other_options", "blocks: 1", "blocks: 2"),
        ("bad_settings", "model: EDSR", "modle: EDSR"),
        ("other_scale", "scale: 4", "scale: 2"),
        ("other_model", "model: EDSR", "model: RCAN"),
    ):
        file = copy_run(name) / "config.yaml"
        file.write_text(file.read_text().replace(old, new))
    (copy_run("no_settings") / "config.yaml").unlink()
    for name in ("last.pt", "best_L1.pt"):
        torch.save({"learners": {"L1": {"net": Bomb()}}, "net": Bomb()}, copy_run("malicious" + name) / name)
        (copy_run("empty_" + name) / name).write_bytes(b"")
    (copy_run("no_last") / "last.pt").unlink()
    (copy_run("no_best") / "best_L1.pt").unlink()
    torch.save({"0.weight": Bomb()}, workplace / "bomb.pth")
    (workplace / "garbage.pth").write_bytes(b"garbage")
    torch.save([1, 2], workplace / "list.pth")
    torch.save({"x": torch.zeros(3)}, workplace / "unknown.pth")

    shapes = edsr_shapes()
    released(shapes, workplace / "official/SRModel_l1_best.pth")
    released(shapes, workplace / "mixed/SRModel_l1_best.pth")
    released(edsr_shapes(3), workplace / "mixed/SRModel_mse_best.pth")
    released(shapes, workplace / "misshapen/SRModel_l1_best.pth", **{"head.0.bias": torch.zeros(7)})
    released({k: v for k, v in shapes.items() if k != "head.0.weight"}, workplace / "lacking/SRModel_l1_best.pth")
    released(shapes, workplace / "not_wnet/SRModel_tlw1_best.pth")
    released(shapes, workplace / "not_wnet/WNet_tlw1_best.pth")
    released({"conv1.0.weight": (64, 3, 3, 3)}, workplace / "vdsr/SRModel_l1_best.pth")
    return workplace


def tree(folder: Path) -> dict:
    """Every file and folder below, with what a write would change."""
    return {p: (p.lstat().st_mtime_ns, p.lstat().st_size) for p in folder.rglob("*")}


def refused(place, capsys, program, words: str) -> str:
    """Run a command line that must be refused; the line on stderr."""
    before = tree(place)
    with pytest.raises(SystemExit) as caught:
        PROGRAMS[program](words.split())
    err = capsys.readouterr().err
    assert caught.value.code == 2
    assert err.count("\n") == 1 and err.startswith(f"{program}: error: "), err
    assert tree(place) == before, "something was written"
    return err


# The options that every command line of train.py below has; later ones win.
TRAIN = (
    "--model EDSR --model-options blocks=1 channels=8 --scale 4 --losses L1 --judge lpips-squeeze --judge-weights squeeze.pth "
    "--device cpu --trainpath good --valpath good --patch 32 --batchsize 2 --repeat 1 --endepoch 1 "
)


@pytest.mark.parametrize(
    "words, expected",
    [
        # folders and images
        ("--trainpath nowhere", "folder nowhere does not exist"),
        ("--valpath nowhere", "folder nowhere does not exist"),
        ("--trainpath good nowhere", "folder nowhere does not exist"),
        ("--trainpath empty", "no images in empty"),
        ("--valpath words", "no images in words"),
        ("--trainpath file", "file is a file; expected a folder"),
        ("--trainpath skimage:cofee", "'cofee' is no photograph of scikit-image"),
        ("--trainpath cut", "cannot read image cut/coffee.png"),
        ("--valpath cut", "cannot read image cut/coffee.png"),
        ("--valpath fake", "cannot read image fake/coffee.png"),
        ("--trainpath tiny", "dot.png is 8x8 after cropping, smaller than patch=32"),
        ("--valpath tiny", "tiny/dot.png is 11x11, smaller than 12x12"),
        ("--patch 52", "smaller than patch=52"),
        ("--patch 400 --skip-small", "smaller than patch=400"),
        ("--patch 34", "patch=34 is not divisible by scale=4; use 32"),
        ("--lrpath nowhere", "folder nowhere does not exist"),
        ("--vallrpath good good", "--vallrpath good good: expected one folder for each of --valpath"),
        ("--lrpath bad_lr", "bad_lr/astronaut.png, LR partner of good/astronaut.png, is 5x5; expected 12x15"),
        ("--lrpath small", "good/astronaut.png has no LR partner"),
        # names
        ("--model edsr", "unknown model 'edsr'; did you mean EDSR?"),
        ("--model HATT", "did you mean HAT?"),
        ("--losses L1+TWL", "unknown loss 'L1+TWL'; did you mean L1+TLW?"),
        ("--losses L1 L1", "each loss once"),
        ("--judge lpips-alexx", "unknown judge 'lpips-alexx'; did you mean lpips-alex?"),
        ("--lpips squeze", "did you mean squeeze?"),
        ("--trianpath x", "unknown argument --trianpath; did you mean --trainpath?"),
        ("--protocol std", "--protocol"),
        ("--schedule cosin", "--schedule"),
        # the network's own options
        ("--model-options block=2", "block"),
        ("--model-options blocks=many", "--model-options"),
        ("--model-options channels=1.5", "--model-options"),
        ("--model-options scale=2", "--model-options"),
        ("--model-options blocks", "expected NAME=VALUE"),
        ("--model-options channels=-1", "--model-options"),
        (
            "--model-options blocks=1000000000",
            "blocks=1000000000: expected a whole number from 1 to 4096; the options of EDSR",
        ),
        ("--model-options channels=0", "--model-options"),
        ("--model HAT --model-options heads=[0] depths=[1]", "--model-options"),
        ("--model HAT --model-options embed=10 heads=[3] depths=[1]", "--model-options"),
        # values
        ("--samples 0", "--samples 0"),
        ("--eps nan", "--eps nan"),
        ("--learning-rate inf", "--learning-rate inf"),
        ("--k-start 0.95", "--k-end"),
        ("--scale 5", "--scale"),
        ("--batchsize two", "--batchsize"),
        ("--seed -1", "--seed -1"),
        (f"--seed {2**70}", "--seed"),
        # machines and weights
        ("--device cuda:7", "--device cuda:7"),
        ("--device gpu", "--device gpu"),
        ("--device meta", "--device meta"),
        ("--losses L1+TLW --judge-weights nowhere.pth", "nowhere.pth: "),
        ("--judge-weights garbage.pth", "garbage.pth: "),
        ("--lpips ms-ssim --judge-weights nowhere.pth", "nowhere.pth: "),
        ("--lpips ms-ssim --extractor-weights nowhere.pth", "nowhere.pth: "),
        ("--judge-weights bomb.pth", "bomb.pth: "),
        ("--judge-weights unknown.pth", "unknown.pth: expected torchvision's"),
        ("--judge lpips-alex --losses L1+TLW", "LPIPS-alex needs ImageNet weights"),
        ("--lpips alex", "LPIPS-alex needs ImageNet weights"),
        # what the rivals need
        ("--losses L1+DP", "ImageNet weights"),
        (
            "--losses L1+DP --dp-extractors alexnet:conv5 --extractor-weights squeeze.pth",
            "alexnet:conv5 needs ImageNet weights",
        ),
        ("--losses L1+DP --dp-extractors alexnet:conv5 --extractor-weights nowhere.pth", "nowhere.pth: "),
        ("--losses L1+DP --dp-extractors alexnet:conv5 --extractor-weights bomb.pth", "bomb.pth: "),
        ("--losses L1+DP --dp-extractors alexnet:conv9 --extractor-weights alexnet.pth", "relu5"),
        ("--losses L1+DP --dp-extractors alexnet --extractor-weights alexnet.pth", "alexnet"),
        ("--losses L1+DP --dp-extractors alexnett:conv5", "did you mean alexnet?"),
        (
            "--losses L1+DP --dp-extractors squeezenet:fire9 --extractor-weights squeeze.pth --patch 4",
            "--patch 4: expected at least",
        ),
        ("--losses L1+DP --dp-extractors a b c", "--dp-extractors a b c: expected one feature extractor, or two"),
        ("--losses L1+DP+GAN --patch 48", "--patch 48: "),
        ("--losses L1+DP+GAN --batchsize 1", "--batchsize 1: "),
        ("--losses L1+UDL --udl-epoch 0", "--udl-epoch 0: UDL's second stage needs a first"),
        ("--losses L1+UDL --udl-epoch 3 --startepoch 3 --endepoch 9", "expected an epoch after startepoch=3"),
        ("--losses L1+DPP", "did you mean L1+DP?"),
        # runs
        ("--load", "--load: no run in "),
        ("--load --modelpath nowhere", "--load: no run in nowhere"),
        ("--load --modelpath no_last", "no_last/last.pt: no such checkpoint"),
        ("--load --modelpath maliciouslast.pt", "maliciouslast.pt/last.pt: cannot be read"),
        ("--load --modelpath empty_last.pt", "empty_last.pt/last.pt: cannot be read"),
        ("--modelpath run", "--modelpath run: holds a run; add --load"),
        ("--load --modelpath run --losses L1 MSE", "--losses L1 MSE: the run was started with L1"),
        ("--load --modelpath run --batchsize 1", "--batchsize 1: the run was started with 2"),
        ("--load --modelpath run --scale 2", "--scale 2: the run was started with 4"),
        ("--load --modelpath run --model-options blocks=2 channels=8", "--model-options"),
        ("--load --modelpath run --model VDSR", "--model VDSR: the run was started with EDSR"),
        ("--modelpath no_last", "holds a run"),
        ("--modelpath file", "--modelpath file"),
        ("--modelpath file/run", "--modelpath file/run"),
        (f"--modelpath {300 * 'x'}", f"--modelpath {300 * 'x'}: cannot be a folder (File name too long); name another"),
        (f"--judge-memory {10**22}", f"--judge-memory {10**22}: expected a whole number from 1 to 1000000000"),
        # what training would find out only after an epoch
        ("--valpath small --protocol standard", "small"),
        ("--losses L1+TLW --patch 4", "patch"),
    ],
)
def test_train(place, capsys, words, expected):
    assert expected in refused(place, capsys, "train.py", words if words.startswith("--load") else TRAIN + words)


def test_train_load_beyond_the_end(place, capsys, tiny_args):
    """A run that stopped later than the new --endepoch is left as it is."""
    train.Trainer(train.configs.load([*tiny_args, "--losses", "L1", "--endepoch", "2", "--modelpath", "long"])).fit()
    assert "--endepoch" in refused(place, capsys, "train.py", "--load --modelpath long --endepoch 1")


@pytest.mark.parametrize(
    "name, content",
    [
        ("config.yaml", "steps: 1  # mine\n"),
        ("config.yaml", "steps: 1\n"),
        ("log.jsonl", '{"step": 1}\n'),
        ("config.yaml", ""),
    ],
)
def test_files_that_no_run_wrote_are_not_written_over(place, capsys, name, content):
    (place / "mine").mkdir()
    (place / "mine" / name).write_text(content)
    config = "--config mine/config.yaml " if name == "config.yaml" else ""
    err = refused(place, capsys, "train.py", config + TRAIN + "--modelpath mine")
    assert f"--modelpath mine: holds a {name} that a run would overwrite; name another folder, or move it away" in err
    assert f"holds a {name}" in refused(place, capsys, "convert.py", "official --modelpath mine")


def test_a_run_that_saved_nothing_is_begun_anew(place):
    """Where it was killed, or stopped before its first step, also by other settings."""
    Path("new").mkdir()
    shutil.copy("run/config.yaml", "new")
    Path("new/log.jsonl").write_text('{"step": 1}\n')
    train.Trainer(train.configs.load((TRAIN + "--learning-rate 1e-3 --modelpath new --steps 1").split())).fit()
    assert "learning_rate: 0.001" in Path("new/config.yaml").read_text() and Path("new/last.pt").exists()


def test_a_folder_that_cannot_be_made(place, capsys):
    """As in /proc, which shows only to those who try."""
    mkdir = Path.mkdir

    def refuse(path, *arguments, **options):
        if path.name == "new":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        mkdir(path, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        err = refused(place, capsys, "train.py", TRAIN + "--modelpath new")
    assert "--modelpath new: cannot be made (No such file or directory); name another" in err


def test_a_gan_on_whole_images(place, capsys):
    words = TRAIN.replace("--patch 32 --batchsize 2 ", "") + "--losses L1+DP+GAN"
    assert "not whole images; add --patch 128" in refused(place, capsys, "train.py", words)


def test_a_run_in_udls_second_stage_without_its_first(place, capsys):
    """As where last.pt was put together from others: the stage says 1, the step is in the second."""
    train.Trainer(
        train.configs.load((TRAIN + "--losses L1+UDL --udl-epoch 2 --endepoch 2 --modelpath udl").split())
    ).fit()
    state = torch.load("udl/last.pt")
    state["step"] += state["epoch_steps"]
    torch.save(state, "udl/last.pt")
    err = refused(place, capsys, "train.py", "--load --modelpath udl --endepoch 9")
    assert "epoch 3 is in UDL's second stage (--udl-epoch 2)" in err


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", "no run in"),
        ("--modelpath nowhere", "--modelpath nowhere: no config.yaml there"),
        ("--modelpath official", f"convert the released files with: python {convert.__file__} official"),
        ("--modelpath no_settings", "--modelpath no_settings: no config.yaml there"),
        ("--modelpath bad_settings", "unknown key in bad_settings/config.yaml 'modle'; did you mean model?"),
        ("--modelpath file", "--modelpath file"),
        ("--modelpath no_best --best", "best_L1.pt: no such checkpoint"),
        ("--modelpath no_last", "last.pt: no such checkpoint"),
        ("--modelpath maliciouslast.pt", "last.pt: cannot be read as a checkpoint"),
        ("--modelpath maliciousbest_L1.pt --best", "best_L1.pt: cannot be read as a checkpoint"),
        ("--modelpath empty_last.pt", "cannot be read"),
        ("--modelpath other_options", "other_options (last, L1)"),
        ("--modelpath other_scale --best", "other_scale (best, L1)"),
        ("--modelpath other_model --best", "RCAN cannot be built"),
        ("--modelpath run --model RCAN", "--model RCAN: expected EDSR"),
        ("--modelpath run --scale 2", "--scale 2: expected 4"),
        ("--modelpath run --scale 7", "--scale"),
        ("--modelpath run --losses L2", "unknown loss in run 'L2'; one of: L1"),
        ("--modelpath run --folder nowhere", "folder nowhere does not exist"),
        ("--modelpath run --folder good empty", "no images in empty"),
        ("--modelpath run --folder cut", "cannot read image cut/coffee.png"),
        ("--modelpath run --folder tiny", "tiny/dot.png is 0x0 as protocol paper crops it"),
        ("--modelpath run --lpips alexx", "did you mean alex?"),
        ("--modelpath run --lpips alex", "LPIPS-alex needs ImageNet weights"),
        ("--modelpath run --judge-weights bomb.pth", "bomb.pth: "),
        ("--modelpath run --lpips ms-ssim --judge-weights nowhere.pth", "nowhere.pth: "),
        ("--modelpath run --device cuda:7", "--device cuda:7"),
        ("--modelpath run --protocol papers", "--protocol"),
        (f"--modelpath run --memory {10**20}", f"--memory {10**20}: expected MiB, from 1 to 1000000000"),
        ("--modelpath run --memory 0", "--memory 0: expected MiB, from 1 to 1000000000"),
        (f"--modelpath {300 * 'x'}", "File name too long"),
        (f"--modelpath run --out {300 * 'x'}", "File name too long"),
        ("--modelpath run --bset", "unknown argument --bset; did you mean --best?"),
        ("--model bicubic", "--folder"),
        ("--model bicubic --folder nowhere", "folder nowhere does not exist"),
        ("--model bicubic --folder fake", "cannot read image fake/coffee.png"),
        ("--model bicubik --folder good", "did you mean bicubic?"),
        ("--model bicubic --lpips --protocol standard --folder small", "small"),
        ("--model bicubic --lpips alex --judge-weights alex.pth --folder small", "small"),
        ("--model bicubic --lpips --folder good --out empty", "--out empty"),
        ("--model bicubic --lpips --folder good --out file/r.json", "--out file/r.json"),
        ("--model bicubic --lpips --folder good --out r.csv", "--out r.csv"),
    ],
)
def test_val(place, capsys, words, expected, alex_file):
    if "alex.pth" in words:
        Path("alex.pth").symlink_to(alex_file)
    assert expected in refused(
        place, capsys, "val.py", words and words + " --device cpu" if "--device" not in words else words
    )


@pytest.mark.parametrize(
    "words, expected",
    [
        ("", "path"),
        ("nowhere", "nowhere: expected an existing file or folder"),
        ("empty", "empty: no SRModel_"),
        ("garbage.pth", "garbage.pth: cannot be read as a checkpoint"),
        ("bomb.pth", "bomb.pth: cannot be read as a checkpoint"),
        ("list.pth", "list.pth: expected a checkpoint, found a list"),
        ("unknown.pth", "unknown.pth: names like x; expected one of: the TLW authors'"),
        ("unknown.pth", "unknown.pth"),
        ("official --scale 3", "official/SRModel_l1_best.pth: is x2, not --scale 3"),
        ("official --scale 5", "--scale"),
        ("official --modelpath run", "--modelpath run: holds a run"),
        ("official --modelpth x", "did you mean --modelpath?"),
        ("mixed", "mixed/SRModel_mse_best.pth"),
        ("vdsr", "add --scale"),
        ("misshapen", "misshapen/SRModel_l1_best.pth"),
        ("lacking", "lacking/SRModel_l1_best.pth"),
        ("not_wnet", "WNet_tlw1_best.pth"),
        ("official --modelpath file", "--modelpath file"),
        ("vdsr --scale 2", "vdsr/SRModel_l1_best.pth"),
    ],
)
def test_convert(place, capsys, words, expected):
    assert expected in refused(place, capsys, "convert.py", words)


def test_a_weighting_network_of_another_shape(place, capsys):
    released(
        {"conv.0.weight": (64, 6, 7, 7), "conv.9.weight": (3, 64, 3, 3), "conv.9.bias": (3,)},
        place / "cutoff/WNet_tlw1_best.pth",
    )
    released(edsr_shapes(), place / "cutoff/SRModel_tlw1_best.pth")
    assert "WNet_tlw1_best.pth" in refused(place, capsys, "convert.py", "cutoff")


@pytest.mark.parametrize(
    "content",
    [
        {"learners": 5},
        {"learners": {"L1": {"sr_network": {"head.0.weight": 3}}}},
        {"learners": {"L1": {"sr_network": 3}}},
    ],
    ids=str,
)
@pytest.mark.parametrize("command", ["val.py --modelpath run --device cpu", "train.py --load --modelpath run"])
def test_a_checkpoint_of_another_make(place, capsys, content, command):
    torch.save({"epoch_steps": 2, "step": 2} | content, "run/last.pt")
    program, words = command.split(" ", 1)
    assert "run" in refused(place, capsys, program, words)


def test_the_bombs_would_have_gone_off(place):
    torch.load("bomb.pth", weights_only=False)
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "command, expected",
    [
        ("train.py --trainpath cut --valpath good --device cpu", "cannot read image cut/coffee.png"),
        ("val.py --modelpath maliciouslast.pt --device cpu", "last.pt: cannot be read"),
        ("convert.py bomb.pth", "bomb.pth: cannot be read"),
    ],
)
def test_as_programs(place, command, expected):
    program, *words = command.split()
    before = tree(place)
    done = subprocess.run([sys.executable, ROOT / program, *words], capture_output=True, text=True)
    assert done.returncode == 2 and expected in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith(f"{program}: error: ")
    assert tree(place) == before


def test_names_that_are_not_utf8(place):
    """What is said and written spells them out, whatever stdout thinks of them."""
    shutil.copytree("good", "some")
    Path(os.fsdecode(b"some/bad\xe9.png")).write_bytes(b"no image")
    run, odd = os.fsdecode(b"run\xe9"), os.fsdecode(b"of\xe9")
    shutil.copytree("official", odd)

    def says(*command) -> str:
        environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
        done = subprocess.run([sys.executable, *command], cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
        return done.stdout

    words = TRAIN.replace("--trainpath good", "--trainpath some").split()
    out = says(ROOT / "train.py", *words, "--steps", "1", "--bad-images", "skip", "--modelpath", run)
    assert r"some/bad\udce9.png" in out and r"run\udce9/val.csv" in out
    assert r"run\udce9" in Path(run, "val.csv").read_text(encoding="utf-8")
    out = says(
        ROOT / "val.py", "--model", "bicubic", "--lpips", "--device", "cpu", "--folder", "good", "--out", f"{run}.json"
    )
    assert r"written: run\udce9.json" in out
    assert r"written to of\udce9/run" in says(ROOT / "convert.py", odd, "--modelpath", f"{odd}/run")


def test_a_diverging_run_says_so(place, capsys):
    """Not a wrong command line, but no traceback either, and the log stays JSON."""
    with pytest.raises(SystemExit) as caught:
        train.main(
            (
                TRAIN
                + "--modelpath far --model-options blocks=8 channels=16 --learning-rate 1000 --steps 6 --log-every 1"
            ).split()
        )
    err = capsys.readouterr().err
    assert caught.value.code not in (0, None) and err.count("\n") == 1 and "--learning-rate" in err
    assert "NaN" not in Path("far/log.jsonl").read_text() and "Infinity" not in Path("far/log.jsonl").read_text()


def test_folders_of_the_same_name(place, capsys):
    """They are told apart by their paths."""
    val.main("--model bicubic --lpips --device cpu --folder good same/good".split())
    out = capsys.readouterr().out
    assert "\ngood (" in out and "\nsame/good (" in out


def test_a_folder_without_a_name(place, capsys, monkeypatch):
    """`--folder .` is shown by its name."""
    monkeypatch.chdir(place / "same/good")
    val.main(["--model", "bicubic", "--lpips", "--device", "cpu", "--folder", "."])
    assert "good (1)" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--modelpath", "--out", "--model"])
def test_a_name_that_is_empty(place, capsys, flag):
    with pytest.raises(SystemExit) as caught:
        val.main(["--modelpath", "run", "--device", "cpu", flag, ""])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and flag.strip("-") in err


@pytest.mark.parametrize("flag", ["--modelpath run", "--best", "--losses L1"])
def test_bicubic_with_what_belongs_to_runs(place, capsys, flag):
    err = refused(place, capsys, "val.py", f"--model bicubic --folder good --device cpu {flag}")
    assert f"no {flag.split()[0]} beside it" in err


def test_a_damaged_training_image(place, images, capsys):
    """It stops the run before it began, or is left out and named at the beginning and in the end."""
    shutil.copytree(images, "some")
    Path("some/torn.png").write_bytes(next(images.glob("*.png")).read_bytes()[:900])
    words = TRAIN.replace("--trainpath good", "--trainpath some") + "--steps 1 --modelpath torn"
    with pytest.raises(SystemExit) as caught:
        train.main(words.split())
    assert caught.value.code == 2 and "torn.png" in capsys.readouterr().err and not Path("torn").exists()
    train.main([*words.split(), "--bad-images", "skip"])
    out = capsys.readouterr().out
    assert "training on 4 images" in out and sum("torn.png" in line for line in out.splitlines()) == 2
