"""``python -m piccolo_st.releasing FOLDER... [--check]``: write the README.md of folders of data files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from piccolo_st.command import run_recipe
from piccolo_st.config import OptionParser
from piccolo_st.releasing.card_folder import card_from_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or, with ``--check``, compare; 1 when a card is not what its data say.

    Raises:
        InputError: data that cannot be used.
    """
    parser = OptionParser(prog="python -m piccolo_st.releasing", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a folder with a card.yaml")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a card would change")
    options = parser.parse_args(arguments)
    stale = 0
    for folder in options.folders:
        text = card_from_folder(folder)
        path = folder / "README.md"
        same = path.exists() and path.read_text(encoding="utf-8") == text
        if not same and not options.check:
            path.write_text(text, encoding="utf-8")
        stale += options.check and not same
        print(f"{path}: {'unchanged' if same else 'out of date' if options.check else 'written'}")
    return 1 if stale else 0


if __name__ == "__main__":
    run_recipe(lambda arguments: sys.exit(main(arguments)))
