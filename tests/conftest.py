"""Shared fixtures: a tiny Chinese tokenizer and encoder, built here, so that no test needs a network.

OMP_NUM_THREADS is set before torch is imported: the ranks of tests/helpers/ranks.py are forked, and a forked child of a
process with a running OpenMP pool hangs in its first parallel region.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# The caches of this run only: nothing of the user's is read or filled.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="piccolo-tests-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "piccolo", deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.load_profile("piccolo")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Tests at once: one for two cores, at least two; one where their output is looked at, as a benchmark's is."""
    if config.option.capture == "no" or all("::" in argument for argument in config.args):
        config.option.dist = "no"
        return 0
    return max(2, min(8, (os.cpu_count() or 2) // 2))


# Characters the tests write with; every other character becomes [UNK].
CHARACTERS = (
    "查询结果：: 数据一二三四五六七八九十百千万的是在不了有和人这中大为上个国我以要他时来用们生到作地于出就分对成会"
    "可主发年动同工也能下过子说产种面而方后多定行学法所民得经进着等部度家电力里如水化高自理起小物现实加量都两体制"
    "天气今明晴雨云风山川河海春夏秋冬猫狗鱼鸟花草树木红黄蓝绿白黑好坏快慢冷热长短"
    "，。？！、abcdefghijklmnopqrstuvwxyz0123456789"
)


def build_encoder(path: Path, *, hidden_size: int = 32, layers: int = 2, dropout: float = 0.1, seed: int = 0) -> Path:
    """Write a tiny random BERT with a character tokenizer to ``path``, as transformers saves it."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: index for index, token in enumerate([*specials, *dict.fromkeys(CHARACTERS.replace(" ", ""))])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=2 * hidden_size,
            max_position_embeddings=512,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    torch.set_rng_state(generator_state)
    model.save_pretrained(path)
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny encoder with dropout 0.1."""
    return build_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def encoder_dir_no_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tiny encoder without dropout, for equivalence tests."""
    return build_encoder(tmp_path_factory.mktemp("encoder_no_dropout"), dropout=0.0)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``python -m piccolo_st`` with these arguments, in this process: (exit code, standard output, standard error)."""
    from piccolo_st.__main__ import main

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        shown = capsys.readouterr()
        return int(stopped.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture
def make_model(encoder_dir: Path, encoder_dir_no_dropout: Path) -> Callable[..., object]:
    """A function that builds a fresh SentenceTransformer: ``make_model(dropout=False, **transformer_kwargs)``."""

    def build(dropout: bool = False, pooling: str = "mean", **kwargs: object) -> object:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

        transformer = Transformer(str(encoder_dir if dropout else encoder_dir_no_dropout), **kwargs)
        return SentenceTransformer(
            modules=[transformer, Pooling(transformer.get_embedding_dimension(), pooling)], device="cpu"
        )

    return build
