"""The grid of Table I: what is skipped, taken up again, refused; killed and preempted in real processes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import configs
import train
import val
from reproduce import cells, cluster, table1
from runs.atomic import atomic_write
from runs.checkpoint import load_checkpoint, save_checkpoint
from runs.evaluations import read_evaluations, write_evaluations
from runs.lock import locked_run
from training.evaluation import label_folders

ROOT = Path(__file__).parents[2]
LOSSES = ("L1+TLW", "L1")


def grid_of(images) -> list[str]:
    """A grid of two seeds of one tiny network."""
    return [
        *("--config", str(ROOT / "configs/table1.yaml"), "--models", "VDSR", "--scales", "2", "--seeds", "2"),
        *("--model-options", "blocks=1", "channels=8", "--losses", *LOSSES, "--judge", "tiny", "--lpips", "tiny"),
        *("--trainpath", str(images), "--valpath", str(images), "--patch", "32", "--batchsize", "2", "--repeat", "1"),
        *("--steps", "2", "--log-every", "1", "--device", "cpu", "--out", "grid"),
    ]


@pytest.fixture
def args(images, workplace):
    """The grid's command line, in an empty working folder."""
    return grid_of(images)


def row_of(loss: str, metrics, value_of: dict[str, float]) -> dict:
    """A row of val.json in which every metric has the same values."""
    per_image = {image: dict.fromkeys(metrics, value) for image, value in value_of.items()}
    return {"loss": loss, "files": len(value_of), "per_image": per_image}


@pytest.fixture
def ran(monkeypatch):
    """Commands are not run but noted, and leave what they would: (program, seed, more) of each. ran.codes: their ends."""

    class Ran(list):
        codes = None

    noted = Ran()

    def evaluate(folder, config, folders, lpips):
        scores = {loss: ("PSNR-Y", "SSIM-Y", *lpips) for loss in ("bicubic", *config.losses)}
        of_image = {"a.png": 1.0, "b.png": 2.0}
        about = {"checkpoint": "best", "protocol": config.protocol, "judge": config.judge}
        entries = [
            about
            | {"dataset": name, "folder": place, "rows": [row_of(loss, of, of_image) for loss, of in scores.items()]}
            for name, place in label_folders(folders).items()
        ]
        write_evaluations(folder / "val.json", entries)

    def run(self, command, asked):
        program, words = Path(command[1]).name, command[2:]
        noted.append((program, self.cell.config.seed, "--load" in words or program == "val.py"))
        assert len(noted) < 20, "no end"
        if code := (noted.codes or {}).get(self.cell.config.seed):
            return code
        if program == "train.py":
            config = configs.load([word for word in words if word != "--load"])
            folder = Path(config.modelpath)
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write(folder / "config.yaml", configs.to_yaml(config))
            save_checkpoint({"step": 2}, folder / "last.pt")
            evaluate(folder, config, config.valpath, config.metrics)
        else:
            found = val.parse(words)
            evaluate(
                Path(found.modelpath), self.cell.config, found.folder or self.cell.config.valpath, found.metrics or ()
            )
        return 0

    monkeypatch.setattr(cells.Work, "run", run)
    return noted


def fails(arguments, code, capsys) -> str:
    with pytest.raises(SystemExit) as end:
        table1.main(arguments)
    assert end.value.code == code
    return capsys.readouterr().err


# --- what is run, skipped, taken up ---


def test_what_is_finished_is_skipped(args, ran, capsys):
    table1.main(args)
    assert ran == [("train.py", 0, False), ("train.py", 1, False)]
    shown = capsys.readouterr().out
    assert "2 cells in grid, 0 of them finished" in shown and "cell 1 of 2, 1 left, about " in shown
    assert {"table1.json", "table1.csv", "table1.md"} <= {path.name for path in Path("grid").iterdir()}
    command = (Path("grid/VDSR_x2_seed1") / cells.TRAINED).read_text()
    assert configs.load(shlex.split(command)[2:]).seed == 1
    ran.clear()
    table1.main(args)
    table1.main([*args, "--workers", "1", "--save-every", "5"])
    table1.main([*args, "--collect"])
    assert ran == [] and "2 of them finished" in capsys.readouterr().out


