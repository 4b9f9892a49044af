"""Negatives for the training sets of a mixture: each set mined once, kept with its report, and read again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict

from piccolo_st import cache
from piccolo_st.data import forbidden, open_arrow, write_arrow
from piccolo_st.errors import InputError
from piccolo_st.hashing import text_key
from piccolo_st.mining.candidates import MiningSettings
from piccolo_st.mining.documents import corpus_files, read_documents
from piccolo_st.mining.in_use import NegativesInUse, RowNegatives
from piccolo_st.mining.limits import reading
from piccolo_st.mining.miner import Miner, Models
from piccolo_st.mining.remining import ReminingSettings
from piccolo_st.mining.report import MiningReport, report_table, write_report

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from piccolo_st.data import Mixture

logger = logging.getLogger(__name__)

_DOCUMENTS = 100_000  # compared with the tests at once: an Arrow array holds 2 GiB of texts


def mine_mixture(
    mixture: Mixture,
    model: Models,
    settings: Mapping[str, object] | None,
    folder: Path,
    *,
    tokenizer: Tokenizer | PreTrainedTokenizerFast | None = None,
    made_of: Sequence[object] = (),
    oversample: int = 1,
    say: Callable[[str], object] = print,
) -> DatasetDict:
    """The training sets of a mixture, with mined negatives where the rows are (query, positive).

    What has been mined before is read again. A dataset's own instruction and lengths hold here as well.

    Args:
        mixture: the datasets; their ``mining`` goes before the settings of all.
        model, tokenizer: as ``Miner``.
        settings: of ``MiningSettings``.
        folder: where the results lie, each named after all that it is made of, and the embeddings.
        made_of: further parts of a result's key, such as fingerprints of the model and the tokenizer.
        oversample: candidates that a row gets for each of its ``num_negatives``, as re-mining wants them.
        say: is given the report, and where it lies.

    Raises:
        InputError: an unknown setting, or a streamed dataset.
    """
    mined, reports = {}, {}
    models = [model] if isinstance(model, str) or not isinstance(model, Sequence) else model
    for name, dataset in mixture.train.items():
        chosen = _settings_of(mixture, name, settings)
        if chosen is None or _lists_positives(dataset):
            mined[name] = dataset
            continue
        if mixture.specs[name].streaming:
            raise InputError(
                f"streaming of dataset {name!r} must be left out where its negatives are mined, since they are written "
                "with its rows; leave data.mining_model out, and stream what `prepare mine` writes"
            )
        if oversample > 1:
            count = chosen.num_negatives * oversample
            chosen = replace(chosen, num_negatives=count, range_max=max(chosen.depth, chosen.range_min + count))
        files = cache.content_digest(corpus_files(chosen.corpus, mixture.root), folder) if chosen.corpus else ""
        if chosen.corpus and (tests := mixture.test_sets()):
            files += tests.fingerprint
        judge = Path(chosen.judge or "")
        if chosen.judge and judge.is_dir():
            files += cache.content_digest(sorted(path for path in judge.rglob("*") if path.is_file()), folder)
        key = cache.digest(["mined", 3, name, mixture.fingerprint, files, *made_of, asdict(chosen)])

        def mine(target: Path, dataset: Dataset = dataset, chosen: MiningSettings = chosen, name: str = name) -> None:
            corpus = further_documents(mixture, chosen)
            with ExitStack() as stack:
                for one in models:
                    if not isinstance(one, str):
                        stack.enter_context(reading(one, mixture.specs[name]))
                miner = Miner(dataset, models, chosen, tokenizer=tokenizer, corpus=corpus, folder=folder / "embeddings")
                tables, report = miner.mine_all(dataset)
            write_arrow(target / "rows.arrow", tables)
            (target / "report.json").write_text(report.to_json(), encoding="utf-8")
            write_report({name: report}, target / "report.txt")

        place = cache.entry(folder, key, mine)
        mined[name] = open_arrow(place / "rows.arrow")
        reports[name] = MiningReport.from_json((place / "report.json").read_text(encoding="utf-8"))
        logger.info("what mining %s did, with examples: %s", name, place / "report.txt")
    asked = [name for name in mixture.train if _settings_of(mixture, name, settings)]
    listed = [name for name in asked if name not in reports]
    if asked:
        say(report_table(reports, listed))
    return DatasetDict(mined)


def _settings_of(mixture: Mixture, name: str, settings: Mapping[str, object] | None) -> MiningSettings | None:
    """How a training set is mined, if it is to be: its rows are for retrieval and get negatives."""
    spec = mixture.specs[name]
    if spec.task != "retrieval":
        return None
    chosen = MiningSettings.of(settings, spec.mining, place=f"mining of dataset {name!r}")
    return chosen if chosen.num_negatives else None


def _lists_positives(dataset: Dataset) -> bool:
    return isinstance(dataset[0]["positive"], list)


def negatives_in_use(
    mixture: Mixture,
    mined: DatasetDict,
    model: SentenceTransformer,
    settings: Mapping[str, object] | None,
    remining: ReminingSettings,
    folder: Path,
) -> NegativesInUse:
    """What re-mining begins with: the first negatives of each row, and how like the query they are.

    Args:
        mixture, settings, folder: as ``mine_mixture``'s.
        mined: what it returned, with candidates beyond those in use.
        model: the encoder that will be trained.
        remining: when and how the negatives change.
    """
    datasets = {}
    for name, dataset in mined.items():
        chosen = _settings_of(mixture, name, settings)
        if chosen is not None and not _lists_positives(dataset):
            datasets[name] = RowNegatives.of(dataset, mixture.train[name], mixture.specs[name], chosen)
    found = NegativesInUse(remining, list(mined), datasets)
    found.begin(model, folder / "embeddings")
    return found


def further_documents(mixture: Mixture, settings: MiningSettings) -> list[str]:
    """The texts of ``settings.corpus``, without those of a held-out search of the mixture, or of its tests."""
    if settings.corpus is None:
        return []
    texts = read_documents(settings.corpus, mixture.root)
    tests = mixture.test_sets()
    held_out = forbidden({**mixture.holdouts, **(tests.holdouts if tests else {})}).anywhere
    kept: list[str] = []
    for start in range(0, len(texts), _DOCUMENTS):
        part = pa.array(texts[start : start + _DOCUMENTS], type=pa.string())
        kept += part.filter(pc.invert(pc.is_in(text_key(part), held_out))).to_pylist()
    return kept
