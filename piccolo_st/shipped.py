"""The YAML files that come with the package: configurations and mixtures, found by name without a path.

They stand in recipes/configs and recipes/accelerate of the source tree, and in configs and accelerate of an installed
package.
"""

from __future__ import annotations

from pathlib import Path

from piccolo_st.errors import ConfigError, nearest

_PACKAGE = Path(__file__).parent
_HOME = _PACKAGE if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "recipes"


def shipped(folder: str = "configs") -> dict[str, Path]:
    """Name -> file of each configuration or, with ``accelerate``, of each launcher's configuration."""
    return {path.stem: path for path in sorted((_HOME / folder).glob("*.yaml"))}


def find(place: str | Path) -> Path:
    """The file at this path or, where there is none, the shipped one of this name.

    What ends in .yaml or .yml, or names a folder, is a path whether there is such a file or not.

    Raises:
        ConfigError: neither a file nor a name.
    """
    path = Path(place)
    if path.exists() or path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        return path
    known = shipped()
    if str(place) not in known:
        near = nearest(str(place), list(known))
        every = "" if near.startswith("; known") else f" known are {', '.join(known)}"
        raise ConfigError(
            f"the configuration must be the path of a YAML file or the name of a shipped one, got {str(place)!r}"
            f"{near}{every}"
        )
    return known[str(place)]