def test_an_evaluation_in_bf16_is_none(args, ran):
    table1.main(args)
    ran.clear()
    path = Path("grid/VDSR_x2_seed1/val.json")
    entries = [entry | {"precision": "bf16"} for entry in json.loads(path.read_text())["evaluations"]]
    path.write_text(json.dumps({"evaluations": entries}))
    table1.main(args)
    assert ran == [("val.py", 1, True)]


def test_the_seeds_of_all_networks_come_one_after_the_other(args, ran):
    at = args.index("--scales")
    table1.main([*args[:at], "--scales", "2", "4", *args[at + 2 :]])
    assert [seed for _, seed, _ in ran] == [0, 0, 1, 1]
    assert {path.name for path in Path("grid").glob("VDSR*")} == {f"VDSR_x{s}_seed{n}" for s in (2, 4) for n in (0, 1)}


def test_what_was_begun_goes_on(args, ran):
    table1.main(args)
    ran.clear()
    folder = Path("grid/VDSR_x2_seed1")
    (folder / cells.TRAINED).unlink()  # and not val.json, which val.py may have written by hand
    table1.main(args)
    assert ran == [("train.py", 1, True)]
    ran.clear()
    for name in (cells.TRAINED, "last.pt"):
        (folder / name).unlink()
    (folder / "best_L1.pt").touch()
    table1.main(args)
    assert ran == [("train.py", 1, False)] and not (folder / "best_L1.pt").exists()


def test_a_missing_evaluation_is_made_without_training(args, ran, images, tmp_path):
    table1.main(args)
    ran.clear()
    file = Path("grid/VDSR_x2_seed0/val.json")
    file.write_text(file.read_text()[:100])
    table1.main(args)
    assert ran == [("val.py", 0, True)]
    ran.clear()
    (tmp_path / "other").symlink_to(images)
    table1.main([*args, "--folder", str(images), str(tmp_path / "other")])
    assert ran == [("val.py", 0, True), ("val.py", 1, True)]
    ran.clear()
    table1.main(args)
    assert ran == [], "what is there of more data sets is enough"


def test_a_cell_that_fails_does_not_stop_the_others(args, ran, capsys):
    ran.codes = {0: 1}
    error = fails(args, 1, capsys)
    assert ran == [("train.py", 0, False), ("train.py", 1, False)]
    assert "1 of 2 cells failed" in error and "VDSR x2 seed 0: train.py: exit code 1" in error
    assert json.loads(Path("grid/table1.json").read_text())["lacking"] == ["VDSR x2 seed 0"]
    ran.clear()
    ran.codes = {}
    table1.main(args)
    assert ran == [("train.py", 0, False)]


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
    monkeypatch.setitem(globals(), "write_evaluations", lambda path, entries: None)
    assert "val.py left no val.json" in fails(args, 1, capsys)
    assert len(ran) == 4


def test_a_cell_in_use_is_waited_for(args, ran, monkeypatch, capsys):
    folder = Path("grid/VDSR_x2_seed0")
    folder.mkdir(parents=True)
    held = locked_run(folder)
    held.__enter__()
    monkeypatch.setattr(time, "sleep", lambda seconds: held.__exit__(None, None, None))
    table1.main(args)
    assert [seed for _, seed, _ in ran] == [1, 0]
    assert "waiting: another process trains VDSR x2 seed 0" in capsys.readouterr().out


def test_time_left(args):
    made = table1.make_cells(table1.parse([*args, "--models", "VDSR", "EDSR"]))
    vdsr, edsr, left, _ = made
    assert table1.rest([left], {vdsr: 10, edsr: 50}) == 10
    assert table1.rest(made[2:], {vdsr: 10}) == 20
    shown = [table1.duration(seconds) for seconds in (41, 200, 7200, 259200)]
    assert shown == ["41 s", "3 min", "2.0 h", "3.0 d"]


