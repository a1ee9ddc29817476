"""The bundled model: the file in the package, and what takes it where there is no run."""

from __future__ import annotations

import fnmatch
import json
import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import grimmgen
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from tests.builders import TEXTS, TINY, tiny_checkpoint
from tests.program import Ran
from tests.test_registry import create

ROOT = Path(__file__).parent.parent
Program = Callable[..., Ran]

NOTE = "using the bundled model grimm"
TALES = {"train": ["001", "002"], "valid": ["003"], "test": ["004"]}


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A bundled model of three units, trained on four tales."""
    parts = {p: [{"name": n, "sha256": None, "part": [0, 1]} for n in names] for p, names in TALES.items()}
    provenance = {
        "corpus": "grimm",
        "split": {"by_story": True, "parts": parts},
        "lexicon": "the king and hen is thin end",
        "decoding": {"temperature": 0.8, "min_p": 0.05, "lexicon": True},
        "versions": {"grimmgen": "1.2.3"},
        "epoch": 4,
        "perplexity": 9.5,
        "bits_per_character": 1.75,
    }
    path = tmp_path / "package" / "grimm.safetensors"
    path.parent.mkdir()
    path.write_bytes(replace(tiny_checkpoint().rounded(8), provenance=provenance).to_bytes(8))
    monkeypatch.setattr(registry, "PRETRAINED_PATH", path)
    return Checkpoint.read(path)


# --- the file in the package ---------------------------------------------------------------------------------


def test_packaged_model_is_small_and_has_no_local_path() -> None:
    content = registry.PRETRAINED_PATH.read_bytes()
    assert len(content) < 5_500_000
    header = content[8 : 8 + int.from_bytes(content[:8], "little")].decode()
    assert r"\"format\": 4" in header
    assert re.search(r"/(home|root|tmp|work|Users)/|[A-Z]:\\\\", header) is None
    provenance = Checkpoint.read(registry.PRETRAINED_PATH).provenance
    assert not {"run", "run_sha256", "platform"} & provenance.keys()
    assert provenance["decoding"]["lexicon"]


def test_card_and_split_are_those_of_the_packaged_model() -> None:
    model = registry.load_model("grimm")
    assert model.checkpoint.sha256 in (ROOT / "docs" / "pretrained.md").read_text("utf-8")
    stored = model.info["corpus"]["split"]["parts"]
    names = {part: [document["name"] for document in documents] for part, documents in stored.items()}
    assert names == json.loads((ROOT / "docs" / "pretrained-split.json").read_text("utf-8"))
    assert sum(map(len, names.values())) == len({name for part in names.values() for name in part}) == 209


def test_every_file_of_data_is_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["package-data"]
    package = ROOT / "grimmgen"
    found = [str(path.relative_to(package)) for path in (package / "data").rglob("*") if path.is_file()]
    assert "data/pretrained/grimm.safetensors" in found
    assert [f for f in found if not any(fnmatch.fnmatch(f, one) for one in patterns["grimmgen"])] == []


def test_packaged_model_generates_without_pytorch() -> None:
    code = (
        "import sys, grimmgen; text = grimmgen.load().generate('the king', length=200, random_seed=1);"
        " assert text.startswith('the king') and len(text) > 20 and 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Without any configuration of logging: one line.
    assert (ran.stdout, ran.stderr.count("\n"), NOTE in ran.stderr) == ("", 1, True)


# --- where there is no run -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small")
def test_without_a_run_the_bundled_model_generates_and_is_named(run: Program, home: Path) -> None:
    line = ["generate", "--length", "60", "--random-seed", "5"]
    unnamed, named = run(*line), run(*line, "--run", "grimm")
    assert unnamed.code == named.code == 0
    assert (named.out, named.err) == (unnamed.out, "")
    assert (unnamed.err.count("\n"), unnamed.err.startswith(NOTE)) == (1, True)
    assert "grimmgen train" in unnamed.err
    assert run(*line, "--quiet") == named
    assert run(*line, "--run", "latest") == unnamed
    assert not home.exists()


@pytest.mark.usefixtures("small")
def test_run_without_a_checkpoint_is_not_taken(run: Program) -> None:  # fault 55
    create("sly-fox")
    ran = run("generate", "--length", "20")
    assert ran.code == 0
    assert ran.err.startswith(f"sly-fox has no checkpoint; {NOTE}")


def test_run_comes_before_the_bundled_model(trained: Run, small: Checkpoint, run: Program) -> None:
    line = ["generate", "--length", "20", "--json"]
    assert json.loads(run(*line).out)["run"] == "sly-fox"
    assert run(*line).err == ""
    assert json.loads(run(*line, "--run", "grimm").out)["checkpoint_sha256"] == small.sha256
    # A run of an earlier version that has its name.
    trained.path.rename(trained.path.with_name("grimm"))
    record = json.loads(run(*line, "--run", "grimm").out)
    assert (record["run"], record["checkpoint_sha256"] == small.sha256) == ("grimm", False)
    assert str(trained.path.with_name("grimm")) in run("runs", "show", "grimm").out


@pytest.mark.usefixtures("small")
def test_new_run_cannot_have_its_name(run: Program) -> None:
    ran = run("train", "--corpus", "sampler", "--run", "grimm")
    assert (ran.code, ran.out, ran.err) == (2, "", "error: grimm is the bundled model: give another --run\n")
    with pytest.raises(UsageError, match="grimm is the bundled model"):
        create("grimm")
    model = grimmgen.fit(TEXTS, run="grimm", **TINY)
    assert model.name == "grimm-2"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("command", ["runs rm --yes", "runs path", "runs plot", "train --resume --run"])
def test_commands_of_runs_refuse_it(command: str, run: Program) -> None:
    ran = run(*command.split(), "grimm")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert ran.err.startswith("error: grimm is the bundled model, not a run: ")
    assert registry.PRETRAINED_PATH.exists()


@pytest.mark.usefixtures("small")
def test_it_is_shown_and_offered(run: Program) -> None:
    ran = run("runs", "show", "grimm")
    assert (ran.code, ran.err) == (0, "")
    for part in ("bundled model", str(registry.PRETRAINED_PATH), "2/1/1 stories", "9.50", "1.750"):
        assert part in ran.out
    shown = json.loads(run("runs", "show", "grimm", "--json").out)
    assert (shown["name"], shown["state"], shown["epochs"]) == ("grimm", "bundled", 4)
    assert run("runs", "show", "grimm", "--measure").code == 2
    assert "bundled model grimm" in run("runs", "list").err
    assert "did you mean grimm" in run("generate", "--run", "grim").err


@pytest.mark.usefixtures("small")
def test_it_is_exported_replayed_and_one_of_several(run: Program, tmp_path: Path) -> None:
    page, record = tmp_path / "page.html", tmp_path / "story.json"
    assert NOTE in run("export", "--html", str(page)).err
    line = ["generate", "--length", "40", "--random-seed", "2", "--json"]
    record.write_text(run(*line).out)
    assert run("generate", "--replay", str(record)).code == 0
    both = json.loads(run(*line, "--run", "grimm", "--run", str(page)).out)
    assert (both["run"], both["others"]) == ("grimm", [str(page)])


@pytest.mark.usefixtures("small")
def test_training_starts_from_it(run: Program, tales: Path) -> None:
    options = ["--batch-size", "4", "--unroll", "10", "--epochs", "1", "--preset", "tutorial"]
    ran = run("train", "--corpus", str(tales), "--from", "latest", "--run", "fox", *options)
    assert ran.code == 0
    assert NOTE in ran.err
    base = registry.find("fox").base()
    assert base is not None
    assert registry.find("fox").info()["base"]["name"] == "grimm"
    assert {n: w.tobytes() for n, w in base.weights.items()} == {
        n: w.tobytes() for n, w in registry.load_model("grimm").checkpoint.weights.items()
    }


@pytest.mark.usefixtures("small")
def test_its_own_tales_are_evaluated_where_they_are_at_hand(run: Program, tmp_path: Path) -> None:
    for command in (["eval"], ["eval", "--run", "grimm", "--novelty"], ["generate", "--max-copy", "40"]):
        ran = run(*command)
        assert (ran.code, ran.out) == (1, "")
        assert "run `grimmgen fetch --stories all`" in ran.err
    for name in ("001", "002", "003", "004"):
        (tmp_path / f"{name}.txt").write_text(f"the hen and the king {name}\n")
    scores = json.loads(run("eval", "--split", "test", "--corpus", str(tmp_path), "--json").out)
    assert [story["name"] for story in scores[0]["stories"]] == ["004"]
    assert run("eval", "--baseline", "--corpus", str(tmp_path), "--quiet").code == 0
    (tmp_path / "004.txt").unlink()
    assert run("eval", "--split", "test", "--corpus", str(tmp_path)).code == 2


def test_load_takes_it_and_says_so(small: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    model = grimmgen.load()
    assert (model.name, model.checkpoint.sha256, model.history) == ("grimm", small.sha256, [])
    assert [(r.levelno, NOTE in r.getMessage()) for r in caplog.records] == [(logging.WARNING, True)]
    caplog.clear()
    assert repr(grimmgen.load("grimm")) == repr(model)
    assert not caplog.records
    with pytest.raises(UsageError, match="no learning curve"):
        model.plot()


# --- a damaged install ---------------------------------------------------------------------------------------


def test_damaged_model_is_no_obstacle_to_a_run(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "PRETRAINED_PATH", trained.path / "gone.safetensors")
    assert registry.load_model().name == registry.load_model("sly-fox").name == "sly-fox"
    with pytest.raises(IntegrityError, match="reinstall grimmgen"):
        registry.load_model("grimm")
