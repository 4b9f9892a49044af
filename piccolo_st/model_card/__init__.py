"""Model cards: results -> model-index metadata and tables, around sentence-transformers' own card.

    results.py     mteb's result files, published results and existing cards -> TaskResult -> what a card needs
    sections.py    the evaluation, usage and training parts as Markdown
    card.py        PiccoloModelCardData, sentence-transformers' card data with those parts
    training.py    what a trainer leaves out of the card: rows of the data, secrets, paths
    folder.py      cards from data files (model_cards/), and results into the card of a model directory
    template.md    the order of the parts

``python -m piccolo_st.model_card FOLDER...`` writes the README.md of folders of data files.
"""

from piccolo_st.model_card.card import PiccoloModelCardData, render_card, stage_facts
from piccolo_st.model_card.folder import add_results, add_training, card_from_folder, prepare_card, read_rows
from piccolo_st.model_card.results import TaskResult, eval_result_files, read_results, scores

__all__ = [
    "PiccoloModelCardData",
    "TaskResult",
    "add_results",
    "add_training",
    "card_from_folder",
    "eval_result_files",
    "prepare_card",
    "read_results",
    "read_rows",
    "render_card",
    "scores",
    "stage_facts",
]
