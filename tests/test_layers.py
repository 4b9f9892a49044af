"""The house: imports point one way, nothing heavy is imported for its sake, importing has no side effects."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "piccolo_st"

# Ground first: a module may import only from layers before its own; modules of one layer do not import each other,
# but a package (losses, data, evaluation) may import within itself.
LAYERS = [
    {"_version", "errors"},
    {"configuration", "redaction"},
    {"distributed", "dropout", "instructions", "benchmarks", "report", "positions"},
    {"attention"},
    {"batching", "lengths", "packing"},
    {"losses", "pooling", "data"},
    {"portable", "onnx_export", "encoder", "demo"},
    {"checkpoint", "evaluation", "arguments", "guards", "watching", "ownership", "unread", "record", "signature"},
    {"model_card", "resume", "zero", "budget", "disk", "push"},
    {"durable"},
    {"trainer", "hub"},
    {"run", "baseline"},
    {"ablation"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}

# Packages that only some users install: imported inside the function that needs them.
OPTIONAL = {"mteb", "faiss", "matplotlib", "jionlp", "deepspeed", "datasketch", "bm25s", "opencc", "onnx",
            "onnxruntime", "onnxscript", "datatrove", "gradio", "pandas", "rensa"}  # fmt: skip


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


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


def _imports(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(_at_import(tree.body)) if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import; write the whole name"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _layer_name(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_to_the_ground(path: Path) -> None:
    own = _layer_name(path)
    if own == "__init__":
        return
    assert own in LEVEL, f"{path.name} has no layer; give it one in LAYERS and in the package's docstring"
    for name in _imports(path):
        if not name.startswith("piccolo_st."):
            continue
        other = name.split(".")[1]
        if other == own or other not in LEVEL:
            continue
        assert LEVEL[other] < LEVEL[own], f"{path.relative_to(PACKAGE)} imports {name}: not below its own layer"


def test_no_module_is_imported_by_what_it_imports() -> None:
    files = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in _modules()}
    files = {name.removesuffix(".__init__"): path for name, path in files.items()}
    graph = {}
    for name, path in files.items():
        found = _imports(path, top_level_only=True)
        # "from package import module" is an import of the module; the name of something else in it is not.
        owners = {one.rsplit(".", 1)[0] for one in found if one in files}
        graph[name] = {one for one in found if one in files and one != name} - (owners - {name})
    assert sum(map(len, graph.values())) > len(files), "the graph has next to no edges"
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' -> '.join(error.args[1])}")


def test_the_package_takes_its_own_names_from_where_they_are_defined() -> None:
    import piccolo_st

    for path in _modules():
        shortcuts = {f"piccolo_st.{name}" for name in piccolo_st._EXPORTS} & _imports(path)
        assert not shortcuts, f"{path.relative_to(PACKAGE)} imports {shortcuts} from the top, which is above it"


@pytest.mark.parametrize("recipe", sorted((PACKAGE.parent / "recipes").glob("*.py")), ids=lambda path: path.stem)
def test_recipes_import_nothing_private(recipe: Path) -> None:
    names = {name for name in _imports(recipe) if name.startswith("piccolo_st")}
    private = {name for name in names if any(part.startswith("_") for part in name.split("."))}
    assert names and not private, f"{recipe.name} imports {private}"


@pytest.mark.parametrize("path", _modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_optional_packages_are_imported_where_they_are_used(path: Path) -> None:
    # The modules of evaluation that need mteb are themselves only loaded when one of their names is asked for.
    lazy = {"mteb"} if _layer_name(path) == "evaluation" else set()
    found = ({name.split(".")[0] for name in _imports(path, top_level_only=True)} & OPTIONAL) - lazy
    assert not found, f"{path.relative_to(PACKAGE)} imports {found} at the top"


def test_training_loads_no_optional_package() -> None:
    code = f"import sys, piccolo_st.run; print(sorted({OPTIONAL - {'pandas'}!r} & set(sys.modules)))"
    environment = {**os.environ, "ACCELERATE_USE_DEEPSPEED": "false"}
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, env=environment
    )
    assert ran.returncode == 0, ran.stderr
    # accelerate itself imports deepspeed where it is installed.
    assert ran.stdout.strip() in ("[]", "['deepspeed']")


def test_only_evaluation_imports_mteb() -> None:
    users = {_layer_name(path) for path in _modules() if any(n.split(".")[0] == "mteb" for n in _imports(path))}
    assert users <= {"evaluation"}


def test_every_layer_exists_or_is_gone() -> None:
    present = {_layer_name(path) for path in _modules()} - {"__init__"}
    assert present <= set(LEVEL)
    assert set(LEVEL) <= present, f"LAYERS names modules that do not exist: {set(LEVEL) - present}"


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
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, env=dict(os.environ)
    )
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 0.1


def test_every_public_name_is_there() -> None:
    import piccolo_st

    assert len(piccolo_st.__all__) <= 13  # twelve names and the version
    for name in piccolo_st.__all__:
        assert getattr(piccolo_st, name) is not None
    with pytest.raises(AttributeError, match=r"has no attribute 'NoSuchName'; its public names are"):
        _ = piccolo_st.NoSuchName
