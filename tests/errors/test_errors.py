"""Every error that a person can cause is one sentence: what the rule is, what came, where it stands, what to do.

The table in tests/errors has the errors by the module that finds them. Each row is done in this process; its sentence
must hold the row's parts and speak with the one voice of all, and every module that raises an InputError must have a
row. What else a module refuses is tested in its room.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

import piccolo_st
from piccolo_st.commands.exit import run_command
from piccolo_st.errors import InputError, reason
from tests.errors import data_rows, model_rows, run_rows
from tests.errors.acts import Row, World

PACKAGE = Path(piccolo_st.__file__).parent
TABLE: dict[str, list[Row]] = {**run_rows.ROWS, **data_rows.ROWS, **model_rows.ROWS}

ROWS = [pytest.param(module, row, id=f"{module}: {row.name}") for module, rows in TABLE.items() for row in rows]

# Modules that raise an InputError without a row here, and why.
EXEMPT = {
    "errors": "`optional` raises for others, which have the rows",
    "turns": "passes on what another rank raised; tests/ground/test_turns.py",
    "modeling.saved_adapters": "needs an adapter that a run left; tests/training/test_lora.py",
    "training.zero": "converts a checkpoint that DeepSpeed wrote; tests/training/test_resume.py",
    "training.non_finite": "needs a run whose numbers are not finite; tests/training/test_guards.py",
}

# Of two people who read two errors, both know what to look for: the rule, ``got``, the value, the remedy. Not so with
# ", but is" for ", got", "has to" for "must", a second sentence, a full stop.
_NOT_OUR_VOICE = re.compile(r", but |must lie|has to |[.!]$|[.!] [A-Z]|  ")


@pytest.fixture(scope="module")
def saved_model(encoder_dir_no_dropout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from piccolo_st import save_portable
    from piccolo_st.modeling.loading import load_encoder

    path = tmp_path_factory.mktemp("saved") / "model"
    save_portable(load_encoder(str(encoder_dir_no_dropout), query_length=16, document_length=32), path)
    return path


@pytest.fixture
def world(tmp_path: Path, encoder_dir_no_dropout: Path, saved_model: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, encoder_dir_no_dropout, saved_model, monkeypatch)


def named(path: Path) -> str:
    """A file of the package as a module, ``""`` for any other."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts) if path.is_relative_to(PACKAGE) else ""


def origin(error: BaseException) -> str:
    """The module that found the error: the innermost one of the package in its traceback, errors.py left out."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        found = found if file == PACKAGE / "errors.py" else named(file) or found
        trace = trace.tb_next
    return found


def said(text: str, world: World) -> str:
    for name, path in (("TMP", world.tmp), ("ENCODER", world.encoder), ("MODEL", world.model)):
        text = text.replace(str(path), name)
    return text


@pytest.mark.parametrize(("module", "row"), ROWS)
def test_an_error_is_one_sentence(module: str, row: Row, world: World, capsys: pytest.CaptureFixture[str]) -> None:
    if row.code is None:
        with pytest.raises((ValueError, TypeError)) as raised:
            row.act(world)
        error, sentence = raised.value, said(str(raised.value), world)
    else:
        raised_errors: list[InputError] = []

        def main(arguments: object) -> None:
            try:
                row.act(world)
            except InputError as error:
                raised_errors.append(error)
                raise

        with pytest.raises(SystemExit) as stopped:
            run_command(main, [])
        shown = capsys.readouterr()
        assert stopped.value.code == row.code, shown.err
        assert "Traceback" not in shown.out + shown.err
        lines = [line for line in shown.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and shown.err.endswith(f"{lines[0]}\n"), shown.err
        error, sentence = raised_errors[0], said(lines[0].removeprefix("error: "), world)
    pattern = re.escape(row.sentence).replace("…", ".+")
    assert re.fullmatch(pattern, sentence), sentence
    cause = error.__cause__ or error.__context__  # another library's words speak as they like
    ours = sentence.replace(said(reason(cause), world), "") if cause else sentence
    assert not _NOT_OUR_VOICE.search(ours), ours
    assert origin(error) == module


def test_every_package_of_an_extra_is_asked_for_by_name() -> None:
    """Whoever lacks one reads what to install, and as an extra, which has the versions that go together."""
    # What deepspeed compiles with, and what mteb imports: whoever reads that one of these two is missing gets them too.
    implied = {"ninja", "setuptools", "pytrec-eval-terrier", "tqdm"}
    setup = ConfigParser(interpolation=None)
    setup.read(PACKAGE.parent / "setup.cfg")
    extras = {name: lines.split() for name, lines in setup["options.extras_require"].items()}
    sentences = [row.sentence.lower() for rows in TABLE.values() for row in rows]
    for extra in extras.keys() - {"test", "dev"}:
        for requirement in extras[extra]:
            package = re.split(r"[<>=]", requirement)[0].removesuffix("-cpu")
            asked = re.compile(rf"needs .*\b{package}\b.*; run: pip install \"piccolo_st\[{extra}\]\"$")
            assert package in implied or any(map(asked.search, sentences)), f"no row lacks {package}"


@cache
def trees() -> tuple[tuple[str, ast.Module], ...]:
    """(module, its code) of the package; names as ``origin`` gives them."""
    return tuple((named(path), ast.parse(path.read_text(encoding="utf-8"))) for path in sorted(PACKAGE.rglob("*.py")))


def input_errors() -> set[str]:
    """The names of InputError and of every class below it."""
    bases: dict[str, set[str]] = {}
    for _, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = {ast.unparse(base) for base in node.bases}
    names = {InputError.__name__}
    while more := {name for name, above in bases.items() if above & names} - names:
        names |= more
    return names


def raised_in() -> Iterator[tuple[str, str]]:
    """(module, name) for every name in a ``raise`` of the package, the error's among them; ``optional`` raises one."""
    for module, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "optional":
                yield module, "MissingPackage"
            elif isinstance(node, ast.Raise) and node.exc is not None:
                yield from ((module, name.id) for name in ast.walk(node.exc) if isinstance(name, ast.Name))


def test_every_module_that_raises_an_input_error_has_a_row() -> None:
    """That the errors of a row come from its module is what the rows themselves check."""
    names = input_errors()
    assert {"InputError", "ConfigError", "MixtureError", "CheckpointError", "ReleaseError"} <= names
    raising = {module for module, error in raised_in() if error in names}
    covered = {module for module, rows in TABLE.items() if any(row.code == 2 for row in rows)}
    assert raising - covered - set(EXEMPT) == set(), "give each of these a row, or a reason"
    assert set(EXEMPT) <= raising - covered, "these need no exemption any more"
    assert set(TABLE) <= {module for module, _ in raised_in()}
