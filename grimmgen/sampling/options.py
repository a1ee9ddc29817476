"""The options of generation, with their ranges and the combinations that contradict each other."""

# ruff: noqa: RUF009 - `option` returns a dataclass field

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from grimmgen.configuration import check_options, option, options_of
from grimmgen.errors import UsageError

InitialState = Literal["random", "zeros"]

# Characters of a story without `length`.
LONGEST = 20_000
# Defaults; top-k is the tutorial's.
_TOP_K = 3
_BEAM_DEPTH = 5
_SAMPLING = "Sampling"
# Values of `until` that are not a text.
SENTENCE = "sentence"
PARAGRAPH = "paragraph"
LINE = "line"
PAGE = "page"
STORY_END = "end"
# Characters after which a page ends with the next sentence, and after which it ends without one.
PAGE_LENGTHS = 800, 1_600


# Options that say among which tokens to sample: a choice of one replaces the default of another.
_TRUNCATION = ("top_k", "top_p", "min_p")


def weight(typed: str) -> float:
    """The weight of the counts as typed.

    Raises:
        UsageError: the text is not a number.
    """
    try:
        return float(typed)
    except ValueError:
        raise UsageError(f"--mix {typed[:40]!r} is not a number", "give auto, or a number from 0 to 1") from None


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The options of generation, listed in docs/options.md; the same model and prompt give the same text.

    Raises:
        UsageError: a value is out of range, or two contradict each other.
    """

    length: int | None = option(
        None,
        "Maximum number of characters after the prompt; a story may end before",
        low=1,
        high=10**9,
        unit=" characters",
        default_text=f"no limit, or with --until end {LONGEST}",
    )
    until: str | None = option(
        None,
        "Where to stop: sentence, line, paragraph, page (the end of a sentence after"
        f" {PAGE_LENGTHS[0]} characters), end (of the story) or TEXT",
        default_text="page, or with --length end",
        suggestions=(SENTENCE, LINE, PARAGRAPH, PAGE, STORY_END),
    )
    top_k: int | None = option(
        None,
        "Sample from the k most probable tokens; 0 is all",
        low=0,
        range="1 or more, or 0 for all",
        default_text=f"{_TOP_K} for the tutorial's models; all with --top-p or --min-p",
        excludes=("greedy", "beam_width"),
        panel=_SAMPLING,
    )
    top_p: float = option(
        1.0,
        "Sample from the fewest most probable tokens with this total probability",
        low=5e-324,
        high=1.0,
        range="more than 0, and 1 at most",
        excludes=("greedy", "beam_width"),
        panel=_SAMPLING,
    )
    min_p: float = option(
        0.0,
        "Sample from the tokens at least this many times as probable as the most probable one",
        low=0.0,
        high=1.0,
        default_text="0; 0.05 for models that are not the tutorial's, without --top-k and --top-p",
        excludes=("greedy", "beam_width"),
        panel=_SAMPLING,
    )
    temperature: float = option(
        1.0,
        "Sampling temperature; 0 always takes the most probable token",
        low=0.0,
        high=1e6,
        range="0 to 1000000",
        excludes=("greedy",),
        panel=_SAMPLING,
    )
    greedy: bool = option(False, "Always take the most probable token, or beam", flag="--greedy", panel=_SAMPLING)
    repetition_penalty: float = option(
        1.0,
        "Penalise recent tokens: their probability becomes p to this power",
        low=1.0,
        high=100.0,
        range="1 (no penalty) to 100",
        excludes=("beam_width",),
        panel=_SAMPLING,
    )
    beam_width: int | None = option(
        None,
        "Number of beams, one of which is sampled",
        low=2,
        high=256,
        default_text="no beam search",
        panel=_SAMPLING,
    )
    beam_depth: int | None = option(
        None,
        "Tokens by which the beams grow before one is sampled",
        low=1,
        high=64,
        default_text=str(_BEAM_DEPTH),
        requires="beam_width",
        panel=_SAMPLING,
    )
    max_copy: int | None = option(
        None,
        "Longest run of characters copied from a training story of the run",
        low=1,
        high=10_000,
        unit=" characters",
        default_text="no limit",
        panel=_SAMPLING,
    )
    lexicon: bool = option(
        False,
        "Write only words of the training set",
        default_text="on, unless the model is the tutorial's or its words are too few",
        excludes=("beam_width",),
        panel=_SAMPLING,
    )
    mix: float | None = option(
        None,
        "Weight of the counts in the mixture with the network; 0 is the network alone",
        low=0.0,
        high=1.0,
        metavar="WEIGHT|auto",
        default_text="auto: fitted, if the run has counts",
        parse=lambda typed: None if typed == "auto" else weight(typed),
        panel=_SAMPLING,
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
        "random",
        "Initial state of the network: random (normal with σ 0.05, as in the tutorial) or zeros",
        panel=_SAMPLING,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.until == "":
            raise UsageError("--until is empty", "give sentence, line, paragraph, page, end, or a text")
        if self.until == PAGE and self.length is not None:
            raise UsageError("--until page has no effect with --length", "leave out one of them")

    @property
    def effective_top_k(self) -> int:
        """The number of most probable tokens to sample from; 0 is all."""
        if self.top_k is not None:
            return self.top_k
        return _TOP_K if self.top_p == 1.0 and self.min_p == 0.0 else 0

    @property
    def effective_temperature(self) -> float:
        """The temperature; 0 with `greedy`."""
        return 0.0 if self.greedy else self.temperature

    @property
    def effective_beam_depth(self) -> int:
        """The number of tokens that a beam grows by before one is chosen."""
        return _BEAM_DEPTH if self.beam_depth is None else self.beam_depth


def with_defaults(chosen: Mapping[str, Any], defaults: object) -> SamplingOptions:
    """Return the chosen options, with the defaults of a model for the others.

    A default gives way to a chosen option that does the same or excludes it.

    Args:
        chosen: by the names of `SamplingOptions`.
        defaults: of a checkpoint, which may come from anyone: what is no option is ignored.

    Raises:
        UsageError: an option is out of range, or two contradict each other.
    """
    values = dict(chosen)
    for name, value in defaults.items() if isinstance(defaults, dict) else ():
        declared = options_of(SamplingOptions).get(name)
        if declared is None or not declared.accepts(value):
            continue
        rivals = {*declared.excludes, *(_TRUNCATION if name in _TRUNCATION else ())}
        if name not in chosen and rivals.isdisjoint(chosen):
            values[name] = value
    return SamplingOptions(**values)
