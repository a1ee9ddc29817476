"""Formats: the text of a source, whatever it is stored in.

Texts, web pages and books are one text each (`read_text`); tables and JSON lines have one in each row
(`read_records`). What had to be left out or guessed is noted in a `Reading`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError
from grimmgen.reading import archives, decoding, file_kinds, gutenberg, sources, tables
from grimmgen.reading.archives import Archive
from grimmgen.reading.decoding import Decoded
from grimmgen.reading.sources import Source
from grimmgen.reading.tables import Rows

_TABLES = {"csv", "jsonl"}
# Bytes of a compressed file by which its encoding is recognised, since all of it would have to be unpacked twice.
_EXAMINED = 64 << 20
# Bytes of a book that is compressed or in an archive, and has to be unpacked to memory.
_LARGEST_BOOK = 256 << 20


@dataclass
class Reading:
    """What was noticed while a source was read; complete when all of it was.

    Attributes:
        decoded: how its bytes were decoded.
        boilerplate: characters of licences that were dropped.
        rows: of a table: its column, and how many rows could not be read.
    """

    decoded: Decoded | None = None
    boilerplate: int = 0
    rows: Rows | None = None


def is_table(source: Source) -> bool:
    """Return whether every row of a source is a document of its own."""
    return source.format in _TABLES


def read_text(source: Source, options: Configuration, reading: Reading) -> Iterator[str]:
    """Yield the text of a source that is not a table, piece by piece; the pieces are cut anywhere.

    Args:
        source: of any format but csv and jsonl.
        options: `encoding` and `keep_boilerplate`.
        reading: is filled in.

    Raises:
        GrimmgenError: the source cannot be read or decoded.
        IntegrityError: an archive or a book is damaged.
    """

    def dropped(characters: int) -> None:
        reading.boilerplate += characters

    text = _book(source, options, reading) if source.format == "epub" else _text(source, options, reading)
    yield from text if options.keep_boilerplate else gutenberg.without_licence(text, dropped)


def _text(source: Source, options: Configuration, reading: Reading) -> Iterator[str]:
    reading.decoded = decoded = recognise(source, options)
    with source.open() as file:
        pieces = decoding.decode(file, decoded.encoding, source.place)
        if source.format == "html":
            # lxml is loaded only for pages and books.
            from grimmgen.reading import markup

            pieces = markup.page_text(pieces)
        yield from pieces


def _book(source: Source, options: Configuration, reading: Reading) -> Iterator[str]:
    from grimmgen.reading import markup

    separator = ""
    for name, content in markup.book_chapters(_archive(source)):
        place = f"{source.place}/{name}"
        decoded = _recognise(partial(io.BytesIO, content), place, "html", options)
        if reading.decoded is None or decoded.encoding != decoding.UTF8:
            reading.decoded = decoded
        text = "".join(markup.page_text(decoding.decode(io.BytesIO(content), decoded.encoding, place)))
        if text:
            yield separator + text
            separator = "\n"


def _archive(source: Source) -> Archive:
    """Open a book, which may be compressed or in an archive itself."""
    if not source.members and not archives.is_compressed(source.path.name):
        with sources.wrap_read_errors(source.path):
            return Archive(source.path, source.place)
    with source.open() as file:
        content = file.read(_LARGEST_BOOK + 1)
    if len(content) > _LARGEST_BOOK:
        raise GrimmgenError(
            f"{source.place} is larger than {_LARGEST_BOOK >> 20} MB", "unpack it and give the book"
        )
    return Archive(io.BytesIO(content), source.place)


def read_records(source: Source, options: Configuration, reading: Reading) -> Iterator[str]:
    """Yield the text of each row of a table.

    Args:
        source: of the format csv or jsonl.
        options: `encoding`, `column` and `field`.
        reading: is filled in.

    Raises:
        GrimmgenError: the source cannot be read or decoded, or none of its rows.
        UsageError: there is no such column or field, or none was chosen and there are several.
        IntegrityError: the archive is damaged.
    """
    reading.decoded = decoded = recognise(source, options)
    reading.rows = rows = Rows(source.place)
    with source.open() as file:
        pieces = decoding.decode(file, decoded.encoding, source.place, nuls=True)
        if source.format == "jsonl":
            yield from tables.json_texts(pieces, options.field, rows)
        else:
            tabs = archives.without_compression(source.name).lower().endswith(".tsv")
            yield from tables.csv_texts(pieces, options.column, tabs, rows)


def recognise(source: Source, options: Configuration) -> Decoded:
    """Say how the bytes of a text, a web page or a table are decoded.

    Raises:
        GrimmgenError: the source cannot be read, is not text, or its encoding is not certain.
    """
    packed = source.members or archives.is_compressed(source.path.name)
    return _recognise(source.open, source.place, source.format, options, _EXAMINED if packed else None)


def _recognise(
    open_file: Callable[[], BinaryIO],
    place: str,
    form: sources.Format,
    options: Configuration,
    examined: int | None = None,
) -> Decoded:
    if options.encoding is not None:
        return Decoded(options.encoding, "--encoding")
    declared = None
    if form == "html":
        from grimmgen.reading import markup

        with open_file() as file:
            declared = markup.declared_encoding(file.read(file_kinds.HEAD))
    return decoding.recognise(open_file, place, declared, form in _TABLES, examined)
