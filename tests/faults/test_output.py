"""Output: no control characters, bounded, one line for an error (faults 38-44)."""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.cli import console
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run
from tests.builders import tiny_checkpoint
from tests.program import Ran, on_terminal, shell

Program = Callable[..., Ran]

WILD = "\x1b]0;owned\x07\x9b2J\r\u202e\u2066\u061c[red]:boom:[/]"


def test_fault_40_no_control_character_is_left() -> None:
    steering = {"Cc", "Cf", "Cs", "Zl", "Zp"}
    everything = "".join(map(chr, range(0x110000)))
    left = {character for character in console.safe(everything) if unicodedata.category(character) in steering}
    # Tab, line end, and marks of Arabic, Kaithi, hieroglyphs, shorthand and music, which do not affect direction.
    assert {character for character in left if character < "\u0600"} == {"\t", "\n"}
    assert {unicodedata.bidirectional(character) for character in left} <= {"S", "B", "AN", "AL", "L", "BN"}
    assert not left & set("\u061c\u180e\u200b\u200e\u200f\u2028\u202e\u2060\u2066\u2069\ufeff\U000e0041")


def hostile(path: Path) -> Path:
    """A checkpoint with control characters in every text."""
    plain = tiny_checkpoint(True)
    provenance = {"run": WILD, "corpus": WILD, "versions": {WILD: WILD}, "step": WILD}
    Checkpoint(plain.configuration, plain.vocabulary, provenance, plain.weights).write(path)
    return path


@pytest.mark.slow
def test_fault_40_foreign_names_never_reach_a_terminal_raw(trained: Run, tmp_path: Path, run: Program) -> None:
    directory = tmp_path / WILD.replace("/", "")
    directory.mkdir()
    for number in range(30):
        (directory / f"{number} {WILD.replace('/', '')}.txt").write_text(f"the king {WILD} and the fox " * 30)
    model = hostile(directory / "x.safetensors")
    info = trained.info()
    for name in ("command", "created"):
        info[name] = WILD
    info["corpus"]["name"] = WILD
    info["versions"] = {WILD: WILD}
    (trained.path / "run.json").write_text(json.dumps(info))
    commands = [
        ["vocab", "--corpus", str(directory)],
        ["eval", str(directory / f"0 {WILD.replace('/', '')}.txt"), "--run", str(model)],
        ["generate", "--run", str(model), "--seed", WILD],
        ["runs", "list"],
        ["runs", "show"],
        ["runs", "show", "--json"],
        ["generate", "--run", str(directory / "gone.safetensors")],
        ["train", "--run", WILD, "--corpus", str(directory)],
    ]
    run_each = f"from grimmgen.cli import _run\nfor command in {commands}: print('ran', _run(command), flush=True)"
    shown = on_terminal(sys.executable, "-c", run_each).out
    codes = [int(code) for code in re.findall(r"^ran (\d+)$", shown, re.MULTILINE)]
    # ESC occurs only in rich's own colour codes.
    assert "owned\x07" not in shown
    assert not set(shown) & set("\x07\x9b\u202e\u2066\u061c")
    assert "\x1b]" not in shown
    for command, code in zip(commands, codes, strict=True):
        piped = run(*command)
        assert piped.code == code
        assert piped.code in {0, 1, 2}, piped.err
        assert "\x1b" not in piped.err, command
        assert "[red]" in piped.out + piped.err or command[0] not in {"generate", "train"}, command


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_fault_39_a_lost_error_message_keeps_its_exit_code(redirection: str) -> None:
    assert shell(f"grimmgen generate --run nobody {redirection}") == (2, "", "")


def test_fault_39_an_error_is_printed_without_rich(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rich.text", "rich.console"):
        monkeypatch.setitem(sys.modules, name, None)
    line = "error: there is no run nobody: train one with `grimmgen train`\n"
    assert run("generate", "--run", "nobody") == (2, "", line)


def test_fault_41_a_prompt_of_100_megabytes_is_refused(trained: Run, run: Program) -> None:
    ran = run("generate", "--run", trained.name, "--seed", "-", stdin=b"the king " * (100 << 17))
    assert ran == (2, "", "error: standard input is longer than 1 MB: give the last part of it\n")


@pytest.mark.parametrize(
    ("value", "traceback"), [("1", True), ("true", True), ("0", False), ("no", False), ("", False)]
)
def test_fault_44_a_variable_enables_tracebacks(
    value: str, traceback: bool, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(registry, "all_runs", fail)
    monkeypatch.setenv("GRIMMGEN_DEBUG", value)
    ran = run("runs", "list")
    assert ran.code == 70
    assert ("Traceback" in ran.err) == traceback


def test_faults_40_and_44_a_traceback_has_no_control_characters(run: Program) -> None:
    printed = run("--debug", "generate", "--run", f"/{WILD}.safetensors").err
    assert "Traceback" in printed
    assert {character for character in printed if not character.isprintable()} == {"\n"}
