"""val.py beyond a run's plain rows: protocols at once, both checkpoints, finished images, notes, pictures, files."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import train
import val
from data import read_rgb
from metrics.evaluate import evaluate
from models import SR_MODELS
from models.bicubic import MatlabBicubic
from runs.evaluations import read_evaluations, write_evaluations
from training import evaluation, figures
from training.evaluation import choose_metrics
from training.rows import Method, Row, most_different_images
from training.validation import BICUBIC, EvaluationSet, metrics_on, read_validation_set, score

ROOT = Path(__file__).parents[1]
BICUBIC_ALONE = "--model bicubic --lpips --device cpu".split()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, tiny_args):
    """A run of two epochs under `standard`, validated by tiny, with its final evaluation; for reading only."""
    folder = tmp_path_factory.mktemp("run") / "small"
    train.main([*tiny_args, *f"--endepoch 2 --protocol standard --lpips tiny --modelpath {folder}".split()])
    return folder


@pytest.fixture
def run(run_folder, workplace):
    shutil.copytree(run_folder, workplace / "checkpoints/small")
    return Path("checkpoints/small")


def val_run(run: Path, *words) -> list[dict]:
    val.main(["--modelpath", str(run), "--device", "cpu", *map(str, words)])
    return read_evaluations(run / "val.json")


def places(entries: list[dict]) -> list[tuple]:
    return [(entry["protocol"], entry["dataset"], entry["checkpoint"]) for entry in entries]


# --- what val.json keeps ---


def test_defaults_are_the_run_s_own(run):
    """Protocol and metrics, at the run's end and afterwards."""
    (first,) = read_evaluations(run / "val.json")
    assert (first["protocol"], first["checkpoint"]) == ("standard", "best") and "tiny" in first["rows"][0]
    (again,) = val_run(run, "--best")
    assert {**again, "run": first["run"]} == first


