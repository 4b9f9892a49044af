"""The command evaluate as a person starts it: the live lines, the tables, the files it leaves, bad options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("mteb")

from sentence_transformers import SentenceTransformer

from piccolo_st.commands import evaluate as command
from piccolo_st.errors import InputError
from piccolo_st.evaluation.benchmarks import C_MTEB_35, MTEB_CMN_V1
from piccolo_st.evaluation.results import read_results, task_scores
from piccolo_st.evaluation.scores import ModelScores, plot_evaluations, score_table
from piccolo_st.shipped import shipped
from tests.helpers.evaluation_data import write_local_tasks

ROOT = Path(__file__).parents[2]


def column(label: str, values: dict[str, float]) -> ModelScores:
    return ModelScores.of(label, values, C_MTEB_35)


PICCOLO_LARGE = task_scores(read_results(ROOT / "model_cards/piccolo-large-zh/results.jsonl"), C_MTEB_35)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_local_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def saved(make_model: Callable[..., SentenceTransformer], tmp_path: Path) -> str:
    make_model().save_pretrained(str(tmp_path / "model"))
    return str(tmp_path / "model")


def test_lines_tables_json_and_picture(
    saved: str, tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    arguments = [saved, "--benchmark", str(tasks), "--output", str(output), "--truncate_dim", "8,32"]

    command.main(arguments)
    first = capsys.readouterr().out
    command.main(arguments)
    second = capsys.readouterr().out

    lines = [line.split() for line in first.splitlines() if line.strip().startswith("[")]
    assert [words[0] for words in lines] == [f"[{number}/6]" for number in range(1, 7) for _ in range(2)]
    assert [words[2:4] for words in lines[:2]] == [["OwnSearch", "8d"], ["OwnSearch", "ndcg_at_10"]]
    assert first.count(" kept") == 0 and second.count(" kept") == 12
    written = sorted(path.name for path in (output / "tables").iterdir())
    assert len(written) == 3 and written[0].startswith("six--local__model--") and written[-1].endswith(".png")
    summaries = [json.loads(path.read_text("utf-8")) for path in sorted((output / "tables").glob("*.json"))]
    settings = [summary["model"]["settings"] for summary in summaries]
    assert sorted(settings, key=len) == [{}, {"truncate_dim": 8}]
    whole = summaries[settings.index({})]
    assert whole["average"] == pytest.approx(sum(task["score"] for task in whole["tasks"]) / 6)
    mean = next(line for line in first.splitlines() if line.startswith("all "))
    assert mean.split()[-1] == f"{whole['average']:.2f}"
    assert whole["model"]["content"] == whole["model"]["revision"]

    folder = output / "results/local__model" / whole["model"]["revision"]
    cut = folder / "experiments/truncate_dim_8"
    command.main(["--compare", str(cut), str(folder), "--benchmark", str(tasks), "--resamples", "50"])
    compared = capsys.readouterr().out
    assert compared.startswith(f"A is {cut}\nB is {folder}\nsix: local tasks of six.yaml, in percent\ntask ")
    assert sum(line.split()[0].startswith("Own") for line in compared.splitlines()) == 6


def test_a_yaml_file_holds_the_options_and_the_command_line_wins(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("benchmark: [STS]\ndtype: bfloat16\ntruncate_dim: [256, 512]\n", "utf-8")

    options = command.parse(["model", "--config", str(config), "--dtype", "float16"])

    assert (options.benchmark, options.dtype, command.dimensions(options.truncate_dim)) == (
        ["STS"],
        "float16",
        [256, 512],
    )
    command.parse(["model", "--config", str(ROOT / "recipes/configs/evaluate.yaml")])  # as it is shipped
    for arguments in ([], ["model", "--compare", "a", "b"]):
        with pytest.raises(InputError, match=r"name a model to evaluate, or two folders of results with --compare"):
            command.parse(arguments)


def test_tasks_without_a_result_end_in_an_error_that_names_them(
    saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from datasets.exceptions import DatasetNotFoundError

    def gated(self: object, **_: object) -> None:
        raise DatasetNotFoundError("Dataset 'mteb/STSB' is a gated dataset on the Hub.")

    monkeypatch.setattr("mteb.abstasks.abstask.AbsTask.load_data", gated)

    with pytest.raises(InputError, match=r"1 tasks have no result: STSB; the reasons stand above"):
        command.main([saved, "--benchmark", "STSB", "--output", str(tmp_path / "out")])

    out = capsys.readouterr().out
    assert "failed: STSB: the data of STSB (mteb/STSB at revision e036" in out and "gated dataset" in out
    assert "no picture: no model has every task of any type" in out


def test_the_table_puts_a_missing_score_as_a_dash_and_never_averages_over_it() -> None:
    partial = {name: value for name, value in PICCOLO_LARGE.items() if name != "Ocnli"}

    text = score_table([column("piccolo-large-zh", PICCOLO_LARGE), column("partial", partial)], C_MTEB_35)

    lines = {tuple(line.split()[:4]): line.split() for line in text.splitlines()}
    assert text.startswith("c-mteb-35: the 35 tasks and main metrics of the Piccolo cards of 2023, in percent")
    assert lines["PairClassification", "Ocnli", "cosine_ap", "72.92"][-1] == "-"
    assert lines["PairClassification", "mean", "of", "2"][-2:] == ["78.38", "-"]
    assert lines["Retrieval", "mean", "of", "8"][-2:] == ["70.93", "70.93"]
    assert lines["all", "mean", "of", "35"][-2:] == ["64.11", "-"]


def test_references_are_results_or_rows_of_averages(capsys: pytest.CaptureFixture[str]) -> None:
    rows = command.reference(shipped()["c-mteb-35"], C_MTEB_35)
    (large,) = command.reference(ROOT / "model_cards/piccolo-large-zh/results.jsonl", C_MTEB_35)

    assert [f"{row.averages.overall:.2f}" for row in rows] == ["64.11", "63.96", "63.66", "63.40", "62.80"]
    assert (large.model, large.averages) == ("piccolo-large-zh", rows[0].averages)
    assert command.reference(shipped()["c-mteb-35"], MTEB_CMN_V1) == []  # another definition
    told = "c-mteb-35.yaml has averages by another definition than that of MTEB(cmn, v1): sensenova/piccolo-large-zh ("
    assert told in capsys.readouterr().out


def test_the_picture_needs_one_whole_type(tmp_path: Path) -> None:
    partial = {name: value for name, value in PICCOLO_LARGE.items() if name not in ("Ocnli", "STSB")}

    path = plot_evaluations(
        [column("whole", PICCOLO_LARGE), column("partial", partial)], C_MTEB_35, tmp_path / "bars.png"
    )

    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"no model has every task of any type of c-mteb-35"):
        plot_evaluations([column("one task", {"STSB": 74.4})], C_MTEB_35, tmp_path / "bars.png")
