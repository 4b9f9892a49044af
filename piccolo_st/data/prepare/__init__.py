"""Preparing a mixture before training, as steps that resume, on a laptop or a cluster.

steps.py    a step from its settings to its report: ``run_step``
stages.py   work as stages of tasks, done once each, here or by datatrove's executors
job.py      what steps share: rows in parts, the files they leave
check.py    every row validated; lengths, duplicates, negatives
dedup.py    exact and near duplicates; texts of evaluation sets
filter.py   length, language, repetition, consistency
mine.py     hard negatives
models.py   loading encoders, cross-encoders, tokenizers
"""
