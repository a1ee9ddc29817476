"""Options that several subcommands share, and what completes them."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import typer

Part = Literal["train", "valid", "test"]

# Every option has a variable (GRIMMGEN_TRAIN_UNROLL and so on); said once, not at every option. A default that is
# no value is told by show_default: brackets in a help text would be read as markup.
option = partial(typer.Option, show_envvar=False)
argument = partial(typer.Argument, show_envvar=False)


def complete_runs(incomplete: str) -> list[str]:
    """The names of the runs that begin so, the latest first."""
    from grimmgen import registry
    from grimmgen.errors import GrimmgenError

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
