"""The progress of a training on one line that is updated in place: below a cell of Jupyter, or on a terminal.

Elsewhere nothing is shown. The only importer of IPython.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from html import escape
from typing import Any, Protocol

from grimmgen.runs.events import Evaluated, Event, Finished, PlatformChanged, Recovered, Started, Stepped

# Seconds between two updates of what is displayed.
_INTERVAL = 0.2
# A larger share of unknown tokens is reported.
_MANY_UNKNOWN = 0.05


class Display:
    """Shows the events of a training."""

    def __init__(self) -> None:
        self._place = _place()
        self._shown = self._share = 0.0
        self._best = ""

    def begin(self) -> None:
        """Show that something happens, before PyTorch is imported and the text is read."""
        self._update("reading the text")

    def note(self, text: str) -> None:
        """Show a line that stays above the progress."""
        if self._place is not None:
            self._place.note(text)

    def show(self, event: Event) -> None:
        """Show an event."""
        match event:
            case Started():
                self._started = event
                if event.reason:
                    self.note(f"auto: {event.reason}")
                self._update(f"{event.run}: {event.parameters:,} parameters on {event.device}")
                if event.unknown > _MANY_UNKNOWN:
                    self.note(f"{event.unknown:.0%} of the tokens are <unk>: lower min_count for so short a text")
            case Stepped() if time.monotonic() >= self._shown + _INTERVAL:
                run, limits = self._started, self._started.configuration
                self._share = event.step / (limits.epochs * run.updates)
                limit = ""
                if limits.budget is not None:
                    self._share = max(self._share, event.seconds / limits.budget)
                    limit = f" of {limits.budget:.0f}"
                self._update(
                    f"{run.run}: epoch {event.epoch}, {event.seconds:.0f}{limit} s, perplexity"
                    f" {event.perplexity:.2f}{self._best}"
                )
            case Evaluated() if event.best:
                self._best = f", validation {event.perplexity:.2f} at epoch {event.epoch}"
            case Finished():
                self._finish(event)
            case Recovered():
                self.note(f"{event.error}: resuming from the checkpoint before, of update {event.step}")
            case PlatformChanged():
                changes = (f"{name} {value} → {event.after[name]}" for name, value in event.before.items())
                self.note(f"not bit-equal to a run that never stopped: {', '.join(changes)}")
            case _:
                pass

    def close(self) -> None:
        """Let other output follow below what is shown."""
        if self._place is not None:
            self._place.close()

    def _finish(self, event: Finished) -> None:
        name, best = self._started.run, "no evaluation yet"
        if event.best_perplexity is not None:
            best = f"best validation perplexity {event.best_perplexity:.2f} at epoch {event.best_epoch}"
        self._share = self._share if event.reason == "interrupted" else 1.0
        why = {
            "interrupted": f"; interrupted and saved, continue with fit(resume=True, run={name!r})",
            "patience": f"; not improved since, stopped after epoch {event.epoch}",
        }.get(event.reason, "")
        if self._place is not None:
            self._place.end(f"{name}: {best}, {event.seconds:.0f} s{why}", self._share)

    def _update(self, text: str) -> None:
        self._shown = time.monotonic()
        if self._place is not None:
            self._place.update(text, self._share)


class _Place(Protocol):
    """Where progress is shown: lines that stay, and one below them that is replaced."""

    def note(self, text: str) -> None: ...

    def update(self, text: str, share: float) -> None: ...

    def end(self, text: str, share: float) -> None: ...

    def close(self) -> None: ...


class _Cell:
    """Below a cell of Jupyter; in a format without HTML without the bar."""

    def __init__(self) -> None:
        from IPython.display import display

        self._notes: list[str] = []
        self._text, self._share = "", 0.0
        self._handle: Any = display(self._content(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

    def note(self, text: str) -> None:
        self._notes.append(text)
        self.update(self._text, self._share)

    def update(self, text: str, share: float) -> None:
        self._text, self._share = text, share
        self._handle.update(self._content(), raw=True)

    def end(self, text: str, share: float) -> None:
        self.update(text, share)

    def close(self) -> None:
        pass

    def _content(self) -> dict[str, str]:
        lines = [
            *map(escape, self._notes),
            f'<progress value="{self._share:.3f}"></progress> {escape(self._text)}',
        ]
        return {"text/plain": "\n".join([*self._notes, self._text]), "text/html": "<br>".join(lines)}


class _Terminal:
    """Standard error, without escape codes; names of files are shown without control characters."""

    def __init__(self) -> None:
        self._width = 0

    def note(self, text: str) -> None:
        self._write(f"{_printable(text)}\n")
        self._width = 0

    def update(self, text: str, share: float) -> None:
        text = _printable(f"{share:4.0%}  {text}")[: shutil.get_terminal_size().columns - 1]
        self._write(text)
        self._width = len(text)

    def end(self, text: str, share: float) -> None:
        del share
        self.note(text)

    def close(self) -> None:
        if self._width:
            sys.stderr.write("\n")

    def _write(self, text: str) -> None:
        # Over the line before, to its end.
        sys.stderr.write(f"\r{text.rstrip(chr(10)):{self._width}}" + "\n" * text.endswith("\n"))
        sys.stderr.flush()


def _place() -> _Place | None:
    # Where IPython is not imported, this is no notebook.
    if sys.modules.get("IPython") is not None:
        from IPython import get_ipython

        if hasattr(get_ipython(), "kernel"):
            return _Cell()
    if sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        return _Terminal()
    return None


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
