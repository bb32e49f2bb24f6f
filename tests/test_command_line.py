"""The command line as people type it: answers at once, the field's habits, paths, lists, runs to resume, bounds."""

import contextlib
import dataclasses
import inspect
import io
import os
import re
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import configs
import convert
import export
import infer
import train
import val
from configs import Config, catalogue
from configs.command_line import EXAMPLES, make_parser
from configs.habits import ALIASES, INSTEAD
from losses import LOSSES
from metrics.evaluate import MEMORY, PROTOCOLS
from metrics.judges import JUDGES, METRICS
from models import SR_MODELS, build_network

ROOT = Path(__file__).parents[1]
FIELDS = {field.name: field for field in dataclasses.fields(Config)}


def refused(capsys, command, argv) -> str:
    """The one line that a command says before it exits with code 2."""
    with pytest.raises(SystemExit) as caught:
        command(argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1, err
    return err


# --- start-up ---


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """An environment in which importing torch ends the program with another exit code than any of ours."""
    place = tmp_path_factory.mktemp("fake")
    (place / "torch.py").write_text("import os; os._exit(77)")
    return os.environ | {"PYTHONPATH": str(place), "COLUMNS": "120"}


TYPED = [
    ("train.py --help", 0, "examples:"),
    ("val.py --help", 0, "examples:"),
    ("convert.py --help", 0, "examples:"),
    ("train.py --batchsise 4", 2, "did you mean --batchsize?"),
    ("train.py --patch forty", 2, "forty: expected a whole number"),
    ("train.py --patch 0", 2, "--patch 0: expected a whole number from 1 to 65536"),
    ("train.py --model RCNN", 2, "did you mean RCAN?"),
    ("train.py --losses MSE L1+TWL", 2, "did you mean L1+TLW?"),
    ("train.py --losses L1 'L1+TVW[weights=uniform]'", 2, "L1+TVW"),
    ("train.py --judge lpips-alx", 2, "did you mean lpips-alex?"),
    ("train.py --metrics tinny", 2, "did you mean tiny?"),
    ("train.py --model VDSR --model-options block=3", 2, "VDSR's, with their defaults: channels=64 blocks=10"),
    ("train.py --config nowhere.yaml", 2, "no such file"),
    ("train.py --load", 2, "--load: no run in"),
    ("val.py --fodler x", 2, "did you mean --folder?"),
    ("val.py --model bicubc", 2, "did you mean bicubic?"),
    ("val.py --metrics squeez", 2, "did you mean squeeze?"),
    ("val.py --protocol papers", 2, "--protocol"),
    ("convert.py", 2, "required"),
    ("convert.py x.pth --scale 5", 2, "--scale"),
]


@pytest.mark.parametrize("command, code, words", TYPED, ids=[case[0] for case in TYPED])
def test_slips_are_answered_before_torch_is_imported(without_torch, tmp_path, command, code, words):
    program, *argv = shlex.split(command)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, ROOT / program, *argv], capture_output=True, text=True, env=without_torch, cwd=tmp_path
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code, done.stderr
    assert words in done.stdout + done.stderr
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) < 1  # seconds
    assert not list(tmp_path.iterdir())


def test_a_command_without_a_slip_goes_on(without_torch, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "train.py", "--steps", "1"], env=without_torch, cwd=tmp_path)
    assert done.returncode == 77


