"""Training: a run from its configuration to its checkpoint, and on from there.

arguments.py   The dataclasses of a run's configuration, one for each section of its YAML; ``config.py`` reads ...
checkpoint.py  Checkpoints that are complete or not there
disk.py        What a checkpoint takes on the disk, and what to say when the disk did not take it
estimate.py    What a run will need: memory of a GPU, bytes on the wire, steps and hours, from its ...
fingerprint.py A run's fingerprint: everything that decides its rows and its numbers, as flat JSON that a ...
guards.py      What stops a run before it wastes time or spoils weights
metrics.py     What a run says about itself between two logs: loss of each dataset, tokens, padding, alignment ...
ownership.py   One owner of an output directory: two runs in it would delete and overwrite each other's ...
resumable.py   ResumableTrainer: SentenceTransformerTrainer whose runs survive being killed and go on exactly
resume.py      Whether a run may go on from a checkpoint, and what a checkpoint must hold for that
run.py         A training run from its configuration to its checkpoint: what recipes/pretrain.py and ...
trainer.py     PiccoloTrainer: SentenceTransformerTrainer with Piccolo's collator, sampler, reading, guards ...
unread.py      Settings that nothing reads beside the others that are set: each is told in one line before ...
zero.py        DeepSpeed ZeRO checkpoints for another number of processes
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.training.arguments import TIME_LIMIT as TIME_LIMIT
    from piccolo_st.training.arguments import FinetuneConfig as FinetuneConfig
    from piccolo_st.training.arguments import PretrainConfig as PretrainConfig
    from piccolo_st.training.estimate import show_plan as show_plan
    from piccolo_st.training.ownership import own as own
    from piccolo_st.training.run import TrainingRun as TrainingRun

__getattr__, __dir__ = lazily(
    __name__,
    {
        "arguments": "FinetuneConfig PretrainConfig TIME_LIMIT",
        "estimate": "show_plan",
        "ownership": "own",
        "run": "TrainingRun",
    },
)
