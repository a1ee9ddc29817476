"""How commands show their help: in panels where there is room, else as plain paragraphs.

Panels have a column for everything; at 40 columns nothing is left of an option's name but `--corp…`.
"""

from __future__ import annotations

import shutil
from typing import Any

from typer.core import TyperCommand, TyperGroup

# The columns that panels need to cut nothing off, and those that names beside what they mean need.
_PANELS = 72
_BESIDE = 56
# A longer name than this has what it means below it, where there is no more room.
_LONGEST_BESIDE = 8


class _Folding:
    """What a command and a group have in common."""

    rich_markup_mode: Any

    def get_help(self, ctx: Any) -> str:
        """The help; where it is narrow, folded to the terminal's width."""
        if (columns := shutil.get_terminal_size().columns) < _PANELS:
            self.rich_markup_mode = None
            ctx.terminal_width = max(20, columns - 1)
            if columns < _BESIDE:
                ctx.formatter_class = _below(ctx.formatter_class)
        shown: str = super().get_help(ctx)  # type: ignore[misc]
        return shown

    def get_params(self, ctx: Any) -> list[Any]:
        """The options; a variable is told of none of them, those of completion included."""
        params: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for param in params:
            param.show_envvar = False
        return params

    def get_short_help_str(self, limit: int = 45) -> str:  # noqa: ARG002 - typer's signature
        """What stands beside the name in a group's help: the whole first sentence, which may be folded."""
        shown: str = super().get_short_help_str(1000)  # type: ignore[misc]
        return shown


def _below(formatter: Any) -> Any:
    """The formatter, with a description below its name where that is long."""

    class Below(formatter):  # type: ignore[misc]
        def write_dl(self, rows: Any, col_max: int = _LONGEST_BESIDE, col_spacing: int = 2) -> None:
            super().write_dl(rows, min(col_max, _LONGEST_BESIDE), col_spacing)

    return Below


class Command(_Folding, TyperCommand):
    """A command."""


class Group(_Folding, TyperGroup):
    """Commands under one name."""
