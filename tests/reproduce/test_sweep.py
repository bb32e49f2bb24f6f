"""The sweep: which rate is chosen, when it goes on, what has diverged, what is written."""

import csv
import json
import math
from pathlib import Path

import pytest
from PIL import Image

import configs
from reproduce import cells, grid, sweep
from runs.atomic import atomic_write

BICUBIC = 30.0


@pytest.fixture
def args(images, workplace):
    return [
        *(
            "--models",
            "VDSR[blocks=1,channels=8]",
            "--scales",
            "2",
            "--losses",
            "L1",
            "L1+TLW",
            "--judge",
            "tiny",
            "--seeds",
            "2",
        ),
        *(
            "--rates",
            "1e-4",
            "2e-4",
            "4e-4",
            "--trainpath",
            str(images),
            "--patch",
            "32",
            "--batchsize",
            "2",
            "--steps",
            "400",
        ),
        *("--device", "cpu", "--out", "sweep"),
    ]


@pytest.fixture
def ran(monkeypatch):
    """Trainings are not run but noted, (loss, rate, seed); their tiny is that of a parabola with its least at `best`.

    ran.best: by loss; ran.diverges: beyond which rate seed 1 ends 5 dB below its own best.
    """

    class Ran(list):
        best, diverges = {"L1": 2e-4, "L1+TLW": 2e-4}, 1.0

    noted = Ran()

    def run(self, command, asked):
        yield
        assert command[1].endswith("train.py") and len(noted) < 60
        config, folder = self.cell.config, self.cell.folder
        noted.append((self.cell.loss, config.learning_rate, config.seed))
        fallen = config.learning_rate > noted.diverges and config.seed == 1
        tiny = 0.3 + math.log2(config.learning_rate / noted.best[self.cell.loss]) ** 2 + 0.01 * config.seed
        lines = [
            {
                "step": 200 * (i + 1),
                "epoch": i,
                "validation": self.cell.loss,
                "PSNR-Y": 29.0 - 5 * i * fallen,
                "SSIM-Y": 0.9,
                "tiny": tiny,
            }
            for i in (0, 1)
        ]
        lines[:0] = [{"step": i, "loss": {self.cell.loss: 1 / i}} for i in (1, 2, 3, 4)]
        folder.mkdir(parents=True)
        atomic_write(folder / "config.yaml", configs.to_yaml(config))
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "val.json").write_text(
            json.dumps({"evaluations": [{"checkpoint": "best", "rows": [{"loss": "bicubic", "PSNR-Y": BICUBIC}]}]})
        )
        return 0

    monkeypatch.setattr(cells.Work, "run", run)
    return noted


def rates() -> dict:
    return {
        found["loss"]: (found["learning_rate"], found["edge"])
        for found in json.loads(Path("sweep/rates.json").read_text())
    }


def test_the_best_rate_is_chosen(args, ran, capsys):
    sweep.main(args)
    assert len(ran) == 12 and rates() == {"L1": (2e-4, ""), "L1+TLW": (2e-4, "")}
    shown = capsys.readouterr().out
    assert "0.3050 ± 0.0071" in shown and "0 of 2" in shown and shown.count("chosen\n") == 2
    assert "--warmup 20 --clip-grad 1.0" in shown
    (one, *_) = sweep.make_cells(sweep.parse(args))
    assert (one.config.warmup, one.config.clip_grad) == (20, 1.0)
    with open("sweep/sweep.csv", newline="") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 12 and found[0]["PSNR-Y"] == "29.0"
    assert Image.open("sweep/sweep.png").size[0] > 300
    chosen = grid.make_cells(
        grid.parse(
            [
                *args[: args.index("--rates")],
                *args[args.index("--trainpath") :],
                "--folder",
                "x",
                "--rates",
                "sweep/rates.json",
            ]
        )
    )
    assert {cell.config.learning_rate for cell in chosen} == {2e-4}
    ran.clear()
    sweep.main(args)
    sweep.main([*args, "--collect"])
    assert ran == []


def test_what_was_asked_for_is_kept(args):
    (one, *_) = sweep.make_cells(sweep.parse([*args, "--warmup", "0", "--clip-grad", "0.1"]))
    assert (one.config.warmup, one.config.clip_grad) == (0, 0.1)


