"""The Python interface: `fit` and `load` return a `Model`; `train` is a generator of events.

Options have the names and forms of the command line (`lr=0.01`, `budget="30s"`), and are derived from the same
declarations. `load` and generating need no PyTorch.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import inspect
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from grimmgen.configuration import (
    Configuration,
    check_effective,
    configure,
    default_preset,
    from_arguments,
    options_of,
    text_options,
)
from grimmgen.display import Display
from grimmgen.errors import GrimmgenError, UsageError, did_you_mean
from grimmgen.io import files
from grimmgen.reading.sources import STANDARD_INPUT, store_texts
from grimmgen.runs import curves, registry, tensorboard
from grimmgen.runs.events import Finished
from grimmgen.runs.registry import LATEST, PRETRAINED_TITLE
from grimmgen.sampling.generator import TextGenerator, fresh_random_seed
from grimmgen.sampling.options import PAGE, SamplingOptions
from grimmgen.text.corpus import GRIMM, SAMPLER, open_corpus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from grimmgen.evaluation.scores import Evaluation
    from grimmgen.runs.curves import Over
    from grimmgen.runs.events import Event
    from grimmgen.text.corpus import Document
    from grimmgen.text.split import Part
    from grimmgen.training.session import Notify, Training

# A corpus: its name or path, several paths, or texts.
Source = str | os.PathLike[str] | Iterable[str] | Iterable[os.PathLike[str]]

# The options that a run that is resumed may change.
_LIMITS = ("epochs", "budget", "patience")
# An option as it is typed, outside of the commands in backquotes.
_FLAG = re.compile(r"`[^`]*`|(?<![\w/-])--([a-z][a-z-]*)")

_Function = TypeVar("_Function", bound=Callable[..., Any])


@contextlib.contextmanager
def _arguments_in_errors() -> Iterator[None]:
    """Name options in errors as arguments, `lr` instead of `--lr`; commands in backquotes stay as they are."""
    try:
        yield
    except GrimmgenError as error:
        error.what, error.remedy = _as_arguments(error.what), _as_arguments(error.remedy)
        raise


def _as_arguments(text: str) -> str:
    def name(found: re.Match[str]) -> str:
        flag = found[1]
        if flag is None:
            return found[0]
        return "base" if flag == "from" else flag.replace("-", "_")  # `from` is a keyword

    return _FLAG.sub(name, text)


def _takes(options: type) -> Callable[[_Function], _Function]:
    """Give a function with `**options` the signature and the help of the options that a dataclass declares.

    Errors name them as arguments are named.
    """

    def decorate(function: _Function) -> _Function:
        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            with _arguments_in_errors():
                return function(*arguments, **keywords)

        own = inspect.signature(function)
        *parameters, _ = own.parameters.values()
        lines = []
        for one in options_of(options).values():
            hint = one.type | None if one.optional else one.type
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(one.parameter, kind, default=None, annotation=hint))
            lines.append(f"    {one.parameter}: {_as_arguments(one.description)}.")
        call.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__doc__ = "\n".join([inspect.getdoc(function) or "", "\nOptions:", *lines])
        return call  # type: ignore[return-value]

    return decorate


class Model(TextGenerator):
    """A trained model: it generates, is evaluated and saved, and knows the history of its training.

    `fit` and `load` return it.

    Attributes:
        name: of its run or the bundled model, or the path of its checkpoint.
        vocabulary: its tokens.
        checkpoint: its weights, configuration and provenance.
    """

    @_takes(SamplingOptions)
    def generate(self, prompt: str = "", **options: Any) -> str:
        """Generate a text, as `grimmgen generate` does: about a page, another one each time.

        Args:
            prompt: any text.
            options: see below.

        Returns:
            The prompt, normalised as the corpus was, and its continuation.

        Raises:
            UsageError: an option is unknown or out of range.
        """
        defaults: dict[str, Any] = {"random_seed": fresh_random_seed()}
        if not {"length", "until"} & options.keys():
            defaults["until"] = PAGE
        return "".join(self.stream(prompt, self.options(**defaults | from_arguments(SamplingOptions, options))))

    def evaluate(self, texts: Source | None = None, *, split: Part = "valid", device: str = "auto") -> Evaluation:
        """Measure perplexity per token and bits per character, as `grimmgen eval` does.

        Args:
            texts: as for `fit`; None are documents of the model's own run.
            split: which of them: `train`, `valid` or `test`.
            device: `auto`, `cpu` or `cuda`.

        Returns:
            The score of each document, and of all together.

        Raises:
            GrimmgenError: there is no text, or no such device.
        """
        from grimmgen.evaluation import static
        from grimmgen.network.model import choose_device

        configuration, vocabulary = self.checkpoint.configuration, self.checkpoint.vocabulary
        with _arguments_in_errors():
            place = choose_device(device)
            items, are_texts = ([], False) if texts is None else _arguments(texts)
            if are_texts:
                named = ((f"text {number}", text) for number, text in enumerate(items, 1))
                encoded = static.encode_for_evaluation(named, vocabulary)
            else:
                documents = open_corpus(items, configuration).documents if items else self._documents(split)
                encoded = static.encode_documents_for_evaluation(documents, vocabulary)
            return static.evaluate(static.load_network(self.model, place), encoded)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one file, which `load` reads; an existing file is replaced.

        Args:
            path: ends in `.safetensors`.

        Raises:
            UsageError: it does not, or it is a directory.
            GrimmgenError: it cannot be written; an existing file is unchanged.
        """
        target = Path(path).expanduser()
        if target.suffix != registry.CHECKPOINT_SUFFIXES[0]:
            raise UsageError(f"{str(target)!r} is not the name of a checkpoint", "let it end in .safetensors")
        replace(self.checkpoint, progress=None, training_tensors={}).write(files.output_path(target))

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """The evaluations during the training, in order: `pandas.DataFrame(model.history)` is a table of them.

        Each has the attributes of `grimmgen.Evaluated`. There are none of a model that was loaded from a file.
        """
        log = self.model.run.log() if self.model.run is not None else []
        return [
            {name: value for name, value in event.items() if name != "event"}
            for event in log
            if event.get("event") == "evaluated"
        ]

    def plot(self, *others: Model | str, over: Over = "steps") -> Figure:
        """Draw the learning curve, as `grimmgen runs plot` does.

        Args:
            others: models, or names of runs, whose curves are drawn beside it.
            over: the horizontal axis, `steps` or `seconds`.

        Returns:
            A figure of matplotlib, which Jupyter displays if it is the value of the cell; `savefig` writes it.

        Raises:
            GrimmgenError: a model has no run or no evaluation, or matplotlib is not installed.
        """
        if over not in {"steps", "seconds"}:
            raise UsageError(f"over {str(over)[:40]!r} is not known", "give steps or seconds")
        runs = [registry.find(one) if isinstance(one, str) else one.model.run for one in (self, *others)]
        if None in runs:
            raise UsageError("a model that was loaded from a file has no learning curve", "load its run, by name")
        return curves.figure([curves.read(run) for run in runs if run], over)

    def _documents(self, part: Part) -> Sequence[Document]:
        """The documents of a part of the run's corpus."""
        if not self.model.has_split:
            raise UsageError(f"{self.name} is a file, without the texts that it was trained on", "give texts")
        parts = self.model.split().parts
        if part not in parts:
            raise UsageError(f"--split {str(part)[:40]!r} is not known", f"give {' or '.join(parts)}")
        return parts[part]

    def __repr__(self) -> str:
        """Name the model and its size."""
        options = self.checkpoint.configuration
        size = f"{options.cell}, {options.layers} × {options.hidden} units, vocabulary {len(self.vocabulary)}"
        return f"<grimmgen.Model {self.name!r}: {size}>"


