"""Table I's statistics: against enumeration and hand computation, the paper's numbers, what one table cannot hold."""

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import configs
from configs import Config
from reproduce import collect, report
from reproduce.cells import TRAINED, Cell
from runs.atomic import atomic_write

SHARED = Path(__file__).parents[2].parent / "shared" / "reference" / "table1.csv"
LOSSES = ("L1+TLW", "MSE+TLW", "L1", "MSE")


def signed_rank_p(differences) -> float:
    """Wilcoxon's two-sided p by trying all signs; without zeros and ties."""
    ranks = np.argsort(np.argsort(np.abs(differences))) + 1
    positive = sum(rank for rank, d in zip(ranks, differences) if d > 0)
    sums = [sum(r for r, sign in zip(ranks, signs) if sign) for signs in itertools.product([0, 1], repeat=len(ranks))]
    low, high = (sum(s <= positive for s in sums), sum(s >= positive for s in sums))
    return min(1, 2 * min(low, high) / len(sums))


def cell(folder: Path, model="VDSR", scale=2, seed=0, **settings) -> Cell:
    config = Config(
        model=model, scale=scale, seed=seed, modelpath=str(folder / f"{model}_x{scale}_seed{seed}"), **settings
    )
    return Cell(config, ())


def by_image(scores: dict[str, list]) -> dict[str, dict]:
    """{metric: [...]} as val.json has it: {image: {metric: value}}."""
    return {str(i): dict(zip(scores, values)) for i, values in enumerate(zip(*scores.values(), strict=True))}


def finish(cell: Cell, scores, protocol="paper", judge="lpips-vgg", **more) -> Cell:
    """Write what a finished cell has; scores: {dataset: {loss: {metric: [...]}}}."""
    cell.folder.mkdir(parents=True)
    atomic_write(cell.folder / "config.yaml", configs.to_yaml(replace(cell.config, modelpath=None)))
    (cell.folder / TRAINED).write_text("train.py")
    about = {"checkpoint": "best", "protocol": protocol, "judge": judge, **more}
    entries = [
        about | {"dataset": name, "rows": [{"loss": loss, "per_image": by_image(of)} for loss, of in losses.items()]}
        for name, losses in scores.items()
    ]
    (cell.folder / "val.json").write_text(json.dumps({"evaluations": entries}))
    return cell


def psnr(bicubic=(30, 31, 32), **losses):
    """Scores of one data set; a loss's name with _ for +."""
    found = {"bicubic": {"PSNR-Y": list(bicubic)}}
    return found | {name.replace("_", "+"): {"PSNR-Y": list(values)} for name, values in losses.items()}


# --- statistics ---


@pytest.mark.parametrize("n", [1, 4, 6, 9])
def test_the_test_is_wilcoxons(n):
    by_seed = np.random.default_rng(n).normal(0.3, 1, (3, n))
    found = collect.compare(by_seed)
    by_image = by_seed.mean(axis=0)
    assert found.p == pytest.approx(signed_rank_p(by_image))
    assert (found.won, found.images) == (sum(by_image > 0), n)
    means = [sum(row) / n for row in by_seed]
    assert found.gain == pytest.approx(sum(means) / 3)
    assert found.deviation == pytest.approx((sum((m - sum(means) / 3) ** 2 for m in means) / 2) ** 0.5)


def test_more_seeds_or_networks_are_no_more_pairs():
    one = np.random.default_rng(0).normal(0.5, 1, (1, 6))
    many = np.repeat(one, 10, axis=0)
    assert collect.compare(many).p == collect.compare(one).p >= 2 / 2**6
    together = collect.compare_all([many, one, one[:, ::1]])
    assert together.p == collect.compare(one).p and together.images == 6 and together.deviation is None
    half = collect.compare_all([one, -one / 2])
    assert half.gain == pytest.approx(one.mean() / 4)


def test_one_seed_has_no_deviation_and_equal_losses_no_difference():
    found = collect.compare(np.zeros((1, 5)))
    assert found == (0, None, 0, 5, 1)
    assert collect.mean_and_deviation(np.array([1.0, 2.0, 6.0])) == (3, pytest.approx(7**0.5))


def test_what_is_compared():
    assert collect.pairs_of(LOSSES) == [("L1+TLW", "L1"), ("MSE+TLW", "MSE")]
    assert collect.pairs_of(["L1+TLW+DP", "L1+DP", "L1", "MSE+TLW"]) == [("L1+TLW+DP", "L1+DP")]
    losses = {
        "L1+TLW": {"PSNR-Y": np.array([[3.0]]), "LPIPS-alex": np.array([[0.2]])},
        "L1": {"PSNR-Y": np.array([[1.0]]), "LPIPS-alex": np.array([[0.5]])},
    }
    assert collect.gains(losses, ("L1+TLW", "L1"), "PSNR-Y") == [[2]]
    assert collect.gains(losses, ("L1+TLW", "L1"), "LPIPS-alex") == pytest.approx(0.3)
    assert collect.gains(losses, ("L1+TLW", "L1"), "SSIM-Y") is None


