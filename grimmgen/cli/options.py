"""Options that several subcommands share, and what completes them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from grimmgen.configuration import Configuration

Part = Literal["train", "valid", "test"]

# Where an option is called otherwise than in the configuration.
RENAMED = {"init": "initialisation", "lr": "learning_rate"}
# The epochs of a run whose rate anneals to the end of its budget.
AS_MANY_AS_TIME_ALLOWS = 1 << 20

# Every option has a variable (GRIMMGEN_TRAIN_UNROLL and so on); said once, not at every option. A default that is
# no value is told by show_default: brackets in a help text would be read as markup.
option = partial(typer.Option, show_envvar=False)
argument = partial(typer.Argument, show_envvar=False)


def complete_runs(incomplete: str) -> list[str]:
    """The names of the runs that begin so, the latest first."""
    from grimmgen.errors import GrimmgenError
    from grimmgen.runs import registry

    try:
        return [run.name for run in reversed(registry.all_runs()) if run.name.startswith(incomplete)]
    except (GrimmgenError, OSError):
        return []


Json = Annotated[bool, option("--json", help="One JSON document on standard output, nothing else there.")]
Quiet = Annotated[bool, option("--quiet", "-q", help="No progress, no hints; errors still show.")]
CorpusSource = Annotated[
    str,
    option("--corpus", help="grimm (fetched), sampler (bundled), or a text file or directory of yours."),
]
RunOrFile = Annotated[
    str | None,
    option(
        "--run",
        help="A run, or the path of a checkpoint file.",
        show_default="the latest run",
        autocompletion=complete_runs,
    ),
]


def duration(text: str) -> float:
    """Seconds of a duration as typed: 90, 30s, 10m, 1.5h.

    >>> duration("10m")
    600.0

    Raises:
        UsageError: it is none.
    """
    from grimmgen.errors import UsageError

    number, unit = (text[:-1], text[-1]) if text[-1:].isalpha() else (text, "s")
    try:
        return float(number) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit.lower()]
    except (ValueError, KeyError):
        raise UsageError(f"--budget {text!r} is not a duration", "give one like 30s, 10m or 1h") from None


def as_typed(configuration: Configuration) -> str:
    """The options that are not the tutorial's, as one would type them, but epochs without an end.

    >>> from grimmgen.configuration import Configuration
    >>> as_typed(Configuration(hidden=64, learning_rate=0.01, lower=False, phases=True, budget=90.0))
    '--hidden 64 --lr 0.01 --budget 90s --keep-case --phases'
    """
    typed = []
    names = {name: option for option, name in RENAMED.items()}
    for name, value in configuration.departures().items():
        option = names.get(name, name).replace("_", "-")
        match name, value:
            case "lower", _:
                typed.append("--keep-case")
            case "budget", _:
                typed.append(f"--budget {value:.15g}s")  # in full: a budget is typed without an exponent
            case "epochs", _ if value == AS_MANY_AS_TIME_ALLOWS:
                pass
            case _, bool():
                typed.append(f"--{option}" if value else f"--no-{option}")
            case _:
                typed.append(f"--{option} {value}")
    return " ".join(typed)


def typed(context: typer.Context) -> set[str]:
    """The parameters that were typed: what a variable sets is set for every call, not meant for this one."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}
