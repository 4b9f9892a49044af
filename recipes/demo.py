"""``python recipes/demo.py ...`` is ``python -m piccolo_st demo ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
