"""One YAML a run: sections, overrides, types, and errors that name the key, the place and the remedy."""

from __future__ import annotations

import math
import os
import re
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from piccolo_st.commands.exit import run_command
from piccolo_st.config import Configuration, parse_overrides, parse_run, read_value, read_yaml, to_yaml
from piccolo_st.errors import ConfigError, InputError
from piccolo_st.schema import build

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Fruit:
    """A fruit."""

    name: str = "apple"
    count: int = 1
    weight: float = 0.5
    ripe: bool = False
    tags: list[str] = field(default_factory=list)
    origin: dict | None = None
    price: float | None = None
    kind: dict | str | None = None


WORDS = ["fruit", "other", "name", "count", "weight", "ripe", "tags", "origin", "price", "kind"]


@dataclass(frozen=True)
class Orchard(Configuration):
    """Fruit, twice."""

    fruit: Fruit
    other: Fruit


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text("fruit:\n  name: 苹果\n  count: 3\n  origin: {land: {code: 86}}\n", encoding="utf-8")
    return path


def test_yaml_defaults_and_overrides(config: Path) -> None:
    run = parse_run(
        ["--fruit.count", "7", "--fruit.weight=1e-3", "--fruit.ripe", "--fruit.tags", "[a, b]",
         "--fruit.origin.land.code", "1", "--other.kind", "plain"],
        Orchard,
        config,
    )  # fmt: skip
    fruit = run.fruit
    assert fruit == Fruit("苹果", 7, 1e-3, True, ["a", "b"], {"land": {"code": 1}})
    assert run.other == Fruit(kind="plain")
    assert run.resolved["fruit"]["count"] == 7 and run.resolved["fruit"]["name"] == "苹果"


def test_the_first_argument_is_the_file(config: Path) -> None:
    assert parse_run([str(config)], Orchard, Path("nowhere.yaml")).fruit.count == 3


def test_null_clears_an_optional_value(config: Path) -> None:
    run = parse_run(["--fruit.price", "null", "--fruit.origin", "null"], Orchard, config)
    assert run.fruit.price is None and run.fruit.origin is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fruit.cuont", "3"], r"unknown key 'fruit.cuont' in the command line; did you mean fruit.count\?"),
        (["--friut.count", "3"], r"unknown section 'friut' in the command line; did you mean fruit\?"),
        (["--fruit.count", "many"], r"^fruit\.count must be of type int, got 'many'$"),
        (["--fruit.count", "[1]"], r"^fruit\.count must be of type int, got \[1\]$"),
        (["--fruit.count", "{a: 1}"], r"fruit.count must be of type int, got \{\'a\': 1\}"),
        (["--fruit.ripe", "perhaps"], r"^fruit\.ripe must be of type bool, got 'perhaps'$"),
        (["--fruit.name.x", "1"], r"--fruit.name.x needs name to be a mapping, got '苹果'"),
        (["--fruit.name", "{a"], r"--fruit.name must be YAML, got '\{a': expected"),
        (["--count", "3"], r"'--count' is not an override; write --fruit.count value"),
        (["count=3"], r"count=3 does not exist; give the path of a YAML file"),
    ],
)
def test_bad_command_lines(config: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_run(arguments, Orchard, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fruit: [1, 2", r"run.yaml is not YAML: .*, line 2, column 1$"),
        ("just words", r"run.yaml must hold a mapping of keys to values, got str"),
        ("fruit: 3", r"section 'fruit' in .*run.yaml, line 1 must be a mapping, got 3"),
        ("fruit: {wieght: 3}", r"unknown key 'fruit.wieght' in .*run.yaml, line 1; did you mean fruit.weight\?"),
        ("fruit: !!python/object/apply:os.system ['true']", r"run.yaml is not YAML: .*, line 1, column 8$"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text + "\n")
    with pytest.raises(ConfigError, match=message):
        parse_run([], Orchard, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fruit:\n  count: 1\n  count: 2", r"is not YAML: the key 'count' stands twice, line 3, column 3$"),
        ("fruit: {weight: !!timestamp 2024-13-45}", r"'2024-13-45' cannot be read as YAML's timestamp \(month "),
        ("fruit: {count: " + "9" * 5000 + "}", r"\.\.\. cannot be read as YAML's int \(.*, line 1, column 16$"),
        ("{" * 3000, r"is not YAML: "),
        ("[" * 3000 + "]" * 3000, r"is not YAML: it is nested too deeply"),
        ("fruit: &a {origin: *a}", r"aliases stand for more than 1,000,000 values, or for themselves"),
        ("a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
            f"{after}: &{after} [{', '.join(['*' + before] * 10)}]" for before, after in pairwise("abcdefgh")
        ), r"aliases stand for more than 1,000,000 values"),
        ("fruit: {weight: !!float x}", r"'x' cannot be read as YAML's float"),
        ("fruit: {? [a] : 1}", r"is not YAML: found unhashable key"),
    ],
)  # fmt: skip
def test_what_yaml_cannot_mean_is_one_sentence_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse_run([], Orchard, path)


TEXTS = st.one_of(
    st.text(),
    st.text(alphabet="fruit:other{}[]&*!|>-?#'\"\n ,0123456789.count"),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS) | st.text(), inner, max_size=4)
        ),
    ).map(lambda value: yaml.safe_dump({"fruit": value}, allow_unicode=True)),
)


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_any_text_is_a_configuration_or_one_sentence(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            assert isinstance(parse_run([], Orchard, path), Orchard)
        except InputError as error:
            said = str(error)
            assert said and "\n" not in said and len(said) < 1000 and (said.endswith("...") or not said.endswith("."))


RANGES = [
    ("train.learning_rate", -1, "must be at least 0, got -1"),
    ("train.max_steps", 0, "must be at least 1, or -1 for the steps of num_train_epochs, got 0"),
    ("train.eval_steps", ".inf", "must be a positive number, got inf"),
    ("train.report_to", "{a: 1}", "must be a list or must be of type str, got {'a': 1}"),
    ("loss.temperature", 0, "must be a positive number, got 0"),
    ("loss.matryoshka_dims", "[64, 0]", ".1 must be a whole number of at least 1, got 0"),
    ("model.query_length", 0, "must be a whole number of at least 1, got 0"),
    ("model.build.layers", 2.5, "must be of type int, got 2.5"),
    ("data.batch_size", "true", "must be of type int, got True"),
    ("data.mining.sampling", "tpo", "must be one of top, random, got 'tpo'; did you mean top?"),
]


@pytest.mark.parametrize(("key", "value", "message"), RANGES, ids=[key for key, _, _ in RANGES])
def test_a_value_out_of_range_is_refused_where_it_stands(key: str, value: object, message: str) -> None:
    from piccolo_st.training import FinetuneConfig

    path = ROOT / "recipes" / "configs" / "quickstart.yaml"
    with pytest.raises(ConfigError) as refused:
        parse_run([f"--{key}", str(value)], FinetuneConfig, path)
    assert str(refused.value).replace(key, "", 1).lstrip() == message


def test_overrides_are_yaml() -> None:
    parsed = parse_overrides(["--a.b", "1", "--a.c=x=y", "--a.d", "--a.e", "-0.5", "--a.f", "null"])
    assert parsed == {"a.b": 1, "a.c": "x=y", "a.d": True, "a.e": -0.5, "a.f": None}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{a: 1e-6}", {"a": 1e-6}),
        ("[1e5, 1.e5, .5, -7, +7, 0, -.inf]", [1e5, 1e5, 0.5, -7, 7, 0, -math.inf]),
        *((label, label) for label in ("0123", "-012.5", "2024-01-01", "1_000", "12:30:45", "0x1F", "0b11", "=")),
    ],
)
def test_numbers_are_those_of_yaml_1_2(text: str, value: object) -> None:
    assert repr(read_value(text, "--fruit.origin")) == repr(value)


