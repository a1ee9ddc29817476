"""What the user sees: lines, tables, bars. The sole importer of rich.

Text and data go to standard output, always UTF-8 and never coloured in a pipe; progress, hints, warnings and
errors go to standard error. Names and texts that come from files and servers are shown as they are, never
read as markup, and never reach a terminal raw.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, TextIO

import rich.box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

# Tables in a pipe have their natural width: what is written there must not depend on the terminal.
_PIPE_WIDTH = 160
_NARROW = 70
# Control characters but newline and tab, and what changes the direction or the visibility of text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff\ud800-\udfff]"
)


def safe(text: str) -> str:
    r"""The text with what could steer a terminal shown as an escape.

    >>> safe("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def error(message: str) -> None:
    """One line: what went wrong, where, and what to do about it."""
    _line("error: ", "bold red", message)


def warn(message: str) -> None:
    """One line about something that may surprise."""
    _line("warning: ", "yellow", message)


def note(message: str) -> None:
    """One line about what goes on."""
    _line("", "", message)


def hint(command: str, what: str) -> None:
    """One line with the command to type next."""
    console = _console(sys.stderr)
    console.print(Text.assemble(f"{safe(what)}: ", (safe(command), "bold cyan")), soft_wrap=True)


def out(message: str = "") -> None:
    """One line of result, on standard output."""
    _console(sys.stdout).print(Text(safe(message)), soft_wrap=True)


def document(value: Any) -> None:
    """One JSON document, on standard output."""
    write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def json_line(value: Any) -> None:
    """One JSON value in one line, on standard output, at once."""
    write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def write(text: str) -> None:
    """Text on standard output as it is, at once: raw in a pipe, made safe on a terminal."""
    sys.stdout.write(safe(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    right: Sequence[str] = (),
    marked: int | None = None,
    dispensable: Sequence[str] = (),
) -> None:
    """A table, on standard output.

    Args:
        columns: their heads.
        rows: their cells.
        title: above it.
        right: the columns that are flush right.
        marked: the row that stands out.
        dispensable: the columns that are left out where a terminal is too narrow, the first to go first.
    """
    grid = [[safe(str(cell)) for cell in row] for row in rows]
    width = {c: max(len(c), *(len(row[i]) for row in grid), 0) for i, c in enumerate(columns)}
    console = _console(sys.stdout)
    shown = list(columns)
    for column in dispensable:
        # Three columns of space and rule between two cells.
        if sum(width[c] + 3 for c in shown) - 1 > console.width:
            shown.remove(column)
    made = Table(box=rich.box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    made.title = Text(safe(title), "italic") if title else None
    for column in shown:
        flush = "right" if column in right else "left"
        made.add_column(Text(column), justify=flush, overflow="fold")  # type: ignore[arg-type]
    for number, row in enumerate(grid):
        cells = (Text(cell) for column, cell in zip(columns, row, strict=True) if column in shown)
        made.add_row(*cells, style="bold" if number == marked else None)
    console.print(made)


def facts(pairs: Sequence[tuple[str, object]], to_error: bool = False) -> None:
    """Names and values, one pair a line; on a terminal a long value is folded beside its name."""
    stream = sys.stderr if to_error else sys.stdout
    if stream.isatty():
        made = Table(box=None, show_header=False, pad_edge=False)
        made.add_column(style="dim", no_wrap=True)
        made.add_column(overflow="fold")
        for name, value in pairs:
            made.add_row(Text(name), Text(safe(str(value))))
        _console(stream).print(made)
        return
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        _console(stream).print(Text(f"{name:{width}}  {safe(str(value))}"), soft_wrap=True)


def confirm(question: str) -> bool:
    """Ask; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{safe(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class Bars:
    """Progress bars on standard error where it is a terminal, and lines above them; else the lines alone.

    Args:
        quiet: neither bars nor lines.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._console = _console(sys.stderr)
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        self.narrow = self._console.width < _NARROW
        self._drawn: dict[int, float] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(8 if self.narrow else 24, style="dim", complete_style="cyan", finished_style="cyan"),
            TextColumn("{task.completed:>.0f}/{task.total:.0f}", style="dim"),
            TextColumn(" {task.fields[info]}", markup=False),
            console=self._console,
            refresh_per_second=5,
            disable=not self.live,
            transient=True,
        )

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, label: str, total: int, done: int = 0) -> int:
        """A bar of so many parts, so many of them done; returns its number."""
        return self._progress.add_task(label, total=total, completed=done, info="")

    def update(self, bar: int, done: int, info: str, short: str) -> None:
        """Move a bar; `short` is what there is room for on a narrow terminal. Too quick a change is not drawn."""
        if not self.live:
            return
        now = time.monotonic()
        if now - self._drawn.get(bar, 0.0) < 0.1:
            return
        self._drawn[bar] = now
        self._progress.update(TaskID(bar), completed=done, info=short if self.narrow else info)

    def line(self, text: str, style: str = "") -> None:
        """A line above the bars."""
        if not self._quiet:
            self._console.print(Text(safe(text), style), soft_wrap=not self.live)


def seconds(value: float) -> str:
    """A time as people write it.

    >>> seconds(7), seconds(83), seconds(3723)
    ('0:07', '1:23', '1:02:03')
    """
    whole = int(value)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def size(value: float) -> str:
    """Bytes as people write them.

    >>> size(512), size(5_300_000)
    ('512 B', '5.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _line(label: str, style: str, message: str) -> None:
    # One line, whatever the message came from: an exception's text may have several.
    text = Text.assemble((label, style), safe(" ".join(message.split())))
    _console(sys.stderr).print(text, soft_wrap=True)


def _console(stream: TextIO) -> Console:
    return Console(
        file=stream,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=None if stream.isatty() else True,
        force_terminal=None if stream.isatty() else False,
    )
