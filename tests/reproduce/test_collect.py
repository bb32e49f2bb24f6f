"""A grid's scores: what is collected, kept as CSV, compared and shown; what cannot stand in one table."""

import argparse
import csv
import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import Config
from reproduce import collect, report
from reproduce.cells import CHECKPOINTS, SECONDS, TRAINED, Cell
from reproduce.figures import __main__ as figures
from reproduce.papers import FOLDER, NAMES, Paper, read_paper
from reproduce.statistics import compare
from runs.atomic import atomic_write

SHARED = Path(__file__).parents[2].parent / "shared" / "reference" / "table1.csv"


def cell(folder: Path, loss="L1", model="VDSR", scale=2, seed=0, **settings) -> Cell:
    path = str(folder / f"{model}_x{scale}_{loss}_{seed}")
    config = Config(
        model=model,
        scale=scale,
        seed=seed,
        losses=(loss,),
        modelpath=path,
        trainpath=("T91",),
        valpath=("held/T91",),
        **settings,
    )
    return Cell(config, ())


def by_image(scores: dict[str, list]) -> dict[str, dict]:
    """{metric: [...]} as val.json has it: {image: {metric: value}}."""
    return {str(i): dict(zip(scores, values)) for i, values in enumerate(zip(*scores.values(), strict=True))}


def finish(cell: Cell, scores, protocol="paper", judge="lpips-vgg", bicubic=(30, 31, 32), last=0.0, **more) -> Cell:
    """Write what a finished cell has; scores: {data set: PSNR-Y or {metric: ...}}; last: what is added at the end."""
    cell.folder.mkdir(parents=True)
    atomic_write(cell.folder / "config.yaml", configs.to_yaml(replace(cell.config, modelpath=None)))
    (cell.folder / TRAINED).write_text("train.py")
    (cell.folder / SECONDS).write_text("60.0\n30.5\n")
    for which in CHECKPOINTS:
        entries, about = [], {"checkpoint": which, "protocol": protocol, "judge": judge, **more}
        for dataset, of in scores.items():
            of = of if isinstance(of, dict) else {"PSNR-Y": of}
            of = {
                metric: [None if x is None else x + last * (which == "last") for x in values]
                for metric, values in of.items()
            }
            rows = {"bicubic": {"PSNR-Y": list(bicubic)}, "its label": of}
            rows = [{"loss": loss, "per_image": by_image(scores)} for loss, scores in rows.items()]
            entries.append(about | {"dataset": dataset, "rows": rows})
        (cell.folder / f"test_{which}.json").write_text(json.dumps({"evaluations": entries}))
    return cell


def asked(**given) -> argparse.Namespace:
    return argparse.Namespace(**{"compare": [], "checkpoint": "best", "null": None} | given)


# --- what is compared -------------------------------------------------------------------------------------------------


def test_what_a_loss_is_compared_with():
    assert collect.pairs_of(["L1+TLW", "MSE+TLW", "L1", "MSE"]) == [("L1+TLW", "L1"), ("MSE+TLW", "MSE")]
    assert collect.pairs_of(["L1+TLW+DP", "L1+DP", "L1", "MSE+TLW"]) == [("L1+TLW+DP", "L1+DP"), ("L1+DP", "L1")]
    control = "L1+TLW[weights=uniform,wc=normalised]"
    assert collect.pairs_of(["L1", "L1+TLW", control, "L1+UDL"]) == [
        ("L1+TLW", "L1"),
        (control, "L1+TLW"),
        (control, "L1"),
        ("L1+UDL", "L1"),
    ]
    assert collect.pairs_of(["L1[learning_rate=8e-4]", "L1"]) == [("L1[learning_rate=8e-4]", "L1")]


