"""Training: a run from its configuration to its checkpoint, and on from there.

arguments.py    what the sections of a run's configuration hold, a dataclass for each
sections.py     the sections of a run of either stage, and the defaults of stage 1
training_arguments.py  the section train, a child of sentence-transformers' arguments, and with it the whole
described.py    the same as the shipped schema says it, for what only looks at a configuration
unread.py       settings that nothing reads beside the others that are set
run.py          TrainingRun: from a configuration to its model; the story from top to bottom
assembly.py     the parts of a run: model, mined negatives, evaluators, trainer
onlookers.py    a guide and teachers, who embed the texts before the run
dataset_losses.py  the loss of each dataset, by its task and its rows
forgetting.py   what a run gained and lost, on held-out queries and general tasks
summary.py      what a run tells the user before it starts and when it has ended
estimate.py     what a run will need: memory of a GPU, bytes on the wire, steps and hours

trainer.py      PiccoloTrainer: ST's trainer with Piccolo's collator, sampler, reading, guards and logs
guards.py       what stops a run before it wastes time: settings that fail, signals, a process that has gone
non_finite.py   steps whose loss or gradient is not finite change no weight
metrics.py      what is logged: loss of each dataset, tokens, padding, alignment and uniformity
progress.py     what is shown of it: one bar, and a log in lines

saving.py       SavingTrainer: ST's trainer whose checkpoints are complete, and say where in its run each stands
resumable.py    ResumableTrainer: the same, whose runs survive being killed and go on exactly
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
    from piccolo_st.training.estimate import show_plan as show_plan
    from piccolo_st.training.ownership import own as own
    from piccolo_st.training.run import TrainingRun as TrainingRun
    from piccolo_st.training.training_arguments import FinetuneConfig as FinetuneConfig
    from piccolo_st.training.training_arguments import PretrainConfig as PretrainConfig

__getattr__, __dir__ = lazily(__name__, __file__)
