"""The parameters of commands: those declared by a dataclass of options, and those shared by several commands."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from grimmgen.configuration import OPTIONS, UNLIMITED_EPOCHS, Configuration, Option, options_of
from grimmgen.errors import UsageError
from grimmgen.sampling.options import SamplingOptions

if TYPE_CHECKING:
    from grimmgen.runs.registry import Run, TrainedModel
    from grimmgen.text.corpus import Report

# Declared for generation, and offered by evaluation as well.
MIX = options_of(SamplingOptions)["mix"]

Part = Literal["train", "valid", "test"]

# Every option has a variable (GRIMMGEN_TRAIN_UNROLL and so on), which the main help explains once.
option = partial(typer.Option, show_envvar=False)
argument = partial(typer.Argument, show_envvar=False)


def complete_runs(incomplete: str) -> list[str]:
    """The names of the runs that begin with this text, the latest first."""
    from grimmgen.errors import GrimmgenError
    from grimmgen.runs import registry

    try:
        return [run.name for run in reversed(registry.all_runs()) if run.name.startswith(incomplete)]
    except (GrimmgenError, OSError):
        return []


def complete_models(incomplete: str) -> list[str]:
    """The names of the runs and of the bundled model that begin with this text."""
    from grimmgen.runs.registry import PRETRAINED

    return [*complete_runs(incomplete), *_complete(PRETRAINED)(incomplete)]


def complete_corpora(incomplete: str) -> list[str]:
    """The corpora whose names begin with this text, and the files beside them.

    Where there is no such corpus, the shell completes files by itself, with directories in them.
    """
    named = [name for name in ("grimm", "sampler") if name.startswith(incomplete)]
    files = (path.name for path in Path().glob(f"{incomplete}*") if not path.name.startswith("."))
    return [*named, *sorted(files)] if named else []


def _complete(*values: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [value for value in values if value.startswith(incomplete)]


Json = Annotated[bool, option("--json", help="Print one JSON document on standard output.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="Print no progress and no hints.")]
Device = Annotated[
    str,
    option(
        help="auto (a GPU if there is one), cpu, cuda, or cuda:N.", autocompletion=_complete("auto", "cpu", "cuda")
    ),
]


def _split_variable(context: typer.Context, parameter: Any, value: list[str] | None) -> list[str] | None:
    """The paths of a variable, which are separated as those of PATH are; Typer would separate them at spaces."""
    if parameter.name not in _set(context, "ENVIRONMENT"):
        return value
    return str(parameter.resolve_envvar_value(context)).split(os.pathsep)


CorpusFiles = Annotated[
    list[str] | None,
    argument(
        metavar="FILE",
        help="Texts and directories to read: the same as --corpus.",
        show_default=False,
        autocompletion=complete_corpora,
    ),
]
DEFAULT_CORPUS = ["grimm"]
CorpusSources = Annotated[
    list[str],
    option(
        "--corpus",
        help="grimm (fetched), sampler (bundled), or a file, a directory, a pattern like 'letters/*.txt', or -"
        " (standard input). Several are read together.",
        show_default="grimm",
        callback=_split_variable,
        autocompletion=complete_corpora,
    ),
]
MovedCorpus = Annotated[
    list[str] | None,
    option(
        "--corpus",
        help="Where the text of the run is now, if it was moved.",
        show_default="where it was",
        callback=_split_variable,
    ),
]
SplitFile = option(
    help="JSON file with the names of the stories of each part.", show_default="80/10/10 by hash of the name"
)
MODEL = "A run, grimm (the bundled model), or the path of a checkpoint or an exported page"
DEFAULT_MODEL = "the latest run; grimm where there is none"
RunOrFile = Annotated[
    str | None,
    option("--run", help=f"{MODEL}.", show_default=DEFAULT_MODEL, autocompletion=complete_models),
]
RunsOrFiles = Annotated[
    list[str] | None,
    option(
        "--run",
        help=f"{MODEL}; of several that share a vocabulary, the probabilities are averaged.",
        show_default=DEFAULT_MODEL,
        autocompletion=complete_models,
    ),
]
Mix = Annotated[
    float | None,
    option(
        help=f"{MIX.description}.", metavar=MIX.metavar, parser=MIX.parse, show_default=MIX.default_text or True
    ),
]


def accept(options: type, *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the parameters that a dataclass declares, after those of the same help panel of its own.

    The command receives as `chosen` the values from the command line and from variables, by the fields' names.

    Args:
        options: the dataclass; see `grimmgen.configuration.option`.
        names: the fields; all of them, with their help panels, if none is named.
    """
    declared = [option for name, option in options_of(options).items() if not names or name in names]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(context: typer.Context, **values: Any) -> None:
            chosen = {}
            for one in declared:
                value = values.pop(one.parameter)
                if one.parameter in _set(context, "COMMANDLINE", "ENVIRONMENT"):
                    chosen[one.name] = value != one.inverted if one.type is bool else value
            if "context" in own:
                values["context"] = context
            command(chosen=chosen, **values)

        own = dict(inspect.signature(command).parameters)
        hints = get_type_hints(command, include_extras=True)
        first = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in own.items()
            if name not in {"context", "chosen"}
        ]
        parameters += [_parameter(one, None if names else one.panel) for one in declared]
        panels = [None, *dict.fromkeys(one.panel for one in declared if one.panel)]
        last = "json", "quiet"
        parameters.sort(key=lambda parameter: (panels.index(_panel(parameter)), parameter.name in last))
        run.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in [first, *parameters]}
        return run

    return decorate


