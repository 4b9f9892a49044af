"""Pretrain a Piccolo embedding model on pairs, stage 1: length 128, large batches, in-batch negatives of all ranks.

accelerate launch recipes/pretrain.py                  the dictionaries of the quickstart as pairs, no network
accelerate launch recipes/pretrain.py CONFIG.yaml      any run
accelerate launch recipes/pretrain.py CONFIG.yaml --loss.mini_batch_num_tokens 16384
accelerate launch --config_file recipes/accelerate/cpu_zero1.yaml recipes/pretrain.py
python recipes/pretrain.py CONFIG.yaml --plan      memory of a GPU, bytes on the wire, steps and hours; trains nothing
"""

from collections.abc import Sequence
from pathlib import Path

from piccolo_st.command import run_recipe
from piccolo_st.config import parse_run
from piccolo_st.training import PRETRAIN, TrainingRun, show_plan


def main(arguments: Sequence[str]) -> None:
    plan = "--plan" in arguments
    arguments = [argument for argument in arguments if argument != "--plan"]
    config = parse_run(arguments, PRETRAIN, Path(__file__).parent / "configs" / "pretrain-quickstart.yaml", __doc__)
    if plan:
        print(show_plan(config))
        return
    run = TrainingRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())


if __name__ == "__main__":
    run_recipe(main)
