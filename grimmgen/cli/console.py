"""What the user sees: lines, tables, bars. The sole importer of rich.

Text and data go to standard output, always UTF-8 and never coloured in a pipe; progress, hints, warnings and
errors go to standard error. Names and texts that come from files and servers are shown as they are, never
read as markup, and never reach a terminal raw.

rich is imported by what draws with it: who asks for help, or tells a story, does not wait for all of it.
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
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# Tables in a pipe have their natural width: what is written there must not depend on the terminal.
_PIPE_WIDTH = 160
# Lines of a text there.
_TEXT_WIDTH = 80
_NARROW = 70
# Less than this leaves no room for a long bar beside the longest figures.
_WIDE = 100
# Of what the model does not know so much is named.
_NAMED = 20
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


def one_line(text: str) -> str:
    r"""A name or a value within one line: a line end in it cannot make up a row, or another value.

    >>> one_line("sly-fox\nold-owl")
    'sly-fox\\nold-owl'
    """
    return safe(text).replace("\n", "\\n").replace("\t", "\\t")


def error(message: str) -> None:
    """One line: what went wrong, where, and what to do about it."""
    _line("error: ", "bold red", message)


def warn(message: str) -> None:
    """One line about something that may surprise."""
    _line("warning: ", "yellow", message)


def note(message: str) -> None:
    """One line about what goes on."""
    _line("", "", message)


def trace() -> None:
    """The traceback of the error at hand, on standard error."""
    with contextlib.suppress(OSError):
        sys.stderr.write(safe(traceback.format_exc()))


def hint(command: str, what: str) -> None:
    """One line with the command to type next."""
    from rich.text import Text

    console = _console(sys.stderr)
    console.print(Text.assemble(f"{safe(what)}: ", (safe(command), "bold cyan")), soft_wrap=True)


def out(message: str = "") -> None:
    """One line of result, on standard output."""
    _console(sys.stdout).print(_text(message), soft_wrap=True)


def sentence(message: str) -> None:
    """One line of result, on standard output; a terminal breaks it between words."""
    _console(sys.stdout).print(_text(message), soft_wrap=not sys.stdout.isatty())


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


class Lines:
    """Text on standard output, broken between words where a line would leave the terminal; raw in a pipe."""

    def __init__(self) -> None:
        self._width = text_width() - 1 if sys.stdout.isatty() else 0
        self._column = 0
        self._begun = ""  # a word that has not ended yet
        self._space = ""  # before it

    def write(self, text: str) -> None:
        """Go on; a word is shown when it has ended, all that there is at a line's end."""
        if not self._width:
            write(text)
            return
        from rich.cells import cell_len

        shown = list[str]()
        *ended, self._begun = re.split("([ \n])", self._begun + text)
        for word, space in zip(ended[::2], ended[1::2], strict=True):
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
        # What has no spaces is not waited for; the terminal breaks it.
        if cell_len(safe(self._begun)) >= self._width:
            shown += self._space, self._begun
            self._column, self._space, self._begun = 1, "", ""
        write("".join(shown))


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
    import rich.box
    from rich.table import Table

    grid = [[one_line(str(cell)) for cell in row] for row in rows]
    width = {c: max(len(c), *(len(row[i]) for row in grid), 0) for i, c in enumerate(columns)}
    console = _console(sys.stdout)
    shown = list(columns)
    for column in dispensable:
        # Three columns of space and rule between two cells.
        if sum(width[c] + 3 for c in shown) - 1 > console.width:
            shown.remove(column)
    made = Table(box=rich.box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    made.title = _text(title, "italic") if title else None
    for column in shown:
        flush = "right" if column in right else "left"
        made.add_column(_text(column), justify=flush, overflow="fold")  # type: ignore[arg-type]
    for number, row in enumerate(grid):
        cells = (_text(cell) for column, cell in zip(columns, row, strict=True) if column in shown)
        made.add_row(*cells, style="bold" if number == marked else None)
    console.print(made)


def facts(pairs: Sequence[tuple[str, object]], to_error: bool = False) -> None:
    """Names and values, one pair a line; on a terminal a long value is folded beside its name."""
    from rich.table import Table

    stream = sys.stderr if to_error else sys.stdout
    if stream.isatty():
        made = Table(box=None, show_header=False, pad_edge=False)
        made.add_column(style="dim", no_wrap=True)
        made.add_column(overflow="fold")
        for name, value in pairs:
            made.add_row(_text(name), _text(one_line(str(value))))
        _console(stream).print(made)
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
) -> None:
    """A text of which each piece has a level, with a legend, on standard output.

    A terminal with 256 colours or more shows the levels as colours; elsewhere each line of the text has a line of
    numbers under it, of which 0 is left out.

    Args:
        title: above it.
        cells: what is shown of each character, its level, and whether a line ends after it.
        levels: the name of each.
        unit: of the names.
        palette: paper and ink of each level.
    """
    from rich.cells import cell_len
    from rich.text import Text

    console = _console(sys.stdout)
    coloured = not console.no_color and console.color_system in {"256", "truecolor"}
    width = text_width()
    console.print(_text(title, "bold"))
    styles = [f"{ink} on {paper}" for paper, ink in palette]
    for line in _folded(cells, width):
        if coloured:
            console.print(Text.assemble(*((shown, styles[level]) for shown, level, _ in line)), no_wrap=True)
            continue
        marks = "".join((str(level) if level else " ").ljust(cell_len(shown), " ") for shown, level, _ in line)
        console.print(Text("".join(shown for shown, _, _ in line).rstrip()), soft_wrap=True)
        if marks.strip():
            console.print(Text(marks.rstrip()), soft_wrap=True)
    legend = Text()
    for number, name in enumerate(levels):
        legend.append(f" {name} " if coloured else f"{number}: {name}  ", styles[number] if coloured else "")
    console.print(legend.append(f" {unit}"))


