"""Counts of a document as far as it has been read, for dynamic evaluation.

A document repeats itself: names, phrases, rhymes. What has followed a context earlier in the document is
interpolated with the network's probability p(w), from the shortest context to the longest one (absolute discounting;
Chen and Goodman 1999, section 2.7):

    p(w | h) = (max(0, c(hw) - D) + D N(h) p(w | h')) / c(h)

where c(hw) is the number of earlier occurrences of hw in the document, and N(h) the number of different tokens that
have followed h.

    N  tokens    K  longest context in tokens
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

# D, set by hand: a document is too short to estimate it from its counts of counts.
_DISCOUNT = 0.9


class DocumentCounts(NamedTuple):
    """What a document has of each context and token before each of its tokens, [K, N] for lengths 1 to K.

    Attributes:
        contexts: c(h), how often the context has occurred.
        targets: c(hw), how often the token has followed it.
        different: N(h), how many different tokens have followed it.
    """

    contexts: Integers
    targets: Integers
    different: Integers

    @classmethod
    def of(cls, ids: NDArray[np.int64], longest: int) -> DocumentCounts:
        """Count in a document.

        Args:
            ids: its tokens, [N].
            longest: K.
        """
        N = len(ids)
        symbols = int(ids.max(initial=0)) + 1
        counts = np.zeros((3, longest, N), np.int64)
        # Which context precedes each token: the same number for the same one.
        context = np.zeros(N, np.int64)
        for row in range(longest):
            # Numbers of the contexts that are longer by one token, those that end one token earlier extended by it.
            last = np.concatenate([[-1], ids[:-1]])
            earlier = np.concatenate([[-1], context[:-1]])
            context = np.unique(earlier * symbols + last, return_inverse=True)[1]
            context[: row + 1] = N + np.arange(min(N, row + 1))  # not that long
            followed = np.unique(context * symbols + ids, return_inverse=True)[1]
            counts[0, row] = _earlier(context, np.ones(N, np.int64))
            counts[1, row] = _earlier(followed, np.ones(N, np.int64))
            counts[2, row] = _earlier(context, (counts[1, row] == 0).astype(np.int64))
        return cls(*counts)

    def log_probabilities(self, log_p: Floats) -> Floats:
        """Interpolate with the log-probabilities of the tokens under the network, [N]; returns the same."""
        p = np.exp(log_p)
        for contexts, targets, different in zip(*self, strict=True):
            known = np.maximum(0.0, targets - _DISCOUNT) + _DISCOUNT * different * p
            p = np.where(contexts > 0, known / np.maximum(1, contexts), p)
        # The network's own one where the other underflows.
        return np.log(np.maximum(p, np.finfo(np.float64).tiny))


def _earlier(groups: Integers, values: Integers) -> Integers:
    """The sum of the values at earlier places of the same group, for each place."""
    order = np.argsort(groups, kind="stable")
    sorted_groups, sums = groups[order], np.cumsum(values[order]) - values[order]
    first = np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]])[: len(groups)]
    begins = np.maximum.accumulate(np.where(first, np.arange(len(groups)), 0))
    result = np.empty(len(groups), np.int64)
    result[order] = sums - sums[begins]
    return result