def test_an_entry_for_each_protocol_data_set_and_checkpoint(run, images, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(images, other)
    before = read_evaluations(run / "val.json")
    entries = val_run(run, "--best", "--protocol", "paper", "--lpips")
    assert entries[0] == before[0] and places(entries) == [("standard", "cuts", "best"), ("paper", "cuts", "best")]
    for which in ("--best", "--last"):
        entries = val_run(run, which, "--folder", other, "--lpips")
    assert places(entries)[2:] == [("standard", "other", "best"), ("standard", "other", "last")]
    entries = val_run(run, "--best", "--protocol", "paper", "--lpips", "tiny", "--losses", "L1")
    assert len(entries) == 4 and places(entries)[-1] == ("paper", "cuts", "best")
    assert [row["loss"] for row in entries[-1]["rows"]] == ["bicubic", "L1"] and "tiny" in entries[-1]["rows"][0]
    lines = (run / "val.csv").read_text().splitlines()
    assert len(lines) == 1 + sum(len(entry["rows"]) for entry in entries) and lines[0].startswith("protocol,dataset")


def test_a_damaged_file_is_written_anew_and_a_foreign_one_is_not(run, capsys):
    text = (run / "val.json").read_text()
    (run / "val.json").write_text(text[:200])
    assert len(val_run(run, "--lpips")) == 1
    assert "val.json is damaged" in capsys.readouterr().out
    Path("mine.json").write_text('{"my": "notes"}')
    with pytest.raises(SystemExit) as end:
        val.main(["--modelpath", str(run), "--lpips", "--device", "cpu", "--out", "mine.json"])
    assert end.value.code == 2 and "mine.json: not a file of val.py" in capsys.readouterr().err
    assert Path("mine.json").read_text() == '{"my": "notes"}'


def test_two_processes_that_write_at_once_lose_nothing(workplace):
    program = (
        "import sys; from pathlib import Path; from runs.evaluations import write_evaluations\n"
        "for i in range(20):\n"
        "    entry = {'protocol': sys.argv[1], 'folder': str(i), 'checkpoint': '', 'rows': [{'loss': 'L1'}]}\n"
        "    assert write_evaluations(Path('val.json'), [entry])\n"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", program, word], env=environment) for word in ("a", "b")]
    assert [process.wait() for process in started] == [0, 0]
    found = {(entry["protocol"], entry["folder"]) for entry in read_evaluations(Path("val.json"))}
    assert found == {(word, str(i)) for word in "ab" for i in range(20)}


# --- rows and notes ---


def test_best_and_last_beside_each_other(run, capsys):
    entries = val_run(run, "--best", "--last", "--lpips")
    out = capsys.readouterr().out
    shown = [line.split()[:2] for line in out.splitlines() if line.lstrip().startswith("L1")]
    assert shown == [["L1+TLW", "best"], ["L1+TLW", "last"], ["L1", "best"], ["L1", "last"]]
    notes = {(e["checkpoint"], row["loss"]): row["note"] for e in entries for row in e["rows"]}
    assert notes["best", "L1"] == notes["best", "L1+TLW"] == "selected on these images"
    assert notes["last", "L1"] == notes["best", "bicubic"] == ""


def test_images_are_known_by_content_and_some_are_some(run, images, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(images, moved)
    for name in ("astronaut", "coffee"):
        (moved / f"{name}.png").rename(moved / f"renamed_{name}.png")
    Image.fromarray(read_rgb(images / "rocket.png")[::-1]).save(moved / "rocket.png")
    entries = val_run(run, "--best", "--folder", moved, "--lpips")
    assert entries[-1]["rows"][1]["note"] == "selected on 3 of these images"
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(images), "/gone"))
    entries = val_run(run, "--best", "--folder", moved, "--lpips")
    assert entries[-1]["rows"][1]["note"] == "selected on these? /gone is not there"


def flat(folder: Path, images: Path, every: bool = False) -> Path:
    """Photographs and one flat image, or flat images alone."""
    shutil.copytree(images, folder)
    for path in list(folder.iterdir()) if every else [folder / "coffee.png"]:
        Image.new("RGB", (72, 48), (90, 120, 30)).save(path)
    return folder


@pytest.mark.parametrize("every", [False, True])
def test_infinite_psnr_is_counted_and_left_out(images, workplace, every, capsys):
    folder = flat(workplace / "flat", images, every)
    val.main([*BICUBIC_ALONE, "--protocol", "standard", "--folder", str(folder), "--out", "r.json"])
    (row,) = read_evaluations(Path("r.json"))[0]["rows"]
    values = [image["PSNR-Y"] for image in row["per_image"].values()]
    finite = [value for value in values if value is not None]
    assert len(values) - len(finite) == row["infinite"]["PSNR-Y"] == (4 if every else 1)
    assert row["PSNR-Y"] == (None if every else pytest.approx(np.mean(finite)))
    assert row["note"] == ("PSNR-Y of 4 infinite" if every else "PSNR-Y of 1 infinite, not in the mean")
    assert max(image["SSIM-Y"] for image in row["per_image"].values()) == 1
    assert row["note"] in capsys.readouterr().out and "Infinity" not in Path("r.json").read_text()


def test_a_training_on_a_flat_image_has_a_mean(tiny_args, images, workplace, capsys):
    folder = flat(workplace / "flat", images)

    class Copy(torch.nn.Module):
        scale = 4

        def forward(self, lr):
            return torch.nn.functional.interpolate(lr, scale_factor=4)

    trainer = train.Trainer(train.configs.load([*tiny_args, "--valpath", str(folder), "--losses", "L1"]))
    e = trainer.experiment
    e.learners[0].net = Copy()
    trainer.report.scores(
        e.learners[0], 0, evaluate(Copy(), read_validation_set([folder], 4, "standard"), e.metrics, "standard")
    )
    out = capsys.readouterr().out
    assert "(PSNR-Y: 1 infinite, not in the mean)" in out and "PSNR-Y inf" not in out


# --- protocols at once, metrics ---


def one_network():
    torch.manual_seed(0)
    return SR_MODELS["EDSR"](scale=2, blocks=1, channels=8).eval()


def test_several_protocols_are_as_each_alone(images, assert_same):
    net, metrics = one_network(), metrics_on("cpu", ["ms-ssim"])
    protocols = ["table2", "standard", "paper"]
    sets = EvaluationSet(str(images), 2, protocols)
    found = score(sets, {p: {"net": lambda i, lr: net(lr)} for p in protocols}, metrics)
    for protocol in protocols:
        pairs = read_validation_set([images], 2, protocol)
        assert [sets.size(i, protocol) for i in range(4)] == pairs.sizes
        assert_same(found[protocol]["net"], evaluate(net, pairs, metrics, protocol))


def test_a_network_sees_an_lr_image_once(images, workplace):
    """Given LR images, cropped alike under two protocols."""
    for path in images.iterdir():
        rgb = Image.fromarray(read_rgb(path)[:48, :48])
        for name, image in {"hr": rgb, "lr": rgb.resize((24, 24))}.items():
            Path(name).mkdir(exist_ok=True)
            image.save(Path(name, path.name))
    sets, asked = EvaluationSet("hr", 2, ["paper", "standard"], "lr"), []

    def upscale(index, lr):
        asked.append(index)
        return MatlabBicubic(2)(lr)

    found = score(sets, {"paper": {"net": upscale}, "standard": {"net": upscale}}, {})
    assert asked == [0, 1, 2, 3]
    for protocol in sets.protocols:
        pairs = read_validation_set(["hr"], 2, protocol, ["lr"])
        assert found[protocol]["net"] == evaluate(MatlabBicubic(2), pairs, {}, protocol)
    assert found["paper"]["net"] != found["standard"]["net"]


def test_a_protocol_that_does_not_suit_the_scale(images, capsys):
    with pytest.raises(SystemExit) as end:
        val.main([*BICUBIC_ALONE, "--scale", "3", "--folder", str(images), "--protocol", "paper", "table2"])
    assert end.value.code == 2
    assert "multiples of 28, which x3 does not divide; use paper or standard" in capsys.readouterr().err


def test_a_run_under_table2_trains_on_its_crops(tiny_args, workplace):
    at = tiny_args.index("--patch")
    words = [*tiny_args[:at], *tiny_args[at + 4 :], "--losses", "L1"]
    sizes = {
        protocol: train.Trainer(train.configs.load([*words, "--protocol", protocol])).experiment.patches.pairs.sizes
        for protocol in ("paper", "standard", "table2")
    }
    assert sizes["paper"] == sizes["standard"] == [(48, 60), (48, 72), (60, 48), (60, 60)]
    assert sizes["table2"] == [(28, 56), (28, 56), (56, 28), (56, 56)]


def test_psnr_and_ssim_on_rgb(images, workplace):
    val.main([*BICUBIC_ALONE, "--rgb", "--protocol", "standard", "--folder", str(images), "--out", "r.json"])
    (row,) = read_evaluations(Path("r.json"))[0]["rows"]
    pairs = read_validation_set([images], 4, "standard")
    for (lr, hr), found in zip(pairs, row["per_image"].values()):
        sr = MatlabBicubic(4)(lr[None])[0].add(1).mul(127.5).clamp(0, 255).round()
        hr = hr.add(1).mul(127.5)
        sr, hr = (x.permute(1, 2, 0).double().numpy()[4:-4, 4:-4] for x in (sr, hr))
        assert found["PSNR-RGB"] == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-4)
        settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=2)
        assert found["SSIM-RGB"] == pytest.approx(structural_similarity(hr, sr, **settings), abs=1e-5)


