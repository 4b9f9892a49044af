"""Releases on the Hugging Face Hub: the card and its results, the checks, the difference, one commit.

record.py         what a run was: every setting, and what was measured or counted
card.py           PiccoloModelCardData: sentence-transformers' card with results, Chinese text and the facts of the run
card_sections.py  its parts in Markdown, and how one of them is renewed in an edited card
adapter_card.py   the card of an adapter that is released as it is
card_folder.py    cards written from data files, or prepared for a release
training_card.py  what a trainer puts into the card: no row of the data
eval_results.py   results as the Hub takes them: a README's model-index and the files .eval_results/Task.yaml
checks.py         what a model directory has to satisfy
diff.py           what a release would change on the Hub
publish.py        release(): check, show, and on request publish in one commit
push.py           what a trainer pushes while it trains
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
    from piccolo_st.releasing.card_sections import markdown_table as markdown_table
    from piccolo_st.releasing.card_sections import replace_block as replace_block
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

__getattr__, __dir__ = lazily(__name__, __file__)
