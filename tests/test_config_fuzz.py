"""500 random mutations of every shipped YAML file and of command lines: settings, or one line and exit code 2.

A settings file that loads holds no key that is ignored, and what is saved of it loads again as the same. The mutations
are fixed by their number. More of them: CONFIG_MUTATIONS=500 python -m pytest tests/test_config_fuzz.py
"""

import contextlib
import dataclasses
import io
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml

import configs
import train
from metrics.judges import JUDGES
from models import SR_MODELS

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
MUTATIONS = int(os.environ.get("CONFIG_MUTATIONS", 25))
FIELDS = {field.name: field for field in dataclasses.fields(configs.Config)}
SECONDS = 5  # of computing; the slowest mutation takes a tenth of one
LONGEST_LINE = 2100  # an error that repeats half a file is no help

# What a value may be replaced by, as it stands in YAML. Each has to be refused or understood, wherever it is put.
ODD = [
    "",
    "null",
    "~",
    "true",
    "no",
    "0",
    "-0",
    "-1",
    "1",
    "2",
    "3",
    "4",
    "7",
    "0.5",
    "-0.5",
    "1e-4",
    "2.0e-4",
    "1e308",
    "1e400",
    ".nan",
    ".inf",
    "-.inf",
    "nan",
    "inf",
    "1" + "0" * 30,
    "1" + "0" * 400,
    "9" * 5000,
    "-" + "9" * 5000,
    "0x10",
    "0b",
    "0o7",
    "1_0",
    "1:59:59",
    "'4'",
    '"1e-4"',
    "''",
    "' '",
    "[]",
    "[[]]",
    "[null]",
    "[1, a]",
    "[L1, L1]",
    "[L1, MSE]",
    "{}",
    "{a: 1}",
    "{a: {b: [1]}}",
    "{1: 2}",
    "{[1]: 2}",
    "{? {a: 1} : 2}",
    "2026-11-23",
    "2026-13-45",
    "2026-01-01 25:61:61",
    "=",
    "<<",
    "{<<: 1}",
    "\u00e9\u4f60\u597d",
    "\U0001f600",
    '"\\u2028x"',
    '"\\x85"',
    '"\\0"',
    '"\\ud800"',
    '"a\\nb"',
    '"\\e[31m"',
    "x" * 3000,
    "../..",
    "/",
    "~/x",
    "-",
    "--seed",
    "!!python/object/apply:os.mkdir [ran]",
    "!!python/object/new:os.mkdir [ran]",
    "!!python/name:os.getcwd",
    "!!python/tuple [1]",
    "!!timestamp x",
    "!!bool x",
    '!!int ""',
    "!!int x",
    '!!float ""',
    "!!float [1]",
    "!!binary x",
    "!!binary \u00e9",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!null x",
    "!!str [a]",
    "!!map [a]",
    "!!seq {a: 1}",
    "!unknown x",
    "!<tag> x",
    "&a [*a]",
    "&a {b: *a}",
    "*nowhere",
    "&a 4",
    "[" * 40 + "]" * 40,
    "[" * 3000 + "]" * 3000,
    "{a: " * 3000,
    "- " * 3000 + "x",
    "{a: &a [1,1,1,1,1,1,1,1], b: &b [*a,*a,*a,*a,*a,*a,*a,*a], c: &c [*b,*b,*b,*b,*b,*b,*b,*b], "
    "d: [*c,*c,*c,*c,*c,*c,*c,*c]}",
    "|\n  a\n  b",
    ">",
    "'",
    '"',
    "[",
    "{",
    "]",
    "@",
    "`",
    "%",
    "a: b",
    "\t4",
    "# nothing",
    "a #b",
    "EDSR",
    "L1+TLW",
    "L1+DP+GAN",
]
LINES = [
    "---",
    "...",
    "%YAML 9.9",
    "<<: *a",
    "<<: {seed: 1}",
    "? [a, b]",
    "? seed",
    ": 3",
    "- seed",
    "seed",
    "seed:",
    ": :",
    "1: 2",
    "null: 3",
    "'': 1",
    "load: true",
    "help: true",
    "config: x.yaml",
    "Seed: 3",
    " seed: 3",
    "\tseed: 3",
    "seed: 3 4",
    "seed:3",
    "!!python/object/apply:os.mkdir [ran]",
    "\ufeffseed: 3",
    "\u0421eed: 3",
]


