"""What happens in training, as typed events.

The loop yields them, the command line draws them, a test or a user's Python loop reads them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grimmgen.configuration import Configuration

Reason = Literal["epochs", "budget", "converged", "interrupted"]


@dataclass(frozen=True)
class Recovered:
    """The last checkpoint of a run is damaged: the one before takes its place; comes before `Started`.

    Attributes:
        step: where that one stands.
        error: what is wrong with the last one.
    """

    step: int
    error: str


@dataclass(frozen=True)
class Started:
    """Before the first update.

    Attributes:
        run: the run's name.
        path: its directory.
        configuration: its options.
        corpus: the corpus's name.
        stories: how many in train, valid and test.
        by_story: whether the split is by story.
        ngrams: tokens of the training stories.
        vocabulary_size: V.
        unknown: share of the tokens that `<unk>` hides.
        parameters: numbers that the model learns.
        device: where it runs.
        kernel: what computes the cells there.
        updates: per epoch.
        step: updates done before, by a run that is resumed.
    """

    run: str
    path: Path
    configuration: Configuration
    corpus: str
    stories: tuple[int, int, int]
    by_story: bool
    ngrams: int
    vocabulary_size: int
    unknown: float
    parameters: int
    device: str
    kernel: str
    updates: int
    step: int


@dataclass(frozen=True)
class Stepped:
    """One update is done.

    Attributes:
        step: updates so far.
        epoch: from 1.
        update: within the epoch, from 1.
        perplexity: of the training stories in this epoch so far, dropout at work.
        rate: the learning rate used.
        speed: n-grams a second, over this epoch so far.
        seconds: of training so far.
    """

    step: int
    epoch: int
    update: int
    perplexity: float
    rate: float
    speed: float
    seconds: float


@dataclass(frozen=True)
class Evaluated:
    """The validation stories were read, after an epoch or at the end.

    Attributes:
        step: updates so far.
        epoch: from 1.
        training_perplexity: over the epoch, dropout at work.
        perplexity: per n-gram of the validation stories.
        bits_per_character: of the validation stories.
        rate: the learning rate that led here.
        best: whether this is a new minimum.
        seconds: of training so far.
    """

    step: int
    epoch: int
    training_perplexity: float
    perplexity: float
    bits_per_character: float
    rate: float
    best: bool
    seconds: float


@dataclass(frozen=True)
class RateDecayed:
    """Validation perplexity has stopped falling: the rate is lowered.

    Attributes:
        step: updates so far.
        epoch: from 1.
        perplexity: of the validation stories now.
        minimum: the lowest so far.
        evaluations: how many in a row were no new minimum.
        old_rate: until here.
        new_rate: from here.
    """

    step: int
    epoch: int
    perplexity: float
    minimum: float
    evaluations: int
    old_rate: float
    new_rate: float


@dataclass(frozen=True)
class Saved:
    """What a resume needs is on the disk, and with it the best weights if they were new.

    Attributes:
        step: updates so far.
        path: of last.safetensors.
        best: whether best.safetensors was written too.
    """

    step: int
    path: Path
    best: bool


@dataclass(frozen=True)
class Finished:
    """Training is over.

    Attributes:
        step: updates in all.
        epoch: the last one.
        reason: `epochs` and `budget` are the limits given, `converged`: the rate has decayed away and nothing
            improves, `interrupted`: it was asked to stop.
        best_perplexity: the lowest of the validation stories; None before any evaluation.
        best_epoch: when that was.
        seconds: of training.
    """

    step: int
    epoch: int
    reason: Reason
    best_perplexity: float | None
    best_epoch: int
    seconds: float


Event = Recovered | Started | Stepped | Evaluated | RateDecayed | Saved | Finished

_NAMES = {
    Recovered: "recovered",
    Started: "started",
    Stepped: "stepped",
    Evaluated: "evaluated",
    RateDecayed: "rate decayed",
    Saved: "saved",
    Finished: "finished",
}


def event_to_json(event: Event) -> dict[str, Any]:
    """An event as one JSON object: its name under `event`, and its attributes."""
    value = dataclasses.asdict(event)
    return {"event": _NAMES[type(event)]} | {k: str(v) if isinstance(v, Path) else v for k, v in value.items()}
