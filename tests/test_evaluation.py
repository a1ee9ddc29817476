"""Dynamic evaluation: a story's own past helps, and nothing else changes."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.configuration import Cell
from grimmgen.evaluation import EncodedStory, encode_stories, evaluate, evaluate_dynamically
from grimmgen.model import LanguageModel
from grimmgen.scores import Evaluation
from tests.builders import NETWORKS, TEXT, tiny_configuration, tiny_vocabulary

STORIES = {"repetitive": "the king a" * 12, "short": "a", "unknown": "zzz, the 中 end", "tale": TEXT}
# What differs between networks here is what there is to learn and to put back.
SOME = ["lstm1", *(f"{cell}2-tied" for cell in get_args(Cell)), "mogrifier1-1-round"]


def given(**options: Any) -> tuple[LanguageModel, list[EncodedStory]]:
    """A model of random weights, and stories that it may read."""
    configuration = tiny_configuration(hidden=12, initialisation="xavier", **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    return model, encode_stories(STORIES.items(), vocabulary)


def nats(evaluation: Evaluation) -> dict[str, float]:
    return {score.name: score.nats for score in evaluation.stories}


@pytest.mark.parametrize("network", SOME)
@pytest.mark.parametrize("segment", [5, 1000])
def test_at_a_rate_of_zero_it_is_the_static_figure(network: str, segment: int) -> None:
    wet = {"dropout": 0.9, "weight_drop": 0.5}  # of which nobody who evaluates knows
    model, stories = given(**NETWORKS[network], **wet)
    still, moving = evaluate(model, stories), evaluate_dynamically(model, stories, 0.0, segment)
    for static, dynamic in zip(still.stories, moving.stories, strict=True):
        assert dynamic.nats == pytest.approx(static.nats, rel=1e-5)
        for name in ("name", "predictions", "characters", "unknown"):
            assert getattr(dynamic, name) == getattr(static, name)


@pytest.mark.parametrize("network", SOME)
def test_the_weights_are_as_they_were_to_the_bit(network: str) -> None:
    model, stories = given(**NETWORKS[network])
    before = model.weights()
    evaluate_dynamically(model, stories, 0.01, 5)
    assert {name: w.tobytes() for name, w in model.weights().items()} == {
        name: w.tobytes() for name, w in before.items()
    }


def test_each_story_is_read_as_if_it_were_the_only_one() -> None:
    model, stories = given(embedding=4, tied=True)
    together = nats(evaluate_dynamically(model, stories, 0.01, 5))
    backwards = nats(evaluate_dynamically(model, stories[::-1], 0.01, 5))
    alone = {story.name: nats(evaluate_dynamically(model, [story], 0.01, 5))[story.name] for story in stories}
    assert together == backwards == alone


def test_what_repeats_itself_costs_less_and_each_segment_is_scored_before_it_is_learnt() -> None:
    model, stories = given(min_count=1)
    assert not stories[0].spelling.any()
    static, dynamic = nats(evaluate(model, stories)), nats(evaluate_dynamically(model, stories, 0.05, 4))
    assert dynamic["repetitive"] < 0.7 * static["repetitive"]
    # A story of a single segment gives nothing to learn from before its end.
    assert dynamic["short"] == pytest.approx(static["short"], rel=1e-6)
    whole = nats(evaluate_dynamically(model, stories, 0.01, 1000))
    assert whole == pytest.approx(static, rel=1e-5)


def test_it_is_adam_on_the_segments_of_a_story_one_after_the_other() -> None:
    model, stories = given(embedding=4)
    story = stories[0]
    right = 0.0
    twin = LanguageModel(model.configuration, model.vocabulary_size)
    twin.load_weights(model.weights())
    optimiser = torch.optim.Adam(twin.parameters(), 0.01)
    state = twin.zero_state(1)
    inputs, targets = [1, *story.ids.tolist()], [*story.ids.tolist(), 1]
    for begin in range(0, len(inputs), 7):
        step = torch.tensor(inputs[begin : begin + 7])[:, None]
        hidden, after = twin(step, state, None)
        rows, weight, bias = twin._output(hidden)
        segment = torch.tensor(targets[begin : begin + 7])
        loss = torch.nn.functional.cross_entropy(rows @ weight + bias, segment, reduction="sum")
        right += loss.item()
        optimiser.zero_grad()
        # The mean over a segment's steps; the last one's that there are not count as steps.
        (loss / 7).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 5.0)
        optimiser.step()
        state = type(state)(after.h.detach(), after.c.detach())
    made = evaluate_dynamically(model, [story], 0.01, 7).stories[0]
    assert made.nats == pytest.approx(right + float(story.spelling.sum()), rel=1e-4)
    assert made.bits_per_character == pytest.approx(made.nats / math.log(2) / len(STORIES["repetitive"]))


def test_who_waits_is_told_how_many_stories_are_done() -> None:
    model, stories = given()
    told: list[int] = []
    evaluate_dynamically(model, stories, told=told.append)
    assert told == [1, 2, 3, 4]
    assert not any(np.isnan(score.nats) for score in evaluate(model, stories).stories)
