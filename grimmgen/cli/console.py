"""Output on the terminal: lines, tables and progress bars. The only importer of rich.

Text and data go to standard output, in UTF-8 and without colours in a pipe; progress, hints, warnings and errors
go to standard error. Names and texts from files and servers are never interpreted as markup, and their control
characters never reach a terminal.

rich is imported by the functions that use it, so that commands without tables and bars start faster.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# Widths of tables and of lines of text in a pipe, independent of the terminal.
_PIPE_WIDTH = 160
_TEXT_WIDTH = 80
# Below this width, bars show short figures; from this width on, there is room for long bars.
_NARROW = 70
_WIDE = 100
# Number of unknown characters or tokens that a warning lists.
_MAX_LISTED = 20
# Variables of every command that a cell of Jupyter runs. JPY_PARENT_PID is there, too, unless an editor started the
# kernel, as VS Code does.
_IPYKERNEL = {"TERM": "xterm-color", "CLICOLOR_FORCE": "1", "PAGER": "cat", "GIT_PAGER": "cat"}
# Control characters except newline and tab, and characters that change the direction or the visibility of text.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e0fff\ud800-\udfff]"
)


def safe(text: str) -> str:
    r"""Replace control characters by escape sequences that a terminal only displays.

    >>> safe("a\x1b[2Jb")
    'a\\x1b[2Jb'
    """
    return _UNSAFE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    r"""Make a name or a value safe, with line ends and tabs as escape sequences, too.

    >>> one_line("sly-fox\nold-owl")
    'sly-fox\\nold-owl'
    """
    return safe(text).replace("\n", "\\n").replace("\t", "\\t")


def error(message: str) -> None:
    """Print an error in one line: what, where, remedy."""
    _line("error: ", "bold red", message)


def warn(message: str) -> None:
    """Print a warning in one line."""
    _line("warning: ", "yellow", message)


def note(message: str) -> None:
    """Print one line on standard error."""
    _line("", "", message)


def trace() -> None:
    """Print the traceback of the current exception on standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(safe(traceback.format_exc()))


def status(what: str) -> AbstractContextManager[object]:
    """On a terminal, show a spinner with what is being done as long as the context lasts."""
    return _console(sys.stderr).status(what) if sys.stderr.isatty() else contextlib.nullcontext()


def hint(command: str, what: str) -> None:
    """Print a hint on standard error: a command or options to type."""
    if not sys.stderr.isatty():
        note(f"{what}: {command}")
        return
    from rich.text import Text

    console = _console(sys.stderr)
    console.print(Text.assemble(f"{safe(what)}: ", (safe(command), "bold cyan")), soft_wrap=True)


def out(message: str = "") -> None:
    """Print one line on standard output."""
    _console(sys.stdout).print(_text(message), soft_wrap=True)


def sentence(message: str) -> None:
    """Print one line on standard output, broken between words on a terminal."""
    _console(sys.stdout).print(_text(message), soft_wrap=not sys.stdout.isatty())


