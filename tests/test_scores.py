"""Which difference between two models is real."""

from __future__ import annotations

import numpy as np
import pytest

from grimmgen.evaluation.scores import FEWEST_STORIES, Evaluation, Score, compare


def evaluation(bits: list[float], characters: list[int]) -> Evaluation:
    scores = (Score(str(k), b * np.log(2), 1, c, 0) for k, (b, c) in enumerate(zip(bits, characters, strict=True)))
    return Evaluation(tuple(scores))


SIZES = [100, 400, 900, 1600, 2500, 3600, 4900, 6400]


def test_a_difference_is_that_of_the_totals_whatever_the_sizes_of_the_stories() -> None:
    one = evaluation([2.0 * size for size in SIZES], SIZES)
    other = evaluation([(1.0 if size == 6400 else 2.0) * size for size in SIZES], SIZES)
    found = compare(one, other)
    assert found.mean == pytest.approx(6400 / sum(SIZES))
    assert compare(other, one).mean == pytest.approx(-found.mean)
    assert found.low is not None
    # Whether the one story is drawn decides all; it often is not.
    assert found.low == 0.0
    assert found.real is False


def test_what_holds_in_every_story_is_real_however_much_the_stories_differ() -> None:
    draw = np.random.default_rng(3)
    hard = [size * draw.uniform(1.0, 3.0) for size in SIZES]
    one, other = (
        evaluation([b + 0.01 * s for b, s in zip(hard, SIZES, strict=True)], SIZES),
        evaluation(hard, SIZES),
    )
    found = compare(one, other)
    # Unpaired, stories from 1 to 3 bits would drown a hundredth of a bit.
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.real


def test_the_interval_is_that_of_the_normal_distribution_where_that_holds_and_is_the_same_each_time() -> None:
    draw = np.random.default_rng(5)
    differences = draw.normal(0.03, 0.2, 400)
    one, other = (
        evaluation((100 * (2 + differences)).tolist(), [100] * 400),
        evaluation([200.0] * 400, [100] * 400),
    )
    found = compare(one, other)
    margin = 1.96 * differences.std() / 20
    assert found.mean == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - margin, abs=0.1 * margin)
    assert found.high == pytest.approx(differences.mean() + margin, abs=0.1 * margin)
    assert compare(one, other) == found
    assert compare(one, other, random_seed=1) != found


def test_of_few_stories_nothing_is_said() -> None:
    few = SIZES[: FEWEST_STORIES - 1]
    found = compare(evaluation([3.0 * s for s in few], few), evaluation([2.0 * s for s in few], few))
    assert (found.mean, found.low, found.high, found.real) == (1.0, None, None, None)
    more = SIZES[:FEWEST_STORIES]
    assert compare(evaluation([3.0 * s for s in more], more), evaluation([2.0 * s for s in more], more)).real
