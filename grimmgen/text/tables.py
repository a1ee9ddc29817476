"""Tables: the texts in one column of a CSV file, or in one field of JSON lines.

A row that cannot be read is counted, and the first is named. If no row can be read, that is an error.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grimmgen.errors import GrimmgenError, UsageError

# Characters of a row, which a quotation mark that is never closed would extend to the end of the file.
_LONGEST = 16 << 20
# Rows from which the column with the text is recognised.
_SAMPLE = 200
_DELIMITERS = ",;\t|"
# Rows after which an unclosed quotation mark is no exception: each costs up to _LONGEST characters read again.
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

    def checked(self, line: int, text: str) -> Iterator[str]:
        """Yield a row's text, if it has no NUL."""
        if "\0" in text:
            self.skip(line, "a NUL")
        else:
            self.good += 1
            yield text

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
    previous = csv.field_size_limit(_LONGEST)
    try:
        yield from _csv_texts(_lines(pieces), column, tabs, rows)
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
    parsed = _json_rows(_lines(pieces), rows)
    sample = list(itertools.islice(parsed, _SAMPLE))
    if field is None and (objects := [value for _, value in sample if isinstance(value, dict)]):
        texts: dict[str, list[str]] = {}
        for name, value in (pair for one in objects for pair in one.items()):
            if isinstance(value, str):
                texts.setdefault(name, []).append(value)
        field = _choose(texts, rows.place, "field", sorted({name for one in objects for name in one}))
    rows.column = field
    for number, value in itertools.chain(sample, parsed):
        text = value.get(field) if isinstance(value, dict) else value
        if not isinstance(text, str):
            missing = isinstance(value, dict) and field not in value
            rows.skip(number, f"no field {field!r}" if missing else f"the field {field!r} is not text")
        elif not _is_unicode(text):
            rows.skip(number, "half of a surrogate pair")
        else:
            yield from rows.checked(number, text)
    rows.end("each line has to be a JSON object with the --field")


def _json_rows(lines: Iterable[str], rows: Rows) -> Iterator[tuple[int, Any]]:
    """The values of the lines that are JSON objects or strings, with their numbers."""
    decode = json.JSONDecoder(object_pairs_hook=_without_repeated_keys).decode
    for number, line in enumerate(lines, 1):
        if len(line) > _LONGEST:
            rows.skip(number, f"longer than {_LONGEST >> 20} MB")
            continue
        try:
            value = decode(line)
        except (ValueError, RecursionError) as error:
            if not line.isspace():
                rows.skip(number, _reason(error))
            continue
        if isinstance(value, dict | str):
            yield number, value
        else:
            rows.skip(number, "not an object")


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
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _csv_texts(lines: Iterator[str], column: str | None, tabs: bool, rows: Rows) -> Iterator[str]:
    first = next(lines, "")
    order = sorted(_DELIMITERS, key=lambda delimiter: (tabs and delimiter != "\t", _DELIMITERS.index(delimiter)))
    heads = {delimiter: _first_row([first], delimiter) for delimiter in order}
    delimiter = max(order, key=lambda delimiter: len(heads[delimiter]))
    parsed = _csv_rows(itertools.chain([first], lines), delimiter, rows)
    _, names = next(parsed, (1, []))
    names = [name.strip() for name in names]
    sample = list(itertools.islice((row for row in parsed), _SAMPLE))
    if column is None:
        texts = {name: [row[at] for _, row in sample if len(row) > at] for at, name in enumerate(names)}
        column = names[0] if len(names) == 1 else _choose(texts, rows.place, "column", names)
    elif column not in names:
        raise UsageError(f"{rows.place} has no column {column[:40]!r}", f"give one of {_listed(names)}")
    rows.column = column
    at, width = names.index(column), len(names)
    for number, row in itertools.chain(sample, parsed):
        if len(row) == width:
            yield from rows.checked(number, row[at])
        elif width == 1:
            # A list of texts whose commas are not quoted.
            yield from rows.checked(number, delimiter.join(row))
        else:
            rows.skip(number, f"{len(row)} cells instead of {width}")


def _first_row(lines: Sequence[str], delimiter: str) -> list[str]:
    try:
        return next(csv.reader(lines, delimiter=delimiter), [])
    except csv.Error:
        return []


def _csv_rows(lines: Iterator[str], delimiter: str, rows: Rows) -> Iterator[tuple[int, list[str]]]:
    """The rows with the number of their first line.

    Where a quotation mark is not closed, its line is skipped, and reading goes on with the next one.
    """
    taken: list[str] = []

    def recorded(lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            taken.append(line)
            if len(line) > _LONGEST:
                raise csv.Error(f"longer than {_LONGEST >> 20} MB")
            yield line

    number, unclosed = 1, 0
    reader = csv.reader(recorded(lines), delimiter=delimiter, strict=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            rows.skip(number, "a quotation mark that is not closed" if len(taken) > 1 else str(error))
            unclosed += len(taken) > 1
            if unclosed > _MOST_UNCLOSED:
                raise GrimmgenError(
                    f"{rows.place} has more than {_MOST_UNCLOSED} unclosed quotation marks ({rows.first_bad})",
                    "quotation marks inside a cell have to be doubled",
                ) from None
            lines = itertools.chain(taken[1:], lines)
            reader = csv.reader(recorded(lines), delimiter=delimiter, strict=True)
            number += 1
        else:
            if row:
                yield number, row
            number += len(taken)
        taken.clear()


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


def _lines(pieces: Iterable[str]) -> Iterator[str]:
    """Lines with their ends; what is longer than _LONGEST is cut there, and the rest of that line dropped."""
    rest: list[str] = []
    length = 0
    decoder = io.IncrementalNewlineDecoder(None, translate=True)
    for piece in itertools.chain(pieces, [""]):
        *whole, last = decoder.decode(piece, final=not piece).split("\n")
        if whole:
            if rest:
                whole[0] = "".join([*rest, whole[0]])[: _LONGEST + 1]
                rest, length = [], 0
            for line in whole:
                yield line + "\n"
        if length <= _LONGEST:
            rest.append(last)
            length += len(last)
    if length:
        yield "".join(rest)[: _LONGEST + 1]
