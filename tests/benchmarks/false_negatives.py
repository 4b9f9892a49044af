"""The share of false negatives among mined ones, with and without margins, on sets whose labels tell. Run by hand:

    python -m tests.benchmarks.false_negatives ROOT MODEL [ROWS]

ROOT holds sts/afqmc.train.jsonl (pairs of 1 and 0), nli/ocnli.train.jsonl and
classification/shopping_category.train.jsonl. A row is a text and one right answer; the miner sees nothing else. A mined
negative is false if a label says that it is an answer too (a paraphrase of a paraphrase, another entailment of the
premise, a review of the same category), and true if a label says that it is none.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from datasets import Dataset
from sentence_transformers import SentenceTransformer

from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.miner import Miner
from piccolo_st.tables import table

Judge = Callable[[str, str], bool | None]
Set = tuple[list[tuple[str, str]], list[str], Judge]
"""(query, positive) rows, further documents, and whether a document answers a query; None where no label tells."""


def _lines(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def afqmc(root: Path, rows: int) -> Set:
    """Texts with two known paraphrases or more, of which the miner is told one."""
    lines = _lines(root / "sts/afqmc.train.jsonl")
    pairs = [(row["sentence1"], row["sentence2"], float(row["score"])) for row in lines]
    group = {text: {text} for a, b, _ in pairs for text in (a, b)}
    for a, b, score in pairs:
        if score == 1 and group[a] is not group[b]:
            group[a] |= group[b]
            for text in group[b]:
                group[text] = group[a]
    against = {(a, b) for a, b, score in pairs if score == 0}

    def judge(query: str, text: str) -> bool | None:
        if text in group[query]:
            return True
        return False if (query, text) in against or (text, query) in against else None

    chosen = list({a: (a, b) for a, b, score in pairs if score == 1 and len(group[a]) > 2}.values())[:rows]
    near = {text for a, _ in chosen for text in group[a]}
    told = {text for a, b, _ in pairs for text in (a, b) if {a, b} & near}
    return chosen, sorted(told) + list(group)[: 2 * rows], judge


def ocnli(root: Path, rows: int) -> Set:
    """Premises with two entailments or more, of which the miner is told one."""
    labels: dict[str, dict[str, str]] = defaultdict(dict)
    for row in _lines(root / "nli/ocnli.train.jsonl"):
        labels[row["premise"]][row["hypothesis"]] = row["label"]
    several = [(premise, [text for text, label in own.items() if label == "entailment"])
               for premise, own in labels.items()]  # fmt: skip
    chosen = [(premise, found[0]) for premise, found in several if len(found) > 1][:rows]
    documents = [text for own in list(labels.values())[: 2 * rows] for text in own]
    documents += [text for premise, _ in chosen for text in labels[premise]]

    def judge(query: str, text: str) -> bool | None:
        label = labels[query].get(text)
        return None if label is None else label == "entailment"

    return chosen, documents, judge


def shopping(root: Path, rows: int) -> Set:
    """A review and another of its category."""
    lines = _lines(root / "classification/shopping_category.train.jsonl")[: 2 * rows]
    label = {row["text"]: row["label"] for row in lines}
    members: dict[str, list[str]] = defaultdict(list)
    for text, name in label.items():
        members[name].append(text)
    pairs = [pair for own in members.values() for pair in zip(own[::2], own[1::2], strict=False)][:rows]
    return pairs, list(label), lambda query, text: label[query] == label[text]


def main(root: Path, model: str, rows: int = 500) -> None:
    """Print the table."""
    encoder = SentenceTransformer(model, device="cpu")
    encoder.prompts = {"query": "query: ", "document": "passage: "}
    encoder.max_seq_length = 128
    lines: list[tuple[object, ...]] = []
    with TemporaryDirectory() as folder:
        for build in (afqmc, ocnli, shopping):
            pairs, documents, judge = build(root, rows)
            dataset = Dataset.from_dict({"query": [a for a, _ in pairs], "positive": [b for _, b in pairs]})
            for margin in (None, 0.02, 0.05):
                settings = MiningSettings(num_negatives=4, range_max=500, relative_margin=margin)
                miner = Miner(dataset, encoder, settings, corpus=documents, folder=Path(folder))
                mined = miner.mine_all(dataset)[0]
                found = [judge(row["query"], text) for row in mined for text in row["negative"]]
                told = [answer for answer in found if answer is not None]
                share = 100 * sum(told) / max(1, len(told))
                without = sum(not texts for texts in mined["negative"])
                name = "none" if margin is None else f"{margin:g}"
                lines.append((build.__name__, name, len(pairs), len(miner.documents), len(found), without, len(told),
                              sum(told), share))  # fmt: skip
                print(lines[-1], flush=True)
    header = (
        "set",
        "relative_margin",
        "rows",
        "documents",
        "mined",
        "rows without",
        "told by labels",
        "false",
        "false, %",
    )
    print(table(header, lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:]))
