"""Each step of decoding, held against the same done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from grimmgen.errors import UsageError
from grimmgen.sampling.options import (
    Logits,
    SamplingOptions,
    allow_only,
    draw,
    forbid,
    log_probabilities,
    min_p,
    or_end,
    penalise,
    temper,
    top_k,
    top_p,
)
from grimmgen.text.vocabulary import END

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
    assert kept.tolist() == [2, 5, 2, -INF, -INF, -INF]


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


@cases
def test_log_probabilities_are_those_and_nothing_overflows(logits: Logits) -> None:
    for shift in (0.0, 1e4, -1e4):
        log_p = log_probabilities(np.stack([logits, logits]).astype(np.float64) + shift)
        assert np.exp(log_p[1]).tolist() == pytest.approx(probabilities(logits), rel=1e-3)
    assert log_probabilities(forbid(CASES[2], [1]))[1] == -INF


@cases
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.9, 0.999, 1.0])
def test_top_p_keeps_the_fewest_best_that_reach_it(logits: Logits, p: float) -> None:
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    each = probabilities(logits)
    fewest = next((n for n in range(1, len(order) + 1) if math.fsum(each[i] for i in order[:n]) >= p), len(order))
    kept = [x if i in order[:fewest] else -INF for i, x in enumerate(logits.tolist())]
    assert top_p(logits, p).tolist() == kept


@cases
@pytest.mark.parametrize("p", [0.0, 1e-6, 0.05, 0.5, 1.0])
def test_min_p_keeps_what_is_not_much_less_probable_than_the_best(logits: Logits, p: float) -> None:
    each = probabilities(logits)
    assert min_p(logits, p).tolist() == [
        x if q >= p * max(each) * (1 - 1e-6) else -INF for x, q in zip(logits.tolist(), each, strict=True)
    ]


def test_a_penalty_takes_probabilities_to_its_power_each_once_whatever_the_logits_zero() -> None:
    p = np.array([0.5, 0.25, 0.2, 0.05])
    for shift in (0.0, 50.0, -50.0):
        logits = (np.log(p) + shift).astype(np.float32)
        expected = [0.5, 0.25**1.5, 0.2, 0.05**1.5]
        assert np.exp(penalise(logits, [1, 3, 1], 1.5)).tolist() == pytest.approx(expected, rel=1e-3)
        assert penalise(logits, [1, 3], 1.0) is logits
        assert penalise(logits, [], 2.0) is logits
    assert penalise(forbid(CASES[2], [0]), [0, 1], 2.0)[0] == -INF


def test_the_end_comes_back_as_it_was() -> None:
    logits = np.array([1, 2, 3], np.float32)
    assert or_end(top_k(logits, 1), logits, 0).tolist() == [1, -INF, 3]
    forbidden = forbid(logits, [0])
    assert or_end(top_k(forbidden, 1), forbidden, 0).tolist() == [-INF, -INF, 3]


# Ids 0 to 5; the end is at 1.
SIX = np.log(np.array([0.02, 0.03, 0.4, 0.3, 0.15, 0.1], np.float32))


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({}, [END, 2, 3, 4]),
        ({"top_k": 0}, [0, END, 2, 3, 4, 5]),
        ({"top_k": 1}, [2]),
        ({"greedy": True}, [2]),
        ({"temperature": 0.0}, [2]),
        ({"top_p": 0.75}, [END, 2, 3, 4]),
        ({"min_p": 0.3}, [END, 2, 3, 4]),
        # Each narrows what the one before has left: of three, two have more than 0.75; cold, one has.
        ({"top_k": 3, "top_p": 0.75}, [END, 2, 3]),
        ({"top_k": 3, "top_p": 0.75, "temperature": 0.2}, [END, 2]),
        ({"top_p": 0.75, "min_p": 0.5}, [END, 2, 3]),
        # What was told lately falls behind before anything is counted.
        ({"top_k": 2, "repetition_penalty": 3.0}, [END, 3, 4]),
        ({"greedy": True, "repetition_penalty": 3.0}, [3]),
    ],
)
def test_what_is_left_is_narrowed_in_the_order_that_is_promised(
    options: dict[str, float], left: list[int]
) -> None:
    decoding = SamplingOptions(**options)  # type: ignore[arg-type]
    assert np.flatnonzero(np.isfinite(decoding.narrow(SIX, [2]))).tolist() == left


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.0}, "--top-p 0 is out of range: give more than 0, and 1 at most"),
        ({"top_p": math.nan}, "--top-p nan is out of range: give more than 0, and 1 at most"),
        ({"min_p": 1.5}, "--min-p 1.5 is out of range: give 0 to 1"),
        ({"repetition_penalty": 0.9}, "--repetition-penalty 0.9 is out of range: give 1 (none) to 100"),
        ({"beam_width": 1}, "--beam-width 1 is out of range: give 2 to 256"),
        ({"beam_width": 2, "beam_depth": 0}, "--beam-depth 0 is out of range: give 1 to 64"),
        ({"max_copy": 0}, "--max-copy 0 is out of range: give 1 to 10000 characters"),
        ({"until": ""}, "--until waits for an empty text: give sentence, paragraph, or a text"),
        ({"beam_depth": 3}, "--beam-depth has no beams: give --beam-width, too"),
        *(
            (
                {"greedy": True, name: value},
                f"--greedy always takes the best: {option} has no say: leave out {option}",
            )
            for name, option, value in (
                ("top_k", "--top-k", 3),
                ("top_p", "--top-p", 0.5),
                ("min_p", "--min-p", 0.5),
                ("temperature", "--temperature", 2.0),
            )
        ),
        *(
            (
                {"beam_width": 3, name: value},
                f"--beam-width chooses among whole beams: {option} has no say: leave out {option}",
            )
            for name, option, value in (
                ("top_k", "--top-k", 3),
                ("top_p", "--top-p", 0.5),
                ("min_p", "--min-p", 0.5),
                ("repetition_penalty", "--repetition-penalty", 2.0),
            )
        ),
    ],
)
def test_what_is_out_of_range_or_contradicts_itself_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        SamplingOptions(**options)  # type: ignore[arg-type]
    assert str(refused.value) == message
