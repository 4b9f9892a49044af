"""``python recipes/evaluate.py ...`` is ``python -m piccolo_st evaluate ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])
