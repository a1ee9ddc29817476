"""Static evaluation: long documents are read in parts, long texts in pieces, and shards add up."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grimmgen.errors import GrimmgenError
from grimmgen.evaluation import static
from grimmgen.evaluation.static import (
    EncodedDocument,
    EvaluationStoppedError,
    encode_for_evaluation,
    evaluate,
    seconds_to_evaluate,
)
from grimmgen.network.model import LanguageModel
from tests.builders import TEXT, tiny_configuration, tiny_vocabulary

TEXTS = {"repetitive": "the king a" * 12, "short": "a", "unknown": "zzz, the 中 end", "tale": TEXT}


def model_and_documents(**options: Any) -> tuple[LanguageModel, list[EncodedDocument]]:
    """A model with random weights, and TEXTS in its encoding."""
    configuration = tiny_configuration(hidden=12, initialisation="xavier", **options)
    vocabulary = tiny_vocabulary(configuration)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    return model, encode_for_evaluation(TEXTS.items(), vocabulary)


def test_long_document_is_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, documents = model_and_documents()
    whole = evaluate(model, documents)
    longest = max(len(document.ids) for document in documents) + 1
    monkeypatch.setattr(static, "_PART", longest)
    assert evaluate(model, documents) == whole
    monkeypatch.setattr(static, "_PART", 25)
    in_parts = evaluate(model, documents)
    for document, score, expected in zip(documents, in_parts.documents, whole.documents, strict=True):
        assert (score.predictions, score.characters) == (expected.predictions, expected.characters)
        tolerance = 0.0 if len(document.ids) < 25 else 0.02
        assert score.nats == pytest.approx(expected.nats, rel=tolerance, abs=0.0)
    # Each part starts from a zero state, and its first input is the n-gram before it.
    document = documents[0]
    count = -(-(len(document.ids) + 1) // 25)
    assert count > 2
    targets, inputs = [*document.ids.tolist(), 1], [1, *document.ids.tolist()]
    nats = 0.0
    for begin, end in itertools.pairwise(len(targets) * k // count for k in range(count + 1)):
        logits, _ = model.logits(torch.tensor(inputs[begin:end])[:, None], model.zero_state(1))
        loss = torch.nn.functional.cross_entropy(logits[:, 0], torch.tensor(targets[begin:end]), reduction="sum")
        nats += loss.item()
    assert in_parts.documents[0].nats == pytest.approx(nats + document.spelling, rel=1e-5)


@pytest.mark.parametrize("size", [1, 3, 9])
def test_shards_add_up_to_the_whole(size: int) -> None:
    model, documents = model_and_documents()
    shards: list[NDArray[np.float64]] = []

    def keep(nats: NDArray[np.float64]) -> NDArray[np.float64]:
        shards.append(nats)
        return nats

    for rank in range(size):
        evaluate(model, documents, (rank, size), keep)
    assert (np.count_nonzero(shards, axis=0) == 1).all()
    total = evaluate(model, documents, (0, size), lambda _: np.sum(shards, axis=0))
    expected = [score.nats for score in evaluate(model, documents).documents]
    assert [score.nats for score in total.documents] == pytest.approx(expected)


def test_pieces_of_a_text_encode_as_the_whole_text() -> None:
    configuration = tiny_configuration()
    vocabulary = tiny_vocabulary(configuration)
    text = "the king, zzz, and the thin hen" * 3
    whole = EncodedDocument.encode("tale", text, vocabulary)
    ids, costs, characters = vocabulary.encode_with_costs(text)
    assert whole.ids.tolist() == ids.tolist()
    assert whole.spelling == pytest.approx(costs.sum())
    pieces = [text[i : i + 5] for i in range(0, len(text), 5)]
    in_pieces = EncodedDocument.encode("tale", pieces, vocabulary)
    assert in_pieces.ids.tolist() == ids.tolist()
    assert in_pieces.spelling == pytest.approx(whole.spelling)
    assert in_pieces.characters == whole.characters == characters


def test_encoding_stops_at_the_limit() -> None:
    vocabulary = tiny_vocabulary(tiny_configuration())
    text = "the king, zzz, and the thin hen" * 3
    whole = EncodedDocument.encode("tale", text, vocabulary)
    part = EncodedDocument.encode("tale", [text[i : i + 5] for i in range(0, len(text), 5)], vocabulary, 8)
    assert 8 <= len(part.ids) < 12
    assert part.ids.tolist() == whole.ids[: len(part.ids)].tolist()
    some = encode_for_evaluation([("a", ""), ("b", text), ("c", text)], vocabulary, len(whole.ids))
    assert [document.name for document in some] == ["b"]


def test_empty_texts_cannot_be_evaluated() -> None:
    with pytest.raises(GrimmgenError, match="there is no text to evaluate"):
        encode_for_evaluation([("a", ""), ("b", "")], tiny_vocabulary(tiny_configuration()))


def test_a_stopped_shard_stops_all_of_them() -> None:
    model, documents = model_and_documents()
    sums: list[NDArray[np.float64]] = []

    def keep(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        sums.append(numbers)
        return numbers

    with pytest.raises(EvaluationStoppedError):
        evaluate(model, documents, total=keep, stopped=lambda: True)
    assert [numbers.tolist() for numbers in sums] == [[1.0]]
    # Another shard learns it from the sum.
    with pytest.raises(EvaluationStoppedError):
        evaluate(model, documents, total=lambda _: sums[0], stopped=lambda: False)
    assert evaluate(model, documents, stopped=lambda: False) == evaluate(model, documents)


def test_the_duration_of_an_evaluation_is_estimated() -> None:
    model, documents = model_and_documents()
    clock = itertools.count(0.0, 16.0)  # of 16 time steps
    longest = max(len(document.ids) + 1 for document in documents)
    assert seconds_to_evaluate(model, documents, clock.__next__) == longest
    parts = seconds_to_evaluate(model, documents, clock.__next__, part=16)
    assert parts < longest
    assert seconds_to_evaluate(model, documents, clock.__next__, (99, 100)) == 0.0
