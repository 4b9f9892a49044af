"""Training: a run from its configuration to its checkpoint, and on from there.

arguments.py    a run's configuration: a dataclass for each section of its YAML
unread.py       settings that nothing reads beside the others that are set
run.py          TrainingRun: from a configuration to its model; the story from top to bottom
assembly.py     the parts of a run: model, mined negatives, losses, evaluators, trainer
summary.py      what a run tells the user before it starts and when it has ended
estimate.py     what a run will need: memory of a GPU, bytes on the wire, steps and hours

trainer.py      PiccoloTrainer: ST's trainer with Piccolo's collator, sampler, reading, guards, logs and saving
guards.py       what stops a run before it wastes time: settings that fail, signals, a process that has gone
non_finite.py   steps whose loss or gradient is not finite change no weight
metrics.py      what is logged: loss of each dataset, tokens, padding, alignment and uniformity

resumable.py    ResumableTrainer: ST's trainer whose runs survive being killed and go on exactly
fingerprint.py  everything that decides a run's rows and numbers, as flat JSON
resume.py       whether a run may go on from a checkpoint, and what that must hold
checkpoint.py   checkpoints that are complete or not there
manifest.py     what a checkpoint must hold, byte for byte
disk.py         what to say when the disk did not take a checkpoint
zero.py         DeepSpeed ZeRO checkpoints for another number of processes
ownership.py    one owner of an output directory
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

__getattr__, __dir__ = lazily(__name__, __file__)