def document(value: Any) -> None:
    """Print a JSON document on standard output."""
    write(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def json_line(value: Any) -> None:
    """Print a JSON value in one line on standard output, unbuffered."""
    write(json.dumps(value, ensure_ascii=False, default=str) + "\n")


def discard_output() -> None:
    """Discard what is still buffered for standard output and can no longer be written, and what follows."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write(text: str) -> None:
    """Write text to standard output, unbuffered: unchanged in a pipe, safe on a terminal."""
    sys.stdout.write(safe(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


class Lines:
    """A stream of text to standard output, with lines broken between words on a terminal, unchanged in a pipe."""

    def __init__(self) -> None:
        self._width = text_width() - 1 if sys.stdout.isatty() else 0
        self._column = 0
        self._word = ""  # an incomplete word
        self._space = ""  # the space before it

    def write(self, text: str) -> None:
        """Write text; its last word is held back until it is complete."""
        if not self._width:
            write(text)
            return
        from rich.cells import cell_len

        shown = list[str]()
        *complete, self._word = re.split("([ \n])", self._word + text)
        for word, space in zip(complete[::2], complete[1::2], strict=True):
            width = cell_len(safe(word))
            if self._column and self._column + len(self._space) + width > self._width:
                shown.append("\n")
                self._column, self._space = 0, ""
            shown += self._space, word
            # A terminal breaks a word that is longer than a line.
            self._column += len(self._space) + width
            if self._column > self._width:
                self._column %= self._width
            self._space = " " if space != "\n" else ""
            if space == "\n":
                shown.append(space)
                self._column = 0
        # Longer than a line: not held back, the terminal breaks it.
        if cell_len(safe(self._word)) >= self._width:
            shown += self._space, self._word
            self._column, self._space, self._word = 1, "", ""
        write("".join(shown))


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str = "",
    right: Sequence[str] = (),
    marked: int | None = None,
    dispensable: Sequence[str] = (),
) -> None:
    """Print a table on standard output.

    Args:
        columns: the heads of the columns.
        rows: the cells of each row.
        title: shown above the table.
        right: the columns that are aligned to the right.
        marked: the index of a highlighted row.
        dispensable: the columns to leave out on a narrow terminal, in the order in which they are left out.
    """
    import rich.box
    from rich.table import Table

    grid = [[one_line(str(cell)) for cell in row] for row in rows]
    width = {c: max(len(c), *(len(row[i]) for row in grid), 0) for i, c in enumerate(columns)}
    console = _console(sys.stdout)
    shown = list(columns)
    for column in dispensable:
        # Two cells are three columns apart.
        if sum(width[c] + 3 for c in shown) - 1 > console.width:
            shown.remove(column)
    drawn = Table(box=rich.box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    drawn.title = _text(title, "italic") if title else None
    for column in shown:
        justify = "right" if column in right else "left"
        drawn.add_column(_text(column), justify=justify, overflow="fold")  # type: ignore[arg-type]
    for number, row in enumerate(grid):
        cells = (_text(cell) for column, cell in zip(columns, row, strict=True) if column in shown)
        drawn.add_row(*cells, style="bold" if number == marked else None)
    console.print(drawn)


def facts(pairs: Sequence[tuple[str, object]], to_error: bool = False) -> None:
    """Print names and values, one pair per line; a terminal wraps long values in their column."""
    from rich.table import Table

    stream = sys.stderr if to_error else sys.stdout
    if stream.isatty():
        drawn = Table(box=None, show_header=False, pad_edge=False)
        drawn.add_column(style="dim", no_wrap=True)
        drawn.add_column(overflow="fold")
        for name, value in pairs:
            drawn.add_row(_text(name), _text(one_line(str(value))))
        _console(stream).print(drawn)
        return
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        _console(stream).print(_text(f"{name:{width}}  {one_line(str(value))}"), soft_wrap=True)


def heat(
    title: str,
    cells: Sequence[tuple[str, int, bool]],
    levels: Sequence[str],
    unit: str,
    palette: Sequence[tuple[str, str]],
    blank: int = 0,
) -> None:
    """Print a text with a level for each of its pieces, and a legend, on standard output.

    A terminal with 256 colours or more shows the levels as colours; otherwise a line of digits under each line of
    the text shows them, with spaces for one of the levels.

    Args:
        title: shown above the text.
        cells: each piece as it is displayed, its level, and whether a line ends after it.
        levels: the names of the levels; without any there is no legend.
        unit: the unit of these names.
        palette: the background and foreground colours of each level.
        blank: the level that a space stands for.
    """
    from rich.cells import cell_len
    from rich.text import Text

    console = _console(sys.stdout)
    coloured = not console.no_color and console.color_system in {"256", "truecolor"}
    width = text_width()
    console.print(_text(title, "bold"))
    styles = [f"{foreground} on {background}" for background, foreground in palette]
    for line in _folded(cells, width):
        if coloured:
            console.print(Text.assemble(*((shown, styles[level]) for shown, level, _ in line)), no_wrap=True)
            continue
        marks = "".join((" " if level == blank else str(level)).ljust(cell_len(shown)) for shown, level, _ in line)
        console.print(Text("".join(shown for shown, _, _ in line).rstrip()), soft_wrap=True)
        if marks.strip():
            console.print(Text(marks.rstrip()), soft_wrap=True)
    if not levels:
        return
    legend = Text()
    for number, name in enumerate(levels):
        legend.append(f" {name} " if coloured else f"{number}: {name}  ", styles[number] if coloured else "")
    console.print(legend.append(f" {unit}"))


def _folded(cells: Iterable[tuple[str, int, bool]], width: int) -> list[list[tuple[str, int, bool]]]:
    """Wrap cells into lines of this width, after a space if there is one."""
    from rich.cells import cell_len

    lines: list[list[tuple[str, int, bool]]] = [[]]
    used = 0
    for cell in cells:
        line, wide = lines[-1], cell_len(cell[0])
        if line and used + wide > width:
            after = max(
                (number for number, (shown, _, _) in enumerate(line, 1) if shown == " "), default=len(line)
            )
            lines.append(line[after:])
            del line[after:]
            used = sum(cell_len(shown) for shown, _, _ in lines[-1])
        lines[-1].append(cell)
        used += wide
        if cell[2]:
            lines.append([])
            used = 0
    return [line for line in lines if line]


def drawing(lines: Iterable[str], styles: Mapping[str, str]) -> None:
    """Print lines on standard output; on a terminal some characters have a style."""
    from rich.text import Text

    console = _console(sys.stdout)
    for line in lines:
        text = Text(line)
        for character, style in styles.items():
            text.highlight_regex(re.escape(character), style)
        console.print(text, soft_wrap=True)


def text_width() -> int:
    """The width of lines on standard output: the terminal's, or a fixed one in a pipe."""
    return _console(sys.stdout).width if sys.stdout.isatty() else _TEXT_WIDTH


def has_unicode() -> bool:
    """Whether standard output shows Unicode: a pipe, or a terminal whose locale has UTF-8."""
    # In the C locale Python sets LC_CTYPE to C.UTF-8 (PEP 538); LANG still has the user's setting.
    coerced = os.environ.get("LC_CTYPE") == "C.UTF-8"
    named = [os.environ.get(name) for name in ("LC_ALL", "LANG" if coerced else "LC_CTYPE", "LANG")]
    locale = next(filter(None, named), "UTF-8")
    return not sys.stdout.isatty() or "utf" in locale.lower()


def confirm(question: str) -> bool:
    """Ask a question; without a terminal the answer is no."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"{safe(question)} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


class Bars:
    """Progress bars and lines above them on standard error; without a terminal only the lines.

    Args:
        quiet: whether to show neither.

    Attributes:
        live: whether bars are shown.
        narrow: whether the terminal is narrow.
        notice: a line below the bars; a signal handler may set it, because the bars read it when they are drawn.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        bars = self

        class ProgressWithNotice(Progress):
            def get_renderables(self) -> Iterable[RenderableType]:
                yield from super().get_renderables()
                if bars.notice:
                    yield _text(bars.notice, "yellow")

        self.notice = ""
        self._quiet = quiet
        self._console = _console(sys.stderr)
        self.live = self._console.is_terminal and not self._console.is_dumb_terminal and not quiet
        self.narrow = self._console.width < _NARROW
        self._drawn: dict[int, float] = {}
        self._progress = ProgressWithNotice(
            TextColumn("{task.description}"),
            BarColumn(
                8 if self.narrow else 16 if self._console.width < _WIDE else 24,
                style="dim",
                complete_style="cyan",
                finished_style="cyan",
            ),
            TextColumn("{task.completed:>.0f}/{task.total:.0f}", style="dim"),
            TextColumn(" {task.fields[info]}", markup=False),
            console=self._console,
            refresh_per_second=5,
            disable=not self.live,
            transient=True,
        )

    def __enter__(self) -> Bars:
        try:
            self._progress.start()
        except RuntimeError:
            # No thread can be started to draw them.
            self._progress.stop()
            self.live, self._progress.disable = False, True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, label: str, total: int, done: int = 0) -> int:
        """Add a bar; returns its number."""
        return self._progress.add_task(label, total=total, completed=done, info="")

    def update(self, bar: int, done: int, info: str, short: str) -> None:
        """Move a bar, at most every 0.1 s.

        Args:
            bar: its number.
            done: the completed part of its total.
            info: text beside the bar.
            short: the text on a narrow terminal.
        """
        if not self.live:
            return
        now = time.monotonic()
        if now - self._drawn.get(bar, 0.0) < 0.1:
            return
        self._drawn[bar] = now
        from rich.progress import TaskID

        self._progress.update(TaskID(bar), completed=done, info=short if self.narrow else info)

    def line(self, text: str, style: str = "") -> None:
        """Print a line above the bars."""
        if not self._quiet:
            self._console.print(_text(text, style), soft_wrap=not self.live)


