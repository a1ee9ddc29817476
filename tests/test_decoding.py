"""Each step of decoding, held against the same done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from grimmgen.decoding import Logits, allow_only, draw, forbid, temper, top_k

INF = math.inf
CASES = [
    np.random.default_rng(seed).normal(0, 3, size).astype(np.float32) for seed, size in enumerate((1, 2, 5, 40))
]
cases = pytest.mark.parametrize("logits", CASES, ids=len)


def probabilities(logits: Logits) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits.tolist()]
    return [weight / math.fsum(weights) for weight in weights]


@cases
@pytest.mark.parametrize("as_array", [True, False])
def test_forbid_and_allow_only_part_the_logits(logits: Logits, as_array: bool) -> None:
    before = logits.copy()
    chosen = list(range(0, len(logits), 2))
    ids: NDArray[np.int64] | list[int] = np.array(chosen) if as_array else chosen
    rest, only = forbid(logits, ids).tolist(), allow_only(logits, ids).tolist()
    assert rest == [-INF if i in chosen else x for i, x in enumerate(before.tolist())]
    assert only == [x if i in chosen else -INF for i, x in enumerate(before.tolist())]
    assert logits.tolist() == before.tolist(), "what was given stays as it was"


def test_nothing_forbidden_and_nothing_allowed() -> None:
    logits = CASES[2]
    assert forbid(logits, []).tolist() == logits.tolist()
    assert allow_only(logits, []).tolist() == [-INF] * 5


@cases
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 1e6])
def test_a_temperature_takes_probabilities_to_its_inverse_power(logits: Logits, temperature: float) -> None:
    powers = [p ** (1 / temperature) for p in probabilities(logits)]
    expected = [power / sum(powers) for power in powers]
    tempered = temper(logits, temperature)
    assert tempered.dtype == np.float32
    assert probabilities(tempered) == pytest.approx(expected, rel=1e-4)


@cases
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-46, 1e-40, 1e-30])
def test_next_to_no_temperature_is_greedy_and_never_nan(logits: Logits, temperature: float) -> None:  # fault 42
    tempered = temper(forbid(logits, [0]) if len(logits) > 1 else logits, temperature)
    best = max(range(len(logits)), key=lambda i: logits[i] if i or len(logits) == 1 else -INF)
    assert tempered[best] == 0
    assert all(x < -1e20 for i, x in enumerate(tempered.tolist()) if i != best)
    assert {draw(tempered, u) for u in (0.0, 0.5, math.nextafter(1, 0))} == {best}


def test_without_temperature_the_first_of_equals_is_taken() -> None:
    assert temper(np.array([1, 2, 2], np.float32), 0.0).tolist() == [-INF, 0, -INF]


def test_what_is_forbidden_stays_so_at_any_temperature() -> None:
    logits = forbid(CASES[3], [3, 7])
    assert all(np.isneginf(temper(logits, t)[[3, 7]]).all() for t in (0.0, 1e-46, 0.7, 1e6))


@cases
@pytest.mark.parametrize("k", [0, 1, 2, 3, 39, 40, 41, 10**9])
def test_top_k_keeps_the_k_best(logits: Logits, k: int) -> None:
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[: k or None]
    assert top_k(logits, k).tolist() == [x if i in best else -INF for i, x in enumerate(logits.tolist())]


def test_top_k_keeps_k_of_equals_and_what_is_above_them() -> None:
    kept = top_k(np.array([2, 5, 2, 2, 1, 2], np.float32), 3)
    assert sorted(kept.tolist()) == [-INF, -INF, -INF, 2, 2, 5]


@cases
def test_a_draw_is_the_place_where_the_sum_of_probabilities_passes_the_random_number(logits: Logits) -> None:
    p = probabilities(logits)
    edges = [math.fsum(p[: i + 1]) for i in range(len(p))]
    for u in np.random.default_rng(5).random(200):
        if min(abs(edge - u) for edge in edges) > 1e-9:
            assert draw(logits, float(u)) == next(i for i, edge in enumerate(edges) if edge > u)


@pytest.mark.parametrize("u", [0.0, 5e-324, 0.3, 0.9999, math.nextafter(1, 0)])
@pytest.mark.parametrize("ids", [[2], [0, 1], [4], [1, 3], [0, 2, 4]])
def test_what_is_forbidden_is_never_draw(ids: list[int], u: float) -> None:
    for shift in (-1e30, 0.0, 1e30):
        logits = forbid(CASES[2] + np.float32(shift), ids)
        assert draw(logits, u) not in ids


def test_draws_come_as_often_as_their_probabilities_say() -> None:
    logits = forbid(np.array([1.0, 0.0, 3.0, 2.0, -1.0], np.float32), [2])
    random, n = np.random.default_rng(11), 20_000
    counts = np.bincount([draw(logits, random.random()) for _ in range(n)], minlength=5)
    for count, p in zip(counts, probabilities(logits), strict=True):
        # Five standard deviations of a binomial.
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))
    assert counts[2] == 0


def test_the_same_seed_draws_the_same() -> None:
    def draws(seed: int) -> list[int]:
        random = np.random.default_rng(seed)
        return [draw(CASES[3], random.random()) for _ in range(50)]

    assert draws(1) == draws(1) != draws(2)
