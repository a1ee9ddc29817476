"""Completions: the shipped scripts work in each installed shell and are up to date."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.program import Ran, on_terminal

COMPLETIONS = Path(__file__).parent.parent / "completions"
NAMES = ("grimmgen.bash", "_grimmgen", "grimmgen.fish")


@pytest.fixture(autouse=True)
def program(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`grimmgen` on the PATH, in a home without settings, with two runs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "grimmgen").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m grimmgen "$@"\n')
    (programs / "grimmgen").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("sly-fox", "sly-owl"):
        (home / "data" / "runs" / name).mkdir(parents=True)


def answer(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def bash(*words: str) -> list[str]:
    ask = (
        'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _grimmgen_completion grimmgen;'
        ' printf "%s\\n" "${COMPREPLY[@]}"'
    )
    return answer("bash", "--norc", "-c", ask, str(COMPLETIONS / "grimmgen.bash"), *words).split()


def zsh(*words: str) -> list[str]:
    # Without a line editor, print the candidates.
    ask = (
        "compdef() {}; _arguments() { print -r -- $1 }; _files() {}; source $1; shift;"
        ' words=("$@") CURRENT=$#; _grimmgen_completion'
    )
    offered = answer("zsh", "-f", "-c", ask, "zsh", str(COMPLETIONS / "_grimmgen"), *words)
    return re.findall(r'(?:\(\(| )"([^"]*)"', offered)


def fish(*words: str) -> list[str]:
    ask = f"source {COMPLETIONS / 'grimmgen.fish'}; complete -C '{' '.join(words)}'"
    return [line.split("\t")[0] for line in answer("fish", "--no-config", "-c", ask).splitlines()]


# Words to complete, and what is offered. Each shell is tested with the first ones.
OFFERED = [
    ("tr", ["train"]),
    ("runs show ", ["grimm", "sly-fox", "sly-owl"]),
    ("generate --until p", ["page", "paragraph"]),
    ("runs rm ", ["sly-fox", "sly-owl"]),
    ("runs rm sly-fox sly-o", ["sly-owl"]),
    ("generate --run ", ["grimm", "sly-fox", "sly-owl"]),
    ("train --from g", ["grimm"]),
    ("train --init x", ["xavier"]),
    ("train --corpus sam", ["sampler"]),
    ("train --device c", ["cpu", "cuda"]),
]


@pytest.mark.parametrize(("line", "offered"), OFFERED)
def test_candidates_are_those_of_the_program(
    line: str, offered: list[str], run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the script for Bash asks for them.
    words = ["grimmgen", *line.split(" ")]
    monkeypatch.setenv("_GRIMMGEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "\n".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert sorted(run().out.split()) == offered


@pytest.mark.parametrize(("line", "offered"), OFFERED[:3])
@pytest.mark.parametrize("shell", [bash, zsh, fish], ids=lambda shell: shell.__name__)
def test_tab_completes(shell: Callable[..., list[str]], line: str, offered: list[str]) -> None:
    if shutil.which(shell.__name__) is None:
        pytest.skip(f"no {shell.__name__} here")
    assert sorted(shell("grimmgen", *line.split(" "))) == offered


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
@pytest.mark.slow
@pytest.mark.parametrize("reading", [f"fpath=({COMPLETIONS} $fpath)", ""], ids=["from $fpath", "sourced"])
def test_the_first_tab_and_the_next_complete_in_zsh(tmp_path: Path, reading: str) -> None:
    source = "" if reading else f"source {COMPLETIONS / '_grimmgen'}"
    (tmp_path / ".zshrc").write_text(
        f"PS1='ready> '\n{reading}\nautoload -Uz compinit; compinit -u -D\n{source}\n"
    )
    (tmp_path / ".zshenv").write_text("unsetopt GLOBAL_RCS\n")
    lines = b"grimmgen runs path sly-f\t\n", b"grimmgen runs path sly-o\t\n", b"exit\n"
    shown = on_terminal("zsh", "-i", typed=[(b"ready> ", line) for line in lines])
    assert [name for name in ("sly-fox", "sly-owl") if f"/data/runs/{name}\n" in shown.out] == [
        "sly-fox",
        "sly-owl",
    ]


@pytest.mark.slow
def test_completion_scripts_are_up_to_date(tmp_path: Path) -> None:
    generate = Path(shutil.copy(COMPLETIONS / "generate.py", tmp_path))
    assert answer(sys.executable, str(generate)).splitlines() == [f"wrote completions/{name}" for name in NAMES]
    for name in NAMES:
        assert (tmp_path / name).read_bytes() == (COMPLETIONS / name).read_bytes()
    assert answer(sys.executable, str(generate), "--check") == ""
    (tmp_path / "_grimmgen").write_text("old")
    (tmp_path / "grimmgen.fish").unlink()
    checked = subprocess.run(
        [sys.executable, str(generate), "--check"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (1, "")
    assert checked.stderr.splitlines() == [
        f"completions/{name} is stale: run `python completions/generate.py`"
        for name in ("_grimmgen", "grimmgen.fish")
    ]
    assert (tmp_path / "_grimmgen").read_text() == "old"
