"""Commands and groups: their help on a narrow terminal, where Typer's panels would cut off names, and variables."""

from __future__ import annotations

import contextlib
import inspect
import shutil
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from grimmgen.cli import variables

# Columns that Typer's panels need to cut nothing off.
_PANELS = 80


def plain_help(command: Any, context: Any, columns: int) -> str:
    """A command's help in so many columns: usage, description, and each description below its option."""

    def fold(text: str, indent: int, hanging: int = 0) -> str:
        return textwrap.fill(
            text,
            max(20, columns),
            initial_indent=" " * indent,
            subsequent_indent=" " * (indent + hanging),
            break_long_words=False,
            break_on_hyphens=False,
        )

    def paragraphs(text: str | None) -> Iterator[str]:
        return (fold(paragraph, 2) + "\n" for paragraph in inspect.cleandoc(text or "").split("\n\n"))

    def section(heading: str, rows: list[tuple[str, str]]) -> Iterator[str]:
        yield f"{heading}:"
        for name, description in rows:
            yield fold(name, 2, 4)
            yield fold(description, 6)
        yield ""

    sections: dict[str, list[tuple[str, str]]] = {}
    for parameter in command.get_params(context):
        if (record := parameter.get_help_record(context)) is not None:
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
    if isinstance(command, TyperGroup):
        below = ((name, command.get_command(context, name)) for name in command.list_commands(context))
        sections["Commands"] = [
            (name, one.get_short_help_str(limit=1000)) for name, one in below if one is not None and not one.hidden
        ]
    usage = f"Usage: {context.command_path} {' '.join(command.collect_usage_pieces(context))}"
    lines = [fold(usage, 0, 4), "", *paragraphs(command.help)]
    for heading, rows in sections.items():
        lines += section(heading, rows)
    return "\n".join([*lines, *(paragraphs(command.epilog) if command.epilog else ())]).rstrip()


class _Parsing:
    """What commands and groups have in common: plain help on a narrow terminal, errors that name variables."""

    help: str | None

    def get_help(self, ctx: Any) -> str:
        """The help; Typer itself prints its panels and returns an empty text."""
        columns = shutil.get_terminal_size().columns
        full: Any = super()
        # Typer would keep the line ends of the docstring, besides those at the width of the terminal.
        self.help = "\n\n".join(" ".join(one.split()) for one in inspect.cleandoc(self.help or "").split("\n\n"))
        return str(full.get_help(ctx)) if columns >= _PANELS else plain_help(self, ctx, columns - 1)

    def get_help_option(self, ctx: Any) -> Any:
        """`--help`, which no variable sets."""
        base: Any = super()
        option = base.get_help_option(ctx)
        if option is not None:
            option.allow_from_autoenv = False
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Parse the arguments."""
        base: Any = super()
        with variables.named(ctx):
            return base.parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            typer.Abort: it was interrupted; Typer would turn a KeyboardInterrupt into an exit code and lose its text.
        """
        base: Any = super()
        try:
            with variables.named(ctx):
                return base.invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise typer.Abort(*interrupt.args) from interrupt


class Command(_Parsing, TyperCommand):
    """A command."""


class Group(_Parsing, TyperGroup):
    """A group of commands; no variable sets its options."""

    def get_params(self, ctx: Any) -> Any:
        """The options before the command."""
        parameters = super().get_params(ctx)
        for parameter in parameters:
            parameter.allow_from_autoenv = False  # type: ignore[attr-defined]
        return parameters


def help_without_command(context: typer.Context) -> None:
    """The callback of a group: without a command, print the help to standard error and exit with code 2."""
    if context.invoked_subcommand is None:
        with contextlib.redirect_stdout(sys.stderr):
            typer.echo(context.get_help())
        raise typer.Exit(2)
