"""Beam search: compared with exhaustive search, merging of equal texts, and the choice of a beam."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from grimmgen.configuration import Configuration
from grimmgen.network import backends
from grimmgen.network.backends.numpy import Floats, Stepper
from grimmgen.network.shapes import weight_shapes
from grimmgen.sampling.beams import Beam, BeamSearch, grow
from grimmgen.sampling.logits import log_probabilities
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import END, UNKNOWN
from tests.builders import random_tensors

# Three bigrams and a single last letter: five ids besides <unk>.
VOCABULARY = NgramVocabulary.build(["abcdefg"], min_count=1)
CONFIGURATION = Configuration(hidden=6)
V = len(VOCABULARY)
DEPTH = 3


def weights_of(random_seed: int) -> dict[str, Floats]:
    weights = random_tensors(weight_shapes(CONFIGURATION, V), random_seed)
    weights["output.bias"] = np.random.default_rng(random_seed).normal(0, 1, V).astype(np.float32)
    return weights


def stepper_of(weights: dict[str, Floats], B: int = 1) -> Stepper:
    stepper = backends.stepper(CONFIGURATION, weights, np.zeros((2, 1, B, 6), np.float32))
    stepper.step([END] * B)
    return stepper


def all_sequences(weights: dict[str, Floats]) -> dict[tuple[int, ...], float]:
    """All sequences of that depth and their log-probabilities, read one by one; only `<end>` follows `<end>`."""
    scores = {}
    for ids in itertools.product(range(1, V), repeat=DEPTH):
        stepper, score = stepper_of(weights), 0.0
        for previous, token in zip((None, *ids), ids, strict=False):
            if previous != END:
                score += float(log_probabilities(stepper.logits)[0, token])
            elif token != END:
                break
            stepper.step([token])
        else:
            scores[ids] = score
    return scores


@pytest.mark.parametrize("kernel", ["plain", ""])
@pytest.mark.parametrize("random_seed", range(4))
def test_an_exhaustive_beam_finds_the_most_probable_sequence(
    random_seed: int, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    weights = weights_of(random_seed)
    scores = all_sequences(weights)
    best = max(scores, key=lambda ids: scores[ids])
    options = SamplingOptions(beam_width=256, beam_depth=DEPTH, greedy=True)
    assert V**DEPTH <= 256
    search = BeamSearch(stepper_of(weights, 256), VOCABULARY, options, [np.random.default_rng(0)], [])
    assert tuple(search.sample(1)[:, 0].tolist()) == best


@pytest.mark.parametrize("random_seed", range(4))
def test_beams_carry_their_own_state_in_order_of_their_score(random_seed: int) -> None:
    weights = weights_of(random_seed)
    width = 200
    stepper, grown = stepper_of(weights, width), [Beam()]
    for _ in range(DEPTH):
        log_p = log_probabilities(stepper.logits[: len(grown)])
        log_p[:, UNKNOWN] = -np.inf
        grown = grow(grown, log_p, width, VOCABULARY)
        rows = grown + grown[:1] * (width - len(grown))
        stepper.select_rows(np.array([beam.parent for beam in rows]))
        stepper.step([beam.ids[-1] for beam in rows])
    scores = all_sequences(weights)
    assert {beam.ids for beam in grown} == set(scores)
    assert [beam.score for beam in grown] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-4)
    assert all(scores[beam.ids] == pytest.approx(beam.score, abs=1e-4) for beam in grown)


def test_a_narrow_beam_keeps_the_best_of_each_step() -> None:
    log_p = np.log(np.array([[0.1, 0.1, 0.2, 0.3, 0.2, 0.1], [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]]))
    log_p[:, UNKNOWN] = -np.inf
    grown = grow([Beam(math.log(0.7), (2,), "ab"), Beam(math.log(0.3), (3,), "cd")], log_p, 2, VOCABULARY)
    assert [(beam.ids, beam.parent) for beam in grown] == [((2, 3), 0), ((3, 2), 1)]
    assert [math.exp(beam.score) for beam in grown] == pytest.approx([0.21, 0.15])


def test_beams_with_equal_text_are_merged() -> None:
    # "a" + "bc" and "ab" + "c" have the same text; an ended beam is distinct from one that has not ended.
    vocabulary = NgramVocabulary.build(["ab", "bc", "a", "c"], min_count=1)
    a, ab, bc, c = (vocabulary.texts.index(gram) + 2 for gram in ("a", "ab", "bc", "c"))
    log_p = np.full((2, len(vocabulary)), -np.inf)
    log_p[0, bc], log_p[0, END], log_p[1, c] = np.log([0.5, 0.5, 0.9])
    grown = grow([Beam(math.log(0.3), (a,), "a"), Beam(math.log(0.6), (ab,), "ab")], log_p, 5, vocabulary)
    assert [(beam.text, beam.ids, beam.parent) for beam in grown] == [("abc", (ab, c), 1), ("a", (a, END), 0)]
    assert [math.exp(beam.score) for beam in grown] == pytest.approx([0.54 + 0.15, 0.15])


def test_an_ended_beam_keeps_its_score_and_text() -> None:
    [beam] = grow([Beam(-1.5, (2, END), "ab")], np.zeros((1, V)), 3, VOCABULARY)
    assert (beam.score, beam.ids, beam.text) == (-1.5, (2, END, END), "ab")


def test_beams_are_sampled_by_probability_and_temperature() -> None:
    weights = {name: np.zeros_like(tensor) for name, tensor in weights_of(0).items()}
    weights["output.bias"][:] = -99.0
    weights["output.bias"][[2, 3, 4]] = np.log([0.6, 0.3, 0.1])
    for temperature, expected in ((1.0, [0.667, 0.333, 0.0]), (0.5, [0.8, 0.2, 0.0])):
        options = SamplingOptions(beam_width=2, beam_depth=1, temperature=temperature)
        generators = [np.random.default_rng(seed) for seed in range(500)]
        search = BeamSearch(stepper_of(weights, 1000), VOCABULARY, options, generators, [])
        frequencies = np.bincount(search.sample(1)[0], minlength=5)[2:5] / 500
        assert frequencies.tolist() == pytest.approx(expected, abs=0.07)
