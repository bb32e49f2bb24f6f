"""The grid: what is skipped, taken up again, refused; killed and preempted in real processes."""

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import configs
import train
import val
from reproduce import budget, cells, cluster, collect, grid, holdout, running, table1
from runs.atomic import atomic_write
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.evaluations import read_evaluations
from runs.lock import locked_run
from training.evaluation import label_folders

ROOT = Path(__file__).parents[2]
LOSSES = ("L1+TLW", "L1")
EVALUATIONS = ["test_best.json", "test_last.json"]


@pytest.fixture(scope="session")
def tests_images(images, tmp_path_factory):
    """A folder of one image that is none of `images`."""
    folder = tmp_path_factory.mktemp("photographs") / "mirrored"
    folder.mkdir()
    Image.open(images / "coffee.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "coffee.png")
    return folder


def grid_of(images, tests_images) -> list[str]:
    """A grid of two seeds of one tiny network with two losses."""
    return [
        *(
            "--config",
            str(ROOT / "configs/table1.yaml"),
            "--models",
            "VDSR[blocks=1,channels=8]",
            "--scales",
            "2",
            "--seeds",
            "2",
        ),
        *(
            "--losses",
            *LOSSES,
            "--judge",
            "tiny",
            "--metrics",
            "tiny",
            "--trainpath",
            str(images),
            "--folder",
            str(tests_images),
        ),
        *(
            "--patch",
            "32",
            "--batchsize",
            "2",
            "--repeat",
            "1",
            "--steps",
            "2",
            "--log-every",
            "1",
            "--device",
            "cpu",
            "--out",
            "grid",
        ),
    ]


def folder_of(loss="L1", seed=0, network="VDSR_blocks=1,channels=8_") -> Path:
    return Path(f"grid/{network}_x2_{loss}_seed{seed}")


@pytest.fixture
def args(images, tests_images, workplace):
    """The grid's command line, in an empty working folder."""
    return grid_of(images, tests_images)


@pytest.fixture
def ran(monkeypatch):
    """Commands are not run but noted, and leave what they would: (program or file, loss, seed, --load) of each.

    ran.codes: the exit codes of the trainings by loss and seed; ran.log: lines for their logs; ran.leaves: if evaluations
    leave their file.
    """

    class Ran(list):
        codes, log, leaves = {}, (), True

    noted = Ran()

    def run(self, command, asked):
        yield
        config, program, words = self.cell.config, Path(command[1]).name, command[2:]
        assert len(noted) < 40, "no end"
        if program == "train.py":
            noted.append((program, self.cell.loss, config.seed, "--load" in words))
            given = configs.load([word for word in words if word != "--load"])
            assert given == config
            folder = Path(given.modelpath)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "config.yaml", configs.to_yaml(given))
            save_checkpoint({"step": 2}, folder / "last.pt")
            (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in noted.log))
            return noted.codes.get((self.cell.loss, config.seed), 0)
        found = val.parse(words)
        noted.append((Path(found.out).name, self.cell.loss, config.seed, False))
        scores = {
            loss: {name: [1.0] for name in ("PSNR-Y", "SSIM-Y", *found.metrics)} for loss in ("bicubic", self.cell.loss)
        }
        rows = [{"loss": loss, "per_image": {"0": {m: x for m, (x,) in of.items()}}} for loss, of in scores.items()]
        about = {"checkpoint": "best" if found.best else "last", "protocol": config.protocol, "judge": config.judge}
        entries = [about | {"dataset": name, "rows": rows} for name in label_folders(found.folder)]
        if noted.leaves:
            Path(found.out).write_text(json.dumps({"evaluations": entries}))
        return 0

    monkeypatch.setattr(cells.Work, "run", run)
    return noted


def fails(arguments, code, capsys, program=grid) -> str:
    with pytest.raises(SystemExit) as end:
        program.main(arguments)
    assert end.value.code == code
    return capsys.readouterr().err


# --- what is run, skipped, taken up -----------------------------------------------------------------------------------