def pick(random, options):
    return options[random.integers(len(options))]


def misspell(random, word: str) -> str:
    """One letter left out, doubled, replaced, or two swapped."""
    at = int(random.integers(max(1, len(word))))
    left, letter, right = word[:at], word[at : at + 1], word[at + 1 :]
    new = chr(pick(random, [*range(33, 127), 0xE9, 0x430, 0x2028]))
    swapped = left + right[:1] + letter + right[1:]
    return pick(random, [left + right, left + 2 * letter + right, left + new + right, swapped])


def mutated_yaml(random, text: str) -> bytes:
    """The file with one or two mutations."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    for _ in range(random.integers(1, 3)):
        at = int(random.integers(len(lines))) if lines else 0
        key, _, value = lines[at].partition(":") if lines else ("seed", ":", "1")
        kind = random.integers(10)
        if kind < 3:
            lines[at : at + 1] = [f"{key}: {pick(random, ODD)}"]
        elif kind < 5:
            lines.insert(at, f"{pick(random, list(FIELDS))}: {pick(random, ODD)}")
        elif kind == 5:
            lines[at : at + 1] = [f"{misspell(random, key)}:{value}"]
        elif kind == 6:
            lines.insert(at, pick(random, [f"{key}:{value}", f"{key.replace('_', '-')}: 1", f"{key.upper()}: 1"]))
        elif kind == 7:
            lines.insert(at, pick(random, LINES))
        elif kind == 8:
            lines[at : at + 1] = []
        else:
            lines[at : at + 1] = [misspell(random, lines[at] if lines else "seed: 1")]
    data = "\n".join(lines).encode(errors="surrogatepass") + b"\n"
    kind = random.integers(40)
    if kind < 5:
        at = random.integers(len(data))
        other = data.decode(errors="replace").encode("utf-16")
        inserted = [data[:at] + some + data[at:] for some in (random.bytes(3), b"\0")]
        return [data[:at], random.bytes(200), other, *inserted][kind]
    return data


def mutated_words(random, config: Path) -> list[str]:
    """A command line of a few flags with one or two mutations."""
    words = ["--config", str(config)] if random.integers(2) else []
    for name in random.choice(list(FIELDS), 3, replace=False):
        default = FIELDS[name].default
        if isinstance(default, bool):
            words.append(configs.flag_of(name))
        elif name == "model_options":
            words += ["--model-options", "blocks=1", "channels=8"]
        else:
            values = list(default) if isinstance(default, tuple) else [4 if default is None else default]
            words += [configs.flag_of(name), *map(str, values)]
    for _ in range(random.integers(1, 3)):
        at = int(random.integers(len(words))) if words else 0
        odd = pick(random, [word for word in ODD if "\0" not in word])
        word = words[at] if words else ""
        new = pick(random, [odd, misspell(random, word or "x"), f"blocks={odd}", f"{word}={odd}"])
        kind = random.integers(4)
        if kind == 0:
            words.insert(at, new)
        elif kind == 1:
            words[at : at + 2] = words[at : at + 2][::-1]
        else:
            words[at : at + 1] = [new] if kind == 2 or random.integers(2) else []
    return [word for word in words if word not in ("-h", "--help")]


@contextlib.contextmanager
def seconds_of_computing(limit: float):
    """TimeoutError where the body computes for longer; waiting for a busy machine does not count."""

    def stop(*_):
        raise TimeoutError(f"still computing after {limit} s")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def one_line_or(action):
    """What action returns; None where it ends, as it should, with exit code 2 and one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), seconds_of_computing(SECONDS):
        try:
            return action()
        except SystemExit as end:
            code = end.code
    line = err.getvalue()
    assert code == 2 and out.getvalue() == "" and line.startswith("train.py: error: "), line
    assert line.endswith("\n") and len(line.splitlines()) == 1, line
    assert len(line) < LONGEST_LINE, line[:LONGEST_LINE]
    return None


def loaded(argv: list[str]) -> configs.Config | None:
    """The settings; None where the command line was refused. Nothing is written here."""
    before = sorted(os.listdir())
    config = one_line_or(lambda: configs.load(argv))
    assert sorted(os.listdir()) == before, "something was written"
    return config


def plain(value):
    return tuple(value) if isinstance(value, (list, tuple)) else (value,)


