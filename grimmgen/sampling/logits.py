"""Pure functions on logits, and the order in which the sampling options apply them (`filter_logits`).

None of them changes its arguments. Knows nothing of text and networks.

    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import END

Logits = NDArray[np.float32]


def filter_logits(
    logits: Logits, options: SamplingOptions, *, forbidden: Sequence[int] = (), recent: Sequence[int] = ()
) -> Logits:
    """Apply the sampling options in their documented order; `draw` then samples an id from the result.

    Args:
        logits: the logits of the next n-gram, [V].
        options: the sampling options.
        forbidden: ids that must not be drawn: `<unk>`, and those that would copy too much.
        recent: ids to which the repetition penalty applies.

    Returns:
        The logits to sample from, [V]; minus infinity for ids that cannot be drawn.
    """
    temperature, k = options.effective_temperature, options.effective_top_k
    logits = forbid(logits, forbidden)
    logits = penalise(logits, recent, options.repetition_penalty)
    logits = temper(logits, temperature)
    filtered = keep_probable(logits, options)
    greedy = temperature == 0.0 or k == 1
    return filtered if greedy else keep_end(filtered, logits, END)


def keep_probable(logits: Logits, options: SamplingOptions) -> Logits:
    """Keep the logits [V] that `top_k`, `top_p` and `min_p` of the sampling options leave, in this order."""
    return min_p(top_p(top_k(logits, options.effective_top_k), options.top_p), options.min_p)


def forbid(logits: Logits, ids: Sequence[int] | NDArray[np.int64]) -> Logits:
    """Set the logits [V] of `ids` to minus infinity."""
    logits = logits.copy()
    logits[np.asarray(ids, np.int64)] = -np.inf
    return logits


def allow_only(logits: Logits, ids: Sequence[int] | NDArray[np.int64]) -> Logits:
    """Set all logits [V] but those of `ids` to minus infinity."""
    allowed = np.full_like(logits, -np.inf)
    ids = np.asarray(ids, np.int64)
    allowed[ids] = logits[ids]
    return allowed


def log_probabilities(logits: Logits | NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the log-softmax of logits [..., V], in float64."""
    shifted = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    log_p: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def penalise(logits: Logits, ids: Sequence[int], penalty: float) -> Logits:
    """Raise the probabilities of `ids` to the power `penalty`, each once; a penalty of 1 changes nothing.

    After CTRL (Keskar et al. 2019, arXiv 1909.05858, section 4.1), which divides logits. The effect of a division
    depends on a constant offset of the logits, which changes no probability; log-probabilities have no offset.

    Args:
        logits: [V].
        ids: the ids to penalise; duplicates count once.
        penalty: at least 1.

    >>> penalise(np.log(np.array([0.5, 0.25, 0.25], np.float32)), [0], 2.0).round(3)
    array([-1.386, -1.386, -1.386], dtype=float32)
    """
    if penalty == 1.0 or not len(ids):
        return logits
    penalised = log_probabilities(logits)
    penalised[np.unique(ids)] *= penalty
    return penalised.astype(np.float32)


def temper(logits: Logits, temperature: float) -> Logits:
    """Divide the logits [V] by the temperature; 0 keeps only the largest.

    >>> temper(np.array([1.0, 3.0, 2.0], np.float32), 0.0)
    array([-inf,   0., -inf], dtype=float32)
    """
    shifted: Logits = logits - logits.max()
    if temperature == 0.0:
        return allow_only(shifted, [int(shifted.argmax())])
    if temperature == 1.0:
        return shifted
    # The largest logit is 0, so that a tiny temperature overflows to minus infinity and never to NaN. The division
    # is in float64, because a tiny temperature underflows to 0 in float32.
    with np.errstate(over="ignore"):
        return np.asarray(shifted.astype(np.float64) / temperature, np.float32)


def top_k(logits: Logits, k: int) -> Logits:
    """Keep the k largest logits [V]; 0 keeps all. Of equal logits the first are kept.

    Tutorial, "Greedy sampling to break unimodality".

    >>> top_k(np.array([0.5, 3.0, 2.0, 1.0], np.float32), 2)
    array([-inf,   3.,   2., -inf], dtype=float32)
    """
    if not 0 < k < len(logits):
        return logits
    smallest = np.partition(logits, -k)[-k]
    above, equal = np.flatnonzero(logits > smallest), np.flatnonzero(logits == smallest)
    return allow_only(logits, np.concatenate([above, equal[: k - len(above)]]))


def top_p(logits: Logits, p: float) -> Logits:
    """Keep the fewest largest logits [V] whose probabilities add up to at least p, and at least one.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).

    >>> top_p(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.6).round(3)
    array([  -inf, -0.693, -1.204], dtype=float32)
    """
    if p >= 1.0:
        return logits
    # Those that cannot be drawn, most of them with a lexicon, need no sorting.
    possible = np.flatnonzero(logits > -np.inf)
    order = possible[np.argsort(-logits[possible], kind="stable")]
    cumulative = np.cumsum(np.exp(log_probabilities(logits)[order]))
    return allow_only(logits, order[: int(np.searchsorted(cumulative, p)) + 1])


def min_p(logits: Logits, p: float) -> Logits:
    """Keep the logits [V] whose probability is at least p times the largest probability.

    Min-p sampling (Nguyen et al. 2024, arXiv 2407.01082, section 3).

    >>> min_p(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.5).round(3)
    array([  -inf, -0.693, -1.204], dtype=float32)
    """
    if p == 0.0:
        return logits
    return allow_only(logits, np.flatnonzero(logits >= logits.max() + np.log(p)))


def keep_end(filtered: Logits, logits: Logits, end: int) -> Logits:
    """Restore the logit of the id `end` in filtered logits [V] from the unfiltered ones [V].

    The end of a document is rare. Among the best three it would hardly ever be, because after the last sentence
    many n-grams that could begin another sentence are more probable; no text would end.
    """
    filtered = filtered.copy()
    filtered[end] = logits[end]
    return filtered


def draw(logits: Logits, uniform: float) -> int:
    """Sample an id from the distribution of logits [V].

    Args:
        logits: [V]; minus infinity for ids that cannot be drawn.
        uniform: a random number in [0, 1).
    """
    p = np.exp(logits - logits.max(), dtype=np.float64)
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
