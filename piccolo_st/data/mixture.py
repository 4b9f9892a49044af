"""A data mixture: one YAML that names the datasets, loaded into validated, memory-mapped datasets.

    (1) the YAML becomes frozen dataclasses (``specs``); an unknown key is an error that names the nearest known one;
    (2) each dataset is read, checked row by row and written once (``build``, which takes a chunk of rows through
        ``sources``, ``columns``, ``cells`` and ``validation``, and all rows through ``presets``), or, of Parquet,
        read again whenever its rows are asked for (``streaming``);
    (3) held-out queries are drawn, and their texts leave the training rows of every dataset (``holdout``);
    (4) the result has the columns in sentence-transformers' order: query, positive[, negative...] for retrieval (and
        for classification after its preset), sentence1, sentence2, label for sts and pair.

A mixture file::

    datasets:
      words:
        source: jionlp:words
        task: retrieval
        holdout: {queries: 1000, seed: 13}
      afqmc:
        source: sts/afqmc.train.jsonl
        task: pair
        columns: {label: score}
        weight: 0.5

A mapping may begin with a mixture file and change it: ``{file: zh.yaml, root: /data/zh}`` says where the data lie, and
``datasets: {words: {weight: 2}}`` beside them changes one field of one dataset, and ``{words: null}`` leaves it out.
"""

from __future__ import annotations

import codecs
import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset, DatasetDict

from piccolo_st.cache import default_cache, digest
from piccolo_st.config import line_in, read_yaml
from piccolo_st.data.build import Prepared, prepare
from piccolo_st.data.holdout import RetrievalHoldout, as_holdout, drawn, hold_out
from piccolo_st.data.report import DatasetReport, HeldOutCounts, MixtureReport, enforce
from piccolo_st.data.sources import locate, read_search
from piccolo_st.data.specs import DatasetSpec, HoldoutSpec, MixtureSpec, PresetSpec
from piccolo_st.data.streaming import index
from piccolo_st.data.tasks import LABELLED_TASKS
from piccolo_st.errors import InputError, MixtureError, shown
from piccolo_st.hashing import text_ids
from piccolo_st.schema import Keys, build, unknown_key
from piccolo_st.shipped import find

__all__ = [
    "DatasetReport",
    "DatasetSpec",
    "HoldoutSpec",
    "Mixture",
    "MixtureError",
    "MixtureReport",
    "PresetSpec",
    "RetrievalHoldout",
    "load_mixture",
    "parse_mixture",
]


# Of a dataset what its fingerprint does not have: where it lies, which its contents say, and what is for the reader.
_NOT_CONTENT = ("source", "corpus", "queries", "licence", "note")
# Settings that a mixture did not have from the beginning, where they are off: its fingerprint is what it was.
_LATER = [("streaming", False)]


@dataclass(frozen=True)
class Mixture:
    """Datasets to train on, datasets to evaluate on, and where they come from.

    Attributes:
        train: name -> dataset, columns in sentence-transformers' order.
        evaluation: name -> dataset of ``use: evaluate``; raw columns (text, label; sentence1, sentence2, label).
        holdouts: name -> retrieval evaluation: held-out queries, and BEIR folders of ``use: evaluate``.
        specs: name -> what the mixture file says, of every dataset.
        report: rows read, kept and left out, with reasons, per dataset.
        fingerprint: 32 hexadecimal digits; equal if and only if contents and settings are.
        root: the folder that relative paths start from.
        tests: the mixture file of tests that were drawn of the same data, or None; see :meth:`test_sets`.
    """

    train: DatasetDict
    evaluation: DatasetDict
    holdouts: dict[str, RetrievalHoldout]
    specs: dict[str, DatasetSpec]
    report: MixtureReport
    fingerprint: str
    root: Path
    tests: Path | None = None

    def test_sets(self, cache_dir: str | Path | None = None) -> Mixture | None:
        """The tests that were drawn of the same data, loaded now; None where there are none."""
        return None if self.tests is None else load_mixture(self.tests, cache_dir=cache_dir)

    def texts(self) -> Iterator[str]:
        """Each text of the training sets once, those in lists too; 8 bytes a distinct text are kept in memory."""
        seen: set[int] = set()
        for texts in self.lists_of_texts():
            for text, number in zip(texts, text_ids(texts).tolist(), strict=True):
                if number not in seen:
                    seen.add(number)
                    yield text

    def lists_of_texts(self) -> Iterator[list[str]]:
        """The same as often as each stands there, in lists of some rows of a column."""
        for dataset in self.train.values():
            for rows in dataset.iter(10_000):
                for values in rows.values():
                    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
                    if texts and isinstance(texts[0], str):
                        yield texts