# --- the paper's numbers ---


def test_the_papers_table():
    paper = collect.read_paper()
    assert len(paper) == 5 * 3 * 13
    assert paper[collect.Place("Set5", 4, ""), "bicubic"] == {"PSNR": 28.5944, "LPIPS": 0.2838}
    assert paper[collect.Place("Manga109", 2, "EDSR"), "MSE+TLW"] == {"PSNR": 35.8462, "LPIPS": 0.0528}
    if SHARED.exists():
        lines = [line for line in collect.PAPER_FILE.read_text().splitlines() if not line.startswith("#")]
        assert lines == SHARED.read_text().splitlines()


def test_a_grid_with_the_papers_scores_wins_what_the_paper_wins(tmp_path):
    paper = collect.read_paper()
    cells = []
    for model, scale in itertools.product(("RCAN", "VDSR", "EDSR"), (2, 3, 4)):
        scores = {}
        for (place, loss), numbers in paper.items():
            if place.scale == scale and place.model in (model, ""):
                scores.setdefault(place.dataset, {})[loss] = {
                    "PSNR-Y": [numbers["PSNR"]],
                    "LPIPS-vgg-BGR": [numbers["LPIPS"]],
                }
        cells.append(finish(cell(tmp_path, model, scale), scores))
    grid = collect.read_grid(cells)
    won = collect.cells_won(grid, paper)
    # Counted in the table's rows with awk.
    expected = {
        ("L1+TLW", "PSNR-Y"): 27,
        ("L1+TLW", "LPIPS-vgg-BGR"): 42,
        ("MSE+TLW", "PSNR-Y"): 42,
        ("MSE+TLW", "LPIPS-vgg-BGR"): 33,
    }
    for pair, by_metric in won.items():
        for metric, found in by_metric.items():
            assert found == (found.paper_won, 45, found.paper_won, 45), (pair, metric)
            assert found.won == expected[pair[0], metric], (pair, metric)
    for row in report.score_rows(grid, paper):
        assert row["PSNR-Y"] == row["PSNR-Y paper"] and row["LPIPS-vgg-BGR"] == row["LPIPS-vgg-BGR paper"]
    assert len(report.score_rows(grid, paper)) == 5 * 3 * 13


@pytest.mark.parametrize(
    "metric, protocol, column",
    [
        ("PSNR-Y", "paper", "PSNR"),
        ("PSNR-Y", "standard", None),
        ("LPIPS-vgg", "paper", "LPIPS"),
        ("LPIPS-alex", "paper", None),
        ("SSIM-Y", "paper", None),
    ],
)
def test_the_paper_stands_beside_its_own_measures_only(metric, protocol, column):
    assert collect.paper_metric(metric, protocol) == column


# --- collecting ---


def test_means_seeds_and_files(tmp_path):
    """Two seeds of one network, one of another; checked by hand."""
    cells = [
        finish(cell(tmp_path), {"Set5": psnr(L1_TLW=[34, 35, 39], L1=[33, 34, 41])}),
        finish(cell(tmp_path, seed=1), {"Set5": psnr(L1_TLW=[34, 36, 41], L1=[33, 36, 36])}),
        finish(cell(tmp_path, "EDSR"), {"Set5": psnr(L1_TLW=[30, 30, 30], L1=[33, 33, 33])}),
        cell(tmp_path, "EDSR", seed=1),
    ]
    grid, paper = collect.read_grid(cells), collect.read_paper()
    rows = {(row["model"], row["loss"]): row for row in report.score_rows(grid, paper)}
    assert list(rows) == [("VDSR", "L1+TLW"), ("VDSR", "L1"), ("EDSR", "L1+TLW"), ("EDSR", "L1"), ("", "bicubic")]
    row = rows["VDSR", "L1+TLW"]
    assert (row["PSNR-Y"], row["PSNR-Y sd"], row["seeds"]) == (36.5, pytest.approx(0.5**0.5), 2)
    assert row["PSNR-Y paper"] == 37.2049 and rows["", "bicubic"]["PSNR-Y paper"] == 33.9569
    assert rows["EDSR", "L1"]["PSNR-Y sd"] is None

    by_network = collect.comparisons(grid)["L1+TLW", "L1"]["PSNR-Y"]
    # Gains of the images: (1 + 1)/2, (1 + 0)/2, (-2 + 5)/2; of the seeds: 0, 2.
    assert by_network["VDSR", 2] == (1, pytest.approx(2**0.5), 3, 3, pytest.approx(signed_rank_p([1, 0.5, 1.5])))
    assert by_network["EDSR", 2][:4] == (-3, None, 0, 3)
    assert by_network[None][:4] == (-1, None, 0, 3)
    assert collect.cells_won(grid, paper)["L1+TLW", "L1"]["PSNR-Y"] == (1, 2, 1, 2)

    shown = report.text(grid, paper, ["EDSR x2 seed 1"])
    for words in (
        "36.5000 ± 0.7071",
        "37.2049",
        "+1.0000 ± 1.4142",
        "3 of 3",
        "1 of 2 (paper 1 of 2)",
        "no p can be below 0.25",
        "Not there yet, 1 of the grid's cells: EDSR x2 seed 1",
    ):
        assert words in shown, words
    report.write(tmp_path / "table1", grid, paper, ["EDSR x2 seed 1"])
    written = json.loads((tmp_path / "table1.json").read_text())
    assert written["lacking"] == ["EDSR x2 seed 1"] and len(written["scores"]) == 5
    assert written["comparisons"][0]["gain"] == 1 and written["cells won"][0]["won"] == 1
    with open(tmp_path / "table1.csv", newline="") as file:
        assert [float(row["PSNR-Y"]) for row in csv.DictReader(file)] == [row["PSNR-Y"] for row in rows.values()]
    assert "| VDSR" in (tmp_path / "table1.md").read_text()