@settings(max_examples=300, deadline=None)
@given(text=st.text("0123456789+-.eE_:x", min_size=1, max_size=7))
def test_a_word_is_the_number_that_python_reads_or_text(text: str) -> None:
    """Python knows 1_000 and 007 beside YAML's numbers; a dash before nothing is a list of YAML, a colon a mapping."""
    assume(text != "-" and not text.endswith(":") and not set(text) <= set("-.") and not text.startswith("-:"))
    zeros = re.match(r"[-+]?0[0-9]", text)
    wanted: object = text
    for kind in (float, int):
        with suppress(ValueError):
            wanted = text if "_" in text or zeros else kind(text)
    assert repr(read_value(text, "--fruit.origin")) == repr(wanted)


@settings(max_examples=300, deadline=None)
@given(text=st.text("0123456789+-.eE_:x truefalsonyl~"))
def test_what_is_written_is_read_again(text: str) -> None:
    """By this package, and by a reader of YAML 1.1, as others of a model's files are."""
    assert read_value(to_yaml({"a": [text, 1e-6, 7]}), "--fruit") == {"a": [text, 1e-6, 7]}
    assert yaml.safe_load(to_yaml({"a": text})) == {"a": text}


def test_a_label_of_digits_stays_as_it_is_written(config: Path) -> None:
    run = parse_run(["--fruit.name", "0123456", "--fruit.count", "012", "--other.name", "7"], Orchard, config)
    assert (run.fruit.name, run.fruit.count, run.other.name) == ("0123456", 12, "7")
    config.write_text(to_yaml(run.resolved), encoding="utf-8")
    assert read_yaml(config) == run.resolved and parse_run([], Orchard, config).fruit == run.fruit


def test_a_fraction_where_text_goes_would_lose_its_zeros(config: Path) -> None:
    with pytest.raises(ConfigError, match=r"^fruit\.name must be of type str, got 1\.1; write it in quotes$"):
        parse_run(["--fruit.name", "1.10"], Orchard, config)
    assert parse_run(["--fruit.name", "'1.10'"], Orchard, config).fruit.name == "1.10"