def test_lpips_on_shaved_images(images, squeeze_file, workplace):
    words = [*BICUBIC_ALONE[:2], *f"--device cpu --folder {images} --out r.json --metrics squeeze".split()]
    words += ["--judge-weights", str(squeeze_file), "--shave-lpips"]
    val.main([*words, "--protocol", "paper", "standard"])
    paper, standard = (entry["rows"][0] for entry in read_evaluations(Path("r.json")))
    assert "LPIPS-squeeze" in paper and "LPIPS-squeeze" not in standard
    metric = metrics_on("cpu", ["squeeze"], (squeeze_file,))["LPIPS-squeeze"]
    for (lr, hr), found in zip(read_validation_set([images], 4, "standard"), standard["per_image"].values()):
        sr = MatlabBicubic(4)(lr[None]).add(1).mul(127.5).clamp(0, 255).round().div(127.5).sub(1)
        expected = metric(sr[..., 4:-4, 4:-4], hr[None, ..., 4:-4, 4:-4]).item()
        assert found["LPIPS-squeeze-shaved"] == pytest.approx(expected, abs=1e-6)


def test_the_self_ensemble_has_rows_of_its_own(run, images):
    entries = val_run(run, "--ensemble", "--lpips", "--losses", "L1")
    assert [row["loss"] for row in entries[-1]["rows"]] == ["bicubic", "L1", "L1 (x8)"]
    plain, ensemble = (row["PSNR-Y"] for row in entries[-1]["rows"][1:])
    assert plain != ensemble and abs(plain - ensemble) < 2