def test_nothing_is_collected_of_what_is_not_finished(tmp_path):
    done = finish(cell(tmp_path), {"Set5": psnr(L1=[33, 34, 35])})
    assert collect.read_grid([done]) is not None
    (done.folder / TRAINED).unlink()  # val.py by hand on a run that is still trained
    assert collect.read_grid([done]) is None
    (done.folder / TRAINED).touch()
    whole = (done.folder / "val.json").read_text()
    (done.folder / "val.json").write_text(whole[: len(whole) // 2])
    assert collect.read_grid([done]) is None


def test_what_is_not_finite_is_said(tmp_path):
    grid = collect.read_grid([finish(cell(tmp_path), {"Set5": psnr(L1_TLW=[None, 35, 36], L1=[33, 34, 35])})])
    assert "not finite" in report.text(grid, {}, [])
    assert np.isnan(collect.comparisons(grid)["L1+TLW", "L1"]["PSNR-Y"]["VDSR", 2].p)


@pytest.mark.parametrize("other", [{"protocol": "standard"}, {"precision": "bf16"}])
def test_an_evaluation_under_another_protocol_is_none(tmp_path, other):
    done = finish(cell(tmp_path), {"Set5": psnr(L1=[33, 34, 35])})
    finish(cell(tmp_path, seed=1), {"Set5": psnr(L1=[33, 34, 35])}, **other)
    assert collect.read_grid([done, cell(tmp_path, seed=1)]).seeds == {collect.Place("Set5", 2, "VDSR"): [0]}


@pytest.mark.parametrize(
    "other, word",
    [
        ({"steps": 7}, "differs from .* in steps"),
        ({"scores": {"Set5": psnr(bicubic=(30, 31, 32.5), L1=[1, 2, 3])}}, "other images under the same name"),
        ({"scores": {"Set5": psnr(bicubic=(30, 31), L1=[1, 2])}}, "different numbers of images"),
        ({"scores": {"Set14": psnr(L1=[1, 2, 3])}}, "no data set that all 2 finished cells"),
    ],
)
def test_one_table_is_of_one_set_up(tmp_path, other, word):
    first = finish(cell(tmp_path), {"Set5": psnr(L1=[33, 34, 35])})
    settings = {"steps": 7} if "steps" in other else {}
    scores = other.get("scores", {"Set5": psnr(L1=[33, 34, 35])})
    second = finish(cell(tmp_path, seed=1, **settings), scores)
    with pytest.raises(ValueError, match=word):
        collect.read_grid([first, second])


def test_data_sets_that_some_cells_lack_are_left_out(tmp_path):
    both = {"Set5": psnr(L1_TLW=[34, 35, 36], L1=[33, 34, 35]), "Set14": psnr(L1_TLW=[1, 2, 3], L1=[1, 2, 3])}
    cells = [finish(cell(tmp_path), both), finish(cell(tmp_path, seed=1), {"Set5": both["Set5"]})]
    grid = collect.read_grid(cells)
    assert {place.dataset for place in grid.scores} == {"Set5"} and grid.left_out == ["Set14"]
    assert "not evaluated on it: Set14" in report.text(grid, {}, [])
    assert {place.dataset for place in collect.read_grid(cells[:1], ["Set14"]).scores} == {"Set14"}
