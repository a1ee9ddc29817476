"""`grimmgen train`: train a model, and show how it learns."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grimmgen.cli import options
from grimmgen.configuration import (
    PRESETS,
    Cell,
    Configuration,
    DropoutMode,
    Initialisation,
    Newlines,
    Precision,
    Schedule,
)
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    from grimmgen.cli.console import Bars
    from grimmgen.runs.events import Event, Finished, Started
    from grimmgen.training.distributed import Ranks
    from grimmgen.training.session import Training

# Options that a resumed run has already; given together with --resume they would do nothing.
_LIMITS = {"run", "resume", "epochs", "budget", "device", "json", "quiet"}
# Options of this command that are no options of a run's configuration.
_OTHERS = {"context", "preset", "corpus", "split", *_LIMITS} - {"epochs", "budget"}
# What has no say unless another option has a certain value.
_NEEDS = {
    "rounds": ("cell", "mogrifier"),
    "warmup": ("schedule", "cosine"),
    "decay_factor": ("schedule", "plateau"),
    "decay_patience": ("schedule", "plateau"),
}

_NETWORK, _LEARNING, _TEXT = "Network", "Learning", "Text"
# What the bars have hidden.
_SHOW_CURSOR = b"\x1b[?25h"
_FINISHING = "finishing the step and saving; once more to leave at once"


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
    preset: Annotated[
        Literal["tutorial", "quick", "strong", "large"],
        options.option(help="What all other options begin with; README tells what each is for."),
    ] = "tutorial",
    epochs: Annotated[int, options.option(help="Passes over the stories, at most.")] = Configuration.epochs,
    budget: Annotated[
        str | None, options.option(help="Time, at most, as in 30s, 10m, 1h.", show_default="no limit")
    ] = None,
    random_seed: Annotated[
        int, options.option(help="Everything random follows from it.")
    ] = Configuration.random_seed,
    device: Annotated[str, options.option(help="auto (a GPU where there is one), cpu or cuda.")] = "auto",
    json: Annotated[bool, options.option("--json", help="The events as JSON lines on standard output.")] = False,
    quiet: options.Quiet = False,
    cell: Annotated[
        Cell, options.option(metavar="CELL", rich_help_panel=_NETWORK, help="lstm, peephole, gru or mogrifier.")
    ] = Configuration.cell,
    rounds: Annotated[
        int, options.option(rich_help_panel=_NETWORK, help="Rounds of a mogrifier's modulation.")
    ] = Configuration.rounds,
    hidden: Annotated[int, options.option(rich_help_panel=_NETWORK, help="Units a layer.")] = Configuration.hidden,
    layers: Annotated[
        int, options.option(rich_help_panel=_NETWORK, help="Layers of cells.")
    ] = Configuration.layers,
    embedding: Annotated[
        int, options.option(rich_help_panel=_NETWORK, help="Numbers an n-gram is looked up as; 0 is one-hot.")
    ] = Configuration.embedding,
    tied: Annotated[
        bool,
        options.option("--tied/--untied", rich_help_panel=_NETWORK, help="Use the embedding in the output, too."),
    ] = Configuration.tied,
    init: Annotated[
        Initialisation,
        options.option(
            metavar="INIT",
            rich_help_panel=_NETWORK,
            help="Weights: normal (σ 0.02), xavier; auto is xavier from two layers on.",
        ),
    ] = Configuration.initialisation,
    reset_state: Annotated[
        bool, options.option(rich_help_panel=_NETWORK, help="Put the state to zero where a story starts.")
    ] = Configuration.reset_state,
    batch_size: Annotated[
        int, options.option(rich_help_panel=_LEARNING, help="Rows read side by side.")
    ] = Configuration.batch_size,
    unroll: Annotated[
        int,
        options.option(rich_help_panel=_LEARNING, help="Steps of truncated back-propagation through time."),
    ] = Configuration.unroll,
    lr: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Learning rate of Adam, at its highest.")
    ] = Configuration.learning_rate,
    clip: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Largest global norm of the gradient.")
    ] = Configuration.clip,
    dropout: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Probability of dropping an output.")
    ] = Configuration.dropout,
    dropout_mode: Annotated[
        DropoutMode,
        options.option(
            metavar="MODE",
            rich_help_panel=_LEARNING,
            help="tutorial: for the next step too; output: not; locked: not, one mask a window.",
        ),
    ] = Configuration.dropout_mode,
    input_dropout: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Of the embedding's numbers, one mask a window.")
    ] = Configuration.input_dropout,
    weight_drop: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Of recurrent weights, one mask a window.")
    ] = Configuration.weight_drop,
    weight_decay: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Pull of the weights to zero, times the rate.")
    ] = Configuration.weight_decay,
    schedule: Annotated[
        Schedule,
        options.option(
            metavar="SCHEDULE",
            rich_help_panel=_LEARNING,
            help="plateau: lower the rate when nothing improves; cosine: to the end of epochs or budget.",
        ),
    ] = Configuration.schedule,
    warmup: Annotated[
        float, options.option(rich_help_panel=_LEARNING, help="Share of the training in which cosine rises.")
    ] = Configuration.warmup,
    precision: Annotated[
        Precision,
        options.option(
            metavar="PRECISION",
            rich_help_panel=_LEARNING,
            help="Of training's matrix products: fp32 or bf16; auto is bf16 where the compiled kernel has it.",
        ),
    ] = Configuration.precision,
    decay_factor: Annotated[
        float,
        options.option(rich_help_panel=_LEARNING, help="What plateau multiplies the rate with."),
    ] = Configuration.decay_factor,
    decay_patience: Annotated[
        int, options.option(rich_help_panel=_LEARNING, help="Evaluations without a new minimum until then.")
    ] = Configuration.decay_patience,
    ngram: Annotated[
        int, options.option(rich_help_panel=_TEXT, help="Characters of a token.")
    ] = Configuration.ngram,
    min_count: Annotated[
        int, options.option(rich_help_panel=_TEXT, help="Occurrences that a token needs; others are <unk>.")
    ] = Configuration.min_count,
    keep_case: Annotated[
        bool, options.option("--keep-case", rich_help_panel=_TEXT, help="Do not fold to lower case.")
    ] = False,
    newlines: Annotated[
        Newlines,
        options.option(metavar="HOW", rich_help_panel=_TEXT, help="keep line ends, or read them as a space."),
    ] = Configuration.newlines,
    phases: Annotated[
        bool, options.option(rich_help_panel=_TEXT, help="Cut stories in all ways, a new one each epoch.")
    ] = Configuration.phases,
    split: Annotated[
        Path | None,
        options.option(
            rich_help_panel=_TEXT,
            help="A JSON file that names the stories of each part.",
            show_default="80/10/10 by name",
        ),
    ] = None,
) -> None:
    """Train a model; the defaults are the tutorial's, or those of a preset.

    Ctrl-C finishes the step, saves, and prints how to go on; a second one leaves at once. With several GPUs:
    torchrun --nproc-per-node 8 -m -- grimmgen train

    Example: grimmgen train --preset strong --budget 10m
    """
    seconds = None if budget is None else options.duration(budget)
    sources = {name: source.name for name in context.params if (source := context.get_parameter_source(name))}
    typed = sorted(options.typed(context) - _LIMITS)
    if resume and typed:
        names = ", ".join("--" + name.replace("_", "-") for name in typed)
        raise UsageError(
            f"{names} cannot be given with --resume",
            "leave that out: a run keeps all its options but --epochs, --budget and --device",
        )
    given = {name for name, source in sources.items() if source != "DEFAULT"}
    configuration = None if resume else _configuration(preset, context.params, given, seconds)
    if configuration is not None:
        _check_heeded(configuration, typed)

    from grimmgen.cli import console
    from grimmgen.runs import registry
    from grimmgen.text.corpus import open_corpus
    from grimmgen.text.encoding import IN_MEMORY
    from grimmgen.text.split import split_by_file
    from grimmgen.training import distributed
    from grimmgen.training.session import Training, command_line

    signals: list[int] = []
    with distributed.joined() as joined:
        json, quiet = json and joined.first, quiet or not joined.first
        waiting = None if quiet or json else console.note
        if configuration is None:
            limit = epochs if "epochs" in given else None
            found = registry.Run(Path(joined.told(lambda: str(registry.find(run).path))))
            training = Training.resume(found, device, limit, seconds, joined, waiting)
        else:
            opened = open_corpus(corpus)
            parts = None if split is None else split_by_file(opened, split)
            if (size := sum(story.size for story in opened.documents)) > IN_MEMORY and not (quiet or json):
                console.note(f"encoding {size / 1e9:.1f} GB of text, for this run and the next ones on it")
            named = run, device, command_line()
            training = Training.begin(opened, configuration, parts, *named, joined, waiting)

        bars = console.Bars(quiet or json)
        with _stopping(training, signals, joined, bars), bars:
            finished, done = _follow(training.events(), bars, json)
        if joined.first and not json:
            _report(training, finished, quiet)
        if joined.first and not (quiet or json or done):
            console.note(
                "there was nothing left to do: to go on, give an --epochs or a --budget above what the run has had"
            )
        if joined.first and finished.reason == "interrupted":
            console.hint(f"{joined.command} train --resume --run {training.run.name}", "go on with")
        received = joined.most(signals[0] if signals else 0)
    if received:
        raise typer.Exit(128 + received)


def _configuration(preset: str, values: Mapping[str, Any], given: set[str], budget: float | None) -> Configuration:
    """The preset's options, and over them those that were given."""
    chosen: dict[str, Any] = dict(PRESETS[preset])
    for name in given - _OTHERS:
        match name:
            case "keep_case":
                chosen["lower"] = not values[name]
            case "budget":
                chosen["budget"] = budget
                # A rate that anneals to the end of the budget is not to meet the end of the epochs before.
                if chosen.get("schedule") == "cosine" and "epochs" not in given:
                    chosen["epochs"] = options.AS_MANY_AS_TIME_ALLOWS
            case _:
                chosen[options.RENAMED.get(name, name)] = values[name]
    return Configuration(**chosen)


