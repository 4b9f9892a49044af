"""Fine-tune a Piccolo embedding model on a mixture of labelled pairs and triplets.

accelerate launch recipes/finetune.py                  the quickstart: no network, minutes on a CPU
accelerate launch recipes/finetune.py CONFIG.yaml      any run
accelerate launch recipes/finetune.py CONFIG.yaml --train.learning_rate 1e-5 --data.batch_size 32
accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml recipes/finetune.py
python recipes/finetune.py CONFIG.yaml --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
"""

from collections.abc import Sequence
from pathlib import Path

from piccolo_st.command import run_recipe
from piccolo_st.config import parse_run
from piccolo_st.training import FINETUNE, TrainingRun, show_plan


def main(arguments: Sequence[str]) -> None:
    plan = "--plan" in arguments
    arguments = [argument for argument in arguments if argument != "--plan"]
    config = parse_run(arguments, FINETUNE, Path(__file__).parent / "configs" / "quickstart.yaml", __doc__)
    if plan:
        print(show_plan(config))
        return
    run = TrainingRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())


if __name__ == "__main__":
    run_recipe(main)