@_takes(Configuration)
def fit(
    corpus: Source | None = None,
    *,
    preset: str | None = None,
    run: str | None = None,
    resume: bool = False,
    base: Model | str | os.PathLike[str] | None = None,
    distil: Model | str | os.PathLike[str] | Sequence[Model | str | os.PathLike[str]] = (),
    split: str | os.PathLike[str] | None = None,
    device: str = "auto",
    log_to: str | None = None,
    **options: Any,
) -> Model:
    """Train a model, and show the progress on a terminal or below a cell of Jupyter.

    Interrupting it (Ctrl-C, or the button of Jupyter) finishes the update, saves, and returns the model so far; a
    second time it stops at once.

    Args:
        corpus: `grimm` (the default), `sampler`, a path or a pattern; a list of `pathlib.Path`; or texts: a list of
            strings, each a document.
        preset: defaults of all options, as in `preset="strong"`; by default `tutorial` for the tales, and for other
            texts `auto`, which chooses them for the text, the budget and the speed of the machine.
        run: name of the run; None generates one. A name that is taken gets a number, so that a cell can be run
            again: after `fox` comes `fox-2`.
        resume: continue this run, or the latest one; it keeps its options but `epochs`, `budget` and `patience`.
        base: a model, or the run or the path of one, whose weights training starts from; its architecture and its
            tokens are kept.
        distil: models, or runs or paths of some, of the same text: the network is trained towards their predictions,
            too.
        split: JSON file with the names of the documents of each part.
        device: `auto`, `cpu` or `cuda`.
        log_to: `tensorboard`, or `tensorboard:DIR` for a directory of the run's name in DIR.
        options: see below; None leaves an option to the preset.

    Returns:
        The model with the best validation perplexity so far; with the last weights, before any evaluation.

    Raises:
        UsageError: an option is unknown or out of range, or the corpus is not one.
        GrimmgenError: the training failed; what was saved until then is kept.
    """
    began = time.monotonic()
    begin = _prepare(corpus, preset, run, resume, base, distil, split, device, options)
    logs = tensorboard.prepare(log_to)
    display = Display()
    display.begin()
    try:
        training = begin(display.note, began)
        log = None if log_to is None else tensorboard.TensorBoardLog(tensorboard.directory_of(training.run, logs))
        with log or contextlib.nullcontext(), _stopped_by_interrupt(training):
            for event in training.events():
                display.show(event)
                if log is not None:
                    log.write(event)
                if isinstance(event, Finished) and event.reason == "budget" and event.epoch == 1:
                    logging.getLogger("grimmgen").warning(
                        "the budget sufficed for %d updates, an epoch at most: a larger one trains a better model",
                        event.step,
                    )
    finally:
        display.close()
    return Model(training.run.load())


