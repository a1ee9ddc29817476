"""The contexts of the training set in sorted order: every token with the tokens before it, in some 7 bytes each.

Each position of the text is one occurrence of a token after a context. The positions are sorted by the token before
them, then by the one before that, and so on. The occurrences of a context are then one interval of the order, and
those of a longer context with the same end are an interval within it: a binary search finds what followed a context
of any length, without a table for each length. This is a suffix array (Manber and Myers 1993) of the reversed text,
cut off at the longest context.

    M  tokens of the text    N  positions    K  longest context in tokens    V  vocabulary size
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.text.batches import RaggedIds
from grimmgen.text.vocabulary import END, Vocabulary

# Characters that the longest context has at least, and tokens.
_CHARACTERS, _TOKENS = 16, 4
# Tokens that are counted at most: those of the first documents. More help little, and take gigabytes.
LARGEST = 1 << 24

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class ContextIndex:
    """The sorted contexts of a text.

    Attributes:
        ids: K times `<end>`, then the documents, an `<end>` after each; those of each phase, [M].
        order: the positions K to M - 1, sorted by their contexts, [N]; equal contexts in the order of the text.
        shared: for each entry of `order` the length of the context, up to K, that it shares with the last entry
            before it that has the same token; 0 for the first entry of each token, [N].
        longest: K.
        vocabulary_size: V.
    """

    ids: NDArray[Any]
    order: NDArray[np.int32]
    shared: NDArray[np.uint8]
    longest: int
    vocabulary_size: int

    @classmethod
    def build(cls, documents: RaggedIds, vocabulary: Vocabulary) -> ContextIndex:
        """Sort the contexts of the documents of a training set, cut in each phase."""
        longest = _TOKENS
        while longest * vocabulary.characters_per_token < _CHARACTERS:
            longest *= 2
        end = np.full(1, END, vocabulary.id_type)
        parts, size = [np.full(longest, END, vocabulary.id_type)], 0
        for cuts in documents:
            for ids in cuts:
                parts += [ids[: max(0, LARGEST - size)], end]
                size += len(parts[-2]) + 1
            if size >= LARGEST:
                break
        return cls.of(np.concatenate(parts).astype(vocabulary.id_type), longest, len(vocabulary))

    @classmethod
    def of(cls, ids: NDArray[Any], longest: int, vocabulary_size: int) -> ContextIndex:
        """Sort the contexts of ids that begin with K times `<end>`; K is a power of two."""
        # The rank of the last n tokens before each position, for n = 1, 2, 4 …; ranks of n and of n tokens before
        # these give those of 2 n (Karp, Miller and Rosenberg 1972).
        rank = np.concatenate([[0], ids[:-1]]).astype(np.int64)
        n = 1
        while n < longest:
            earlier = np.concatenate([np.zeros(n, np.int64), rank[:-n]])
            rank = np.unique(rank * (int(rank.max()) + 1) + earlier, return_inverse=True)[1]
            n *= 2
        order = np.argsort(rank[longest:], kind="stable").astype(np.int32) + np.int32(longest)
        return cls(ids, order, _shared(ids, order, longest), longest, vocabulary_size)

    @cached_property
    def followers(self) -> NDArray[Any]:
        """The token at each entry of `order`, [N]."""
        return np.asarray(self.ids)[self.order]

    def intervals(self, history: Sequence[int]) -> list[tuple[int, int]]:
        """Find what followed the last 0, 1, 2 … tokens of a text.

        Args:
            history: the text; only the last K tokens matter.

        Returns:
            (begin, end) in `order` for each length up to the longest one that occurs.
        """
        ids, order = self._views
        begin, end = 0, len(order)
        found = [(begin, end)]
        for distance, token in enumerate(reversed(history[-self.longest :]), 1):
            if distance == 1:
                first, after = self._bounds[token : token + 2]
            else:

                def before(entry: int, distance: int = distance) -> int:
                    return ids[order[entry] - distance]

                first = bisect_left(range(end), token, begin, key=before)
                after = bisect_right(range(end), token, first, key=before)
            if first == after:
                break
            begin, end = first, after
            found.append((begin, end))
        return found

    def batch_intervals(self, ids: NDArray[Any], begins: NDArray[Any]) -> tuple[Integers, Integers]:
        """Find what followed the contexts of every position of some texts.

        Args:
            ids: of the texts, one after the other, each with what its first context ends with.
            begins: for each position the index in `ids` where its text begins.

        Returns:
            The begins and the ends in `order`, [K + 1, positions]; equal where a context does not occur.
        """
        positions = np.arange(len(ids))
        begin, end = np.zeros((2, self.longest + 1, len(ids)), np.int64)
        end[0] = len(self.order)
        for k in range(1, self.longest + 1):
            within = np.flatnonzero((positions - k >= begins) & (end[k - 1] > begin[k - 1]))
            tokens = ids[positions[within] - k].astype(np.int64)
            low, high = begin[k - 1, within], end[k - 1, within]
            begin[k, within] = self._search(low, high, tokens, k)
            end[k, within] = self._search(low, high, tokens + 1, k)
        return begin, end

    @cached_property
    def _views(self) -> tuple[memoryview[int], memoryview[int]]:
        """`ids` and `order`; single elements of NumPy's arrays take several times as long."""
        return self.ids.data, self.order.data

    @cached_property
    def _bounds(self) -> list[int]:
        """For each token the first entry after it; and N, [V + 1]."""
        counts = np.bincount(self.ids[self.longest - 1 : -1], minlength=self.vocabulary_size)
        return [0, *np.cumsum(counts).tolist()]

    def _search(self, low: Integers, high: Integers, tokens: Integers, distance: int) -> Integers:
        """The first entry in each interval whose token at a distance before it is `tokens` or larger."""
        low, high = low.copy(), high.copy()
        while (open_ := low < high).any():
            middle = (low + high) >> 1
            smaller = self.ids[self.order[np.minimum(middle, len(self.order) - 1)] - distance] < tokens
            low = np.where(open_ & smaller, middle + 1, low)
            high = np.where(open_ & ~smaller, middle, high)
        return low


def _shared(ids: NDArray[Any], order: NDArray[np.int32], longest: int) -> NDArray[np.uint8]:
    by_token = np.argsort(ids[order], kind="stable")
    later, earlier = order[by_token[1:]], order[by_token[:-1]]
    equal = ids[later] == ids[earlier]
    lengths = np.zeros(len(later), np.uint8)
    for distance in range(1, longest + 1):
        equal &= ids[later - distance] == ids[earlier - distance]
        lengths += equal
    shared = np.zeros(len(order), np.uint8)
    shared[by_token[1:]] = lengths
    return shared
