"""The options of generation, with their ranges and the combinations that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from grimmgen.errors import UsageError

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
        repetition_penalty: above 1 what was told lately is less probable; see `grimmgen.sampling.logits.penalise`.
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
    def effective_top_k(self) -> int:
        """The number of most probable n-grams to sample from; 0 is all."""
        if self.top_k is not None:
            return self.top_k
        return _TOP_K if self.top_p == 1.0 and self.min_p == 0.0 else 0

    @property
    def effective_temperature(self) -> float:
        """The temperature; 0 with `greedy`."""
        return 0.0 if self.greedy else self.temperature

    @property
    def effective_beam_depth(self) -> int:
        """The number of n-grams that a beam grows by before one is chosen."""
        return _BEAM_DEPTH if self.beam_depth is None else self.beam_depth