@pytest.mark.parametrize("line", re.findall(r"python -m reproduce\.table1 ([^\n`]*)", (ROOT / "README.md").read_text()))
def test_readmes_command_lines(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    made = table1.make_cells(table1.parse(shlex.split(line)))
    assert len(made) == 27 and made[0].folder == Path("checkpoints/table1") / "RCAN_x2_seed0"


# --- what is refused ---


@pytest.mark.parametrize(
    "more, word",
    [
        (["--models", "VDRS"], "did you mean VDSR"),
        (["--models", "VDSR", "VDSR"], "each once"),
        (["--scales", "5"], "invalid choice: 5"),
        (["--seeds", "0"], "a number of seeds above 0"),
        (["--seed", "1"], "did you mean --seeds"),
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
        (["--model-options", "blcks=1"], "blcks"),
        (["--patch", "33"], "not divisible"),
        (["--steps", "0"], "above 0"),
        (["--out", "file"], "a folder that can be written to"),
        (["--collect"], "none of the grid's 2 cells is finished"),
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
    table1.main(args)


def test_other_settings_are_refused(args, ran, capsys):
    table1.main(args)
    before = {path: path.read_bytes() for path in Path("grid").rglob("*") if path.is_file()}
    ran.clear()
    error = fails([*args, "--steps", "3"], 2, capsys)
    assert "--steps 3: grid/VDSR_x2_seed0 was begun with 2" in error and error.count("\n") == 1
    fails([*args, "--learning-rate", "1e-3", "--executor", "local"], 2, capsys)
    assert ran == [] and before == {path: path.read_bytes() for path in Path("grid").rglob("*") if path.is_file()}


# --- real processes ---

STEPS = ["--steps", "6", "--repeat", "20", "--save-every", "1", "--seeds", "1"]  # within the first epoch
CELL = Path("grid/VDSR_x2_seed0")


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """The last state of the same training, never interrupted."""
    words = [*grid_of(images), *STEPS, "--out", str(tmp_path_factory.mktemp("reference"))]
    (cell,) = table1.make_cells(table1.parse(words))
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
    grid = subprocess.Popen([sys.executable, "-m", "reproduce.table1", *args, *STEPS])
    try:
        wait_for(lambda: (CELL / "last.pt").exists() or grid.poll() is not None)
    finally:
        grid.kill()
        grid.wait()
    wait_for(lambda: not (CELL / ".lock").exists())
    assert 0 < load_checkpoint(CELL / "last.pt")["step"] < 6 and not (CELL / cells.TRAINED).exists()
    table1.main([*args, *STEPS])
    assert_same(load_checkpoint(CELL / "last.pt"), reference)
    shown = capfd.readouterr().out
    assert "cell 1 of 1, 0 left" in shown and "to resume: python train.py" in shown
    scores = json.loads(Path("grid/table1.json").read_text())["scores"]
    (entry,) = read_evaluations(CELL / "val.json")
    means = [np.mean([image["PSNR-Y"] for image in row["per_image"].values()]) for row in entry["rows"]]
    assert [row["PSNR-Y"] for row in scores] == pytest.approx(means[1:] + means[:1])


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_preempted_job_is_queued_again_and_goes_on(args, reference, as_command, assert_same):
    """submitit's own signal to a job of its local executor, in the middle of the training."""
    (cell,) = table1.make_cells(table1.parse([*args, *STEPS]))
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


# --- Slurm, as far as it can be had without one ---


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Commands called sbatch, sacct and srun: sbatch keeps the script and runs nothing; sacct says what `state` holds."""
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

    made = table1.make_cells(table1.parse(args))
    words = ["partition=long", "gpus_per_node=1", "timeout_min=600", "array_parallelism=1"]
    first = cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made)
    script = (slurm / "script0").read_text()
    for line in ("--partition=long", "--gpus-per-node=1", "--time=600", "--signal=USR2@90", "--array=0-1%1"):
        assert f"#SBATCH {line}\n" in script, line
    assert [job.job_id for job in first.values()] == ["70_0", "70_1"]
    work = submitit.helpers.DelayedSubmission.load(first[made[1]].paths.submitted_pickle).function
    assert str(work.cell) == "VDSR x2 seed 1"

    again = cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made)
    assert [job.job_id for job in again.values()] == ["70_0", "70_1"] and not (slurm / "script1").exists()
    (slurm / "state").write_text("CANCELLED by 0")
    cluster.Jobs("slurm", Path("grid/submitit"), words).submit(made[:1])
    assert (slurm / "script1").exists()


def test_a_preempted_cell_is_the_same_job_again(args):
    (cell, _) = table1.make_cells(table1.parse(args))
    work = cells.Work(cell)
    work.child = subprocess.Popen(["sleep", "1000"])
    again = work.checkpoint()
    assert work.child.poll() == -signal.SIGTERM
    assert again.function.cell is cell and again.function.child is None and again.args == ()
