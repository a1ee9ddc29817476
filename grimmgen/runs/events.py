"""The events of a training: typed, frozen, yielded by `Training.events`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from grimmgen.configuration import Configuration

Reason = Literal["epochs", "budget", "patience", "converged", "interrupted"]


@dataclass(frozen=True)
class Recovered:
    """The last checkpoint of a run is damaged, and the previous one replaces it; comes before `Started`.

    Attributes:
        step: updates of the previous checkpoint.
        error: what is wrong with the last one.
    """

    step: int
    error: str


@dataclass(frozen=True)
class Started:
    """Training starts or resumes.

    Attributes:
        run: name of the run.
        path: directory of the run.
        configuration: options of the run.
        corpus: name of the corpus.
        stories: number of documents in the training, validation and test sets.
        by_story: whether each document belongs to one set; else each is cut into three parts.
        ngrams: tokens of the training set.
        vocabulary_size: V.
        unknown: fraction of the training set's tokens that `<unk>` stands for.
        parameters: number of weights.
        device: device of the model.
        kernel: description of the training step's backend.
        updates: updates per epoch.
        step: updates before this event; 0 unless the run is resumed.
        precision: of the matrix products, `fp32` or `bf16`.
        milliseconds: of a short training step with each of what `--precision auto` chose from when the run began:
            `fp32`, `bf16`, `PyTorch`; empty if there was no choice.
        base: name of the model that training started from; None for random weights.
        shared: tokens of the vocabulary that the base has, too, the special ones included.
        reason: why these options were chosen, where the preset `auto` chose them; else empty.
        seconds: of training before this event.
        teachers: names of the models that the run is distilled from.
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
    precision: str
    milliseconds: dict[str, float]
    base: str | None = None
    shared: int = 0
    reason: str = ""
    seconds: float = 0.0
    teachers: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlatformChanged:
    """The run is resumed on another platform: it will not be bit-equal to a run that never stopped.

    Attributes:
        step: updates so far.
        before: the properties that differ, on which the last checkpoint was computed; see `platform` in
            `grimmgen.training.session`.
        after: the same properties from now on.
    """

    step: int
    before: dict[str, str | int]
    after: dict[str, str | int]


@dataclass(frozen=True)
class Stepped:
    """One update is complete.

    Attributes:
        step: updates so far.
        epoch: current epoch, from 1.
        update: updates in this epoch.
        perplexity: perplexity of the training set over this epoch so far, with dropout.
        rate: learning rate of the update.
        speed: n-grams per second, over this epoch so far.
        seconds: seconds of training so far.
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
    """The model was evaluated on the validation set, after an epoch or at the end of the budget.

    Attributes:
        step: updates so far.
        epoch: current epoch, from 1.
        training_perplexity: perplexity of the training set over the epoch, with dropout.
        perplexity: perplexity per token of the validation set.
        bits_per_character: bits per character of the validation set.
        rate: current learning rate.
        best: whether the perplexity is a new minimum.
        seconds: seconds of training so far.
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
    """The learning rate has decayed, because the validation perplexity has stopped falling.

    Attributes:
        step: updates so far.
        epoch: current epoch, from 1.
        perplexity: perplexity of the validation set.
        minimum: lowest perplexity so far.
        evaluations: consecutive evaluations without a new minimum.
        old_rate: learning rate before.
        new_rate: learning rate from now on.
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
    """The checkpoints were written.

    Attributes:
        step: updates so far.
        path: path of last.safetensors.
        best: whether best.safetensors was written, too.
    """

    step: int
    path: Path
    best: bool


@dataclass(frozen=True)
class Finished:
    """Training has ended.

    Attributes:
        step: updates in total.
        epoch: the last epoch, from 1.
        reason: `epochs` or `budget`: a limit was reached; `patience`: the validation perplexity has not improved for
            so many evaluations; `converged`: the learning rate has decayed below 1 % of the initial one;
            `interrupted`: `Training.stop` was called.
        best_perplexity: lowest perplexity of the validation set, that of the weights in best.safetensors; None before
            any evaluation.
        best_epoch: epoch of that perplexity.
        seconds: seconds of training.
    """

    step: int
    epoch: int
    reason: Reason
    best_perplexity: float | None
    best_epoch: int
    seconds: float


@dataclass(frozen=True)
class Failed:
    """Training has failed. It is logged but not yielded: the exception that is raised says the same.

    Attributes:
        step: updates so far.
        error: what went wrong.
    """

    step: int
    error: str


Event = Recovered | Started | PlatformChanged | Stepped | Evaluated | RateDecayed | Saved | Finished

_NAMES = {
    Recovered: "recovered",
    Started: "started",
    PlatformChanged: "platform changed",
    Stepped: "stepped",
    Evaluated: "evaluated",
    RateDecayed: "rate decayed",
    Saved: "saved",
    Finished: "finished",
    Failed: "failed",
}


def event_to_json(event: Event | Failed) -> dict[str, Any]:
    """Convert an event to a JSON object: its name under `event`, and its attributes."""
    value = dataclasses.asdict(event)
    return {"event": _NAMES[type(event)]} | {k: str(v) if isinstance(v, Path) else v for k, v in value.items()}
