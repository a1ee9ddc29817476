"""From the logits of what may come next to the token that does: small pure functions on logits.

They are applied in this order: what must not come, temperature, top-k, then the draw.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]


def forbid(logits: Logits, ids: NDArray[np.int64] | list[int]) -> Logits:
    """The logits [V] with those of `ids` at minus infinity."""
    logits = logits.copy()
    logits[ids] = -np.inf
    return logits


def allow_only(logits: Logits, ids: NDArray[np.int64] | list[int]) -> Logits:
    """The logits [V] with all but those of `ids` at minus infinity."""
    allowed = np.full_like(logits, -np.inf)
    allowed[ids] = logits[ids]
    return allowed


def temper(logits: Logits, temperature: float) -> Logits:
    """The logits [V] divided by the temperature; 0 leaves the best one alone.

    >>> temper(np.array([1.0, 3.0, 2.0], np.float32), 0.0)
    array([-inf,   0., -inf], dtype=float32)
    """
    shifted = logits - logits.max()
    if temperature == 0.0:
        return allow_only(shifted, [int(shifted.argmax())])
    # The best one is at zero, so that the smallest temperature overflows to minus infinity, never to nan;
    # in float64, since in float32 the temperature itself could become zero.
    with np.errstate(over="ignore"):
        return np.asarray(shifted.astype(np.float64) / temperature, np.float32)


def top_k(logits: Logits, k: int) -> Logits:
    """The k best logits [V], for 0 all of them, and the others at minus infinity.

    Tutorial, "Greedy sampling to break unimodality".

    >>> top_k(np.array([0.5, 3.0, 2.0, 1.0], np.float32), 2)
    array([-inf,   3.,   2., -inf], dtype=float32)
    """
    if not 0 < k < len(logits):
        return logits
    return allow_only(logits, np.argpartition(logits, -k)[-k:])


def draw(logits: Logits, number: float) -> int:
    """An id in proportion to its probability among those that are left.

    Args:
        logits: [V].
        number: random, from 0 to 1, 1 not among them.
    """
    p = np.exp(logits - logits.max(), dtype=np.float64)
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
