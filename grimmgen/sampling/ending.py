"""An ending planned in advance: a story ends about where a story of the corpus might.

A network that was trained on windows of some dozens of tokens does not know how long its story is: it expects an end
after almost any sentence, with a probability of a few hundredths at most, and its stories are as often too short as
they do not end at all.

    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from grimmgen.sampling.logits import Logits, forbid
from grimmgen.text.vocabulary import END, Vocabulary

# The ending is looked for in this share of the length, half of it before the planned end, and at least in so many
# characters, in which there are some ends of sentences.
_WINDOW, _SHORTEST_WINDOW = 0.2, 400
# How much more probable `<end>` is at the end of that window than the model says, as a logarithm. Halfway, the end of
# a sentence is as likely as not to be that of the story.
_MOST_ENCOURAGED = 8.0
# Windows after which the story ends anywhere, in a text without sentences and lines.
_PATIENCE = 2.0
# The end of a sentence or of a line, where a text stops; and how many characters it has at most.
_SENTENCE_END = r"(?:[\p{Sentence_Terminal}\u2026][\p{Pe}\p{Pf}'\"]*|\n)\s*\Z"
_TAIL = 16


def sample_length(lengths: Sequence[int], longest: float, generator: np.random.Generator) -> float:
    """Sample a length from a distribution.

    Args:
        lengths: its quantiles at equal distances, the smallest and the largest length included; at least two.
        longest: maximum.
        generator: gives one random number.
    """
    at = generator.random() * (len(lengths) - 1)
    return min(longest, float(np.interp(at, np.arange(len(lengths)), lengths)))


class PlannedEnding:
    """The step that ends one story at about a given length.

    Args:
        length: of the story, in characters.
        text: what the story begins with.
        vocabulary: the vocabulary of the model.
    """

    def __init__(self, length: float, text: str, vocabulary: Vocabulary) -> None:
        self._window = max(_SHORTEST_WINDOW, _WINDOW * length)
        self._begin = length - self._window / 2
        self._position, self._tail = len(text), text[-_TAIL:]
        # `<end>`, and n-grams that are shorter than the others: only the end of a document has these.
        lengths = vocabulary.lengths(np.arange(len(vocabulary), dtype=np.int32))
        self._ends = np.flatnonzero(lengths < vocabulary.unknown_length)

    def apply(self, logits: Logits) -> Logits:
        """Forbid an end in logits [V] before the window; from there on, make it more probable after each sentence."""
        passed = (self._position - self._begin) / self._window
        if passed < 0:
            early = forbid(logits, self._ends)
            return logits if np.isneginf(early).all() else early
        if passed < _PATIENCE and not self._sentence_end.search(self._tail):
            return logits
        encouraged = logits.copy()
        encouraged[END] += _MOST_ENCOURAGED * passed
        return encouraged

    def append(self, piece: str) -> None:
        """Append the text of a token."""
        self._position += len(piece)
        self._tail = (self._tail + piece)[-_TAIL:]

    @cached_property
    def _sentence_end(self) -> Any:
        import regex  # has the Unicode properties; takes 25 ms

        return regex.compile(_SENTENCE_END)
