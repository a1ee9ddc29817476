"""Learning curves: read from a log, drawn in characters at any width, and plotted with matplotlib."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grimmgen.cli import console
from grimmgen.cli.chart import ASCII, UNICODE, draw
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.runs import curves
from grimmgen.runs.curves import Curve
from grimmgen.runs.registry import Run
from tests.program import PROGRAM, Ran, on_terminal

MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None

perplexities = st.floats(1e-300, 1e300)


def falling(evaluations: int = 60, **changes: tuple[float, ...]) -> Curve:
    """A curve with its best at the 41st evaluation, and decays of the rate after the 46th and the 56th."""
    steps = range(1, evaluations + 1)
    values = {
        "training": tuple(8 + 70 * math.exp(-k / 6) for k in steps),
        "validation": tuple(12 + 60 * math.exp(-k / 7) + max(0, k - 41) * 0.05 for k in steps),
    }
    decays = tuple(k for k in (45, 55) if k < evaluations)
    figures = {**values, **changes}
    return Curve(
        "sly-fox",
        tuple(100 * k for k in steps),
        tuple(2.0 * k for k in steps),
        figures["training"],
        figures["validation"],
        decays,
    )


# --- the log -------------------------------------------------------------------------------------------------


def test_a_curve_has_the_evaluations_of_the_log(trained: Run) -> None:
    scores = [event for event in trained.log() if event["event"] == "evaluated"]
    trained.append_log({**scores[-1], "step": 333, "epoch": 3, "perplexity": 1.5, "best": True})
    trained.append_log({"event": "rate decayed", "step": 333, "epoch": 3})
    curve = curves.read(trained)
    assert curve.steps == (111, 222, 333)
    assert curve.validation == (*(event["perplexity"] for event in scores), 1.5)
    assert curve.training[:2] == tuple(event["training_perplexity"] for event in scores)
    assert (curve.best, curve.decays) == (2, (2,))
    assert (curve.over("steps"), curve.over("seconds")) == (curve.steps, curve.seconds)


@pytest.mark.parametrize(
    "change",
    [
        {"step": "x"},
        {"step": 1},
        {"step": 10**400},
        {"event": "rate decayed", "step": []},
        {"perplexity": 0},
        {"perplexity": None},
        {"perplexity": 10**400},
        {"training_perplexity": 0.0},
        {"seconds": []},
        {"seconds": -1.0},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_damaged_log_is_an_error(trained: Run, change: dict[str, object], run: Callable[..., Ran]) -> None:
    [event] = [event for event in trained.log() if event["event"] == "evaluated"][:1]
    with trained.log_path.open("a") as file:
        file.write(json.dumps({**event, **change}) + "\n")
    with pytest.raises(IntegrityError, match="sly-fox is damaged"):
        curves.read(trained)
    assert run("runs", "plot").code == 3
    assert run("runs", "show").code == 3


# --- characters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 40])
def test_the_chart_shows_the_best_and_the_decays(width: int) -> None:
    lines = draw(falling(), width)
    plot = [line[8:].ljust(width - 8) for line in lines[:11]]
    columns = width - 8
    # In each column the validation perplexity falls to the best, and the training perplexity is below it.
    heights = [next(row for row in range(11) if plot[row][x] in "●★") for x in range(columns)]
    assert heights[: round(columns * 40 / 59)] == sorted(heights[: round(columns * 40 / 59)])
    assert heights[0] <= 1
    stars = [(x, row) for row in range(11) for x in range(columns) if plot[row][x] == "★"]
    assert stars == [(round(40 / 59 * (columns - 1)), heights[stars[0][0]])]
    decayed = {x for row in plot for x, glyph in enumerate(row) if glyph == "┊"}
    assert decayed == {round(k / 59 * (columns - 1)) for k in (45, 55)}
    assert plot[10].endswith("·" * (columns // 3))
    assert lines[0].startswith(f"{falling().training[0]:6.2f} │")
    assert re.fullmatch(r" +100 +6,000 updates", lines[12])
    assert "".join(lines[13:]).split() == "● validation · training ★ best ┊ rate lowered".split()


def test_a_steep_curve_has_no_gaps() -> None:
    sharp = Curve("x", (0, 100), (0.0, 1.0), (100.0, 1.0), (100.0, 1.0), ())
    lines = draw(sharp, 24)
    assert all(any(glyph in "●★" for glyph in line[8:]) for line in lines[:11])


def test_a_perplexity_just_below_a_power_of_ten_fits() -> None:
    # exp(log(10⁶)) is 999999.99…, which .0f rounds to seven digits.
    for highest in (1e3, 1e6):
        assert max(map(len, draw(Curve("x", (0, 1), (0.0, 1.0), (1.0, 1.0), (1.0, highest), ()), 24))) <= 24


@given(
    st.lists(st.tuples(perplexities, perplexities), min_size=1, max_size=30),
    st.integers(24, 120),
    st.sampled_from([UNICODE, ASCII]),
    st.data(),
)
def test_no_line_is_wider_than_the_chart(
    values: list[tuple[float, float]], width: int, glyphs: object, data: st.DataObject
) -> None:
    steps = sorted(data.draw(st.lists(st.integers(0, 10**9), min_size=len(values), max_size=len(values))))
    training, validation = zip(*values, strict=True)
    decays = tuple(data.draw(st.sets(st.integers(0, len(values) - 1))))
    curve = Curve("x", tuple(steps), tuple(map(float, steps)), training, validation, decays)
    lines = draw(curve, width, UNICODE if glyphs is UNICODE else ASCII)
    assert max(map(len, lines)) <= width
    assert sum(line.count(UNICODE.best if glyphs is UNICODE else ASCII.best) for line in lines) == 2
    if glyphs is ASCII:
        assert "".join(lines).isascii()


@pytest.mark.parametrize(
    ("variables", "unicode"),
    [
        ({"LC_ALL": "C.UTF-8"}, True),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "en_GB.utf8"}, True),
        ({"LC_ALL": "C", "LANG": "C.UTF-8"}, False),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "C"}, False),
    ],
    ids=str,
)
def test_the_locale_says_whether_a_terminal_has_unicode(
    variables: dict[str, str], unicode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert console.has_unicode() == unicode


@pytest.mark.parametrize(
    ("variables", "ascii_"),
    # In the C locale Python sets LC_CTYPE for itself.
    [({"LC_ALL": "C.UTF-8"}, False), ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "C"}, True)],
    ids=str,
)
@pytest.mark.usefixtures("trained")
def test_a_terminal_without_unicode_gets_ascii(variables: dict[str, str], ascii_: bool) -> None:
    set_ = [f"{name}={value}" for name, value in variables.items()]
    ran = on_terminal("env", *set_, *PROGRAM, "runs", "show", columns=40)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", ran.out).splitlines()
    [axis] = [number for number, line in enumerate(plain) if set(line.strip()) in ({"+", "-"}, {"└", "─"})]
    drawn = "".join(plain[axis - 11 :])
    assert drawn.isascii() == ascii_
    assert ("o validation" if ascii_ else "● validation") in drawn
    assert max(map(len, plain)) <= 40


# --- pictures ------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_error_names_the_extra(
    trained: Run, run: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    target = tmp_path / "x.svg"
    ran = run("runs", "plot", trained.name, "--output", str(target))
    message = "plotting needs matplotlib, which is not installed: pip install 'grimmgen[plot]'"
    assert ran == (1, "", f"error: {message}\n")
    assert not target.exists()


@pytest.mark.parametrize("name", ["x", "x.gif", ".svg"])
def test_an_unknown_extension_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"extension .* \.svg, \.png, \.pdf"):
        curves.plot([falling()], tmp_path / name)


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GrimmgenError, match="the run x has no evaluation yet"):
        curves.plot([Curve("x", (), (), (), (), ())], tmp_path / "x.svg")


@pytest.mark.slow
@pytest.mark.skipif(not MATPLOTLIB, reason="matplotlib is an extra: grimmgen[plot]")
def test_equal_curves_are_equal_pictures_in_each_format(
    trained: Run, run: Callable[..., Ran], tmp_path: Path
) -> None:
    begins = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    for kind, first in begins.items():
        target = tmp_path / f"x.{kind}"
        assert run("runs", "plot", "-o", str(target)) == (0, "", f"written to {target}\n")
        assert target.read_bytes().startswith(first)
        content = target.read_bytes()
        curves.plot([curves.read(trained)], target)
        assert target.read_bytes() == content
    other = tmp_path / "other.svg"
    document = json.loads(run("runs", "plot", "--over", "seconds", "-o", str(other), "--json").out)
    assert document == {"path": str(other), "runs": ["sly-fox"], "over": "seconds"}
    assert other.read_bytes() != (tmp_path / "x.svg").read_bytes()
    curves.plot([falling(), falling(3), falling(1)], tmp_path / "many.svg", "seconds")
    assert len((tmp_path / "many.svg").read_bytes()) > 1.2 * len(other.read_bytes())