def test_nothing_is_downloaded_that_was_not_asked_for(capsys, alex_file):
    """conftest's download fails; it is not tried."""
    metrics = choose_metrics("cpu", ["tiny"])
    assert list(metrics) == ["tiny", "1-MS-SSIM"]
    assert capsys.readouterr().out.startswith("left out: LPIPS beside the judge's network")
    assert list(choose_metrics("cpu", ["tiny"], weights=(alex_file,))) == ["tiny", "LPIPS-alex"]
    with pytest.raises(ValueError, match="could not be fetched"):
        choose_metrics("cpu", ["tiny"], ["squeeze"])


# --- what is left out ---


def test_damaged_and_small_images_are_named_and_left_out(images, workplace, capsys):
    shutil.copytree(images, "some")
    Path("some/torn.png").write_bytes((images / "rocket.png").read_bytes()[:900])
    Image.new("RGB", (40, 15)).save("some/low.png")
    words = [*BICUBIC_ALONE, "--folder", "some", "--out", "r.json", "--protocol", "standard"]
    for more, wrong in (([], "torn.png"), (["--bad-images", "skip"], "low.png is 12x40")):
        with pytest.raises(SystemExit) as end:
            val.main([*words, *more])
        err = capsys.readouterr().err
        assert end.value.code == 2 and wrong in err and not Path("r.json").exists()
    assert "--skip-small" in err
    val.main([*words, "--bad-images", "skip", "--skip-small"])
    out = capsys.readouterr().out
    assert "some (4)" in out and sum(line.startswith("left out: ") for line in out.splitlines()) == 2
    (entry,) = read_evaluations(Path("r.json"))
    assert len(entry["left_out"]) == 2 and list(entry["rows"][0]["per_image"]) == sorted(
        p.name for p in images.iterdir()
    )


def test_no_image_is_left(images, workplace, capsys):
    Path("low").mkdir()
    Image.new("RGB", (40, 15)).save("low/low.png")
    words = [*BICUBIC_ALONE, "--protocol", "standard"]
    with pytest.raises(SystemExit) as end:
        val.main([*words, "--folder", "low", "--skip-small"])
    assert end.value.code == 2 and "low: no image is left of 1" in capsys.readouterr().err


# --- finished images ---


@pytest.fixture
def finished(images, workplace):
    """SR images of a bicubic x4 in out/cuts, named as toolkits do."""
    forms = ["{}.png", "{}_x4.png", "{}x4_SR.png", "{}_EDSR_baseline.png"]
    for form, (lr, _), path in zip(forms, read_validation_set([images], 4, "standard"), sorted(images.iterdir())):
        levels = MatlabBicubic(4)(lr[None])[0].add(1).mul(127.5).clamp(0, 255).round().to(torch.uint8)
        Path("out/cuts").mkdir(parents=True, exist_ok=True)
        Image.fromarray(levels.permute(1, 2, 0).numpy()).save(Path("out/cuts", form.format(path.stem)))
    return Path("out")


