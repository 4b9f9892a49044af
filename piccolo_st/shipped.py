"""The YAML files that come with the package, found by name without a path: configurations, mixtures, launchers.

They stand once in the source tree, and beside this file in an installed package; setup.cfg says so to the wheel.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Sequence
from pathlib import Path

from piccolo_st.errors import ConfigError, nearest

# folder of the installed package -> folder of the source tree
_FOLDERS = {"configs": "recipes/configs", "accelerate": "recipes/accelerate", "model_cards": "model_cards"}


def shipped() -> dict[str, Path]:
    """Name -> file."""
    package = Path(__file__).parent
    folders = [package / ours if (package / ours).is_dir() else package.parent / of for ours, of in _FOLDERS.items()]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


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
    accelerate launch --config_file $(python -m piccolo_st configs cpu_zero1) -m piccolo_st finetune quickstart
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
