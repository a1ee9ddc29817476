"""`grimmgen train`: train a model, and show how it learns."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from grimmgen.cli import options
from grimmgen.configuration import Configuration, Initialisation
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    from grimmgen.cli.console import Bars
    from grimmgen.events import Event, Finished, Started
    from grimmgen.training import Training

# Options that a resumed run has already; given together with --resume they would do nothing.
_LIMITS = {"run", "resume", "epochs", "budget", "device", "json", "quiet"}
# What the bars have hidden.
_SHOW_CURSOR = b"\x1b[?25h"


def train(
    context: typer.Context,
    corpus: options.CorpusSource = "grimm",
    run: Annotated[
        str | None,
        options.option(
            "--run",
            help="A name for the run.",
            show_default="one is made up",
            autocompletion=options.complete_runs,
        ),
    ] = None,
    resume: Annotated[
        bool, options.option("--resume", help="Go on with --run, or the latest run, exactly where it stopped.")
    ] = False,
    hidden: Annotated[int, options.option(help="Units a layer.")] = Configuration.hidden,
    layers: Annotated[int, options.option(help="Layers of cells.")] = Configuration.layers,
    dropout: Annotated[
        float, options.option(help="Probability of dropping an output, for the next step too.")
    ] = Configuration.dropout,
    init: Annotated[
        Initialisation,
        options.option(help="Weights: normal (σ 0.02), xavier; auto is xavier from two layers on."),
    ] = Configuration.initialisation,
    batch_size: Annotated[int, options.option(help="Rows read side by side.")] = Configuration.batch_size,
    unroll: Annotated[
        int, options.option(help="Steps of truncated back-propagation through time.")
    ] = Configuration.unroll,
    lr: Annotated[float, options.option(help="Learning rate of Adam.")] = Configuration.learning_rate,
    clip: Annotated[float, options.option(help="Largest global norm of the gradient.")] = Configuration.clip,
    decay_factor: Annotated[
        float, options.option(help="What the rate is multiplied with when nothing improves.")
    ] = Configuration.decay_factor,
    decay_patience: Annotated[
        int, options.option(help="Evaluations without a new minimum until then.")
    ] = Configuration.decay_patience,
    epochs: Annotated[int, options.option(help="Passes over the stories, at most.")] = Configuration.epochs,
    budget: Annotated[
        str | None, options.option(help="Time, at most, as in 30s, 10m, 1h.", show_default="no limit")
    ] = None,
    reset_state: Annotated[
        bool, options.option(help="Put the state to zero where a story starts.")
    ] = Configuration.reset_state,
    ngram: Annotated[int, options.option(help="Characters of a token.")] = Configuration.ngram,
    min_count: Annotated[
        int, options.option(help="Occurrences that a token needs; others are <unk>.")
    ] = Configuration.min_count,
    keep_case: Annotated[bool, options.option("--keep-case", help="Do not fold to lower case.")] = False,
    split: Annotated[
        Path | None,
        options.option(help="A JSON file that names the stories of each part.", show_default="80/10/10 by name"),
    ] = None,
    random_seed: Annotated[
        int, options.option(help="Everything random follows from it.")
    ] = Configuration.random_seed,
    device: Annotated[str, options.option(help="auto (a GPU where there is one), cpu or cuda.")] = "auto",
    json: Annotated[bool, options.option("--json", help="The events as JSON lines on standard output.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model; the defaults are the tutorial's.

    Ctrl-C finishes the step, saves, and prints how to go on; a second one leaves at once.

    Example: grimmgen train --unroll 50 --device cuda
    """
    seconds = None if budget is None else options.duration(budget)
    sources = {name: source.name for name in context.params if (source := context.get_parameter_source(name))}
    # What a variable sets is set for every run; only what was typed was meant for this one.
    idle = sorted(name for name, source in sources.items() if source == "COMMANDLINE" and name not in _LIMITS)
    if resume and idle:
        names = ", ".join("--" + name.replace("_", "-") for name in idle)
        raise UsageError(
            f"{names} cannot be given with --resume",
            "leave that out: a run keeps all its options but --epochs, --budget and --device",
        )
    configuration = (
        None
        if resume
        else Configuration(
            hidden=hidden,
            layers=layers,
            dropout=dropout,
            initialisation=init,
            batch_size=batch_size,
            unroll=unroll,
            learning_rate=lr,
            clip=clip,
            decay_factor=decay_factor,
            decay_patience=decay_patience,
            epochs=epochs,
            budget=seconds,
            reset_state=reset_state,
            random_seed=random_seed,
            ngram=ngram,
            min_count=min_count,
            lower=not keep_case,
        )
    )

    from grimmgen import registry
    from grimmgen.cli import console
    from grimmgen.corpus import open_corpus, split_by_file
    from grimmgen.training import Training, command_line

    if configuration is None:
        limit = None if sources["epochs"] == "DEFAULT" else epochs
        training = Training.resume(registry.find(run), device, limit, seconds)
    else:
        opened = open_corpus(corpus)
        parts = None if split is None else split_by_file(opened, split)
        training = Training.begin(opened, configuration, parts, run, device, command_line())

    signals: list[int] = []
    with _stopping(training, signals), console.Bars(quiet or json) as bars:
        finished = _follow(training.events(), bars, json)
    if not json:
        _report(training, finished, quiet)
    if finished.reason == "interrupted":
        console.hint(f"grimmgen train --resume --run {training.run.name}", "go on with")
    if signals:
        raise typer.Exit(128 + signals[0])


