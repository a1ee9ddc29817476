"""The choice of combinations that other tests are run with."""

from __future__ import annotations

import itertools

from tests.pairs import pairs


def test_every_two_values_meet_in_few_combinations() -> None:
    parameters = ["abcd", range(7), [False, True], (1, 2, 7)]
    chosen = pairs(*parameters)
    for (i, one), (j, other) in itertools.combinations(enumerate(parameters), 2):
        assert {(row[i], row[j]) for row in chosen} == set(itertools.product(one, other))
    assert len(chosen) == len(set(chosen)) < 4 * 7 * 2
    assert pairs(*parameters) == chosen


def test_without_values_there_is_no_combination() -> None:
    assert pairs("ab", "") == []
    assert pairs("a", "b") == [("a", "b")]
