"""From the logits of what may come next to the token that does: its options, and small pure functions on logits.

They are applied in this order: what must not come (`forbid`, `allow_only`), the repetition penalty (`penalise`),
the temperature (`temper`), `top_k`, `top_p`, `min_p`, then the `draw`. Each sees what the ones before it have
left; only the story's end is always in the draw (`or_end`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import check_options, option
from grimmgen.errors import UsageError
from grimmgen.text.vocabulary import END

Logits = NDArray[np.float32]
InitialState = Literal["random", "zeros"]

# Characters that a story has at most, if nobody says how many.
LONGEST = 20_000
# The tutorial's, and the depth of a beam if only its width is given.
_TOP_K = 3
_BEAM_DEPTH = 5
# What `--until` knows beside a text to wait for.
SENTENCE = "sentence"
PARAGRAPH = "paragraph"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How text is generated. The same options, model and prompt generate the same text. docs/options.md lists them.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    length: int | None = option(
        None,
        "Maximum number of characters after the prompt; a story may end before",
        low=1,
        high=10**9,
        unit=" characters",
        default_text=f"to the story's end, at most {LONGEST}",
    )
    until: str | None = option(
        None,
        "Stop after one sentence, one paragraph, or at a text: sentence, paragraph or TEXT",
        default_text="the story's end",
    )
    top_k: int | None = option(
        None,
        "Sample from the k most probable tokens; 0 is all",
        low=0,
        range="1 or more, or 0 for all",
        default_text=f"{_TOP_K}; all with --top-p or --min-p",
        excludes=("greedy", "beam_width"),
    )
    top_p: float = option(
        1.0,
        "Sample from the fewest most probable tokens with this total probability",
        low=5e-324,
        high=1.0,
        range="more than 0, and 1 at most",
        excludes=("greedy", "beam_width"),
    )
    min_p: float = option(
        0.0,
        "Sample from the tokens at least this many times as probable as the most probable one",
        low=0.0,
        high=1.0,
        excludes=("greedy", "beam_width"),
    )
    temperature: float = option(
        1.0,
        "Sampling temperature; 0 always takes the most probable token",
        low=0.0,
        high=1e6,
        range="0 to 1000000",
        excludes=("greedy",),
    )
    greedy: bool = option(False, "Always take the most probable token, or beam", flag="--greedy")
    repetition_penalty: float = option(
        1.0,
        "Raise the probability of recent tokens to this power; 1 is no penalty",
        low=1.0,
        high=100.0,
        range="1 (no penalty) to 100",
        excludes=("beam_width",),
    )
    beam_width: int | None = option(
        None, "Number of beams, one of which is sampled", low=2, high=256, default_text="no beam search"
    )
    beam_depth: int | None = option(
        None,
        "Tokens by which the beams grow before one is sampled",
        low=1,
        high=64,
        default_text=str(_BEAM_DEPTH),
        requires="beam_width",
    )
    max_copy: int | None = option(
        None,
        "Longest run of characters copied from a training story of the run",
        low=1,
        high=10_000,
        unit=" characters",
        default_text="no limit",
    )
    random_seed: int = option(
        0,
        "Seed of all randomness",
        low=0,
        high=2**63 - 1,
        range="0 to 2^63 - 1",
        default_text="a new one each time",
    )
    state: InitialState = option(
        "random", "Initial state of the network: random (normal with σ 0.05, as in the tutorial) or zeros"
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.until == "":
            raise UsageError("--until is empty", "give sentence, paragraph, or a text")

    @property
    def best(self) -> int:
        """How many best n-grams to draw among; 0 is all."""
        if self.top_k is not None:
            return self.top_k
        return _TOP_K if self.top_p == 1.0 and self.min_p == 0.0 else 0

    @property
    def heat(self) -> float:
        """The temperature, which is 0 where the best is always taken."""
        return 0.0 if self.greedy else self.temperature

    @property
    def depth(self) -> int:
        """N-grams that a beam grows by."""
        return _BEAM_DEPTH if self.beam_depth is None else self.beam_depth

    @property
    def plain(self) -> bool:
        """Whether the compiled draw can do it: temperature and top-k, and no more."""
        return self.top_p == 1.0 and self.min_p == 0.0 and self.repetition_penalty == 1.0

    def narrow(self, logits: Logits, recent: Sequence[int]) -> Logits:
        """What is left of the logits [V] to draw from, all in the order of this module.

        Args:
            logits: those of what must not come are at minus infinity.
            recent: the ids that were told lately.
        """
        logits = temper(penalise(logits, recent, self.repetition_penalty), self.heat)
        narrowed = min_p(top_p(top_k(logits, self.best), self.top_p), self.min_p)
        return or_end(narrowed, logits, END) if self.best != 1 and self.heat > 0.0 else narrowed


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


def log_probabilities(logits: Logits | NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithms of the probabilities that logits [..., V] stand for."""
    shifted = logits - logits.max(axis=-1, keepdims=True).astype(np.float64)
    log_p: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return log_p


