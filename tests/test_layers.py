"""The house: rooms in an order, entered by the door; nothing heavy is imported; importing changes nothing."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "piccolo_st"

# Ground first. A room, a folder or a file at the top, imports only from floors below its own, inside functions and for
# types too; rooms of one floor do not import each other.
FLOORS = [
    {"_version", "errors"},
    {"schema"},
    {"describe", "stored"},
    {"ownership"},
    {"turns"},
    {"_lazy", "cache", "config", "distributed", "environment", "hashing", "hub", "redaction", "shipped", "tables"},
    {"modeling"},
    {"data", "batches"},
    {"losses", "mining", "pooling"},
    {"evaluation"},
    {"releasing"},
    {"training", "curation"},
    {"demo", "experiments"},
    {"commands"},
    {"__main__"},
]
LEVEL = {name: level for level, floor in enumerate(FLOORS) for name in floor}
DOORLESS = {
    "demo": "its __init__ is copied into a Space, where only the page is",
}

# Packages that only some users install: imported inside the function that needs them.
OPTIONAL = {"mteb", "faiss", "matplotlib", "jionlp", "deepspeed", "datasketch", "bm25s", "opencc", "onnx",
            "onnxruntime", "onnxscript", "openpyxl", "datatrove", "gradio", "pandas", "rensa"}  # fmt: skip


def _files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _name(path: Path) -> str:
    """Dotted, below the package: ``data.mixture``; a folder's __init__ is the folder; the package's own is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(name: str) -> str:
    return name.split(".")[0]


def _at_import(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when a module is imported: no functions, and not what only a type checker reads."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _at_import(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _at_import(handler.body)


@cache
def _taken(path: Path, at_import: bool = False) -> tuple[tuple[str, str], ...]:
    """(module, name) of every import, name empty for a module as a whole."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: list[tuple[str, str]] = []
    for node in list(_at_import(tree.body)) if at_import else ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the whole name"
            found += [(node.module, alias.name) for alias in node.names]
    return tuple(found)


@cache
def _given() -> dict[str, dict[str, str]]:
    """Room -> the names that its __init__ gives -> the file that defines each, as the room's table for types says."""
    given: dict[str, dict[str, str]] = {}
    for path in PACKAGE.glob("*/__init__.py"):
        room = _name(path)
        given[room] = {name: module for module, name in _taken(path) if module.startswith(f"piccolo_st.{room}.")}
    return given


def _arrows(path: Path, at_import: bool = False) -> Iterator[str]:
    """The modules of the package that a file imports; a name taken from a room is an arrow to the file behind it."""
    names = {_name(file) for file in _files()}
    for module, name in _taken(path, at_import):
        if module.split(".")[0] == "piccolo_st":
            below = module.removeprefix("piccolo_st").lstrip(".")
            whole = f"{below}.{name}".lstrip(".")
            behind = _given().get(below, {}).get(name, module).removeprefix("piccolo_st").lstrip(".")
            yield whole if whole in names else behind


FILES = pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(PACKAGE)))


@FILES
def test_imports_point_to_the_ground(path: Path) -> None:
    own = _room(_name(path))
    if not own:
        return
    assert own in LEVEL, f"{own} has no floor; give it one in FLOORS and in the package's docstring"
    for other in _arrows(path):
        if _room(other) not in (own, ""):
            assert LEVEL[_room(other)] < LEVEL[own], f"{_name(path)} imports {other}: not on a floor below its own"


@FILES
def test_rooms_are_entered_by_the_door(path: Path) -> None:
    """A name that a room's __init__ gives is taken from there by the other rooms."""
    own = _room(_name(path))
    for module, name in _taken(path):
        below = module.removeprefix("piccolo_st.")
        room = _room(below)
        if own and module.startswith("piccolo_st.") and room not in (own, *DOORLESS):
            assert not re.match("_[^_]", name), f"{_name(path)} takes the private {name} of {below}"
            assert below == room or _given().get(room, {}).get(name) != module, (
                f"{_name(path)} takes {name} from {below}; take it from piccolo_st.{room}"
            )


