"""Learning curves in characters, for a terminal of any width."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from grimmgen.runs.curves import Curve

_ROWS = 11
_LABEL = 7


class Glyphs(NamedTuple):
    """Characters of a chart: validation, training, the best evaluation, a decay; the axes and their corner."""

    validation: str
    training: str
    best: str
    decay: str
    across: str
    up: str
    corner: str


UNICODE = Glyphs("●", "·", "★", "┊", "─", "│", "└")
ASCII = Glyphs("o", ".", "*", ":", "-", "|", "+")


def draw(curve: Curve, width: int, glyphs: Glyphs = UNICODE) -> list[str]:
    """Draw the perplexity, on a logarithmic scale, over the updates.

    Args:
        curve: at least one evaluation.
        width: columns, at least 24.
        glyphs: the characters.

    Returns:
        Lines of at most `width` characters: the chart, the axis, and the legend in one line or several.
    """
    columns = max(8, width - _LABEL - 1)
    lowest, highest = (f(*curve.training, *curve.validation) for f in (min, max))
    bottom, top = math.log(lowest), math.log(highest)
    if top - bottom < 1e-9:
        bottom, top = bottom - 0.05, top + 0.05
    first, last = curve.steps[0], curve.steps[-1]

    def column(step: float) -> int:
        return round((step - first) / (last - first) * (columns - 1)) if last > first else 0

    def row(perplexity: float) -> int:
        return round((top - math.log(perplexity)) / (top - bottom) * (_ROWS - 1))

    grid = [[" "] * columns for _ in range(_ROWS)]
    for number in curve.decays:
        for line in grid:
            line[column(curve.steps[number])] = glyphs.decay
    for values, glyph in ((curve.training, glyphs.training), (curve.validation, glyphs.validation)):
        before = row(values[0])
        for x in range(column(last) + 1):
            y = row(_between(curve.steps, values, first + (last - first) * x / max(1, columns - 1)))
            # Fill the rows between two columns, so that a steep curve has no gaps.
            for covered in {y, *range(before + 1, y), *range(y + 1, before)}:
                grid[covered][x] = glyph
            before = y
    grid[row(curve.validation[curve.best])][column(curve.steps[curve.best])] = glyphs.best

    lines = []
    for number, line in enumerate(grid):
        value = math.exp(top - (top - bottom) * number / (_ROWS - 1))
        label = next(label for form in (".2f", ".0f", ".0e") if len(label := f"{value:{form}}") < _LABEL)
        lines.append(f"{'' if number % 2 else label:>{_LABEL - 1}} {glyphs.up}{''.join(line)}".rstrip())
    lines.append(f"{'':{_LABEL}}{glyphs.corner}{glyphs.across * columns}")
    begin, end = f"{first:,}", f"{last:,} updates"
    lines.append(f"{'':{_LABEL + 1}}{begin}{end:>{max(len(end) + 1, columns - len(begin))}}"[:width].rstrip())
    return [*lines, *_legend(curve, width, glyphs)]


def _legend(curve: Curve, width: int, glyphs: Glyphs) -> list[str]:
    named = [f"{glyphs.validation} validation", f"{glyphs.training} training", f"{glyphs.best} best"]
    if curve.decays:
        named.append(f"{glyphs.decay} rate lowered")
    lines = [""]
    for name in named:
        if lines[-1] and len(lines[-1]) + 2 + len(name) > width - _LABEL - 1:
            lines.append("")
        lines[-1] += ("  " if lines[-1] else "") + name
    return [f"{'':{_LABEL + 1}}{line}" for line in lines]


def _between(steps: Sequence[int], values: Sequence[float], step: float) -> float:
    """Interpolate the logarithm of the values at a step."""
    after = next((k for k, s in enumerate(steps) if s >= step), len(steps) - 1)
    if after == 0 or steps[after] == steps[after - 1]:
        return values[after]
    share = min(1.0, (step - steps[after - 1]) / (steps[after] - steps[after - 1]))
    return math.exp((1 - share) * math.log(values[after - 1]) + share * math.log(values[after]))
