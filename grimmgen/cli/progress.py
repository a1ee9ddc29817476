"""How `grimmgen train` renders the events of training, and its result."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from grimmgen.cli import console, options
from grimmgen.configuration import UNLIMITED_EPOCHS
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.card import Course
from grimmgen.network.cells import cells
from grimmgen.runs.events import (
    Evaluated,
    Event,
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
from grimmgen.runs.tensorboard import TensorBoardLog
from grimmgen.text.graphemes import cluster_boundary

# A larger share of unknown tokens is reported; in the tales it is 0.001.
_MANY_UNKNOWN = 0.05

# Characters of a sample at an evaluation, and how many documents it has if they are lines.
_LONGEST_SAMPLE, _SAMPLED_LINES = 150, 5
# Characters of the prompt in the hint after training.
_LONGEST_PROMPT = 20

_REASONS = {
    "epochs": "all epochs done",
    "budget": "time budget used up",
    "patience": "validation has stopped improving",
    "converged": "learning rate decayed to its minimum",
    "interrupted": "interrupted",
}
_UNEVALUATED = {
    **dict.fromkeys(_REASONS, "none yet"),
    "budget": "none: the time did not suffice, --resume does it",
}


class Followed(NamedTuple):
    """A training that has ended.

    Attributes:
        finished: its last event.
        updates: since it was started or resumed.
        failure: why its events could not be printed to the end; None if they were.
    """

    finished: Finished
    updates: int
    failure: OSError | None


def follow(
    events: Iterator[Event],
    bars: console.Bars,
    json: bool,
    stop: Callable[[], None],
    log: TensorBoardLog | None = None,
    read: Mapping[str, Any] | None = None,
    sample: Callable[[int], str] | None = None,
) -> Followed:
    """Show events as bars and lines, or as JSON lines.

    Args:
        events: of a training.
        bars: where to show them.
        json: whether to print JSON lines instead.
        stop: stops the training, if nothing can be printed any more; its events continue to the end, silently.
        log: writes the events, too.
        read: what was read of the corpus, as the first JSON line.
        sample: returns the text to show after the evaluation of an epoch; empty for none.
    """
    view, first, failure = _View(bars, sample), 0, None
    if json and read is not None:
        try:
            console.json_line({"event": "read", **read})
        except OSError as error:
            failure = error
            stop()
    for event in events:
        if log is not None:
            log.write(event)
        if failure is None:
            try:
                if json:
                    console.json_line(event_to_json(event))
                view.show(event)
            except OSError as error:
                failure = error
                stop()
        if isinstance(event, Started):
            first = event.step
        elif isinstance(event, Finished):
            return Followed(event, event.step - first, failure)
    raise AssertionError("training ends with Finished")


class _View:
    """The bars of a training run, and the lines above them."""

    def __init__(self, bars: console.Bars, sample: Callable[[int], str] | None) -> None:
        self._bars = bars
        self._sample = sample
        self._best = ""
        self._epoch_bar = self._update_bar = 0

    def show(self, event: Event) -> None:
        """Show an event."""
        bars = self._bars
        match event:
            case Recovered():
                console.warn(f"{event.error}: resuming from the checkpoint before, of update {event.step}")
            case Started():
                self._start(event)
            case PlatformChanged():
                changes = (f"{name} {value} → {event.after[name]}" for name, value in event.before.items())
                console.warn(
                    f"from update {event.step} on not bit-equal to a run that never stopped: {', '.join(changes)}"
                )
            case Stepped():
                self._step(event)
            case Evaluated():
                self._evaluate(event)
            case RateDecayed():
                bars.line(
                    f"learning rate {event.old_rate:g} → {event.new_rate:g}: validation perplexity"
                    f" {console.figure(event.perplexity, 2)}, not below {console.figure(event.minimum, 2)}"
                    f" for {event.evaluations} evaluations",
                    "yellow",
                )
            case Saved():
                bars.line(f"saved at update {event.step}{' with new best weights' if event.best else ''}", "dim")
            case Finished():
                pass

    def _start(self, event: Started) -> None:
        """Describe the run, and add a bar of epochs (of seconds if only time is limited) and a bar of updates."""
        self._started = event
        configuration, bars = event.configuration, self._bars
        train, valid, test = event.stories
        unit = "stories" if event.by_story else "parts of stories"
        state = f"resumed at update {event.step}" if event.step else "started"
        bars.line(
            f"run {event.run} {state}: {event.corpus}, {train}/{valid}/{test} {unit} for train/valid/test", "bold"
        )
        updates = f"{_updates(event.updates)} per epoch"
        bars.line(f"text: {event.ngrams:,} tokens, vocabulary {event.vocabulary_size}, {updates}")
        if event.reason:
            bars.line(f"auto: {event.reason}")
        if event.base is not None:
            bars.line(f"from {event.base}, which has {event.shared} of the {event.vocabulary_size} tokens")
        if event.teachers:
            bars.line(
                f"distilled from {', '.join(event.teachers)}: half of the targets are samples of theirs, dropout"
                f" {configuration.dropout:g}"
            )
        if event.unknown > _MANY_UNKNOWN:
            bars.line(
                f"{event.unknown:.0%} of the tokens are <unk>: lower --min-count for so short a text", "yellow"
            )
        bars.line(
            f"{cells()[configuration.cell].title}: {configuration.layers} × {configuration.hidden} units,"
            f" {event.parameters:,} parameters, on {event.device} ({event.kernel})"
        )
        if event.milliseconds:
            times = ", ".join(f"{name} {value:.1f} ms" for name, value in event.milliseconds.items())
            bars.line(f"measured, a short update: {times}; the fastest trains this run")
        if departures := options.as_typed(configuration):
            bars.line(f"options: {departures}", "dim")
        if event.step and configuration.budget is not None:
            spent, budget = console.seconds(event.seconds), console.seconds(configuration.budget)
            bars.line(f"budget: {spent} of {budget} are spent; it counts from the start of the run", "dim")

        done = event.step // event.updates
        self._timed = configuration.epochs == UNLIMITED_EPOCHS
        if self._timed:
            self._epoch_bar = bars.add("second", int(configuration.budget or 0))
        else:
            self._epoch_bar = bars.add("epoch ", configuration.epochs, done)
        self._update_bar = bars.add("update", event.updates, event.step - done * event.updates)

    def _step(self, event: Stepped) -> None:
        """Move the bars."""
        if not self._bars.live:
            return
        configuration = self._started.configuration
        progress = event.step / (configuration.epochs * self._started.updates)
        if configuration.budget is not None:
            progress = max(progress, event.seconds / configuration.budget)
        left = f"{console.seconds(event.seconds / max(progress, 1e-9) - event.seconds)} left"
        perplexity = f"ppl {console.figure(event.perplexity, 2)}"
        done = int(event.seconds) if self._timed else event.epoch - 1
        self._bars.update(self._epoch_bar, done, f"{perplexity}{self._best}", perplexity)
        speed = f"{event.speed / 1000:.0f}k tokens/s"
        self._bars.update(self._update_bar, event.update, f"rate {event.rate:.2g}  {speed}  {left}", left)

    def _evaluate(self, event: Evaluated) -> None:
        """Print an evaluation, and a sample of the model."""
        bars = self._bars
        if event.best:
            self._best = f"  best {console.figure(event.perplexity, 2)} ★"
        # At most 39 characters on a narrow terminal.
        train, valid = ("train", "valid") if bars.narrow else ("training", "validation")
        width = 6 if bars.narrow else 9
        training, validation = (console.figure(p, 2, width) for p in (event.training_perplexity, event.perplexity))
        line = (
            f"epoch {event.epoch:3d}  {train} {training:>6}  {valid} {validation:>6}{' ★' if event.best else ''}"
        )
        if not bars.narrow:
            bits = console.figure(event.bits_per_character, 3)
            line += f"{'' if event.best else '  '}  {bits} bits/char  {console.seconds(event.seconds)}"
        bars.line(line)
        if self._sample and (text := self._sample(event.epoch)):
            bars.line(f"  {text}", "dim")


def sample(model: TrainedModel, random_seed: int) -> str:
    """Generate a sentence, or a few documents if they are lines, in one line; empty if the model has diverged."""
    from grimmgen.sampling.generator import TextGenerator

    lines = model.checkpoint.configuration.documents == "line"
    until = None if lines else "sentence"
    generator = TextGenerator(model)
    options = generator.options(length=_LONGEST_SAMPLE, until=until, random_seed=random_seed)
    try:
        generated = generator.generate_batch("", options, _SAMPLED_LINES if lines else 1)
    except GrimmgenError:
        return ""
    texts = (" ".join(g.text.split()) + " …" * (g.ending == "length") for g in generated)
    return ", ".join(filter(None, texts))


def report(run: Run, finished: Finished, quiet: bool) -> None:
    """Print how training ended; unless it was interrupted, with a sample of generated text."""
    best = finished.best_perplexity
    interrupted = finished.reason == "interrupted"
    if best is not None:
        validation = f"perplexity {console.figure(best, 2)}, at epoch {finished.best_epoch}"
        if finished.best_epoch < finished.epoch and not interrupted:
            validation += ", whose weights are kept"
    elif any(event.get("event") == "evaluated" for event in run.log()):
        validation = "diverged: perplexity too large to measure"
    else:
        validation = _UNEVALUATED[finished.reason]
    patience = f" (--patience {run.configuration.patience})" if finished.reason == "patience" else ""
    facts: list[tuple[str, object]] = [
        ("ended", _REASONS[finished.reason] + patience),
        ("epochs", f"{finished.epoch} ({_updates(finished.step)} in {console.seconds(finished.seconds)})"),
        ("validation", validation),
        ("run", run.name),
        ("path", run.path),
    ]
    if not (interrupted or quiet) and (course := Course.of_log(run.log())) is not None:
        facts.insert(3, ("outlook", course))
    if not (interrupted and quiet):
        console.facts(facts, to_error=interrupted)
    if interrupted or quiet:
        return
    from grimmgen.sampling.generator import TextGenerator

    model = run.load()
    console.out()
    if model.checkpoint.configuration.documents == "line":
        console.sentence(f"Sample: {sample(model, random_seed=1)}")
        console.out()
        console.hint("grimmgen generate --stories 20 --unique", "next")
        return
    words = TextGenerator(model).generate(length=240, random_seed=1).split()
    console.sentence(f"Sample: {' '.join(words)} …")
    console.out()
    # A prompt of the text's own words; where words are not separated by spaces, of its first characters.
    prompt = " ".join(words[:2])
    prompt = prompt[: cluster_boundary(prompt, _LONGEST_PROMPT)].rstrip(",;.:!?")
    # Double quotes are those of every shell.
    plain = re.fullmatch(r"[\w ',;.:?-]*", prompt)
    quoted = f'"{prompt}"' if plain else shlex.quote(prompt)
    console.hint(f"grimmgen generate --seed {quoted}" if prompt else "grimmgen generate", "next")


def _updates(number: int) -> str:
    return "1 update" if number == 1 else f"{number} updates"
