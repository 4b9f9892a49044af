"""Data: what is trained on, which rows stand together at which step, and how they become tensors.

A mixture, from its file to rows that are checked and in the columns sentence-transformers reads::

    specs.py        what a mixture file may say, as frozen dataclasses; MixtureError
    mixture.py      load_mixture: the YAML -> datasets, held-out sets, a report, a fingerprint
    sources.py      readers of the formats (beir.py, jionlp.py for two more), row by row, faults included
    roles.py        which column plays which role, as typed arrays
    validation.py   what is wrong with a row
    presets.py      NLI -> triplets, labelled texts -> texts of the same and of other classes, scored pairs -> pairs
    holdout.py      queries kept for evaluation, and their texts out of training
    limits.py       a dataset's own lengths and instruction, wherever its texts are cut
    store.py        rows read and checked once, memory-mapped afterwards; accounts.py: their numbers

Better data, before a run::

    mining.py       hard negatives: candidates.py finds them, by a model or by terms (lexical.py), and rescores them
    curation.py     duplicates and evaluation texts (shingles.py: texts as sets of n-grams)
    filtering.py    length, language, repetition, consistency
    prepare/        those as steps that resume, on a laptop or a cluster

Batches::

    permutation.py, plan.py, sampler.py   which rows at which step; duplicates.py: none twice in a batch
    reading.py, collator.py, tokenization.py   a batch as one read, and as tensors
"""
