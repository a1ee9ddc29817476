"""Dynamic evaluation: a story's own past helps, and nothing else changes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from grimmgen.evaluation.dynamic import evaluate_dynamically, sample, usual_gradients
from grimmgen.evaluation.scores import Evaluation
from grimmgen.evaluation.static import EncodedDocument, encode_stories, evaluate
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from tests.builders import NETWORKS, TEXT, tiny_configuration, tiny_vocabulary

STORIES = {"repetitive": "the king a" * 12, "short": "a", "unknown": "zzz, the 中 end", "tale": TEXT}
# What differs between networks here is what there is to learn and to put back.
SOME = ["lstm1", *(f"{cell}2-tied" for cell in cells()), "mogrifier1-1-round"]


def given(**options: Any) -> tuple[LanguageModel, list[EncodedDocument]]:
    """A model of random weights, and stories that it may read."""
    configuration = tiny_configuration(hidden=12, initialisation="xavier", **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    return model, encode_stories(STORIES.items(), vocabulary)


def nats(evaluation: Evaluation) -> dict[str, float]:
    return {score.name: score.nats for score in evaluation.documents}


@pytest.mark.parametrize("network", SOME)
@pytest.mark.parametrize("segment", [5, 40])
def test_at_a_rate_of_zero_it_is_the_static_figure(network: str, segment: int) -> None:
    wet = {"dropout": 0.9, "weight_drop": 0.5}  # of which nobody who evaluates knows
    model, stories = given(**NETWORKS[network], **wet)
    still, moving = evaluate(model, stories), evaluate_dynamically(model, stories, 0.0, segment=segment)
    for static, dynamic in zip(still.documents, moving.documents, strict=True):
        assert dynamic.nats == pytest.approx(static.nats, rel=1e-5)
        for name in ("name", "predictions", "characters", "unknown"):
            assert getattr(dynamic, name) == getattr(static, name)


@pytest.mark.parametrize("network", SOME)
def test_the_weights_are_as_they_were_to_the_bit(network: str) -> None:
    model, stories = given(**NETWORKS[network])
    before = model.weights()
    evaluate_dynamically(model, stories, 0.01, segment=5)
    assert {name: w.tobytes() for name, w in model.weights().items()} == {
        name: w.tobytes() for name, w in before.items()
    }


def test_each_story_is_read_as_if_it_were_the_only_one() -> None:
    model, stories = given(embedding=4, tied=True)
    together = nats(evaluate_dynamically(model, stories, 0.01, segment=5))
    backwards = nats(evaluate_dynamically(model, stories[::-1], 0.01, segment=5))
    alone = {
        story.name: nats(evaluate_dynamically(model, [story], 0.01, segment=5))[story.name] for story in stories
    }
    assert together == backwards == alone


def test_what_repeats_itself_costs_less_and_each_segment_is_scored_before_it_is_learnt() -> None:
    model, stories = given(min_count=1)
    assert not stories[0].spelling
    static, dynamic = nats(evaluate(model, stories)), nats(evaluate_dynamically(model, stories, 0.05, segment=4))
    assert dynamic["repetitive"] < 0.8 * static["repetitive"]
    # A story of a single segment gives nothing to learn from before its end.
    assert dynamic["short"] == pytest.approx(static["short"], rel=1e-6)
    whole = nats(evaluate_dynamically(model, stories, 0.01, segment=70))
    assert whole == pytest.approx(static, rel=1e-5)


def test_it_is_krause_s_step_on_the_segments_of_a_story_one_after_the_other() -> None:
    model, stories = given(embedding=4)
    story, rate, decay, damping = stories[0], 0.01, 0.1, 0.5
    right = 0.0
    twin = LanguageModel(model.configuration, model.vocabulary_size)
    twin.load_weights(model.weights())
    sizes = usual_gradients(model, 7)
    mean = torch.cat([size.flatten() for size in sizes]).mean()
    state = twin.zero_state(1)
    inputs, targets = [1, *story.ids.tolist()], [*story.ids.tolist(), 1]
    for begin in range(0, len(inputs), 7):
        step = torch.tensor(inputs[begin : begin + 7])[:, None]
        hidden, after = twin(step, state, None)
        segment = torch.tensor(targets[begin : begin + 7])
        loss = torch.nn.functional.cross_entropy(twin.logits(hidden)[:, 0], segment, reduction="sum")
        right += loss.item()
        twin.zero_grad()
        # The mean over a segment's steps; the last one's that there are not count as steps.
        (loss / 7).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight, start, size in zip(twin.parameters(), model.parameters(), sizes, strict=True):
                assert weight.grad is not None
                weight.sub_(rate * weight.grad / (size + damping * mean))
                weight.add_(decay * (start - weight))
        state = type(state)(after.h.detach(), after.c.detach())
    made = evaluate_dynamically(model, [story], rate, decay, damping, segment=7).documents[0]
    assert made.nats == pytest.approx(right + story.spelling, rel=1e-4)
    assert made.bits_per_character == pytest.approx(made.nats / math.log(2) / len(STORIES["repetitive"]))


@pytest.mark.parametrize("network", SOME)
def test_the_usual_size_of_a_gradient_is_its_root_mean_square_over_what_the_model_tells(network: str) -> None:
    model, _ = given(**NETWORKS[network])
    sizes = usual_gradients(model, 3)
    for size, weight in zip(sizes, model.parameters(), strict=True):
        assert size.shape == weight.shape
        assert torch.isfinite(size).all()
    assert sum(float(size.sum()) for size in sizes) > 0
    again = usual_gradients(model, 3)
    assert all(torch.equal(one, other) for one, other in zip(sizes, again, strict=True))


def test_what_the_model_tells_has_its_own_probabilities() -> None:
    model, _ = given()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.output.bias[4] = 2.0
    told = sample(model, 30, 200)
    V = model.vocabulary_size
    share = np.exp(2.0) / (V - 1 + np.exp(2.0))
    assert np.mean(told.targets == 4) == pytest.approx(share, abs=0.02)
    assert np.array_equal(told.inputs[1:], told.targets[:-1])
    assert (told.inputs[0] == 1).all()
    assert np.array_equal(told.starts, told.inputs == 1)
    assert len(np.unique(told.targets[:, 0])) > 1


def test_weights_are_put_back_even_if_it_is_interrupted() -> None:
    model, stories = given()
    before = model.weights()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_dynamically(model, stories, 0.1, told=interrupt)
    assert all(np.array_equal(before[name], weight) for name, weight in model.weights().items())


def test_who_waits_is_told_how_many_stories_are_done() -> None:
    model, stories = given()
    told: list[int] = []
    evaluate_dynamically(model, stories, told=told.append)
    assert told == [1, 2, 3, 4]
    assert not any(np.isnan(score.nats) for score in evaluate(model, stories).documents)
