"""Evaluate a model with fixed weights: perplexity per n-gram and bits per character.

A document is read from its first n-gram to its `<end>`, starting from a zero state. A document of more than 65,536
n-grams (a book; all tales are shorter) is cut into parts of equal length, which are read side by side, each from
a zero state: this is much faster, and hardly changes the score, because the network's memory spans a few hundred
n-grams. Training and `grimmgen eval` both report the figures of `evaluate`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.scores import Evaluation, Score
from grimmgen.network.model import LanguageModel
from grimmgen.text import encoding
from grimmgen.text.batches import evaluation_windows
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary

# Batch rows and time steps of a window; they change only the last digits of the scores.
_ROWS = 64
_STEPS = 128
# Predictions in one part of a long document.
_PART = 1 << 16


@dataclass(frozen=True)
class EncodedDocument:
    """A document as token ids, with what its score needs.

    Attributes:
        name: of the document.
        ids: its n-grams, [N].
        spelling: nats for spelling out the characters of `<unk>` tokens.
        characters: number of characters of the normalised text.
    """

    name: str
    ids: NDArray[np.uint16] | NDArray[np.int32]
    spelling: float
    characters: int

    @classmethod
    def encode(
        cls, name: str, text: str | Iterable[str], vocabulary: Vocabulary, limit: int | None = None
    ) -> EncodedDocument:
        """Encode a text.

        Args:
            name: of the document.
            text: the whole text, or its consecutive pieces.
            vocabulary: of the model.
            limit: stop after the piece that reaches this many n-grams.
        """
        parts, ngrams, spelling, characters = [], 0, 0.0, 0
        for codes in encoding.ngram_codes([text] if isinstance(text, str) else text, vocabulary):
            ids = vocabulary.ids(codes)
            parts.append(ids.astype(vocabulary.id_type))
            ngrams += len(ids)
            spelling += float(vocabulary.costs(codes, ids).sum())
            characters += len(codes)
            if limit is not None and ngrams >= limit:
                break
        return cls(name, np.concatenate(parts), spelling, characters)

    def score(self, nats: float) -> Score:
        """The document's score, from the network's loss over its n-grams and `<end>` in nats."""
        return Score(
            self.name,
            nats + self.spelling,
            len(self.ids) + 1,
            self.characters,
            int(np.count_nonzero(self.ids == UNKNOWN)),
        )


def encode_for_evaluation(
    texts: Iterable[tuple[str, str | Iterable[str]]], vocabulary: Vocabulary, limit: int | None = None
) -> list[EncodedDocument]:
    """Encode (name, text) pairs, skipping empty texts.

    Args:
        texts: each text whole, or as consecutive pieces.
        vocabulary: of the model.
        limit: number of n-grams, over all documents, after which encoding stops.

    Raises:
        GrimmgenError: all texts are empty.
    """
    encoded: list[EncodedDocument] = []
    left = limit
    for name, text in texts:
        document = EncodedDocument.encode(name, text, vocabulary, left)
        if document.characters:
            encoded.append(document)
        if left is not None and (left := left - len(document.ids)) <= 0:
            break
    if not encoded:
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    return encoded


def _identity(nats: NDArray[np.float64]) -> NDArray[np.float64]:
    return nats


def evaluate(
    model: LanguageModel,
    documents: Sequence[EncodedDocument],
    shard: tuple[int, int] = (0, 1),
    total: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _identity,
) -> Evaluation:
    """Score each document, without dropout.

    Args:
        model: on any device.
        documents: at least one, none of them empty.
        shard: (rank, size): evaluate only every `size`-th part, starting from part `rank`.
        total: sums the nats of the documents, [N], over all shards.
    """
    # Parts of similar length share a batch, to limit padding; the result is independent of the documents' order.
    parts = [(i, part) for i, document in enumerate(documents) for part in _parts(len(document.ids) + 1)]
    parts.sort(key=lambda row: (row[1][0] - row[1][1], documents[row[0]].name, row[1]))
    rank, size = shard
    parts = parts[rank::size]
    nats = np.zeros(len(documents))
    for first in range(0, len(parts), _ROWS):
        rows = parts[first : first + _ROWS]
        state = model.zero_state(len(rows))
        windows = evaluation_windows([documents[i].ids for i, _ in rows], _STEPS, [part for _, part in rows])
        for number, window in enumerate(windows):
            # Rows are sorted by descending length: those that have ended are the last ones, and are dropped.
            active = sum(end - begin > number * _STEPS for _, (begin, end) in rows)
            state = tuple(tensor[:, :active] for tensor in state)
            losses, state = model.losses(window.first(active), state)
            np.add.at(nats, [i for i, _ in rows[:active]], losses.sum(axis=0))
    scores = zip(documents, total(nats), strict=True)
    return Evaluation(tuple(document.score(float(n)) for document, n in scores))


def _parts(predictions: int) -> list[tuple[int, int]]:
    """The (begin, end) ranges of predictions that are read in separate rows."""
    count = -(-predictions // _PART)
    bounds = [predictions * k // count for k in range(count + 1)]
    return list(itertools.pairwise(bounds))