def test_what_is_finished_is_skipped(args, ran, capsys):
    grid.main(args)
    order = [(loss, seed) for seed in (0, 1) for loss in LOSSES]
    assert [(loss, seed) for name, loss, seed, _ in ran if name == "train.py"] == order
    assert Counter(name for name, *_ in ran) == {"train.py": 4, "test_best.json": 4, "test_last.json": 4}
    shown = capsys.readouterr().out
    assert "4 cells in grid, 0 of them finished" in shown and "cell 1 of 4, 3 left, about " in shown
    assert {"images.csv", "trainings.csv", "about.json", "tables.md", "scores.csv"} <= {
        path.name for path in Path("grid").iterdir()
    }
    command = (folder_of(seed=1) / cells.TRAINED).read_text()
    assert configs.load(shlex.split(command)[2:]).seed == 1
    ran.clear()
    grid.main(args)
    grid.main([*args, "--workers", "1", "--save-every", "5"])
    grid.main([*args, "--collect", "--results", "elsewhere"])
    assert ran == [] and "4 of them finished" in capsys.readouterr().out
    assert Path("elsewhere/images.csv").read_bytes() == Path("grid/images.csv").read_bytes()


def test_several_at_once_do_the_same(args, ran, monkeypatch):
    most = []
    progress = cells.Work.progress

    def watched(self, asked):
        most.append(+1)
        yield from progress(self, asked)
        most.append(-1)

    monkeypatch.setattr(cells.Work, "progress", watched)
    grid.main([*args, "--jobs", "2"])
    assert len(ran) == 12 and max(np.cumsum(most)) == 2


def test_an_evaluation_in_bf16_is_none(args, ran):
    grid.main(args)
    ran.clear()
    path = folder_of(seed=1) / "test_last.json"
    entries = [entry | {"precision": "bf16"} for entry in read_evaluations(path)]
    path.write_text(json.dumps({"evaluations": entries}))
    grid.main(args)
    assert ran == [("test_last.json", "L1", 1, False)]


def test_what_was_begun_goes_on(args, ran):
    grid.main(args)
    ran.clear()
    folder = folder_of(seed=1)
    (folder / cells.TRAINED).unlink()  # and not the evaluations, which val.py may have written by hand
    grid.main(args)
    assert ran == [("train.py", "L1", 1, True)]
    ran.clear()
    for name in (cells.TRAINED, "last.pt"):
        (folder / name).unlink()
    (folder / "best_L1.pt").touch()
    grid.main(args)
    assert ran == [("train.py", "L1", 1, False)] and not (folder / "best_L1.pt").exists()


def test_a_missing_evaluation_is_made_without_training(args, ran, tests_images, tmp_path):
    grid.main(args)
    ran.clear()
    file = folder_of() / "test_best.json"
    file.write_text(file.read_text()[:100])
    grid.main(args)
    assert ran == [("test_best.json", "L1", 0, False)]
    ran.clear()
    (tmp_path / "other").symlink_to(tests_images)
    grid.main([*args, "--folder", str(tests_images), str(tmp_path / "other")])
    assert [name for name, *_ in ran] == EVALUATIONS * 4
    ran.clear()
    grid.main(args)
    assert ran == [], "what is there of more data sets is enough"


def test_a_cell_that_fails_does_not_stop_the_others(args, ran, capsys):
    ran.codes = {("L1", 0): 1}
    error = fails(args, 1, capsys)
    assert len([name for name, *_ in ran if name == "train.py"]) == 4
    assert "1 of 4 cells failed" in error and "VDSR[blocks=1,channels=8] x2 L1 seed 0: train.py: exit code 1" in error
    assert json.loads(Path("grid/about.json").read_text())["lacking"] == ["VDSR[blocks=1,channels=8] x2 L1 seed 0"]
    ran.clear()
    ran.codes = {}
    grid.main(args)
    assert [name for name, *_ in ran] == ["train.py", *EVALUATIONS]


