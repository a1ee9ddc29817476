"""Learning curves: read from the log of a run, and plotted for a paper.

The only importer of matplotlib. Knows runs and their logs, and nothing of terminals.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.runs.registry import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Over = Literal["steps", "seconds"]

FORMATS = ("svg", "png", "pdf")
# The colours of Okabe and Ito (2008), safe for colour-blind readers; without yellow, which is too pale on paper.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")


@dataclass(frozen=True)
class Curve:
    """The evaluations of a run in order; each tuple but `decays` has one number per evaluation.

    Attributes:
        run: name of the run.
        steps: updates before the evaluation.
        seconds: seconds of training before the evaluation.
        training: perplexity of the training set over the epoch, with dropout.
        validation: perplexity of the validation set.
        decays: indices of the evaluations after which the learning rate decayed.
    """

    run: str
    steps: tuple[int, ...]
    seconds: tuple[float, ...]
    training: tuple[float, ...]
    validation: tuple[float, ...]
    decays: tuple[int, ...]

    @property
    def best(self) -> int:
        """Index of the evaluation with the lowest perplexity."""
        return self.validation.index(min(self.validation))

    def over(self, axis: Over) -> tuple[float, ...]:
        """Return the steps or the seconds."""
        return self.steps if axis == "steps" else self.seconds


def read(run: Run) -> Curve:
    """Read the learning curve of a run; it may be empty.

    Raises:
        IntegrityError: the log is damaged.
    """
    log = run.log()
    scores = [event for event in log if event.get("event") == "evaluated"]
    try:
        decayed = {event["step"] for event in log if event.get("event") == "rate decayed"}
        steps = [0.0]
        for event in scores:
            steps.append(_between(steps[-1], event["step"], 1 << 53))
        return Curve(
            run.name,
            tuple(map(int, steps[1:])),
            tuple(_between(0, event["seconds"], 1e15) for event in scores),
            # No perplexity is zero or nan, and neither has a logarithm.
            tuple(_between(1e-308, event["training_perplexity"], 1e308) for event in scores),
            tuple(_between(1e-308, event["perplexity"], 1e308) for event in scores),
            tuple(number for number, event in enumerate(scores) if event["step"] in decayed),
        )
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(
            f"the log of the run {run.name} is damaged",
            f"remove the run with `grimmgen runs rm {run.name}`",
        ) from None


def figure(curves: Sequence[Curve], over: Over = "steps") -> Figure:
    """Draw the validation and training perplexity of runs, with the best evaluation and the decays marked.

    Args:
        curves: at least one.
        over: the horizontal axis.

    Returns:
        A figure of matplotlib, which Jupyter displays.

    Raises:
        GrimmgenError: matplotlib is not installed, or a run has no evaluation yet.
    """
    if empty := [curve.run for curve in curves if not curve.steps]:
        raise GrimmgenError(
            f"the run {empty[0]} has no evaluation yet", "wait for the first one, or leave the run out"
        )
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    except ImportError:
        raise GrimmgenError(
            "plotting needs matplotlib, which is not installed", "pip install 'grimmgen[plot]'"
        ) from None

    class _Figure(Figure):
        def _repr_png_(self) -> bytes:
            # Jupyter itself displays only the figures of pyplot.
            content = io.BytesIO()
            self.savefig(content, format="png", dpi=120)
            return content.getvalue()

    with mpl.rc_context({"font.size": 10}):
        drawn = _Figure(figsize=(6.4, 4.0), layout="constrained")
        axes = drawn.subplots()
        for number, curve in enumerate(curves):
            x, colour = curve.over(over), _COLOURS[number % len(_COLOURS)]
            single: dict[str, Any] = {"marker": "o", "markersize": 3} if len(x) == 1 else {}
            axes.plot(x, curve.training, color=colour, linewidth=0.8, linestyle=(0, (4, 2)), **single)
            axes.plot(x, curve.validation, color=colour, linewidth=1.6, label=curve.run, **single)
            decays = [x[k] for k in curve.decays], [curve.validation[k] for k in curve.decays]
            axes.plot(*decays, color=colour, marker=7, linestyle="none")
            axes.plot(x[curve.best], curve.validation[curve.best], color=colour, marker="*", markersize=9)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("updates" if over == "steps" else "seconds of training")
        axes.set_ylabel("perplexity per token")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        for style, label in (((0, (4, 2)), "training"), ("-", "validation")):
            axes.plot(
                [], [], color="0.4", linewidth=0.8 if label == "training" else 1.6, linestyle=style, label=label
            )
        axes.plot([], [], color="0.4", marker="*", markersize=9, linestyle="none", label="best")
        if any(curve.decays for curve in curves):
            axes.plot([], [], color="0.4", marker=7, linestyle="none", label="rate lowered")
        axes.legend(edgecolor="none", framealpha=0.9, fontsize=9)
    return drawn


def plot(curves: Sequence[Curve], path: Path, over: Over = "steps") -> None:
    """Write the picture of `figure`.

    Args:
        curves: at least one.
        path: of the picture, with an extension of `FORMATS`; written atomically, through a link if it is one.
        over: the horizontal axis.

    Raises:
        UsageError: the format is unknown, or the path is not a file.
        GrimmgenError: see `figure`; or the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise UsageError(f"{path} has no extension of a known format", f"use one of .{', .'.join(FORMATS)}")
    target = files.output_path(path)
    drawn = figure(curves, over)
    import matplotlib as mpl

    # A fixed salt and no dates: equal curves are written as equal files.
    with mpl.rc_context({"svg.hashsalt": "grimmgen", "font.size": 10}):
        content = io.BytesIO()
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
        drawn.savefig(content, format=kind, dpi=200, metadata=dated)
    files.write_atomically(target, content.getvalue())


def _between(lowest: float, value: object, highest: float) -> float:
    if not isinstance(value, (int, float)) or not lowest <= value <= highest:
        raise ValueError(value)
    return float(value)
