"""A training session: it prepares the text, saves, logs, stops and resumes the training of one run.

`Training.events` is a generator of what happens; it prints nothing. The run can be stopped after any update, and a
run that was stopped and resumed ends bit-equal to one that never stopped.

Several processes may train one run, each with its rows of every batch (`grimmgen.training.distributed`). All of
them run the same loop and yield the same events; only the first one reads and writes the run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files, paths
from grimmgen.network.model import LanguageModel, State, choose_device
from grimmgen.network.optimiser import AdamW
from grimmgen.network.precision import PrecisionChoice, choose_precision, restore_choice
from grimmgen.network.shapes import parameter_count
from grimmgen.network.train_step import TrainStep
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint, state_names, written_by
from grimmgen.runs.events import (
    Evaluated,
    Event,
    Failed,
    Finished,
    PlatformChanged,
    RateDecayed,
    Recovered,
    Saved,
    Started,
    Stepped,
    event_to_json,
)
from grimmgen.runs.registry import Run, TrainedModel
from grimmgen.text.batches import Windows, epoch
from grimmgen.text.corpus import Corpus, size_of
from grimmgen.text.encoding import IN_MEMORY
from grimmgen.text.split import Split, reopen, split_by_hash
from grimmgen.text.tokenizers import vocabulary_from_json
from grimmgen.text.vocabulary import Vocabulary
from grimmgen.training.counting import Counting
from grimmgen.training.distillation import SampledTargets
from grimmgen.training.distributed import SINGLE_PROCESS, ProcessGroup
from grimmgen.training.loop import DivergedError, Progress, SaveDue, TrainingLoop, out_of_memory
from grimmgen.training.preflight import check_checkpoints
from grimmgen.training.schedule import Plateau
from grimmgen.training.text import TrainingText, encode_validation, prepare_text
from grimmgen.training.validation import Validation

SAVE_SECONDS = 30.0

Notify = Callable[[str], None]


class Training:
    """The training of one run: iterate over `events()`; `stop()` ends it after the current update.

    Created by `begin` or `resume`.

    Attributes:
        run: the run.
        running: whether updates have begun, so that there is something to save.
        counted_from: when the time of training began, by `time.monotonic`; None is when `events` is called.
            Reading a text whose ids are kept in the cache does not count.
    """

    def __init__(
        self,
        run: Run,
        configuration: Configuration,
        corpus: Corpus,
        split: Split,
        device: str,
        group: ProcessGroup = SINGLE_PROCESS,
        notify: Notify | None = None,
        base: Checkpoint | None = None,
    ) -> None:
        self.run = run
        self.running = False
        self.counted_from: float | None = None
        self._configuration = configuration
        self._corpus = corpus
        self.split = split
        self._device = group.place(choose_device(device))
        self._group = group
        self._notify = notify
        self._stopping = False
        self._resumed = False
        self._text: TrainingText | None = None
        self._reason = ""
        self._base = base  # in the first process only
        self._precision: PrecisionChoice | None = None  # None: not chosen yet
        self._targets: SampledTargets | None = None
        self._uncounted = 0.0  # seconds
        # Of a resume, in the first process only: where it starts, if anything was saved, and what is wrong with the
        # last checkpoint.
        self._checkpoint: Checkpoint | None = None
        self._damage: GrimmgenError | None = None
        # Holds the lock of the run. If `events` is never called, it is released with this object.
        self._lock: contextlib.ExitStack | None = None
        self._began = False
        self._recorder: _Recorder | None = None

    @classmethod
    def begin(
        cls,
        corpus: Corpus,
        configuration: Configuration,
        split: Split | None = None,
        run: str | None = None,
        device: str = "auto",
        command: str = "",
        group: ProcessGroup = SINGLE_PROCESS,
        notify: Notify | None = None,
        *,
        base: TrainedModel | None = None,
        teachers: Sequence[TrainedModel] = (),
        numbered: bool = False,
        reason: str = "",
        ranks: ProcessGroup | None = None,
    ) -> Training:
        """Create a new run.

        Args:
            corpus: the documents.
            configuration: the options.
            split: documents of the training, validation and test sets; None splits by a hash of their names.
            run: name of the run; None generates one.
            device: `auto`, `cpu` or `cuda`.
            command: command line to be kept with the run.
            group: the processes that train the run together.
            notify: called with a message when another process is encoding the same text.
            base: the model whose weights training starts from, with the architecture and the tokenizer of the
                configuration (`grimmgen.configuration.base_options`); None starts from random weights.
            teachers: models of the same text, towards whose predictions the network is trained
                (`grimmgen.training.distillation`).
            numbered: whether a name that is taken gets a number.
            reason: why these options were chosen (`grimmgen.training.auto`); it is stored with the run.
            ranks: deprecated name of `group`.

        Raises:
            UsageError: the device or the name cannot be used, or the text is too short for the options.
        """
        group = _renamed(group, ranks)
        place = group.place(choose_device(device))
        group.rows(configuration.batch_size)
        split = split or split_by_hash(corpus)
        if run is not None:
            registry.check_name(run)
        # Before the run is created, so that an unusable text leaves nothing behind.
        opening = time.monotonic()
        checkpoint = base.checkpoint if base else None
        text = prepare_text(configuration, split, place, group, notify, _vocabulary_of(checkpoint, group))
        targets, drawing = None, time.monotonic()
        if teachers:
            seed = configuration.random_seed
            targets = SampledTargets.shared(
                lambda: SampledTargets.draw(teachers, text, place, seed, notify), text, group
            )
        drawing = time.monotonic() - drawing

        def create() -> tuple[str, dict[str, Any]]:
            provenance = {"run": run or "", "corpus": corpus.name, **text.provenance(configuration)}
            directory = paths.runs_directory()
            check_checkpoints(configuration, text.vocabulary, provenance, directory, None, checkpoint, text.size)
            precision = _choose_precision(configuration, text, place, group)
            created = registry.create(
                run,
                configuration,
                corpus,
                split,
                command,
                versions(),
                base,
                numbered,
                reason,
                precision,
                teachers,
                None if targets is None else targets.write,
            )
            return str(created.path), precision

        path, precision = group.broadcast(create)
        training = cls(Run(Path(path)), configuration, corpus, split, device, group, notify, checkpoint)
        training._precision = PrecisionChoice(**precision)
        # A new run stores the hashes of its text, for which it is read once more. The teachers' time counts.
        training._text, training._uncounted = text, _uncounted_since(opening + drawing, split)
        training._targets = targets
        return training

    @classmethod
    def resume(
        cls,
        run: Run,
        device: str = "auto",
        epochs: int | None = None,
        budget: float | None = None,
        group: ProcessGroup = SINGLE_PROCESS,
        notify: Notify | None = None,
        *,
        patience: int | None = None,
        moved_to: Sequence[str] = (),
        ranks: ProcessGroup | None = None,
    ) -> Training:
        """Resume a run from its last checkpoint, or from the previous one if the last one is damaged.

        A run without a checkpoint starts from its beginning again. The run is locked from now until `events` ends.

        Args:
            run: of the registry.
            device: `auto`, `cpu` or `cuda`.
            epochs: new limit; None keeps that of the run.
            budget: new limit in seconds, over the whole run; None keeps that of the run.
            group: the processes that train the run together; their number may differ from before.
            notify: called with a message when another process is encoding the same text.
            patience: new limit of the evaluations without improvement; None keeps that of the run.
            moved_to: where the corpus is now; empty if it is where it was.
            ranks: deprecated name of `group`.

        Raises:
            GrimmgenError: another process trains the run.
            IntegrityError: the checkpoints or the corpus are damaged or have changed, or are those of another run.
        """
        group = _renamed(group, ranks)
        with contextlib.ExitStack() as lock:
            # Before anything is read: what another process saves until then would be overwritten.
            if group.first:
                lock.enter_context(run.locked())
            info = group.broadcast(run.info)
            configuration = Configuration.from_json(info.get("configuration"), written_by(info.get("versions")))
            group.rows(configuration.batch_size)
            limits: dict[str, Any] = {"epochs": epochs, "budget": budget, "patience": patience}
            configuration = dataclasses.replace(
                configuration, **{k: v for k, v in limits.items() if v is not None}
            )
            opening = time.monotonic()
            corpus, split = reopen(info["corpus"], configuration, moved_to, notify)
            training = cls(run, configuration, corpus, split, device, group, notify)
            training._resumed, training._uncounted = True, _uncounted_since(opening, split)
            if group.first:
                training._checkpoint, training._damage = _read_last(run, info)
                training._base = run.base()
            training._precision = training._kept_precision(info)
            training._lock = lock.pop_all()
        return training

    def stop(self) -> None:
        """Stop after the current update and save; may be called by a signal handler, in any of the processes."""
        self._stopping = True

    def model(self) -> TrainedModel:
        """Return a copy of the model as it is now; the first process of a group may call it at any event.

        Raises:
            GrimmgenError: training has not started.
        """
        if self._recorder is None:
            raise GrimmgenError(f"the training of the run {self.run.name} has not started", "begin its events")
        return TrainedModel(self.run.name, self._recorder.checkpoint(self._recorder.loop.progress.epoch), self.run)

    def events(self) -> Iterator[Event]:
        """Train, and yield what happens. A caller that stops iterating leaves a run that can be resumed.

        It can be called once.

        Raises:
            GrimmgenError: another process trains this run, the disk is full, the loss is not finite…; checkpoints
                on the disk are unchanged, and the best weights so far are saved.
        """
        if self._began:
            raise GrimmgenError(
                f"this training of the run {self.run.name} has ended", "resume the run with `Training.resume`"
            )
        self._began = True
        if self._lock is None:
            self._lock = contextlib.ExitStack()
            if self._group.first:
                self._lock.enter_context(self.run.locked())
        with self._lock:
            try:
                if self._resumed and self._group.first:
                    registry.make_latest(self.run, self._configuration, self._corpus.source, versions())
                if self._checkpoint is not None and self._damage is not None:
                    # Before the next save, which would keep the damaged checkpoint as the previous one.
                    files.link_or_copy(self.run.previous_path, self.run.last_path)
                    yield Recovered(Progress.from_json(self._checkpoint.progress).step, self._damage.what)
                yield from self._train()
            except GrimmgenError as error:
                # The same command would find that the run exists.
                again = f"continue with `{self._group.command} train --resume --run {self.run.name}`"
                error.remedy = error.remedy.replace(files.AGAIN, again)
                raise

    def _train(self) -> Iterator[Event]:
        configuration, group, device = self._configuration, self._group, self._device
        counted_from, uncounted, text = self.counted_from, self._uncounted, self._text
        if counted_from is None:
            counted_from, uncounted = time.monotonic(), 0.0
        if text is None:
            opening = time.monotonic()
            base = _vocabulary_of(self._base, group)
            text = prepare_text(configuration, self.split, device, group, self._notify, base)
            uncounted += _uncounted_since(opening, self.split)
        info = group.broadcast(self.run.info)
        targets = self._targets
        if targets is None and "teachers" in info:
            targets = SampledTargets.shared(lambda: SampledTargets.read(self.run.targets_path, text), text, group)
        model = LanguageModel(configuration, len(text.vocabulary)).to(device)
        optimiser = AdamW(model.named_parameters(), configuration.weight_decay)
        progress, state = self._restore_or_init(model, optimiser, text.vocabulary)
        own = group.rows(configuration.batch_size)
        try:
            precision = self._precision or PrecisionChoice(
                **group.broadcast(lambda: _choose_precision(configuration, text, device, group))
            )
            step = TrainStep(
                model,
                optimiser,
                precision.precision,
                own,
                group.reducer(configuration.batch_size, device),
                # The only window of an epoch may be shorter than the others, and differ from epoch to epoch.
                record=text.updates > 1,
                kernels=precision.kernels,
            )
        except torch.OutOfMemoryError as error:
            raise out_of_memory(progress.step) from error

        def windows(number: int) -> Windows:
            shape, seed, ids = (configuration.batch_size, configuration.unroll), configuration.random_seed, None
            if targets is not None:
                ids = targets.of_epoch(text.training.ids, seed, number)
            return epoch(text.training, *shape, seed, number, own, ids)

        if progress.window > len(windows(progress.epoch)):
            raise IntegrityError(f"{self.run.last_path} is beyond the end of an epoch", "train a new run")
        validation = Validation(
            model,
            text.validation,
            lambda ngrams: encode_validation(self.split, text.vocabulary, ngrams),
            group,
            time.monotonic,
        )
        budget = configuration.budget
        if budget is not None and progress.step == 0:
            progress.validation_ngrams = group.broadcast(lambda: validation.fit(budget))
        if progress.validation_ngrams != validation.ngrams:
            validation.limit(progress.validation_ngrams)
        counting = None
        if configuration.counts and group.first:
            counting = Counting(text, time.monotonic, validation.seconds)
        loop = TrainingLoop(
            configuration,
            step,
            tuple(part[:, own] for part in state),
            progress,
            windows,
            text.updates,
            lambda: validation.scores(loop.evaluation_stopped),
            lambda: self._stopping,
            time.monotonic,
            SAVE_SECONDS,
            group.agree,
            validation.seconds,
            time.monotonic() - counted_from - uncounted,
            0.0 if counting is None else counting.seconds,
        )
        self._reason = str(info.get("reason", ""))
        provenance: dict[str, Any] = {
            "run": self.run.name,
            "run_sha256": registry.run_sha256(info),
            "corpus": self._corpus.name,
            **text.provenance(configuration),
            "platform": _platform(step, device, group.size),
        }
        provenance |= {origin: info[origin] for origin in ("base", "teachers") if origin in info}
        if self._resumed and group.first:
            check_checkpoints(configuration, text.vocabulary, provenance, self.run.path, self.run, None, text.size)
        self._recorder = recorder = _Recorder(
            self.run, group, loop, model, optimiser, text.vocabulary, provenance, counting
        )
        teachers = tuple(str(teacher["name"]) for teacher in info.get("teachers", ()))
        started = self._started_event(text, progress, step.description, precision, teachers)
        if group.first and self._checkpoint is not None:
            # The checkpoint may have been saved before the evaluation at its step.
            self.run.cut_log(progress.evaluated, progress.step)
        elif group.first and self._resumed:
            self.run.cut_log(-1)
        if self._checkpoint is None:
            recorder.log(started)
        recorder.unsaved = self._checkpoint is None
        self.running = True
        yield started
        if (change := self._platform_change(provenance["platform"], progress.step)) is not None:
            recorder.log(change)
            yield change
        yield from recorder.events()

    def _platform_change(self, now: Mapping[str, str | int], step: int) -> PlatformChanged | None:
        """Compare the platform with that of the checkpoint."""

        def changed() -> dict[str, str | int]:
            # Checkpoints of earlier versions have none.
            stored = self._checkpoint.provenance.get("platform") if self._checkpoint is not None else None
            known = stored.items() if isinstance(stored, dict) else ()
            return {n: v for n, v in known if isinstance(v, str | int) and v != now.get(n, v)}

        before = self._group.broadcast(changed)
        return PlatformChanged(step, before, {name: now[name] for name in before}) if before else None

    def _restore_or_init(
        self, model: LanguageModel, optimiser: AdamW, vocabulary: Vocabulary
    ) -> tuple[Progress, State]:
        """Initialise the model, or restore it from the checkpoint; returns the state of all rows."""
        configuration, group = self._configuration, self._group
        moments = _moments(optimiser)
        state = model.zero_state(configuration.batch_size)
        progress = Progress(Plateau(configuration.learning_rate))
        if self._checkpoint is None:
            model.initialise()
            if self._base is not None:
                model.load_base(self._base.weights, *vocabulary.shared_ids(self._base.vocabulary))
        else:
            if self._checkpoint.vocabulary != vocabulary:
                raise IntegrityError(
                    f"the vocabulary of {self.run.last_path} differs from that of the training set",
                    "train a new run",
                )
            model.load_weights(self._checkpoint.weights)
            tensors = self._checkpoint.training_tensors
            for name, part in zip(state_names(configuration), state, strict=True):
                part.copy_(torch.from_numpy(tensors[f"state.{name}"]))
            for name, moment in moments.items():
                moment.copy_(torch.from_numpy(tensors[name]))
            progress = Progress.from_json(self._checkpoint.progress)
        group.copy([*model.parameters(), *moments.values(), *state])
        progress = Progress.from_json(group.broadcast(progress.to_json))
        optimiser.steps = progress.step
        return progress, state

    def _kept_precision(self, info: Mapping[str, Any]) -> PrecisionChoice | None:
        """The choice that a run was begun with, as the first process finds it."""

        def find() -> dict[str, Any] | None:
            kept = info.get("precision")
            if kept is None and self._checkpoint is not None:
                # Runs of earlier versions have it in their checkpoints only.
                stored = self._checkpoint.provenance.get("platform")
                kept = {"chosen": stored.get("precision")} if isinstance(stored, dict) else None
            choice = restore_choice(kept, self._configuration, self._device)
            return None if choice is None else choice.to_json()

        found = self._group.broadcast(find)
        return None if found is None else PrecisionChoice(**found)

    def _started_event(
        self,
        text: TrainingText,
        progress: Progress,
        kernel: str,
        precision: PrecisionChoice,
        teachers: tuple[str, ...],
    ) -> Started:
        parts, size = self.split.parts, len(text.vocabulary)
        return Started(
            self.run.name,
            self.run.path,
            self._configuration,
            self._corpus.name,
            (len(parts["train"]), len(parts["valid"]), len(parts["test"])),
            self.split.by_story,
            text.ngrams,
            size,
            text.vocabulary.unknown_share,
            parameter_count(self._configuration, size),
            f"{self._group.size} × {self._device.type}" if self._group.size > 1 else str(self._device),
            kernel,
            text.updates,
            progress.step,
            precision.precision,
            dict(precision.milliseconds),
            *self._described_base(text.vocabulary),
            self._reason,
            progress.seconds,
            teachers,
        )

    def _described_base(self, vocabulary: Vocabulary) -> tuple[str | None, int]:
        """The name of the model that training started from, and the number of tokens that it has, too."""
        if self._base is None:
            return None, 0
        return str(self.run.info()["base"]["name"]), len(vocabulary.shared_ids(self._base.vocabulary)[0])


@dataclass
class _Recorder:
    """Logs and saves what a training loop does.

    Attributes:
        unsaved: whether anything has changed since the last save.
        best: a checkpoint with new best weights that is not saved yet.
    """

    run: Run
    group: ProcessGroup
    loop: TrainingLoop
    model: LanguageModel
    optimiser: AdamW
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    counting: Counting | None = None
    unsaved: bool = False
    best: Checkpoint | None = None

    def events(self) -> Iterator[Event]:
        """Run the loop; yields its events, with `Saved` where it was saved."""
        try:
            for event in self.loop.events():
                match event:
                    case SaveDue():
                        yield self.save()
                        continue
                    case Evaluated() | RateDecayed():
                        self.log(event)
                        if isinstance(event, Evaluated) and event.best:
                            self.keep_best(event)
                    case Finished():
                        saved = self.save()
                        # After the save: a run is called finished only if its last checkpoint is that of the end.
                        if event.reason != "interrupted":
                            if self.counting is not None and self.run.best_path.exists():
                                self.counting.finish(self.run.best_path, self.model)
                            self.log(event)
                        yield saved
                        yield event
                        return
                    case Stepped():
                        pass
                self.unsaved = True
                yield event
        except GeneratorExit:
            # The caller has stopped iterating. With several processes saving is collective, and the others may not be
            # at this point.
            if self.unsaved and self.group.size == 1:
                self.save()
            raise
        except BaseException as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Save the best weights so far and log the failure, as far as the disk allows; complete the error."""
        kept = "the last checkpoint is unchanged" if self.run.has_checkpoint else "no checkpoint was saved"
        if (best := self.best) is not None:
            with contextlib.suppress(GrimmgenError):
                best.write(self.run.best_path)
                kept = f"the best weights, of epoch {best.provenance['epoch']}, are saved"
        what = error.what if isinstance(error, GrimmgenError) else error.__class__.__name__
        with contextlib.suppress(GrimmgenError):
            self.log(Failed(self.loop.progress.step, what))
        if isinstance(error, DivergedError):
            error.what += f"; {kept}"

    def log(self, event: Started | PlatformChanged | Evaluated | RateDecayed | Finished | Failed) -> None:
        """Log an event. The log of a run is the same whether or not it was interrupted."""
        if self.group.first:
            self.run.append_log(event_to_json(event))

    def keep_best(self, evaluated: Evaluated) -> None:
        """Keep a copy of the weights for the next save."""
        scores = {
            "perplexity": evaluated.perplexity,
            "bits_per_character": evaluated.bits_per_character,
        }
        if self.group.first:
            self.best = self.checkpoint(evaluated.epoch, scores)

    def save(self) -> Saved:
        """Write the checkpoints; all processes take part."""
        # In one process these are the tensors themselves.
        batch_size = self.loop.configuration.batch_size
        state = self.group.gather(torch.stack(self.loop.state), batch_size).cpu().numpy()
        saved = Saved(self.loop.progress.step, self.run.last_path, self.best is not None)
        if self.group.first:
            if self.best is not None:
                self.best.write(self.run.best_path)
            names = (f"state.{name}" for name in state_names(self.loop.configuration))
            tensors = dict(zip(names, state, strict=True))
            tensors |= {n: m.cpu().numpy() for n, m in _moments(self.optimiser).items()}
            if self.run.last_path.exists():
                files.link_or_copy(self.run.last_path, self.run.previous_path)
            last = self.checkpoint(self.loop.progress.epoch)
            progress = self.loop.progress.to_json()
            dataclasses.replace(last, progress=progress, training_tensors=tensors).write(self.run.last_path)
        self.best, self.unsaved = None, False
        return saved

    def checkpoint(self, epoch: int, scores: Mapping[str, float] | None = None) -> Checkpoint:
        """The weights as they are now, with what is known about them."""
        provenance = {
            **self.provenance,
            "step": self.loop.progress.step,
            "epoch": epoch,
            "versions": versions(),
            **(scores or {}),
        }
        return Checkpoint(self.loop.configuration, self.vocabulary, provenance, self.model.weights())


