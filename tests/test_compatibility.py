"""Runs written by earlier versions load, evaluate, generate and resume as in the version that wrote them."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors

from grimmgen.evaluation import comparison
from grimmgen.evaluation.dynamic import evaluate_dynamically
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint, state_names
from grimmgen.training.loop import Progress
from tests.program import Ran

DATA = Path(__file__).parent / "data"
RUNS = sorted(path.name for path in (DATA / "runs-0.1.0").iterdir())

Program = Callable[..., Ran]

# As in data/make.sh.
EVALUATIONS = {
    "eval": (["--split", "test"], 1e-5),
    "dynamic": (["--dynamic", "story.txt"], 1e-4),
}
GENERATIONS = {
    "top-3": "--random-seed 7 --length 300",
    "tempered": "--random-seed 8 --length 200 --top-k 0 --temperature 0.8 --stories 2 --seed",
    "top-p": "--random-seed 9 --length 200 --top-p 0.9 --repetition-penalty 1.2 --seed",
    "beams": "--random-seed 10 --length 200 --beam-width 3 --beam-depth 4 --seed",
    "max-copy": "--random-seed 11 --length 200 --max-copy 6",
}
PROMPTS = {"tempered": ["the king"], "top-p": ["a cat"], "beams": ["the "]}


@pytest.fixture
def old(request: pytest.FixtureRequest, home: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Put a run of version 0.1.0 into the registry; returns its name."""
    name: str = request.param
    shutil.copytree(DATA / "runs-0.1.0" / name, home / "data" / "runs" / name)
    monkeypatch.chdir(DATA)
    return name


def expected(run: str, name: str) -> Any:
    return json.loads((DATA / "expected-0.1.0" / run / f"{name}.json").read_text("utf-8"))


every_run = pytest.mark.parametrize("old", RUNS, indirect=True)


def test_there_is_a_run_of_every_cell_and_preset() -> None:
    assert {"lstm", "peephole", "gru", "mogrifier", "every-option"} < set(RUNS)
    assert {f"preset-{name}" for name in ("tutorial", "quick", "strong", "large")} < set(RUNS)


@every_run
def test_old_checkpoints_load(old: str) -> None:
    run = registry.find(old)
    model = registry.load_model(old)
    assert model.checkpoint.configuration == run.configuration
    last = Checkpoint.read(run.last_path)
    states = {name for name in last.training_tensors if name.startswith("state.")}
    assert states == {f"state.{name}" for name in state_names(last.configuration)}
    assert Progress.from_json(last.progress).epoch == 2
    assert [len(documents) for documents in run.split().parts.values()] == [15, 2, 4]


# The presets are networks of an LSTM, and dynamic evaluation takes long.
@pytest.mark.parametrize(
    ("old", "evaluation"),
    [
        *((old, "eval") for old in RUNS),
        *((old, "dynamic") for old in ("lstm", "peephole", "gru", "mogrifier", "every-option")),
    ],
    indirect=["old"],
)
def test_old_runs_evaluate_to_the_same_figures(
    old: str, evaluation: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, tolerance = EVALUATIONS[evaluation]
    # Dynamic evaluation had other settings.
    before = functools.partial(evaluate_dynamically, rate=0.0005, decay=0.003, segment=32)
    monkeypatch.setattr(comparison, "evaluate_dynamically", before)
    ran = run("eval", "--run", old, "--json", "--quiet", *options)
    assert (ran.code, ran.err) == (0, "")
    same_figures(expected(old, evaluation), json.loads(ran.out), tolerance)


def same_figures(old: Any, new: Any, tolerance: float) -> None:
    """Everything that the old version reported is there, and numbers are equal up to a relative tolerance."""
    if isinstance(old, dict):
        for name in old.keys() - {"name"}:
            same_figures(old[name], new[name], tolerance)
    elif isinstance(old, list):
        assert len(old) == len(new)
        for one, other in zip(old, new, strict=True):
            same_figures(one, other, tolerance)
    else:
        assert new == (pytest.approx(old, rel=tolerance) if isinstance(old, float) else old)


# What is sampled does not depend on the cell: each run with two, and each of these with four runs.
@pytest.mark.parametrize(
    ("old", "generation"),
    [
        (old, generation)
        for number, old in enumerate(RUNS)
        for generation in [*GENERATIONS, *GENERATIONS][number % 5 :][:2]
    ],
    indirect=["old"],
)
def test_old_runs_generate_the_same_text(old: str, generation: str, run: Program) -> None:
    options = [*GENERATIONS[generation].split(), *PROMPTS.get(generation, [])]
    ran = run("generate", "--run", old, "--json", "--quiet", *options)
    assert (ran.code, ran.err) == (0, "")
    same_texts(expected(old, generation), json.loads(ran.out))


def same_texts(old: Any, new: Any) -> None:
    if isinstance(old, list):
        assert len(old) == len(new)
        for one, other in zip(old, new, strict=True):
            same_texts(one, other)
    else:
        names = ("run", "checkpoint_sha256", "prompt", "text", "ending")
        assert {name: new[name] for name in names} == {name: old[name] for name in names}
        assert new["log_probability"] == pytest.approx(old["log_probability"], rel=1e-4)


@every_run
def test_old_runs_resume(old: str, run: Program) -> None:
    ran = run("train", "--resume", "--run", old, "--epochs", "3", "--json", "--quiet")
    assert (ran.code, ran.err) == (0, "")
    [evaluated] = [event for event in map(json.loads, ran.out.splitlines()) if event["event"] == "evaluated"]
    before = expected(old, "resume")
    assert (evaluated["epoch"], evaluated["step"]) == (before["epoch"], before["step"])
    # Not equal: version 0.1.0 drew other dropout masks from the same random seed.
    for name in ("training_perplexity", "perplexity", "bits_per_character"):
        assert evaluated[name] == pytest.approx(before[name], rel=0.02)
    with safetensors.safe_open(registry.find(old).last_path, "numpy") as file:
        assert json.loads(file.metadata()["grimmgen"])["format"] == 2
    # What has been written by now is of this version, whatever the cell.
    if old == "lstm":
        assert run("train", "--resume", "--run", old, "--epochs", "4", "--quiet").code == 0
