"""The model card: what a run is good for, in words."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from grimmgen.errors import IntegrityError
from grimmgen.evaluation.card import Card, Course, Verdict
from grimmgen.runs.registry import Run
from tests.program import Ran


def log_of(bits: Sequence[float]) -> list[dict[str, Any]]:
    """Evaluations with these bits per character, one a minute."""
    return [
        {
            "event": "evaluated",
            "epoch": epoch,
            "bits_per_character": score,
            "seconds": 60.0 * epoch,
            "perplexity": 8.0,
            "training_perplexity": 4.0,
        }
        for epoch, score in enumerate(bits, 1)
    ]


def course_of(*bits: float) -> Course:
    course = Course.of_log(log_of(bits))
    assert course is not None
    return course


@pytest.mark.parametrize(
    ("bits", "verdict", "second_half"),
    [
        ([3.0, 2.5, 2.2, 2.0], "improving", 0.5),
        ([3.0, 2.0, 1.997, 1.995], "converged", 0.005),
        ([3.0, 2.0, 2.1, 2.2, 2.3], "overfitted", 0.0),
        ([3.0], "unknown", None),
    ],
)
def test_course_is_judged_by_its_second_half(bits: list[float], verdict: Verdict, second_half: float) -> None:
    course = course_of(*bits)
    assert course.verdict == verdict
    assert course.bits_per_character == min(bits)
    assert course.second_half == pytest.approx(second_half)
    assert course.gap == pytest.approx(1.0)


def test_run_without_an_evaluation_has_no_course() -> None:
    assert Course.of_log([{"event": "started"}]) is None


@pytest.mark.parametrize(
    "change", [{"seconds": "x"}, {"epoch": None}, {"epoch": float("inf")}, {"bits_per_character": []}]
)
def test_damaged_log_is_an_error(change: dict[str, Any]) -> None:
    [event] = log_of([2.0])
    with pytest.raises(IntegrityError):
        Course.of_log([{**event, **change}])


def test_perplexity_of_zero_is_no_error() -> None:
    [event] = log_of([2.0])
    assert Course.of_log([{**event, "training_perplexity": 0}]) is not None


def test_card_compares_with_counts_and_held_out_text() -> None:
    course = course_of(3.0, 2.0)
    worse, better = Card(course, counts=1.5, copied=90, shared=40), Card(course, counts=2.5, copied=30, shared=40)
    assert "0.50 bits worse" in worse.sentences()[0]
    assert "0.50 bits better" in better.sentences()[0]
    assert "no better" in Card(course, counts=2.0).sentences()[0]
    assert any("--counts" in step for step in worse.next_steps())
    assert not any("--counts" in step for step in dataclasses.replace(worse, mixed=True).next_steps())
    assert not any("--counts" in step for step in better.next_steps())
    assert any("--max-copy 40" in step for step in worse.next_steps())
    assert not any("--max-copy" in step for step in better.next_steps())


def test_next_steps_follow_from_course_and_size() -> None:
    improving, overfitted, converged = course_of(3.0, 2.0), course_of(2.0, 3.0, 3.0, 3.0), course_of(2.0, 2.0)
    assert "--budget" in Card(improving).next_steps()[0]
    assert "--from" in Card(overfitted, characters=50_000).next_steps()[0]
    assert "--dropout" in Card(overfitted, characters=5_000_000).next_steps()[0]
    assert "--hidden" in Card(converged, characters=5_000_000).next_steps()[0]


def test_show_says_what_a_run_is_good_for(trained: Run, run: Callable[..., Ran]) -> None:
    ran = run("runs", "show", trained.name)
    assert ran.code == 0
    assert "bits per character on the validation set." in ran.out
    assert "counting" not in ran.out
    assert "Next: " in ran.out
    assert "bits per character on" not in run("runs", "show", trained.name, "--quiet").out


def test_show_measures_counts_and_copies(trained: Run, run: Callable[..., Ran]) -> None:
    ran = run("runs", "show", trained.name, "--measure")
    assert ran.code == 0
    assert "by counting alone" in ran.out
    assert "copies at most" in ran.out
    card = json.loads(run("runs", "show", "--measure", "--json").out)["card"]
    assert 0 < card["counts"] < 8
    assert card["copied"] > 0
    assert card["course"]["last_epoch"] == 2
    assert card["next"]


def test_measuring_an_unevaluated_run_is_refused(trained: Run, run: Callable[..., Ran]) -> None:
    trained.log_path.write_text("", encoding="utf-8")
    ran = run("runs", "show", "--measure", "--json")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