@_takes(Configuration)
def train(
    corpus: Source | None = None,
    *,
    preset: str | None = None,
    run: str | None = None,
    resume: bool = False,
    base: Model | str | os.PathLike[str] | None = None,
    distil: Model | str | os.PathLike[str] | Sequence[Model | str | os.PathLike[str]] = (),
    split: str | os.PathLike[str] | None = None,
    device: str = "auto",
    **options: Any,
) -> Iterator[Event]:
    """Train as `fit` does; a generator of what happens (`grimmgen.Evaluated` and others), which shows nothing.

    Nothing is read or created before the first event is asked for. A caller that stops iterating leaves a run that
    can be resumed.

    Args:
        corpus: as for `fit`, like all that follow.
        preset: defaults of all options.
        run: name of the run.
        resume: continue this run, or the latest one.
        base: the model whose weights training starts from.
        distil: the models towards whose predictions the network is trained.
        split: JSON file with the names of the documents of each part.
        device: `auto`, `cpu` or `cuda`.
        options: see below.

    Raises:
        UsageError: an option is unknown or out of range.
        GrimmgenError: see `Training.begin` and `Training.events`.
    """
    begin = _prepare(corpus, preset, run, resume, base, distil, split, device, options)

    def events() -> Iterator[Event]:
        with _arguments_in_errors():
            yield from begin(None, None).events()

    return events()


def load(run_or_path: str | os.PathLike[str] = LATEST) -> Model:
    """Load the model of a run, of the latest run, or of a checkpoint file.

    Where there is no run with a checkpoint, the latest is the bundled model, which a line on standard error says;
    `grimm` names it.

    Raises:
        GrimmgenError: there is no such run or file.
        IntegrityError: the checkpoint is damaged.
    """
    model = registry.load_model(run_or_path if isinstance(run_or_path, str) else Path(run_or_path))
    if model.run is None and run_or_path == LATEST:
        # Unless a program configures logging, its warnings are lines on standard error.
        logging.getLogger("grimmgen").warning("using the %s; grimmgen.fit trains your own", PRETRAINED_TITLE)
    return Model(model)


