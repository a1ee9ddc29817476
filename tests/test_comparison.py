"""Comparing models: ranking, the baseline, and a run that is resolved once for each command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from grimmgen.errors import UsageError
from grimmgen.evaluation.comparison import evaluate_models
from grimmgen.runs import registry
from grimmgen.runs.registry import Run, TrainedModel, load_model
from grimmgen.text.corpus import Document
from tests.builders import adopt_checkpoints
from tests.program import Ran

CPU = torch.device("cpu")


def newer_run(trained: Run) -> Run:
    """Copy a run as the latest one, with other documents in each part."""
    newer = Run(trained.path.with_name("old-owl"))
    shutil.copytree(trained.path, newer.path)
    info = newer.info()
    info |= {"name": newer.name, "order": info["order"] + 1}
    parts = info["corpus"]["split"]["parts"]
    parts["train"], parts["valid"], parts["test"] = parts["valid"], parts["test"], parts["train"]
    (newer.path / "run.json").write_text(json.dumps(info))
    adopt_checkpoints(newer)
    assert registry.find().name == newer.name
    return newer


def names(documents: Sequence[Document]) -> list[str]:
    return [document.name for document in documents]


def test_loaded_model_keeps_its_run_beside_a_newer_one(trained: Run) -> None:
    model = load_model(None)
    newer_run(trained)
    comparison = evaluate_models([model], [], "valid", CPU, baseline=True)
    assert sorted(result.name for result in comparison.results) == ["Kneser-Ney", "sly-fox"]
    for result in comparison.results:
        assert [score.name for score, _ in result.documents] == names(trained.split().parts["valid"])


@pytest.mark.parametrize("options", [["--baseline"], ["--novelty"], ["--heatmap", "FILE"], ["--baseline", "FILE"]])
def test_command_resolves_the_run_once(
    trained: Run,
    run: Callable[..., Ran],
    tmp_path: Path,
    options: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The king went to a mill.")
    command = ["eval", *(str(text) if option == "FILE" else option for option in options), "--json"]
    expected = run(*command)
    loads: list[str | None] = []

    def load_and_train_another(asked: str | None, *corpus: Any) -> TrainedModel:
        loads.append(asked)
        model = load_model(asked, *corpus)
        newer_run(trained)
        return model

    monkeypatch.setattr(registry, "load_model", load_and_train_another)
    assert run(*command) == expected
    assert (loads, expected.code) == ([None], 0)


def test_results_are_ranked_with_differences_to_the_best(trained: Run) -> None:
    worse = load_model(newer_run(trained).name)
    worse.checkpoint.weights["output.bias"][:] = 0.0
    reported: list[tuple[str, int, int]] = []
    comparison = evaluate_models(
        [worse, load_model(trained.name)],
        trained.split().parts["valid"],
        "valid",
        CPU,
        dynamic=True,
        notify_done=lambda *progress: reported.append(progress),
    )
    # The ensemble of both is between them.
    best, ensemble, other = comparison.results
    assert ensemble.kind == "ensemble"
    assert (best.name, other.name, comparison.warning) == ("sly-fox", "old-owl", "")
    assert best.difference is None
    assert other.difference is not None
    gap = other.static.total.bits_per_character - best.static.total.bits_per_character
    assert other.difference.mean == pytest.approx(gap)
    assert all(dynamic is not None for _, dynamic in (*best.documents, best.total))
    assert reported == [(name, done, 5) for name in ("old-owl", "sly-fox") for done in range(1, 6)]


def test_models_of_different_documents_have_no_difference(trained: Run) -> None:
    newer_run(trained)
    comparison = evaluate_models([load_model("sly-fox"), load_model("old-owl")], [], "valid", CPU)
    assert "the runs have different stories" in comparison.warning
    assert [result.difference for result in comparison.results] == [None, None]


def test_checkpoint_file_needs_documents(trained: Run) -> None:
    model = load_model(str(trained.best_path))
    text = trained.split().parts["test"][0]
    assert [s.name for s, _ in evaluate_models([model], [text], "valid", CPU).results[0].documents] == [text.name]
    with pytest.raises(UsageError, match="does not include its stories"):
        evaluate_models([model], [], "valid", CPU)
    with pytest.raises(UsageError, match="does not include its training stories"):
        evaluate_models([model], [text], "valid", CPU, baseline=True)
