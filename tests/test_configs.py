"""The settings: one set of names for flags and YAML, wrong ones refused in one line."""

import dataclasses
from pathlib import Path

import pytest
import yaml

import configs
from configs import Config

ROOT = Path(__file__).parents[1]
FIELDS = {field.name: field for field in dataclasses.fields(Config)}

# Every field with a value that is not its default.
OTHER = {
    "model": "RCAN",
    "model_options": {"groups": 2, "depths": [1, 2]},
    "scale": 3,
    "init": "paper",
    "init_loss": "MSE",
    "init_best": True,
    "init_weighting": True,
    "losses": ("L1",),
    "judge": "lpips-alex",
    "judge_weights": ("a.pth", "b.pth"),
    "judge_memory": 100,
    "samples": 5,
    "eps": 0.01,
    "k_start": 0.2,
    "k_end": 0.7,
    "k_epochs": 3.5,
    "m_step": "released",
    "weights": "uniform",
    "wc": "one",
    "e_every": 4,
    "reuse_mu": True,
    "weighting_scale": 2,
    "weighting_channels": 32,
    "udl_epoch": 4,
    "udl_head": "tlw",
    "udl_plus_one": False,
    "udl_minimum": "batch",
    "udl_restart": True,
    "pspl_alpha": 0.3,
    "pspl_beta": 0.2,
    "pspl_max": 3.0,
    "pspl_epoch": 500,
    "pspl_ssim": "authors",
    "dp_extractors": ("alexnet:conv5",),
    "dp_mu": 0.2,
    "dp_dynamic": False,
    "extractor_weights": ("c.pth",),
    "pixel_weight": 0.5,
    "gan_weight": 0.1,
    "gan": "ragan",
    "pretrain_epochs": 1.5,
    "milestones": (5, 10),
    "trainpath": ("a", "b c"),
    "lrpath": ("d",),
    "valpath": ("e",),
    "vallrpath": ("f",),
    "lr_template": "{}_small",
    "tiles": True,
    "degradation": "blur-noise-jpeg",
    "cache": "g",
    "cache_size": 1.5,
    "patch": 48,
    "skip_small": True,
    "bad_images": "skip",
    "augment": True,
    "repeat": 7,
    "batchsize": 2,
    "workers": 3,
    "learning_rate": 2e-5,
    "optimizer": "adamw",
    "weight_decay": 0.2,
    "ema": 0.99,
    "betas": (0.9, 0.99),
    "schedule": "step",
    "step_epochs": 9,
    "step_gamma": 0.1,
    "startepoch": 4,
    "endepoch": 8,
    "steps": 11,
    "seed": 12,
    "precision": "bf16",
    "compile": True,
    "deterministic": True,
    "device": "cpu",
    "modelpath": "m",
    "load": True,
    "auto_resume": True,
    "best_by": "SSIM-Y",
    "on_divergence": "stop",
    "metrics": ("squeeze", "alex"),
    "protocol": "standard",
    "log_every": 13,
    "watch": 2,
    "tensorboard": True,
    "save_every": 5,
    "color": "grey",
    "accumulate": 3,
    "restart_every": 8,
    "validate_every": 6,
    "keep_every": 7,
    "checkpoint": "step_14",
    "save_minutes": 2.5,
    "clip_grad": 0.5,
    "max_skipped": 3,
    "warmup": 20,
}


