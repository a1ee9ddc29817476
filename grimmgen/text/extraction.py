"""Extraction: the text of a corpus as one file in UTF-8, with a NUL after each document.

The sources are read once, and everything else reads the extracted text, so that a file that changes meanwhile does no
harm. A text of up to IN_MEMORY bytes is kept in memory; a larger one in a file of the cache, which is found again by
the hashes of its sources and the options that it was read with.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import READING, Configuration
from grimmgen.errors import IntegrityError
from grimmgen.io import files, paths
from grimmgen.reading import formats
from grimmgen.reading.formats import Reading
from grimmgen.reading.sources import Skipped, Source
from grimmgen.text import documents

FORMAT = 1
# Bytes of text up to which it is kept in memory.
IN_MEMORY = 64 << 20
# Number of files that are kept in the cache, the most recently used ones.
KEPT = 3

# Bytes of a file up to which it is read at once, so that what is recognised in it is what is read.
_AT_ONCE = 8 << 20
_PIECE = 1 << 20
# Characters at the beginning of a text that are looked at to recognise a list.
_LOOKED_AT = 1 << 16
_LOCK_TIMEOUT = 3600.0


@dataclass(frozen=True)
class Extracted:
    """What was read from one source.

    Attributes:
        name: of the source.
        place: of its file, for messages.
        sha256: of its text in UTF-8, without the last NUL.
        documents: number of its documents.
        row_by_row: whether they are parts of it, such as its lines.
        size: bytes of its text.
        encoding: that its bytes were decoded from, and why; None if it is none.
        boilerplate: characters of licences that were dropped.
        column: of a table, which was chosen.
        bad_rows: of a table, that could not be read.
        first_bad: the first of them.
        listed: whether it was read as one document, but looks like a list.
    """

    name: str
    place: str
    sha256: str
    documents: int
    row_by_row: bool
    size: int
    encoding: tuple[str, str] | None = None
    boilerplate: int = 0
    column: str | None = None
    bad_rows: int = 0
    first_bad: str = ""
    listed: bool = False

    @property
    def is_utf8(self) -> bool:
        """Whether its bytes were UTF-8, or no encoding had to be known."""
        return self.encoding is None or codecs.lookup(self.encoding[0]).name == "utf-8"

    def to_json(self) -> dict[str, Any]:
        """A JSON value for the report of a corpus."""
        value = dataclasses.asdict(self)
        encoding, reason = value.pop("encoding") or (None, None)
        return {**value, "encoding": encoding, "encoding_reason": reason}


@dataclass(frozen=True)
class Extract:
    """The text of a corpus.

    Attributes:
        content: the text, or the path of a file with it.
        ends: the position after each document, that of its NUL, [N].
        sources: what was read, in the order of the documents.
        skipped: sources without any text.
    """

    content: bytes | Path
    ends: NDArray[np.int64]
    sources: tuple[Extracted, ...]
    skipped: tuple[Skipped, ...] = ()

    def bounds(self, number: int) -> tuple[int, int]:
        """The positions between which the document of a number is."""
        return int(self.ends[number - 1]) + 1 if number else 0, int(self.ends[number])

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open the text.

        Raises:
            GrimmgenError: the file of the cache cannot be read.
        """
        if isinstance(self.content, bytes):
            yield io.BytesIO(self.content)
            return
        with files.wrap_os_errors(f"cannot read {self.content}"), files.open_regular(self.content) as file:
            yield file


def extract(
    sources: Sequence[Source], options: Configuration, notify: Callable[[str], None] | None = None
) -> Extract:
    """Read sources.

    Args:
        sources: in the order that their documents are to have.
        options: how they are read (`grimmgen.configuration.READING`).
        notify: called with a message if another process is reading the same.

    Raises:
        GrimmgenError: a source cannot be read, or the cache cannot be written.
        IntegrityError: a source has changed while it was read.
    """
    if sum(_size(source) for source in sources) <= IN_MEMORY:
        memory = _Memory()
        with contextlib.suppress(_TooLargeError):
            return memory.extract(_extract(sources, options, memory))
    key = _key(sources, options)
    directory = paths.text_cache_directory()
    path = directory / f"{key}.text"
    if (found := _open(path)) is None:
        files.make_directory(directory)
        with files.locked(directory / ".lock", "the cache of texts", _LOCK_TIMEOUT, notify):
            files.sweep(directory)
            if (found := _open(path)) is None:
                files.remove_directory(path)
                _write(path, sources, options)
                if _key(sources, options) != key:
                    path.unlink()
                    raise IntegrityError("the text has changed while it was read", "run the command again")
                found = _open(path)
            if found is None:
                raise IntegrityError(f"{path} does not hold what was just written", "check the disk")
            _remove_old(directory, path)
    with contextlib.suppress(OSError):
        os.utime(path)
    return found


class _TooLargeError(Exception):
    """The text is too large for the memory."""