@pytest.mark.parametrize(
    "code, log, diverged",
    [
        (1, [{"step": 1, "loss": {"L1": None}}], True),
        (1, [{"step": 1, "loss": {"L1": 0.5}}], False),  # a full disk, say
        (
            0,
            [{"step": 1, "loss": {"L1": None}}, {"step": 1, "validation": "L1", "PSNR-Y": 30.0}],
            False,
        ),  # a step skipped
        (0, [{"step": 1, "validation": "L1", "PSNR-Y": 30.0}, {"step": 2, "validation": "L1", "PSNR-Y": None}], True),
    ],
)
def test_what_diverged_is_not_tried_again(args, ran, capsys, code, log, diverged):
    ran.codes, ran.log = {(loss, seed): code for loss in LOSSES for seed in (0, 1)}, log
    if code or diverged:
        assert ("diverged; take a lower --learning-rate" in fails(args, 1, capsys)) == diverged
        ran.clear()
        fails(args, 1, capsys)
        assert (ran == []) == diverged
    else:
        grid.main(args)


@pytest.mark.parametrize(
    "code, words",
    [
        (-9, "ended by SIGKILL; was the memory full?"),
        (143, "stopped by SIGTERM, all saved"),
        (2, "bad input"),
        (1, "exit code 1"),
    ],
)
def test_reasons(code, words):
    assert words in cells.reason(code)


def test_a_command_that_leaves_nothing_is_not_repeated(args, ran, monkeypatch, capsys):
    ran.leaves = False
    assert "val.py did not leave what it should have" in fails(args, 1, capsys)
    assert len(ran) == 8


def test_a_cell_in_use_is_waited_for(args, ran, monkeypatch, capsys):
    folder = folder_of("L1+TLW")
    folder.mkdir(parents=True)
    held = locked_run(folder)
    held.__enter__()
    monkeypatch.setattr(time, "sleep", lambda seconds: seconds == 1 and held.__exit__(None, None, None))
    grid.main(args)
    assert [(loss, seed) for name, loss, seed, _ in ran if name == "train.py"] == [
        ("L1", 0),
        ("L1+TLW", 1),
        ("L1", 1),
        ("L1+TLW", 0),
    ]
    assert "waiting: another process trains VDSR[blocks=1,channels=8] x2 L1+TLW seed 0" in capsys.readouterr().out


def test_time_left(args):
    made = grid.make_cells(grid.parse([*args, "--models", "VDSR", "EDSR", "--seeds", "1"]))
    vdsr_tlw, vdsr, edsr_tlw, edsr = made
    for cell, seconds in ((vdsr_tlw, "20\n10\n"), (vdsr, "10\n"), (edsr, "50\n")):
        cell.folder.mkdir(parents=True)
        (cell.folder / cells.SECONDS).write_text(seconds)
    assert running.rest([vdsr_tlw], [vdsr, edsr]) == 10  # of its network, else of all
    assert running.rest([vdsr_tlw], [vdsr_tlw, vdsr]) == 30
    assert running.rest([edsr_tlw], [vdsr_tlw, vdsr]) == 20
    shown = [running.duration(seconds) for seconds in (41, 200, 7200, 259200)]
    assert shown == ["41 s", "3 min", "2.0 h", "3.0 d"]


# --- which trainings there are ----------------------------------------------------------------------------------------


def test_networks_have_options_of_their_own(args):
    names = ["EDSR[blocks=1,channels=8]", "HAT[depths=[2,2],heads=[2,2],embed=12,window=4]", "VDSR"]
    made = grid.make_cells(grid.parse([*args, "--models", *names, "--seeds", "1"]))
    assert [cell.network for cell in made[::2]] == names
    assert made[2].config.model_options == {"depths": [2, 2], "heads": [2, 2], "embed": 12, "window": 4}
    assert made[0].folder == folder_of("L1+TLW", network="EDSR_blocks=1,channels=8_")


def test_cells_of_a_seed_differ_in_the_loss_alone(args):
    tlw, plain = grid.make_cells(grid.parse([*args, "--seeds", "1"]))
    assert cells.differing(tlw.config, plain.config) == ["losses"]
    assert tlw.config.trainpath == ("grid/images/train/cuts",) and tlw.config.valpath == ("grid/images/val/cuts",)


