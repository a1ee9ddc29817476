"""Tables: the texts in one column of a CSV file, or in one field of JSON lines.

A row that cannot be read is counted, and the first is named. If no row can be read, that is an error.
"""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grimmgen.errors import GrimmgenError, UsageError

# Characters of a row, which a quotation mark that is never closed would extend to the end of the file.
LONGEST_ROW = 16 << 20
# Characters whose rows are parsed at once.
_BLOCK = 1 << 18
# Rows from which the column with the text is recognised.
_SAMPLE = 200
_DELIMITERS = ",;\t|"
# Rows after which an unclosed quotation mark is no exception: each costs up to LONGEST_ROW characters read again.
_MOST_UNCLOSED = 100
_PREFERRED = "text"


@dataclass
class Rows:
    """What is known of a table's rows when they have been read.

    Attributes:
        place: the file, for messages.
        column: which has the text; None until it is chosen.
        good: rows that were read.
        bad: rows that were not.
        first_bad: the first of these: its line and the reason.
    """

    place: str
    column: str | None = None
    good: int = 0
    bad: int = 0
    first_bad: str = ""

    def skip(self, line: int, reason: str) -> None:
        """Count a row that cannot be read."""
        self.bad += 1
        self.first_bad = self.first_bad or f"line {line}: {reason}"

    def end(self, remedy: str) -> None:
        """Raise GrimmgenError if there are bad rows only."""
        if self.bad and not self.good:
            raise GrimmgenError(f"{self.place} has no row that can be read ({self.first_bad})", remedy)


def csv_texts(pieces: Iterable[str], column: str | None, tabs: bool, rows: Rows) -> Iterator[str]:
    """Yield the texts of one column of a CSV file, whose first row has the names of the columns.

    Args:
        pieces: of the file, cut anywhere.
        column: its name; None takes the only one that has text.
        tabs: whether columns are more likely separated by tabs than by commas.
        rows: is filled in.

    Raises:
        UsageError: there is no such column, or several have text.
        GrimmgenError: no row can be read.
    """
    previous = csv.field_size_limit(LONGEST_ROW)
    try:
        for texts in _csv_texts(_line_lists(pieces), column, tabs, rows):
            yield from texts
    finally:
        csv.field_size_limit(previous)
    rows.end("quotation marks inside a cell have to be doubled, and all rows need as many cells as the first")


def json_texts(pieces: Iterable[str], field: str | None, rows: Rows) -> Iterator[str]:
    """Yield the texts of one field of JSON lines; a line may also be a string.

    Args:
        pieces: of the file, cut anywhere.
        field: its name; None takes "text", or else the only one that has text.
        rows: is filled in.

    Raises:
        UsageError: there is no such field, or several have text.
        GrimmgenError: no line can be read.
    """
    line_lists = _line_lists(pieces)
    first = next(line_lists, [])
    if field is None:
        field = _choose_field(first[:_SAMPLE], rows.place)
    rows.column = field
    # As it stands in a line; a field that is there twice is looked at more closely.
    key = json.dumps(field, ensure_ascii=False)
    # JSONDecoder.decode would look for white space as long as the parser takes.
    scan, scan_all = (
        json.JSONDecoder().raw_decode,
        json.JSONDecoder(object_pairs_hook=_without_repeated_keys).raw_decode,
    )
    number = 0
    for lines in itertools.chain([first], line_lists):
        for line in lines:
            number += 1
            if len(line) > LONGEST_ROW:
                rows.skip(number, f"longer than {LONGEST_ROW >> 20} MB")
                continue
            line = line.strip()
            if not line:
                continue
            try:
                value, end = (scan if line.count(key) < 2 else scan_all)(line)
            except (ValueError, RecursionError) as error:
                rows.skip(number, _reason(error))
                continue
            text = value.get(field) if isinstance(value, dict) else value
            if end < len(line):
                rows.skip(number, f"not JSON (column {end + 1})")
            elif not isinstance(text, str):
                rows.skip(number, _missing(value, field))
            elif "\0" in text:
                rows.skip(number, "a NUL")
            elif not text.isascii() and not _is_unicode(text):
                rows.skip(number, "half of a surrogate pair")
            else:
                rows.good += 1
                yield text
    rows.end("each line has to be a JSON object with the --field")