@dataclass
class _Memory:
    """Keeps an extracted text in memory."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def write(self, content: bytes) -> None:
        self.parts.append(content)
        self.size += len(content)
        if self.size > IN_MEMORY:
            raise _TooLargeError

    def extract(self, read: tuple[list[Extracted], list[Skipped]]) -> Extract:
        content = b"".join(self.parts)
        self.parts.clear()
        ends = np.flatnonzero(np.frombuffer(content, np.uint8) == 0)
        return Extract(content, ends, tuple(read[0]), tuple(read[1]))


@dataclass(frozen=True)
class _ReadAtOnce(Source):
    """A source whose bytes are in memory."""

    content: bytes = b""

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content)


def _extract(
    sources: Sequence[Source], options: Configuration, output: Any
) -> tuple[list[Extracted], list[Skipped]]:
    """Write the text of all sources to `output`; return what was read and what has no text."""
    read, skipped = [], []
    for source in sources:
        found = _extract_source(source, options, output)
        if found.documents:
            read.append(found)
        else:
            skipped.append(Skipped(source.name, "empty"))
    return read, skipped


def _extract_source(source: Source, options: Configuration, output: Any) -> Extracted:
    reading, digest, beginning = Reading(), hashlib.sha256(), list[str]()
    table = formats.is_table(source)
    if _size(source) <= _AT_ONCE:
        with source.open() as file:
            content = file.read(_AT_ONCE + 1)
        if len(content) <= _AT_ONCE:
            fields = {one.name: getattr(source, one.name) for one in dataclasses.fields(source)}
            source = _ReadAtOnce(**fields, content=content)
    if table:
        marked = documents.end_records(formats.read_records(source, options, reading))
    else:
        pieces = formats.read_text(source, options, reading)
        marked = documents.end_documents(_noting_beginning(pieces, beginning), options.documents)
    count = size = 0
    between = b""  # the NUL after a document, which is hashed if another one follows
    for piece in marked:
        content = piece.encode("utf-8", "replace")
        output.write(content)
        count += content.count(b"\0")
        size += len(content)
        digest.update(between)
        between = b"\0" if content.endswith(b"\0") else b""
        digest.update(content.removesuffix(b"\0"))
    decoded, rows = reading.decoded, reading.rows
    return Extracted(
        source.name,
        source.place,
        digest.hexdigest(),
        count,
        table or options.documents != "file",
        size,
        (decoded.encoding, decoded.reason) if decoded else None,
        reading.boilerplate,
        rows.column if rows else None,
        rows.bad if rows else 0,
        rows.first_bad if rows else "",
        not table and options.documents == "file" and documents.looks_like_a_list("".join(beginning)[:_LOOKED_AT]),
    )


def _noting_beginning(pieces: Iterator[str], beginning: list[str]) -> Iterator[str]:
    size = 0
    for piece in pieces:
        if size < _LOOKED_AT:
            beginning.append(piece[:_LOOKED_AT])
            size += len(piece)
        yield piece


def _size(source: Source) -> int:
    """The bytes of a source's file; 0 if it cannot be read, which is found when it is."""
    try:
        return source.path.stat().st_size
    except OSError:
        return 0


def _key(sources: Sequence[Source], options: Configuration) -> str:
    """A hash of everything that the text depends on."""
    digests: dict[Path, str] = {}
    for source in sources:
        if source.path not in digests:
            with files.wrap_os_errors(f"cannot read {source.path}"), source.path.open("rb") as file:
                digests[source.path] = hashlib.file_digest(file, "sha256").hexdigest()
    contents = [(s.name, s.members, s.format, digests[s.path]) for s in sources]
    value = [FORMAT, {name: getattr(options, name) for name in READING}, contents]
    return hashlib.sha256(json.dumps(value).encode("utf-8", "surrogateescape")).hexdigest()[:32]


# --- the cache ------------------------------------------------------------------------------------------------
# A file is the text, then a JSON object with what was read, then the length of the object (8 bytes) and the CRC-32 of
# all that (4 bytes).


@dataclass
class _Checked:
    """Computes the CRC-32 of what is written."""

    file: BinaryIO
    checksum: int = 0

    def write(self, content: bytes) -> None:
        self.file.write(content)
        self.checksum = zlib.crc32(content, self.checksum)


_TRAILER = 12


def _write(path: Path, sources: Sequence[Source], options: Configuration) -> None:
    with files.atomic_writer(path) as file:
        output = _Checked(file)
        read, skipped = _extract(sources, options, output)
        value = {
            "sources": [dataclasses.asdict(source) for source in read],
            "skipped": [dataclasses.asdict(one) for one in skipped],
        }
        content = json.dumps(value).encode()
        output.write(content)
        output.write(len(content).to_bytes(8, "little"))
        file.write(output.checksum.to_bytes(4, "little"))


def _open(path: Path) -> Extract | None:
    """Open a file of the cache; None if it is missing or damaged."""
    try:
        with files.open_regular(path) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(size - _TRAILER)
            trailer = file.read(_TRAILER)
            length = size - _TRAILER - int.from_bytes(trailer[:8], "little")
            if path.is_symlink() or not 0 < length < size:
                return None
            file.seek(0)
            checksum, at, ends = 0, 0, list[NDArray[np.int64]]()
            while at < length:
                piece = file.read(min(_PIECE, length - at))
                checksum = zlib.crc32(piece, checksum)
                ends.append(np.flatnonzero(np.frombuffer(piece, np.uint8) == 0) + at)
                at += len(piece)
            rest = file.read()
        checksum = zlib.crc32(rest[:-4], checksum)
        if checksum != int.from_bytes(rest[-4:], "little"):
            return None
        value = files.parse_json(rest[:-_TRAILER])
        for source in value["sources"]:
            source["encoding"] = source["encoding"] and tuple(source["encoding"])
        sources = tuple(Extracted(**source) for source in value["sources"])
        return Extract(path, np.concatenate(ends), sources, tuple(Skipped(**one) for one in value["skipped"]))
    except (OSError, IntegrityError, KeyError, TypeError, ValueError):
        return None


def _remove_old(directory: Path, used: Path) -> None:
    """Remove all texts but the KEPT most recently used ones."""
    with files.wrap_os_errors(f"cannot clean up {directory}"):
        others = [path for path in directory.glob("*.text") if path != used]
        for path in sorted(others, key=lambda p: -p.lstat().st_mtime_ns)[KEPT - 1 :]:
            # Windows cannot remove a file that is in use; a later run will.
            with contextlib.suppress(PermissionError):
                path.unlink()