def check_nothing_ignored(config: configs.Config, data: bytes):
    """Every key of the file is a setting, and has the file's value."""
    for key, value in (yaml.safe_load(data.decode()) or {}).items():
        name = key.replace("-", "_")
        assert name in FIELDS, f"{key} was ignored"
        found = getattr(config, name)
        given = [type(new)(old) if isinstance(new, float) else old for new, old in zip(plain(found), plain(value))]
        assert list(plain(found)) == given and len(plain(found)) == len(plain(value)), f"{key}: {value} became {found}"


def mutants(path: Path, count: int):
    """The mutated files, each with its number."""
    text = path.read_text()
    for number in range(count):
        yield number, mutated_yaml(np.random.default_rng([SHIPPED.index(path), number]), text)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_mutated_files(workplace, path):
    file, copy, refused = Path("c.yaml"), workplace.parent / "saved.yaml", 0
    for number, data in mutants(path, MUTATIONS):
        file.write_bytes(data)
        try:
            config = loaded(["--config", "c.yaml"])
            if config is None:
                refused += 1
                continue
            check_nothing_ignored(config, data)
            copy.write_bytes(configs.to_yaml(config))
            assert configs.from_mapping(configs.read_yaml(copy)) == config
        except BaseException as error:
            error.add_note(f"mutation {number} of {path.name}: {data[:2000]!r}")
            raise
    assert MUTATIONS / 10 < refused < MUTATIONS  # else it tries the wrong things


def test_mutated_command_lines(workplace):
    refused, tries = 0, 4 * MUTATIONS  # most are refused
    for number in range(tries):
        random = np.random.default_rng([99, number])
        words = mutated_words(random, pick(random, SHIPPED))
        try:
            refused += loaded(words) is None
        except BaseException as error:
            error.add_note(f"mutation {number}: {words!r:.2000}")
            raise
    assert tries / 10 < refused < tries


def test_what_is_no_file(workplace):
    Path("folder").mkdir()
    Path("secret").touch(mode=0)
    Path("loop").symlink_to("loop")
    paths = ["folder", "nowhere", "loop", "x" * 300, "folder/x/y", "secret/x", "", "/", "\u00e9", "\udc80"]
    for path in paths:
        loads = ["--load", "--modelpath", path]
        for words in (["--config", path], loads, [*loads, "--config", path]):
            assert loaded(words) is None, words


def test_some_of_those_that_load_run(workplace, images, squeeze_file, alex_file):
    """On tiny networks and images, but with the losses, schedules, names and numbers as they were mutated."""
    one = workplace.parent / "one"
    one.mkdir()
    shutil.copy(images / "coffee.png", one)
    tiny = {
        "trainpath": (str(images),),
        "valpath": (str(one),),
        "lrpath": (),
        "vallrpath": (),
        "device": "cpu",
        "judge_weights": (str(squeeze_file), str(alex_file)),
        "extractor_weights": (str(alex_file),),
        "metrics": ("squeeze",),
        "load": False,
        "modelpath": None,
    }
    built = 0
    for path in SHIPPED:
        configurations = []
        for _, data in mutants(path, MUTATIONS):
            Path("c.yaml").write_bytes(data)
            configurations += [config for config in [loaded(["--config", "c.yaml"])] if config is not None]
            if len(configurations) == max(3, MUTATIONS // 25):
                break
        for config in configurations:
            change = dict(tiny)
            if config.model in SR_MODELS:
                change |= {"model": "EDSR", "model_options": {"blocks": 1, "channels": 8}}
            change |= {"judge": "lpips-squeeze"} if config.judge in JUDGES else {}
            change |= {"patch": 36} if config.patch else {}
            change |= {
                "steps": 1,
                "workers": 0,
                "batchsize": min(config.batchsize, 2),
                "samples": min(config.samples, 3),
            }
            change |= {"dp_extractors": ("alexnet:conv5",)} if ":" in "".join(config.dp_extractors) else {}

            def build(config=dataclasses.replace(config, **change)):
                with configs.one_line_errors("train.py"):
                    return train.Trainer(config)

            before = sorted(os.listdir())
            run = one_line_or(build)
            assert sorted(os.listdir()) == before, "something was written"
            if run is None:
                continue
            built += 1
            try:
                with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(FloatingPointError):
                    run.fit()
            except BaseException as error:
                error.add_note(f"{path.name}: {run.config}")
                raise
            shutil.rmtree("checkpoints")
    assert built >= 10
