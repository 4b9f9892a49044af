"""``accelerate launch recipes/finetune.py ...`` is ``accelerate launch -m piccolo_st finetune ...``; see --help."""

import sys

from piccolo_st.__main__ import main

if __name__ == "__main__":
    main(["finetune", *sys.argv[1:]])
