"""report.py: what the page shows is what the run's files hold, it needs nothing from elsewhere, and its slider moves."""

import base64
import html
import io
import json
import os
import re
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import configs
import report
import train
from data import read_rgb
from models.bicubic import Bicubic
from runs.checkpoint import load_networks
from training import page, samples
from training.curves import draw, running_mean, thinned
from training.provenance import start_entry


@pytest.fixture(scope="module")
def ended(tiny_args, tmp_path_factory):
    """The folder of a whole run of three epochs that watched an image, and what it printed."""
    folder = tmp_path_factory.mktemp("report") / "run"
    args = [*tiny_args, "--endepoch", "3", "--watch", "1", "--metrics", "tiny", "--modelpath", str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "report_or_note", page.report_or_note)
        patch.setattr("sys.stdout", io.StringIO())
        train.main(args)
        out = train.sys.stdout.getvalue()
    return folder, out


@pytest.fixture
def run(ended, workplace):
    """A copy of that run's folder, in the working folder, without its page."""
    shutil.copytree(ended[0], "run")
    Path("run/report.html").unlink()
    return Path("run")


def made(*words, name="run/report.html") -> str:
    report.main([*map(str, words), "--device", "cpu"])
    return Path(name).read_text()


def images_of(text: str) -> dict[str, dict[str, np.ndarray]]:
    """The images to compare, by image and method."""
    content = re.search(r'<script type="application/json" id="samples">(.*?)</script>', text, re.S)[1]
    return {
        each["name"]: {name: pixels_of(source) for name, source in each["images"].items()}
        for each in json.loads(content)
    }


