"""Fine-tune a Piccolo embedding model on a mixture of labelled pairs and triplets.

accelerate launch recipes/finetune.py                  the quickstart: no network, minutes on a CPU
accelerate launch recipes/finetune.py CONFIG.yaml      any run
accelerate launch recipes/finetune.py CONFIG.yaml --train.learning_rate 1e-5 --data.batch_size 32
accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml recipes/finetune.py
"""

from collections.abc import Sequence
from pathlib import Path

from piccolo_st.arguments import FINETUNE
from piccolo_st.configuration import parse_run, run_recipe
from piccolo_st.run import TrainingRun


def main(arguments: Sequence[str]) -> None:
    config = parse_run(arguments, FINETUNE, Path(__file__).parent / "configs" / "quickstart.yaml", __doc__)
    run = TrainingRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())


if __name__ == "__main__":
    run_recipe(main)
