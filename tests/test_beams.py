"""Beam search: against all there is, what is merged, and how one of its beams is chosen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from grimmgen.configuration import Configuration
from grimmgen.network import backends
from grimmgen.network.backends.numpy import Floats, Stepper
from grimmgen.network.shapes import weight_shapes
from grimmgen.sampling import beams
from grimmgen.sampling.beams import Beam, BeamSearch, grow, next_words
from grimmgen.sampling.options import SamplingOptions, log_probabilities
from grimmgen.text.vocabulary import END, UNKNOWN, Vocabulary
from tests.builders import random_tensors

# Three bigrams, and a last letter of a story: five ids but <unk>.
VOCABULARY = Vocabulary.build(["abcdefg"], min_count=1)
CONFIGURATION = Configuration(hidden=6)
V = len(VOCABULARY)
DEPTH = 3


def weights_of(random_seed: int) -> dict[str, Floats]:
    weights = random_tensors(weight_shapes(CONFIGURATION, V), random_seed)
    weights["output.bias"] = np.random.default_rng(random_seed).normal(0, 1, V).astype(np.float32)
    return weights


def stepper_of(weights: dict[str, Floats], B: int = 1) -> Stepper:
    stepper = backends.stepper(CONFIGURATION, weights, *np.zeros((2, 1, B, 6), np.float32))
    stepper.step([END] * B)
    return stepper


def every_way(weights: dict[str, Floats]) -> dict[tuple[int, ...], float]:
    """All sequences of that depth, and what each costs, read one by one; after the end there is only the end."""
    found = {}
    for ids in itertools.product(range(1, V), repeat=DEPTH):
        stepper, score = stepper_of(weights), 0.0
        for before, token in zip((None, *ids), ids, strict=False):
            if before != END:
                score += float(log_probabilities(stepper.logits)[0, token])
            elif token != END:
                break
            stepper.step([token])
        else:
            found[ids] = score
    return found


@pytest.mark.parametrize("kernel", ["plain", ""])
@pytest.mark.parametrize("random_seed", range(4))
def test_beams_as_wide_as_all_there_is_find_the_best_of_all(
    random_seed: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    weights = weights_of(random_seed)
    ways = every_way(weights)
    best = max(ways, key=lambda ids: ways[ids])
    width = V**DEPTH
    options = SamplingOptions(beam_width=256, beam_depth=DEPTH, greedy=True)
    assert width <= 256
    search = BeamSearch(stepper_of(weights, 256), VOCABULARY, options, [np.random.default_rng(0)], [])
    assert tuple(search.tell(1)[:, 0].tolist()) == best


@pytest.mark.parametrize("random_seed", range(4))
def test_beams_carry_their_own_state_and_stand_in_the_order_of_all_there_is(random_seed: int) -> None:
    weights = weights_of(random_seed)
    width = 200
    stepper, found = stepper_of(weights, width), [Beam()]
    for _ in range(DEPTH):
        log_p = log_probabilities(stepper.logits[: len(found)])
        log_p[:, UNKNOWN] = -np.inf
        found = grow(found, log_p, width, VOCABULARY)
        rows = found + found[:1] * (width - len(found))
        beams._go_on(stepper, np.array([beam.parent for beam in rows]))
        stepper.step([beam.ids[-1] for beam in rows])
    ways = every_way(weights)
    assert {beam.ids for beam in found} == set(ways)
    assert [beam.score for beam in found] == pytest.approx(sorted(ways.values(), reverse=True), abs=1e-4)
    assert all(ways[beam.ids] == pytest.approx(beam.score, abs=1e-4) for beam in found)


def test_a_narrow_beam_keeps_the_best_of_each_step_and_no_more() -> None:
    log_p = np.log(np.array([[0.1, 0.1, 0.2, 0.3, 0.2, 0.1], [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]]))
    log_p[:, UNKNOWN] = -np.inf
    grown = grow([Beam(math.log(0.7), (2,), "ab"), Beam(math.log(0.3), (3,), "cd")], log_p, 2, VOCABULARY)
    assert [(beam.ids, beam.parent) for beam in grown] == [((2, 3), 0), ((3, 2), 1)]
    assert [math.exp(beam.score) for beam in grown] == pytest.approx([0.21, 0.15])


def test_what_spells_the_same_is_one_beam_with_both_probabilities_and_the_likelier_state() -> None:
    # "a", "bc" and "ab", "c" spell the same; an end parts what has ended from what has not.
    vocabulary = Vocabulary.build(["ab", "bc", "a", "c"], min_count=1)
    a, ab, bc, c = (vocabulary.ngrams.index(gram) + 2 for gram in ("a", "ab", "bc", "c"))
    log_p = np.full((2, len(vocabulary)), -np.inf)
    log_p[0, bc], log_p[0, END], log_p[1, c] = np.log([0.5, 0.5, 0.9])
    grown = grow([Beam(math.log(0.3), (a,), "a"), Beam(math.log(0.6), (ab,), "ab")], log_p, 5, vocabulary)
    assert [(beam.text, beam.ids, beam.parent) for beam in grown] == [("abc", (ab, c), 1), ("a", (a, END), 0)]
    assert [math.exp(beam.score) for beam in grown] == pytest.approx([0.54 + 0.15, 0.15])


def test_a_beam_that_has_ended_stays_as_it_is() -> None:
    [beam] = grow([Beam(-1.5, (2, END), "ab")], np.zeros((1, V)), 3, VOCABULARY)
    assert (beam.score, beam.ids, beam.text) == (-1.5, (2, END, END), "ab")


def test_beams_are_drawn_in_proportion_to_their_probability_and_temperature() -> None:
    weights = {name: np.zeros_like(tensor) for name, tensor in weights_of(0).items()}
    weights["output.bias"][:] = -99.0
    weights["output.bias"][[2, 3, 4]] = np.log([0.6, 0.3, 0.1])
    for temperature, expected in ((1.0, [0.667, 0.333, 0.0]), (0.5, [0.8, 0.2, 0.0])):
        options = SamplingOptions(beam_width=2, beam_depth=1, temperature=temperature)
        generators = [np.random.default_rng(seed) for seed in range(500)]
        search = BeamSearch(stepper_of(weights, 1000), VOCABULARY, options, generators, [])
        told = np.bincount(search.tell(1)[0], minlength=5)[2:5] / 500
        assert told.tolist() == pytest.approx(expected, abs=0.07)


@pytest.mark.parametrize("random_seed", range(3))
def test_next_words_have_the_probability_of_all_ways_to_them(random_seed: int) -> None:
    vocabulary = Vocabulary.build(["a b c, "], 1, min_count=1)
    size = len(vocabulary)
    weights = random_tensors(weight_shapes(CONFIGURATION, size), random_seed)
    weights["output.bias"][END] = -99.0
    words = dict(next_words(stepper_of(weights, 64), vocabulary))
    # A word of one letter that a space or a comma follows, read by itself.
    for letter in "abc":
        stepper = stepper_of(weights)
        ids = {gram: vocabulary.ngrams.index(gram) + 2 for gram in vocabulary.ngrams}
        p = float(np.exp(log_probabilities(stepper.logits)[0, ids[letter]]))
        stepper.step([ids[letter]])
        p *= float(np.exp(log_probabilities(stepper.logits)[0, [ids[" "], ids[","]]]).sum())
        assert words[letter] == pytest.approx(p, rel=1e-4)
    assert sum(words.values()) <= 1.0001
    assert list(words.values()) == sorted(words.values(), reverse=True)
