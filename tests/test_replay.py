"""`grimmgen generate --replay`: a recorded story is reproduced, or the message says what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from grimmgen.network import backends
from grimmgen.runs.registry import Run
from tests.builders import tiny_checkpoint
from tests.program import Ran, shell

Program = Callable[..., Ran]
Recorder = Callable[..., dict[str, Any]]


@pytest.fixture
def record(trained: Run, run: Program, tmp_path: Path) -> Recorder:
    """Record a story, with these changes to the record, in record.json."""

    def record(*arguments: str, **changes: Any) -> dict[str, Any]:
        value: dict[str, Any] = json.loads(run("generate", "--json", "--length", "60", *arguments).out)
        value |= changes
        (tmp_path / "record.json").write_text(json.dumps(value))
        return value

    assert trained.name == "sly-fox"
    return record


@pytest.fixture
def replay(run: Program, tmp_path: Path) -> Program:
    return lambda *arguments: run("generate", "--replay", str(tmp_path / "record.json"), *arguments)


def failed(ran: Ran, code: int, *parts: str) -> bool:
    """Whether it ended with this code, one line that has these parts, and nothing on standard output."""
    return (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1) and all(part in ran.err for part in parts)


@pytest.mark.parametrize(
    "options",
    [
        "",
        "--seed th --top-p 0.8 --temperature 1.5 --state zeros",
        "--seed King --beam-width 3 --beam-depth 4",
        "--max-copy 9",
        "--until forest",
        "--seed-file /dev/null --greedy",
    ],
)
def test_recorded_story_is_reproduced(options: str, record: Recorder, replay: Program) -> None:
    recorded = record(*options.split())
    ran = replay()
    assert (ran.code, ran.out) == (0, recorded["text"] + "\n")
    assert ran.err.endswith("record.json is reproduced\n")
    assert json.loads(replay("--json").out) == recorded
    assert replay("--quiet") == (0, ran.out, "")


@pytest.mark.usefixtures("trained")
def test_several_records_are_replayed_from_a_pipe() -> None:
    command = "grimmgen generate --stories 2 --length 30 --random-seed 1"
    written = shell(command)
    ran = shell(f"{command} --json | grimmgen generate --replay -")
    assert (ran.code, ran.out) == (0, written.out)
    assert ran.err == "standard input is reproduced\n"


@pytest.mark.parametrize("change", ["replaced", "cut", "appended", "ending"])
def test_changed_record_is_exit_3(change: str, record: Recorder, replay: Program) -> None:
    text = record("--random-seed", "3")["text"]
    changed, position = {
        "replaced": ({"text": f"{text[:4]}~{text[5:]}"}, 5),
        "cut": ({"text": text[:4]}, 5),
        "appended": ({"text": f"{text}~"}, len(text) + 1),
        "ending": ({"ending": "until"}, len(text) + 1),
    }[change]
    record("--random-seed", "3", **changed)
    parts = f"the story differs from character {position} on", "the record was changed"
    assert failed(replay(), 3, *parts)
    assert failed(replay("--json"), 3, *parts)


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("checkpoint_sha256", "ee", ["the checkpoint differs (ee, here ", "give the recorded checkpoint with --run"]),
        ("grimmgen", "0.0.1", ["the version of grimmgen differs (0.0.1, here ", "install grimmgen 0.0.1"]),
        ("numpy", "0.0.1", ["the version of NumPy differs (0.0.1, here ", "install numpy 0.0.1"]),
        ("platform", "Plan9 mips", ["the platform differs (Plan9 mips, here ", "replay it on Plan9 mips"]),
        ("backend", "abacus", ["the backend differs (abacus, here ", "set GRIMMGEN_KERNEL=abacus"]),
    ],
)  # fmt: skip
def test_what_else_differs_is_named(
    name: str, value: str, parts: list[str], record: Recorder, replay: Program
) -> None:
    text = record(**{name: value})["text"]
    ran = replay()
    assert (ran.code, ran.out) == (0, text + "\n")
    assert f"is reproduced, although {parts[0]}" in ran.err
    record(**{name: value, "text": "another story"})
    assert failed(replay(), 3, *parts)


def test_checkpoint_that_was_trained_further_is_named(record: Recorder, replay: Program, trained: Run) -> None:
    record("--length", "200")
    other = tiny_checkpoint(run=trained.name, min_count=1)
    other.write(trained.best_path)
    assert failed(replay(), 3, "the checkpoint differs", "give the recorded checkpoint with --run")


def test_another_backend_gives_the_same_story_or_is_named(
    record: Recorder, replay: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = record()
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert recorded["backend"] == backends.stepper_kernel("mogrifier") or "the backend differs" in replay().err


def test_record_of_version_0_1_says_less(record: Recorder, replay: Program, tmp_path: Path) -> None:
    value = record(text="another story")
    for name in ("numpy", "platform", "backend"):
        del value[name]
    (tmp_path / "record.json").write_text(json.dumps(value))
    assert failed(
        replay(), 3, "does not say the backend nor the platform nor the version of NumPy", "where it was generated"
    )


def test_model_of_a_record_can_be_given(record: Recorder, replay: Program, trained: Run, tmp_path: Path) -> None:
    text = record(run="old-owl")["text"]
    assert failed(replay(), 2, "there is no run old-owl", "give its model with --run")
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(trained.best_path.read_bytes())
    for model in ("sly-fox", str(copy)):
        assert replay("--run", model).out == text + "\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "has no record"),
        (b"3", "is not the record of a story"),
        (b'{"run": "sly-fox", "prompt": "", "text": ""}', "is not the record of a story"),
        (b'[{"run": ["x"], "prompt": "", "text": "", "decoding": {}}]', "is not the record of a story"),
        (b'{"run": "x", "prompt": "", "text": "", "decoding": {"topk": 3}}', "unknown option 'topk'"),
        (b'{"run": "x", "prompt": "", "text": "", "decoding": {"top_k": "3"}}', "top_k has the wrong type"),
        (b'{"run": "x", "prompt": "", "text": "", "decoding": {"top_p": 2.0}}', "--top-p 2 is out of range"),
    ],
)
def test_file_that_is_no_record_is_exit_3(content: bytes, part: str, replay: Program, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(content)
    assert failed(replay(), 3, part)


@pytest.mark.parametrize(
    "options", ["--seed king", "--top-k 3", "--stories 2 --novelty", "--random-seed 1", "PROMPT"]
)
def test_options_beside_a_record_are_refused(options: str, replay: Program, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_bytes(b"{}")
    assert failed(replay(*options.split()), 2, f"{options.split()[0]}", "cannot be given with --replay")


def test_missing_record_is_exit_1(replay: Program) -> None:
    assert failed(replay(), 1, "cannot read", "record.json")


def test_endless_record_ends_with_its_text(record: Recorder, replay: Program) -> None:
    decoding = record()["decoding"]
    record(decoding={**decoding, "length": 10**9}, text="the")
    assert failed(replay(), 3, "the story differs from character")
