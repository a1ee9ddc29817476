"""Progress of a training in one place: below a cell of Jupyter, on a terminal, and nowhere else."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import grimmgen
from grimmgen import display
from grimmgen.display import Display
from grimmgen.runs.events import Finished
from tests.builders import TEXTS, TINY

Shown = list[dict[str, str]]


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What a cell of Jupyter shows, one entry for each update in its only place."""
    updates: Shown = []
    IPython = pytest.importorskip("IPython")

    class Shell:
        kernel = None

    class Handle:
        def update(self, data: dict[str, str], raw: bool) -> None:
            assert raw
            updates.append(data)

    def show(data: dict[str, str], raw: bool, display_id: bool) -> Handle:
        assert (raw, display_id, updates) == (True, True, [])
        updates.append(data)
        return Handle()

    monkeypatch.setattr(IPython, "get_ipython", Shell)
    monkeypatch.setattr(IPython.display, "display", show)
    monkeypatch.setattr(display, "_INTERVAL", 0.0)
    return updates


def test_training_is_shown_in_one_place_of_a_cell(shown: Shown, tales: Path) -> None:
    model = grimmgen.fit(tales, run="sly-owl", **(TINY | {"preset": "auto"}))
    steps = [data for data in shown if "sly-owl: epoch 1, " in data["text/plain"]]
    assert len(steps) == grimmgen.load().checkpoint.provenance["step"]
    assert shown[1]["text/plain"] == "reading the text"
    read, choice, last = shown[-1]["text/plain"].splitlines()  # the first ones stay above
    assert read.startswith("30 documents, ")
    assert choice.startswith("auto: for ")
    best = f"sly-owl: best validation perplexity {model.history[0]['perplexity']:.2f} at epoch 1, "
    assert last.startswith(best)
    assert all("\x1b" not in text for data in shown for text in data.values())
    assert 'value="0.0' in steps[0]["text/html"]
    assert 'value="1.000"></progress>' in shown[-1]["text/html"]


def test_names_are_escaped_in_html(shown: Shown) -> None:
    # Fault 52.
    Display().note("<script>alert(1)</script> & more")
    assert shown[-1]["text/html"].startswith("&lt;script&gt;alert(1)&lt;/script&gt; &amp; more<br>")


def test_training_is_shown_on_one_line_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "_INTERVAL", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    grimmgen.fit(["", *TEXTS], run="sly-owl", **TINY)
    Display().note("a\x1b[2Jb")  # fault 40
    text = terminal.getvalue()
    assert "\x1b" not in text
    assert "a\\x1b[2Jb\n" in text
    *lines, last, _, end = text.split("\n")
    assert [line.split("\r")[-1].rstrip() for line in lines] == ["36 texts; 1 without text left out"]
    overwritten = last.split("\r")
    assert all(len(part) < 40 for part in overwritten[:-1])
    assert "epoch 1" in overwritten[-2]
    assert overwritten[-1].startswith("sly-owl: best validation perplexity")
    assert end == ""


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()])
def test_nothing_is_shown_elsewhere(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO) -> None:
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(sys, "stderr", stream)
    grimmgen.fit(TEXTS, **TINY)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("reason", "end"),
    [
        ("interrupted", "continue with fit(resume=True, run='sly-owl')"),
        ("patience", "stopped after epoch 1"),
    ],
)
def test_end_of_a_training_is_explained(shown: Shown, reason: Any, end: str) -> None:
    progress = Display()
    for event in grimmgen.train(TEXTS, run="sly-owl", **TINY):
        progress.show(replace(event, reason=reason) if isinstance(event, Finished) else event)
    assert shown[-1]["text/plain"].endswith(end)


def test_nothing_of_ipython_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", None)
    shown: Any = Display()
    shown.begin()
    assert shown._place is None
