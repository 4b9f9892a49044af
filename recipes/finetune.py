"""``accelerate launch recipes/finetune.py ...`` is ``python -m piccolo_st launch finetune ...``; see --help."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
