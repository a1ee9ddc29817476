"""The functions on logits, each compared with a plain computation, and the order in which they are applied."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from grimmgen.sampling.logits import (
    Logits,
    allow_only,
    draw,
    filter_logits,
    forbid,
    keep_end,
    log_probabilities,
    min_p,
    penalise,
    temper,
    top_k,
    top_p,
)
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import END

INF = math.inf
LARGEST_UNIFORM = math.nextafter(1, 0)
CASES = [
    np.random.default_rng(seed).normal(0, 3, size).astype(np.float32) for seed, size in enumerate((1, 2, 5, 40))
]
cases = pytest.mark.parametrize("logits", CASES, ids=len)


def probabilities(logits: Logits) -> list[float]:
    weights = [math.exp(logit - max(logits)) for logit in logits.tolist()]
    return [weight / math.fsum(weights) for weight in weights]


# --- forbid, allow_only --------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("as_array", [True, False])
def test_forbid_and_allow_only_are_complements(logits: Logits, as_array: bool) -> None:
    before = logits.copy()
    chosen = list(range(0, len(logits), 2))
    ids: NDArray[np.int64] | list[int] = np.array(chosen) if as_array else chosen
    assert forbid(logits, ids).tolist() == [-INF if i in chosen else x for i, x in enumerate(before.tolist())]
    assert allow_only(logits, ids).tolist() == [x if i in chosen else -INF for i, x in enumerate(before.tolist())]
    assert logits.tolist() == before.tolist(), "the argument is not changed"


def test_forbid_and_allow_only_accept_no_ids() -> None:
    logits = CASES[2]
    assert forbid(logits, []).tolist() == logits.tolist()
    assert allow_only(logits, []).tolist() == [-INF] * 5


@pytest.mark.parametrize("uniform", [0.0, 5e-324, 0.3, 0.9999, LARGEST_UNIFORM])
@pytest.mark.parametrize("ids", [[2], [0, 1], [4], [1, 3], [0, 2, 4]])
def test_forbidden_ids_are_never_drawn(ids: list[int], uniform: float) -> None:
    for shift in (-1e30, 0.0, 1e30):
        logits = forbid(CASES[2] + np.float32(shift), ids)
        assert draw(logits, uniform) not in ids


# --- temper --------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0, 1e6])
def test_temperature_is_the_inverse_power_of_probabilities(logits: Logits, temperature: float) -> None:
    powers = [p ** (1 / temperature) for p in probabilities(logits)]
    expected = [power / sum(powers) for power in powers]
    tempered = temper(logits, temperature)
    assert tempered.dtype == np.float32
    assert probabilities(tempered) == pytest.approx(expected, rel=1e-4)


@cases
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-300, 1e-46, 1e-40, 1e-30])
def test_tiny_temperatures_are_greedy_without_nan(logits: Logits, temperature: float) -> None:  # fault 42
    tempered = temper(forbid(logits, [0]) if len(logits) > 1 else logits, temperature)
    best = max(range(len(logits)), key=lambda i: logits[i] if i or len(logits) == 1 else -INF)
    assert tempered[best] == 0
    assert all(x < -1e20 for i, x in enumerate(tempered.tolist()) if i != best)
    assert {draw(tempered, uniform) for uniform in (0.0, 0.5, LARGEST_UNIFORM)} == {best}


def test_zero_temperature_keeps_the_first_of_equal_logits() -> None:
    assert temper(np.array([1, 2, 2], np.float32), 0.0).tolist() == [-INF, 0, -INF]


def test_forbidden_ids_stay_forbidden_at_any_temperature() -> None:
    logits = forbid(CASES[3], [3, 7])
    assert all(np.isneginf(temper(logits, t)[[3, 7]]).all() for t in (0.0, 1e-46, 0.7, 1e6))


# --- top_k, top_p, min_p -------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("k", [0, 1, 2, 3, 39, 40, 41, 10**9])
def test_top_k_keeps_the_k_largest(logits: Logits, k: int) -> None:
    best = sorted(range(len(logits)), key=lambda i: -logits[i])[: k or None]
    assert top_k(logits, k).tolist() == [x if i in best else -INF for i, x in enumerate(logits.tolist())]


def test_top_k_keeps_the_first_of_equal_logits() -> None:
    kept = top_k(np.array([2, 5, 2, 2, 1, 2], np.float32), 3)
    assert kept.tolist() == [2, 5, 2, -INF, -INF, -INF]


@cases
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(logits: Logits, p: float) -> None:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    each = probabilities(logits)
    fewest = next((n for n in range(1, len(order) + 1) if math.fsum(each[i] for i in order[:n]) >= p), len(order))
    kept = [x if i in order[:fewest] else -INF for i, x in enumerate(logits.tolist())]
    assert top_p(logits, p).tolist() == kept


@cases
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.05, 0.5, 1.0])
def test_min_p_is_relative_to_the_largest_probability(logits: Logits, p: float) -> None:
    each = probabilities(logits)
    assert min_p(logits, p).tolist() == [
        x if q >= p * max(each) * (1 - 1e-6) else -INF for x, q in zip(logits.tolist(), each, strict=True)
    ]


# --- penalise, keep_end, log_probabilities -------------------------------------------------------------------


def test_penalty_is_a_power_independent_of_the_offset() -> None:
    p = np.array([0.5, 0.25, 0.2, 0.05])
    for shift in (0.0, 50.0, -50.0):
        logits = (np.log(p) + shift).astype(np.float32)
        expected = [0.5, 0.25**1.5, 0.2, 0.05**1.5]
        assert np.exp(penalise(logits, [1, 3, 1], 1.5)).tolist() == pytest.approx(expected, rel=1e-3)
        assert penalise(logits, [1, 3], 1.0) is logits
        assert penalise(logits, [], 2.0) is logits
    assert penalise(forbid(CASES[2], [0]), [0, 1], 2.0)[0] == -INF


def test_keep_end_restores_the_unfiltered_logit() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert keep_end(top_k(logits, 1), logits, 0).tolist() == [1, -INF, 3]
    forbidden = forbid(logits, [0])
    assert keep_end(top_k(forbidden, 1), forbidden, 0).tolist() == [-INF, -INF, 3]


@cases
def test_log_probabilities_do_not_overflow(logits: Logits) -> None:
    for shift in (0.0, 1e4, -1e4):
        log_p = log_probabilities(np.stack([logits, logits]).astype(np.float64) + shift)
        assert np.exp(log_p[1]).tolist() == pytest.approx(probabilities(logits), rel=1e-3)
    assert log_probabilities(forbid(CASES[2], [1]))[1] == -INF


# --- draw ----------------------------------------------------------------------------------------------------


@cases
def test_draw_inverts_the_cumulative_distribution(logits: Logits) -> None:
    p = probabilities(logits)
    edges = [math.fsum(p[: i + 1]) for i in range(len(p))]
    for uniform in np.random.default_rng(5).random(200):
        if min(abs(edge - uniform) for edge in edges) > 1e-9:
            assert draw(logits, float(uniform)) == next(i for i, edge in enumerate(edges) if edge > uniform)


def test_draw_frequencies_match_the_probabilities() -> None:
    logits = forbid(np.array([1.0, 0.0, 3.0, 2.0, -1.0], np.float32), [2])
    random, n = np.random.default_rng(11), 20_000
    counts = np.bincount([draw(logits, random.random()) for _ in range(n)], minlength=5)
    for count, p in zip(counts, probabilities(logits), strict=True):
        # Five standard deviations of a binomial.
        assert abs(count - n * p) <= 5 * math.sqrt(n * p * (1 - p))
    assert counts[2] == 0


# --- the order -----------------------------------------------------------------------------------------------

# Ids 0 to 5; the end is at 1.
SIX = np.log(np.array([0.02, 0.03, 0.4, 0.3, 0.15, 0.1], np.float32))


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [END, 2, 3, 4]),
        ({"top_k": 0}, [0, END, 2, 3, 4, 5]),
        ({"top_k": 1}, [2]),
        ({"greedy": True}, [2]),
        ({"temperature": 0.0}, [2]),
        ({"top_p": 0.75}, [END, 2, 3, 4]),
        ({"min_p": 0.3}, [END, 2, 3, 4]),
        # Each step sees what the one before has left: of three, two reach 0.75; at a low temperature, one does.
        ({"top_k": 3, "top_p": 0.75}, [END, 2, 3]),
        ({"top_k": 3, "top_p": 0.75, "temperature": 0.2}, [END, 2]),
        ({"top_p": 0.75, "min_p": 0.5}, [END, 2, 3]),
        # The repetition penalty applies before the best are selected.
        ({"top_k": 2, "repetition_penalty": 3.0}, [END, 3, 4]),
        ({"greedy": True, "repetition_penalty": 3.0}, [3]),
    ],
)
def test_options_apply_in_the_documented_order(options: dict[str, Any], kept: list[int]) -> None:
    filtered = filter_logits(SIX, SamplingOptions(**options), recent=[2])
    assert np.flatnonzero(np.isfinite(filtered)).tolist() == kept


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 2}, [END, 3, 5]),
        ({"greedy": True}, [3]),
        ({"top_p": 0.75}, [END, 3, 5]),
    ],
)
def test_forbidden_ids_are_removed_before_the_best_are_selected(options: dict[str, Any], kept: list[int]) -> None:
    filtered = filter_logits(SIX, SamplingOptions(**options), forbidden=[0, 2, 4], recent=[])
    assert np.flatnonzero(np.isfinite(filtered)).tolist() == kept


def test_a_forbidden_end_stays_forbidden() -> None:
    filtered = filter_logits(SIX, SamplingOptions(), forbidden=[END])
    assert np.flatnonzero(np.isfinite(filtered)).tolist() == [2, 3, 4]


def test_filter_logits_does_not_change_its_arguments() -> None:
    before = SIX.tolist()
    filter_logits(SIX, SamplingOptions(top_p=0.5, repetition_penalty=2.0), forbidden=[0], recent=[2])
    assert SIX.tolist() == before
