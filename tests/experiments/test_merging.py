"""Merged models: what becomes of the weights, the search for them, and what the result says of itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers import SentenceTransformer

from piccolo_st.__main__ import dispatch
from piccolo_st.errors import InputError
from piccolo_st.experiments.merging import Merge, merge_checkpoints, search_weights
from piccolo_st.modeling import (
    InstructionPooling,
    load_portable,
    release_files,
    save_portable,
    set_instruction_pooling,
)
from piccolo_st.modeling.lengths import set_lengths
from tests.helpers.evaluation_data import write_local_tasks


def _loaded(folder: Path) -> dict[str, torch.Tensor]:
    return SentenceTransformer(str(folder), device="cpu").state_dict()


@pytest.fixture
def folders(make_model: Callable[..., Any], tmp_path: Path) -> dict[str, Path]:
    """A base and two models that were moved away from it."""
    root = tmp_path / "merge"
    base = make_model()
    states = {}
    for seed, name in enumerate(("base", "one", "two")):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in base.parameters() if seed else ():
                weight += 0.02 * torch.randn(weight.shape, generator=generator)
        base.save_pretrained(str(root / name))
        states[name] = root / name
    return states


@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "slerp"])
def test_a_merge_is_what_its_method_says(method: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("mergekit")
    base = str(folders["base"]) if method == "task_arithmetic" else None
    merge = Merge((str(folders["one"]), str(folders["two"])), method, base)
    merge_checkpoints(merge, tmp_path / "merged", weights=[3, 1] if base is None else [0.6, 0.2])
    made, origin, one, two = (_loaded(f) for f in (tmp_path / "merged", *folders.values()))
    for name, weight in made.items():
        if not weight.is_floating_point():
            continue
        a, b, start = one[name].double(), two[name].double(), origin[name].double()
        if method == "task_arithmetic":
            wanted = start + 0.6 * (a - start) + 0.2 * (b - start)
        elif method == "linear":
            wanted = 0.75 * a + 0.25 * b
        else:
            angle = torch.arccos((a.flatten() @ b.flatten() / (a.norm() * b.norm())).clamp(-1, 1))
            share = 0.25 if angle < 0.032 else float(torch.sin(0.25 * angle) / torch.sin(angle))
            rest = 0.75 if angle < 0.032 else float(torch.sin(0.75 * angle) / torch.sin(angle))
            wanted = rest * a + share * b
        assert torch.allclose(weight.double(), wanted, atol=2e-5), name


def test_the_merged_model_has_the_lengths_and_the_pooling_of_the_first(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("mergekit")
    for name, lengths in (("one", (64, 128)), ("two", (32, 256))):
        model = make_model()
        set_lengths(model, *lengths)
        pooling = set_instruction_pooling(model, "piccolo")
        save_portable(model, tmp_path / name)
    merge_checkpoints(Merge((str(tmp_path / "one"), str(tmp_path / "two"))), tmp_path / "merged")
    loaded, plain = load_portable(tmp_path / "merged", device="cpu"), SentenceTransformer(str(tmp_path / "merged"))
    assert (loaded[0].query_length, loaded[0].document_length) == (64, 128)
    assert isinstance(loaded[1], InstructionPooling) and loaded[1].instruction_ids == pooling.instruction_ids
    assert (plain[0].query_length, type(plain[1]).__name__) == (None, "Pooling")
    assert (plain.encode("天气") == loaded.encode("天气")).all()


@given(peak=st.tuples(*[st.integers(0, 10)] * 2), steps=st.just(10))
def test_the_search_finds_the_best_mixture_of_two_and_asks_for_none_twice(peak: tuple[int, int], steps: int) -> None:
    merge = Merge(("a", "b"))
    wanted = peak[0] / sum(peak) if any(peak) else 0.5
    asked: list[tuple[float, ...]] = []

    def score(weights: tuple[float, ...]) -> float:
        asked.append(weights)
        return -((weights[0] - wanted) ** 2)

    best, tried = search_weights(merge, score, steps)
    assert len(asked) == len(set(asked)) == len(tried) == 11
    assert abs(best[0] - wanted) <= 0.05 + 1e-6
    assert all(sum(weights) == pytest.approx(1, abs=1e-5) for weights in asked)


def test_the_search_turns_each_weight_of_several() -> None:
    for method, base in (("linear", None), ("task_arithmetic", "base")):
        merge = Merge(("a", "b", "c"), method, base)  # type: ignore[arg-type]
        best, tried = search_weights(merge, lambda w: w[0] - w[1] + 0.5 * w[2] * (1 - w[2]), 4)
        assert best[1] == 0
        assert tried[best] == max(tried.values()) >= 0.95 if base is None else tried[best] == pytest.approx(1.125)


def test_the_command_searches_and_the_result_says_what_it_is_made_of(
    folders: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("mergekit")
    pytest.importorskip("mteb")
    write_local_tasks(tmp_path)
    task = next(tmp_path.glob("*.yaml"))
    command = ["merge", str(tmp_path / "merged"), str(folders["one"]), str(folders["base"])]
    dispatch([*command, "--task", str(task), "--steps", "2"])
    said = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] in ("0.", "1.")]
    assert [line[:2] for line in said] == [["0.500", "0.500"], ["0.000", "1.000"], ["1.000", "0.000"]]
    made_of = json.loads((tmp_path / "merged" / "merge.json").read_text(encoding="utf-8"))
    best = max(made_of["tried"], key=lambda one: one["score"])
    assert [one["weight"] for one in made_of["models"]] == best["weights"]
    assert [f"{one['score']:.2f}" for one in made_of["tried"]] == [line[2] for line in said]
    card = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
    assert "base_model_relation: merge" in card
    for one, folder in zip(made_of["models"], (folders["one"], folders["base"]), strict=True):
        assert f"| {folder.parent.name}/{folder.name} | {one['weight']:g} | `{one['content'][:12]}` |" in card
    assert str(tmp_path) not in card
    assert f"the best of 3 mixtures has {best['score']:.2f}" in card
    assert "merge.json" in release_files(tmp_path / "merged")
    save_portable(SentenceTransformer(str(folders["one"]), device="cpu"), tmp_path / "merged")
    assert "merge.json" not in release_files(tmp_path / "merged"), "the model that is there now was not merged"

    monkeypatch.setattr("piccolo_st.evaluation.runner._load_data", lambda task: "its data is gated")
    with pytest.raises(InputError, match=r"must have a score, got failures in BQ: its data is gated; mend those or"):
        dispatch([*command, "--task", str(task), "BQ", "--steps", "2"])


def test_models_that_are_not_alike_are_refused(
    folders: dict[str, Path], make_model: Callable[..., Any], tmp_path: Path
) -> None:
    pytest.importorskip("mergekit")
    make_model(pooling="cls").save_pretrained(str(tmp_path / "other"))
    merge = Merge((str(folders["one"]), str(tmp_path / "other")))
    with pytest.raises(ValueError, match=r"the models cannot be merged: .*different configuration.* trained from one"):
        merge_checkpoints(merge, tmp_path / "merged")