def grid_of_four(folder):
    """Two seeds of VDSR, one of EDSR and half of another; checked by hand below."""
    return [
        finish(cell(folder, "L1+TLW"), {"Set5": [34, 35, 39]}, last=-1.0),
        finish(cell(folder, "L1"), {"Set5": [33, 34, 41]}),
        finish(cell(folder, "L1+TLW", seed=1), {"Set5": [34, 36, 41]}),
        finish(cell(folder, "L1", seed=1), {"Set5": [33, 36, 36]}),
        finish(cell(folder, "L1+TLW", "EDSR"), {"Set5": [30, 30, 30]}),
        finish(cell(folder, "L1", "EDSR"), {"Set5": [33, 33, 33]}),
        finish(cell(folder, "L1", "EDSR", seed=1), {"Set5": [1, 2, 3]}),  # without its partner
        cell(folder, "L1+TLW", "EDSR", seed=1),
    ]


def test_a_step_s_time_is_the_budget_s_or_the_log_s(tmp_path):
    """Means over the seeds, and how many times those of the plain loss; empty where nothing was measured."""
    cells = [finish(cell(tmp_path, loss, seed=seed), {"A": [1, 2, 3]}) for loss in ("L1", "L1+TLW") for seed in (0, 1)]
    cells.append(finish(cell(tmp_path, "L1+UDL"), {"A": [1, 2, 3]}))
    for one, seconds in zip(cells, (0.1, 0.3, 1.1, 0.9)):
        line = {"step": 10, "loss": {one.loss: 1.0}, "seconds_per_step": {one.loss: seconds}}
        (one.folder / "log.jsonl").write_text(json.dumps(line) + "\n")
    results = collect.read_cells(cells)
    assert [row["seconds_per_step"] for row in results.trainings] == [0.1, 0.3, 1.1, 0.9, ""]
    plain, tlw, udl = report.costs_table(results, "plain").splitlines()[-3:]
    assert plain.endswith(" 0.2 (1x)") and tlw.endswith(" 1 (5x)") and "x)" not in udl
    measured = collect.read_cells(cells, (), {"VDSR x2": {"L1": 0.25, "L1+TLW": 0.5, "L1+UDL": 0.3}})
    assert [row["seconds_per_step"] for row in measured.trainings] == [0.25, 0.25, 0.5, 0.5, 0.3]


def test_means_pairs_and_files(tmp_path):
    results = collect.read_cells(grid_of_four(tmp_path), (), {"VDSR x2": {"L1": 0.25}})
    paper = read_paper("table1")
    rows = {(row["network"], row["loss"], row["checkpoint"]): row for row in report.score_rows(results, paper)}
    assert list(rows) == [*itertools.product(("VDSR", "EDSR"), ("L1+TLW", "L1"), CHECKPOINTS), ("", "bicubic", "")]
    row = rows["VDSR", "L1+TLW", "best"]
    assert (row["PSNR-Y"], row["PSNR-Y sd"], row["seeds"]) == (36.5, pytest.approx(0.5**0.5), 2)
    assert rows["VDSR", "L1+TLW", "last"]["PSNR-Y"] == 36 and "PSNR-Y paper" not in rows["VDSR", "L1+TLW", "last"]
    assert row["PSNR-Y paper"] == 37.2049 and rows["", "bicubic", ""]["PSNR-Y paper"] == 33.9569
    assert rows["EDSR", "L1+TLW", "best"]["PSNR-Y sd"] is None

    gains = collect.gains(results, ("L1+TLW", "L1"), "PSNR-Y")
    assert gains["VDSR", 2].tolist() == [[1, 1, -2], [1, 0, 5]] and gains["EDSR", 2].tolist() == [[-3, -3, -3]]
    vdsr, edsr, every = report.comparison_rows(results)
    assert (vdsr["gain"], vdsr["won"], vdsr["pairs"], vdsr["gain last"]) == (1, 1, 2, 0.5)
    assert (edsr["gain"], edsr["won"], edsr["pairs"], edsr["seeds"]) == (-3, 0, 1, 1) and math.isnan(edsr["low"])
    assert every["gain"] == pytest.approx(-1 / 3) and (every["cells"], every["pairs"]) == (2, 3)
    assert every["low"] == compare(gains).low and math.isnan(every["p"])

    shown = report.text(results, asked(), paper)
    for words in (
        "36.5000 ± 0.7071",
        "37.2049",
        "+1",
        "One seed: chance between trainings is unknown",
        "90 ",
        "0.25",
        "held/T91",
        "Not finished, 1 of the grid's cells: EDSR x2 L1+TLW seed 1",
    ):
        assert words in shown, words
    collect.write(results, tmp_path / "out")
    again = collect.read(tmp_path / "out")
    assert report.text(again, asked(), paper) == shown
    paths = report.write(again, asked(), paper, tmp_path / "out")
    with open(tmp_path / "out" / "comparisons.csv", newline="") as file:
        assert [float(row["gain"]) for row in csv.DictReader(file)] == pytest.approx([1, -3, -1 / 3])
    assert len(paths) == 3 and "| VDSR" in (tmp_path / "out" / "tables.md").read_text()


