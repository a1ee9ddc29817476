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
    """How a story is told. The same values, model and prompt tell the same story again.

    Attributes:
        length: characters to tell after the prompt, at most; None goes on to the story's end, or to `LONGEST`.
        until: end after the first `sentence`, after the first `paragraph`, or where this text has been told.
        top_k: draw among this many best n-grams, in proportion; 0 is all, 1 is always the best. None is 3, as in
            the tutorial, but all where top-p or min-p narrow the choice.
        top_p: draw among the fewest best that have this probability together.
        min_p: draw among those at least this many times as probable as the best one.
        temperature: above 1 bolder, below 1 safer, 0 always the best.
        greedy: always the best, too; of whole beams where there are some.
        repetition_penalty: above 1 what was told lately is less probable; see `penalise`.
        beam_width: search with so many beams; None does not.
        beam_depth: n-grams that a beam grows by before one is chosen; None is 5.
        max_copy: no more characters than that in a row as they stand in a training story; None takes what comes.
        random_seed: of all that is drawn.
        state: what the network begins with: normal with σ 0.05 as in the tutorial, or zeros.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    length: int | None = None
    until: str | None = None
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    temperature: float = 1.0
    greedy: bool = False
    repetition_penalty: float = 1.0
    beam_width: int | None = None
    beam_depth: int | None = None
    max_copy: int | None = None
    random_seed: int = 0
    state: InitialState = "random"

    def __post_init__(self) -> None:
        if self.length is not None and not 1 <= self.length <= 10**9:
            raise UsageError(f"--length {self.length} is out of range", "give 1 to 1000000000 characters")
        if self.until == "":
            raise UsageError("--until waits for an empty text", "give sentence, paragraph, or a text")
        if self.top_k is not None and self.top_k < 0:
            raise UsageError(f"--top-k {self.top_k} is out of range", "give 1 or more, or 0 for all")
        # Written so that nan is outside, too.
        if not 0.0 < self.top_p <= 1.0:
            raise UsageError(f"--top-p {self.top_p:g} is out of range", "give more than 0, and 1 at most")
        if not 0.0 <= self.min_p <= 1.0:
            raise UsageError(f"--min-p {self.min_p:g} is out of range", "give 0 to 1")
        if not 0.0 <= self.temperature <= 1e6:
            raise UsageError(f"--temperature {self.temperature:g} is out of range", "give 0 to 1000000")
        if not 1.0 <= self.repetition_penalty <= 100.0:
            raise UsageError(
                f"--repetition-penalty {self.repetition_penalty:g} is out of range", "give 1 (none) to 100"
            )
        if self.beam_width is not None and not 2 <= self.beam_width <= 256:
            raise UsageError(f"--beam-width {self.beam_width} is out of range", "give 2 to 256")
        if self.beam_depth is not None and not 1 <= self.beam_depth <= 64:
            raise UsageError(f"--beam-depth {self.beam_depth} is out of range", "give 1 to 64")
        if self.max_copy is not None and not 1 <= self.max_copy <= 10_000:
            raise UsageError(f"--max-copy {self.max_copy} is out of range", "give 1 to 10000 characters")
        if not 0 <= self.random_seed < 2**63:
            raise UsageError(f"--random-seed {self.random_seed} is out of range", "give 0 to 2^63 - 1")
        narrowed = [
            name
            for name, given in (
                ("--top-k", self.top_k is not None),
                ("--top-p", self.top_p != 1.0),
                ("--min-p", self.min_p != 0.0),
            )
            if given
        ]
        if self.greedy and (others := narrowed + ["--temperature"] * (self.temperature != 1.0)):
            raise UsageError(f"--greedy always takes the best: {others[0]} has no say", f"leave out {others[0]}")
        if self.beam_width is not None:
            if others := narrowed + ["--repetition-penalty"] * (self.repetition_penalty != 1.0):
                raise UsageError(
                    f"--beam-width chooses among whole beams: {others[0]} has no say", f"leave out {others[0]}"
                )
        elif self.beam_depth is not None:
            raise UsageError("--beam-depth has no beams", "give --beam-width, too")

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