def _follow(events: Iterator[Event], bars: Bars, json: bool) -> Finished:
    """Draw what happens, or write it as JSON lines."""
    from grimmgen.cli import console
    from grimmgen.events import Evaluated, Finished, RateDecayed, Saved, Started, Stepped, event_to_json

    valid, rate, epoch_bar, update_bar = "", "", 0, 0
    configuration: Configuration | None = None
    begun = 0.0
    for event in events:
        if json:
            console.json_line(event_to_json(event))
        match event:
            case Started():
                configuration, updates = event.configuration, event.updates
                _introduce(event, bars)
                done = event.step // updates
                epoch_bar = bars.add("epoch ", configuration.epochs, done)
                update_bar = bars.add("update", updates, event.step - done * updates)
                rate = f"rate {configuration.learning_rate:g}"
            case Stepped() if bars.live and configuration is not None:
                begun = begun or event.seconds
                progress = event.step / (configuration.epochs * updates)
                if configuration.budget is not None:
                    progress = max(progress, event.seconds / configuration.budget)
                left = event.seconds / max(progress, 1e-9) - event.seconds
                perplexity = f"ppl {event.perplexity:.2f}"
                bars.update(epoch_bar, event.epoch - 1, f"{perplexity}{valid}", perplexity)
                bars.update(
                    update_bar,
                    event.update,
                    f"{rate}  {event.speed / 1000:.0f}k n-grams/s  {console.seconds(left)} left",
                    f"{console.seconds(left)} left",
                )
            case Evaluated():
                mark = " ★" if event.best else ""
                if event.best:
                    valid = f"  best {event.perplexity:.2f} ★"
                line = (
                    f"epoch {event.epoch:3d}  training {event.training_perplexity:6.2f}"
                    f"  validation {event.perplexity:6.2f}{mark}"
                )
                if not bars.narrow:
                    line += f"  {event.bits_per_character:.3f} bits/char  {console.seconds(event.seconds)}"
                # On a terminal the bars tell the others.
                if event.best or not bars.live:
                    bars.line(line)
            case RateDecayed():
                rate = f"rate {event.new_rate:g}"
                bars.line(
                    f"rate {event.old_rate:g} → {event.new_rate:g}: validation perplexity {event.perplexity:.2f},"
                    f" no new minimum below {event.minimum:.2f} for {event.evaluations} evaluations",
                    "yellow",
                )
            case Saved():
                bars.line(f"saved at update {event.step}{' with new best weights' if event.best else ''}", "dim")
            case Finished():
                return event
            case _:
                pass
    raise AssertionError("training ends with Finished")


def _introduce(event: Started, bars: Bars) -> None:
    train, valid, test = event.stories
    unit = "stories" if event.by_story else "parts of stories"
    begun = f"resumed at update {event.step}" if event.step else "begun"
    bars.line(
        f"run {event.run} {begun}: {event.corpus}, {train}/{valid}/{test} {unit} for train/valid/test", "bold"
    )
    configuration = event.configuration
    bars.line(
        f"text: {event.ngrams:,} n-grams, vocabulary {event.vocabulary_size}, {event.updates} updates an epoch"
    )
    bars.line(
        f"LSTM: {configuration.layers} × {configuration.hidden} units, {event.parameters:,} parameters,"
        f" on {event.device}"
    )


_REASONS = {
    "epochs": "all epochs are done",
    "budget": "the time is up",
    "converged": "the rate has decayed away and nothing improves",
    "interrupted": "stopped by you",
}


def _report(training: Training, finished: Finished, quiet: bool) -> None:
    from grimmgen.cli import console
    from grimmgen.generation import Decoding, Storyteller

    run = training.run
    best = finished.best_perplexity
    pairs: list[tuple[str, object]] = [
        ("ended", _REASONS[finished.reason]),
        ("epochs", f"{finished.epoch} ({finished.step} updates in {console.seconds(finished.seconds)})"),
        ("validation", "none yet" if best is None else f"perplexity {best:.2f}, at epoch {finished.best_epoch}"),
        ("run", run.name),
        ("place", run.path),
    ]
    if finished.reason == "interrupted":
        if not quiet:
            console.facts(pairs, to_error=True)
        return
    console.facts(pairs)
    if not quiet:
        teller = Storyteller(run.name, run.checkpoint())
        sample = " ".join("".join(teller.tell("", Decoding(length=240, random_seed=1))).split())
        console.out()
        console.out(f"It tells: {sample} …")
        console.out()
        console.hint('grimmgen generate --seed "the king"', "next")


@contextmanager
def _stopping(training: Training, received: list[int]) -> Iterator[None]:
    """Let the first signal end training after its step, and the second at once."""

    def stop(number: int, _: FrameType | None) -> None:
        # Not through the console, which the signal may have interrupted.
        if received:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(128 + number)
        received.append(number)
        training.stop()
        os.write(sys.stderr.fileno(), b"\nfinishing the step and saving; once more to leave at once\n")

    # Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
