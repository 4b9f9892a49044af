"""``python recipes/prepare.py ...`` is ``python -m piccolo_st prepare ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["prepare", *sys.argv[1:]])
