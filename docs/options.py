"""Write options.md beside this file: the options of training and generation, as they are declared.

With --check nothing is written: exit 1 if the file is stale.
"""

from __future__ import annotations

import sys
from pathlib import Path

from grimmgen.configuration import PRESETS, Configuration, Option, options_of
from grimmgen.sampling.options import SamplingOptions

_INTRODUCTION = """\
# Options

Made by `python docs/options.py` from the declarations in `grimmgen/configuration.py` and
`grimmgen/sampling/options.py`. From Python, the names are the arguments of `grimmgen.fit` and of `Model.generate`;
text is accepted as it is typed here, as in `budget="10m"`. A variable sets a default: `GRIMMGEN_TRAIN_UNROLL=50` is
`grimmgen train --unroll 50`."""


def render() -> str:
    """The contents of options.md."""
    parts = [_INTRODUCTION]
    for title, options in ("`grimmgen train`", Configuration), ("`grimmgen generate`", SamplingOptions):
        parts.append(f"## {title}")
        panels: dict[str | None, list[Option]] = {None: []}
        for option in options_of(options).values():
            panels.setdefault(option.panel, []).append(option)
        for panel, of_panel in panels.items():
            rows = [f"### {panel}\n"] if panel else []
            rows += ["| option | name | default | range | |", "|---|---|---|---|---|", *map(_row, of_panel)]
            parts.append("\n".join(rows))
    parts.append("## Presets")
    for name, values in PRESETS.items():
        declared = options_of(Configuration)
        typed = " ".join(declared[field].as_typed(value) for field, value in values.items())
        parts.append(f"`--preset {name}`: " + (f"`{typed}`" if typed else "the defaults"))
    return "\n\n".join(parts) + "\n"


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
    notes = [option.description]
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