def test_each_seed_begins_from_weights_of_its_own(args):
    cells = grid.make_cells(grid.parse([*args, "--init", "runs/L1_seed{seed}"]))
    assert {(cell.config.seed, cell.config.init) for cell in cells} == {
        (seed, f"runs/L1_seed{seed}") for seed in {cell.config.seed for cell in cells}
    }


def test_rates(args, tmp_path):
    made = grid.make_cells(grid.parse([*args, "--rates", "L1=1e-3", "L1+TLW=5e-4"]))
    assert [cell.config.learning_rate for cell in made] == [5e-4, 1e-3] * 2
    network = {"network": "VDSR[blocks=1,channels=8]", "scale": 2}
    rates = [{**network, "loss": loss, "learning_rate": rate} for loss, rate in (("L1", 2e-3), ("L1+TLW", 1e-4))]
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    made = grid.make_cells(grid.parse([*args, "--rates", "rates.json"]))
    assert [cell.config.learning_rate for cell in made] == [1e-4, 2e-3] * 2


def test_null_trains_one_loss_with_twice_the_seeds(args, ran, capsys):
    grid.main([*args, "--null", "L1"])
    assert [(loss, seed) for name, loss, seed, _ in ran if name == "train.py"] == [("L1", seed) for seed in range(4)]
    assert "L1 against itself" in capsys.readouterr().out


def test_equal_time(args, ran, monkeypatch, capsys):
    """The dearer loss has its share of the steps, all that is counted in steps and epochs ends with them."""
    seconds, asked = {"L1": 0.1, "L1+TLW": 0.38}, []
    monkeypatch.setattr(
        budget, "measure", lambda config: asked.append(config.losses) or {loss: seconds[loss] for loss in config.losses}
    )
    args = [
        *args,
        "--budget",
        "time",
        "--steps",
        "380",
        "--schedule",
        "milestones",
        "--milestones",
        "190",
        "285",
        "--k-epochs",
        "38",
    ]
    grid.main(args)
    tlw, plain = (configs.from_mapping(configs.read_yaml(folder_of(loss) / "config.yaml")) for loss in LOSSES)
    assert (plain.steps, plain.milestones, plain.k_epochs, plain.udl_epoch) == (380, (190, 285), 38, 10)
    assert (tlw.steps, tlw.milestones, tlw.k_epochs, tlw.udl_epoch) == (100, (50, 75), 10, 3)
    ran.clear()
    seconds["L1+TLW"] = 1.0
    grid.main(args)  # what was measured once holds
    assert asked == [LOSSES] and ran == []
    at = args.index("L1")
    seconds |= {"L1": 0.2, "L1+TLW": 0.76, "MSE": 0.3}
    grid.main([*args[:at], "L1", "MSE", *args[at + 1 :]])  # the machine is half as fast now
    assert budget.read(Path("grid"))["VDSR[blocks=1,channels=8] x2"] == pytest.approx(
        {"L1": 0.1, "L1+TLW": 0.38, "MSE": 0.15}
    )
    table = Path("grid/trainings.csv").read_text()
    assert "L1+TLW,0,100,0.0001" in table and "MSE,0,253,0.0001" in table and "0.38" in table


def test_seconds_per_step(args, monkeypatch):
    """On a false clock: in turn, medians without the first block, a judge for those who ask, E-steps when due."""
    clock, turns = [0.0], []

    def step(learners, judge, extractors, lr, hr, epoch, precision, parts):
        (learner,) = learners
        assert (judge is None) == (learner.name == "L1") and hr.shape == (2, 3, 32, 32)
        costs = {"L1": 1, "L1+TLW[e_every=4]": 6 if getattr(learner.loss, "e_step_is_due", False) else 2}
        turns.append(learner.name)
        clock[0] += costs[learner.name] * (
            100 if len(turns) in (1, 3 * budget.BLOCK) else 1
        )  # warming up; a busy moment

    monkeypatch.setattr(budget, "train_step", step)
    monkeypatch.setattr(budget, "now", lambda device: clock[0])
    losses = ("L1", "L1+TLW[e_every=4]")
    (cell, *_) = grid.make_cells(grid.parse([*args, "--valpath", args[args.index("--trainpath") + 1]]))
    assert budget.measure(dataclasses.replace(cell.config, losses=losses)) == {"L1": 1, "L1+TLW[e_every=4]": 3}
    assert turns == [loss for _ in range(budget.ROUNDS + 1) for loss in losses for _ in range(budget.BLOCK)]
    assert list(Path().iterdir()) == []


