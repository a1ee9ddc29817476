"""Planned endings: whole stories, as long as those of the corpus."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from grimmgen.configuration import Configuration
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.ending import PlannedEnding, sample_length
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import END
from tests.builders import random_tensors

LENGTHS = [600, 900, 1500, 3000, 6000]
# An odd number of characters: the last one is a token by itself.
TEXT = "he went. to the wood. she did, too. the end!."


def teller(bias: float, **provenance: Any) -> TextGenerator:
    """A model of random bigrams that expects the end with a given bias."""
    configuration = Configuration(min_count=1, hidden=4)
    vocabulary = build_vocabulary([TEXT], configuration)
    weights = random_tensors(weight_shapes(configuration, len(vocabulary)))
    weights["output.bias"][END] = bias
    # Sentences are short.
    weights["output.bias"][[i for i, text in enumerate(vocabulary.texts, 2) if "." in text]] += 3.0
    return TextGenerator(TrainedModel("test", Checkpoint(configuration, vocabulary, provenance, weights)))


def test_lengths_are_sampled_from_their_quantiles() -> None:
    generator = np.random.default_rng(0)
    sampled = [sample_length(LENGTHS, 10_000, generator) for _ in range(4000)]
    assert np.quantile(sampled, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx(LENGTHS, rel=0.1)
    assert max(sample_length(LENGTHS, 2000, generator) for _ in range(100)) == 2000


@pytest.mark.parametrize("bias", [-7.0, -4.0])
def test_stories_are_as_long_as_those_of_the_corpus(bias: float) -> None:
    model = teller(bias, lengths=LENGTHS)
    stories = model.generate_batch("", model.options(until="end", top_k=0), 12)
    assert {story.ending for story in stories} == {"end"}
    lengths = [len(story.text) for story in stories]
    assert np.median(lengths) == pytest.approx(1500, rel=0.4)
    assert 350 < min(lengths) < 1000
    assert 3000 < max(lengths) < 7000
    # After a sentence.
    assert sum(story.text.rstrip().endswith(".") for story in stories) > 10
    # The same story as that of its seed alone.
    assert model.generate("", until="end", top_k=0, random_seed=7) == stories[7].text


def test_a_story_ends_within_the_length_that_is_given() -> None:
    model = teller(-7.0, lengths=[50_000, 50_000])
    [story] = model.generate_batch("", model.options(until="end", length=1500, top_k=0), 1)
    assert story.ending == "end"
    assert 1000 < len(story.text) < 1500


def test_only_until_end_is_planned() -> None:
    known, unknown = teller(-9.0, lengths=LENGTHS), teller(-9.0)
    for options in ({"length": 5000}, {"until": "page"}, {"length": 300, "until": "sentence"}):
        assert known.generate("", top_k=0, **options) == unknown.generate("", top_k=0, **options)
    assert known.generate("", until="end", top_k=0) != unknown.generate("", until="end", top_k=0)


@pytest.mark.parametrize("lengths", [None, "x", 5, [], [600], [-3, 0], ["a", None, 1.5], {}])
def test_lengths_of_a_hostile_checkpoint_are_ignored(lengths: object) -> None:
    hostile, plain = teller(-4.0, lengths=lengths), teller(-4.0)
    assert hostile.generate("", until="end", top_k=0) == plain.generate("", until="end", top_k=0)


def test_the_prompt_counts() -> None:
    model = teller(-7.0, lengths=[2000, 2000])
    [story] = model.generate_batch(TEXT[:35] * 50, model.options(until="end", top_k=0), 1)
    assert len(story.text) - len(story.prompt) < 1200


def test_a_short_ngram_is_an_end_too() -> None:
    vocabulary = build_vocabulary([TEXT], Configuration(min_count=1))
    [short] = [i for i in range(2, len(vocabulary)) if len(vocabulary.decode([i])) == 1]
    logits = np.zeros(len(vocabulary), np.float32)
    early = PlannedEnding(1000, "he went.", vocabulary).apply(logits)
    assert np.flatnonzero(np.isneginf(early)).tolist() == [END, short]
    assert vocabulary.decode([short]) == TEXT[-1]
    late = PlannedEnding(1000, "he went. " * 120, vocabulary).apply(logits)
    assert np.flatnonzero(late > 0).tolist() == [END]
    assert PlannedEnding(1000, "he went on" * 110, vocabulary).apply(logits).tolist() == logits.tolist()
