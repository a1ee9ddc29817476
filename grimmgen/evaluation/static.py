"""Evaluate a model with fixed weights: perplexity per token and bits per character.

A document is read from its first n-gram to its `<end>`, starting from a zero state. A document of more than 65,536
n-grams (a book; all tales are shorter) is cut into parts of equal length, which are read side by side, each from
a zero state: this is much faster, and hardly changes the score, because the network's memory spans a few hundred
n-grams. Training and `grimmgen eval` both report the figures of `evaluate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.counts.mixture import TokenScores
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.scores import Evaluation, Score
from grimmgen.network.model import LanguageModel
from grimmgen.runs.registry import TrainedModel
from grimmgen.text import encoding
from grimmgen.text.batches import Window, evaluation_windows
from grimmgen.text.corpus import Document, ExtractedDocuments
from grimmgen.text.id_cache import DocumentLengths
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary

# Batch rows and time steps of a window; they change only the last digits of the scores.
_ROWS = 64
_STEPS = 128
# Logits of a window, where all of them are needed at once.
_LARGEST_LOGITS = 1 << 24
# Time steps of the window that an estimate is made from.
_PROBE = 16
# Predictions in one part of a long document.
_PART = 1 << 16


class EvaluationStoppedError(Exception):
    """An evaluation was stopped before it was complete."""


@dataclass(frozen=True)
class EncodedDocument:
    """A document as token ids, with what its score needs.

    Attributes:
        name: of the document.
        ids: its tokens, [N].
        spelling: nats for spelling out the characters of `<unk>` tokens.
        characters: number of characters of the normalised text.
    """

    name: str
    ids: NDArray[np.uint16] | NDArray[np.int32]
    spelling: float
    characters: int

    @classmethod
    def encode(
        cls,
        name: str,
        text: str | Iterable[str],
        vocabulary: Vocabulary,
        limit: int | None = None,
        exact: bool = False,
    ) -> EncodedDocument:
        """Encode a text.

        Args:
            name: of the document.
            text: the whole text, or its consecutive pieces.
            vocabulary: of the model.
            limit: stop after the piece that reaches this many tokens.
            exact: whether that piece is cut.
        """
        parts, tokens, spelling, characters = [], 0, 0.0, 0
        for codes in encoding.token_codes([text] if isinstance(text, str) else text, vocabulary):
            ids = vocabulary.ids(codes)
            costs = vocabulary.costs(codes, ids)
            if exact and limit is not None:
                ids, costs = ids[: limit - tokens], costs[: limit - tokens]
            parts.append(ids.astype(vocabulary.id_type))
            tokens += len(ids)
            spelling += float(costs.sum())
            characters += min(len(codes), int(vocabulary.lengths(ids).sum()))
            if limit is not None and tokens >= limit:
                break
        return cls(name, np.concatenate(parts), spelling, characters)

    def score(self, nats: float) -> Score:
        """The document's score, from the network's loss over its tokens and `<end>` in nats."""
        return Score(
            self.name,
            nats + self.spelling,
            len(self.ids) + 1,
            self.characters,
            int(np.count_nonzero(self.ids == UNKNOWN)),
        )


def encode_for_evaluation(
    texts: Iterable[tuple[str, str | Iterable[str]]],
    vocabulary: Vocabulary,
    limit: int | None = None,
    exact: bool = False,
) -> list[EncodedDocument]:
    """Encode (name, text) pairs, skipping empty texts.

    Args:
        texts: each text whole, or as consecutive pieces.
        vocabulary: of the model.
        limit: number of tokens, over all documents, after which encoding stops.
        exact: whether to stop at this number, not at the end of a piece of text.

    Raises:
        GrimmgenError: all texts are empty.
    """
    encoded: list[EncodedDocument] = []
    left = limit
    for name, text in texts:
        document = EncodedDocument.encode(name, text, vocabulary, left, exact)
        if document.characters:
            encoded.append(document)
        if left is not None and (left := left - len(document.ids)) <= 0:
            break
    if not encoded:
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    return encoded


def encode_documents_for_evaluation(
    documents: Sequence[Document], vocabulary: Vocabulary, limit: int | None = None, exact: bool = False
) -> list[EncodedDocument]:
    """Encode documents, skipping empty ones; see `encode_for_evaluation`."""
    if not (isinstance(documents, ExtractedDocuments) and documents.row_by_row):
        texts = ((document.name, document.pieces()) for document in documents)
        return encode_for_evaluation(texts, vocabulary, limit, exact)
    ids, costs = list[NDArray[Any]](), [np.zeros(1)]
    lengths, characters, size = DocumentLengths(), DocumentLengths(), 0
    for block in encoding.encode_joined(documents, vocabulary, with_costs=True):
        ids.append(block.ids.astype(vocabulary.id_type))
        costs.append(block.costs)
        lengths.add(len(block.ids), block.ends)
        characters.add(block.size, block.characters)
        size += len(block.ids)
        if limit is not None and size >= limit:
            break
    joined, spelling = np.concatenate(ids), np.cumsum(np.concatenate(costs))
    ends = np.cumsum(lengths.all())
    # The document that reaches the limit is the last one.
    count = len(ends) if limit is None else min(len(ends), int(np.searchsorted(ends, limit)) + 1)
    bounds = np.concatenate([[0], ends[:count]])
    if exact and limit is not None:
        bounds = np.minimum(bounds, limit)
    parts = zip(bounds[:-1].tolist(), bounds[1:].tolist(), characters.all().tolist(), strict=False)
    encoded = [
        EncodedDocument(documents[i].name, joined[begin:end], float(spelling[end] - spelling[begin]), size)
        for i, (begin, end, size) in enumerate(parts)
        if end > begin
    ]
    if not encoded:
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    return encoded


def load_network(trained: TrainedModel, device: torch.device) -> LanguageModel:
    """The network of a trained model."""
    checkpoint = trained.checkpoint
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(device)
    model.load_weights(checkpoint.weights)
    return model


def _identity(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    return nats


def evaluate(
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    shard: tuple[int, int] = (0, 1),
    total: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _identity,
    stopped: Callable[[], bool] | None = None,
    part: int | None = None,
) -> Evaluation:
    """Score each document, without dropout.

    Args:
        model: on any device.
        documents: at least one, none of them empty.
        shard: (rank, size): evaluate only every `size`-th part, starting from part `rank`.
        total: sums an array over all shards.
        stopped: asked before each window whether to stop; None never stops.
        part: predictions in one part of a long document; None is 65,536.

    Raises:
        EvaluationStoppedError: it was stopped, in this shard or in another one.
    """
    nats = np.zeros(len(documents))
    batches = _batches(documents, shard, part)
    complete = all(_add_losses(nats, model, documents, rows, stopped) for rows in batches)
    # All shards agree on it, in one more sum.
    if stopped is not None and total(np.array([float(not complete)]))[0]:
        raise EvaluationStoppedError
    scores = zip(documents, total(nats), strict=True)
    return Evaluation(tuple(document.score(float(n)) for document, n in scores))


def token_scores(model: LanguageModel, documents: Sequence[EncodedDocument]) -> list[TokenScores]:
    """What the network says of each token, for mixtures and ensembles; the nats of a document add up to its score.

    Args:
        model: on any device.
        documents: at least one, none of them empty.
    """
    scores = [np.zeros((3, len(document.ids) + 1)) for document in documents]
    for batch in windows_of(documents, model.vocabulary_size):
        state = None
        for window, rows in batch:
            before = model.zero_state(len(rows)) if state is None else tuple(t[:, : len(rows)] for t in state)
            found, state = model.token_scores(window, before)
            for column, (document, begin, end) in enumerate(rows):
                scores[document][:, begin:end] = found[:, : end - begin, column]
    return [TokenScores(*rows) for rows in scores]


def windows_of(
    documents: Sequence[EncodedDocument], vocabulary_size: int
) -> Iterator[Iterator[tuple[Window, list[tuple[int, int, int]]]]]:
    """Batches of documents, where the logits of a whole window are needed at once.

    Args:
        documents: at least one, none of them empty.
        vocabulary_size: V.

    Yields:
        For each batch its windows, [T, B], and for each row of a window the number of its document, and the
        predictions that it reads, from and to. B falls from window to window, as the last rows end. A batch starts
        from a zero state.
    """

    def batch(rows: list[_Row]) -> Iterator[tuple[Window, list[tuple[int, int, int]]]]:
        steps = min(_STEPS, max(1, _LARGEST_LOGITS // (len(rows) * vocabulary_size)))
        windows = evaluation_windows([documents[i].ids for i, _ in rows], steps, [span for _, span in rows])
        for number, window in enumerate(windows):
            spans = [
                (i, begin + number * steps, min(end, begin + (number + 1) * steps)) for i, (begin, end) in rows
            ]
            active = [span for span in spans if span[1] < span[2]]
            yield window.first(len(active)), active

    return map(batch, _batches(documents, (0, 1), None))


def seconds_to_evaluate(
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    clock: Callable[[], float],
    shard: tuple[int, int] = (0, 1),
    part: int | None = None,
) -> float:
    """Estimate how long `evaluate` takes, from a short window of as many rows as its first one has.

    Args:
        model: on any device.
        documents: at least one, none of them empty.
        clock: returns seconds.
        shard: as for `evaluate`.
        part: as for `evaluate`.
    """
    batches = _batches(documents, shard, part)
    if not batches:
        return 0.0
    time_steps = sum(end - begin for ((_, (begin, end)), *_) in batches)
    streams = [documents[i].ids[begin : min(end, begin + _PROBE)] for i, (begin, end) in batches[0]]
    window = evaluation_windows(streams, _PROBE)[0]
    model.losses(window, model.zero_state(len(streams)))  # includes what is done only once
    began = clock()
    model.losses(window, model.zero_state(len(streams)))
    return (clock() - began) / len(window.inputs) * time_steps


# One row of a batch: the number of its document, and the predictions that it reads, from and to.
_Row = tuple[int, tuple[int, int]]


def _batches(documents: Sequence[EncodedDocument], shard: tuple[int, int], part: int | None) -> list[list[_Row]]:
    """The parts of the documents that a shard evaluates, in batches; the longest part of a batch is its first."""
    # Parts of similar length share a batch, to limit padding; the result is independent of the documents' order.
    parts = [
        (i, span) for i, document in enumerate(documents) for span in _parts(len(document.ids) + 1, part or _PART)
    ]
    parts.sort(key=lambda row: (row[1][0] - row[1][1], documents[row[0]].name, row[1]))
    rank, size = shard
    parts = parts[rank::size]
    return [parts[first : first + _ROWS] for first in range(0, len(parts), _ROWS)]


def _add_losses(
    nats: NDArray[np.float64],
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    rows: Sequence[_Row],
    stopped: Callable[[], bool] | None,
) -> bool:
    """Add the losses of a batch to those of its documents; returns whether it was read to its end."""
    state = model.zero_state(len(rows))
    windows = evaluation_windows([documents[i].ids for i, _ in rows], _STEPS, [span for _, span in rows])
    for number, window in enumerate(windows):
        if stopped is not None and stopped():
            return False
        # Rows are sorted by descending length: those that have ended are the last ones, and are dropped.
        active = sum(end - begin > number * _STEPS for _, (begin, end) in rows)
        state = tuple(tensor[:, :active] for tensor in state)
        losses, state = model.losses(window.first(active), state)
        np.add.at(nats, [i for i, _ in rows[:active]], losses.sum(axis=0))
    return True


def _parts(predictions: int, longest: int) -> list[tuple[int, int]]:
    """The (begin, end) ranges of predictions that are read in separate rows."""
    count = -(-predictions // longest)
    bounds = [predictions * k // count for k in range(count + 1)]
    return list(itertools.pairwise(bounds))
