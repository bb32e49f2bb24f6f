"""The grids of the papers' tables: their cells, and that each has the paper's numbers beside it."""

import re
import shlex
from pathlib import Path

import pytest

import val
from reproduce import collect, dp, grid, table1, table2
from reproduce.figures.__main__ import FIGURES, parse
from reproduce.grid import Preset

ROOT = Path(__file__).parents[2]
DOCUMENTED = re.findall(
    r"python -m reproduce\.(table1|table2|dp|figures) ([^\n`]+)", (ROOT / "docs/reproduce.md").read_text()
)


def cells_of(preset: Preset, images, *flags: str):
    argv = ["--trainpath", str(images), "--valpath", str(images), "--seeds", "1", *flags]
    return grid.base_cells(grid.parse(argv, preset))


def test_table_2(images, monkeypatch):
    cells = cells_of(table2.PRESET, images)
    assert [cell.loss for cell in cells] == ["L1", "L1+TLW", "L1+UDL"]
    config = cells[0].config
    assert (config.protocol, config.patch, config.tiles, config.udl_minimum) == ("table2", 336, True, "batch")
    for cell in cells:
        numbers = [
            table2.PRESET.paper.number(cell.network, 4, cell.loss, "Set5", metric, config.protocol)
            for metric in ("PSNR-Y", "LPIPS-vgg")
        ]
        assert None not in numbers


def test_table_1_has_its_numbers(images):
    for cell in cells_of(table1.PRESET, images):
        place = (cell.network, cell.config.scale, cell.loss, "BSDS100")
        assert table1.PRESET.paper.number(*place, "PSNR-Y", cell.config.protocol)


@pytest.mark.parametrize("config", [None, "own"])
def test_a_papers_validation_images_are_not_those_of_its_table(config, images, tmp_path, monkeypatch):
    """Set5 of configs/table2.yaml, which its table reports: training images are held out instead."""
    monkeypatch.chdir(ROOT)
    argv = ["--trainpath", str(images), "--folder", "datasets/Set5", "--out", str(tmp_path)]
    if config:
        (tmp_path / "own.yaml").write_text("valpath: [mine]")
        argv += ["--config", str(tmp_path / "own.yaml")]
    valpaths = {cell.config.valpath for cell in grid.make_cells(grid.parse(argv, table2.PRESET))}
    assert valpaths == {("mine",) if config else (str(tmp_path / "images/val" / images.name),)}


def test_a_table_is_collected_without_the_training_images(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = ["--collect", "--trainpath", "nowhere", "--folder", "datasets/Set5", "--out", str(tmp_path)]
    assert len(grid.make_cells(grid.parse(argv, table2.PRESET))) == 9


@pytest.mark.parametrize("table", dp.TABLES)
def test_tables_of_the_dual_perceptual_loss(table, images, monkeypatch):
    made = []
    monkeypatch.setattr(grid, "main", lambda argv, preset: made.append((argv, preset)))
    dp.main(["--table", str(table), "--steps", "5"])
    ((argv, preset),) = made
    cells = cells_of(preset, images, *argv)
    losses = {collect.label_of(cell.loss): next(iter(cell.config.variants.values())).config for cell in cells}
    assert len(losses) == {2: 7, 3: 4, 5: 4, 7: 3}[table] and all(config.steps == 5 for config in losses.values())
    for cell, label in zip(cells, losses):
        assert preset.paper.number(cell.network, 4, label, "BSDS100", "PSNR-Y", cell.config.protocol)
    settings = {label: (c.dp_mu, c.dp_extractors[1:], c.dp_dynamic) for label, c in losses.items()}
    stage = "resnet50:layer{}".format
    expected = {
        "VGG": (0.5, (), True),
        "mu0.2-layer1": (0.2, (stage(1),), True),
        "mu10-layer1": (10, (stage(1),), True),
        "mu0.5-layer4": (0.5, (stage(4),), True),
        "mu0.5-layer3": (0.5, (stage(3),), True),
        "sum-layer3": (0.5, (stage(3),), False),
    }
    assert settings.items() >= {label: of for label, of in expected.items() if label in settings}.items()
    assert all(config.dp_extractors[0] == "vgg19:conv5_4" for config in losses.values())


def test_labels():
    assert collect.label_of("L1+TLW[wc=one,label=map]") == "map" and collect.label_of("L1[label=a-1.5]") == "a-1.5"
    assert [collect.label_of(loss) for loss in ("L1", "L1+TLW[wc=one]")] == ["L1", "L1+TLW[wc=one]"]


@pytest.mark.parametrize("program, flags", [(p, f) for p, f in DOCUMENTED if not f.endswith("...")], ids=str)
def test_documented_commands(program, flags, monkeypatch):
    monkeypatch.chdir(ROOT)
    argv = shlex.split(flags)
    if program == "figures":
        assert parse(argv)[0] == argv[0]
    elif program == "dp":
        made = []
        monkeypatch.setattr(grid, "main", lambda argv, preset: made.append((argv, preset)))
        dp.main(argv)
        assert grid.parse(*made[0]).folder[-1] == "datasets/Urban100"
    else:
        args = grid.parse(argv, {"table1": table1, "table2": table2}[program].PRESET)
        assert args.bgr and len(args.folder) == 5 and args.seeds == 6


def test_table_1_as_it_was_printed():
    """One command of val.py for the five data sets, in the table's order, with its LPIPS."""
    page = (ROOT / "docs/evaluation.md").read_text().partition("## Table I, as it was printed")[2]
    args = val.parse(shlex.split(re.search(r"python val\.py ((?:.*\\\n)*.*)", page)[1].replace("\\\n", " ")))
    assert [path.rpartition("/")[2] for path in args.folder] == ["Urban100", "Set5", "Set14", "BSDS100", "Manga109"]
    assert args.bgr and args.best and args.protocol == ["paper"] and args.metrics == ["vgg"]


def test_every_figure_is_documented():
    assert {shlex.split(flags)[0] for program, flags in DOCUMENTED if program == "figures"} >= FIGURES.keys() - {"hero"}
