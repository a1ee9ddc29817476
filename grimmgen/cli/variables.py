"""Environment variables: which ones set an option, and naming one that caused an error.

The options of the commands have one each, `GRIMMGEN_TRAIN_UNROLL` and so on. `--help` and the options before the
command have none: container files set `GRIMMGEN_VERSION` for purposes of their own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any

from grimmgen.errors import GrimmgenError


@contextlib.contextmanager
def named(context: Any) -> Iterator[None]:
    """Add to an error the variables whose options or values it is about."""
    try:
        yield
    except GrimmgenError as error:
        if found := [variable for variable, parts in _set_by_variables(context) if _is_about(error, parts)]:
            error.what += f" (set by {', '.join(found)})"
        raise


def cause(error: Any) -> str:
    """The same as a suffix for an error of Typer's about a value; empty if no variable has caused it."""
    context, parameter = getattr(error, "ctx", None), getattr(error, "param", None)
    if context is None or parameter is None:
        return ""
    variables = [variable for variable, parts in _set_by_variables(context) if parameter.opts[0] in parts]
    return f" (set by {variables[0]})" if variables else ""


def _set_by_variables(context: Any) -> Iterator[tuple[str, list[str]]]:
    """The variables that have set options, each with the option's flags and its value."""
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name)
        if source is not None and source.name == "ENVIRONMENT":
            variable = f"{context.auto_envvar_prefix}_{parameter.name.upper()}"
            yield variable, [*parameter.opts, *parameter.secondary_opts, os.environ.get(variable, "")]


def _is_about(error: GrimmgenError, parts: list[str]) -> bool:
    # A value of one character would be found by chance.
    whole = (rf"(?<![\w-]){re.escape(part)}(?![\w-])" for part in parts if len(part) > 1)
    return any(re.search(pattern, str(error)) for pattern in whole)