@pytest.mark.parametrize("room", sorted(room for room, names in _given().items() if names))
def test_a_room_gives_what_its_table_for_types_says(room: str) -> None:
    import importlib

    if room == "evaluation":
        pytest.importorskip("mteb")
    module = importlib.import_module(f"piccolo_st.{room}")
    for name, home in _given()[room].items():
        assert getattr(module, name) is getattr(importlib.import_module(home), name), f"{name} of {room}"
    if hasattr(module, "__all__"):
        assert set(_given()[room]) <= set(dir(module))
    elif room not in DOORLESS:
        assert set(dir(module)) == set(_given()[room])
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_nothing_is_imported_by_what_it_imports() -> None:
    """Files, with imports inside functions and for types: no circle at all."""
    graph = {_name(path): {one for one in _arrows(path) if one != _name(path)} for path in _files()}
    for path in PACKAGE.rglob("__init__.py"):  # what a room gives is no import of its files by it
        room = _name(path)
        graph[room] = {one for one in graph[room] if room and not one.startswith(f"{room}.")}
    assert sum(map(len, graph.values())) > len(graph), "the graph has next to no edges"
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_package_takes_its_own_names_from_where_they_are_defined() -> None:
    import piccolo_st

    for path in _files():
        shortcuts = {name for module, name in _taken(path) if module == "piccolo_st"} & set(piccolo_st._EXPORTS)
        assert not shortcuts, f"{_name(path)} imports {shortcuts} from the top, which is above it"


@pytest.mark.parametrize("recipe", sorted((PACKAGE.parent / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_a_recipe_is_a_command_and_nothing_else(recipe: Path) -> None:
    code = recipe.read_text(encoding="utf-8")
    assert set(_taken(recipe)) == {("sys", ""), ("piccolo_st.__main__", "main")}
    assert code.endswith(f'    main(["{recipe.stem}", *sys.argv[1:]])\n') and len(code.splitlines()) < 10


@FILES
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    # The files of evaluation that need mteb are themselves only loaded when one of their names is asked for.
    lazy = {"mteb"} if _room(_name(path)) == "evaluation" else set()
    found = ({module.split(".")[0] for module, _ in _taken(path, at_import=True)} & OPTIONAL) - lazy
    assert not found, f"{_name(path)} imports {found} at the top"


def _printed(code: str, **environment: str) -> str:
    """What a process of its own prints."""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, env=os.environ | environment
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


def test_training_loads_no_optional_package() -> None:
    code = f"import sys, piccolo_st.training.run; print(sorted({OPTIONAL - {'pandas'}!r} & set(sys.modules)))"
    # accelerate itself imports deepspeed where it is installed.
    assert _printed(code, ACCELERATE_USE_DEEPSPEED="false") in ("[]", "['deepspeed']")


def test_mteb_and_the_curation_of_data_have_few_users() -> None:
    users = {_room(_name(path)) for path in _files() if any(m.split(".")[0] == "mteb" for m, _ in _taken(path))}
    assert users <= {"evaluation"}
    users = {_room(_name(path)) for path in _files() for one in _arrows(path) if _room(one) == "curation"}
    assert users <= {"curation", "commands"}


def test_every_room_exists_or_is_gone() -> None:
    present = {_room(_name(path)) for path in _files()} - {""}
    assert present == set(LEVEL), f"FLOORS and the tree differ in {present ^ set(LEVEL)}"


@pytest.mark.parametrize("room", sorted(name for name in LEVEL if (PACKAGE / name).is_dir()))
def test_a_room_costs_nothing_until_a_name_is_asked_for(room: str) -> None:
    if room in ("losses", "demo"):
        pytest.skip("few names, each of which needs all of it")
    assert _printed(f"import sys, piccolo_st.{room}; print('torch' in sys.modules)") == "False"


def test_importing_the_package_loads_nothing_and_changes_nothing() -> None:
    code = (
        "import sys, os, logging, warnings\n"
        "before = (dict(os.environ), logging.root.level, list(warnings.filters))\n"
        "loaded = set(sys.modules)\n"
        "import time; start = time.perf_counter()\n"
        "import piccolo_st\n"
        "spent = time.perf_counter() - start\n"
        "found = {name.split('.')[0] for name in set(sys.modules) - loaded} - set(sys.stdlib_module_names)\n"
        "assert found == {'piccolo_st'}, found\n"
        "assert before == (dict(os.environ), logging.root.level, list(warnings.filters))\n"
        "print(spent)\n"
    )
    assert float(_printed(code)) < 0.1


def test_every_public_name_is_there() -> None:
    import piccolo_st

    assert len(piccolo_st.__all__) <= 13  # twelve names and the version
    for name in piccolo_st.__all__:
        assert getattr(piccolo_st, name) is not None
    with pytest.raises(AttributeError, match=r"has no attribute 'NoSuchName'; its public names are"):
        _ = piccolo_st.NoSuchName
