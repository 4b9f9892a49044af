"""What ``python -m piccolo_st COMMAND`` runs: options and output of each command; the work is done in the rooms.

train.py      finetune and pretrain: a run from its YAML to its model, or what it would need
launch.py     launch: another command on several devices, by accelerate's launcher
prepare.py    prepare: check, dedup, filter or mine
evaluate.py   evaluate: scores of a model, or two models compared
merge.py      merge: one model of several checkpoints
release.py    release and card: what goes to the Hub
demo.py       demo: a page to see a model search
ablation.py   ablation: what each part of a recipe is worth
reference.py  recipes/REFERENCE.md and the schemas of configurations, written from the code that reads them
exit.py       how a command ends
quiet.py      what a command shows of its libraries
"""
