"""The significance of the difference between two models."""

from __future__ import annotations

import numpy as np
import pytest

from grimmgen.evaluation.scores import MIN_DOCUMENTS, Evaluation, Score, compare


def evaluation(bits: list[float], characters: list[int]) -> Evaluation:
    scores = (Score(str(k), b * np.log(2), 1, c, 0) for k, (b, c) in enumerate(zip(bits, characters, strict=True)))
    return Evaluation(tuple(scores))


SIZES = [100, 400, 900, 1600, 2500, 3600, 4900, 6400]


def test_difference_is_that_of_the_totals() -> None:
    one = evaluation([2.0 * size for size in SIZES], SIZES)
    other = evaluation([(1.0 if size == 6400 else 2.0) * size for size in SIZES], SIZES)
    found = compare(one, other)
    assert found.mean == pytest.approx(6400 / sum(SIZES))
    assert compare(other, one).mean == pytest.approx(-found.mean)
    # The models differ in one document only, which many samples do not contain.
    assert found.low == 0.0
    assert found.significant is False


def test_bootstrap_is_paired() -> None:
    draw = np.random.default_rng(3)
    bits = [size * draw.uniform(1.0, 3.0) for size in SIZES]
    one = evaluation([b + 0.01 * size for b, size in zip(bits, SIZES, strict=True)], SIZES)
    found = compare(one, evaluation(bits, SIZES))
    # Unpaired, the variation between documents would hide a difference of 0.01.
    assert found.low == pytest.approx(0.01)
    assert found.high == pytest.approx(0.01)
    assert found.significant


def test_interval_is_normal_for_many_documents() -> None:
    draw = np.random.default_rng(5)
    differences = draw.normal(0.03, 0.2, 400)
    one = evaluation((100 * (2 + differences)).tolist(), [100] * 400)
    found = compare(one, evaluation([200.0] * 400, [100] * 400))
    margin = 1.96 * differences.std() / 20
    assert found.mean == pytest.approx(differences.mean())
    assert found.low == pytest.approx(differences.mean() - margin, abs=0.1 * margin)
    assert found.high == pytest.approx(differences.mean() + margin, abs=0.1 * margin)


def test_interval_is_reproducible() -> None:
    draw = np.random.default_rng(5)
    one, other = (evaluation((100 * draw.uniform(1, 2, 40)).tolist(), [100] * 40) for _ in range(2))
    assert compare(one, other) == compare(one, other)
    assert compare(one, other, random_seed=1) != compare(one, other)


def test_few_documents_have_no_interval() -> None:
    few = SIZES[: MIN_DOCUMENTS - 1]
    found = compare(evaluation([3.0 * s for s in few], few), evaluation([2.0 * s for s in few], few))
    assert (found.mean, found.low, found.high, found.significant) == (1.0, None, None, None)
    enough = SIZES[:MIN_DOCUMENTS]
    found = compare(evaluation([3.0 * s for s in enough], enough), evaluation([2.0 * s for s in enough], enough))
    assert found.significant