def _folded(cells: Iterable[tuple[str, int, bool]], width: int) -> list[list[tuple[str, int, bool]]]:
    """Lines that are no wider than that, broken after a space where there is one."""
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
    """Lines of characters, on standard output, some characters of which have a style on a terminal."""
    from rich.text import Text

    console = _console(sys.stdout)
    for line in lines:
        text = Text(line)
        for character, style in styles.items():
            text.highlight_regex(re.escape(character), style)
        console.print(text, soft_wrap=True)


def text_width() -> int:
    """How wide lines may be: those of the terminal; in a pipe always as many."""
    return _console(sys.stdout).width if sys.stdout.isatty() else _TEXT_WIDTH


def has_unicode() -> bool:
    """Whether standard output shows more than ASCII: a terminal whose locale names another encoding may not."""
    # Python itself sets LC_CTYPE to this where the locale is C (PEP 538); what the user had said is in LANG.
    coerced = os.environ.get("LC_CTYPE") == "C.UTF-8"
    named = [os.environ.get(name) for name in ("LC_ALL", "LANG" if coerced else "LC_CTYPE", "LANG")]
    locale = next(filter(None, named), "UTF-8")
    return not sys.stdout.isatty() or "utf" in locale.lower()


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

    Attributes:
        live: whether there are bars.
        narrow: whether there is room for little.
        notice: a line below the bars; set by a signal's handler, too, since the bars look for it themselves.
    """

    def __init__(self, quiet: bool = False) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        bars = self

        class Noticing(Progress):
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
        self._progress = Noticing(
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
        from rich.progress import TaskID

        self._progress.update(TaskID(bar), completed=done, info=short if self.narrow else info)

    def line(self, text: str, style: str = "") -> None:
        """A line above the bars."""
        if not self._quiet:
            self._console.print(_text(text, style), soft_wrap=not self.live)


def unknown(characters: Sequence[str], ngrams: Sequence[str]) -> str | None:
    """What to say of the parts of a prompt that the model does not know; None if it knows all.

    >>> unknown(["z"], [])
    "the model has never seen 'z': it reads <unk> there and goes on"
    """

    def named(parts: Sequence[str]) -> str:
        return " ".join(map(repr, parts[:_NAMED])) + (" …" if len(parts) > _NAMED else "")

    said = [f"has never seen {named(characters)}"] * bool(characters)
    said += [f"does not know {named(ngrams)}"] * bool(ngrams)
    return f"the model {' and '.join(said)}: it reads <unk> there and goes on" if said else None


def copied(characters: int) -> str | None:
    """What to say of a copy that `--max-copy` could not prevent; None if there was none."""
    return f"there was no way on but a copy of {characters} characters: raise --max-copy" if characters else None


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
    message = safe(" ".join(message.split()))
    if not sys.stderr.isatty():
        # Without rich: where the disk fails, or no file can be opened any more, it cannot be imported either.
        # What nobody hears the exit code says.
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{label}{message}\n")
        return
    from rich.text import Text

    _console(sys.stderr).print(Text.assemble((label, style), message), soft_wrap=True)


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(safe(text), style)


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    return Console(
        file=stream,
        width=None if stream.isatty() else _PIPE_WIDTH,
        highlight=False,
        markup=False,
        emoji=False,
        no_color=None if stream.isatty() else True,
        force_terminal=None if stream.isatty() else False,
    )