def _choose_field(lines: Sequence[str], place: str) -> str | None:
    """The field that has the text, by the first lines; None if they are no objects."""
    texts: dict[str, list[str]] = {}
    names: set[str] = set()
    for line in lines:
        try:
            value = json.loads(line) if len(line) <= LONGEST_ROW else None
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            names |= value.keys()
            for name, text in value.items():
                if isinstance(text, str):
                    texts.setdefault(name, []).append(text)
    return _choose(texts, place, "field", sorted(names)) if names else None


def _missing(value: object, field: str | None) -> str:
    if not isinstance(value, dict):
        return "not an object"
    return f"the field {field!r} is not text" if field in value else f"no field {field!r}"


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        key = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {key[:40]!r} twice")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON (column {error.colno})"
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)


def _is_unicode(text: str) -> bool:
    """Whether a text can be encoded: JSON can have half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_texts(
    line_lists: Iterator[list[str]], column: str | None, tabs: bool, rows: Rows
) -> Iterator[Iterable[str]]:
    """The texts of `csv_texts`, those of many rows at once."""
    pending = next(line_lists, [""])
    order = sorted(_DELIMITERS, key=lambda delimiter: (tabs and delimiter != "\t", _DELIMITERS.index(delimiter)))
    delimiter = max(order, key=lambda delimiter: len(_first_rows(pending, delimiter, 1)[0]))
    (names, *sample), used = _first_rows(pending, delimiter, _SAMPLE), _header_lines(pending, delimiter)
    names = [name.strip() for name in names]
    if column is None:
        texts = {name: [row[at] for row in sample if len(row) > at] for at, name in enumerate(names)}
        column = names[0] if len(names) == 1 else _choose(texts, rows.place, "column", names)
    elif column not in names:
        raise UsageError(f"{rows.place} has no column {column[:40]!r}", f"give one of {_listed(names)}")
    rows.column = column
    table = _Table(delimiter, names.index(column), len(names), rows, used + 1)
    pending = pending[used:]
    for lines in itertools.chain(line_lists, [None]):
        size = sum(map(len, pending))
        at = len(pending) if lines is None or size > LONGEST_ROW else _row_boundary(pending)
        texts_read, left = table.parse(pending[:at], final=lines is None or size > LONGEST_ROW)
        yield texts_read
        pending = [*left, *pending[at:], *(lines or [])]
    yield table.parse(pending, final=True)[0]


def _first_rows(lines: Sequence[str], delimiter: str, number: int) -> list[list[str]]:
    """Up to so many rows that are not empty; at least one."""
    rows: list[list[str]] = []
    reader = csv.reader(_ended(lines), delimiter=delimiter)
    with contextlib.suppress(csv.Error):
        rows.extend(itertools.islice(filter(None, reader), number))
    return rows or [[""]]


def _header_lines(lines: Sequence[str], delimiter: str) -> int:
    """The number of lines up to the end of the first row."""
    reader = csv.reader(_ended(lines), delimiter=delimiter)
    with contextlib.suppress(csv.Error):
        next(filter(None, reader), None)
    return reader.line_num


def _ended(lines: Sequence[str]) -> io.StringIO:
    return io.StringIO("\n".join([*lines, ""]), newline="\n")


def _row_boundary(lines: Sequence[str]) -> int:
    """The last place between lines before which the quotation marks are paired, most likely between two rows; or 0."""
    marks = "".join(lines).count('"')
    at = len(lines)
    while marks % 2:
        at -= 1
        marks -= lines[at].count('"')
    return at


@dataclass
class _Table:
    """Parses the rows of a CSV file.

    Attributes:
        delimiter: between columns.
        column: number of the one with the text.
        width: number of columns.
        rows: is filled in.
        line: number of the next line.
        unclosed: quotation marks that were not closed.
    """

    delimiter: str
    column: int
    width: int
    rows: Rows
    line: int
    unclosed: int = 0

    def parse(self, lines: list[str], final: bool) -> tuple[Iterable[str], list[str]]:
        """Parse lines; return the texts, and lines at the end that are the beginning of a row.

        Args:
            lines: from the beginning of a row on.
            final: whether no row goes on behind them.
        """
        text = "\n".join([*lines, ""])
        if "\0" not in text and len(text) <= LONGEST_ROW:
            reader = csv.reader(io.StringIO(text, newline="\n"), delimiter=self.delimiter, strict=True)
            with contextlib.suppress(csv.Error):
                found = list(filter(None, reader))
                if {self.width}.issuperset(map(len, found)):
                    self.line += len(lines)
                    self.rows.good += len(found)
                    return map(operator.itemgetter(self.column), found), []
        return self._parse_row_by_row(lines, final)

    def _parse_row_by_row(self, lines: list[str], final: bool) -> tuple[list[str], list[str]]:
        """Likewise, where some row is bad: the line of a quotation mark that is not closed is skipped."""
        texts: list[str] = []
        # The lines of the current row; and whether there are no more.
        taken: list[str] = []
        ended = False

        def recorded(lines: Iterable[str]) -> Iterator[str]:
            nonlocal ended
            for line in lines:
                taken.append(line)
                if len(line) > LONGEST_ROW:
                    raise csv.Error(f"longer than {LONGEST_ROW >> 20} MB")
                yield line + "\n"
            ended = True

        waiting: Iterator[str] = iter(lines)
        reader = csv.reader(recorded(waiting), delimiter=self.delimiter, strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return texts, []
            except csv.Error as error:
                if ended and not final:
                    return texts, taken
                self._skip(len(taken), str(error))
                ended = False
                waiting = itertools.chain(taken[1:], waiting)
                reader = csv.reader(recorded(waiting), delimiter=self.delimiter, strict=True)
                self.line += 1
            else:
                self._add(row, texts)
                self.line += len(taken)
            taken = []

    def _skip(self, lines: int, error: str) -> None:
        """Count a row that cannot be parsed, and of which so many lines were read."""
        unclosed = lines > 1
        self.rows.skip(self.line, "a quotation mark that is not closed" if unclosed else error)
        self.unclosed += unclosed
        if self.unclosed > _MOST_UNCLOSED:
            raise GrimmgenError(
                f"{self.rows.place} has more than {_MOST_UNCLOSED} unclosed quotation marks ({self.rows.first_bad})",
                "quotation marks inside a cell have to be doubled",
            )

    def _add(self, row: list[str], texts: list[str]) -> None:
        # A list of texts whose commas are not quoted has one column.
        text = (
            row[self.column] if len(row) == self.width else self.delimiter.join(row) if self.width == 1 else None
        )
        if not row:
            return
        if text is None:
            self.rows.skip(self.line, f"{len(row)} cells instead of {self.width}")
        elif "\0" in text:
            self.rows.skip(self.line, "a NUL")
        else:
            self.rows.good += 1
            texts.append(text)


def _choose(texts: Mapping[str, Sequence[str]], place: str, what: str, names: Sequence[str]) -> str:
    """Return the column that is called text, or the only one that has text, or one with much longer texts."""
    for name in texts:
        if name.lower() == _PREFERRED:
            return name
    lengths = {name: _text_length(values) for name, values in texts.items()}
    ranked = sorted((name for name, length in lengths.items() if length), key=lambda name: -lengths[name])
    if not ranked:
        raise UsageError(f"{place} has no {what} with text", f"give one of {_listed(names)} as --{what}")
    if len(ranked) > 1 and lengths[ranked[0]] < 4 * lengths[ranked[1]]:
        raise UsageError(
            f"{place} has several {what}s with text: {_listed(ranked)}", f"choose one, as in --{what} {ranked[0]}"
        )
    return ranked[0]


def _text_length(values: Sequence[str]) -> float:
    """The mean length of a column's cells; 0 if most of them are numbers, dates, codes or repeated words."""
    filled = [value for value in values if value.strip()]
    if not filled:
        return 0.0
    shown = ["".join(value[:1000].split()) for value in filled]
    worded = sum(2 * sum(map(str.isalpha, value)) > len(value) for value in shown)
    if worded < 0.8 * len(filled) or len(set(filled)) < 0.5 * len(filled):
        return 0.0
    return sum(map(len, filled)) / len(filled)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(name[:40] for name in names[:8]) + (", …" if len(names) > 8 else "")


def _line_lists(pieces: Iterable[str]) -> Iterator[list[str]]:
    """Lists of lines without their ends; of a line that is longer than LONGEST_ROW, the rest is dropped."""
    lines: list[str] = []
    size = 0
    rest: list[str] = []
    length = 0
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for piece in itertools.chain(pieces, [""]):
        *whole, last = decoder.decode(piece, final=not piece).split("\n")
        if whole:
            if rest:
                whole[0] = "".join([*rest, whole[0]])[: LONGEST_ROW + 1]
                rest, length = [], 0
            lines += whole
            size += len(piece)
            if size > _BLOCK:
                yield lines
                lines, size = [], 0
        if length <= LONGEST_ROW:
            rest.append(last)
            length += len(last)
    if length:
        lines.append("".join(rest)[: LONGEST_ROW + 1])
    yield lines