@pytest.mark.parametrize("below", ["", "cuts"])
def test_finished_images_are_a_row(images, finished, below, capsys):
    """The bicubic row's images as files: the bicubic row's scores."""
    words = ["--folder", str(images), "--sr-folder", f"mine={finished / below}", "--out", "r.json"]
    val.main([*BICUBIC_ALONE, *words, "--protocol", "standard", "paper"])
    standard, paper = read_evaluations(Path("r.json"))
    bicubic, mine = standard["rows"]
    assert (mine["loss"], mine["note"]) == ("mine", "8-bit files") and mine["per_image"] == bicubic["per_image"]
    assert paper["rows"][1]["PSNR-Y"] != paper["rows"][0]["PSNR-Y"]
    assert "8-bit files" in capsys.readouterr().out


def test_finished_images_beside_a_run_under_each_protocol(run, images, finished):
    entries = val_run(run, "--sr-folder", f"mine={finished}", "--protocol", "paper", "standard", "--lpips")
    assert [[row["loss"] for row in entry["rows"]] for entry in entries[-2:]] == [
        ["bicubic", "L1+TLW", "L1", "mine"]
    ] * 2


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda out: (out / "coffee_x4.png").unlink(), "mine: no SR image of"),
        (lambda out: shutil.copy(out / "coffee_x4.png", out / "coffee_x2.png"), "has two SR partners"),
        (lambda out: Image.new("RGB", (18, 12)).save(out / "coffee_x4.png"), "is 12x18; expected 48x72"),
        (lambda out: (out / "coffee_x4.png").write_bytes(b"no"), "cannot read image"),
        (lambda out: shutil.rmtree(out), "no images in out"),
    ],
)
def test_what_is_wrong_with_finished_images_is_said(images, finished, change, words, capsys):
    change(finished / "cuts")
    with pytest.raises(SystemExit) as end:
        val.main([*BICUBIC_ALONE, "--folder", str(images), "--sr-folder", f"mine={finished}", "--out", "r.json"])
    err = capsys.readouterr().err
    assert end.value.code == 2 and words in err and err.count("\n") == 1 and not Path("r.json").exists()


def test_an_image_without_a_partner_can_be_left_out(images, finished):
    (finished / "cuts/coffee_x4.png").unlink()
    words = ["--folder", str(images), "--sr-folder", f"mine={finished}", "--out", "r.json", "--bad-images", "skip"]
    val.main([*BICUBIC_ALONE, *words])
    (entry,) = read_evaluations(Path("r.json"))
    assert [row["files"] for row in entry["rows"]] == [3, 3] and "no SR image" in entry["left_out"][0]


@pytest.mark.parametrize("words, wrong", [("mine", "NAME=DIR"), ("a=x a=y", "once"), ("bicubic=x", "no other row")])
def test_names_of_finished_images(images, words, wrong, capsys):
    with pytest.raises(SystemExit) as end:
        val.main([*BICUBIC_ALONE, "--folder", str(images), "--sr-folder", *words.split()])
    assert end.value.code == 2 and wrong in capsys.readouterr().err


# --- pictures and files ---


def test_saved_images_are_what_was_measured(run, images):
    """Given back as finished images they have the same scores."""
    first = val_run(run, "--losses", "L1", "--lpips", "--save-images", "saved")[-1]
    assert sorted(path.name for path in Path("saved/cuts").iterdir()) == ["L1 last", "bicubic"]
    assert {path.suffix for path in Path("saved/cuts/L1 last").iterdir()} == {".png"}
    words = ["--folder", images, "--lpips", "--sr-folder", "again=saved/cuts/L1 last"]
    again = val_run(run, "--losses", "L1", *words)[-1]
    assert again["rows"][2]["per_image"] == first["rows"][1]["per_image"]
    val_run(run, "--losses", "L1", "--lpips", "--save-images", "both", "--protocol", "paper", "standard")
    assert {path.name for path in Path("both/cuts").iterdir()} == {"paper", "standard"}


def test_images_that_cannot_be_saved_cost_one_line(images, workplace, capsys):
    Path("saved").write_text("a file")
    with pytest.raises(SystemExit) as end:
        val.main([*BICUBIC_ALONE, "--folder", str(images), "--out", "r.json", "--save-images", "saved"])
    out, err = capsys.readouterr()
    assert end.value.code == 1 and err.count("\n") == 1 and "not written: saved" in err and "PSNR-Y" in out
    assert read_evaluations(Path("r.json"))