def _vocabulary_of(base: Checkpoint | None, group: ProcessGroup) -> Vocabulary | None:
    """The vocabulary of the model that training starts from, in all processes."""
    if group.size == 1:
        return None if base is None else base.vocabulary
    value = group.broadcast(lambda: None if base is None else base.vocabulary.to_json())
    return None if value is None else vocabulary_from_json(value)


def _choose_precision(
    configuration: Configuration, text: TrainingText, device: torch.device, group: ProcessGroup
) -> dict[str, Any]:
    """Choose what all processes train with, for the rows of this one; returns a `PrecisionChoice` as JSON."""
    rows = range(configuration.batch_size)[group.rows(configuration.batch_size)]
    own = dataclasses.replace(configuration, batch_size=len(rows))
    try:
        return choose_precision(own, len(text.vocabulary), device).to_json()
    except torch.OutOfMemoryError as error:
        raise out_of_memory(0) from error


def _uncounted_since(began: float, split: Split) -> float:
    """The seconds of reading since then; 0 where they count as training time."""
    return time.monotonic() - began if size_of(split.parts["train"]) > IN_MEMORY else 0.0


def _moments(optimiser: AdamW) -> dict[str, torch.Tensor]:
    """Return the moments of the optimiser, by their names in a checkpoint."""
    kinds = {"exp_avg": optimiser.exp_avg, "exp_avg_sq": optimiser.exp_avg_sq}
    return {f"adam.{kind}.{name}": m for kind, moments in kinds.items() for name, m in moments.items()}


