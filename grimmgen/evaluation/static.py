"""How well a model foretells stories: perplexity per n-gram and bits per character.

Every story is read from its first n-gram to its `<end>`, the state carried through it, zero at its start. One of
more than 65,536 n-grams (a book; all tales are shorter) is read in parts of equal length side by side, each from a
zero state: a network remembers some hundred n-grams, so that the figure hardly differs, and is there much sooner.
What training reports after each epoch and what `grimmgen eval` prints come from `evaluate` alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.scores import Evaluation, Score
from grimmgen.network.model import LanguageModel, State
from grimmgen.text import encoding
from grimmgen.text.batches import together
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary

# Rows read side by side and steps at a time: of no influence on the figures beyond the last digits.
_ROWS = 64
_STEPS = 128
# Predictions of one part of a long story.
_PART = 1 << 16


@dataclass(frozen=True)
class EncodedDocument:
    """A story as the network reads it.

    Attributes:
        name: of the story.
        ids: its n-grams, [N].
        spelling: nats that spelling what `<unk>` hides adds.
        characters: of the normalised text.
    """

    name: str
    ids: NDArray[np.uint16] | NDArray[np.int32]
    spelling: float
    characters: int

    @classmethod
    def of(
        cls, name: str, text: str | Iterable[str], vocabulary: Vocabulary, most: int | None = None
    ) -> EncodedDocument:
        """Encode a text, or the pieces of one.

        Args:
            name: of the story.
            text: whole, or in pieces.
            vocabulary: the model's.
            most: n-grams after which what is left may be left out.
        """
        parts, ngrams, spelling, characters = [], 0, 0.0, 0
        for codes in encoding.ngrams([text] if isinstance(text, str) else text, vocabulary):
            ids = vocabulary.ids(codes)
            parts.append(ids.astype(encoding.narrow(vocabulary)))
            ngrams += len(ids)
            spelling += float(vocabulary.costs(codes, ids).sum())
            characters += len(codes)
            if most is not None and ngrams >= most:
                break
        return cls(name, np.concatenate(parts), spelling, characters)


def encode_stories(
    texts: Iterable[tuple[str, str | Iterable[str]]], vocabulary: Vocabulary, most: int | None = None
) -> list[EncodedDocument]:
    """Encode (name, text) pairs, each text whole or in pieces; empty texts are left out.

    Args:
        texts: of the stories.
        vocabulary: the model's.
        most: n-grams after which what is left, within a story or after it, may be left out; None leaves out none.

    Raises:
        GrimmgenError: there is no text at all.
    """
    encoded: list[EncodedDocument] = []
    left = most
    for name, text in texts:
        story = EncodedDocument.of(name, text, vocabulary, left)
        if story.characters:
            encoded.append(story)
        if left is not None and (left := left - len(story.ids)) <= 0:
            break
    if not encoded:
        raise GrimmgenError("there is no text to evaluate", "give a file that is not empty")
    return encoded


def _identity(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    return numbers


def evaluate(
    model: LanguageModel,
    stories: Sequence[EncodedDocument],
    shard: tuple[int, int] = (0, 1),
    total: Callable[[NDArray[np.float64]], NDArray[np.float64]] = _identity,
) -> Evaluation:
    """Score each story; no dropout.

    Args:
        model: on any device.
        stories: at least one, none of them empty.
        shard: the number of this process, and how many share the work.
        total: adds up over all processes.
    """
    # Stories of like length side by side: little is read in vain. The result does not depend on the order
    # in which they are given.
    parts = [(i, part) for i, story in enumerate(stories) for part in _parts(len(story.ids) + 1)]
    parts.sort(key=lambda row: (row[1][0] - row[1][1], stories[row[0]].name, row[1]))
    parts = parts[shard[0] :: shard[1]]
    nats = np.zeros(len(stories))
    for first in range(0, len(parts), _ROWS):
        rows = parts[first : first + _ROWS]
        state = model.zero_state(len(rows))
        windows = together([stories[i].ids for i, _ in rows], _STEPS, [part for _, part in rows])
        for number, window in enumerate(windows):
            # The longest come first: rows that have ended are the last ones, and need not be read on.
            reading = sum(end - begin > number * _STEPS for _, (begin, end) in rows)
            state = tuple(part[:, :reading] for part in state)
            losses, state = model.losses(window.first(reading), state)
            np.add.at(nats, [i for i, _ in rows[:reading]], losses.sum(axis=0))
    nats = total(nats)
    return Evaluation(tuple(score_of(story, float(n)) for story, n in zip(stories, nats, strict=True)))


def _parts(predictions: int) -> list[tuple[int, int]]:
    """What is read in a row of its own: from where, and to where."""
    count = -(-predictions // _PART)
    cuts = [predictions * k // count for k in range(count + 1)]
    return list(itertools.pairwise(cuts))


def score_of(story: EncodedDocument, nats: float) -> Score:
    """The score of a story whose n-grams and end cost the network so many nats."""
    return Score(
        story.name,
        nats + story.spelling,
        len(story.ids) + 1,
        story.characters,
        int(np.count_nonzero(story.ids == UNKNOWN)),
    )


encode_for_evaluation = encode_stories
