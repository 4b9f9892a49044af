"""Pretrain a small BERT by masked language modelling on the text of a data mixture, where no checkpoint is at hand.

python recipes/pretrain_encoder.py --data.mixture MIXTURE.yaml                   4 layers x 256 on a CPU
python recipes/pretrain_encoder.py CONFIG.yaml --data.mixture MIXTURE.yaml       any run
accelerate launch --config_file recipes/accelerate/ddp.yaml recipes/pretrain_encoder.py CONFIG.yaml ...
"""

from collections.abc import Sequence
from pathlib import Path

from piccolo_st.arguments import ENCODER
from piccolo_st.configuration import parse_run, run_recipe
from piccolo_st.pretraining import EncoderRun


def main(arguments: Sequence[str]) -> None:
    config = parse_run(arguments, ENCODER, Path(__file__).parent / "configs" / "encoder-zh-mini.yaml", __doc__)
    run = EncoderRun(config)
    run.say(run.describe())
    run.train()
    run.say(run.summary())


if __name__ == "__main__":
    run_recipe(main)
