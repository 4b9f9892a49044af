"""Rows of one kind turned into rows of another: what the Piccolo recipe does to labelled data.

    scored_pairs   sentence1, sentence2, label    -> query, positive, for pairs at or above the threshold
    nli            premise, hypothesis, label     -> query (the premise), positive (an entailment),
                                                     negative (the list of contradictions of that premise);
                                                     for sts and pair sentence1, sentence2, label: 1 for an
                                                     entailment, 0.5 for a neutral pair, 0 for a contradiction
    classes        text, label                    -> query, positive (another text of the class), negative (a list of
                                                     texts of other classes); with ``negatives: 0``, query, positive and
                                                     label: the loss compares all texts of the batch

``nli`` for retrieval and ``classes`` look at the whole dataset at once, which they hold in memory.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from piccolo_st.data.specs import DatasetSpec, PresetSpec
from piccolo_st.data.tasks import LABELLED_TASKS, SCORED_TASKS
from piccolo_st.data.validation import clean_list
from piccolo_st.errors import MixtureError

# The names of the three NLI relations in use; numbers are those of SNLI and MultiNLI on the Hub.
ENTAILMENT = ("entailment", "entailed", "0")
NEUTRAL = ("neutral", "1")
CONTRADICTION = ("contradiction", "contradictory", "2")


def apply_preset(spec: DatasetSpec, preset: PresetSpec, table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    """The table of the new kind, and how many rows went for which reason; the table must have a row.

    Raises:
        MixtureError: nothing is left, or a class stands alone.
    """
    if preset.name == "scored_pairs":
        result, left_out = _scored_pairs(table, preset)
    elif preset.name == "nli" and spec.task in SCORED_TASKS:
        result, left_out = _scored_nli(table)
    elif preset.name == "nli":
        result, left_out = _nli(table, preset)
    else:
        result, left_out = _classes(spec, table, preset)
    if result.num_rows == 0:
        found = ", ".join(f"{n} {reason}" for reason, n in left_out.items() if n)
        raise MixtureError(
            f"the preset {preset.name!r} of dataset {spec.name!r} must leave at least one row, got none of "
            f"{table.num_rows} ({found}); check `preset` and `columns`"
        )
    return result, left_out


def _scored_pairs(table: pa.Table, preset: PresetSpec) -> tuple[pa.Table, dict[str, int]]:
    equal = pc.equal(table["sentence1"], table["sentence2"])
    # Labels are float32: 0.8 written in a file must count as reaching a threshold of 0.8.
    reached = pc.greater_equal(table["label"], pa.scalar(preset.threshold, pa.float32()))
    kept = table.filter(pc.and_(reached, pc.invert(equal)))
    low = int(pc.sum(pc.cast(pc.invert(reached), pa.int64())).as_py() or 0)
    return (
        pa.table({"query": kept["sentence1"], "positive": kept["sentence2"]}),
        {"score below the threshold": low, "positive equal to the query": table.num_rows - low - kept.num_rows},
    )


def _nli(table: pa.Table, preset: PresetSpec) -> tuple[pa.Table, dict[str, int]]:
    wanted = CONTRADICTION + (NEUTRAL if preset.neutral_as_negative else ())
    label = pc.utf8_lower(table["label"])
    entailed = table.filter(pc.is_in(label, pa.array(ENTAILMENT)))
    entailed = entailed.filter(pc.not_equal(entailed["premise"], entailed["hypothesis"]))
    against = table.filter(pc.is_in(label, pa.array(wanted)))

    # Number the premises, then lay the contradictions out premise by premise.
    premises = pa.chunked_array([*entailed["premise"].chunks, *against["premise"].chunks], type=pa.string())
    codes = premises.combine_chunks().dictionary_encode().indices.to_numpy(False).astype(np.int64)
    of_entailed, of_against = codes[: entailed.num_rows], codes[entailed.num_rows :]
    order = np.argsort(of_against, kind="stable")
    counts = np.bincount(of_against, minlength=int(codes.max(initial=-1)) + 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    hypotheses = against["hypothesis"].combine_chunks()
    positives = entailed["hypothesis"].to_pylist()
    premise_texts = entailed["premise"].to_pylist()
    negatives = []
    for row, premise in enumerate(of_entailed):
        texts = hypotheses.take(pa.array(order[starts[premise] : starts[premise + 1]])).to_pylist()
        negatives.append([t for t in dict.fromkeys(texts) if t not in (positives[row], premise_texts[row])])
    result = pa.table(
        {
            "query": entailed["premise"],
            "positive": entailed["hypothesis"],
            "negative": pa.array(negatives, type=pa.list_(pa.string())),
        }
    )
    return result, {
        "not an entailment (kept as a negative where its premise has one)": table.num_rows - result.num_rows
    }


def _scored_nli(table: pa.Table) -> tuple[pa.Table, dict[str, int]]:
    label = pc.utf8_lower(table["label"])
    scores = pc.case_when(
        pc.make_struct(*(pc.is_in(label, pa.array(names)) for names in (ENTAILMENT, NEUTRAL, CONTRADICTION))),
        *(pa.scalar(score, pa.float32()) for score in (1.0, 0.5, 0.0)),
    )
    scored = pa.table({"sentence1": table["premise"], "sentence2": table["hypothesis"], "label": scores})
    equal = pc.equal(table["premise"], table["hypothesis"])
    kept = scored.filter(pc.and_(pc.is_valid(scores), pc.invert(equal)))
    unknown = scores.null_count
    return kept, {"no relation of that name": unknown, "equal sentences": table.num_rows - unknown - kept.num_rows}


def _classes(spec: DatasetSpec, table: pa.Table, preset: PresetSpec) -> tuple[pa.Table, dict[str, int]]:
    texts = table["text"].combine_chunks()
    encoded = table["label"].combine_chunks().dictionary_encode()
    codes = encoded.indices.to_numpy(False).astype(np.int64)
    sizes = np.bincount(codes)
    if len(sizes) < 2:
        raise MixtureError(
            f"the preset 'classes' of dataset {spec.name!r} needs at least two labels, got "
            f"{encoded.dictionary[0].as_py()!r} in every row; "
            + ("`max_rows` reads the first ones: shuffle the file" if spec.max_rows else "check `columns`")
        )
    generator = np.random.default_rng(preset.seed)
    order = np.argsort(codes, kind="stable")  # texts, class by class
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rank = np.empty(len(codes), dtype=np.int64)
    rank[order] = np.arange(len(codes)) - starts[codes[order]]
    own = np.flatnonzero(sizes[codes] > 1)  # rows that have a companion

    size, start = sizes[codes[own]], starts[codes[own]]
    # Another member of the class: 1 to size - 1 places further on, in a circle.
    shift = 1 + (generator.random(len(own)) * (size - 1)).astype(np.int64)
    positive = order[start + (rank[own] + shift) % size]
    columns: dict[str, pa.Array] = {"query": texts.take(pa.array(own)), "positive": texts.take(pa.array(positive))}
    if count := preset.negatives:
        # Members of other classes: a place among all that are not of the class, which begins at `start`.
        place = (generator.random((len(own), count)) * (len(codes) - size)[:, None]).astype(np.int64)
        negative = order[place + np.where(place >= start[:, None], size[:, None], 0)]
        flat = texts.take(pa.array(negative.reshape(-1)))
        offsets = pa.array(np.arange(len(own) + 1, dtype=np.int32) * count)
        columns["negative"] = pa.ListArray.from_arrays(offsets, flat)
        columns["negative"], *_ = clean_list(
            spec, "negative", columns
        )  # the same text drawn twice, or under two labels
    elif spec.task in LABELLED_TASKS:
        columns["label"] = table["label"].combine_chunks().take(pa.array(own))
    result = pa.table(columns)
    distinct = pc.not_equal(result["query"], result["positive"])
    kept = result.filter(distinct)
    return kept, {
        "alone in its class": len(codes) - len(own),
        "positive equal to the query": result.num_rows - kept.num_rows,
    }
