"""What a trainer puts into the card of its model: all that sentence-transformers does, but no row of the data.

sentence-transformers shows three rows of every dataset and makes the widget of others, so that whoever publishes the
model publishes them. Here that takes ``train.card_samples``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from sentence_transformers.sentence_transformer.model_card import SentenceTransformerModelCardCallback

from piccolo_st.data import StreamedTable


class TrainingCardCallback(SentenceTransformerModelCardCallback):
    """sentence-transformers' callback, without rows of the data, secrets and paths of this machine."""

    def on_init_end(self, *arguments: Any, **named: Any) -> None:
        """Collect what is known of the datasets and losses."""
        card = named["model"].model_card_data
        chosen = list(card.widget), card.usage_examples
        if not card.widget and isinstance(sets := named["trainer"].train_dataset, DatasetDict):
            heads = {name: _head(dataset) for name, dataset in sets.items()}
            if any(heads[name] is not sets[name] for name in sets):
                card.set_widget_examples(DatasetDict(heads))
        super().on_init_end(*arguments, **named)
        if getattr(arguments[0], "card_samples", False):
            return
        card.widget, card.usage_examples = chosen
        for dataset in [*card.train_datasets, *card.eval_datasets]:
            for name in ("examples", "_example_columns", "examples_table"):
                dataset.pop(name, None)

    def on_train_begin(self, *arguments: Any, **named: Any) -> None:
        """Take over the hyperparameters."""
        super().on_train_begin(*arguments, **named)
        card = named["model"].model_card_data
        for settings in (card.all_hyperparameters, card.non_default_hyperparameters):
            settings.update({name: neutral(value) for name, value in settings.items()})


def _head(dataset: Dataset) -> Dataset:
    """The first rows of a streamed dataset, of which sentence-transformers would draw a thousand from everywhere."""
    return dataset.select(range(min(len(dataset), 1000))) if isinstance(dataset.data, StreamedTable) else dataset


def neutral(value: object) -> object:
    """An absolute path as its last part, which says nothing of this machine; anything else as it is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