def _read_last(run: Run, info: Mapping[str, Any]) -> tuple[Checkpoint | None, GrimmgenError | None]:
    """The last checkpoint of a run; or the previous one, and what is wrong with the last one; or None."""
    try:
        return _resumable(run, run.last_path, info), None
    except GrimmgenError as error:
        if run.previous_path.exists():
            return _resumable(run, run.previous_path, info), error
        if os.path.lexists(run.last_path):
            raise
        # It ended before its first save, or between those of its best and its last checkpoint.
        return None, None


def _resumable(run: Run, path: Path, info: Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint that has the progress of the training."""
    checkpoint = run.read_own(path, info)
    try:
        Progress.from_json(checkpoint.progress)
    except (TypeError, KeyError, ValueError, AttributeError, OverflowError):
        raise IntegrityError(
            f"{path} does not have the progress of a training", "copy it again, or train a new run"
        ) from None
    return checkpoint


def _renamed(group: ProcessGroup, ranks: ProcessGroup | None) -> ProcessGroup:
    if ranks is None:
        return group
    warnings.warn("the argument `ranks` is deprecated: use `group`", DeprecationWarning, stacklevel=3)
    return ranks


def versions() -> dict[str, str]:
    """Versions of the programs that the results of a training depend on."""
    return {
        "grimmgen": version("grimmgen"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _platform(step: TrainStep, device: torch.device, processes: int) -> dict[str, str | int]:
    """What the last bits of a result depend on besides the configuration and the text."""
    properties: dict[str, str | int] = {
        "backend": step.backend,
        "precision": step.precision,
        "processes": processes,
    }
    if device.type == "cpu":
        properties["processor"] = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        properties["threads"] = torch.get_num_threads()
    else:
        properties["processor"] = torch.cuda.get_device_name(device)
    return properties | {"PyTorch": torch.__version__, "grimmgen": version("grimmgen")}


def command_line() -> str:
    """Return the command line of this process."""
    return shlex.join(["grimmgen", *sys.argv[1:]])