def _parameter(declared: Option, panel: str | None) -> inspect.Parameter:
    """The parameter of a command that an option's declaration describes."""
    hint: Any = Literal[declared.choices()] if declared.choices() else declared.type
    info = option(
        "/".join(declared.flags),
        *([declared.alias] if declared.alias else []),
        help=f"{declared.description}.",
        rich_help_panel=panel,
        metavar=declared.metavar,
        show_default=declared.default_text or True,
        parser=declared.parse,
        autocompletion=_complete(*declared.suggestions) if declared.suggestions else None,
    )
    return inspect.Parameter(
        declared.parameter,
        inspect.Parameter.KEYWORD_ONLY,
        default=declared.default != declared.inverted if declared.type is bool else declared.default,
        annotation=Annotated[hint | None if declared.optional else hint, info],
    )


def _panel(parameter: inspect.Parameter) -> str | None:
    [info, *_] = getattr(parameter.annotation, "__metadata__", [None])
    return getattr(info, "rich_help_panel", None) or None


def show_report(report: Report, notify: Callable[[str], None] | None) -> None:
    """Say what was read for a corpus, and what might be read better; `notify` is None for silence."""
    if notify:
        notify(str(report))
        if report.advice:
            notify(report.advice)


def as_typed(configuration: Configuration) -> str:
    """The options that differ from the tutorial's, as on a command line; unlimited epochs are left out.

    >>> from grimmgen.configuration import Configuration
    >>> as_typed(Configuration(hidden=64, learning_rate=0.01, lower=False, phases=True, budget=90.0))
    '--hidden 64 --lr 0.01 --budget 90s --keep-case --phases'
    """
    return " ".join(
        OPTIONS[name].as_typed(value)
        for name, value in configuration.departures().items()
        if (name, value) != ("epochs", UNLIMITED_EPOCHS)
    )


def merge_files(files: list[str] | None, corpus: list[str], typed: set[str]) -> tuple[list[str], set[str]]:
    """The corpus given as arguments or by --corpus, and the names of what was typed, in which they are one.

    Raises:
        UsageError: it was given in both ways.
    """
    if not files:
        return corpus, typed
    if "corpus" in typed:
        raise UsageError("FILE and --corpus exclude each other", "give all by --corpus")
    return files, {*typed, "corpus"} - {"sources"}


def report_default(name: str | None, model: TrainedModel, quiet: bool) -> None:
    """Say what was taken where the latest run was asked for, if that is not the run that was begun last.

    Args:
        name: of the model, as it was typed; None if it was not.
        model: that was loaded.
        quiet: say nothing.
    """
    from grimmgen.cli import console
    from grimmgen.runs import registry

    if quiet or name not in {None, registry.LATEST}:
        return
    if model.run is not None:
        report_skipped(model.run, quiet)
        return
    newer = registry.newer_without_checkpoint(None)
    begun = "" if newer is None else f"{newer.name} has no checkpoint; "
    console.hint("grimmgen train", f"{begun}using the bundled model {registry.PRETRAINED}; train your own")


def report_skipped(run: Run | None, quiet: bool) -> None:
    """Say that the latest run with a checkpoint was taken, if another one was begun after it."""
    from grimmgen.cli import console
    from grimmgen.runs import registry

    if run is not None and not quiet and (newer := registry.newer_without_checkpoint(run)) is not None:
        console.note(f"using the run {run.name}: {newer.name}, which is newer, has no checkpoint")


def typed(context: typer.Context) -> set[str]:
    """The parameters on the command line, without those that a variable sets for every call."""
    return _set(context, "COMMANDLINE")


def refuse_beside(context: typer.Context, flag: str, allowed: Collection[str], remedy: str) -> None:
    """Refuse parameters on the command line that a flag replaces.

    Args:
        context: of the command.
        flag: that was given.
        allowed: the names of the parameters that may be given with it.
        remedy: what to do, in one line.

    Raises:
        UsageError: there is one.
    """
    refused = sorted(typed(context) - set(allowed))
    shown = {one.name: one.opts[0] if one.opts[0][0] == "-" else one.metavar for one in context.command.params}
    if refused:
        raise UsageError(f"{', '.join(str(shown[name]) for name in refused)} cannot be given with {flag}", remedy)


def _set(context: typer.Context, *sources: str) -> set[str]:
    found = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in found.items() if source and source.name in sources}