def parse_mixture(
    config: Mapping[str, object] | str | Path, inside: Path | None = None
) -> tuple[dict[str, DatasetSpec], Path, str]:
    """The datasets of a mixture file or mapping, the folder its relative sources start from, and its policy.

    ``inside`` is the file of a run whose ``data.mixture`` a mapping is, for messages.

    Raises:
        MixtureError: unreadable file or YAML, unknown key, wrong type, no datasets.
    """
    try:
        return _parsed(*_read_mixture(config, Path.cwd(), inside=inside))
    except MixtureError:
        raise
    except InputError as error:  # of the configuration's reader
        raise MixtureError(str(error)) from None


def tests_of(config: Mapping[str, object] | str | Path) -> Path | None:
    """Where the mixture says that tests of the same data are.

    Raises:
        MixtureError: as ``parse_mixture``.
    """
    tests = _read_mixture(config, Path.cwd())[0].tests
    return None if tests is None else Path(tests)


def _parsed(mixture: MixtureSpec, folder: Path, place: str, inside: Keys) -> tuple[dict[str, DatasetSpec], Path, str]:
    if not mixture.datasets:
        raise MixtureError(f"{place} names no datasets; give `datasets` at least one")
    known = {field.name for field in dataclasses.fields(DatasetSpec)} - {"name"}
    for key in mixture.defaults:
        if key not in known:
            raise MixtureError(
                unknown_key(key, known, f"defaults of {place}{line_in(place, [*inside, 'defaults', key])}")
            )
    specs = {}
    for name, settings in mixture.datasets.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise MixtureError(
                f"the name of a dataset in {place} must be letters, digits, '_', '-' and '.', got {name!r}"
            )
        own = f"dataset {name!r} of {place}"

        def where(keys: Keys, own: str = own, name: str = name) -> str:
            return " of ".join([*map(str, reversed(keys[:-1])), own]) + line_in(
                place, [*inside, "datasets", name, *keys]
            )

        values = {**mixture.defaults, **settings} if isinstance(settings, Mapping) else settings
        specs[name] = _checked_spec(build(DatasetSpec, values, own, where=where, name=name), own)
    return specs, folder, mixture.policy


def _read_mixture(
    config: Mapping[str, object] | str | Path, folder: Path, through: tuple[Path, ...] = (), inside: Path | None = None
) -> tuple[MixtureSpec, Path, str, Keys]:
    """What a mixture says, after the file it begins with; its root; its name for messages, and the keys it is under.

    ``folder`` is where its own relative path starts.
    """
    place, under = ("the mixture", ()) if inside is None else (str(inside), ("data", "mixture"))
    if not isinstance(config, Mapping):
        path = find(config, folder)
        place, folder = str(path), path.resolve().parent
        if path.resolve() in through:
            raise MixtureError(f"{place} begins with itself: {' -> '.join(map(str, through))}; remove one `file`")
        through, under = (*through, path.resolve()), ()
        config = read_yaml(path)
    mixture = build(MixtureSpec, config, place, where=lambda keys: place + line_in(place, [*under, *keys]))
    root = folder / Path(mixture.root).expanduser() if mixture.root else folder
    if mixture.tests:
        mixture = dataclasses.replace(mixture, tests=str((folder / Path(mixture.tests).expanduser()).resolve()))
    if mixture.file is None:
        return mixture, root, place, under
    base, base_root, base_place, base_under = _read_mixture(mixture.file, folder, through)
    datasets = dict(base.datasets)
    for name, settings in mixture.datasets.items():
        known = datasets.get(name)
        if settings is None and name in datasets:
            del datasets[name]
            continue
        if isinstance(known, Mapping) and isinstance(settings, Mapping):
            settings = {**known, **settings}
        datasets[name] = settings
    merged = dataclasses.replace(
        base,
        datasets=datasets,
        policy=mixture.policy if "policy" in config else base.policy,
        defaults={**base.defaults, **mixture.defaults},
        tests=mixture.tests or base.tests,
    )
    return merged, root if mixture.root else base_root, base_place, base_under