def pixels_of(source: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/png;base64,")))))


def rows_of(text: str) -> list[list[str]]:
    """The cells of all tables' rows."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row)]
        for row in re.findall(r"<tr>(<td.*?)</tr>", text, re.S)
    ]


def test_a_run_ends_with_it(ended):
    folder, out = ended
    assert f"report: {folder / 'report.html'}\n" in out
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_it_needs_nothing_from_elsewhere(ended):
    text = (ended[0] / "report.html").read_text()
    sources = re.findall(r'(?:src|href|action)="([^"]*)"', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources), sources
    assert not re.search(r"@import|fetch\(|XMLHttp|<link (?!rel=\"icon\")|<iframe", text)
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", text))


def test_how_to_repeat_it(run, images):
    start = next(x for x in map(json.loads, open("run/log.jsonl")) if "started" in x)
    text = html.unescape(made("run"))
    pixels = sorted(zlib.crc32(np.ascontiguousarray(read_rgb(path))) for path in images.iterdir())
    found = start["images"]["training"]
    assert found["count"] == len(pixels) == 4 and len(found["checksum"]) == 8
    assert f"4 images, checksum {found['checksum']}: {images}" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text and start["device"] in text
    assert "train.py --config run/config.yaml" in text  # this run was not begun by a command
    assert "EDSR (blocks=1 channels=8) x4 with L1+TLW, L1: 6 steps of batch 2, seed 0." in text
    assert Path("run/config.yaml").read_text() in text and "watch=1" in text


def test_its_command_line_is_shown(run):
    lines = [json.loads(line) for line in open("run/log.jsonl")]
    lines[0] |= {"command": "python train.py --losses 'L1 & <b>'", "folder": "/there"}
    Path("run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = made("run")
    assert "<b>" not in text and "cd /there\npython train.py --losses 'L1 & <b>'</pre>" in html.unescape(text)
    lines[0] |= {"folder": "/over there"}
    Path("run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "cd '/over there'\npython" in html.unescape(made("run"))


def test_a_step_s_batch_is_all_that_is_accumulated(run):
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("accumulate: 1", "accumulate: 3"))
    assert "6 steps of batch 6, seed 0." in html.unescape(made("run"))


def test_the_checksum_is_of_the_pixels(tiny_args, images, workplace):
    """The same for other names and another order, another for one other pixel."""
    found = []
    for name in ("a", "b", "c"):
        shutil.copytree(images, name)
        if name != "a":
            (Path(name) / "astronaut.png").rename(Path(name) / "z.png")
        if name == "c":
            rgb = read_rgb(Path("c/z.png")).copy()
            rgb[0, 0] ^= 1
            Image.fromarray(rgb).save("c/z.png")
        trainer = train.Trainer(configs.load([*tiny_args, "--trainpath", name, "--modelpath", f"run_{name}"]))
        found.append(start_entry(trainer.experiment))
    one, renamed, changed = (entry["images"]["training"] for entry in found)
    assert one == renamed != changed and one["count"] == changed["count"]


def test_tables(run):
    text = made("run")
    (entry,) = json.loads(Path("run/val.json").read_text())["evaluations"]
    training, evaluation = rows_of(text)[:2], rows_of(text)[2:]
    assert [row[0] for row in evaluation] == ["bicubic", "L1+TLW", "L1"]
    for shown, row in zip(evaluation, entry["rows"], strict=True):
        assert shown[1:4] == [f"{row[name]:.4f}" for name in ("PSNR-Y", "SSIM-Y", "tiny")]
        pace = f"{row['seconds_per_step']:.3g} ({row['times_plain']:.3g}x)" if row["loss"] != "bicubic" else ""
        assert shown[4:] == [pace, row["note"]]
    last = {x["validation"]: x for x in map(json.loads, open("run/log.jsonl")) if "validation" in x}
    for row in training:
        assert row[1] == "6" and row[2] == f"{last[row[0]]['PSNR-Y']:.4f}" and row[-1].endswith(" s")
    assert "2 networks, 1 seed: no test of which loss is better" in text
    assert "no control of the weights: add" in text


def test_time_of_a_step_in_all_tables(ended):
    folder, out = ended
    steps = [x["seconds_per_step"] for x in map(json.loads, (folder / "log.jsonl").open()) if "loss" in x]
    (entry,) = json.loads((folder / "val.json").read_text())["evaluations"]
    rows = {row["loss"]: row for row in entry["rows"]}
    for name in ("L1", "L1+TLW"):  # the first line, of what warms up, is left out
        assert rows[name]["seconds_per_step"] == pytest.approx(np.mean([x[name] for x in steps[1:]]))
        assert rows[name]["times_plain"] == pytest.approx(
            rows[name]["seconds_per_step"] / rows["L1"]["seconds_per_step"]
        )
    assert rows["L1+TLW"]["times_plain"] > 1.5 and "seconds_per_step" not in rows["bicubic"]
    assert "s/step (x plain)" in out and f"({rows['L1+TLW']['times_plain']:.3g}x)" in out
    assert "seconds_per_step,times_plain" in (folder / "val.csv").read_text().splitlines()[0]
    assert out.count("2 networks, 1 seed: no test") == 1


def test_images_are_the_watched_ones(run):
    ((name, shown),) = images_of(made("run")).items()
    assert list(shown) == ["bicubic", "L1+TLW", "L1", "reference"]
    with np.load("run/watch/0002.npz") as kept:
        for method, key in {"bicubic": "bicubic", "reference": "hr", "L1": "L1/sr", "L1+TLW": "L1+TLW/sr"}.items():
            np.testing.assert_array_equal(shown[method], kept[f"{name}/{key}"])


def test_weights_over_the_epochs(run):
    text = made("run")
    labels = re.findall(r"<figcaption>(epoch \d, k = [\d.]+)</figcaption>", text)
    assert labels == [f"epoch {i}, k = {0.3 + 0.6 * (1 - np.exp(-i / 200)):.2f}" for i in range(3)]
    sources = re.findall(r'<img src="([^"]*)" alt="weights, epoch', text)
    for epoch, source in enumerate(sources):
        with np.load(f"run/watch/{epoch:04}.npz") as kept:
            (key,) = (key for key in kept if key.endswith("/weights"))
            palette_index = np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))
            np.testing.assert_array_equal(palette_index, kept[key])


def test_images_without_watch_are_made_from_its_networks(run, images):
    shutil.rmtree("run/watch")
    shown = images_of(made("run", "--images", 2))
    config, nets, _ = load_networks(run, "best")
    validation = samples.validation_set(config)
    first = sorted(images.iterdir())[:2]
    assert list(shown) == [path.stem for path in first]
    for path, of in zip(first, shown.values()):
        hr = read_rgb(path)
        hr = hr[: hr.shape[0] // 12 * 12, : hr.shape[1] // 12 * 12]  # the paper's crop; smaller than the part shown
        np.testing.assert_array_equal(of["reference"], hr)
        lr = validation[first.index(path)][0]
        for name, net in {**nets, "bicubic": Bicubic(4)}.items():
            with torch.no_grad():
                sr = (net.eval()(lr[None])[0].clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).numpy() * 255
            assert np.abs(of[name] - sr).max() < 0.51, name
    assert not re.search(r"<figcaption>epoch", made("run", "--images", 0))
    assert "train with --watch 2" in made("run")


def test_validation_images_that_are_gone_are_a_note(run):
    shutil.rmtree("run/watch")
    settings = Path("run/config.yaml").read_text()
    Path("run/config.yaml").write_text(re.sub(r"valpath:.*?(?=\n\w)", "valpath: [/gone]", settings, flags=re.S))
    text = made("run")
    assert "no images: " in text and "/gone" in text and images_of(text) == {}


def test_several_runs(run):
    """One page on all, in the working folder; an image that is the same has the losses of both."""
    shutil.copytree("run", "other")
    text = made("run", "other", name="report.html")
    ((_, shown),) = images_of(text).items()
    assert list(shown) == ["bicubic", "run: L1+TLW", "run: L1", "other: L1+TLW", "other: L1", "reference"]
    assert len(rows_of(text)) == 10 and text.count("no test of which") == 2
    legend = re.findall(r"</svg>(.*?)</li>", text)
    assert legend == ["run: L1+TLW", "run: L1", "other: L1+TLW", "other: L1"]


def test_of_several_runs_it_is_said_which_networks_these_are(run):
    """One watched its images, those of the other are made now."""
    shutil.copytree("run", "other")
    shutil.rmtree("other/watch")
    text = made("run", "other", "--images", 1, name="report.html")
    (about,) = re.findall(r'"about": "(.*?)"', html.unescape(text).encode().decode("unicode_escape"))
    assert about == (
        "run: the middle of the image, by the networks of epoch 2. "
        "other: the middle of the image, by each loss's best network."
    )


def test_notes_and_damaged_lines(run):
    with open("run/log.jsonl", "a") as file:
        file.write('{"step": 3, "note": "something <script>alert(1)</script>"}\n{"step": 4, "left_out": "a.png"}\nhalf')
    text = made("run")
    assert "<script>alert" not in text and "something &lt;script&gt;" in text
    assert "step 4: left out: a.png" in text and "1 lines of log.jsonl could not be read" in text


def test_a_run_with_its_settings_alone(run):
    """As convert.py makes them, or of a run that has just begun."""
    for path in run.iterdir():
        if path.name != "config.yaml":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = made("run")
    assert "No log of a training" in text and "Nothing was measured yet." in text and "no images: " in text


@pytest.mark.parametrize(
    "words, expected",
    [
        (["nowhere"], "nowhere: no config.yaml there; expected a run's folder"),
        (["run", "nowhere"], "nowhere: no config.yaml there"),
        (["run/log.jsonl"], "no config.yaml there"),
        ([], "no run in "),
        (["run", "--images", "17"], "--images 17: expected"),
        (["run", "--images", "-1"], "--images -1: expected"),
        (["run", "--out", "run"], "--out run: expected a file"),
        (["run", "--out", ""], '--out "": expected a file'),
        (["run", "--out", "run/log.jsonl/a.html"], "expected a file for HTML"),
        (["run", "--device", "tpu"], "--device tpu"),
    ],
)
def test_bad_input_is_one_line(run, words, expected, capsys):
    before = sorted(Path(".").rglob("*"))
    with pytest.raises(SystemExit) as end:
        report.main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2 and out == "" and err.startswith("report.py: error: ") and err.count("\n") == 1
    assert expected in err and sorted(Path(".").rglob("*")) == before


@pytest.mark.parametrize("name, content", [("config.yaml", "patch: -1\n"), ("val.json", "{}"), ("config.yaml", "[")])
def test_a_damaged_run_is_one_line(run, name, content, capsys):
    (run / name).write_text(content)
    with pytest.raises(SystemExit) as end:
        report.main(["run"])
    out, err = capsys.readouterr()
    assert end.value.code == 2 and name in err and err.count("\n") == 1 and not Path("run/report.html").exists()


def test_a_damaged_watch_file_is_a_note(run):
    Path("run/watch/0002.npz").write_bytes(b"PK")
    assert "watch/0002.npz: cannot be read" in made("run")


def test_a_full_disk_is_one_line_at_a_run_s_end(run, monkeypatch, capsys):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "atomic_write", full)
    page.report_or_note(run, torch.device("cpu"), None)
    out, err = capsys.readouterr()
    assert out == "note: run/report.html was not written ([Errno 28] No space left on device)\n" and err == ""


# --- curves ---


def test_curves_take_the_colours_of_the_page():
    svg = draw({0: [(i, 1.0 / (i + 1)) for i in range(100)], 1: [(1, 2.0), (50, float("nan")), (99, 3.0)]}, False)
    assert svg.startswith("<svg") and "currentColor" in svg and "var(--faint)" in svg
    assert not re.search(r'#000000|black|<style|width="\d+pt|src=', svg)
    assert "time of its own steps (min)" in draw({0: [(0, 1.0), (400, 2.0)]}, True)
    assert "time of its own steps (h)" in draw({0: [(0, 1.0), (40_000, 2.0)]}, True)


def test_what_is_scheduled_is_drawn_as_it_is():
    """k's steps stay steps, and a cosine that ends near 0 does not take ten decades."""
    cosine = [(i, 1e-3 * (1 + np.cos(np.pi * i / 100)) / 2 + 1e-9) for i in range(101)]
    logarithmic, plain = draw({0: cosine}, False), draw({0: cosine}, False, noisy=False)
    assert "stroke-width: 0.7" in logarithmic and ">0.0002<" not in logarithmic
    assert "stroke-width: 0.7" not in plain and ">0.0002<" in plain


def test_long_curves_are_thinned_to_means():
    curve = [(i, float(i % 2)) for i in range(1000)]
    found = thinned(curve, 100)
    assert len(found) == 100 and found[0] == (4.5, 0.5) and found[-1] == (994.5, 0.5)
    assert thinned([(0, 1.0), (1, float("nan")), (2, 3.0)]) == [(0, 1.0), (2, 3.0)]
    assert running_mean([(i, float(i)) for i in range(10)])[5] == (5, 5.0)


# --- in a browser ---


def browser():
    """A headless Chromium, or the reason why there is none."""
    selenium = pytest.importorskip("selenium", reason="selenium is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program, driver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if not program or not driver:
        pytest.skip("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    from selenium.webdriver.chrome.service import Service

    options = selenium.webdriver.ChromeOptions()
    options.binary_location = program
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return selenium.webdriver.Chrome(options=options, service=Service(driver))


@pytest.fixture
def opened(run, monkeypatch):
    """The page of two runs in a browser that has no network."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)  # conftest's; the browser is asked over one too
    shutil.copytree("run", "other")
    made("run", "other", name="report.html")
    driver = browser()
    driver.get(Path("report.html").absolute().as_uri())
    yield driver
    errors = driver.get_log("browser")
    driver.quit()
    assert errors == []


def test_in_a_browser(opened):
    """The slider moves, by key and by pointer; any two methods can be chosen; curves change; nothing overflows."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select

    at = lambda name: opened.find_element(By.ID, name)  # noqa: E731
    share = lambda: opened.execute_script("return document.getElementById('stage').style.getPropertyValue('--cut')")  # noqa: E731
    shown = lambda side: at(f"{side}-image").get_attribute("src")  # noqa: E731
    clip = lambda: opened.execute_script("return getComputedStyle(document.getElementById('left-image')).clipPath")  # noqa: E731

    content = json.loads(at("samples").get_attribute("textContent"))[0]["images"]
    assert shown("left") == content["bicubic"] and at("right-name").text == "other: L1"
    assert share() == "50%" and "50%" in clip()
    at("slider").send_keys(Keys.ARROW_RIGHT)
    assert share() == "50.5%"
    ActionChains(opened).move_to_element_with_offset(at("slider"), 100, 20).click().perform()
    assert 60 < float(share().rstrip("%")) < 75
    for side, method in (("left", "run: L1+TLW"), ("right", "reference")):
        Select(at(side)).select_by_visible_text(method)
        assert shown(side) == content[method] and at(f"{side}-name").text == method
    widths = {
        opened.execute_script(f"return document.getElementById('{s}-image').naturalWidth") for s in ("left", "right")
    }
    assert len(widths) == 1 and widths.pop() > 0

    drawn = (
        opened.find_elements(By.CSS_SELECTOR, ".panels .steps"),
        opened.find_elements(By.CSS_SELECTOR, ".panels .time"),
    )
    visible = lambda: [{each.is_displayed() for each in kind} for kind in drawn]  # noqa: E731
    assert visible() == [{True}, {False}]
    opened.find_element(By.CSS_SELECTOR, "input[value=time]").click()
    assert visible() == [{False}, {True}]

    colours = []
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        colours.append(
            opened.execute_script("const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]")
        )
    brightness = [[sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in pair] for pair in colours]
    assert brightness[0][0] + 300 < brightness[0][1] and brightness[1][0] > brightness[1][1] + 300
    for width in (320, 1200):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        assert opened.execute_script("return document.documentElement.scrollWidth") <= width
