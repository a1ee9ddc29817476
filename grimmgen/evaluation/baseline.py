"""A character n-gram model with interpolated modified Kneser-Ney smoothing: what a network has to beat.

It counts instead of learning, in seconds, and is the best of its kind (Chen and Goodman 1999, "An empirical study
of smoothing techniques for language modeling", section 4.1). For a character w after the n - 1 characters h, of
which h' leaves out the first,

    p(w | h) = max(0, c(hw) - D(c(hw))) / c(h) + γ(h) p(w | h')
    γ(h) = (D(1) N1(h) + D(2) N2(h) + D(3) N3+(h)) / c(h)

where c(hw) is, at the highest order, how often hw occurs, and below it how many different characters stand before
hw; c(h) is the sum of c(hw) over w, Nk(h) how many w have c(hw) = k. Below the lowest order is the uniform
distribution over all characters of the training stories, the end of a story and one character never seen.
Knows characters, and neither n-grams that do not overlap nor networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.evaluation.scores import Evaluation, Score

_Integers = NDArray[np.int64]

# Symbols that are no characters; a story is read as if many _BEGINs stood before it.
_BEGIN, _END, _UNSEEN = range(3)
_CODE_POINTS = 0x110000
# For a text too small to estimate them from.
_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length.

    Attributes:
        keys: of each its context (a number of the order below) and its last symbol as one number, ascending.
        counts: c(hw) of each.
        totals: c(h) of each n-gram of the order below, zero where nothing follows it.
        left: γ(h) of each.
        discounts: D of a count of 0, 1, 2, and 3 or more.
    """

    keys: _Integers
    counts: _Integers
    totals: _Integers
    left: NDArray[np.float64]
    discounts: NDArray[np.float64]

    @classmethod
    def of(cls, keys: _Integers, counts: _Integers, contexts: int, symbols: int) -> _Order:
        discounts = np.array([0.0, *_discounts(np.bincount(np.minimum(counts, 5), minlength=5).tolist())])
        totals = np.zeros(contexts, np.int64)
        np.add.at(totals, keys // symbols, counts)
        kept_back = np.bincount(keys // symbols, discounts[np.minimum(counts, 3)], contexts)
        return cls(keys, counts, totals, kept_back / np.maximum(totals, 1), discounts)

    def find(self, keys: _Integers) -> _Integers:
        """The numbers of these n-grams, -1 where there is none."""
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place, -1)


class KneserNey:
    """The model, trained.

    Args:
        texts: the training stories, normalised.
        order: n, the characters of the longest n-gram.
    """

    def __init__(self, texts: Sequence[str], order: int = 8) -> None:
        self._alphabet = np.unique(_code_points("".join(texts)))
        self._symbols = len(self._alphabet) + 3
        symbols = np.concatenate([self._padded(text, order) for text in texts])
        foretold = symbols != _BEGIN
        # Numbers of the n-grams that end at each place: of those of no symbol, then of one, then of two.
        shorter = np.zeros(len(symbols), np.int64)
        ngrams, counts, contexts = [], list[_Integers](), [1]
        for n in range(1, order + 1):
            distinct, numbers = np.unique(_before(shorter) * self._symbols + symbols, return_inverse=True)
            occurrences = np.bincount(numbers[foretold], minlength=len(distinct))
            if n > 1:
                # How many different symbols stand before each n-gram that is one shorter.
                endings = np.empty(len(distinct), np.int64)
                endings[numbers] = shorter
                counts.append(np.bincount(endings[occurrences > 0], minlength=contexts[-1]))
            ngrams.append(distinct)
            contexts.append(len(distinct))
            shorter = numbers
        counts.append(occurrences)
        self._orders = [
            _Order.of(keys, c, size, self._symbols)
            for keys, c, size in zip(ngrams, counts, contexts, strict=False)
        ]

    def costs(self, text: str) -> NDArray[np.float64]:
        """The nats that each character of a normalised text costs, and its end, [N + 1].

        A character that no training story has costs ln 1,114,112 nats beside, to say which it is, as in
        `Vocabulary.encode_with_costs`.
        """
        order = len(self._orders)
        symbols = self._padded(text, order)
        p = np.full(len(symbols), 1.0 / (self._symbols - 1))
        known = np.zeros(len(symbols), np.int64)
        for grams in self._orders:
            context = _before(known)
            known = np.where(context < 0, -1, grams.find(context * self._symbols + symbols))
            total = np.where(context < 0, 0, grams.totals[context])
            count = np.where(known < 0, 0, grams.counts[known])
            seen = np.maximum(0.0, count - grams.discounts[np.minimum(count, 3)])
            p = np.where(total > 0, seen / np.maximum(total, 1) + grams.left[context] * p, p)
        costs: NDArray[np.float64] = -np.log(p) + np.where(symbols == _UNSEEN, math.log(_CODE_POINTS), 0.0)
        return costs[order - 1 :]

    def evaluate(self, texts: Sequence[tuple[str, str]]) -> Evaluation:
        """The scores of (name, normalised text) pairs."""
        scores = []
        for name, text in texts:
            unseen = int(np.count_nonzero(self._padded(text, 1) == _UNSEEN))
            scores.append(Score(name, float(self.costs(text).sum()), len(text) + 1, len(text), unseen))
        return Evaluation(tuple(scores))

    def _padded(self, text: str, order: int) -> _Integers:
        """The symbols of a story: what stands before it, its characters, its end."""
        codes = _code_points(text)
        place = np.minimum(np.searchsorted(self._alphabet, codes), max(0, len(self._alphabet) - 1))
        known = self._alphabet[place] == codes if len(self._alphabet) else np.zeros(len(codes), np.bool_)
        characters = np.where(known, place + 3, _UNSEEN)
        return np.concatenate([np.full(order - 1, _BEGIN), characters, [_END]]).astype(np.int64)


def _before(numbers: _Integers) -> _Integers:
    """What stands one place before each; before the first are only _BEGINs, whose n-grams have the number 0."""
    return np.concatenate([[0], numbers[:-1]])


def _discounts(n: Sequence[int]) -> tuple[float, ...]:
    """D(1), D(2) and D(3) from how many n-grams have the count k, n[k] (Chen and Goodman 1999, equation 26).

    >>> _discounts([0, 40, 20, 10, 5])
    (0.5, 1.25, 2.0)
    """
    if not all(n[1:5]):
        return _DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    found = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return found if all(0 < d <= k for k, d in enumerate(found, 1)) else _DISCOUNTS


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