def _checked_spec(spec: DatasetSpec, place: str) -> DatasetSpec:
    """The rules that no single field shows."""
    labelled = spec.task in LABELLED_TASKS and "query" not in spec.columns
    if labelled and spec.preset is None and spec.use == "train":
        spec = dataclasses.replace(spec, preset=PresetSpec("classes"))
    if len(spec.score_range) != 2 or not 0 < spec.score_range[1] - spec.score_range[0] < math.inf:
        raise MixtureError(f"score_range of {place} must be [lowest, highest], got {list(spec.score_range)}")
    if spec.min_characters > spec.max_characters:
        raise MixtureError(
            f"min_characters of {place} must be at most its max_characters, {spec.max_characters}, got "
            f"{spec.min_characters}"
        )
    if spec.labels == ():
        raise MixtureError(f"labels of {place} must name at least one, got []; leave it out to allow any")
    try:
        "".encode(spec.encoding)
    except (LookupError, ValueError):
        raise MixtureError(
            f"encoding of {place} must be one that Python knows, as utf-8, gb18030, big5 or utf-16, got "
            f"{shown(spec.encoding)}"
        ) from None
    if codecs.lookup(spec.encoding).name == "utf-8":
        spec = dataclasses.replace(spec, encoding="utf-8")
    if spec.holdout is not None and spec.use != "train":
        raise MixtureError(f"holdout of {place} needs `use: train`, got {spec.use!r}; remove `holdout`")
    return spec


def load_mixture(config: Mapping[str, object] | str | Path, *, cache_dir: str | Path | None = None) -> Mixture:
    """Load, check and hold out: a mixture file, or the mapping it would hold.

    Relative sources start at the mixture's ``root``, by default the folder of its file, or for a mapping the current
    folder. What has been read and checked before is opened from ``cache_dir``.

    Raises:
        MixtureError: anything wrong with the file or the data, in one sentence with the place and the remedy.

    Example:
        >>> from pathlib import Path
        >>> from piccolo_st import load_mixture
        >>> _ = Path("faq.csv").write_text("query,positive\\n天气,晴\\n山,川\\n猫,\\n", encoding="utf-8")
        >>> mixture = load_mixture({"datasets": {"faq": {"source": "faq.csv", "task": "retrieval"}}}, cache_dir=".")
        >>> mixture.train["faq"][0]
        {'query': '天气', 'positive': '晴'}
        >>> mixture.report.datasets["faq"].rejected
        {'positive: empty': 1}
    """
    specs, root, policy = parse_mixture(config)
    cache = Path(cache_dir) if cache_dir is not None else default_cache()
    prepared: dict[str, Prepared] = {}
    training: dict[str, Dataset] = {}
    evaluation: dict[str, Dataset] = {}
    holdouts: dict[str, RetrievalHoldout] = {}
    for name, spec in specs.items():
        location = locate(spec, root)
        prepared[name] = one = (index if spec.streaming else prepare)(spec, location, cache)
        enforce(spec, one.counts, one.folder, spec.policy or policy)
        if spec.use == "train":
            training[name] = one.rows()
        elif "queries" in location.parts:
            holdouts[name] = as_holdout(read_search(location))
        else:
            evaluation[name] = one.rows()
    keys = {name: one.key for name, one in prepared.items()}
    own = {n: drawn(specs[n], rows, keys[n], cache) for n, rows in training.items() if specs[n].holdout is not None}
    training, lost = hold_out(training, own, specs, keys, cache)
    reports = {
        name: DatasetReport.of(specs[name], one.counts, one.folder, lost.get(name, HeldOutCounts()))
        for name, one in prepared.items()
    }
    settings = {
        name: {k: v for k, v in dataclasses.asdict(spec).items() if k not in _NOT_CONTENT and (k, v) not in _LATER}
        for name, spec in specs.items()
    }
    return Mixture(
        train=DatasetDict(training),
        evaluation=DatasetDict(evaluation),
        holdouts=holdouts | own,
        specs=specs,
        report=MixtureReport(reports),
        fingerprint=digest([keys, settings]),
        root=root,
        tests=tests_of(config),
    )
