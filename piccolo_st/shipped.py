"""The YAML files that come with the package, found by name without a path: configurations, mixtures, launchers.

They stand once in the source tree, and beside this file in an installed package; setup.cfg says so to the wheel.
"""

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from piccolo_st.errors import ConfigError, nearest

if TYPE_CHECKING:
    from piccolo_st.describe import JsonSchema

# folder of the installed package -> folder of the source tree
_FOLDERS = {"configs": "recipes/configs", "accelerate": "recipes/accelerate", "model_cards": "model_cards"}


def shipped() -> dict[str, Path]:
    """Name -> file."""
    return {path.stem: path for name in _FOLDERS for path in sorted(_folder(name).glob("*.yaml"))}


def _folder(name: str) -> Path:
    package = Path(__file__).parent
    return package / name if (package / name).is_dir() else package.parent / _FOLDERS[name]


def schema(name: str) -> JsonSchema:
    """The shipped JSON Schema of this name, with what it takes from another one; mixtures are any mapping."""
    found: JsonSchema = json.loads((_folder("configs") / f"{name}.schema.json").read_text(encoding="utf-8"))
    for section, of_section in found["properties"].items():
        file, _, inside = str(of_section.get("$ref", "")).partition(".schema.json#/properties/")
        if inside:
            found["properties"][section] = schema(file)["properties"][inside]
        for one in of_section.get("properties", {}).get("mixture", {}).get("anyOf", []):
            if one.pop("$ref", None):
                one["type"] = "object"
    return found


def find(place: str | Path, folder: Path = Path()) -> Path:
    """The file at this path or, where there is none, the shipped one of this name.

    What ends in .yaml or .yml, or names a folder, is a path whether there is such a file or not.

    Args:
        place: path or name.
        folder: where a relative path starts.

    Raises:
        ConfigError: neither a file nor a name.
    """
    path = folder / Path(place).expanduser()
    if path.exists() or path.suffix in (".yaml", ".yml") or len(Path(place).parts) > 1:
        return path
    name, known = str(place), shipped()
    if name not in known:
        near = nearest(name, list(known))
        every = "" if near.startswith("; known") else f" known are {', '.join(known)}"
        raise ConfigError(
            f"a file must be named by its path, or by its name where it is a shipped one, got {name!r}{near}{every}"
        )
    return known[name]


def main(arguments: Sequence[str]) -> None:
    """List the shipped YAML files, each by its name and what it is, or say where the one of a name lies.

    usage: python -m piccolo_st configs [NAME]

    cp $(python -m piccolo_st configs quickstart) my.yaml
    python -m piccolo_st launch --config_file $(python -m piccolo_st configs cpu_zero1) finetune quickstart
    """
    if {"-h", "--help"} & set(arguments):
        print(inspect.cleandoc(main.__doc__ or ""))
    elif arguments:
        print(find(arguments[0]))
    else:
        for name, path in shipped().items():
            lines = path.read_text(encoding="utf-8").splitlines()
            about = next(line for line in lines if not line.startswith("# yaml-language-server"))
            print(f"{name:<20} {textwrap.shorten(about.lstrip('# '), 99, placeholder=' ...')}")