def _check_heeded(configuration: Configuration, typed: Sequence[str]) -> None:
    """Refuse what was typed in vain.

    Raises:
        UsageError: an option has no say beside the others.
    """
    for name in typed:
        other, value = _NEEDS.get(name, ("cell", configuration.cell))
        if (found := getattr(configuration, other)) != value:
            raise UsageError(
                f"--{name.replace('_', '-')} has no say with --{other} {found}",
                f"leave it out, or give --{other} {value}",
            )


def _follow(events: Iterator[Event], bars: Bars, json: bool) -> tuple[Finished, bool]:
    """Draw what happens, or write it as JSON lines; returns how it ended, and whether there was anything to do."""
    from grimmgen.cli import console
    from grimmgen.runs.events import (
        Evaluated,
        Finished,
        RateDecayed,
        Recovered,
        Saved,
        Started,
        Stepped,
        event_to_json,
    )

    valid, epoch_bar, update_bar = "", 0, 0
    configuration: Configuration | None = None
    timed, begun = False, 0
    for event in events:
        if json:
            console.json_line(event_to_json(event))
        match event:
            case Recovered():
                console.warn(f"{event.error}: going on from the checkpoint before, of update {event.step}")
            case Started():
                configuration, updates, begun = event.configuration, event.updates, event.step
                _introduce(event, bars)
                done = event.step // updates
                timed = configuration.epochs == options.AS_MANY_AS_TIME_ALLOWS
                if timed:
                    epoch_bar = bars.add("second", int(configuration.budget or 0))
                else:
                    epoch_bar = bars.add("epoch ", configuration.epochs, done)
                update_bar = bars.add("update", updates, event.step - done * updates)
            case Stepped() if bars.live and configuration is not None:
                progress = event.step / (configuration.epochs * updates)
                if configuration.budget is not None:
                    progress = max(progress, event.seconds / configuration.budget)
                left = event.seconds / max(progress, 1e-9) - event.seconds
                perplexity = f"ppl {event.perplexity:.2f}"
                so_far = int(event.seconds) if timed else event.epoch - 1
                bars.update(epoch_bar, so_far, f"{perplexity}{valid}", perplexity)
                bars.update(
                    update_bar,
                    event.update,
                    f"rate {event.rate:.2g}  {event.speed / 1000:.0f}k n-grams/s  {console.seconds(left)} left",
                    f"{console.seconds(left)} left",
                )
            case Evaluated():
                mark = " ★" if event.best else ""
                if event.best:
                    valid = f"  best {event.perplexity:.2f} ★"
                # 39 columns where there are no more than 40.
                train, held_out = ("train", "valid") if bars.narrow else ("training", "validation")
                line = (
                    f"epoch {event.epoch:3d}  {train} {event.training_perplexity:6.2f}"
                    f"  {held_out} {event.perplexity:6.2f}{mark}"
                )
                if not bars.narrow:
                    line += f"  {event.bits_per_character:.3f} bits/char  {console.seconds(event.seconds)}"
                # On a terminal the bars tell the others.
                if event.best or not bars.live:
                    bars.line(line)
            case RateDecayed():
                bars.line(
                    f"rate {event.old_rate:g} → {event.new_rate:g}: validation perplexity {event.perplexity:.2f},"
                    f" no new minimum below {event.minimum:.2f} for {event.evaluations} evaluations",
                    "yellow",
                )
            case Saved():
                bars.line(f"saved at update {event.step}{' with new best weights' if event.best else ''}", "dim")
            case Finished():
                return event, event.step > begun
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
    updates = _updates(event.updates)
    bars.line(f"text: {event.ngrams:,} n-grams, vocabulary {event.vocabulary_size}, {updates} an epoch")
    if event.unknown > _MUCH:
        bars.line(
            f"<unk> hides {event.unknown:.0%} of the n-grams: for so short a text lower --min-count", "yellow"
        )
    bars.line(
        f"{_CELLS[configuration.cell]}: {configuration.layers} × {configuration.hidden} units,"
        f" {event.parameters:,} parameters, on {event.device} ({event.kernel})"
    )
    if departures := options.as_typed(configuration):
        bars.line(f"unlike the tutorial: {departures}", "dim")