def test_at_an_edge_it_goes_on(args, ran, capsys):
    ran.best = {"L1": 1.6e-3, "L1+TLW": 5e-5}
    sweep.main(args)
    tried = {loss: sorted({rate for of, rate, _ in ran if of == loss}) for loss in ran.best}
    assert tried == {
        "L1": pytest.approx([1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3]),
        "L1+TLW": pytest.approx([2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4]),
    }
    assert rates() == {"L1": (1.6e-3, ""), "L1+TLW": (5e-5, "")}
    assert "best at the edge, going on: VDSR[blocks=1,channels=8] x2 L1 at 0.0008" in capsys.readouterr().out
    ran.clear()
    sweep.main([*args, "--collect"])
    sweep.main(args)
    assert ran == [] and rates()["L1"] == (1.6e-3, "")


def test_not_beyond_the_bounds(args, ran, capsys):
    ran.best = {"L1": 1e-1, "L1+TLW": 2e-4}
    sweep.main([*args, "--bounds", "1e-4", "1e-3"])
    assert max(rate for _, rate, _ in ran) == 8e-4 and rates()["L1"] == (8e-4, "high")
    assert "chosen, at the high edge" in capsys.readouterr().out


def test_a_rate_at_which_a_seed_diverged_is_not_chosen(args, ran, capsys):
    ran.diverges = 1.5e-4
    sweep.main(args)
    assert rates()["L1"] == (1e-4, "")  # 5e-5, tried beyond it, is worse
    shown = capsys.readouterr().out
    assert shown.count("1 of 2") == 4
    ran.clear()
    ran.diverges = 0
    for folder in Path("sweep").glob("*seed*"):
        folder.rename(Path("elsewhere" + folder.name))
    sweep.main([*args, "--bounds", "1e-4", "4e-4"])
    assert rates() == {} and "L1: every rate diverged, down to 0.0001" in capsys.readouterr().out


def line(psnr):
    return {"validation": "L1", "PSNR-Y": psnr}


@pytest.mark.parametrize(
    "losses, psnrs, diverged",
    [
        ([0.4, 0.2, 0.1, 0.1], [28.0, 31.0], False),
        ([0.4, 0.2, 0.1, 0.1], [31.0, 30.2], False),
        ([0.4, 0.2, 0.1, 0.1], [31.0, 29.9], True),  # below its own best
        ([0.4, 0.3, 0.3, 0.3], [20.0, 22.0], False),  # slow, but learning
        ([0.4, 0.3, 0.5, 0.4], [20.0, 22.0], True),
        ([0.4, 150.0, 0.3, 0.2], [30.0, 31.0], True),  # on the way
        ([0.4, None, 0.3, 0.2], [30.0, 31.0], False),  # a skipped step
        ([0.4, 0.3, 0.3, None], [30.0, 31.0], True),
        ([0.4, 0.3, 0.3, 0.2], [30.0, None], True),
        ([0.4, 0.3, 0.3, 0.2], [], True),
    ],
)
def test_divergence(losses, psnrs, diverged):
    log = [*({"loss": {"L1": loss}} for loss in losses), *map(line, psnrs)]
    assert sweep.has_diverged(log, BICUBIC) == diverged


def test_the_metric_that_chooses(args, ran, capsys):
    sweep.main([*args, "--by", "PSNR-Y"])
    assert "PSNR-Y ↑" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        sweep.main([*args, "--by", "PSNR"])
    assert end.value.code == 2 and "did you mean PSNR-Y?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more, word",
    [
        (["--rates", "0"], "above 0, each once"),
        (["--rates", "1e-3", "1e-3"], "above 0, each once"),
        (["--losses", "L2"], "L2"),
        (["--learning-rate", "1"], "unknown argument --learning-rate"),
        (["--collect"], "none is finished"),
    ],
)
def test_bad_input(args, ran, capsys, more, word):
    with pytest.raises(SystemExit) as end:
        sweep.main([*args, *more])
    error = capsys.readouterr().err
    assert end.value.code == 2 and word in error and error.count("\n") == 1 and ran == [] and not Path("sweep").exists()
