"""Building a small encoder from text, and loading one from wherever it is."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoTokenizer

from piccolo_st.errors import InputError
from piccolo_st.modeling.instructions import PRESETS
from piccolo_st.modeling.loading import load_encoder, load_pretrained
from piccolo_st.modeling.pooling import InstructionPooling
from piccolo_st.modeling.portable import save_portable
from piccolo_st.modeling.tiny_bert import EncoderSettings, build_encoder, cached_encoder
from piccolo_st.schema import build
from tests.helpers.hub_server import HubServer
from tests.helpers.ranks import run_ranks

pytest_plugins = ["tests.helpers.hub_clients"]  # the fixture hub

TEXTS = ["今天天气很好", "明天下雨", "今天下雨", "hello hello world world"] * 3
SMALL = EncoderSettings(vocab_size=200, hidden_size=16, layers=1, heads=2, intermediate_size=32, max_positions=64)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_encoder(SMALL, TEXTS, tmp_path_factory.mktemp("built"), always=["查询：", "结果："])


def test_every_instruction_character_is_known_however_rare(built: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built)
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("查询：今天结果：")["input_ids"])
    assert tokens == ["[CLS]", "查", "询", "：", "今", "天", "结", "果", "：", "[SEP]"]


def test_size_and_weights_follow_settings_and_seed(built: Path, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(built)
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.max_position_embeddings) == (
        16,
        1,
        64,
    )
    state = torch.get_rng_state()
    again = AutoModel.from_pretrained(build_encoder(SMALL, TEXTS, tmp_path / "again", always=["查询：", "结果："]))
    assert torch.equal(state, torch.get_rng_state()), "building must not move the caller's random state"
    layers = zip(model.encoder.parameters(), again.encoder.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in layers)


_LEARN = """
import sys
from pathlib import Path
from piccolo_st.modeling.tiny_bert import EncoderSettings, build_encoder
settings = EncoderSettings(vocab_size=80, hidden_size=16, layers=1, heads=2, intermediate_size=32)
characters = [chr(0x4E00 + number) for number in range(90)]  # each as frequent as any, and too many of them
words = ["abcab", "dcefe", "gfhig"] * 2
print(build_encoder(settings, [*characters, *characters, " ".join(words)], Path(sys.argv[1]), ["查询："]))
"""


def test_two_processes_learn_the_same_vocabulary(tmp_path: Path) -> None:
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-c", _LEARN, str(tmp_path / name)], check=True, timeout=120)
    one, other = (AutoTokenizer.from_pretrained(tmp_path / name).get_vocab() for name in ("one", "other"))
    assert one == other and 70 < len(one) <= 80 and "##b" in one
    assert sorted(one.values()) == list(range(len(one)))


def test_an_encoder_is_built_once_for_its_settings_texts_and_instructions() -> None:
    asked: list[str] = []

    def texts(name: str) -> Iterator[str]:
        asked.append(name)
        yield from TEXTS

    twice = [PRESETS["piccolo"], PRESETS["piccolo"], PRESETS["none"]]
    first = cached_encoder(SMALL, texts("first"), "texts", [*twice])
    assert cached_encoder(SMALL, texts("again"), "texts", [PRESETS["none"], PRESETS["piccolo"]]) == first
    assert asked == ["first"] and (first / "config.json").is_file()
    others = cached_encoder(SMALL, texts("others"), "other texts", twice)
    bare = cached_encoder(SMALL, texts("bare"), "texts", [PRESETS["none"]])
    assert len({first, others, bare}) == 3 and asked == ["first", "others", "bare"]


def build_on_the_last(rank: int, world: int, folder: str) -> bool:
    if rank < world - 1:
        return True
    build_encoder(SMALL, TEXTS, Path(folder))
    return bool(AutoModel.from_pretrained(folder).encoder.layer)


def test_any_rank_can_build_it(tmp_path: Path) -> None:
    """On a machine whose disk the first rank does not write to, another one is the first to look."""
    assert run_ranks(build_on_the_last, 2, str(tmp_path / "encoder")) == [True, True]


def test_a_bare_encoder_gets_prompts_pooling_and_lengths(built: Path) -> None:
    model = load_encoder(str(built), query_length=16, document_length=48, include_instruction=False)
    assert model.prompts["query"] == "查询：" and model.prompts["document"] == "结果："
    assert model.default_prompt_name is None
    assert isinstance(model[1], InstructionPooling) and not model[1].include_instruction
    assert (model[0].query_length, model[0].document_length) == (16, 48)
    assert model.encode_query(["今天"]).shape == (1, 16)


def test_an_encoder_with_fewer_positions_is_extended_and_another_left_alone(built: Path) -> None:
    own = load_encoder(str(built), query_length=16, document_length=48)[
        0
    ].auto_model.embeddings.position_embeddings.num_embeddings
    model = load_encoder(str(built), query_length=16, document_length=own + 8, positions=own + 8)
    assert model[0].auto_model.embeddings.position_embeddings.num_embeddings == own + 8
    assert model[0].document_length == own + 8 == model.max_seq_length
    enough = load_encoder(str(built), query_length=16, document_length=own, positions=own - 8)
    assert enough[0].auto_model.embeddings.position_embeddings.num_embeddings == own


def test_no_instructions_leaves_stock_pooling(built: Path) -> None:
    model = load_encoder(str(built), instructions="none", query_length=16, document_length=48)
    assert type(model[1]).__name__ == "Pooling" and model.prompts["query"] == ""


def test_prompts_of_the_checkpoint_stay_and_where_it_has_none_it_is_said_what_is_used(
    built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = load_encoder(str(built), instructions={"query": "今天", "document": "明天"}, document_length=48)
    save_portable(own, tmp_path / "own", create_model_card=False)
    assert load_encoder(str(tmp_path / "own"), document_length=48).prompts == own.prompts
    load_encoder(str(tmp_path / "own"), instructions="none", document_length=48)
    assert not caplog.text
    file = tmp_path / "own" / "config_sentence_transformers.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"今天"', '["今天"]'), encoding="utf-8")
    with pytest.raises(InputError, match=r"prompts saved with a model must be texts.*or set model\.instructions"):
        load_encoder(str(tmp_path / "own"), document_length=48)
    load_encoder(str(built), document_length=48)
    assert f"model.instructions is empty and {built} has no prompts saved" in caplog.text
    assert "'查询：'" in caplog.text and "(none, bge-zh, e5, " in caplog.text


@pytest.mark.parametrize("include", [True, False])
def test_further_prompts_of_a_checkpoint_stay_also_in_words_that_its_tokenizer_does_not_know(
    built: Path, tmp_path: Path, include: bool
) -> None:
    own = load_encoder(str(built), instructions={"query": "今天", "document": "明天"}, document_length=48)
    own.prompts["sts"] = "\N{UNICORN FACE}："
    save_portable(own, tmp_path / "own", create_model_card=False)
    model = load_encoder(str(tmp_path / "own"), document_length=48, include_instruction=include)
    assert model.prompts == own.prompts
    assert len(model[1].instruction_ids) == 2
    given, bare = model.encode("天气很好", prompt_name="sts"), model[1].include_prompt
    model.set_pooling_include_prompt(not include)
    assert bare is include and (given != model.encode("天气很好", prompt_name="sts")).any()


def test_a_checkpoint_that_compares_otherwise_takes_the_cosine_and_says_so(
    built: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    published = load_encoder(str(built), instructions="none", document_length=48)
    published.similarity_fn_name = "dot"
    save_portable(published, tmp_path / "published", create_model_card=False)
    model = load_encoder(str(tmp_path / "published"), instructions="none", document_length=48)
    assert f"{tmp_path / 'published'} compares embeddings by their dot; losses and searches here take" in caplog.text
    save_portable(model, tmp_path / "saved", create_model_card=False)
    vectors = (saved := SentenceTransformer(str(tmp_path / "saved"), device="cpu")).encode(TEXTS)
    assert float(saved.similarity(vectors, vectors).max()) == pytest.approx(1)
    caplog.clear()
    load_encoder(str(tmp_path / "saved"), instructions="none", document_length=48)
    assert not caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer": 2}, r"unknown key 'model.build.layer' in model.build; did you mean model.build.layers\?"),
        ({"layers": 0}, r"model.build.layers must be a whole number of at least 1, got 0"),
        ({"hidden_size": 10, "heads": 4}, r"hidden_size must be a multiple of model.build.heads"),
        ({"dropout": 1.5}, r"model.build.dropout must be at least 0 and below 1, got 1.5"),
        ({"layers": "two"}, r"model.build.layers must be of type int, got 'two'"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(EncoderSettings, values, "model.build", section="model.build")


@pytest.mark.parametrize("how", ["stall", "drop"])
def test_a_hub_that_does_not_answer_is_one_sentence_or_the_cache(hub: HubServer, built: Path, how: str) -> None:
    repository = f"someone/{how}"  # a name of its own: the cache is the session's
    for name in (f"{repository}-kept", repository):
        hub.add_repo(name, {path.name: path.read_bytes() for path in built.iterdir() if path.is_file()})
    downloaded = load_encoder(f"{repository}-kept", document_length=64)
    for route in ("unknown_head", "resolve_head", "info"):
        hub.fail(route, how, times=None)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"got 'someone/.*, at HEAD http://127\.0\.0\.1:\d+/, and it is not in the"):
        load_encoder(repository)
    assert torch.equal(load_encoder(f"{repository}-kept", document_length=64).encode(TEXTS, convert_to_tensor=True),
                       downloaded.encode(TEXTS, convert_to_tensor=True))  # fmt: skip
    assert time.monotonic() - start < 35  # HF_HUB_ETAG_TIMEOUT is 10 s


def test_a_broken_model_directory(built: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"cannot be loaded, got"):
        load_encoder(str(tmp_path))


def test_a_checkpoint_with_code_of_its_own_says_how_it_is_read(built: Path, tmp_path: Path) -> None:
    """As a stock trainer saves a model with InstructionPooling."""
    model = load_encoder(str(built), instructions=PRESETS["piccolo"], query_length=16, document_length=32)
    assert isinstance(model[1], InstructionPooling)
    model.save(str(tmp_path))
    with pytest.raises(InputError) as error:
        load_pretrained(SentenceTransformer, str(tmp_path), "--model")
    assert "references the module class 'piccolo_st" in str(error.value)
    assert "SentenceTransformer(NAME, trust_remote_code=True), and give it to" in str(error.value)