def _updates(number: int) -> str:
    return "1 update" if number == 1 else f"{number} updates"


_CELLS = {"lstm": "LSTM", "peephole": "peephole LSTM", "gru": "GRU", "mogrifier": "mogrifier LSTM"}

# A larger share of n-grams than this is not to be hidden without a word: of the tales <unk> hides 1 in 1,000.
_MUCH = 0.05

_REASONS = {
    "epochs": "all epochs are done",
    "budget": "the time is up",
    "converged": "the rate has decayed away and nothing improves",
    "interrupted": "stopped by you",
}


def _report(training: Training, finished: Finished, quiet: bool) -> None:
    from grimmgen.cli import console
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.sampling.generator import TextGenerator
    from grimmgen.sampling.options import SamplingOptions

    run = training.run
    best = finished.best_perplexity
    pairs: list[tuple[str, object]] = [
        ("ended", _REASONS[finished.reason]),
        ("epochs", f"{finished.epoch} ({_updates(finished.step)} in {console.seconds(finished.seconds)})"),
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
        generator = TextGenerator(TrainedModel(run.name, run.checkpoint(), run))
        sample = " ".join("".join(generator.stream("", SamplingOptions(length=240, random_seed=1))).split())
        console.out()
        console.out(f"It tells: {sample} …")
        console.out()
        console.hint('grimmgen generate --seed "the king"', "next")


@contextmanager
def _stopping(training: Training, received: list[int], joined: Ranks, bars: Bars) -> Iterator[None]:
    """Let the first signal end training after its step, and the second at once.

    One that reaches any of several ranks stops all of them, and the second is as good as the first: torchrun
    hands on what may have come already, tells the others of an error in the same way, and ends who takes longer
    than 30 seconds.
    """

    def stop(number: int, _: FrameType | None) -> None:
        if joined.size > 1:
            received.append(number)
            training.stop()
            return
        # Not through the console, which the signal may have interrupted.
        if received:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(128 + number)
        received.append(number)
        training.stop()
        if bars.live:
            # What is written there now, the bars would draw over.
            bars.notice = _FINISHING
        else:
            os.write(sys.stderr.fileno(), f"\n{_FINISHING}\n".encode())

    # Windows has no SIGHUP.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    # What is ignored stays ignored: that is how nohup, and a shell's background, keep a run from being stopped.
    heeded = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
