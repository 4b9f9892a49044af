"""What the tests of releases share: a loopback Hub with users, this process as its client, a model to release.

A plugin (``pytest_plugins = ["tests.helpers.hub_clients"]``) without assertions: PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import __version__, constants
from packaging.version import Version

from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.modeling.portable.saving import save_portable
from piccolo_st.releasing.card import PiccoloModelCardData
from tests.helpers.hub_server import HubServer, User

TOKEN = "hf_TheSecretTokenOfAliceWhichNobodyMaySee"
REPO = "sensenova/piccolo-tiny-zh"
HUB_VERSION = Version(__version__)  # of the client


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A Hub to which this process is logged in as alice of sensenova."""
    users = {TOKEN: User("alice", orgs=("sensenova",)), "hf_reader": User("alice", ("sensenova",), write=False)}
    with HubServer(users) as server:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)  # it remembers the first endpoint
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)  # so does this one
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def save_release(model: Any, folder: Path, repo_id: str = REPO) -> Path:
    """A model saved as a release wants it: portable, with prompts and a complete card."""
    set_prompts(model, "piccolo")
    model.model_card_data = PiccoloModelCardData(
        model_id=repo_id, model_name=repo_id.split("/")[1], language="zh", license="mit", local_files_only=True
    )
    model.model_card_data.generate_widget_examples = False
    model.model_card_data.register_model(model)
    save_portable(model, folder)
    return folder


@pytest.fixture(scope="session")
def released_model(encoder_dir_no_dropout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny model that is ready to be released as ``REPO``; not to be changed."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    encoder = Transformer(str(encoder_dir_no_dropout))
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension(), "mean")], device="cpu")
    return save_release(model, tmp_path_factory.mktemp("release") / "model")