def flags_of(values: dict) -> list[str]:
    words = []
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, dict):
            words += [flag, *(f"{k}={v}" for k, v in value.items())]
        else:
            words += [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    return words


def write(path, values) -> str:
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return str(path)


def refused(capsys, *argv) -> str:
    """The one line that load says before it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        configs.load([str(word) for word in argv])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("train.py: error: ")
    return err


def test_every_field_is_tried():
    assert OTHER.keys() == FIELDS.keys()
    assert not [name for name, value in OTHER.items() if value == FIELDS[name].default]


def test_nothing_given_is_the_defaults():
    assert configs.load([]) == Config()


@pytest.mark.parametrize("separator", "-_")
def test_flags_and_yaml_share_names(tmp_path, separator, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()  # --modelpath m, for --load
    Path("m/config.yaml").write_bytes(configs.to_yaml(Config(**OTHER)))
    Path("m/last.pt").touch()
    keys = {name.replace("_", separator): list(v) if isinstance(v, tuple) else v for name, v in OTHER.items()}
    file = write(tmp_path / "c.yaml", keys)
    assert configs.load(["--config", file]) == configs.load(flags_of(OTHER) + ["--config", file]) == Config(**OTHER)


@pytest.mark.parametrize("name", sorted(FIELDS.keys() - {"load"}))  # which needs a run
def test_a_flag_alone_changes_its_field(name):
    beside = {"k_end": {"k_start": 0.1}, "auto_resume": {"modelpath": "nowhere"}}.get(name, {})
    config = configs.load(flags_of({name: OTHER[name]} | beside))
    assert getattr(config, name) == OTHER[name]
    changed = {n for n in FIELDS if getattr(config, n) != getattr(Config(), n)}
    assert changed == {name} | beside.keys()


@pytest.mark.parametrize("name", FIELDS)
def test_save_and_reload(tmp_path, name):
    config = Config(**{name: OTHER[name]})
    (tmp_path / "config.yaml").write_bytes(configs.to_yaml(config))
    assert configs.from_mapping(configs.read_yaml(tmp_path / "config.yaml")) == config


def test_flags_win(tmp_path):
    file = write(tmp_path / "c.yaml", {"patch": 48, "augment": True, "losses": ["L1", "MSE"], "seed": 3})
    config = configs.load(["--config", file, "--patch", "96", "--no-augment", "--losses", "L1+TLW"])
    assert (config.patch, config.augment, config.losses, config.seed) == (96, False, ("L1+TLW",), 3)


def test_yaml_conveniences(tmp_path):
    config = configs.load(
        ["--config", write(tmp_path / "c.yaml", "learning_rate: 1e-5\nlosses: L1\nk_epochs: 7\npatch: null\n")]
    )
    assert (config.learning_rate, config.losses, config.k_epochs, config.patch) == (1e-5, ("L1",), 7.0, None)
    assert isinstance(config.k_epochs, float)
    assert configs.load(["--config", write(tmp_path / "empty.yaml", "# nothing\n")]) == Config()


def test_model_options():
    config = configs.load(["--model-options", "blocks=4", "depths=[6, 6]", "ratio=0.5"])
    assert config.model_options == {"blocks": 4, "depths": [6, 6], "ratio": 0.5}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files(path):
    config = configs.load(["--config", str(path)])
    values = yaml.safe_load(path.read_text())
    for key, value in values.items():
        loaded = getattr(config, key.replace("-", "_"))
        assert loaded == (tuple(value) if isinstance(value, list) else value), key


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_files_hold_only_differences(path):
    config = configs.load(["--config", str(path)])
    keys = [key.replace("-", "_") for key in yaml.safe_load(path.read_text())]
    assert [key for key in keys if getattr(config, key) == FIELDS[key].default] == []


@pytest.mark.parametrize(
    "argv, words",
    [
        (["--modle", "EDSR"], "unknown argument --modle; did you mean --model?"),
        (["--k_start", "0.4"], "did you mean --k-start?"),
        (["--batchsiz=4"], "did you mean --batchsize?"),
        (["--zzzz"], "unknown argument --zzzz; see --help"),
        (["stray"], "unknown argument stray"),
        (["--loss", "L1"], "did you mean --losses L1 MSE?"),  # no silent abbreviations
        (["--model-options", "blocks"], "--model-options blocks: expected NAME=VALUE"),
        (["--config", "nowhere.yaml"], "--config nowhere.yaml: no such file"),
        (["--load"], "--load: no run in checkpoints without --modelpath"),
        (["--load", "--modelpath", "nowhere"], "--load: no run in nowhere"),
    ],
)
def test_wrong_command_lines(capsys, argv, words):
    assert words in refused(capsys, *argv)


@pytest.fixture
def run_of_l1(tmp_path, monkeypatch):
    """A run's folder `m`, where the tests then are."""
    monkeypatch.chdir(tmp_path)
    Path("m").mkdir()
    Path("m/config.yaml").write_bytes(configs.to_yaml(Config(losses=("L1",))))


@pytest.mark.parametrize(
    "values, words",
    [
        ({"modelpath": "m", "losses": ["MSE"]}, "--losses MSE: the run was started with L1"),
        ({"modelpath": "m"}, "--losses L1+TLW MSE+TLW L1 MSE: the run was started with L1"),
        ({"modelpath": "nowhere", "losses": ["L1"]}, "--load: no run in nowhere"),
        ({"losses": ["L1"]}, "--load: no run in checkpoints without --modelpath"),
    ],
    ids=str,
)
def test_load_in_a_file_is_checked_as_the_flag_is(run_of_l1, capsys, values, words):
    write(Path("with.yaml"), values | {"load": True})
    write(Path("without.yaml"), values)
    for argv in (["--config", "with.yaml"], ["--config", "without.yaml", "--load"]):
        assert words in refused(capsys, *argv)
    assert not configs.load(["--config", "with.yaml", "--no-load"]).load


def test_resume_is_another_word_for_load(run_of_l1):
    write(Path("c.yaml"), {"modelpath": "m", "losses": ["L1"], "load": True, "endepoch": 7})
    expected = configs.load(["--load", "--modelpath", "m", "--endepoch", "7"])
    assert configs.load(["--resume", "--modelpath", "m", "--endepoch", "7"]) == expected
    assert configs.load(["--config", "c.yaml"]) == expected


def test_a_run_without_a_name(run_of_l1, capsys):
    write(Path("c.yaml"), {"modelpath": ""})
    assert '--modelpath "": expected a folder' in refused(capsys, "--modelpath", "")
    assert '--modelpath "": expected a folder' in refused(capsys, "--config", "c.yaml")
    assert '--load: no run in "" (no config.yaml)' in refused(capsys, "--load", "--modelpath", "")


@pytest.mark.parametrize("words", ["blocks=[", "blocks={", "blocks=a: b: c"])
def test_model_options_that_are_no_yaml(capsys, words):
    assert "--model-options" in refused(capsys, "--model-options", words)


@pytest.mark.parametrize(
    "text, words",
    [
        ("modle: EDSR\n", "unknown key in {file} 'modle'; did you mean model?"),
        ("K-Star: 0.3\n", "did you mean k_start?"),
        ("1: 2\n", "unknown key"),
        ("- a\n- b\n", "--config {file}: expected lines of `name: value`, found a list"),
        ("just words\n", "found a str"),
        ("a: [1,\n", "--config {file}: cannot be read"),
        ("a: b: c\n", "cannot be read"),
        ("!!python/object/apply:os.mkdir [x]\n", "cannot be read"),
    ],
)
def test_wrong_files(capsys, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "c.yaml", text)
    assert words.format(file=file) in refused(capsys, "--config", file)
    assert not Path("x").exists()


def test_binary_file_and_folder(capsys, tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80" * 9)
    for file in (tmp_path / "binary.yaml", tmp_path):
        assert "cannot be read" in refused(capsys, "--config", file)


@pytest.mark.parametrize("text", ["k_start: 0.2\nk-start: 0.4\n", "k_start: 0.2\nk_start: 0.4\n"])
def test_a_key_twice(capsys, tmp_path, text):
    assert "k_start" in refused(capsys, "--config", write(tmp_path / "c.yaml", text)).replace("-", "_")


WRONG_VALUES = [
    ("scale", 5),
    ("scale", 0),
    ("patch", 0),
    ("patch", 50),
    ("patch", -4),
    ("samples", 0),
    ("judge_memory", 0),
    ("samples", -1),
    ("eps", 0),
    ("eps", -0.1),
    ("k_start", 0),
    ("k_start", 1),
    ("k_start", -0.1),
    ("k_start", 0.95),
    ("k_end", 1),
    ("k_end", 0.2),
    ("k_epochs", 0),
    ("batchsize", 0),
    ("workers", -1),
    ("learning_rate", 0),
    ("learning_rate", -1),
    ("seed", -1),
    ("step_epochs", 0),
    ("step_gamma", 0),
    ("startepoch", -1),
    ("startepoch", 100),
    ("endepoch", 0),
    ("steps", 0),
    ("repeat", 0),
    ("log_every", 0),
    ("watch", -1),
    ("watch", 17),
    ("schedule", "no-such-schedule"),
    ("precision", "fp16"),
    ("protocol", "papers"),
    ("m_step", "x"),
    ("gan", "lsgan"),
    ("udl_head", "mine"),
    ("schedule", "milestones"),
    ("pspl_alpha", -1),
    ("pspl_beta", -0.1),
    ("pspl_max", 0),
    ("pspl_epoch", 0),
    ("pspl_ssim", "mine"),
    ("dp_mu", 0),
    ("gan_weight", 0),
    ("pixel_weight", -0.1),
    ("pretrain_epochs", -1),
    ("milestones", 0),
    ("batchsize", 65537),
    ("repeat", 10**6 + 1),
    ("samples", 1001),
    ("workers", 1001),
    ("step_gamma", 1.1),
    ("warmup", -1),
    ("color", "bgr"),
    ("accumulate", 0),
    ("accumulate", 65537),
    ("restart_every", 0),
    ("schedule", "restarts"),
    ("validate_every", 0),
    ("keep_every", 0),
    ("optimizer", "sgd"),
    ("weight_decay", -0.1),
    ("weight_decay", 1001),
    ("ema", 0),
    ("ema", 1),
    ("ema", -0.5),
    *(
        (name, value)
        for name in (
            "eps",
            "k_start",
            "k_end",
            "k_epochs",
            "learning_rate",
            "step_gamma",
            "pspl_alpha",
            "pspl_beta",
            "pspl_max",
            "dp_mu",
            "gan_weight",
            "pixel_weight",
            "pretrain_epochs",
        )
        for value in (float("nan"), float("inf"), float("-inf"))
    ),
]


@pytest.mark.parametrize("name, value", WRONG_VALUES, ids=str)
def test_values_out_of_range(capsys, tmp_path, name, value):
    by_flag = refused(capsys, f"--{name.replace('_', '-')}={value}")
    by_file = refused(capsys, "--config", write(tmp_path / "c.yaml", {name: value}))
    for line in (by_flag, by_file):
        assert name in line.replace("-", "_") or (name in ("startepoch", "k_start") and "--" in line)
        assert str(value) in line


@pytest.mark.parametrize("betas", [[0.5], [0.5, 0.9, 0.9], [1.0, 0.9], [-0.1, 0.9], [0.5, float("nan")]], ids=str)
def test_wrong_betas(capsys, tmp_path, betas):
    if min(betas) >= 0:  # argparse would take -0.1 for a flag
        assert "--betas" in refused(capsys, "--betas", *betas)
    assert "--betas" in refused(capsys, "--config", write(tmp_path / "c.yaml", {"betas": betas}))


@pytest.mark.parametrize("steps", [[5, 5], [9, 3], [-1, 3]], ids=str)
def test_wrong_milestones(capsys, tmp_path, steps):
    words = "increasing numbers of steps" if steps[0] > 0 else "a whole number from 1 to 1000000000000"
    assert words in refused(
        capsys, "--config", write(tmp_path / "c.yaml", {"milestones": steps, "schedule": "milestones"})
    )


def test_a_schedule_of_milestones_needs_some(capsys):
    assert "--schedule milestones: expected --milestones beside it" in refused(capsys, "--schedule", "milestones")


@pytest.mark.parametrize("names", [["a:x", "b:x", "c:x"], ["a:x", "a:x"]], ids=str)
def test_wrong_extractors(capsys, names):
    line = refused(capsys, "--dp-extractors", *names)
    assert f"--dp-extractors {' '.join(names)}: expected one feature extractor, or two different ones" in line


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("scale", "four", "expected a whole number"),
        ("scale", 2.0, "expected a whole number"),
        ("scale", True, "expected a whole number"),
        ("patch", "48", "expected a whole number"),
        ("eps", "small", "expected a number"),
        ("eps", True, "expected a number"),
        ("eps", None, "expected a number"),
        ("augment", 1, "expected true or false"),
        ("augment", "maybe", "expected true or false"),
        ("model", 3, "expected text"),
        ("model", None, "expected text"),
        ("model", ["EDSR"], "expected text"),
        ("model_options", "blocks", "expected NAME: VALUE pairs"),
        ("model_options", [4], "expected NAME: VALUE pairs"),
        ("trainpath", 5, "expected text"),
        ("trainpath", ["a", 5], "expected text"),
        ("trainpath", {"a": 1}, "expected text"),
        ("betas", ["a", "b"], "expected a number"),
        ("losses", [], "expected at least one loss"),
        ("losses", ["L1", "L1"], "expected each loss once"),
    ],
    ids=str,
)
def test_wrong_types(capsys, tmp_path, name, value, words):
    line = refused(capsys, "--config", write(tmp_path / "c.yaml", {name: value}))
    assert words in line and "--" + name.replace("_", "-") in line


def test_patch_suggests_the_nearest(capsys):
    assert "patch=50 is not divisible by scale=4; use 48" in refused(capsys, "--patch", 50)
    assert "patch=2 is not divisible by scale=4; use 4" in refused(capsys, "--patch", 2)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as caught:
        configs.load(["--help"])
    words = capsys.readouterr().out.replace(",", " ").replace("[", " ").split()
    assert caught.value.code == 0
    assert [name for name in FIELDS if "--" + name.replace("_", "-") not in words] == []
    assert "--config" in words


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().scale = 2