def test_training_arguments_take_floats_in_quotes(tmp_path: Path) -> None:
    from piccolo_st.training.training_arguments import PiccoloTrainingArguments

    values = {"learning_rate": "1e-4", "output_dir": str(tmp_path), "use_cpu": True, "save_strategy": "no"}
    arguments = build(PiccoloTrainingArguments, values, "the section")
    assert arguments.learning_rate == 1e-4 and arguments.use_cpu is True


def test_an_unquoted_no_is_the_word_where_no_bool_goes(config: Path) -> None:
    run = parse_run(["--fruit.name", "no", "--fruit.ripe", "no"], Orchard, config)
    assert run.fruit.name == "no" and run.fruit.ripe is False


def test_help_names_every_own_field(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse_run(["--help"], Orchard, config, "Sorts fruit.")
    shown = capsys.readouterr().out
    assert stopped.value.code == 0 and "Sorts fruit." in shown
    assert all(f"--fruit.{name}" in shown for name in Fruit.__dataclass_fields__)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(InputError("no such pear"), 2, "error: no such pear\n"), (KeyboardInterrupt(), 130, "interrupted")],
)
def test_run_command_ends_with_a_sentence_and_a_code(
    error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(arguments: object) -> None:
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(main, [])
    shown = capsys.readouterr()
    assert stopped.value.code == code and shown.err.startswith(said) and not shown.out


def test_run_command_lets_defects_through() -> None:
    def main(arguments: object) -> None:
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        run_command(main, [])


ENDINGS = {
    "in the middle": ("for number in range(100_000): print(number)", 141, ""),
    "with what is left at the end": ("print(1)", 141, ""),
    "after sys.exit with a code of its own": ("print(1); raise SystemExit(75)", 75, ""),
    "after bad input": ("print(1); raise InputError('no such pear')", 2, "error: no such pear\n"),
}


def _started(lines: str, stdout: int = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
    """A process whose main is these lines; it hears SIGINT even where these tests do not, in a shell's background."""
    script = (
        "from piccolo_st.commands.exit import run_command\nfrom piccolo_st.errors import InputError\n"
        f"def main(arguments):\n    {lines}\nrun_command(main, [])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **variables}
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def _ended(lines: str, stdout: int) -> tuple[int, str]:
    """Its code and what it said on stderr."""
    process = _started(lines, stdout)
    said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.parametrize("name", ENDINGS)
def test_a_command_ends_quietly_when_nobody_reads_on(name: str) -> None:
    lines, code, said = ENDINGS[name]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert _ended(lines, writer) == (code, said)
    finally:
        os.close(writer)


BUSY = "import time, atexit; atexit.register(time.sleep, {after})\n    print(1, flush=True); time.sleep(300)"


@pytest.mark.parametrize(
    ("number", "code", "said"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_signal_is_one_sentence_and_a_second_one_the_end(number: int, code: int, said: str) -> None:
    for after in (0, 300):
        with _started(BUSY.format(after=after)) as busy:
            assert busy.stdout and busy.stdout.readline() and busy.stderr
            busy.send_signal(number)
            sentence = busy.stderr.readline()
            assert sentence == f"{said}; what is finished is kept, and the same command goes on from there\n"
            if after:
                busy.send_signal(number)
            assert busy.wait(10) == (-number if after else code) and not busy.stderr.read()


# An object of a module is what a library's global process group is: its threads end while Python takes itself apart.
LEFT_BEHIND = """\
global kept; import atexit, os, threading, time
    class Kept:
        def __del__(self): os.abort()
    kept = Kept(); atexit.register(print, "at exit"); print("done")
    threading.Thread(target=lambda: (time.sleep(0.2), print("joined"))).start(){then}"""


@pytest.mark.parametrize(("then", "code"), [("", 0), ("\n    raise InputError('no such pear')", 2)])
def test_a_rank_ends_before_python_takes_itself_apart(then: str, code: int) -> None:
    alone = _started(LEFT_BEHIND.format(then=then))
    assert alone.communicate()[0].split("\n") == ["done", "joined", "at exit", ""]
    assert alone.returncode == -signal.SIGABRT  # else the next lines show nothing
    rank = _started(LEFT_BEHIND.format(then=then), WORLD_SIZE="2", RANK="1")
    assert rank.communicate()[0].split("\n") == ["done", "joined", "at exit", ""] and rank.returncode == code


def test_a_pipe_to_something_else_that_breaks_is_a_defect() -> None:
    code, said = _ended("print(1); raise BrokenPipeError('the worker is dead')", subprocess.DEVNULL)
    assert code == 1 and said.rstrip().endswith("BrokenPipeError: the worker is dead")


def test_a_step_read_by_head_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"query": "问", "positive": "答"}\n', encoding="utf-8")
    (tmp_path / "mixture.yaml").write_text("datasets: {a: {source: a.jsonl, task: retrieval}}")
    command = (
        f"{sys.executable} recipes/prepare.py check {tmp_path}/mixture.yaml --data.output {tmp_path}/out "
        f"--data.cache {tmp_path}/cache | head -n 0; exit ${{PIPESTATUS[0]}}"
    )
    ran = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (141, "", "")
