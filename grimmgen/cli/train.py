"""`grimmgen train`: train a model."""

from __future__ import annotations

import contextlib
import glob
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from grimmgen.cli import options
from grimmgen.configuration import PRESETS, Configuration, check_effective, configure, default_preset, text_options
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    from grimmgen.cli.console import Bars
    from grimmgen.training.distributed import ProcessGroup
    from grimmgen.training.session import Training

# The parameters that may be given with --resume; the others are the run's own.
_WITH_RESUME = {"sources", "run", "resume", "corpus", "epochs", "budget", "patience", "device"}
_WITH_RESUME |= {"log_to", "sample_every", "json", "quiet"}
# Tokens of a run for each byte of a text that make it a model that has read more.
_MORE = 2
_SHOW_CURSOR = b"\x1b[?25h"
_SIGPIPE = 13  # on Windows, too, where there is no such signal
_STOPPING = "finishing the update and saving; once more to stop at once"


@options.accept(Configuration)
def train(
    context: typer.Context,
    chosen: Mapping[str, Any],
    sources: options.CorpusFiles = None,
    corpus: options.CorpusSources = options.DEFAULT_CORPUS,
    split: Annotated[Path | None, options.SplitFile] = None,
    run: Annotated[
        str | None,
        options.option(
            help="Name of the run; not grimm, which is the bundled model.",
            show_default="a random name",
            autocompletion=options.complete_runs,
        ),
    ] = None,
    resume: Annotated[
        bool, options.option("--resume", help="Continue --run, or the latest run, exactly where it stopped.")
    ] = False,
    base: Annotated[
        str | None,
        options.option(
            "--from",
            metavar="RUN|FILE",
            help="Start from the weights of another run or checkpoint, or of grimm, the bundled model, which sets"
            " architecture and tokens; --corpus is the new text.",
            show_default="random weights",
            autocompletion=options.complete_models,
        ),
    ] = None,
    distil: Annotated[
        list[str] | None,
        options.option(
            metavar="RUN|FILE",
            help="Train towards the predictions of another run of the same text, too; several times for an ensemble of"
            " them.",
            show_default="none",
            autocompletion=options.complete_models,
        ),
    ] = None,
    preset: Annotated[
        Literal[tuple(PRESETS)] | None,  # type: ignore[valid-type]
        options.option(
            metavar="PRESET",
            help=f"Defaults of all other options: {', '.join(PRESETS)}. auto chooses them for the text, the budget and"
            " the speed of the machine.",
            show_default="auto; tutorial for grimm and sampler",
        ),
    ] = None,
    device: options.Device = "auto",
    log_to: Annotated[
        str | None,
        options.option(
            metavar="tensorboard[:DIR]",
            help="Log perplexity, rate and speed for TensorBoard, in the run's directory or in a directory of the"
            " run's name in DIR.",
        ),
    ] = None,
    sample_every: Annotated[
        int | None,
        options.option(
            metavar="N",
            help="Generate a sample after every N-th epoch; 0 never does.",
            show_default="on a terminal after epochs 1, 2, 4, 8 and so on, else 0",
        ),
    ] = None,
    json: Annotated[bool, options.option("--json", help="Print events as JSON lines on standard output.")] = False,
    quiet: options.Quiet = False,
) -> None:
    """Train a model; the defaults are the tutorial's, or those of a preset.

    Ctrl-C finishes the update, saves, and prints how to resume; a second Ctrl-C stops at once. With several GPUs:
    torchrun --nproc-per-node 8 -m -- grimmgen train

    Example: grimmgen train --preset strong --budget 10m
    """
    began = time.monotonic()
    typed = options.typed(context)
    corpus, typed = options.merge_files(sources, corpus, typed)
    if resume:
        kept = "a run keeps all options but --epochs, --budget, --patience, --device and the place of its --corpus"
        options.refuse_beside(context, "--resume", _WITH_RESUME, f"leave it out: {kept}")
    model = None
    teachers, wanted = [], chosen
    if base is not None or distil:
        from grimmgen.runs.registry import load_model
    if base is not None:
        model = load_model(base)
    if distil:
        teachers = [load_model(teacher) for teacher in distil]
        wanted = text_options(teachers[0].checkpoint.configuration) | dict(chosen)
    preset = preset or default_preset(corpus)
    architecture = None if model is None else model.checkpoint.configuration
    configuration = None if resume else configure(preset, wanted, architecture)
    if configuration is not None:
        check_effective(configuration, typed)

    if sample_every is not None and sample_every < 0:
        raise UsageError(f"--sample-every {sample_every} is out of range", "give 0 or more")
    if "sample_every" in typed and (json or quiet):
        raise UsageError(f"--sample-every has no effect with {'--json' if json else '--quiet'}", "leave it out")
    from grimmgen.cli import console, progress
    from grimmgen.evaluation.corpus_checks import find_leaks
    from grimmgen.runs import registry, tensorboard
    from grimmgen.text.corpus import open_corpus, size_of
    from grimmgen.text.encoding import IN_MEMORY
    from grimmgen.text.split import split_by_file, split_by_hash

    logs = tensorboard.prepare(log_to)
    if configuration is not None and any(map(_is_missing, corpus)):
        # An error before PyTorch is loaded.
        open_corpus(corpus, configuration)
    with contextlib.nullcontext() if json or quiet else console.status("loading PyTorch"):
        from grimmgen.training import auto, distillation, distributed
        from grimmgen.training.session import Training, command_line

    signals, read = list[int](), None
    with distributed.process_group() as group:
        json, quiet = json and group.first, quiet or not group.first
        notify = None if quiet or json else console.note
        if model is not None:
            options.report_default(base or "", model, quiet)
        if configuration is None:
            found = registry.Run(Path(group.broadcast(lambda: str(registry.find(run).path))))
            if run in {None, "latest"} and group.first:
                options.report_skipped(found, quiet)
            limits = chosen.get("epochs"), chosen.get("budget")
            moved_to = corpus if "corpus" in typed else ()
            patience = chosen.get("patience")
            training = Training.resume(found, device, *limits, group, notify, patience=patience, moved_to=moved_to)
        else:
            opening = time.monotonic()
            text = open_corpus(corpus, configuration, notify=notify)
            parts = None if split is None else split_by_file(text, split)
            if notify and (size := text.report.size) > IN_MEMORY:
                notify(f"encoding {size / 1e9:.1f} GB of text, once for all runs on it")
            if text.report.size > IN_MEMORY:
                began += time.monotonic() - opening
            reason, larger = "", None
            if preset == "auto":
                parts = parts or split_by_hash(text)
                train_set = parts.parts["train"]
                configuration, reason = auto.adapt(wanted, train_set, device, group, model)
                if notify and model is None:
                    larger = _run_on_more_text(size_of(train_set))
            if teachers:
                configuration = distillation.with_teachers(configuration, chosen)
            training = Training.begin(
                text,
                configuration,
                parts,
                run,
                device,
                command_line(),
                group,
                notify,
                base=model,
                teachers=teachers,
                reason=reason,
            )
            options.show_report(text.report, notify)
            leaks = find_leaks(training.split) if group.first and (json or notify) else []
            read = {**text.report.to_json(), "leaks": [leak.to_json() for leak in leaks]}
            if leaks and notify:
                more = f" (and {len(leaks) - 1} more: see vocab --check)" if len(leaks) > 1 else ""
                console.warn(f"{leaks[0].what}{more}: {leaks[0].remedy}")

        training.counted_from = began
        bars = console.Bars(quiet or json)
        log = None
        if log_to is not None and group.first:
            directory = tensorboard.directory_of(training.run, logs)
            log = tensorboard.TensorBoardLog(directory)
            if notify:
                console.hint(f"tensorboard --logdir {shlex.quote(str(logs or directory))}", "watch with")

        def sample(epoch: int) -> str:
            wanted = epoch & (epoch - 1) == 0 if sample_every is None else epoch % sample_every == 0
            return progress.sample(training.model(), epoch) if wanted else ""

        sampling = notify and sample_every != 0 and (bars.live or sample_every is not None)
        with _stop_on_signal(training, signals, group, bars), bars, log or contextlib.nullcontext():
            finished, updates, failure = progress.follow(
                training.events(), bars, json, training.stop, log, read, sample if sampling else None
            )
        code = 0
        if signals:
            code = 128 + signals[0]
        elif failure is not None:
            code = 128 + _SIGPIPE if isinstance(failure, BrokenPipeError) else 1
        code = group.max(code)
        if group.first:
            interrupted = finished.reason == "interrupted"
            logging = f" --log-to {shlex.quote(log_to)}" if log_to else ""
            again = f"{group.command} train --resume --run {training.run.name}{logging}"
            if failure is not None:
                console.discard_output()
                remedy = f"resume with `{again}`" if interrupted else "the run is complete"
                reason = failure.strerror or failure.__class__.__name__
                console.error(f"cannot write the output ({reason}); saved at update {finished.step}: {remedy}")
            else:
                if not json:
                    progress.report(training.run, finished, quiet)
                if not (json or quiet or updates):
                    limit = "--patience" if finished.reason == "patience" else "--epochs or --budget"
                    console.note(f"nothing left to train: raise {limit} above what the run has had")
                if interrupted:
                    console.hint(again, "resume with")
                elif configuration is not None and larger is not None:
                    console.hint(f"train --from {larger}", "a model that has read more may be a better start")
    if code:
        raise typer.Exit(code)