def _prepare(
    corpus: Source | None,
    preset: str | None,
    run: str | None,
    resume: bool,
    base: Model | str | os.PathLike[str] | None,
    distil: Model | str | os.PathLike[str] | Sequence[Model | str | os.PathLike[str]],
    split: str | os.PathLike[str] | None,
    device: str,
    options: Mapping[str, Any],
) -> Callable[[Notify | None, float | None], Training]:
    """Check the options of a training; returns a function that begins it.

    The function takes where to say what was read, and when the budget began; None is at the first event.

    Raises:
        UsageError: an option is unknown or out of range.
    """
    chosen = from_arguments(Configuration, options)
    items, are_texts = ([] if resume else [GRIMM], False) if corpus is None else _arguments(corpus)
    if resume:
        kept = {
            **dict.fromkeys(chosen.keys() - {*_LIMITS}),
            "preset": preset,
            "base": base,
            "distil": distil,
            "split": split,
        }
        if refused := [name for name, value in kept.items() if name in chosen or value]:
            raise UsageError(
                f"{', '.join(refused)} cannot be given with resume", "leave it out: a run keeps its options"
            )

        def resume_run(notify: Notify | None, began: float | None) -> Training:
            from grimmgen.training.session import Training

            limits: dict[str, Any] = {name: chosen.get(name) for name in _LIMITS}
            moved_to = [str(store_texts(items))] if are_texts else items
            training = Training.resume(registry.find(run), device, **limits, notify=notify, moved_to=moved_to)
            training.counted_from = began
            return training

        return resume_run
    started_from = None if base is None else (base if isinstance(base, Model) else load(base)).model
    architecture = None if started_from is None else started_from.checkpoint.configuration
    named = [distil] if isinstance(distil, Model | str | os.PathLike) else distil
    teachers = [(teacher if isinstance(teacher, Model) else load(teacher)).model for teacher in named]
    read_alike = text_options(teachers[0].checkpoint.configuration) if teachers else {}
    preset = preset or ("auto" if are_texts else default_preset(items))
    configuration = configure(preset, read_alike | chosen, architecture)
    check_effective(configuration, chosen)
    if are_texts and "documents" in chosen:
        remedy = "leave it out, and cut the text, as with text.splitlines()"
        raise UsageError("documents has no effect on texts in a list, each of which is a document", remedy)

    def begin_run(notify: Notify | None, began: float | None) -> Training:
        from grimmgen.evaluation.corpus_checks import find_leaks
        from grimmgen.text.encoding import IN_MEMORY
        from grimmgen.text.split import split_by_file, split_by_hash
        from grimmgen.training import auto, distillation
        from grimmgen.training.session import Training

        opening = time.monotonic()
        found = open_corpus([str(store_texts(items))] if are_texts else items, configuration, notify=notify)
        if began is not None and found.report.size > IN_MEMORY:
            began += time.monotonic() - opening
        parts = split_by_hash(found) if split is None else split_by_file(found, Path(split))
        choice = auto.Choice(configuration, "")
        if preset == "auto":
            choice = auto.adapt(read_alike | chosen, parts.parts["train"], device, base=started_from)
        if teachers:
            choice = choice._replace(configuration=distillation.with_teachers(choice.configuration, chosen))
        training = Training.begin(
            found,
            choice.configuration,
            parts,
            run,
            device,
            notify=notify,
            base=started_from,
            teachers=teachers,
            numbered=True,
            reason=choice.reason,
        )
        training.counted_from = began
        if notify:
            leaks = [f"{leak.what}: {leak.remedy}" for leak in find_leaks(training.split)[:1]]
            read = str(found.report)
            if are_texts:
                blank = len(items) - len(found.documents)
                read = f"{len(found.documents):,} texts" + (f"; {blank:,} without text left out" if blank else "")
            for line in filter(None, [read, found.report.advice, *leaks]):
                notify(line)
        return training

    return begin_run


def _arguments(corpus: Source) -> tuple[list[str], bool]:
    """The arguments of `open_corpus`, or texts; and whether they are texts.

    Raises:
        UsageError: it is neither.
    """
    if isinstance(corpus, str | os.PathLike):
        name = os.fspath(corpus)
        if (
            name in {GRIMM, SAMPLER, STANDARD_INPUT}
            or _exists(name)
            or (glob.has_magic(name) and "\n" not in name)
        ):
            return [name], False
        near = did_you_mean(name, (GRIMM, SAMPLER))
        remedy = "give grimm, sampler, the path of a file or directory, or texts in a list, as in [text]"
        raise UsageError(f"there is no corpus {name[:40]!r}{near}", remedy)
    # A table would yield the names of its columns, and a file its lines.
    ambiguous = isinstance(corpus, Mapping) or hasattr(corpus, "columns") or hasattr(corpus, "read")
    if ambiguous or not isinstance(corpus, Iterable):
        raise UsageError(
            f"a corpus cannot be of the type {type(corpus).__name__}",
            "give a path, or a list or column of texts, as in table['text']",
        )
    items = list[Any](corpus)
    if items and all(isinstance(item, os.PathLike) for item in items):
        return [os.fspath(item) for item in items], False
    if not items:
        raise UsageError("there are no texts: the list is empty", "give at least one")
    for number, text in enumerate(items, 1):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is not a string, but of the type {type(text).__name__}", "convert it")
    if all(text in {GRIMM, SAMPLER} or _exists(text) for text in items):
        raise UsageError(
            f"the texts are names of files, as {items[0][:40]!r} is", "give each as a pathlib.Path, to read them"
        )
    return items, True


def _exists(name: str) -> bool:
    # A text by mistake may be too long for a path, or have a NUL.
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        return Path(name).expanduser().exists()
    return False


@contextlib.contextmanager
def _stopped_by_interrupt(training: Training) -> Iterator[None]:
    """Let the first interrupt stop the training after the current update; before updates begin it is raised."""
    received = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal received
        if received or not training.running:
            raise KeyboardInterrupt
        received = True
        training.stop()

    before = signal.getsignal(signal.SIGINT)
    # Only the main thread receives signals; an ignored one stays ignored.
    if threading.current_thread() is not threading.main_thread() or before in {None, signal.SIG_IGN}:
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
