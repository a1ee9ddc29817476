"""Training and learning curves in Jupyter: progress in one place of the cell, and figures.

    from grimmgen import notebook
    notebook.follow(grimmgen.train("sampler", epochs=3))
    notebook.plot()

The only importer of IPython.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from html import escape
from types import FrameType
from typing import TYPE_CHECKING, Any

from grimmgen.errors import UsageError
from grimmgen.runs import curves, registry
from grimmgen.runs.curves import Over
from grimmgen.runs.events import Evaluated, Event, Finished, Started, Stepped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Seconds between two updates of what is displayed.
_INTERVAL = 0.2


def follow(events: Iterator[Event]) -> Finished:
    """Show the progress of a training below the cell, on one line that is updated.

    Interrupting the kernel finishes the update, saves, and stops the notebook.

    Args:
        events: of `grimmgen.train` or `Training.events`.

    Returns:
        The last event.

    Raises:
        UsageError: this is not Jupyter.
        GrimmgenError: see `grimmgen.train`.
    """
    line = _Line()
    with _interruptible() as interrupted:
        for event in events:
            line.show(event)
            if isinstance(event, Finished):
                return event
            if interrupted:
                if close := getattr(events, "close", None):
                    close()  # saves
                line.stop()
                raise KeyboardInterrupt
    raise AssertionError("training ends with Finished")


def plot(*runs: str, over: Over = "steps") -> Figure:
    """Draw the learning curves of runs, as `grimmgen runs plot` does.

    Args:
        runs: names; the latest run without one.
        over: the horizontal axis, `steps` or `seconds`.

    Returns:
        A figure of matplotlib, which Jupyter displays if it is the value of the cell.

    Raises:
        GrimmgenError: there is no such run, it has no evaluation yet, or matplotlib is not installed.
    """
    found = [registry.find(name) for name in runs or [registry.LATEST]]
    return curves.figure([curves.read(run) for run in found], over)


class _Line:
    """What is displayed: a progress bar and a line of figures; in a format without HTML the line alone.

    Raises:
        UsageError: this is not Jupyter.
    """

    def __init__(self) -> None:
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            shell = None
        else:
            shell = get_ipython()
        if not hasattr(shell, "kernel"):
            raise UsageError("this is not Jupyter", "iterate over the events of grimmgen.train instead")
        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        self._shown = self._share = 0.0
        self._best = self._text = ""

    def show(self, event: Event) -> None:
        """Display an event."""
        match event:
            case Started():
                self._started = event
                self._display(f"{event.run}: {event.parameters:,} parameters on {event.device}")
            case Stepped() if time.monotonic() >= self._shown + _INTERVAL:
                run, limits = self._started, self._started.configuration
                self._share = event.step / (limits.epochs * run.updates)
                if limits.budget is not None:
                    self._share = max(self._share, event.seconds / limits.budget)
                self._display(
                    f"{run.run}: epoch {event.epoch}, update {event.update} of {run.updates}, training perplexity"
                    f" {event.perplexity:.2f}{self._best}, {event.seconds:.0f} s"
                )
            case Evaluated() if event.best:
                self._best = f", best validation perplexity {event.perplexity:.2f} (epoch {event.epoch})"
            case Finished():
                self._share = 1.0
                self._display(f"{self._started.run}: {event.step} updates{self._best}, {event.seconds:.0f} s")
            case _:
                pass

    def stop(self) -> None:
        """Display that the training was interrupted, and is saved."""
        self._display(f"{self._text}; saved, resume with: grimmgen train --resume --run {self._started.run}")

    def _display(self, text: str) -> None:
        self._text, self._shown = text, time.monotonic()
        bar = f'<progress value="{self._share:.3f}"></progress>'
        self._handle.update({"text/plain": text, "text/html": f"{bar} {escape(text)}"}, raw=True)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
    """Collect interrupts of the kernel in a list instead of raising KeyboardInterrupt."""
    received: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, before)
