"""Jupyter: commands in a cell have no escape codes, and the notebook of docs runs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.program import PROGRAM, on_terminal

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_command_in_a_cell_has_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 18. The variables are those of `!grimmgen …`, which runs on a terminal: Jupyter sets the first one, and a
    # kernel that an editor has started only the others.
    kernel = {"FORCE_COLOR": "1", "CLICOLOR": "1", "CLICOLOR_FORCE": "1", "PAGER": "cat", "GIT_PAGER": "cat"}
    for name, value in kernel.items():
        monkeypatch.setenv(name, value)
    for variables, command in (
        ("TERM=xterm-color", ["train", "--resume", "--epochs", "4"]),
        ("JPY_PARENT_PID=1", ["runs", "show"]),
        ("JPY_PARENT_PID=1", ["x"]),
    ):
        ran = on_terminal("env", variables, *PROGRAM, *command)
        assert "\x1b" not in ran.out
        assert "\r" not in ran.out
        assert ran.out
        if command[0] == "train":
            assert len(re.findall(r"^epoch +[34] .*validation", ran.out, re.MULTILINE)) == 2


def outputs(content: str) -> list[list[str]]:
    """The kinds of each code cell's outputs, without those of the notebook's own text."""
    cells = [cell for cell in json.loads(content)["cells"] if cell["cell_type"] == "code"]
    return [
        sorted([*o.get("data", {}), *([o["name"]] if "name" in o else [])]) for c in cells for o in c["outputs"]
    ]


@pytest.mark.slow
def test_notebook_of_docs_runs_and_shows_its_output() -> None:
    for module in ("nbconvert", "ipykernel", "matplotlib"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--stdout", str(NOTEBOOK)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ran.returncode == 0, ran.stderr
    shown = NOTEBOOK.read_text(encoding="utf-8")
    assert outputs(ran.stdout) == outputs(shown)
    assert ["image/png", "text/plain"] in outputs(shown)
    for content in (ran.stdout, shown):
        assert "\\u001b" not in content
        assert ": best validation perplexity" in content
