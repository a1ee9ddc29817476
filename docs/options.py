"""Write options.md beside this file: the commands and their options, as they are declared.

With --check nothing is written: exit 1 if the file is stale.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from grimmgen.cli import app
from grimmgen.configuration import PRESETS, Configuration, Option, options_of
from grimmgen.sampling.options import SamplingOptions

_INTRODUCTION = """\
# Commands and options

Made by `python docs/options.py` from the program. Every command has `--help`, `--quiet` and `--json`: one JSON
document on standard output, for `train` a line for each event. From Python, the names are the arguments of
`grimmgen.fit` and of `Model.generate`; text is accepted as it is typed here, as in `budget="10m"`. A variable sets
a default: `GRIMMGEN_TRAIN_UNROLL=50` is `grimmgen train --unroll 50`."""
# The commands whose options are fields of a dataclass, most of them.
_DECLARED: dict[str, type] = {"train": Configuration, "generate": SamplingOptions}
_EXAMPLE = "Example: "
# What is code in a description; and the type of a value, which says nothing unless it is a choice.
_CODE = re.compile(r"(?<![\w`-])(--[a-z][a-z-]*|<unk>|torchrun .*$)")
_TYPE = re.compile(r" +<([^>]*)>")
# A bar would end the cell.
_BAR = "\\|"


def render() -> str:
    """The contents of options.md."""
    parts = [_INTRODUCTION]
    program = typer.main.get_command(app)
    with typer.Context(program, info_name="grimmgen") as context:
        for name, command in _commands(program):
            declared = _DECLARED.get(name)
            flags = [flag for option in _options(declared) for flag in option.flags]
            parts += [f"## `grimmgen {name}`", *_described(command), _parameters(command, context, flags)]
            parts += _panels(declared)
    parts.append("## Presets")
    for name, values in PRESETS.items():
        typed = " ".join(options_of(Configuration)[field].as_typed(value) for field, value in values.items())
        parts.append(f"`--preset {name}`: " + (f"`{typed}`" if typed else "the defaults"))
    return "\n\n".join(parts) + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The commands of a group and of those in it, with their names."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name, command


def _described(command: Any) -> list[str]:
    """The paragraphs of a command's help; the examples as a block."""
    paragraphs = [" ".join(paragraph.split()) for paragraph in inspect.cleandoc(command.help).split("\n\n")]
    examples = [paragraph.removeprefix(_EXAMPLE) for paragraph in paragraphs if paragraph.startswith(_EXAMPLE)]
    texts = [_CODE.sub(r"`\1`", paragraph) for paragraph in paragraphs if not paragraph.startswith(_EXAMPLE)]
    return [*texts, "```sh\n" + "\n".join(examples) + "\n```"] if examples else texts


def _parameters(command: Any, context: Any, without: Sequence[str]) -> str:
    """A table of a command's arguments and options, without those that are described by a declaration."""
    rows = ["| option | |", "|---|---|"]
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None and not set(parameter.opts) & {*without, "--help", "--json", "--quiet"}:
            name = _TYPE.sub(lambda found: f" {found[1]}" if "|" in found[1] else "", record[0])
            cells = f"`{name.strip()}`", _CODE.sub(r"`\1`", record[1])
            rows.append(f"| {' | '.join(cell.replace('|', _BAR) for cell in cells)} |")
    return "\n".join(rows) if len(rows) > 2 else "No options of its own."


def _options(declaration: type | None) -> list[Option]:
    return [] if declaration is None else list(options_of(declaration).values())


def _panels(declaration: type | None) -> list[str]:
    """A table of the declared options for each panel of the help."""
    panels: dict[str, list[Option]] = {}
    for option in _options(declaration):
        panels.setdefault(option.panel or "Limits and randomness", []).append(option)
    head = "| option | name | default | range | |\n|---|---|---|---|---|\n"
    return [f"### {panel}\n\n{head}" + "\n".join(map(_row, options)) for panel, options in panels.items()]


def _row(option: Option) -> str:
    default = option.default_text or (
        ("on" if option.default != option.inverted else "off") if option.type is bool else str(option.default)
    )
    cells = [
        " ".join(f"`{flag}`" for flag in (*option.flags, option.alias) if flag),
        f"`{option.parameter}`",
        default,
        option.limits,
    ]
    notes = [option.description.replace("<unk>", "`<unk>`")]
    if option.effective_with:
        other, value = option.effective_with
        notes.append(f"only with `--{other} {value}`")
    if option.requires:
        notes.append(f"requires `--{option.requires.replace('_', '-')}`")
    if option.excludes:
        notes.append("not with " + " or ".join(f"`--{name.replace('_', '-')}`" for name in option.excludes))
    return f"| {' | '.join([*cells, '; '.join(notes)])} |"


def main() -> int:
    """Write options.md if it is stale, or with --check only report that."""
    path, wanted = Path(__file__).with_suffix(".md"), render()
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("docs/options.md is stale: run `python docs/options.py`\n")
        return 1
    path.write_text(wanted, encoding="utf-8")
    sys.stdout.write("wrote docs/options.md\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