def _is_missing(corpus: str) -> bool:
    """Whether this names a file or a directory that does not exist."""
    named = corpus in {"grimm", "sampler", "-"} or glob.has_magic(corpus)
    return not (named or Path(corpus).exists() or Path(corpus).expanduser().exists())


def _run_on_more_text(size: int) -> str | None:
    """The latest evaluated run that has read several times as much text as a small one has; None if there is none.

    Args:
        size: of the text in bytes.
    """
    from grimmgen.evaluation.card import SMALL_TEXT
    from grimmgen.runs import registry

    if size >= SMALL_TEXT:
        return None
    for run in reversed(registry.all_runs()):
        started = next((event for event in run.log() if event.get("event") == "started"), {})
        tokens = started.get("ngrams")
        if run.best_path.is_file() and isinstance(tokens, int) and tokens > _MORE * size:
            return run.name
    return None


@contextlib.contextmanager
def _stop_on_signal(training: Training, received: list[int], group: ProcessGroup, bars: Bars) -> Iterator[None]:
    """On the first signal stop after the current update, on the second at once, as before the first update.

    In a group of processes a signal to any of them stops all, and further ones have no effect: torchrun forwards
    signals that the processes may have received already, sends its own when one process fails, and kills processes
    that do not end within 30 seconds.
    """

    def write(text: bytes) -> None:
        # The terminal may be gone, and the console may be in an inconsistent state here.
        with contextlib.suppress(OSError):
            os.write(sys.stderr.fileno(), text)

    def stop(number: int, _: FrameType | None) -> None:
        if received and group.size == 1:
            if bars.live:
                write(_SHOW_CURSOR)
            os._exit(128 + number)
        if not training.running and group.size == 1:
            # Nothing to save yet.
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        received.append(number)
        training.stop()
        if group.size > 1:
            return
        if bars.live:
            bars.notice = _STOPPING  # the live display would overwrite a direct write
        else:
            write(f"\n{_STOPPING}\n".encode())

    # Windows has no SIGHUP. An ignored signal stays ignored, as under nohup and in a shell's background.
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    handled = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