# --- validation images ------------------------------------------------------------------------------------------------


def test_held_out_images(images, tmp_path):
    """A pure function of the names; all images once; links that a second call accepts and another choice does not."""
    trained, held = holdout.split([str(images)], 0.25)
    assert len(held) == 1 and len(trained) == 3 and set(trained) | set(held) == set(images.absolute().iterdir())
    assert len(holdout.split([str(images)], 0.01)[1]) == 1 and len(holdout.split([str(images)], 0.99)[0]) == 1
    (tmp_path / "copies").mkdir()
    copied = tmp_path / "copies" / "cuts"
    copied.symlink_to(images)
    assert {path.name for path in holdout.split([str(copied)], 0.25)[1]} == {path.name for path in held}
    holdout.link(trained, tmp_path / "train")
    holdout.link(trained, tmp_path / "train")
    (folder,) = holdout.roots(trained, tmp_path / "train")
    assert {path.resolve() for path in Path(folder).iterdir()} == {path.resolve() for path in trained}
    with pytest.raises(ValueError, match="none of these training images"):
        holdout.link(held, tmp_path / "train")


def test_photographs_can_be_held_out():
    trained, held = holdout.split(["skimage:astronaut,coffee,rocket"], 0.34)
    assert len(trained) == 2 and [place.parts[0] for place in held.values()] == ["skimage"]


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--folder", "{images}"], "is .* of the training images again|is .* of the validation images again"),
        (["--valpath", "{tests}"], "is .* of the validation images again"),
        (["--valpath", "{images}"], "is .* of the training images again"),
        (["--holdout", "1"], "a share above 0 and below 1"),
        (["--lrpath", "{images}"], "--valpath and --vallrpath beside it"),
    ],
)
def test_what_is_reported_is_chosen_on_other_images(args, ran, images, tests_images, capsys, tmp_path, flags, words):
    copies = tmp_path / "copies"
    copies.mkdir()
    for path in images.iterdir():
        (copies / f"copy_{path.name}").write_bytes(path.read_bytes())
    error = fails([*args, *(flag.format(images=copies, tests=tests_images) for flag in flags)], 2, capsys)
    assert re.search(words, error) and error.count("\n") == 1 and ran == []


