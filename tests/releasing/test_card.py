"""Model cards: published results reproduced, mteb's results converted, sentence-transformers' card extended."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results

from piccolo_st.errors import InputError
from piccolo_st.evaluation import ModelFacts, ModelScores, read_results, task_scores
from piccolo_st.evaluation.benchmarks import C_MTEB_35, MTEB_CMN_V1, Averages
from piccolo_st.modeling.instructions import set_prompts
from piccolo_st.releasing.card import PiccoloModelCardData, dataset_facts, render_card, stage_facts
from piccolo_st.releasing.card_folder import add_results, card_from_folder
from piccolo_st.releasing.card_sections import (
    comparison_table,
    evaluated_model,
    replace_block,
    training_section,
)
from piccolo_st.releasing.eval_results import eval_result_files
from piccolo_st.releasing.record import DatasetRecord, RunRecord

CARDS = Path(__file__).parent.parent.parent / "model_cards"
GOLDEN = Path(__file__).parent / "golden" / "card.md"
LARGE, BASE = CARDS / "piccolo-large-zh", CARDS / "piccolo-base-zh"
# Of the model-index of the published card of sensenova/piccolo-large-zh: json.dumps(index, sort_keys=True), UTF-8.
Command = Callable[..., tuple[int, str, str]]
PUBLISHED = "f26e9b8477ca490a5df45d4fcf19e5db3c34e91db6d74d3f92732af129bc139a"


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


# ---------------------------------------------------------------------------------------- published cards
@pytest.mark.parametrize("folder", [LARGE, BASE], ids=lambda folder: folder.name)
def test_cards_are_what_their_data_say(folder: Path, command: Command) -> None:
    assert command("card", "--check", folder)[0] == 0
    assert card_from_folder(folder) == (folder / "README.md").read_text(encoding="utf-8")


def test_the_large_card_has_the_published_metadata() -> None:
    card = (LARGE / "README.md").read_text(encoding="utf-8")
    data = metadata(card)
    results = data["model-index"][0]["results"]
    assert len(results) == 35 and sum(len(result["metrics"]) for result in results) == 367
    assert hashlib.sha256(json.dumps(data["model-index"], sort_keys=True).encode()).hexdigest() == PUBLISHED
    parsed = ModelCard(card).data
    assert parsed.model_name == "piccolo-large-zh" and len(parsed.eval_results) == 367
    assert parsed.license == "mit" and parsed.language == ["zh"] and parsed.pipeline_tag == "sentence-similarity"
    assert parsed.library_name == "sentence-transformers" and "mteb" in parsed.tags
    name, flat = model_index_to_eval_results(data["model-index"])
    assert eval_results_to_model_index(name, flat) == data["model-index"]


def test_the_large_row_is_computed(tmp_path: Path) -> None:
    published = [64.11, 67.03, 47.04, 78.38, 65.98, 70.93, 58.02]
    card = (LARGE / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| **[sensenova/piccolo-large-zh]"))
    assert [float(cell.strip(" *")) for cell in row.split("|")[5:12]] == published
    # Change one number of one result: the row follows.
    results = read_results(LARGE / "results.jsonl")
    changed = [r for r in results if r.dataset_name != "MTEB STSB"]
    stsb = next(r for r in results if r.dataset_name == "MTEB STSB")
    better = {**stsb.metrics, "cos_sim_spearman": stsb.metrics["cos_sim_spearman"] + 8.0}
    lines = [json.dumps(asdict(result)) for result in [*changed, replace(stsb, metrics=better)]]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (tmp_path / "card.yaml").write_text((LARGE / "card.yaml").read_text().replace("../", f"{CARDS}/"))
    row = next(line for line in card_from_folder(tmp_path).splitlines() if line.startswith("| **[sensenova"))
    assert "**64.33**" in row and "59.02" in row


def test_the_base_card_has_its_published_row_and_no_made_up_results() -> None:
    card = (BASE / "README.md").read_text(encoding="utf-8")
    assert "model-index" not in metadata(card) and "mteb" not in metadata(card)["tags"]
    row = next(line for line in card.splitlines() if line.startswith("| **[sensenova/piccolo-base-zh]"))
    cells = [float(cell.strip(" *")) for cell in row.split("|")[2:12]]
    assert cells == [0.2, 768, 512, 63.66, 66.98, 47.12, 76.61, 66.68, 71.2, 55.9]
    assert "64.11" in card, "the row of the large model, computed from its results"


_HUB, _GITHUB = "https://huggingface.co/", "https://github.com/"
# What the published cards say, by section: each has to stand in that section of ours. " / " is one fact, Chinese and
# English; what is a name, a number or a link is the same in both.
PUBLISHED_FACTS: dict[str, tuple[str, ...]] = {
    "": (
        "商汤科技研究院 / SenseTime Research", "通用模型组 / General Model Group", "通用 / general",
        "两个阶段 / two stages",
        "E5", "GTE", "4 亿 / 400 million", "弱监督 / weakly supervised", "2000 万 / 20 million", "标注 / labelled",
        "难负例 / hard negatives", "piccolo-base-zh", "piccolo-large-zh",
    ),
    "评测 · Evaluation": (
        "C-MTEB 榜单 / C-MTEB leaderboard", "脚本 / scripts", f"{_HUB}sensenova/piccolo-base-zh/tree/main/eval",
        "Size (GB)", "Dimension", "Max tokens", "Average (35)", "Classification (9)", "Clustering (4)",
        "PairClassification (2)", "Reranking (4)", "Retrieval (8)", "STS (8)",
        "| 0.65 | 1024 | 512 |", "64.11", "67.03 | 47.04 | 78.38 | 65.98 | 70.93 | 58.02",
        "| 1.3 | 1024 | 512 | 63.96 | 68.32 | 48.39 | 78.94 | 65.11 | 71.52 | 54.98 |",
        "| 0.2 | 768 | 512 |", "63.66", "66.98 | 47.12 | 76.61 | 66.68 | 71.20 | 55.90",
        "| 1.3 | 1024 | 512 | 63.40 | 68.58 | 50.01 | 76.77 | 64.90 | 70.54 | 53.00 |",
        "| 0.41 | 768 | 512 | 62.80 | 67.07 | 47.64 | 77.50 | 64.91 | 69.53 | 54.12 |",
    ),
    "使用 · Usage": (
        "sentence-transformers", "不加指令 / No instruction", "normalize_embeddings=True", "embeddings @ embeddings.T",
        '["查询：" + query for query in queries]', '["结果：" + text for text in passages]',
    ),
    "训练 · Training": (
        "推荐 128 / 128 tokens are recommended", "批次就能大 / the larger the batches",
        "训练也快 / faster the training",
        "没有难负例 / no hard ones", "批内负例 / in-batch negatives", "1,024 per GPU x 32", "32 x A100 40 GB",
        "512，以适应更长的文本 / 512, for longer texts", "S2P", "增强检索 / better",
        "GTE 的改进形式 / improved form of GTE",
        "2 至 7 / 2 to 7", "查询始终是 64 / queries is always 64",
        "fp16 + 梯度检查点 + ZeRO 1 / fp16 + gradient checkpointing",
        "双塔 / two towers", f"{_GITHUB}microsoft/DeepSpeed/issues/988", "M3E",
        "来自同一个数据集 / come from one dataset",
        "负例因此更有价值 / negatives worth more", "每个训练样本前都加指令 / every training sample starts with one",
        "`查询: `", "`结果: `", "提升非常大 / gains very much",
    ),
    "参考 · References": (
        f"{_GITHUB}wangyuxinwhy/uniem", f"{_GITHUB}shibing624/text2vec", f"{_GITHUB}FlagOpen/FlagEmbedding",
        f"{_GITHUB}microsoft/unilm/tree/master/e5", f"{_HUB}thenlper/gte-base", "高质量 / high-quality",
        "框架 / framework",
        "中文开源项目 / Chinese open source project", "填补 / first systematic evaluation", "智源 / BAAI",
        "微软 / Microsoft", "消融 / ablations", "过滤 / filtering", "阿里达摩院 / Alibaba DAMO",
    ),
    "许可 · License": ("MIT", "免费商用 / commercial use is free"),
    "致谢 · Acknowledgement": (
        "商汤科技研究院通用模型组 / General Model Group of SenseTime Research", f"[Jinkin]({_HUB}Jinkin)",
        f"[CCCCxxx]({_HUB}CCCCxxx)", f"[Gaomengya]({_HUB}gaomengya)", f"[chaorenwu111]({_HUB}chaorenwu111)",
        "代码和模型训练 / Code and training", "搜集、整理和评测 / Data and evaluation", "主导 / Lead",
    ),
}  # fmt: skip


@pytest.mark.parametrize("folder", [LARGE, BASE], ids=lambda folder: folder.name)
def test_nothing_of_the_published_card_is_lost(folder: Path) -> None:
    text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)[2]
    code = re.compile(r"```.*?```", re.S)
    sections = dict(re.findall(r"^## (.*)\n((?:(?!^## ).*\n?)*)", text, re.M)) | {"": text.split("\n## ")[0]}
    missing = [
        (name, fact)
        for name, facts in PUBLISHED_FACTS.items()
        for fact in facts
        for part in fact.split(" / ")
        if part not in " ".join(sections.get(name, "").split())
    ]
    assert not missing
    for name in PUBLISHED_FACTS:
        prose = code.sub("", sections[name])
        assert re.search(r"[\u4e00-\u9fff]{4}", prose) and re.search(r"[A-Za-z]+ [a-z]+ [a-z]+", prose), name


def test_the_template_of_a_new_card_is_usable(tmp_path: Path, command: Command) -> None:
    assert command("card", _copy(CARDS / "template", tmp_path))[0] == 0
    assert "还没有评测结果" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_check_sees_a_stale_card(tmp_path: Path, command: Command) -> None:
    folder = _copy(BASE, tmp_path)
    code, shown, _ = command("card", folder, "--check")
    assert code == 1 and "out of date" in shown
    assert command("card", folder)[0] == 0 and command("card", folder, "--check")[0] == 0


def _copy(source: Path, target: Path) -> Path:
    (target / "card.yaml").write_text((source / "card.yaml").read_text(encoding="utf-8").replace("../", f"{CARDS}/"))
    return target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("licence: mit", r"unknown key 'licence' in .*card\.yaml; did you mean license"),
        ("- mit", r"card\.yaml must hold a mapping of keys to values, got list"),
        ("comparison: rows.yaml", r"unknown key 'size' in .*rows\.yaml, row 1; did you mean size_gb"),
    ],
)
def test_data_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "card.yaml").write_text(text)
    (tmp_path / "rows.yaml").write_text("- {model: x, size: 3}")
    with pytest.raises(InputError, match=message):
        card_from_folder(tmp_path)


def test_eval_result_files_are_the_hubs() -> None:
    published = read_results(LARGE / "results.jsonl")
    files = eval_result_files(published, C_MTEB_35)
    assert len(files) == 35 and set(files) == {f".eval_results/{task.name}.yaml" for task in C_MTEB_35.tasks}
    (entry,) = parse_eval_result_entries(yaml.safe_load(files[".eval_results/STS22.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("mteb/sts22-crosslingual-sts", "STS22_zh_test", 66.6553)
    assert entry.dataset_revision is None and entry.source_name == "mteb"
    split, whole = parse_eval_result_entries(yaml.safe_load(files[".eval_results/LCQMC.yaml"]))
    (lcqmc,) = (one.metrics["cos_sim_spearman"] for one in published if one.dataset_name == "MTEB LCQMC")
    assert (split.task_id, whole.task_id) == ("LCQMC_default_test", "LCQMC")
    assert split.value == whole.value == round(lcqmc, 5)
    today = eval_result_files(published, MTEB_CMN_V1)
    assert set(today) == {f".eval_results/{task.name}.yaml" for task in MTEB_CMN_V1.tasks}
    assert yaml.safe_load(today[".eval_results/Ocnli.yaml"])[0]["notes"] == "max_accuracy, MTEB(cmn, v1)"


# ---------------------------------------------------------------------------------------- tables and blocks
def test_the_table_sorts_and_marks_the_own_row() -> None:
    facts: ModelFacts = {"size_gb": 0.1, "dimension": 32, "max_tokens": 512}
    own = ModelScores("me/mine", {}, Averages(50.0, {"STS": 40.0}, ()), facts)
    others = [ModelScores(name, {}, Averages(mean, {}, ())) for name, mean in (("better", 60.0), ("unknown", None))]
    table = comparison_table(own, others, C_MTEB_35).splitlines()
    assert [line.split("|")[1].strip() for line in table[2:]] == [
        "better", "**[me/mine](https://huggingface.co/me/mine)**", "unknown",
    ]  # fmt: skip
    assert "**50.00**" in table[3] and "40.00" in table[3] and "| 0.1 | 32 | 512 |" in table[3]
    assert len({line.count("|") for line in table}) == 1


def test_an_incomplete_benchmark_has_no_average_and_says_what_is_missing() -> None:
    results = [r for r in read_results(LARGE / "results.jsonl") if r.dataset_name != "MTEB BQ"]
    card = render_card(_declared(results=results))
    row = next(line for line in card.splitlines() if line.startswith("| **"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[5] == "**–**" and cells[11] == "–" and cells[10] == "70.93"
    assert "Not evaluated: BQ." in card and "(34 / 35)" in card


def test_blocks_are_replaced_where_they_stand_or_put_before_the_usage() -> None:
    card = "# Title\n\nwords\n\n## Usage\n\nmore\n"
    once = replace_block(card, "evaluation", r"numbers \1")
    assert once.index("numbers") < once.index("## Usage") and "words" in once and "more" in once
    twice = replace_block(once, "evaluation", "others")
    assert r"numbers \1" not in twice and twice.count("<!-- begin evaluation") == 1
    assert replace_block(replace_block(card, "evaluation", "x"), "evaluation", r"numbers \1") == once
    assert replace_block("# Title\n", "evaluation", "x").endswith("<!-- end evaluation -->\n")


def _declared(**values: Any) -> PiccoloModelCardData:
    facts = {"output_dimensionality": 32, "model_max_length": 512, "size_gb": 0.1}
    return PiccoloModelCardData(model_name="tiny", local_files_only=True, declared=facts, **values)


def test_facts_of_a_run() -> None:
    configuration = {
        "model": {"name_or_path": "/home/me/encoder", "query_length": 64, "instructions": "piccolo"},
        "lora": {"rank": 8, "targets": ["query", "value"], "use_dora": True},
        "data": {"batch_size": 32},
        "loss": {"temperature": 0.01, "directions": ["query_to_doc"]},
        "train": {"learning_rate": 1e-4, "num_train_epochs": 1, "seed": 42},
    }
    datasets = {
        "词语": DatasetRecord("/home/me/words.jsonl", "retrieval", licence="CC0", note="词典", used=1200, counts={
            "rows": 1300, "rejected": {"no text": 60}, "held_out": {"a held-out query": 40}}),
        "谚语": DatasetRecord("jionlp:sayings", "retrieval", used=34),
        "searched": DatasetRecord("cmrc.dev", "retrieval"),
    }  # fmt: skip
    losses = {"词语": {"name": "PiccoloLoss", "temperature": 0.01}, "谚语": {"name": "PiccoloLoss"}}
    record = RunRecord(
        configuration, "pre-training", {}, "bf16", "CPU", "DDP", 2, losses, datasets=datasets, log=[{"step": 7}]
    )
    facts = stage_facts(record)
    assert facts["stage"] == "pre-training" and facts["encoder"] == "encoder"
    assert facts["batch"] == "32 x 2 = 64" and facts["data"] == ["词语 (1,200)", "谚语 (34)"]
    assert facts["samples"] == 1234 and facts["steps"] == 7 and facts["loss"] == ["PiccoloLoss"]
    text = training_section([facts], datasets=dataset_facts(record))
    for row in ("| learning rate | 0.0001 |", "| temperature | 0.01 |", "| seed | 42 |", "| precision | bf16 |",
                "| hardware | CPU |", "| processes | 2, DDP |",
                "| adapter | DoRA of rank 8, alpha 16, on query, value |",
                "| 词语 | words.jsonl | retrieval | 1,300 | 60 | 0 | 40 | 1,200 | CC0 | 词典 |"):  # fmt: skip
        assert row in text, text
    assert "/home" not in text


def test_what_is_not_known_of_a_run_is_not_in_its_facts() -> None:
    assert stage_facts(RunRecord({"model": {}, "data": {}, "loss": {}, "train": {}}, versions={})) == {
        "stage": "fine-tuning"
    }


# ---------------------------------------------------------------------------------------- cards of real models
@pytest.fixture
def model(make_model: Callable[..., Any]) -> Any:
    built = make_model()
    set_prompts(built, "piccolo")
    stage = {"stage": "finetune", "data": ["词语 (1,200)"], "batch": "32 x 2 = 64", "temperature": 0.01}
    built.model_card_data = PiccoloModelCardData(
        model_name="tiny", language="zh", license="mit", local_files_only=True, summary=["一个小模型。"], stages=[stage]
    )
    built.model_card_data.register_model(built)
    return built


def test_golden_card(model: Any, tmp_path: Path) -> None:
    """A whole card, as ``save`` writes it. After a deliberate change: PICCOLO_ST_GOLDEN=1 pytest -k golden_card."""
    model.model_card_data.version = dict.fromkeys(model.model_card_data.version, "0")
    results = read_results(LARGE / "results.jsonl")
    model.model_card_data.results = [r for r in results if r.dataset_name in ("MTEB ATEC", "MTEB T2Reranking")]
    model.model_card_data.content_hash = "0123456789" * 4
    model.model_card_data.generate_widget_examples = False  # its numbers depend on the machine's arithmetic
    model.save(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    if os.environ.get("PICCOLO_ST_GOLDEN"):
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(card, encoding="utf-8")
    assert card == GOLDEN.read_text(encoding="utf-8")


def test_everything_sentence_transformers_writes_is_still_there(model: Any, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer, SentenceTransformerModelCardData
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    losses = [MultipleNegativesRankingLoss(model)]
    model.model_card_data.set_losses(losses)
    model.save(str(tmp_path / "ours"))
    ours = (tmp_path / "ours" / "README.md").read_text(encoding="utf-8")
    model.model_card_data = SentenceTransformerModelCardData(model_name="tiny", language="zh", license="mit")
    model.model_card_data.register_model(model)
    model.model_card_data.set_losses(losses)
    model.save(str(tmp_path / "theirs"))
    theirs = (tmp_path / "theirs" / "README.md").read_text(encoding="utf-8")
    headings = re.findall(r"^#{2,3} .*$", re.sub(r"<!--.*?-->", "", theirs, flags=re.S), re.M)
    assert len(headings) >= 8
    for heading in headings:
        assert heading in ours or heading in ("## Usage", "### Direct Usage (Sentence Transformers)"), heading
    ours_data, theirs_data = metadata(ours), metadata(theirs)
    assert theirs_data.items() <= ours_data.items()
    assert SentenceTransformer(str(tmp_path / "ours"), device="cpu").prompts["query"] == "查询："


def test_usage_snippets_run_and_both_styles_agree(model: Any, tmp_path: Path) -> None:
    model.model_card_data.model_id = "org/tiny"
    model.save(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", card.split("### 在其他程序里使用")[0], re.S)
    assert len(snippets) == 2
    assert all('SentenceTransformer("org/tiny")' in snippet for snippet in snippets)
    similarity, retrieval = (snippet.replace("org/tiny", str(tmp_path)) for snippet in snippets)
    names: dict[str, Any] = {}
    exec(similarity, names)
    assert names["similarities"].shape == (2, 2)
    with_prompts, typed = retrieval.split("# 自己写在文本前面")
    exec(with_prompts, names)
    scores_with_prompts = names.pop("scores")
    exec(f"#{typed}", names)
    assert scores_with_prompts.shape == (1, 2) and (scores_with_prompts == names["scores"]).all()


def test_without_instructions_nothing_is_said_about_retrieval(make_model: Callable[..., Any], tmp_path: Path) -> None:
    built = make_model()
    built.model_card_data = PiccoloModelCardData(model_name="tiny", local_files_only=True)
    built.model_card_data.register_model(built)
    built.save(str(tmp_path))
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "encode_query" not in card.split("### 在其他程序里使用")[0] and "normalize_embeddings=True" in card
    assert not re.search("query: |查询：|instruction", card.split("<!-- end usage -->")[0].split("### 在其他")[1])


def test_results_are_added_to_an_edited_card(model: Any, tmp_path: Path) -> None:
    model.save(str(tmp_path))
    path = tmp_path / "README.md"
    path.write_text(
        path.read_text(encoding="utf-8").replace("一个小模型。", "我自己写的话。\n\n## 我的一节"), encoding="utf-8"
    )
    results = read_results(LARGE / "results.jsonl")
    own = ModelScores.of("org/tiny", task_scores(results, C_MTEB_35), C_MTEB_35)
    add_results(tmp_path, results, own, evaluated="a" * 40)
    card = path.read_text(encoding="utf-8")
    assert "我自己写的话。\n\n## 我的一节" in card and 'SentenceTransformer("org/tiny")' in card
    assert "**64.11**" in card and "sentence_transformers_model_id" not in card
    assert metadata(card)["model-index"][0]["name"] == "tiny" and len(ModelCard(card).data.eval_results) == 367
    assert "mteb" in metadata(card)["tags"] and evaluated_model(card) == "a" * 40
    assert len(list((tmp_path / ".eval_results").glob("*.yaml"))) == 35
    add_results(tmp_path, results, own, evaluated="a" * 40)
    assert path.read_text(encoding="utf-8") == card
    few = [r for r in results if r.task_type == "STS"]
    own = ModelScores.of("org/tiny", task_scores(few, C_MTEB_35), C_MTEB_35)
    add_results(tmp_path, few, own, evaluated="b" * 40)
    card = path.read_text(encoding="utf-8")
    assert len(ModelCard(card).data.eval_results) == 48 and evaluated_model(card) == "b" * 40
    assert len(list((tmp_path / ".eval_results").glob("*.yaml"))) == 8, "files of the earlier results are gone"