def rows_of(**scores):
    """Rows of one data set: each method's PSNR-Y."""
    return [Row("set", "paper", Method(name), {"PSNR-Y": values}) for name, values in scores.items()]


def test_which_images_differ_most():
    rows = rows_of(bicubic=[19, 1, 1, 1], a=[5, 5, 5, float("inf")], b=[5, 8, 4, 4], c=[5, 5, 9, 5])
    found = most_different_images(rows, 3)
    assert found == [
        ("set", 2, Method("b"), Method("c")),
        ("set", 1, Method("a"), Method("b")),
        ("set", 3, Method("b"), Method("c")),
    ]
    assert most_different_images(rows[:2], 1) == [("set", 0, Method("a"), Method("bicubic"))]
    by_lpips = [row._replace(scores=row.scores | {"LPIPS-alex": list(reversed(row.scores["PSNR-Y"]))}) for row in rows]
    assert most_different_images(by_lpips, 1)[0][1] == 1


def test_where_two_images_differ_most():
    one, other = torch.zeros(1, 3, 100, 140), torch.zeros(1, 3, 100, 140)
    other[..., 60:70, 90:100] = 1
    rows, columns = figures.most_different(one, other, 32)
    assert rows.stop - rows.start == columns.stop - columns.start == 32
    assert rows.start <= 60 and rows.stop >= 70 and columns.start <= 90 and columns.stop >= 100
    assert figures.most_different(one[..., :20, :20], other[..., :20, :20], 32) == (slice(0, 20), slice(0, 20))


def test_the_worst_images_are_drawn(run, images, monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(
        "training.comparison.side_by_side", lambda crops: seen.extend(crops) or figures.side_by_side(crops)
    )
    entry = val_run(run, "--worst", "2", "--lpips", "tiny")[-1]
    assert Image.open(run / "val_worst.png").width > 600 and "val_worst.png" in capsys.readouterr().out
    rows = {row["loss"]: row["per_image"] for row in entry["rows"]}
    gaps = {name: abs(rows["L1"][name]["tiny"] - rows["L1+TLW"][name]["tiny"]) for name in rows["L1"]}
    assert [crop.title.split("\n")[1] for crop in seen] == sorted(gaps, key=gaps.get, reverse=True)[:2]
    assert list(seen[0].images) == ["reference", "bicubic", "L1+TLW last", "L1 last"]
    name = seen[0].title.split("\n")[1]
    assert f"tiny {rows['L1'][name]['tiny']:.4f}" in seen[0].captions["L1 last"]


def test_a_picture_that_fails_costs_one_line(run, monkeypatch, capsys):
    def fail(*of):
        raise MemoryError

    monkeypatch.setattr(evaluation, "draw_worst", fail)
    with pytest.raises(SystemExit) as end:
        val_run(run, "--worst", "1", "--lpips")
    out, err = capsys.readouterr()
    assert end.value.code == 1 and "written: " in out
    assert err == f"val.py: error: {run}/val_worst.png was not drawn (MemoryError)\n"


@pytest.mark.parametrize("more, wrong", [([], "--sr-folder"), (["--sr-folder", "a=x"], "--out"), ([], "--worst")])
def test_the_worst_of_one_method_alone(images, workplace, more, wrong, capsys):
    out = ["--out", "r.json"] if not more else []
    with pytest.raises(SystemExit) as end:
        shutil.copytree(images, "x")
        val.main([*BICUBIC_ALONE, "--folder", str(images), "--worst", "1", *more, *out])
    assert end.value.code == 2 and wrong in capsys.readouterr().err


def test_bicubic_scores_are_json(images, workplace):
    """Whatever reads it: no NaN, names of files, the folder's full path."""
    val.main([*BICUBIC_ALONE, "--folder", str(images), "--out", "r.json"])
    (entry,) = json.loads(Path("r.json").read_text(), parse_constant=pytest.fail)["evaluations"]
    assert entry["folder"] == str(images) and Path(entry["folder"]).is_absolute()
    assert write_evaluations(Path("r.json"), [entry]) and read_evaluations(Path("r.json")) == [entry]
    assert BICUBIC.keys() == {"paper", "standard", "table2"}
