"""Probabilities from counts: interpolated modified Kneser-Ney smoothing over the tokens of a vocabulary.

Source: Chen and Goodman 1999, section 4.1; `grimmgen.evaluation.baseline` has the equations. The counts of the
longest contexts are occurrences, those of shorter ones the different tokens before them. Both are found in a
`ContextIndex` when they are needed: an entry is the first one of its token after a longer context, and thus counts,
if the context that it shares with the entry before it is not longer than this one.

    N  positions    K  longest context in tokens    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from grimmgen.counts.index import ContextIndex, Integers

# Where a text is too small to estimate the discounts.
_DISCOUNTS = (0.5, 1.0, 1.5)
# Entries of a short row. Other rows are kept, up to so many of them.
_SHORT, _MOST_ROWS = 32, 1 << 13

Floats = NDArray[np.float64]


class _Row(NamedTuple):
    """What follows a context.

    Attributes:
        tokens: different ids.
        p: the discounted probability of each.
        backoff: the weight of the shorter context.
    """

    tokens: NDArray[Any]
    p: Floats
    backoff: float


class Predictions(NamedTuple):
    """The probabilities of a batch of targets.

    Attributes:
        p: of each target, [N].
        occurrences: of the context of each length before it, 0 to K, [K + 1, N].
        backoff: the weight of the shorter context, for each length; 1 where the context does not occur, [K + 1, N].
    """

    p: Floats
    occurrences: Integers
    backoff: Floats


@dataclass(frozen=True)
class CountModel:
    """A Kneser-Ney model.

    Attributes:
        index: of the training set.
        discounts: D(1), D(2) and D(3) for each length of a context, [K + 1][3].
    """

    index: ContextIndex
    discounts: tuple[tuple[float, ...], ...]

    @classmethod
    def build(cls, index: ContextIndex) -> CountModel:
        """Estimate the discounts (Chen and Goodman 1999, equation 26)."""
        ids, order = index.ids, index.order
        begins = np.zeros(len(order), np.bool_)  # whether an entry has another context than the one before it
        begins[:1] = True
        discounts = []
        for length in range(index.longest + 1):
            if length:
                begins[1:] |= ids[order[1:] - length] != ids[order[:-1] - length]
            _, counts = cls(index, ())._counts(np.cumsum(begins) - 1, np.arange(len(order)), length)
            discounts.append(_discounts(np.bincount(np.minimum(counts, 5), minlength=5).tolist()))
        return cls(index, tuple(discounts))

    def distribution(self, history: Sequence[int]) -> tuple[Floats, list[int], list[float]]:
        """The probabilities of the next token.

        Args:
            history: the tokens before it; only the last K matter.

        Returns:
            The probabilities, [V]; the occurrences of the contexts of length 0, 1 … that occur, and the weight of the
            shorter context for each.
        """
        p, occurrences, backoff = self._uniform.copy(), [], []
        for length, (begin, end) in enumerate(self.index.intervals(history)):
            row = self._row(length, begin, end)
            p *= row.backoff
            p[row.tokens] += row.p
            occurrences.append(end - begin)
            backoff.append(row.backoff)
        return p, occurrences, backoff

    def predictions(self, ids: NDArray[Any], begins: NDArray[Any]) -> Predictions:
        """The probability of each token of some texts after those before it.

        Args:
            ids: of the texts, one after the other, each with what its first context ends with, [N].
            begins: for each token the index in `ids` where its text begins, [N].
        """
        begin, end = self.index.batch_intervals(ids, begins)
        V, targets = self.index.vocabulary_size, ids.astype(np.int64)
        p, backoff = np.full(len(ids), 1.0 / V), np.ones(begin.shape)
        for length in range(len(begin)):
            found = np.flatnonzero(end[length] > begin[length])
            # Contexts of one length are disjoint intervals: the begin identifies one.
            _, first, context = np.unique(begin[length, found], return_index=True, return_inverse=True)
            if not len(first):
                break
            lows, sizes = begin[length, found[first]], end[length, found[first]] - begin[length, found[first]]
            entries = np.repeat(lows - np.cumsum(sizes) + sizes, sizes) + np.arange(int(sizes.sum()))
            if length:
                keys, counts = self._counts(np.repeat(np.arange(len(sizes)), sizes), entries, length)
            else:
                keys, counts = self._all
            discounts = self._discounts[length]
            # No entry of a context counts only in the index of a hostile file.
            totals = np.maximum(1, np.bincount(keys // V, counts, len(sizes)))
            kept = np.bincount(keys // V, discounts[np.minimum(counts, 3)], len(sizes)) / totals
            kept[kept == 0.0] = 1.0
            wanted = context * V + targets[found]
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            count = np.where(keys[place] == wanted, counts[place], 0)
            backoff[length, found] = kept[context]
            p[found] *= kept[context]
            p[found] += (count - discounts[np.minimum(count, 3)]) / totals[context]
        return Predictions(p, end - begin, backoff)

    def _counts(self, contexts: Integers, entries: Integers, length: int) -> tuple[Integers, Integers]:
        """Count the tokens of entries by context: ascending keys, context · V + token, and the count of each."""
        if length < self.index.longest:
            counting = self.index.shared[entries] <= length
            contexts, entries = contexts[counting], entries[counting]
        keys = contexts * self.index.vocabulary_size + self.index.followers[entries]
        found: tuple[Integers, Integers] = np.unique(keys, return_counts=True)
        return found

    def _row(self, length: int, begin: int, end: int) -> _Row:
        if end - begin <= _SHORT:
            return self._short_row(length, begin, end)
        if (row := self._rows.get((length, begin))) is None:
            followers = self.index.followers[begin:end]
            if length < self.index.longest:
                followers = followers[self.index.shared[begin:end] <= length]
            counts = np.bincount(followers)
            tokens = np.flatnonzero(counts)
            counts = counts[tokens]
            discounts, total = self._discounts[length][np.minimum(counts, 3)], max(1, len(followers))
            row = _Row(
                tokens, (counts - discounts) / total, float(discounts.sum()) / total if len(tokens) else 1.0
            )
            if len(self._rows) >= _MOST_ROWS:
                self._rows.clear()
            self._rows[length, begin] = row
        return row

    def _short_row(self, length: int, begin: int, end: int) -> _Row:
        """The same as `_row`, for a few entries: NumPy's functions would take several times as long."""
        followers, shared = self._views
        every, counts = length == self.index.longest, dict[int, int]()
        for token, known in zip(followers[begin:end], shared[begin:end], strict=True):
            if every or known <= length:
                counts[token] = counts.get(token, 0) + 1
        total, D = sum(counts.values()), (0.0, *self.discounts[length])
        if not total:
            return _Row(np.zeros(0, np.int64), np.zeros(0), 1.0)
        discounts = [D[min(count, 3)] for count in counts.values()]
        p = [(count - discount) / total for count, discount in zip(counts.values(), discounts, strict=True)]
        return _Row(np.array(list(counts)), np.array(p), sum(discounts) / total)

    @cached_property
    def _uniform(self) -> Floats:
        V = self.index.vocabulary_size
        return np.full(V, 1.0 / V)

    @cached_property
    def _views(self) -> tuple[memoryview[int], memoryview[int]]:
        """The followers and `shared` of the index."""
        return self.index.followers.data, self.index.shared.data

    @cached_property
    def _all(self) -> tuple[Integers, Integers]:
        """What `_counts` returns for the context of length 0, which is the same for every text."""
        entries = np.arange(len(self.index.order))
        return self._counts(np.zeros_like(entries), entries, 0)

    @cached_property
    def _rows(self) -> dict[tuple[int, int], _Row]:
        """The rows of contexts with many entries that were needed, by the context's length and first entry."""
        return {}

    @cached_property
    def _discounts(self) -> Floats:
        """D(0) to D(3) for each length, [K + 1, 4]."""
        return np.array([(0.0, *of_length) for of_length in self.discounts])


def _discounts(n: Sequence[int]) -> tuple[float, ...]:
    """D(1), D(2) and D(3), given the number n[k] of n-grams with count k."""
    if not all(n[1:5]):
        return _DISCOUNTS
    y = n[1] / (n[1] + 2 * n[2])
    discounts = tuple(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))
    return discounts if all(0 < d <= k for k, d in enumerate(discounts, 1)) else _DISCOUNTS
