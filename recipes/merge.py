"""``python recipes/merge.py ...`` is ``python -m piccolo_st merge ...``; --help says what it takes."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["merge", *sys.argv[1:]])