def test_the_tables_again_from_the_files(tmp_path, capsys):
    results = collect.read_cells(grid_of_four(tmp_path))
    collect.write(results, tmp_path / "out")
    report.main([str(tmp_path / "out"), "--compare", "L1", "L1+TLW", "--checkpoint", "last", "--null", "L1"])
    shown = capsys.readouterr().out
    assert "L1 against L1+TLW" in shown and "gain (last)" in shown and "L1 against itself" in shown
    report.main([str(tmp_path / "out"), "--brief", "--checkpoint", "last"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[1:9:2] == ["loss", "against", "network", "PSNR-Y"] and lines[2].startswith(
        "| `L1+TLW` | `L1`"
    )
    for words, expected in ((["--compare", "L1", "L2"], "one of: L1+TLW, L1"), (["--null", "L1+TLW"], "two seeds")):
        with pytest.raises(SystemExit):
            report.main([str(tmp_path / "out"), *words])
        assert expected in capsys.readouterr().err
    with pytest.raises(SystemExit):
        report.main([str(tmp_path)])
    assert "no images.csv" in capsys.readouterr().err


def test_each_seed_may_begin_from_weights_of_its_own(tmp_path):
    cells = [finish(cell(tmp_path, seed=seed, init=f"L1_{seed}.pt"), {"Set5": [33, 33, 33]}) for seed in (0, 1)]
    assert len(collect.read_cells(cells).trainings) == 2
    (swapped,) = [cell(tmp_path, seed=1, init="L1_0.pt")]
    with pytest.raises(ValueError, match="in init;"):
        collect.read_cells([cells[0], swapped])


def test_the_curves_of_validations(tmp_path, monkeypatch):
    """Means over seeds by step; of a step validated twice (the run resumed) the later scores; seconds as measured."""
    monkeypatch.chdir(tmp_path)
    for loss, psnr in (("L1", 30.0), ("L1+TLW", 31.0)):
        for seed in (0, 1):
            one = finish(cell(tmp_path, loss, seed=seed, metrics=("squeeze",)), {"Set5": [33.0, 33.0, 33.0]})
            lines = [(10, 1.0), (10, psnr + seed), (20, psnr + 2 + seed)]
            entries = [{"step": step, "validation": loss, "PSNR-Y": v, "LPIPS-squeeze": v / 100} for step, v in lines]
            (one.folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    cells = [cell(tmp_path, loss, seed=seed, metrics=("squeeze",)) for loss in ("L1", "L1+TLW") for seed in (0, 1)]
    results = collect.read_cells(cells, (), {"VDSR x2": {"L1": 0.5, "L1+TLW": 2.0}})
    collect.write(results, tmp_path / "out")
    figures.main(["progress", "--results", "out"])
    with open("figures/progress.csv", newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["VDSR x2", "L1", "10", "5.0", "30.5", "0.305", "2"],
        ["VDSR x2", "L1", "20", "10.0", "32.5", "0.325", "2"],
        ["VDSR x2", "L1+TLW", "10", "20.0", "31.5", "0.315", "2"],
        ["VDSR x2", "L1+TLW", "20", "40.0", "33.5", "0.335", "2"],
    ]
    assert Path("figures/progress.png").stat().st_size > 10_000
    for words in (["--metric", "SSIM"], ["--losses", "L2"]):
        with pytest.raises(SystemExit):
            figures.main(["progress", "--results", "out", *words])


def test_tests_holm_and_what_they_can_show(tmp_path):
    """Six seeds, two metrics: p by sign flips, Holm over both, and a note where nothing can be found."""
    random = np.random.default_rng(0)
    cells = []
    for seed, loss in itertools.product(range(6), ("L1+TLW", "L1")):
        better = 0.1 * (loss == "L1+TLW")
        scores = {
            "PSNR-Y": (30 + better + random.normal(0, 0.01, 3)).tolist(),
            "LPIPS-alex": random.normal(0.3, 0.1, 3).tolist(),
        }
        cells.append(finish(cell(tmp_path, loss, seed=seed), {"Set5": scores, "Set14": scores}))
    results = collect.read_cells(cells)
    psnr, lpips = report.comparison_rows(results)
    assert psnr["p"] == 2 / 2**6 and psnr["p Holm"] == 4 / 2**6 and psnr["won"] == 6
    assert lpips["p Holm"] == lpips["p"] > 2 / 2**6
    flipped = collect.gains(results, ("L1", "L1+TLW"), "LPIPS-alex")["VDSR", 2]
    assert flipped.shape == (6, 6) and lpips["gain"] == pytest.approx(-flipped.mean())
    shown = report.text(results, asked(null="L1"), Paper())
    assert "With 6 trainings and 2 tests no p (Holm) can be below 0.062" in shown
    assert "no p (Holm)" not in report.text(
        collect.read_cells(cells), asked(compare=[["L1+TLW", "L1"]]), Paper()
    ).replace("2 tests no", "")
    assert "Fewer than 6 trainings" in report.text(collect.read_cells(cells[:10]), asked(), Paper())


# --- the paper's numbers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, model", [("table1", None), ("table2", "HAT-TLW")])
def test_the_papers_tables(name, model):
    lines = (FOLDER / f"{name}_paper.csv").read_text().splitlines()
    if (shared := SHARED.with_name(f"{name}.csv")).exists():
        expected = shared.read_text().replace(",HAT,", f",{model},").splitlines()
        assert [line for line in lines if not line.startswith("#")] == expected


def test_numbers_of_the_papers():
    table1, table2, dp = (read_paper(name).values for name in NAMES)
    assert len(table1) == 5 * 3 * 13 and len(table2) == 5 * 3
    assert table1["", 4, "bicubic", "Set5"] == {"PSNR": 28.5944, "LPIPS": 0.2838}
    assert table1["EDSR", 2, "MSE+TLW", "Manga109"] == {"PSNR": 35.8462, "LPIPS": 0.0528}
    assert table2["HAT-TLW", 4, "L1+UDL", "BSDS100"] == {"PSNR": 27.573, "LPIPS": 0.3480}
    generator = "SRResNet[bilinear_skip=False]"
    assert dp[generator, 4, "mu0.5-layer3", "Set14"] == {"PSNR": 26.46, "SSIM": 0.7564, "LPIPS": 0.12}
    assert ("RRDBNet", 4, "mu1-layer1", "Set5") not in dp
    # Tables 4 and 5 repeat rows of Tables 2 and 3: so the symbols that are lost in our copy are known.
    assert [dp[generator, 4, "mu0.5-layer3", name]["LPIPS"] for name in ("Set5", "Set14", "BSDS100", "Urban100")] == [
        0.1051,
        0.1200,
        0.1370,
        0.1278,
    ]
    table5 = {"VGG": 25.37, "mu1-layer1": 25.95, "mu10-layer1": 25.71, "mu0.5-layer3": 25.82}
    assert {label: dp[generator, 4, label, "BSDS100"]["PSNR"] for label in table5} == table5


@pytest.mark.parametrize(
    "name, metric, protocol, value",
    [
        ("table1", "PSNR-Y", "paper", 36.9925),
        ("table1", "PSNR-Y", "standard", None),
        ("table1", "LPIPS-vgg", "paper", 0.0912),
        ("table1", "LPIPS-alex", "paper", None),
        ("table1", "SSIM-Y", "paper", None),
        ("table2", "PSNR-Y", "paper", None),
    ],
)
def test_the_paper_stands_beside_its_own_measures_only(name, metric, protocol, value):
    assert read_paper(name).number("EDSR", 2, "L1", "Set5", metric, protocol) == value
    assert Paper().number("EDSR", 2, "L1", "Set5", metric, protocol) is None
    assert read_paper("table2").number("HAT-TLW", 4, "L1", "Set5", "LPIPS-vgg-BGR", "table2") == 0.2059


# --- collecting -------------------------------------------------------------------------------------------------------


def test_nothing_is_collected_of_what_is_not_finished(tmp_path):
    done = finish(cell(tmp_path), {"Set5": [33, 34, 35]})
    assert collect.read_cells([done]) is not None
    (done.folder / TRAINED).unlink()  # val.py by hand on a run that is still trained
    assert collect.read_cells([done]) is None
    (done.folder / TRAINED).touch()
    whole = (done.folder / "test_last.json").read_text()
    (done.folder / "test_last.json").write_text(whole[: len(whole) // 2])
    assert collect.read_cells([done]) is None


def test_what_is_not_finite_is_said(tmp_path):
    cells = [finish(cell(tmp_path, "L1+TLW"), {"Set5": [None, 35, 36]}), finish(cell(tmp_path), {"Set5": [33, 34, 35]})]
    collect.write(collect.read_cells(cells), tmp_path / "out")
    results = collect.read(tmp_path / "out")
    assert "not finite" in report.text(results, asked(), Paper())
    assert math.isnan(report.comparison_rows(results)[0]["gain"])


@pytest.mark.parametrize(
    "other, word",
    [
        ({"settings": {"samples": 7}}, "differs from .* in samples"),
        ({"settings": {"steps": 7}}, None),  # as in equal time
        ({"protocol": "standard"}, "protocol"),
        ({"precision": "bf16"}, "precision"),
        ({"bicubic": (30, 31, 32.5)}, "other images under the same name"),
        ({"bicubic": (30, 31), "scores": {"Set5": [1, 2]}}, "other images under the same name"),
        ({"scores": {"Set14": [1, 2, 3]}}, "no data set that all 2 finished cells"),
    ],
)
def test_one_table_is_of_one_set_up(tmp_path, other, word):
    first = finish(cell(tmp_path), {"Set5": [33, 34, 35]})
    scores = other.pop("scores", {"Set5": [33, 34, 35]})
    second = finish(cell(tmp_path, seed=1, **other.pop("settings", {})), scores, **other)
    if word is None:
        assert collect.read_cells([first, second])
        return
    with pytest.raises(ValueError, match=word):
        collect.read_cells([first, second])


def test_data_sets_that_some_cells_lack_are_left_out(tmp_path):
    both = {"Set5": [34, 35, 36], "Set14": [1, 2, 3]}
    cells = [finish(cell(tmp_path), both), finish(cell(tmp_path, seed=1), {"Set5": both["Set5"]})]
    results = collect.read_cells(cells)
    assert results.values("dataset") == ["Set5"] and results.about["left out"] == ["Set14"]
    assert "not evaluated on it: Set14" in report.text(results, asked(), Paper())
    assert collect.read_cells(cells[:1], ["a/Set14"]).values("dataset") == ["Set14"]


def test_the_batch_of_the_set_up_is_all_that_is_accumulated(tmp_path):
    results = collect.read_cells([finish(cell(tmp_path, batchsize=2, accumulate=3, patch=32), {"Set5": [34, 35, 36]})])
    assert " of batch 6 on patches of 32 " in results.about["set-up"]
