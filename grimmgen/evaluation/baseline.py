"""A character n-gram model with interpolated modified Kneser-Ney smoothing: the baseline for neural models.

Source: Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 4.1. For
a character w with the context h of the n - 1 characters before it, and h' the context without its first character,

    p(w | h) = max(0, c(hw) - D(c(hw))) / c(h) + γ(h) p(w | h')
    γ(h) = (D(1) N1(h) + D(2) N2(h) + D(3) N3+(h)) / c(h)

where c(hw) is the number of occurrences of hw at the highest order, and at lower orders the number of distinct
characters that precede hw; c(h) is the sum of c(hw) over w; Nk(h) is the number of w with c(hw) = k. The lowest
order is interpolated with the uniform distribution over all characters of the training set, the end of a document
and one unseen character.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.evaluation.scores import Evaluation, Score

_Integers = NDArray[np.int64]

# Symbols that are not characters; each document is preceded by n - 1 times _BEGIN.
_BEGIN, _END, _UNSEEN = range(3)
_CODE_POINTS = 0x110000
# Used where a text is too small to estimate the discounts.
_DISCOUNTS = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length.

    Attributes:
        keys: context · symbols + last symbol for each n-gram, ascending; the context is the index of an n-gram of
            the order below.
        counts: c(hw) for each n-gram.
        totals: c(h) for each n-gram of the order below; zero if it is not a context.
        backoff: γ(h) for each n-gram of the order below.
        discounts: D for counts of 0, 1, 2, and 3 or more.
    """

    keys: _Integers
    counts: _Integers
    totals: _Integers
    backoff: NDArray[np.float64]
    discounts: NDArray[np.float64]

    @classmethod
    def build(cls, keys: _Integers, counts: _Integers, contexts: int, symbols: int) -> _Order:
        discounts = np.array([0.0, *_discounts(np.bincount(np.minimum(counts, 5), minlength=5).tolist())])
        totals = np.zeros(contexts, np.int64)
        np.add.at(totals, keys // symbols, counts)
        discounted = np.bincount(keys // symbols, discounts[np.minimum(counts, 3)], contexts)
        return cls(keys, counts, totals, discounted / np.maximum(totals, 1), discounts)

    def find(self, keys: _Integers) -> _Integers:
        """The indices of these keys, -1 for keys that do not occur."""
        index = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[index] == keys, index, -1)


class KneserNey:
    """A trained Kneser-Ney model.

    Args:
        texts: the training set, normalised.
        order: n, the length of the longest n-gram in characters.
    """

    def __init__(self, texts: Sequence[str], order: int = 8) -> None:
        self._alphabet = np.unique(_code_points("".join(texts)))
        self._symbols = len(self._alphabet) + 3
        symbols = np.concatenate([self._padded(text, order) for text in texts])
        predicted = symbols != _BEGIN
        # For each position the index of the n-gram that ends there, for n = 0, then 1, then 2 …
        shorter = np.zeros(len(symbols), np.int64)
        ngrams, counts, contexts = [], list[_Integers](), [1]
        for n in range(1, order + 1):
            distinct, indices = np.unique(_shifted(shorter) * self._symbols + symbols, return_inverse=True)
            occurrences = np.bincount(indices[predicted], minlength=len(distinct))
            if n > 1:
                # The number of distinct symbols before each n-gram of the order below.
                endings = np.empty(len(distinct), np.int64)
                endings[indices] = shorter
                counts.append(np.bincount(endings[occurrences > 0], minlength=contexts[-1]))
            ngrams.append(distinct)
            contexts.append(len(distinct))
            shorter = indices
        counts.append(occurrences)
        self._orders = [
            _Order.build(keys, c, size, self._symbols)
            for keys, c, size in zip(ngrams, counts, contexts, strict=False)
        ]

    def costs(self, text: str) -> NDArray[np.float64]:
        """The negative log-likelihood of each character of a normalised text and of its end, in nats, [N + 1].

        A character that does not occur in the training set costs an additional ln 1,114,112 nats to spell out, as
        in `Vocabulary.encode_with_costs`.
        """
        order = len(self._orders)
        symbols = self._padded(text, order)
        p = np.full(len(symbols), 1.0 / (self._symbols - 1))
        found = np.zeros(len(symbols), np.int64)
        for grams in self._orders:
            context = _shifted(found)
            found = np.where(context < 0, -1, grams.find(context * self._symbols + symbols))
            total = np.where(context < 0, 0, grams.totals[context])
            count = np.where(found < 0, 0, grams.counts[found])
            discounted = np.maximum(0.0, count - grams.discounts[np.minimum(count, 3)])
            p = np.where(total > 0, discounted / np.maximum(total, 1) + grams.backoff[context] * p, p)
        costs: NDArray[np.float64] = -np.log(p) + np.where(symbols == _UNSEEN, math.log(_CODE_POINTS), 0.0)
        return costs[order - 1 :]

    def evaluate(self, texts: Sequence[tuple[str, str]]) -> Evaluation:
        """Score (name, normalised text) pairs."""
        scores = []
        for name, text in texts:
            unseen = int(np.count_nonzero(self._padded(text, 1) == _UNSEEN))
            scores.append(Score(name, float(self.costs(text).sum()), len(text) + 1, len(text), unseen))
        return Evaluation(tuple(scores))

    def _padded(self, text: str, order: int) -> _Integers:
        """The symbols of a document: `order` - 1 times _BEGIN, its characters, _END."""
        codes = _code_points(text)
        index = np.minimum(np.searchsorted(self._alphabet, codes), max(0, len(self._alphabet) - 1))
        seen = self._alphabet[index] == codes if len(self._alphabet) else np.zeros(len(codes), np.bool_)
        characters = np.where(seen, index + 3, _UNSEEN)
        return np.concatenate([np.full(order - 1, _BEGIN), characters, [_END]]).astype(np.int64)


def _shifted(indices: _Integers) -> _Integers:
    """The index at the position before each; 0, the index of an n-gram of _BEGINs, before the first."""
    return np.concatenate([[0], indices[:-1]])


def _discounts(n: Sequence[int]) -> tuple[float, ...]:
    """D(1), D(2) and D(3), given the number n[k] of n-grams with count k (Chen and Goodman 1999, equation 26).

    >>> _discounts([0, 40, 20, 10, 5])
    (0.5, 1.25, 2.0)
    """
    if not all(n[1:5]):
        return _DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    discounts = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return discounts if all(0 < d <= k for k, d in enumerate(discounts, 1)) else _DISCOUNTS


def _code_points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
