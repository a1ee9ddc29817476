"""The training loop: windows in, events out.

The loop is the tutorial's: windows of T time steps over B streams of documents, truncated back-propagation through
time, an evaluation after each epoch. It receives the training step, the windows and the evaluation as callables,
and knows no files, no runs and no corpus: its caller saves when the loop yields `SaveDue` or `Finished`.

A budget is kept by a reserve: training ends early enough for one more update, an evaluation and the last save, which
take as long as they took before. A first save after the first update shows how long one takes.

Everything random in update k follows from (random seed, k), and everything the loop remembers is in `progress` and
`state`: a loop that starts from a copy of them yields the same events.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from grimmgen.configuration import OPTIONS, Configuration
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.scores import LARGEST_PERPLEXITY, bounded_perplexity
from grimmgen.network.model import State
from grimmgen.network.train_step import TrainStep
from grimmgen.runs.events import Evaluated, Finished, RateDecayed, Reason, Stepped
from grimmgen.text.batches import Windows
from grimmgen.training.schedule import LOWEST_RATE, Plateau, cosine, progress_of

# In seconds: an evaluation up to the first is not interrupted, one above the second is preceded by a save.
_SHORT_EVALUATION, _LONG_EVALUATION = 1.0, 5.0
# An evaluation takes at most so many times as long as it is expected to, before one is measured.
_UNMEASURED = 1.5
# By this share of the budget, or by a second, a training may exceed it.
_TOLERANCE = 0.02


class DivergedError(GrimmgenError):
    """The loss is not finite."""


@dataclass
class Progress:
    """The position of the training: with the tensors, all that a resume needs.

    Attributes:
        schedule: the learning rate, and the lowest validation perplexity.
        step: updates so far.
        epoch: completed epochs.
        window: completed windows of the current epoch.
        loss: sum of the losses of the current epoch, in nats.
        predictions: predictions of the current epoch.
        best_epoch: epoch of the lowest validation perplexity, from 1; 0 before any evaluation.
        stale: evaluations since then.
        evaluated: step of the last evaluation.
        seconds: of training so far.
        reserve: seconds of the budget that are left for the next update, an evaluation and the last save.
        validation_ngrams: of the validation set that are evaluated, so that the budget suffices; 0 is all.
    """

    schedule: Plateau
    step: int = 0
    epoch: int = 0
    window: int = 0
    loss: float = 0.0
    predictions: int = 0
    best_epoch: int = 0
    stale: int = 0
    evaluated: int = 0
    seconds: float = 0.0
    reserve: float = 0.0
    validation_ngrams: int = 0

    @property
    def training_perplexity(self) -> float:
        """Perplexity of the training set over the current epoch, with dropout."""
        return bounded_perplexity(self.loss / max(1, self.predictions))

    def to_json(self) -> dict[str, Any]:
        """Return a value that `from_json` reads."""
        value = dataclasses.asdict(self)
        if math.isinf(self.schedule.minimum):
            value["schedule"]["minimum"] = None
        return value

    @classmethod
    def from_json(cls, value: Any) -> Progress:
        """Read what `to_json` returned.

        Raises:
            TypeError, KeyError, ValueError, AttributeError, OverflowError: the value is something else.
        """
        schedule = dict(value["schedule"])
        if schedule["minimum"] is None:
            schedule["minimum"] = math.inf
        # The earliest checkpoints have no `evaluated`.
        progress = cls(**{"evaluated": value["step"], **value, "schedule": Plateau(**schedule)})
        numbers = [*dataclasses.astuple(progress)[1:], *dataclasses.astuple(progress.schedule)]
        if not all(type(n) in (int, float) and n >= 0 for n in numbers):
            raise ValueError
        return progress


@dataclass(frozen=True)
class SaveDue:
    """Enough time has passed since the last save; the caller saves before it continues."""


LoopEvent = Stepped | Evaluated | RateDecayed | SaveDue | Finished

Agree = Callable[[Sequence[float], bool], tuple[Sequence[float], bool]]


@dataclass
class TrainingLoop:
    """The training of a model from `progress` to one of the limits.

    Attributes:
        configuration: schedule and limits.
        step: the training step.
        state: of all rows of this process, before the next window; replaced by each update.
        progress: changed in place.
        windows: returns the windows of an epoch, counted from 0.
        updates: windows of the first epoch, from which the number of all updates is estimated.
        evaluate: returns the perplexity and the bits per character of the validation set; None if it was stopped
            because of `evaluation_stopped`.
        stopping: whether to stop after the current update, or within an evaluation.
        clock: returns seconds.
        save_seconds: seconds between two saves.
        agree: makes clocks and `stopping` equal in all processes (`ProcessGroup.agree`).
        evaluation_seconds: expected duration of an evaluation.
        startup_seconds: what has passed of the training's time before `events` is called.
        closing_seconds: expected duration of what the caller does after the last save.
    """

    configuration: Configuration
    step: TrainStep
    state: State
    progress: Progress
    windows: Callable[[int], Windows]
    updates: int
    evaluate: Callable[[], tuple[float, float] | None]
    stopping: Callable[[], bool]
    clock: Callable[[], float]
    save_seconds: float
    agree: Agree
    evaluation_seconds: float = 0.0
    startup_seconds: float = 0.0
    closing_seconds: float = 0.0
    _began: float = field(init=False)
    _saved: float = field(init=False)
    _save_due: bool = field(init=False, default=False)
    # The largest durations so far of an update and of a save, and of the measured evaluations.
    _update_seconds: float = field(init=False, default=0.0)
    _last_save_seconds: float = field(init=False, default=0.0)
    _measured_evaluation: float = field(init=False, default=0.0)
    # As the processes agreed: whether to stop, and whether to save before an evaluation.
    _stop: bool = field(init=False, default=False)
    _save_first: bool = field(init=False, default=False)
    # While the model is evaluated.
    _evaluation_began: float = field(init=False, default=0.0)
    _deadline: float = field(init=False, default=math.inf)

    def events(self) -> Iterator[LoopEvent]:
        """Train, and yield what happens; `Finished` is the last event.

        `progress` and `state` are consistent at every event. At `Evaluated` and `RateDecayed` they are still those
        before the evaluation, so that a training that is saved there and resumed repeats it.

        Raises:
            DivergedError: the loss is not finite; no weight was changed.
            GrimmgenError: the device is out of memory; no weight was changed.
        """
        progress = self.progress
        self._began = self.clock() - self.startup_seconds - progress.seconds
        self._saved = self.clock()
        reason = self._limit_reached()
        if reason == "budget" and progress.evaluated < progress.step:
            # The training was saved between its last update and the evaluation, which may exceed the budget now.
            yield from self._evaluation(progress.window == len(self.windows(progress.epoch)), bounded=False)
            reason = self._limit_after_evaluation(reason)
        while reason is None:
            windows = self.windows(progress.epoch)
            epoch_began, predictions = self.clock(), 0
            for number in range(progress.window, len(windows)):
                began = self.clock()
                rate = self._update(windows, number)
                predictions += windows.predictions(number)
                now = self.clock()
                progress.seconds = now - self._began
                self._update_seconds = max(self._update_seconds, now - began)
                yield Stepped(
                    progress.step,
                    progress.epoch + 1,
                    progress.window,
                    progress.training_perplexity,
                    rate,
                    predictions / max(1e-9, now - epoch_began),
                    progress.seconds,
                )
                if (reason := self._limit_reached()) is not None:
                    break
                yield from self._save_if_due()
            complete = progress.window == len(windows)
            # At the end of the budget the model is evaluated within an epoch. An interrupted epoch is resumed.
            if complete or reason == "budget":
                yield from self._evaluation(complete)
                reason = self._limit_after_evaluation(reason)
            if reason is None:
                yield from self._save_if_due()
        if reason == "budget" and self.configuration.budget is not None:
            # A resume with the same budget does nothing.
            progress.reserve = max(progress.reserve, self.configuration.budget - progress.seconds)
        minimum = progress.schedule.minimum
        yield Finished(
            progress.step,
            progress.epoch + (progress.window > 0),
            reason,
            None if math.isinf(minimum) else minimum,
            progress.best_epoch,
            progress.seconds,
        )

    def evaluation_stopped(self) -> bool:
        """Whether an evaluation in progress is to be stopped: at the end of the budget, or as an update is.

        An evaluation of a second or less is not stopped, so that a training that ends with it is complete.
        """
        if self.stopping():
            return self.clock() > self._evaluation_began + _SHORT_EVALUATION
        return self._deadline < math.inf and self.clock() > self._deadline

    def _update(self, windows: Windows, number: int) -> float:
        """Run the training step on a window; returns the learning rate."""
        progress, configuration, rate = self.progress, self.configuration, self._learning_rate()
        window = windows[number]
        seed = np.random.SeedSequence([configuration.random_seed, progress.step]).generate_state(1)[0]
        try:
            result = self.step(window, self.state, rate, int(seed))
        except torch.OutOfMemoryError as error:
            raise out_of_memory(progress.step) from error
        if not result.finite:
            raise DivergedError(
                f"the loss or its gradient is not finite at update {progress.step + 1}", _milder(configuration)
            )
        self.state = result.state
        progress.step += 1
        progress.window += 1
        progress.loss += result.loss * (len(window.targets) * configuration.batch_size)
        progress.predictions += windows.predictions(number)
        return rate

    def _evaluation(self, complete: bool, bounded: bool = True) -> Iterator[LoopEvent]:
        """Evaluate the model and adapt the learning rate; with `complete` begin the next epoch.

        An evaluation that is stopped changes nothing: a resume repeats it. With `bounded` the end of the budget
        stops it, too.
        """
        progress, configuration, before = self.progress, self.configuration, self.progress.schedule
        if self._save_first:
            yield from self._save()
        began = self._evaluation_began = self.clock()
        if bounded and configuration.budget is not None:
            tolerance = max(_TOLERANCE * configuration.budget, 1.0) / 2
            self._deadline = self._began + configuration.budget + tolerance - self._end_seconds()
        scores = self.evaluate()
        now = self.clock()
        progress.seconds = now - self._began
        if scores is None:
            return
        self._measured_evaluation = max(self._measured_evaluation, now - began)
        perplexity, bits_per_character = scores
        if not math.isfinite(bits_per_character):
            raise DivergedError(
                f"the validation loss is not finite after update {progress.step}", _milder(configuration)
            )
        # What is too large to be measured is no minimum, or a diverged model would be kept as the best one.
        measured = perplexity if perplexity < LARGEST_PERPLEXITY else math.inf
        best = measured < before.minimum
        after = Plateau(before.rate, min(before.minimum, measured))
        if configuration.schedule == "plateau":
            after = before.after(measured, configuration.decay_factor, configuration.decay_patience)
        epoch = progress.epoch + 1
        yield Evaluated(
            progress.step,
            epoch,
            progress.training_perplexity,
            perplexity,
            bits_per_character,
            self._learning_rate(),
            best,
            progress.seconds,
        )
        if after.rate != before.rate:
            patience = configuration.decay_patience
            minimum = min(before.minimum, LARGEST_PERPLEXITY)
            yield RateDecayed(progress.step, epoch, perplexity, minimum, patience, before.rate, after.rate)
        progress.schedule, progress.evaluated = after, progress.step
        progress.stale = 0 if best else progress.stale + 1
        if best:
            progress.best_epoch = epoch
        if complete:
            progress.epoch, progress.window = epoch, 0
            progress.loss, progress.predictions = 0.0, 0

    def _learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        progress, configuration = self.progress, self.configuration
        if configuration.schedule == "plateau":
            return progress.schedule.rate
        steps = configuration.epochs * self.updates
        budget = configuration.budget
        if budget is not None:
            budget = max(1e-9, budget - progress.reserve)
        done = progress_of(progress.step, steps, progress.seconds, budget)
        return configuration.learning_rate * cosine(done, configuration.warmup)

    def _limit_reached(self) -> Reason | None:
        progress, configuration = self.progress, self.configuration
        evaluation = self._measured_evaluation or _UNMEASURED * self.evaluation_seconds
        long, reserve = evaluation > _LONG_EVALUATION, progress.reserve
        if self._update_seconds:
            reserve = self._update_seconds + long * self._last_save_seconds + evaluation + self._end_seconds()
        clocks = progress.seconds, self.clock() - self._saved, reserve, float(long)
        (progress.seconds, unsaved, reserve, save_first), self._stop = self.agree(clocks, self.stopping())
        self._save_due, self._save_first = unsaved > self.save_seconds, bool(save_first)
        if progress.epoch >= configuration.epochs:
            return "epochs"
        if configuration.budget is not None:
            progress.reserve = reserve
            left = configuration.budget - progress.seconds - reserve
            # The first save is measured; one shortly before the end would take longer than there is time.
            self._save_due = left > self._last_save_seconds and (self._save_due or not self._last_save_seconds)
            if left <= 0.0:
                return "budget"
        if 0 < configuration.patience <= progress.stale:
            return "patience"
        if progress.schedule.rate < configuration.learning_rate * LOWEST_RATE:
            return "converged"
        return "interrupted" if self._stop else None

    def _limit_after_evaluation(self, before: Reason | None) -> Reason | None:
        """The limit that is reached after an evaluation; `before` is the one that was reached before it."""
        reached = self._limit_reached() or before
        unevaluated = self.progress.evaluated < self.progress.step
        return "interrupted" if unevaluated and self._stop else reached

    def _end_seconds(self) -> float:
        """The expected duration of the last save, in which the best weights may be written, too, and of the closing."""
        return 1.5 * self._last_save_seconds + self.closing_seconds

    def _save_if_due(self) -> Iterator[LoopEvent]:
        if self._save_due:
            yield from self._save()

    def _save(self) -> Iterator[LoopEvent]:
        began = self.clock()
        yield SaveDue()
        self._saved = self.clock()
        self._last_save_seconds = max(self._last_save_seconds, self._saved - began)


def _milder(configuration: Configuration) -> str:
    """Return the options of a new run after one with this configuration has diverged."""
    # A rate far above the default would be lowered in vain many times.
    rate = min(configuration.learning_rate / 10, OPTIONS["learning_rate"].default)
    clip = OPTIONS["clip"].default
    clipped = f"--clip {clip:g} " if configuration.clip > clip else ""
    return f"train a new run with {clipped}--lr {max(rate, OPTIONS['learning_rate'].low or 0.0):g}"


def out_of_memory(step: int) -> GrimmgenError:
    """Return the error of a device that is out of memory after so many updates."""
    return GrimmgenError(f"the device is out of memory at update {step + 1}", "lower --batch-size or --unroll")
