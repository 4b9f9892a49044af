"""Releases on the Hugging Face Hub: the card and its results, the checks, the difference, one commit.

card.py           PiccoloModelCardData: sentence-transformers' model card with results, Chinese text and the ...
card_folder.py    Cards of folders: written from data files, or renewed with the results of an evaluation
card_sections.py  The parts of a model card that sentence-transformers' own card does not have, as Markdown in ...
checks.py         What a model directory has to satisfy before it is published, one :class:`Check` each
diff.py           What a release would change on the Hub: every file against the remote, and the state that ...
eval_results.py   Results as the Hub takes them: a README's model-index and the files .eval_results/Task.yaml
publish.py        release(): checks a model directory, shows what would change, and on request publishes it in ...
push.py           What a trainer pushes while it trains, by the rules of a release: portable, only a model's ...
record.py         What a run was: every setting and what was measured or counted, in two files of its directory
training_card.py  What a trainer puts into the card of its model: all that sentence-transformers does, but no ...
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from piccolo_st._lazy import lazily

if TYPE_CHECKING:
    from piccolo_st.releasing.card import PiccoloModelCardData as PiccoloModelCardData
    from piccolo_st.releasing.card import render_card as render_card
    from piccolo_st.releasing.card import stage_facts as stage_facts
    from piccolo_st.releasing.card_folder import add_results as add_results
    from piccolo_st.releasing.card_folder import add_training as add_training
    from piccolo_st.releasing.card_folder import card_from_folder as card_from_folder
    from piccolo_st.releasing.card_folder import prepare_card as prepare_card
    from piccolo_st.releasing.checks import Check as Check
    from piccolo_st.releasing.checks import check_release as check_release
    from piccolo_st.releasing.publish import Release as Release
    from piccolo_st.releasing.publish import ReleaseError as ReleaseError
    from piccolo_st.releasing.publish import ReleaseOptions as ReleaseOptions
    from piccolo_st.releasing.publish import publish_folder as publish_folder
    from piccolo_st.releasing.publish import release as release
    from piccolo_st.releasing.push import PortablePushes as PortablePushes
    from piccolo_st.releasing.record import DatasetRecord as DatasetRecord
    from piccolo_st.releasing.record import RunRecord as RunRecord
    from piccolo_st.releasing.training_card import TrainingCardCallback as TrainingCardCallback

__getattr__, __dir__ = lazily(
    __name__,
    {
        "card": "PiccoloModelCardData render_card stage_facts",
        "card_folder": "add_results add_training card_from_folder prepare_card",
        "checks": "Check check_release",
        "publish": "Release ReleaseError ReleaseOptions publish_folder release",
        "push": "PortablePushes",
        "record": "DatasetRecord RunRecord",
        "training_card": "TrainingCardCallback",
    },
)