def penalise(logits: Logits, ids: Sequence[int], penalty: float) -> Logits:
    """The logits [V] with the probabilities of `ids` taken to the power `penalty`, each once; 1 changes nothing.

    After CTRL (Keskar et al. 2019, arXiv 1909.05858, section 4.1), which divides logits. Those have no zero: what
    a division does would depend on a constant that changes no probability. Log-probabilities have one.

    >>> penalise(np.log(np.array([0.5, 0.25, 0.25], np.float32)), [0], 2.0).round(3)
    array([-1.386, -1.386, -1.386], dtype=float32)
    """
    if penalty == 1.0 or not len(ids):
        return logits
    penalised = log_probabilities(logits)
    penalised[np.unique(ids)] *= penalty
    return penalised.astype(np.float32)


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
    """The k best logits [V], for 0 all of them, and the others at minus infinity; of equals the first ones.

    Tutorial, "Greedy sampling to break unimodality".

    >>> top_k(np.array([0.5, 3.0, 2.0, 1.0], np.float32), 2)
    array([-inf,   3.,   2., -inf], dtype=float32)
    """
    if not 0 < k < len(logits):
        return logits
    least = np.partition(logits, -k)[-k]
    above, equal = np.flatnonzero(logits > least), np.flatnonzero(logits == least)
    return allow_only(logits, np.concatenate([above, equal[: k - len(above)]]))


def top_p(logits: Logits, p: float) -> Logits:
    """The fewest best logits [V] whose probabilities add up to p, at least one, and the others at minus infinity.

    Nucleus sampling (Holtzman et al. 2020, arXiv 1904.09751, section 3.1).

    >>> top_p(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.6).round(3)
    array([  -inf, -0.693, -1.204], dtype=float32)
    """
    if p >= 1.0:
        return logits
    order = np.argsort(-logits, kind="stable")
    before = np.cumsum(np.exp(log_probabilities(logits)[order]))
    return allow_only(logits, order[: int(np.searchsorted(before, p)) + 1])


def min_p(logits: Logits, p: float) -> Logits:
    """The logits [V] of what is at least p times as probable as the best, and the others at minus infinity.

    Min-p sampling (Nguyen et al. 2024, arXiv 2407.01082, section 3).

    >>> min_p(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 0.5).round(3)
    array([  -inf, -0.693, -1.204], dtype=float32)
    """
    if p == 0.0:
        return logits
    return allow_only(logits, np.flatnonzero(logits >= logits.max() + np.log(p)))


def or_end(narrowed: Logits, logits: Logits, end: int) -> Logits:
    """What has been narrowed, [V], and the story's end again, as it was in `logits`.

    An end is rare: after the last sentence of a tale many n-grams that could begin another one are more probable
    than it. Among the best three it would hardly ever be, and no story would end.
    """
    narrowed = narrowed.copy()
    narrowed[end] = logits[end]
    return narrowed


def draw(logits: Logits, number: float) -> int:
    """An id in proportion to its probability among those that are left.

    Args:
        logits: [V].
        number: random, from 0 to 1, 1 not among them.
    """
    p = np.exp(logits - logits.max(), dtype=np.float64)
    cumulative = np.cumsum(p)
    return int(np.searchsorted(cumulative, number * cumulative[-1], side="right"))
