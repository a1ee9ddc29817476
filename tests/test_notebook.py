"""Jupyter: progress in one place, figures, no escape codes, and the notebook of docs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import grimmgen
from grimmgen import notebook
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.runs.events import Event, Stepped
from tests.program import PROGRAM, on_terminal

IPython = pytest.importorskip("IPython")
NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"
OPTIONS: dict[str, Any] = {"hidden": 8, "batch_size": 4, "unroll": 10, "min_count": 9, "epochs": 2}

Shown = list[dict[str, str]]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a cell of Jupyter shows, one entry for each update in its only place."""
    updates: Shown = []

    class Shell:
        kernel = None

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            updates.append(data)

    def display(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert (raw, display_id, updates) == (True, True, [])
        updates.append(data)
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setattr(IPython.display, "display", display)
    monkeypatch.setattr(notebook, "_INTERVAL", 0.0)
    return updates


@pytest.mark.slow
def test_training_is_shown_in_one_place(shown: Shown, tales: Path) -> None:
    finished = notebook.follow(grimmgen.train(str(tales), run="sly-owl", **OPTIONS))
    assert finished.reason == "epochs"
    first, started, *steps, last = (data["text/plain"] for data in shown)
    assert (first, started) == ("", "sly-owl: 3,404 parameters on cpu")
    assert len(steps) == 222
    assert steps[0].startswith("sly-owl: epoch 1, update 1 of 111, training perplexity 7")
    best = f"best validation perplexity {finished.best_perplexity:.2f} (epoch {finished.best_epoch})"
    assert last.startswith(f"sly-owl: 222 updates, {best}, ")
    assert all("\x1b" not in text and "\n" not in text for data in shown for text in data.values())
    bars = [data["text/html"].split(" ", 2)[1] for data in shown[2:]]
    assert (bars[0], bars[-1]) == ('value="0.005"></progress>', 'value="1.000"></progress>')


def test_interrupt_saves_and_stops_the_notebook(shown: Shown, tales: Path) -> None:
    saved = []

    def events() -> Iterator[Event]:
        try:
            for event in grimmgen.train(str(tales), run="sly-owl", **OPTIONS):
                yield event
                if isinstance(event, Stepped) and event.step == 3:
                    signal.raise_signal(signal.SIGINT)
        except GeneratorExit:
            saved.append(event)
            raise

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        notebook.follow(events())
    assert signal.getsignal(signal.SIGINT) == before
    assert [event.step for event in saved] == [4]
    assert shown[-1]["text/plain"].endswith("; saved, resume with: grimmgen train --resume --run sly-owl")


def test_names_are_escaped_in_html(shown: Shown) -> None:
    # Fault 52.
    line = notebook._Line()
    line._display("<script>alert(1)</script> & more")
    assert shown[-1]["text/html"].endswith("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more")


def test_outside_jupyter_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for shell in (None, object()):
        monkeypatch.setattr(IPython, "get_ipython", lambda found=shell: found)
        with pytest.raises(UsageError, match="iterate over the events"):
            notebook.follow(iter([]))
    monkeypatch.setitem(sys.modules, "IPython", None)
    with pytest.raises(UsageError, match="this is not Jupyter"):
        notebook.follow(iter([]))


@pytest.mark.usefixtures("trained")
def test_learning_curve_is_a_figure_that_jupyter_displays() -> None:
    pytest.importorskip("matplotlib")
    drawn: Any = notebook.plot("sly-fox", over="seconds")
    assert drawn.axes[0].get_xlabel() == "seconds of training"
    assert drawn._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(GrimmgenError, match="there is no run owl"):
        notebook.plot("owl")


@pytest.mark.slow
@pytest.mark.usefixtures("trained")
def test_command_in_a_cell_has_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 18. The variables are those that Jupyter sets for `!grimmgen …`, which runs on a terminal.
    for name in ("JPY_PARENT_PID", "FORCE_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.setenv(name, "1")
    for command in (
        ["train", "--resume", "--epochs", "3"],
        ["runs", "show"],
        ["generate", "--length", "9"],
        ["x"],
    ):
        ran = on_terminal(*PROGRAM, *command)
        assert "\x1b" not in ran.out
        assert "\r" not in ran.out
        assert ran.out


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
        assert "updates, best validation perplexity" in content
