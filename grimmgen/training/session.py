"""Training as a generator of events: it saves and reports, prints nothing, and can be stopped at any step.

The loop is the tutorial's: windows of T steps over B streams of stories, truncated back-propagation through
time, Adam, the gradient clipped by its global norm, the rate decayed when validation perplexity stops
falling. Everything random in update k follows from (random seed, k), so that a run that was stopped and
resumed ends bit-equal to one that never stopped.

Several processes may train one run, each its rows of every batch (`grimmgen.training.distributed`): all of them go through the
same loop and yield the same events, and the first alone reads and writes the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grimmgen.configuration import Configuration, parameter_count
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.evaluation.static import EncodedDocument, encode_for_evaluation, evaluate
from grimmgen.io import files
from grimmgen.network import backends
from grimmgen.network.captured import capture
from grimmgen.network.model import LanguageModel, State, choose_device
from grimmgen.network.optimiser import AdamW
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import (
    Evaluated,
    Event,
    Finished,
    RateDecayed,
    Reason,
    Recovered,
    Saved,
    Started,
    Stepped,
    event_to_json,
)
from grimmgen.runs.registry import Run
from grimmgen.text import encoding
from grimmgen.text.batches import IdSequence, Window, epoch, window_count
from grimmgen.text.corpus import Corpus, open_corpus
from grimmgen.text.split import Split, split_by_hash
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary
from grimmgen.training.distributed import ALONE, Ranks

# Training has converged when the rate has been decayed to less than this share of where it began.
LOWEST_RATE = 0.01
_SAVE_SECONDS = 30.0
# N-grams of the validation stories that are read after each epoch, at most: so many settle the third digit.
_VALIDATION = 1 << 21
# What the log keeps: the same lines, whether or not a run was interrupted.
_LOGGED = (Started, Evaluated, RateDecayed, Finished)


@dataclass(frozen=True)
class Plateau:
    """The learning rate's schedule: a pure function of the validation perplexities.

    (Tutorial, "Decaying learning rate over time".)

    Attributes:
        rate: the learning rate now.
        minimum: the lowest validation perplexity so far.
        waited: evaluations since then, or since the last decay.
    """

    rate: float
    minimum: float = math.inf
    waited: int = 0

    def after(self, perplexity: float, factor: float, patience: int) -> Plateau:
        """The schedule after one more evaluation.

        >>> Plateau(0.001, minimum=12.0, waited=4).after(12.5, factor=0.5, patience=5)
        Plateau(rate=0.0005, minimum=12.0, waited=0)
        """
        if perplexity < self.minimum:
            return Plateau(self.rate, perplexity, 0)
        if self.waited + 1 >= patience:
            return Plateau(self.rate * factor, self.minimum, 0)
        return Plateau(self.rate, self.minimum, self.waited + 1)


def cosine(progress: float, warmup: float) -> float:
    """The share of the highest learning rate, as a pure function of progress from 0 to 1.

    It rises from near zero over the warm-up and falls along half a cosine to 1 % at the end (Loshchilov and Hutter
    2017, without restarts).

    >>> [round(cosine(p, 0.1), 3) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.505, 0.01]
    """
    if progress < warmup:
        return max(0.01, progress / warmup)
    falling = (progress - warmup) / max(1e-9, 1.0 - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * falling))


@dataclass
class _Progress:
    """Where training stands, all but the tensors."""

    schedule: Plateau
    step: int = 0
    epoch: int = 0  # finished ones
    window: int = 0  # finished ones of this epoch
    loss: float = 0.0  # nats in this epoch so far
    predictions: int = 0  # in this epoch so far
    best_epoch: int = 0
    evaluated: int = 0  # the step of the last evaluation
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        value = dataclasses.asdict(self)
        if math.isinf(self.schedule.minimum):
            value["schedule"]["minimum"] = None
        return value

    @classmethod
    def from_json(cls, value: Any) -> _Progress:
        schedule = dict(value["schedule"])
        if schedule["minimum"] is None:
            schedule["minimum"] = math.inf
        # What was saved before `evaluated` was kept does not have it.
        progress = cls(**{"evaluated": value["step"], **value, "schedule": Plateau(**schedule)})
        numbers = [*dataclasses.astuple(progress)[1:], *dataclasses.astuple(progress.schedule)]
        if not all(type(n) in (int, float) and n >= 0 for n in numbers):
            raise ValueError
        return progress


class Training:
    """One run being trained: iterate over `events()`; `stop()` ends it after the update at work.

    Made by `begin` or `resume`.
    """

    def __init__(
        self,
        run: Run,
        configuration: Configuration,
        corpus: Corpus,
        split: Split,
        device: str,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run = run
        self._configuration = configuration
        self._corpus = corpus
        self._split = split
        self._device = ranks.place(choose_device(device))
        self._ranks = ranks
        self._stopping = False
        self._resumed = False
        self._checkpoint: Checkpoint | None = None  # that is gone on from, on the first rank

    @classmethod
    def begin(
        cls,
        corpus: Corpus,
        configuration: Configuration,
        split: Split | None = None,
        run: str | None = None,
        device: str = "auto",
        command: str = "",
        ranks: Ranks = ALONE,
        waiting: Callable[[str], None] | None = None,
    ) -> Training:
        """Make a new run.

        Args:
            corpus: what to learn from.
            configuration: the options.
            split: which stories are in which part; None decides by a hash of their names.
            run: its name; None makes one up.
            device: `auto`, `cpu` or `cuda`.
            command: that began it, to be kept with it.
            ranks: the processes that train it together.
            waiting: told if another process is encoding a large text.

        Raises:
            UsageError: the device or the name cannot be used, or the text is too short for the options.
        """
        kind = ranks.place(choose_device(device)).type
        ranks.rows(configuration.batch_size)
        split = split or split_by_hash(corpus)
        if run is not None:
            registry.check_name(run)
        # Everything that can be wrong with the text is found before the run exists.
        prepared = _prepare(configuration, split, kind, ranks, waiting)
        made = ranks.told(
            lambda: str(registry.create(run, configuration, corpus, split, command, versions()).path)
        )
        training = cls(Run(Path(made)), configuration, corpus, split, device, ranks)
        training._prepared = prepared
        return training

    @classmethod
    def resume(
        cls,
        run: Run,
        device: str = "auto",
        epochs: int | None = None,
        budget: float | None = None,
        ranks: Ranks = ALONE,
        waiting: Callable[[str], None] | None = None,
    ) -> Training:
        """Go on with a run where it stopped: with its last checkpoint, or with the one before if that is damaged.

        Args:
            run: of the registry.
            device: `auto`, `cpu` or `cuda`.
            epochs: a new limit; None keeps the run's.
            budget: a new limit in seconds, all of the run counted; None keeps the run's.
            ranks: the processes that train it together, as many as before or not.
            waiting: told if another process is encoding a large text.

        Raises:
            GrimmgenError: there is no checkpoint yet.
            IntegrityError: the checkpoint or the corpus is not what it was.
        """
        info = ranks.told(run.info)
        configuration = Configuration.from_json(info.get("configuration"))
        ranks.rows(configuration.batch_size)
        limits: dict[str, Any] = {"epochs": epochs, "budget": budget}
        configuration = dataclasses.replace(configuration, **{k: v for k, v in limits.items() if v is not None})
        corpus = open_corpus(str(info["corpus"]["source"]))
        split = Split.from_json(info["corpus"]["split"], corpus)
        training = cls(run, configuration, corpus, split, device, ranks)
        training._resumed, training._waiting = True, waiting
        if not ranks.first:
            return training
        try:
            training._checkpoint = _resumable(run.last_path)
        except GrimmgenError as error:
            if not run.previous_path.exists():
                if run.last_path.exists():
                    raise
                raise GrimmgenError(
                    f"the run {run.name} has nothing saved to go on from",
                    f"remove it with `grimmgen runs rm {run.name}` and train anew",
                ) from None
            training._checkpoint = _resumable(run.previous_path)
            training._damage = error
        return training

    _prepared: _Prepared | None = None
    _waiting: Callable[[str], None] | None = None
    _damage: GrimmgenError | None = None

    def stop(self) -> None:
        """Ask the loop to end after the update at work, saved; a signal handler may call it, on any rank."""
        self._stopping = True

    def events(self) -> Iterator[Event]:
        """Train; yields what happens. A caller that stops iterating leaves a run that can be resumed.

        Raises:
            GrimmgenError: another process trains this run, the disk is full, the loss is not finite…; the
                checkpoint saved last stays good.
        """
        with self.run.locked() if self._ranks.first else contextlib.nullcontext():
            if self._checkpoint is not None:
                registry.make_latest(self.run, self._configuration)
                if self._damage is not None:
                    # At once, or the next save would keep what is damaged.
                    files.link_or_copy(self.run.previous_path, self.run.last_path)
                    yield Recovered(_Progress.from_json(self._checkpoint.progress).step, self._damage.what)
            given = self._configuration, self._split, self._device.type, self._ranks, self._waiting
            loop = _Loop(self, self._prepared or _prepare(*given))
            yield from loop.events()


@dataclass(frozen=True)
class _Prepared:
    """The text as training needs it."""

    vocabulary: Vocabulary
    training: list[list[IdSequence]]  # for each story the ways in which it may be cut
    validation: list[EncodedDocument]

    def digest(self) -> str:
        """By which two hosts that have not the same text are told apart."""
        lengths = [[len(way) for way in ways] for ways in self.training], [len(s.ids) for s in self.validation]
        return hashlib.sha256(json.dumps([self.vocabulary.to_json(), lengths]).encode()).hexdigest()


def _resumable(path: Path) -> Checkpoint:
    """A checkpoint that says where training stood."""
    checkpoint = Checkpoint.read(path)
    try:
        _Progress.from_json(checkpoint.progress)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise IntegrityError(f"{path} does not say where training stood", "copy it again, or train anew") from None
    return checkpoint


def _prepare(
    configuration: Configuration,
    split: Split,
    device: str,
    ranks: Ranks,
    waiting: Callable[[str], None] | None,
) -> _Prepared:
    encoded = encoding.encode_documents(split.parts["train"], configuration, waiting)
    vocabulary, training = encoded.vocabulary, encoded.documents
    if not any("".join(itertools.islice(story.pieces(), 1)) for story in split.parts["valid"]):
        raise UsageError(
            "the text is so short that none is left to validate with",
            "give more text",
        )
    validation = encode_for_evaluation(
        ((story.name, story.pieces()) for story in split.parts["valid"]), vocabulary, _VALIDATION
    )
    ngrams = sum(len(ways[0]) + 1 for ways in training)
    if configuration.batch_size > ngrams:
        raise UsageError(
            f"--batch-size {configuration.batch_size} is more than the {ngrams} n-grams of the training stories",
            "give fewer rows, or more text",
        )
    prepared = _Prepared(vocabulary, training, validation)
    if not ranks.same(lambda: [configuration.to_json(), device, prepared.digest()]):
        raise UsageError(
            "the processes that are to train together do not have the same text, options and kind of device",
            "give all hosts the same",
        )
    return prepared


class _Loop:
    """The state of a run while it is trained."""

    def __init__(self, training: Training, prepared: _Prepared) -> None:
        self._training = training
        self._ranks = ranks = training._ranks
        self._run = training.run
        self._configuration = configuration = training._configuration
        self._vocabulary = prepared.vocabulary
        self._stories = prepared.training
        self._validation = prepared.validation
        self._updates = window_count(self._stories, configuration.batch_size, configuration.unroll)
        self._model = LanguageModel(configuration, len(self._vocabulary)).to(training._device)
        self._optimiser = AdamW(self._model.parameters(), configuration.weight_decay)
        self._precision = backends.resolve_precision(configuration, training._device)
        self._generator = torch.Generator(training._device)
        self._best: Checkpoint | None = None  # new and not yet on the disk
        state = self._model.zero_state(configuration.batch_size)
        if (checkpoint := training._checkpoint) is None:
            self._model.initialise()
            progress = _Progress(Plateau(configuration.learning_rate))
        else:
            state = self._restore(checkpoint)
            progress = _Progress.from_json(checkpoint.progress)
        ranks.copy([*self._model.parameters(), *self._moments().values(), *state])
        self._progress = _Progress.from_json(ranks.told(progress.to_json))
        self._optimiser.steps = self._progress.step
        self._own = ranks.rows(configuration.batch_size)
        self._state: State = tuple(part[:, self._own] for part in state)
        ranks.watch(self._model.parameters(), configuration.batch_size)
        learning = self._model, self._optimiser, self._generator, self._precision
        self._captured, self._whether_captured = None, ""
        # What is captured is a whole window's update; of a text that is less, each epoch has a shorter one.
        try:
            if ranks.size == 1 and self._updates > 1:
                self._captured, self._whether_captured = capture(*learning)
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        self._resumed = training._resumed
        self._clock = time.monotonic() - self._progress.seconds
        self._saved_at = time.monotonic()
        self._save_due = False
        self._unsaved = not self._resumed

    def events(self) -> Iterator[Event]:
        if self._resumed and self._ranks.first:
            # Not at its step: the last update of an epoch may have been saved before its evaluation was.
            self._run.cut_log(self._progress.evaluated)
        started = self._started()
        if not self._resumed:
            self._log(started)
        yield started
        try:
            yield from self._epochs()
        except GeneratorExit:
            # Whoever listened has left: nothing can be told, but nothing is lost. Of several ranks the others
            # have what is missing, and are at work.
            if self._unsaved and self._ranks.size == 1:
                self._save()
            raise

    def _epochs(self) -> Iterator[Event]:
        progress, limit = self._progress, self._configuration
        reason: Reason | None = self._limit_reached()
        while reason is None:
            drawn = limit.random_seed, progress.epoch
            windows = epoch(self._stories, limit.batch_size, limit.unroll, *drawn, self._own)
            if progress.window > len(windows):
                raise IntegrityError(f"{self._run.last_path} stands beyond the end of an epoch", "train anew")
            began, read = time.monotonic(), 0
            for number in range(progress.window, len(windows)):
                predictions = windows.predictions(number)
                rate = self._update(windows[number], predictions)
                read += predictions
                progress.seconds = time.monotonic() - self._clock
                yield Stepped(
                    progress.step,
                    progress.epoch + 1,
                    progress.window,
                    self._training_perplexity(),
                    rate,
                    read / max(1e-9, time.monotonic() - began),
                    progress.seconds,
                )
                if (reason := self._limit_reached()) is not None:
                    break
                if self._save_due:
                    yield self._save()
            whole = progress.window == len(windows)
            # A budget that ends within an epoch is judged there; an interrupted one goes on there.
            if whole or reason == "budget":
                yield from self._evaluate(whole)
                reason = self._limit_reached()
            if reason is None and self._save_due:
                yield self._save()
        finished = self._finished(reason)
        if reason != "interrupted":
            self._log(finished)
        yield self._save()
        yield finished

    def _update(self, window: Window, predictions: int) -> float:
        """Learn from a window, which has so many predictions in the rows of all ranks; returns the rate."""
        progress, configuration, rate = self._progress, self._configuration, self._rate()
        seed = np.random.SeedSequence([configuration.random_seed, progress.step]).generate_state(1)[0]
        self._generator.manual_seed(int(seed))
        captured = self._captured if self._captured is not None and self._captured.fits(window) else None
        try:
            if captured is not None:
                mean, norm, state = captured.update(window, self._state, rate)
            else:
                self._optimiser.zero_gradient()
                with self._model.left_alone():
                    given = self._state, self._generator, self._precision, self._own
                    loss, state = self._model.loss(window, *given)
                    loss.backward()  # type: ignore[no-untyped-call]
                    loss = self._ranks.average(loss)
                    norm = self._optimiser.norm()
                mean = loss.item()
        except torch.OutOfMemoryError as error:
            raise self._out_of_memory() from error
        if not (math.isfinite(mean) and math.isfinite(norm)):
            raise GrimmgenError(
                f"the loss is no longer finite at update {progress.step + 1}, the last good checkpoint stays",
                f"train anew with --lr {configuration.learning_rate / 10:g}",
            )
        if captured is None:
            self._optimiser.step(rate, configuration.clip, norm)
        self._state = state
        self._unsaved = True
        progress.step += 1
        progress.window += 1
        progress.loss += mean * (len(window.targets) * configuration.batch_size)
        progress.predictions += predictions
        return rate

    def _out_of_memory(self) -> GrimmgenError:
        step = self._progress.step + 1
        return GrimmgenError(f"the device is out of memory at update {step}", "lower --batch-size or --unroll")

    def _evaluate(self, whole: bool) -> Iterator[Event]:
        progress, configuration = self._progress, self._configuration
        self._unsaved = True
        total = evaluate(
            self._model, self._validation, (self._ranks.rank, self._ranks.size), self._ranks.sum
        ).total
        perplexity = self._ranks.told(lambda: total.perplexity)
        best = perplexity < progress.schedule.minimum
        old = progress.schedule
        if configuration.schedule == "plateau":
            progress.schedule = old.after(perplexity, configuration.decay_factor, configuration.decay_patience)
        else:
            progress.schedule = Plateau(old.rate, min(old.minimum, perplexity))
        progress.evaluated = progress.step
        progress.seconds = time.monotonic() - self._clock
        evaluated = Evaluated(
            progress.step,
            progress.epoch + 1,
            self._training_perplexity(),
            perplexity,
            total.bits_per_character,
            self._rate() if configuration.schedule == "cosine" else old.rate,
            best,
            progress.seconds,
        )
        if best:
            progress.best_epoch = progress.epoch + 1
        if best and self._ranks.first:
            self._best = Checkpoint(
                configuration, self._vocabulary, self._provenance(evaluated), self._model.weights()
            )
        events: list[Event] = [evaluated]
        if progress.schedule.rate != old.rate:
            events.append(
                RateDecayed(
                    progress.step,
                    progress.epoch + 1,
                    perplexity,
                    old.minimum,
                    configuration.decay_patience,
                    old.rate,
                    progress.schedule.rate,
                )
            )
        for event in events:
            self._log(event)
        if whole:
            progress.epoch += 1
            progress.window = 0
            progress.loss = 0.0
            progress.predictions = 0
        yield from events

    def _rate(self) -> float:
        """The learning rate of the next update."""
        progress, limit = self._progress, self._configuration
        if limit.schedule == "plateau":
            return progress.schedule.rate
        done = progress.step / (limit.epochs * self._updates)
        if limit.budget is not None:
            done = max(done, progress.seconds / limit.budget)
        return limit.learning_rate * cosine(min(1.0, done), limit.warmup)

    def _limit_reached(self) -> Reason | None:
        progress, limit = self._progress, self._configuration
        clocks = progress.seconds, time.monotonic() - self._saved_at
        (progress.seconds, unsaved), stopping = self._ranks.agree(clocks, self._training._stopping)
        self._save_due = unsaved > _SAVE_SECONDS
        if progress.epoch >= limit.epochs:
            return "epochs"
        if limit.budget is not None and progress.seconds >= limit.budget:
            return "budget"
        if progress.schedule.rate < limit.learning_rate * LOWEST_RATE:
            return "converged"
        if stopping:
            return "interrupted"
        return None

    def _save(self) -> Saved:
        state = self._ranks.gather(torch.stack(self._state), self._configuration.batch_size)
        best = self._best is not None
        if self._ranks.first:
            self._write(state)
        self._saved_at = time.monotonic()
        self._unsaved = False
        return Saved(self._progress.step, self._run.last_path, best)

    def _write(self, state: torch.Tensor) -> None:
        """The checkpoints, with the state (h, c) of all rows, [2, L, B, H]."""
        if self._best is not None:
            self._best.write(self._run.best_path)
            self._best = None
        tensors = dict(zip(("state.h", "state.c"), state.cpu().numpy(), strict=True))
        tensors |= {name: moment.cpu().numpy() for name, moment in self._moments().items()}
        if self._run.last_path.exists():
            files.link_or_copy(self._run.last_path, self._run.previous_path)
        Checkpoint(
            self._configuration,
            self._vocabulary,
            self._provenance(),
            self._model.weights(),
            self._progress.to_json(),
            tensors,
        ).write(self._run.last_path)

    def _restore(self, checkpoint: Checkpoint) -> State:
        """Take what a checkpoint has; returns the state of all rows."""
        if checkpoint.vocabulary != self._vocabulary:
            raise IntegrityError(
                f"{self._run.last_path} has another vocabulary than the training stories", "train anew"
            )
        self._model.load_weights(checkpoint.weights)
        device = self._training._device
        tensors = {name: torch.from_numpy(t).to(device) for name, t in checkpoint.training_tensors.items()}
        for name, moment in self._moments().items():
            moment.copy_(tensors[name])
        return tensors["state.h"], tensors["state.c"]

    def _moments(self) -> dict[str, torch.Tensor]:
        """The optimiser's means, by their names in a checkpoint."""
        names = [name for name, _ in self._model.named_parameters()]
        of = {"exp_avg": self._optimiser.exp_avg, "exp_avg_sq": self._optimiser.exp_avg_sq}
        return {
            f"adam.{kind}.{name}": moment
            for kind, moments in of.items()
            for name, moment in zip(names, moments, strict=True)
        }

    def _training_perplexity(self) -> float:
        return math.exp(min(700.0, self._progress.loss / max(1, self._progress.predictions)))

    def _provenance(self, evaluated: Evaluated | None = None) -> dict[str, Any]:
        provenance = {
            "run": self._run.name,
            "corpus": self._training._corpus.name,
            "step": self._progress.step,
            "epoch": self._progress.epoch + 1 if evaluated else self._progress.epoch,
            "versions": versions(),
            # A story that is told without a prompt begins with one of these.
            "beginnings": sorted({int(ways[0][:1][0]) for ways in self._stories if len(ways[0])} - {UNKNOWN}),
        }
        if evaluated:
            provenance["perplexity"] = evaluated.perplexity
            provenance["bits_per_character"] = evaluated.bits_per_character
        return provenance

    def _started(self) -> Started:
        parts = self._training._split.parts
        return Started(
            self._run.name,
            self._run.path,
            self._configuration,
            self._training._corpus.name,
            (len(parts["train"]), len(parts["valid"]), len(parts["test"])),
            self._training._split.by_story,
            sum(len(ways[0]) for ways in self._stories),
            len(self._vocabulary),
            self._vocabulary.unknown_share,
            parameter_count(self._configuration, len(self._vocabulary)),
            f"{self._ranks.size} × {self._training._device.type}"
            if self._ranks.size > 1
            else str(self._training._device),
            self._model.kernel(self._precision) + self._whether_captured,
            self._updates,
            self._progress.step,
        )

    def _finished(self, reason: Reason) -> Finished:
        progress = self._progress
        minimum = progress.schedule.minimum
        return Finished(
            progress.step,
            progress.epoch + (progress.window > 0),
            reason,
            None if math.isinf(minimum) else minimum,
            progress.best_epoch,
            progress.seconds,
        )

    def _log(self, event: Event) -> None:
        assert isinstance(event, _LOGGED)
        if self._ranks.first:
            self._run.append_log(event_to_json(event))


def versions() -> dict[str, str]:
    """Of the programs that make a run what it is."""
    return {
        "grimmgen": version("grimmgen"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def command_line() -> str:
    """The command that was typed."""
    return shlex.join(["grimmgen", *sys.argv[1:]])
