"""``python recipes/release.py ...`` is ``python -m piccolo_st release ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["release", *sys.argv[1:]])