def unknown(characters: Sequence[str], ngrams: Sequence[str]) -> str | None:
    """A warning about the parts of a prompt that the model reads as `<unk>`; None if there are none.

    >>> unknown(["z"], ["rk"])
    "unknown to the model, read as <unk>: characters 'z', n-grams 'rk'"
    """

    def listed(kind: str, parts: Sequence[str]) -> list[str]:
        shown = " ".join(map(repr, parts[:_MAX_LISTED])) + (" …" if len(parts) > _MAX_LISTED else "")
        return [f"{kind} {shown}"] if parts else []

    found = listed("characters", characters) + listed("n-grams", ngrams)
    return f"unknown to the model, read as <unk>: {', '.join(found)}" if found else None


def copied(characters: int) -> str | None:
    """A warning about a copy that `--max-copy` could not prevent; None if there was none."""
    return f"a copy of {characters} characters was unavoidable: raise --max-copy" if characters else None


def figure(value: object, digits: int, width: int = 9) -> str:
    """Format a measurement with so many decimals, with fewer or an exponent if that is wider than `width`.

    >>> figure(8.5, 2), figure(123456.789, 3), figure(1.0142e304, 2), figure(None, 2)
    ('8.50', '123456.79', '1e+304', '–')
    """
    # It may be anything, in a damaged log, and an integer too large for a float.
    if not isinstance(value, int | float) or (isinstance(value, int) and abs(value) > 10**300):
        return "–"
    forms = [f"{value:.{n}f}" for n in range(digits, -1, -1)] if abs(value) < 10.0**width else []
    return next((form for form in forms if len(form) <= width), f"{value:.0e}")


def seconds(value: float) -> str:
    """Format a time.

    >>> seconds(7), seconds(83), seconds(3723)
    ('0:07', '1:23', '1:02:03')
    """
    whole = int(value)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"


def size(value: float) -> str:
    """Format a number of bytes.

    >>> size(512), size(5_300_000)
    ('512 B', '5.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def _line(label: str, style: str, message: str) -> None:
    # The text of an exception may have several lines.
    message = safe(" ".join(message.split()))
    if not sys.stderr.isatty():
        # Without rich, which cannot be imported where the disk fails or no file can be opened. If standard error
        # fails, too, the exit code remains.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{label}{message}\n")
        return
    from rich.text import Text

    _console(sys.stderr).print(Text.assemble((label, style), message))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(safe(text), style)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    # A cell of Jupyter runs commands (`!grimmgen …`) on a terminal that shows escape codes as they are.
    in_cell = "JPY_PARENT_PID" in os.environ or os.environ.items() >= _IPYKERNEL.items()
    controllable = stream.isatty() and not in_cell

    class ConsoleOfPipe(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls it where it has caught the error, and would exit with code 1

    return ConsoleOfPipe(
        file=stream,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=None if controllable else True,
        force_terminal=None if controllable else False,
    )
