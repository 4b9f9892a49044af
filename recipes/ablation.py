"""``python recipes/ablation.py ...`` is ``python -m piccolo_st ablation ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["ablation", *sys.argv[1:]])
