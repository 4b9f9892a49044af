"""``accelerate launch recipes/pretrain.py ...`` is ``python -m piccolo_st launch pretrain ...``; see --help."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["pretrain", *sys.argv[1:]])