def test_processes_of_torchrun_leave_it_to_the_first(monkeypatch, capsys):
    """Which speaks for all once they are connected."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--zzz"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    configs.check_command_line(lambda **_: None)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(SystemExit):
        configs.check_command_line(lambda **_: None)


# --- names and help ---


def test_the_names_are_those_of_the_dictionaries():
    for kind, known in {
        "model": SR_MODELS,
        "loss": LOSSES,
        "judge": JUDGES,
        "perceptual metric": METRICS,
        "protocol": PROTOCOLS,
    }.items():
        assert configs.names(kind) == list(known)
    assert configs.constant("metrics/evaluate.py", "MEMORY") == MEMORY


@pytest.mark.parametrize("name", SR_MODELS)
def test_the_options_are_those_of_the_constructors(name):
    parameters = inspect.signature(SR_MODELS[name]).parameters.values()
    assert catalogue.model_options(name) == {
        p.name: p.default
        for p in parameters
        if p.name not in ("scale", "colours")  # which are --scale and --color
    }


def test_a_new_network_is_one_file_and_one_line(tmp_path, monkeypatch):
    """For --help too: names and options of a copy of models/ with another one in it."""
    (tmp_path / "models").mkdir()
    text = (ROOT / "models/__init__.py").read_text()
    text = text.replace("from .edsr import EDSR", "from .edsr import EDSR\nfrom .fresh import Fresh")
    text = text.replace('    "EDSR": EDSR,', '    "EDSR": EDSR,\n    "Fresh": Fresh,')
    (tmp_path / "models/__init__.py").write_text(text)
    fresh = "class Fresh(SRNetwork):\n    def __init__(self, scale, width: int = 5, *, steps: tuple = (2,) * 3): ..."
    (tmp_path / "models/fresh.py").write_text(fresh)
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    catalogue._tree.cache_clear()
    try:
        assert "Fresh" in configs.names("model")
        assert catalogue.shown_options(catalogue.model_options("Fresh")) == "width=5 steps=[2,2,2]"
    finally:
        catalogue._tree.cache_clear()


@pytest.fixture(scope="module")
def help_text():
    return make_parser().format_help()


def test_help_begins_with_what_matters_most(help_text):
    groups = [field.metadata["group"] for field in FIELDS.values() if field.metadata["group"]]
    places = [help_text.index(f"\n{group}:\n") for group in groups]
    assert len(places) > 5 and places == sorted(places)
    first = help_text[places[0] : places[1]]
    for name in ("model", "losses", "judge", "trainpath", "patch", "learning-rate", "modelpath", "load", "device"):
        assert f"  --{name}" in first
    assert places[-1] < help_text.index("\nexamples:\n") < help_text.index("\nexit codes:")


@pytest.mark.parametrize("name", SR_MODELS)
def test_help_has_the_options_of_each_network(help_text, name):
    assert f" {name} {catalogue.shown_options(catalogue.model_options(name))}" in " ".join(help_text.split())


@pytest.mark.parametrize("line", re.findall(r"train\.py (.*?)(?:   .*)?$", EXAMPLES, re.M))
def test_the_examples_in_help_are_command_lines(line):
    make_parser().parse_args(line.split())


# --- habits ---


@pytest.mark.parametrize(
    "typed, field, value",
    [
        ("--lr 3e-4", "learning_rate", 3e-4),
        ("--epochs 7", "endepoch", 7),
        ("--batch-size 6", "batchsize", 6),
        ("--bs=6", "batchsize", 6),
        ("--num-workers 2", "workers", 2),
        ("--patch-size 48", "patch", 48),
        ("--lpips tiny", "metrics", ("tiny",)),
        ("--seed 5", "seed", 5),
    ],
)
def test_other_names_of_settings(typed, field, value, tmp_path):
    config = configs.load(typed.split())
    assert config == Config(**{field: value})
    key, text = re.fullmatch(r"--([\w-]+)[ =](.*)", typed).groups()
    (tmp_path / "c.yaml").write_text(f"{key}: {text}\n")
    assert configs.load(["--config", str(tmp_path / "c.yaml")]) == config


def test_a_setting_under_two_names(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("lr: 1e-4\nlearning-rate: 2e-4\n")
    assert "are the same setting" in refused(capsys, configs.load, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    "typed, words",
    [
        ("--gpu 1", "did you mean --device cuda:0?"),
        ("--gpus 4", "torchrun --nproc-per-node N train.py"),
        ("--amp", "did you mean --precision bf16?"),
        ("--fp16", "did you mean --precision bf16?"),
        ("--input imgs", "did you mean --trainpath DIR (images to train on)?"),
        ("--output out", "did you mean --modelpath DIR (the run's folder)?"),
        ("--pretrained x.pth", "did you mean --init FILE (weights to start from)?"),
        ("-opt a.yml", "did you mean --config FILE?"),
        ("--n_threads 4", "did you mean --workers N?"),
        ("--LR 1e-4", "did you mean --learning-rate?"),
        ("--batch_size 4", "did you mean --batchsize?"),
        ("--iters 9", "did you mean --steps N?"),
        ("--schedul cosine", "did you mean --schedule?"),
        ("--zzz", "unknown argument --zzz; see --help"),
        # a part of a longer name is not that name
        ("--memory 9", "unknown argument --memory; see --help"),
        ("--start 3", "unknown argument --start; see --help"),
    ],
)
def test_what_to_type_instead(capsys, typed, words):
    assert words in refused(capsys, configs.load, typed.split())


@pytest.mark.parametrize(
    "typed, words",
    [
        ("--input imgs", "did you mean --folder DIR (images to measure on)?"),
        ("--resume x", "did you mean --modelpath DIR (the run's folder)?"),
        ("--ckpt x", "did you mean --modelpath DIR (the run's folder)?"),
        ("--gpu 0", "did you mean --device cuda:0?"),
        ("--epochs 3", "unknown argument --epochs; see --help"),
        ("--batch-size 3", "unknown argument --batch-size; see --help"),
    ],
)
def test_what_to_type_instead_in_val(capsys, typed, words):
    assert words in refused(capsys, val.main, typed.split())


def test_output_is_out_in_val():
    assert val.parse(["--output", "x.json"]).out == val.parse(["--out", "x.json"]).out == "x.json"


@pytest.fixture(scope="module")
def flags_of_all():
    """Every flag that a command has, from its --help."""
    flags = set()
    for parse in (configs.load, val.parse, convert.parse, infer.parse, export.parse):
        with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as out:
            parse(["--help"])
        flags |= set(re.findall(r"--[\w-]+", out.getvalue()))
    return flags


def test_every_habit_leads_to_a_flag(flags_of_all):
    assert {configs.flag_of(name) for pair in ALIASES.items() for name in pair} <= {
        *make_parser()._option_string_actions
    }
    wrong = [text for texts in INSTEAD.values() for text in texts if text.split()[0].strip(",") not in flags_of_all]
    assert wrong == []


# --- lists ---


@pytest.mark.parametrize(
    "typed, words",
    [
        ("--losses L1,MSE", "--losses L1,MSE: separate with spaces, --losses L1 MSE"),
        ("--metrics alex,tiny", "separate with spaces, --metrics alex tiny"),
        ("--milestones 5,10", "5,10: expected a whole number; separate with spaces"),
        ("--betas 0.9,0.99", "0.9,0.99: expected a number; separate with spaces"),
        ("--model-options blocks=4,channels=8", "separate with spaces: --model-options blocks=4 channels=8"),
        ("--dp-extractors vgg19:conv5_4,resnet50:layer3", "--dp-extractors vgg19:conv5_4 resnet50:layer3"),
        ("--trainpath a,b", "--trainpath a,b: separate with spaces, --trainpath a b"),
    ],
)
def test_commas_in_lists(capsys, tmp_path, monkeypatch, typed, words):
    monkeypatch.chdir(tmp_path)
    for folder in "ab":
        Path(folder).mkdir()
    assert words in refused(capsys, configs.load, typed.split())
    flag, _, value = typed.partition(" ")
    if flag in ("--losses", "--metrics", "--trainpath"):
        Path("c.yaml").write_text(f"{flag[2:]}: {value}\n")
        assert f"(in YAML: [{value.replace(',', ', ')}])" in refused(capsys, configs.load, ["--config", "c.yaml"])


def test_commas_that_belong_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a,b").mkdir()
    losses = ("L1[betas=[0.9,0.99],label=x]", "L1+TLW[weights=uniform,wc=one]")
    argv = ["--trainpath", "a,b", "c,d", "--valpath", "skimage:chelsea,coffee", "--losses", *losses]
    config = configs.load([*argv, "--model-options", "depths=[2,3]"])
    assert config.trainpath == ("a,b", "c,d") and config.valpath == ("skimage:chelsea,coffee",)
    assert config.losses == losses and config.model_options == {"depths": [2, 3]}


# --- paths and files ---


PATHS = [name for name, field in FIELDS.items() if field.metadata["path"]]


def test_every_path_is_known_as_one():
    assert {*PATHS} >= {"modelpath", "trainpath", "lrpath", "valpath", "vallrpath", "judge_weights"}
    typed = {name for name, field in FIELDS.items() if re.search(r"(?i)\b(folder|files?)s?\b", field.metadata["help"])}
    assert typed <= {*PATHS, "load", "auto_resume", "model", "init"}  # which may be a path or a name


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("value, expanded", [("~/x", "HOME/x"), ("${SETS}/x", "/data/x"), ("$SETS/y", "/data/y")])
def test_home_and_variables(tmp_path, monkeypatch, name, value, expanded):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SETS", "/data")
    expanded = expanded.replace("HOME", str(tmp_path))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({name: value}))
    for argv in ([f"{configs.flag_of(name)}={value}"], ["--config", "~/c.yaml"], ["--config", "${HOME}/c.yaml"]):
        found = getattr(configs.load(argv), name)
        assert found in (expanded, (expanded,))


@pytest.mark.parametrize("program, flag", [(val.parse, f"--{x}") for x in ("modelpath", "folder", "lrfolder", "out")])
def test_home_in_val(monkeypatch, program, flag):
    monkeypatch.setenv("HOME", "/home/me")
    assert getattr(program([flag, "~/x"]), flag[2:]) in ("/home/me/x", ["/home/me/x"])


def test_home_in_convert(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert "/home/me/x.pth" in map(str, vars(convert.parse(["~/x.pth"])).values())


def test_a_variable_that_is_not_set(monkeypatch, capsys):
    monkeypatch.delenv("NOWHERE", raising=False)
    for command, flag in ((configs.load, "--valpath"), (val.parse, "--folder")):
        assert "${NOWHERE}/x: the environment variable NOWHERE is not set" in refused(
            capsys, command, [flag, "${NOWHERE}/x"]
        )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_yaml_is_utf8_whatever_the_locale(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("trainpath: [Bilder/für/数据]\n".encode(encoding))
    code = f"import configs; print(ascii(configs.load(['--config', {str(tmp_path / 'c.yaml')!r}]).trainpath))"
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == ascii(("Bilder/für/数据",)), done.stderr


# --- runs to resume ---


@pytest.fixture
def runs(workplace):
    """Two runs in checkpoints/, `new` the newer one, and one elsewhere that saved nothing."""
    for age, name in enumerate(("checkpoints/new", "checkpoints/old", "begun")):
        Path(name).mkdir(parents=True)
        Path(name, "config.yaml").write_bytes(configs.to_yaml(Config(seed=age)))
        if name != "begun":
            Path(name, "last.pt").touch()
            os.utime(Path(name, "last.pt"), (9**9 - age,) * 2)
    Path("checkpoints/converted").mkdir()
    Path("checkpoints/converted/best_L1.pt").touch()
    return workplace


@pytest.mark.parametrize(
    "typed, seed",
    [
        ("--load", 0),
        ("--resume", 0),
        ("--resume checkpoints/old", 1),
        ("--load=checkpoints/old --endepoch 300", 1),
        ("--load --modelpath checkpoints/old", 1),
        ("--load checkpoints/old --modelpath checkpoints/old", 1),
        ("--auto-resume --modelpath checkpoints/old", 1),
    ],
)
def test_the_run_to_go_on_with(runs, typed, seed):
    config = configs.load(typed.split(), train.newest_run_dir)
    assert config.load and config.seed == seed
    assert config.modelpath == ("checkpoints/new" if seed == 0 else "checkpoints/old")


@pytest.mark.parametrize("typed", ["--auto-resume --modelpath begun", "--auto-resume --modelpath nowhere"])
def test_auto_resume_begins(runs, typed):
    config = configs.load([*typed.split(), "--seed", "5"], train.newest_run_dir)
    assert not config.load and config.seed == 5


def test_load_in_a_file(runs):
    Path("c.yaml").write_text("resume: checkpoints/old\nseed: 1\nendepoch: 300\n")
    config = configs.load(["--config", "c.yaml"])
    assert config.load and config.modelpath == "checkpoints/old" and config.endepoch == 300
    Path("c.yaml").write_text("auto-resume: true\nmodelpath: checkpoints/old\nseed: 1\n")
    assert configs.load(["--config", "c.yaml"]).load
    assert not configs.load(["--config", "c.yaml", "--modelpath", "begun"]).load


@pytest.mark.parametrize(
    "typed, words",
    [
        ("--load checkpoints/old --modelpath begun", "--modelpath begun names another folder; leave one out"),
        ("--load nowhere", "--load: no run in nowhere"),
        ("--auto-resume", "--auto-resume: expected --modelpath DIR beside it"),
        ("--load --seed 7", "--seed 7: the run was started with 0"),
        ("--auto-resume --modelpath checkpoints/old --seed 7", "--seed 7: the run was started with 1"),
    ],
)
def test_runs_that_cannot_be_meant(runs, capsys, typed, words):
    assert words in refused(capsys, lambda argv: configs.load(argv, train.newest_run_dir), typed.split())


def test_auto_resume_begins_and_goes_on(args, same_files):
    train.main([*args, "--modelpath", "whole"])
    for end in ("1", "2"):
        train.main([*args, "--endepoch", end, "--modelpath", "parts", "--auto-resume"])
    same_files(Path("whole"), Path("parts"))
    assert "auto_resume: false" in Path("parts/config.yaml").read_text()


# --- bounds ---

NUMBERS = [name for name, field in FIELDS.items() if {int, float} & {*(getattr(field.type, "__args__", (field.type,)))}]


def test_all_numbers_are_found():
    assert len(NUMBERS) > 30 and {"betas", "milestones", "clip_grad", "scale", "eps"} <= {*NUMBERS}
    assert [name for name, field in FIELDS.items() if field.metadata["bounds"] and name not in NUMBERS] == []


@pytest.mark.parametrize("name", NUMBERS)
def test_every_number_has_both_bounds(name, tmp_path, capsys):
    bounds = FIELDS[name].metadata["bounds"]
    assert bounds is not None, "give the field its bounds"
    assert (bounds.least is None) != (bounds.above is None) and (bounds.most is None) != (bounds.below is None)
    low = bounds.least - 1 if bounds.least is not None else bounds.above
    high = bounds.most + 1 if bounds.most is not None else bounds.below
    many = isinstance(FIELDS[name].default, tuple)
    for value in (low, high, -(10**30), 10**30):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({name: [value] if many else value}))
        line = refused(capsys, configs.load, ["--config", str(tmp_path / "c.yaml")])
        assert f"{configs.flag_of(name)} " in line
        if name not in ("scale", "weighting_scale"):  # whose values are listed
            assert str(bounds) in line
    for default in FIELDS[name].default if many else [FIELDS[name].default]:
        assert default is None or default in bounds


@pytest.mark.parametrize(
    "model, option, words",
    [
        ("EDSR", {"blocks": -1}, "blocks=-1: expected a whole number from 1 to 4096"),
        ("EDSR", {"blocks": 0}, "the options of EDSR and their defaults: channels=64 blocks=16"),
        ("VDSR", {"channels": 4097}, "from 1 to 4096"),
        ("RRDBNet", {"growth": 2.0}, "a whole number"),
        ("RCAN", {"groups": True}, "a whole number"),
        ("RCAN", {"reduction": "16"}, "a whole number"),
        ("RCAN", {"reduction": 65}, "RCAN cannot be built with them"),
        ("RCAN", {"block": 3}, "block=3: expected an option that it has; the options of RCAN"),
        ("SRResNet", {"scale": 3}, "the scale is no model option; use --scale"),
        ("HAT", {"depths": [2, -1]}, "depths=[2, -1]: expected a list"),
        ("HAT", {"depths": []}, "expected a list"),
        ("HAT", {"depths": 6}, "expected a list"),
        ("HAT", {"depths": [1] * 65}, "a list of up to 64"),
        ("HAT", {"depths": [1, 1], "heads": [1]}, "heads=[1] and depths=[1, 1] differ in length"),
        ("HAT", {"mlp_ratio": -0.5}, "mlp_ratio=-0.5: expected a number from 0 to 4096"),
        ("HAT", {"conv_scale": float("nan")}, "expected a number"),
        ("HAT", {"drop_path": 1.0}, "drop_path=1.0 is not a probability below 1"),
        ("HAT", {"window": 65}, "use 64 or less"),
        ("HAT", {"overlap_ratio": 1.5}, "use 1 or less"),
        ("HAT", {"embed": 4096, "depths": [64], "heads": [8]}, "weights, more than 1000000000"),
        ("EDSR", {"channels": 4096, "blocks": 64}, "weights, more than 1000000000"),
    ],
    ids=str,
)
def test_options_of_networks_are_within_bounds(model, option, words):
    with pytest.raises(ValueError, match="--model-options") as caught:
        build_network(model, 4, option)
    assert words in str(caught.value)


def test_options_change_no_first_weights():
    """Trying them out draws nothing from the random stream."""
    for model, options in (("EDSR", {"blocks": 2}), ("HAT-TLW", {"depths": (1,), "heads": (2,)})):
        torch.manual_seed(3)
        plain = SR_MODELS[model](scale=2, **options).state_dict()
        torch.manual_seed(3)
        checked = build_network(model, 2, options).state_dict()
        assert all(torch.equal(plain[name], checked[name]) for name in plain)