@pytest.mark.parametrize("line", re.findall(r"python -m reproduce\.table1 ([^\n`]*)", (ROOT / "README.md").read_text()))
def test_readmes_command_lines(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = grid.base_cells(grid.parse([*shlex.split(line), "--valpath", "Set5"], table1.PRESET))
    assert len(made) == 27 * 4 and (made[0].network, made[0].config.init) == ("RCAN", "paper")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, word",
    [
        (["--models", "VDRS"], "did you mean VDSR"),
        (["--models", "VDSR", "VDSR"], "each once"),
        (["--scales", "5"], "invalid choice: 5"),
        (["--seeds", "0"], "a number of seeds above 0"),
        (["--models", "VDSR[blocks=1"], "NAME[OPTION=VALUE,...]"),
        (["--seed", "1"], "did you mean --seeds"),
        (["--jobs", "1000"], "as many as there are cores"),
        (["--rates", "L1=1e-3"], "a rate for VDSR[blocks=1,channels=8] x2 L1+TLW too"),
        (["--rates", "1e-3"], "LOSS=RATE"),
        (["--rates", "rates.json"], "the rates.json of reproduce.sweep"),
        (["--losses", "L1", "L1+TLW", "L1"], "each loss once"),
        (["--executor", "slrm"], "invalid choice: 'slrm'"),
        (["--slurm", "partition=x"], "--executor slurm"),
        (["--executor", "local", "--slurm", "partition"], "NAME=VALUE"),
        (["--executor", "local", "--slurm", "partitoin=x"], "partitoin"),
        (["--executor", "local", "--slurm", "gpus_per_node=two"], "gpus_per_node"),
        (["--executor", "slurm"], "srun"),
        (["--config", "no.yaml"], "no such file"),
        (["--folder", "nowhere"], "nowhere does not exist"),
        (["--trainpath", "nowhere"], "nowhere does not exist"),
        (["--losses", "L1+TWL"], "L1+TWL"),
        (["--judge", "lpips-vgf"], "lpips-vgf"),
        (["--judge-weights", "nowhere.pth"], "nowhere.pth"),
        (["--models", "VDSR[blcks=1]"], "blcks"),
        (["--patch", "33"], "not divisible"),
        (["--steps", "0"], "expected a whole number from 1 to"),
        (["--out", "file"], "a folder that can be written to"),
        (["--collect"], "none of the grid's 4 cells is finished"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(args, ran, more, word, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")  # where no Slurm is
    Path("file").touch()
    error = fails([*args, *more], 2, capsys)
    assert word in error and error.count("\n") == 1 and "Traceback" not in error
    assert ran == [] and [path.name for path in Path().iterdir() if path.name not in ("file", "other")] == []


def test_without_submitit(args, ran, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert "pip install submitit" in fails([*args, "--executor", "local"], 2, capsys)
    assert not Path("grid").exists()
    grid.main(args)


def test_other_settings_are_refused(args, ran, capsys):
    grid.main(args)
    before = {path: path.read_bytes() for path in Path("grid").rglob("*") if path.is_file()}
    ran.clear()
    error = fails([*args, "--steps", "3"], 2, capsys)
    assert f"--steps 3: {folder_of('L1+TLW')} was begun with 2" in error and error.count("\n") == 1
    fails([*args, "--learning-rate", "1e-3", "--executor", "local"], 2, capsys)
    assert ran == [] and before == {path: path.read_bytes() for path in Path("grid").rglob("*") if path.is_file()}


# --- real processes ---------------------------------------------------------------------------------------------------

# Within the first epoch, and more than are done before the test sees the first and ends it.
STEPS = ["--steps", "40", "--repeat", "40", "--save-every", "1", "--seeds", "1", "--losses", "L1+TLW"]
CELL = folder_of("L1+TLW")


@pytest.fixture(scope="module")
def reference(images, tests_images, tmp_path_factory):
    """The last state of the same training, never interrupted."""
    args = grid.parse([*grid_of(images, tests_images), *STEPS])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("reference"))
        (cell,) = grid.prepare(args, grid.make_cells(args))
        train.Trainer(configs.load(list(cell.words))).fit()
        return load_checkpoint(cell.folder / "last.pt")


@pytest.fixture
def as_command(monkeypatch):
    """The environment in which `python -m reproduce...` is found from anywhere."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def wait_for(what, seconds=300):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_killed_and_started_again(args, reference, as_command, assert_same, capfd):
    """SIGKILL to the grid: its training saves and ends; the same command does the rest, bit by bit the same."""
    process = subprocess.Popen([sys.executable, "-m", "reproduce.grid", *args, *STEPS])
    try:
        wait_for(lambda: (CELL / "last.pt").exists() or process.poll() is not None)
    finally:
        process.kill()
        process.wait()
    wait_for(lambda: not (CELL / ".lock").exists())
    assert 0 < load_checkpoint(CELL / "last.pt")["step"] < 40 and not (CELL / cells.TRAINED).exists()
    grid.main([*args, *STEPS])
    assert_same(load_checkpoint(CELL / "last.pt"), reference)
    shown = capfd.readouterr().out
    assert "cell 1 of 1, 0 left" in shown and "to resume: python " in shown and "train.py --load" in shown
    results = collect.read(Path("grid"))
    for which in cells.CHECKPOINTS:
        (entry,) = read_evaluations(CELL / f"test_{which}.json")
        bicubic, row = entry["rows"]
        key = collect.Key("VDSR[blocks=1,channels=8]", 2, "L1+TLW", 0, which, "mirrored")
        assert results.scores[key]["PSNR-Y"] == pytest.approx(
            [image["PSNR-Y"] for image in row["per_image"].values()], abs=1e-5
        )


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_preempted_job_is_queued_again_and_goes_on(args, reference, as_command, assert_same):
    """submitit's own signal to a job of its local executor, in the middle of the training."""
    words = grid.parse([*args, *STEPS])
    (cell,) = grid.prepare(words, grid.make_cells(words))
    preempted = []

    class Preempt:
        """`asked`, called again and again while the job runs."""

        def __call__(self):
            if not preempted and (CELL / "last.pt").exists():
                holder = (CELL / ".lock").read_text() if (CELL / ".lock").exists() else ""
                training = int(holder.partition("process ")[2].partition(",")[0] or 0)
                if training:
                    os.kill(training, signal.SIGUSR2)  # as Slurm does: to all processes of the job
                    os.kill(parent_of(training), signal.SIGUSR2)
                    preempted.append(training)

    outcomes = cluster.Jobs("local", Path("grid/submitit"), []).outcomes([cell], Preempt())
    assert list(outcomes) == [(cell, "")]
    assert preempted and cell.finished()
    log = (
        next(Path("grid/submitit").glob("*_log.out")).read_text()
        + next(Path("grid/submitit").glob("*_log.err")).read_text()
    )
    assert "Requeued job" in log and "stopped by SIGTERM at step" in log
    assert_same(load_checkpoint(CELL / "last.pt"), reference)


# --- Slurm, as far as it can be had without one -----------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Fake commands: sbatch keeps the script and runs nothing, sacct says what `state` holds, srun fails."""
    place = tmp_path / "slurm"
    place.mkdir()
    for name, lines in {
        "srun": "exit 1",
        "sbatch": f'n=$(ls {place} | grep -c script); cp "$1" {place}/script$n; echo Submitted batch job $((70 + n))',
        "sacct": f'echo "JobID|State|NodeList"; for j in 70 71 70_0 70_1; do echo "$j|$(cat {place}/state)|"; done',
    }.items():
        (place / name).write_text(f"#!/bin/bash\n{lines}\n")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    (place / "state").write_text("PENDING")
    return place


def test_jobs_of_slurm_are_submitted_once(args, slurm):
    import submitit

    made = grid.make_cells(grid.parse(args))[::2]
    words = ["partition=long", "gpus_per_node=1", "timeout_min=600", "array_parallelism=1"]
    first = cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made)
    script = (slurm / "script0").read_text()
    for line in ("--partition=long", "--gpus-per-node=1", "--time=600", "--signal=USR2@90", "--array=0-1%1"):
        assert f"#SBATCH {line}\n" in script, line
    assert [job.job_id for job in first.values()] == ["70_0", "70_1"]
    work = submitit.helpers.DelayedSubmission.load(first[made[1]].paths.submitted_pickle).function
    assert str(work.cell) == "VDSR[blocks=1,channels=8] x2 L1+TLW seed 1"

    again = cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made)
    assert [job.job_id for job in again.values()] == ["70_0", "70_1"] and not (slurm / "script1").exists()
    (slurm / "state").write_text("CANCELLED by 0")
    cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made[:1])
    assert (slurm / "script1").exists()


def test_a_preempted_cell_is_the_same_job_again(args):
    (cell, *_) = grid.make_cells(grid.parse(args))
    work = cells.Work(cell)
    work.child = subprocess.Popen(["sleep", "1000"])
    again = work.checkpoint()
    assert work.child.poll() == -signal.SIGTERM
    assert again.function.cell is cell and again.function.child is None and again.args == ()
