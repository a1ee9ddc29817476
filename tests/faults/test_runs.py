"""Runs of other versions, and runs that have saved nothing (faults 50 and 55)."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import grimmgen
from grimmgen.runs import registry
from grimmgen.runs.registry import Run, TrainedModel
from tests.program import Ran
from tests.test_checkpoint import put_together, taken_apart

Program = Callable[..., Ran]


def change_run(run: Run, **changes: Any) -> None:
    (run.path / "run.json").write_text(json.dumps({**run.info(), **changes}))


def begun(name: str) -> Run:
    """A run of another corpus whose training has ended before its first save."""
    corpus = grimmgen.open_corpus("sampler")
    split = grimmgen.text.split.split_by_hash(corpus)
    run = registry.create(name, grimmgen.Configuration(), corpus, split, "grimmgen train", {})
    run.append_log({"event": "started"})
    return run


# --- fault 50 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["runs", "show"], ["train", "--resume"], ["generate"], ["eval"]], ids=lambda command: command[0]
)
def test_fault_50_unknown_option_is_named_with_its_version(command: list[str], trained: Run, run: Program) -> None:
    configuration = {**trained.info()["configuration"], "attention": 8}
    change_run(trained, configuration=configuration, versions={"grimmgen": "7.3.0"})
    for path in trained.path.glob("*.safetensors"):
        entries, own, body = taken_apart(path.read_bytes())
        own["configuration"]["attention"] = 8
        own["provenance"]["versions"] = {"grimmgen": "7.3.0"}
        path.write_bytes(put_together(entries, own, body))
    ran = run(*command)
    assert (ran.code, ran.out) == (3, "")
    assert ran.err.endswith(
        "the configuration, written by grimmgen 7.3.0, has an unknown option 'attention': upgrade grimmgen\n"
    )


@pytest.mark.parametrize("command", [["runs", "show"], ["train", "--resume"], ["generate"], ["eval"]])
def test_fault_50_newer_run_is_named_with_its_version(command: list[str], trained: Run, run: Program) -> None:
    change_run(trained, format=99, versions={"grimmgen": "7.3.0"})
    ran = run(*command)
    assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
    assert "run.json, written by grimmgen 7.3.0, has format 99" in ran.err
    assert ran.err.endswith(": upgrade grimmgen\n")


def test_fault_50_resume_makes_the_run_one_of_this_version(trained: Run, run: Program) -> None:
    change_run(trained, format=1, versions={"grimmgen": "0.0.1"})
    assert run("train", "--resume", "--quiet", "--epochs", "3").code == 0
    info = trained.info()
    assert (info["format"], info["versions"]["grimmgen"]) == (2, grimmgen.__version__)


# --- fault 55 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["generate", "--length", "20"], ["eval"], ["eval", "--run", "latest"]])
def test_fault_55_run_without_a_checkpoint_is_not_the_latest(
    command: list[str], trained: Run, run: Program
) -> None:
    begun("bad")
    ran = run(*command)
    assert ran.code == 0
    assert f"using the run {trained.name}: bad, which is newer, has no checkpoint\n" in ran.err
    assert run(*command, "--quiet").err == ""
    assert run("runs", "path") == (0, f"{trained.path}\n", "")
    refused = run(command[0], "--run", "bad")
    assert refused == (
        1,
        "",
        "error: the run bad has no checkpoint: train it with `grimmgen train --resume --run bad`\n",
    )


def test_fault_55_runs_without_a_checkpoint_are_listed_as_such(trained: Run, run: Program) -> None:
    failed = begun("failed")
    failed.append_log({"event": "failed", "step": 3, "error": "the loss is not finite"})
    begun("killed")
    with (training := begun("training")).locked():
        listed = {
            row["name"]: (row["state"], row["saved"]) for row in json.loads(run("runs", "list", "--json").out)
        }
        assert listed == {
            trained.name: ("epochs", True),
            "failed": ("failed", False),
            "killed": ("unfinished", False),
            "training": ("training", False),
        }
        rows = run("runs", "list").out
        assert re.search(r"training .* training, nothing saved +\n", rows)
    assert re.search(r"failed .* failed, nothing saved +\n", run("runs", "list").out)
    assert "state     failed, nothing saved: the loss is not finite\n" in run("runs", "show", "failed").out
    assert "state     unfinished, nothing saved\n" in run("runs", "show", training.name).out


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--length", "60", "--random-seed", "3", "--max-copy", "6", "--novelty"],
        ["generate", "--length", "60", "--random-seed", "3", "--max-copy", "6", "--json"],
        ["eval", "--baseline"],
        ["eval", "--novelty"],
        ["eval", "--split", "test", "--json"],
    ],
)
def test_fault_55_latest_is_resolved_once(
    command: list[str], trained: Run, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run(*command, "--run", trained.name)
    assert expected.code == 0
    load = Run.load

    def load_and_begin(found: Run, *arguments: Any) -> TrainedModel:
        # Another training begins, and saves, just after the command has chosen its run.
        model = load(found, *arguments)
        other = begun("other")
        for path in trained.path.glob("*.safetensors"):
            shutil.copy(path, other.path)
        return model

    monkeypatch.setattr(Run, "load", load_and_begin)
    assert run(*command) == expected
    assert registry.find().name == "other"


def test_fault_55_loaded_model_keeps_its_run(trained: Run, tmp_path: Path) -> None:
    model = grimmgen.load()
    shutil.copytree(trained.path, copy := tmp_path / "copy")
    other = begun("other")
    for path in copy.glob("*.safetensors"):
        shutil.copy(path, other.path)
    texts = [m.generate(length=300, max_copy=5, random_seed=1) for m in (model, grimmgen.load(trained.name))]
    assert texts[0] == texts[1]
    # The remains of the run itself are enough: its stories are those of its run.json when it was loaded.
    trained.remove()
    assert model.generate(length=300, max_copy=5, random_seed=1) == texts[0]


def test_checkpoint_of_another_run_is_exit_3(trained: Run, run: Program, tales: Path) -> None:
    other = begun("other")
    shutil.copy(trained.best_path, other.path)
    commands = [["generate"], ["generate", "--max-copy", "5"], ["eval"], ["eval", str(tales / "00.txt")]]
    for command in commands:
        ran = run(*command, "--run", "other")
        assert (ran.code, ran.out, ran.err.count("\n")) == (3, "", 1)
        assert "is not a checkpoint of the run other, but of another one sly-fox" in ran.err
    # The remedy works.
    assert run("generate", "--length", "20", "--run", str(other.best_path)).code == 0
