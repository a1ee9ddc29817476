"""Evaluation: long stories in parts, long texts in pieces."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from grimmgen.evaluation import static
from grimmgen.evaluation.static import EncodedDocument, encode_stories, evaluate
from grimmgen.network.model import LanguageModel
from tests.builders import TEXT, tiny_configuration, tiny_vocabulary

STORIES = {"repetitive": "the king a" * 12, "short": "a", "unknown": "zzz, the 中 end", "tale": TEXT}


def given(**options: Any) -> tuple[LanguageModel, list[EncodedDocument]]:
    """A model of random weights, and stories that it may read."""
    configuration = tiny_configuration(hidden=12, initialisation="xavier", **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    return model, encode_stories(STORIES.items(), vocabulary)


def test_a_long_story_is_read_in_parts_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    model, stories = given()
    whole = evaluate(model, stories)
    longest = max(len(story.ids) for story in stories) + 1
    monkeypatch.setattr(static, "_PART", longest)
    assert evaluate(model, stories) == whole
    monkeypatch.setattr(static, "_PART", 25)
    parted = evaluate(model, stories)
    for story, score, right in zip(stories, parted.documents, whole.documents, strict=True):
        assert (score.predictions, score.characters) == (right.predictions, right.characters)
        assert (
            score.nats == right.nats if len(story.ids) < 25 else score.nats == pytest.approx(right.nats, rel=0.02)
        )
    # A part is read as training reads a row: from the n-gram before it on, remembering nothing.
    story = stories[0]
    count = -(-(len(story.ids) + 1) // 25)
    assert count > 2
    targets, inputs = [*story.ids.tolist(), 1], [1, *story.ids.tolist()]
    nats = 0.0
    for begin, end in itertools.pairwise(len(targets) * k // count for k in range(count + 1)):
        hidden, _ = model(torch.tensor(inputs[begin:end])[:, None], model.zero_state(1), None)
        loss = torch.nn.functional.cross_entropy(
            model.logits(hidden)[:, 0], torch.tensor(targets[begin:end]), reduction="sum"
        )
        nats += loss.item()
    assert parted.documents[0].nats == pytest.approx(nats + story.spelling, rel=1e-5)


def test_a_text_in_pieces_is_the_text_and_what_is_beyond_the_most_is_left_out() -> None:
    configuration = tiny_configuration()
    vocabulary = tiny_vocabulary(configuration)
    text = "the king, zzz, and the thin hen" * 3
    whole = EncodedDocument.of("tale", text, vocabulary)
    ids, costs, characters = vocabulary.encode_with_costs(text)
    assert whole.ids.tolist() == ids.tolist()
    assert whole.spelling == pytest.approx(costs.sum())
    pieces = EncodedDocument.of("tale", [text[i : i + 5] for i in range(0, len(text), 5)], vocabulary)
    assert pieces.ids.tolist() == ids.tolist()
    assert pieces.spelling == pytest.approx(whole.spelling)
    assert pieces.characters == whole.characters == characters
    part = EncodedDocument.of("tale", [text[i : i + 5] for i in range(0, len(text), 5)], vocabulary, 8)
    assert 8 <= len(part.ids) < 12
    assert part.ids.tolist() == ids[: len(part.ids)].tolist()
    some = encode_stories([("a", ""), ("b", text), ("c", text)], vocabulary, len(ids))
    assert [story.name for story in some] == ["b"]
