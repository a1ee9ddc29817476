"""Corpora: named sets of documents, and how their text is read.

A corpus is the fetched Grimm tales (`grimm`), the bundled ones (`sampler`), or a file or directory of the user's.
A document is read when it is needed, and checked against its hash where one is known.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import hashlib
import importlib.resources
import io
import json
import re
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast, overload

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.reading.sources import STANDARD_INPUT, STANDARD_INPUT_NAME, Skipped, Source, find_sources
from grimmgen.text.documents import END
from grimmgen.text.extraction import Extract, Extracted, extract

GRIMM = "grimm"
SAMPLER = "sampler"
# The tutorial's tales, which `grimmgen fetch` downloads by default.
TUTORIAL_TALES = 100
MANIFEST = "manifest.json"
# Largest fetched document in bytes: it is read at once, and takes up to twenty times its size in memory.
_LARGEST_FETCHED = 128 << 20
# Bytes that are read at once: few enough to stay in the processor's cache while they are encoded.
_PIECE = 1 << 17
# Bytes from which on the hash of a file is kept, for as long as its size and times do not change.
_LARGE = 1 << 24
_DIGESTS: dict[tuple[object, ...], str] = {}
# Files that a message names.
_SHOWN = 3
_UTF8_CONTINUATION = bytes(range(0x80, 0xC0))


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: unique in the corpus.
        path: the file with its text.
        sha256: expected hash of the file; None accepts any content.
        latin1: whether a file that is not UTF-8 is read as Latin-1, as some of the fetched tales have to be.
        span: the part of the text that the document consists of, from and to, as fractions of the file or section. It
            is all of it, unless the corpus has too few documents to be split by document.
        section: the bytes of the file that are the text, from and to; None is the whole file.
        place: what messages call the file; empty for the path.
    """

    name: str
    path: Path | Traversable
    sha256: str | None = None
    latin1: bool = False
    span: tuple[float, float] = (0.0, 1.0)
    section: tuple[int, int] | None = None
    place: str = ""

    @property
    def size(self) -> int:
        """The approximate size of the span in bytes; 0 if the file cannot be read."""
        begin, end = self.span
        if self.section is not None:
            return round((end - begin) * (self.section[1] - self.section[0]))
        try:
            size = self.path.stat().st_size if isinstance(self.path, Path) else len(self.path.read_bytes())
        except OSError:
            return 0
        return round((end - begin) * size)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file or section as it is now; that of a large file is computed once.

        Raises:
            GrimmgenError: the file cannot be read.
        """
        with self._open() as file:
            if self.section is not None:
                return files.sha256(_read_section(file, *self.section))
            if not isinstance(self.path, Path):
                return _digest(file)
            status = self.path.stat()
            state = str(self.path), status.st_size, status.st_mtime_ns, status.st_ino, status.st_dev
            if state not in _DIGESTS:
                digest = _digest(file)
                if status.st_size < _LARGE:
                    return digest
                _DIGESTS[state] = digest
            return _DIGESTS[state]

    def content(self) -> bytes:
        """Return the bytes of the whole file or section, after a check of its hash.

        Raises:
            GrimmgenError: the file cannot be read, or is too large.
            IntegrityError: it has changed.
        """
        begin, end = self.section or (0, _LARGEST_FETCHED + 1)
        with self._open() as file:
            content = _read_section(file, begin, min(end, begin + _LARGEST_FETCHED + 1))
        if len(content) > _LARGEST_FETCHED:
            raise GrimmgenError(
                f"{self._place} is larger than {_LARGEST_FETCHED >> 20} MB", "cut it into several files"
            )
        self._check_hash(files.sha256(content) if self.sha256 else None)
        return content

    def pieces(self) -> Iterator[str]:
        """Yield the text piece by piece, so that a large text takes little memory; it is not normalised.

        The encoding is UTF-8, unless `latin1` allows another. A byte order mark is skipped.

        Raises:
            GrimmgenError: the file cannot be read, or is not UTF-8; the message names the byte.
            IntegrityError: it has changed.
        """
        if self.latin1:
            # The encoding can only be known from the whole file, which is small, since it was fetched.
            content = self.content()
            try:
                content.decode()
                encoding = "utf-8"
            except UnicodeDecodeError:
                encoding = "latin-1"
            yield from self._decode(io.BytesIO(content), encoding)
            return
        self.check()
        with self._open() as file:
            yield from self._decode(file, "utf-8")

    def read(self) -> str:
        """Return the whole text; see `pieces`."""
        return "".join(self.pieces())

    def check(self) -> None:
        """Check the hash of the file or section, where one is known.

        Raises:
            GrimmgenError: the file cannot be read.
            IntegrityError: it has changed.
        """
        if self.sha256 is None:
            return
        if self.section is not None and self.digest() != self.sha256:
            # Earlier versions hashed the byte order mark, too.
            with self._open() as file:
                self._check_hash(files.sha256(codecs.BOM_UTF8 + _read_section(file, *self.section)))
        else:
            self._check_hash(self.digest())

    @property
    def _place(self) -> str:
        return self.place or str(self.path)

    @property
    def _remedy(self) -> str:
        return "run `grimmgen fetch` to repair it" if self.latin1 else "restore it, or train again"

    def _check_hash(self, sha256: str | None) -> None:
        if sha256 != self.sha256:
            raise IntegrityError(f"{self._place} has changed", self._remedy)

    @contextlib.contextmanager
    def _open(self) -> Iterator[io.BufferedIOBase]:
        if isinstance(self.path, Path) and self.sha256 is not None and self.latin1:
            if self.path.is_symlink():
                raise IntegrityError(f"{self.path} is a link, not the story that was fetched", self._remedy)
            if self.path.exists() and not self.path.is_file():
                raise IntegrityError(f"{self.path} is not a file", self._remedy)
        try:
            # open_regular does not block if the file was replaced by a pipe since.
            with files.open_regular(self.path) if isinstance(self.path, Path) else self.path.open("rb") as file:
                yield cast(io.BufferedIOBase, file)
        except FileNotFoundError:
            raise IntegrityError(f"{self.path} is gone", self._remedy) from None
        except OSError as error:
            raise GrimmgenError(f"cannot read {self.path} ({error.strerror})", self._remedy) from error

    def _decode(self, file: io.BufferedIOBase, encoding: str) -> Iterator[str]:
        """The text of the span, piece by piece."""
        first, last = self.section or _text_bounds(file)
        at, end = (_byte_position(file, first, last, fraction) for fraction in self.span)
        file.seek(at)
        decoder = codecs.getincrementaldecoder(encoding)()
        while at < end:
            block = file.read(min(_PIECE, end - at))
            if not block:
                raise IntegrityError(f"{self.path} has changed", self._remedy)
            if at + len(block) < end:
                # Cut before a word, if there is a space: then no rest has to be carried over in normalisation.
                block = block[: block.rfind(b" ") + 1] or block
                file.seek(at + len(block))
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(block, final=at + len(block) == end)
            except UnicodeDecodeError as error:
                raise GrimmgenError(
                    f"{self.path} is not UTF-8 (byte {at - pending + error.start})", self._remedy
                ) from None
            at += len(block)
            yield text


class _Memory:
    """A text in memory that is opened as a file is."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def open(self, _mode: str = "rb") -> io.BytesIO:
        return io.BytesIO(self._content)


class ExtractedDocuments(Sequence[Document]):
    """Documents of an extracted text, in its order; a `Document` is made when it is asked for.

    Args:
        text: with all documents of the corpus.
        names: what its sources are called, after which documents are named.
        chosen: the numbers of these documents in the text, ascending, [N]; None are all.
        span: of each document; see `Document`.
    """

    def __init__(
        self,
        text: Extract,
        names: Sequence[str],
        chosen: NDArray[np.int64] | None = None,
        span: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.text = text
        self._names = names
        self._chosen = np.arange(len(text.ends)) if chosen is None else chosen
        self._span = span
        self._path: Any = _Memory(text.content) if isinstance(text.content, bytes) else text.content
        # The number of documents before each source and in all, [sources + 1].
        self._firsts = np.cumsum([0, *(source.documents for source in text.sources)])

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, index: int) -> Document: ...

    @overload
    def __getitem__(self, index: slice) -> ExtractedDocuments: ...

    def __getitem__(self, index: int | slice) -> Document | ExtractedDocuments:
        """Return a document, or those of a slice."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        number = int(self._chosen[index])
        at = int(np.searchsorted(self._firsts, number, side="right")) - 1
        source, name = self.text.sources[at], self._names[at]
        if source.row_by_row:
            name += f":{number - int(self._firsts[at]) + 1}"
        return Document(name, self._path, span=self._span, section=self.text.bounds(number), place=source.place)

    def select(self, positions: NDArray[np.int64], span: tuple[float, float] | None = None) -> ExtractedDocuments:
        """Return the documents at these positions, ascending, [n]; each cut to a span, if one is given."""
        return ExtractedDocuments(self.text, self._names, self._chosen[positions], span or self._span)

    def renamed(self, names: Mapping[str, str]) -> ExtractedDocuments:
        """Return the same documents, with new names for some sources by their places."""
        new = [names.get(source.place, name) for source, name in zip(self.text.sources, self._names, strict=True)]
        return ExtractedDocuments(self.text, new, self._chosen, self._span)

    @property
    def size(self) -> int:
        """The approximate size of all of them in bytes."""
        begin, end = self._span
        lengths = np.diff(self.text.ends, prepend=-1) - 1
        return round((end - begin) * int(lengths[self._chosen].sum()))

    @property
    def row_by_row(self) -> bool:
        """Whether they are parts of files, such as lines, which have no lasting names."""
        return any(source.row_by_row for source in self.text.sources)

    def digest(self) -> str:
        """Return a hash of all of them, of their names, their order and their span."""
        contents = [[source.sha256, source.documents] for source in self.text.sources]
        value = hashlib.sha256(json.dumps([contents, [*self._names], self._span]).encode())
        value.update(self._chosen.astype("<i8").tobytes())
        return value.hexdigest()

    def hashes(self) -> NDArray[np.uint64]:
        """Return a hash of the text of each, [N]."""
        found = [np.zeros(0, np.uint64)]
        with self.text.open() as file:
            for first, last in self._runs():
                texts = self._read(file, first, last).split(b"\0")[:-1]
                found.append(np.fromiter(map(zlib.crc32, texts), np.uint64, len(texts)))
        value = np.concatenate(found)
        # Similar texts have similar checksums; the steps of SplitMix64 (Steele, Lea and Flood 2014) mix them.
        for shift, factor in (30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1):
            value = (value ^ (value >> np.uint64(shift))) * np.uint64(factor)
        return value

    def marked_pieces(self) -> Iterator[str]:
        """Yield the text of all of them piece by piece, with a NUL after each document."""
        with self.text.open() as file:
            for first, last in self._runs():
                if self._span == (0.0, 1.0) and last - first > 1:
                    yield self._read(file, first, last).decode()
                    continue
                for document in self[first:last]:
                    yield from document.pieces()
                    yield END

    def _runs(self) -> Iterator[tuple[int, int]]:
        """Successive positions, from and to, of documents that are read at once; a long one is read by itself."""
        ends, chosen, first = self.text.ends, self._chosen, 0
        while first < len(chosen):
            begin, _ = self.text.bounds(int(chosen[first]))
            beyond = int(np.searchsorted(ends, begin + _PIECE, side="right"))
            last = max(first + 1, int(np.searchsorted(chosen, beyond)))
            yield first, last
            first = last

    def _read(self, file: BinaryIO, first: int, last: int) -> bytes:
        """The bytes of documents, with a NUL after each."""
        numbers = self._chosen[first:last]
        begin, _ = self.text.bounds(int(numbers[0]))
        content = _read_section(file, begin, int(self.text.ends[numbers[-1]]) + 1)
        ends = self.text.ends[numbers[0] : numbers[-1] + 1]
        if len(ends) == len(numbers):
            return content
        wanted = np.zeros(len(ends), np.bool_)
        wanted[numbers - numbers[0]] = True
        kept = np.repeat(wanted, np.diff(ends, prepend=begin - 1))
        return np.frombuffer(content, np.uint8)[kept].tobytes()


def marked_pieces(documents: Sequence[Document]) -> Iterator[str]:
    """Yield the text of documents piece by piece, with a NUL after each; it is not normalised.

    Raises:
        GrimmgenError: a document cannot be read.
        IntegrityError: one has changed.
    """
    if isinstance(documents, ExtractedDocuments):
        yield from documents.marked_pieces()
        return
    for document in documents:
        yield from document.pieces()
        yield END


def texts_of(documents: Sequence[Document]) -> Iterator[str]:
    """Yield the whole text of each document; see `marked_pieces`."""
    begun = list[str]()
    for piece in marked_pieces(documents):
        first, *others = piece.split(END)
        begun.append(first)
        for other in others:
            yield "".join(begun)
            begun = [other]


def size_of(documents: Sequence[Document]) -> int:
    """The approximate size of documents in bytes."""
    if isinstance(documents, ExtractedDocuments):
        return documents.size
    return sum(document.size for document in documents)


def digest_of(documents: Sequence[Document]) -> str:
    """A hash of the names, texts and spans of documents, and of their order.

    Raises:
        GrimmgenError: a document cannot be read.
    """
    if isinstance(documents, ExtractedDocuments):
        return documents.digest()
    contents = [[d.name, d.sha256 or d.digest(), list(d.span)] for d in documents]
    return files.sha256(json.dumps(contents).encode("utf-8", "surrogateescape"))


@dataclass(frozen=True)
class Report:
    """What was read for a corpus, and what was not.

    Attributes:
        documents: number of documents.
        size: bytes of their text.
        files: number of files with text.
        sources: what was read from each of the user's files.
        skipped: files and directories that were left out, with the reason.
        fetched: whether the documents are the tales in the cache.
    """

    documents: int
    size: int
    files: int
    sources: tuple[Extracted, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    fetched: bool = False

    def __str__(self) -> str:
        """Say it in a line: `312 documents, 4.1 MB from 40 files; 2 skipped: a.pdf (not text), b.txt (empty)`."""
        what = (
            f"{_counted(self.documents, 'document')}, {_megabytes(self.size)} from {_counted(self.files, 'file')}"
        )
        return "; ".join([what, *self.peculiarities])

    @property
    def peculiarities(self) -> list[str]:
        """What was left out or had to be guessed, in words; empty if every file was read whole, and as it is."""
        parts = []
        if self.skipped:
            skipped = _listed(f"{one.name} ({one.reason})" for one in self.skipped)
            parts.append(f"{len(self.skipped):,} skipped: {skipped}")
        if decoded := [
            f"{s.name} ({', '.join(s.encoding)})" for s in self.sources if s.encoding and not s.is_utf8
        ]:
            parts.append(f"decoded: {_listed(decoded)}")
        if columns := [f"{s.column!r} of {s.name}" for s in self.sources if s.column is not None]:
            parts.append(f"text from {_listed(columns)}")
        if bad := [f"{s.name} ({s.bad_rows:,}; {s.first_bad})" for s in self.sources if s.bad_rows]:
            parts.append(f"rows left out: {_listed(bad)}")
        if licences := [s.name for s in self.sources if s.boilerplate]:
            parts.append(f"Project Gutenberg's licence left out: {_listed(licences)}")
        return parts

    @property
    def advice(self) -> str:
        """What might be read better in another way, or is not all there; empty if nothing."""
        if self.fetched and self.documents < TUTORIAL_TALES:
            there = f"{self.documents} of the tutorial's {TUTORIAL_TALES} tales"
            return f"{there} are in the cache: `grimmgen fetch` downloads the others"
        lists = [source.name for source in self.sources if source.listed]
        if not lists:
            return ""
        looks = "looks like a list" if len(lists) == 1 else "look like lists"
        return f"{_listed(lists)} {looks}: --documents line makes each line a document of its own"

    def to_json(self) -> dict[str, Any]:
        """All of it as a JSON value."""
        return {
            "documents": self.documents,
            "bytes": self.size,
            "files": self.files,
            "skipped": [dataclasses.asdict(one) for one in self.skipped],
            "sources": [source.to_json() for source in self.sources],
        }


@dataclass(frozen=True)
class Corpus:
    """A named sequence of documents.

    Attributes:
        name: for messages.
        source: the arguments with which `open_corpus` opens it again: `grimm`, `sampler` or absolute paths; a string
            if there is one.
        documents: at least one.
        skipped: files and directories that were left out.
    """

    name: str
    source: str | tuple[str, ...]
    documents: Sequence[Document]
    skipped: tuple[Skipped, ...] = ()

    @property
    def report(self) -> Report:
        """What was read and what was not."""
        size = size_of(self.documents)
        if isinstance(self.documents, ExtractedDocuments):
            sources = self.documents.text.sources
            return Report(len(self.documents), size, len(sources), sources, self.skipped)
        count = len(self.documents)
        return Report(count, size, count, skipped=self.skipped, fetched=self.source == GRIMM)

    @property
    def row_by_row(self) -> bool:
        """Whether documents are parts of files, such as lines, which have no lasting names."""
        return isinstance(self.documents, ExtractedDocuments) and self.documents.row_by_row


def open_corpus(
    source: str | Sequence[str],
    options: Configuration | None = None,
    only: Collection[str] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Corpus:
    """Open a corpus.

    Args:
        source: `grimm` (the fetched tales), `sampler` (the bundled ones), or what `find_sources` takes: files,
            directories, patterns, archives and `-`.
        options: how the text is read (`grimmgen.configuration.READING`); None are the defaults.
        only: names of sources; others that are found are left out silently. None is all.
        notify: called with a message if another process is reading the same text.

    Raises:
        GrimmgenError: nothing has been fetched yet, there is no text, or a file cannot be read.
        UsageError: there is no such file or directory.
    """
    arguments = (source,) if isinstance(source, str) else tuple(source)
    named = {GRIMM, SAMPLER}.intersection(arguments)
    if named and len(arguments) > 1:
        raise UsageError(f"--corpus {min(named)} cannot be combined with others", "give it alone")
    if arguments == (GRIMM,):
        return _fetched_corpus()
    if arguments == (SAMPLER,):
        directory = importlib.resources.files("grimmgen") / "data" / SAMPLER
        found = [Document(t.name[:-4], t) for t in directory.iterdir() if t.name.endswith(".txt")]
        return Corpus(SAMPLER, SAMPLER, _sorted(found))
    sources, skipped = find_sources(arguments)
    if only is not None:
        sources = [one for one in sources if one.name in only or _document_name(one.name) in only] or sources
    text = extract(sources, options or Configuration(), notify)
    skipped = sorted([*skipped, *text.skipped], key=lambda one: one.name)
    places = tuple(_place(argument, sources) for argument in arguments)
    if not len(text.ends):
        raise UsageError(f"{', '.join(places)} has no text: all of it is empty", "give a file with text")
    names = [one.name for one in text.sources]
    if len(names) == 1:
        names = [str(PurePosixPath(names[0]).with_suffix(""))]
    elif len({_document_name(name) for name in names}) == len(names):
        names = [_document_name(name) for name in names]
    name = "+".join(_corpus_name(place) for place in places[:3]) + "+…" * (len(places) > 3)
    return Corpus(name, places[0] if len(places) == 1 else places, ExtractedDocuments(text, names), tuple(skipped))


def _document_name(source: str) -> str:
    return source.removesuffix(".txt")


def _place(argument: str, sources: Sequence[Source]) -> str:
    """The absolute path that opens what an argument does; for the standard input its copy in the cache."""
    if argument == STANDARD_INPUT:
        return str(next(source.path for source in sources if source.name == STANDARD_INPUT_NAME))
    path = Path(argument).expanduser()
    return str(path.resolve() if path.exists() else path.absolute())


def _corpus_name(place: str) -> str:
    path = Path(place)
    unnamed = {paths.standard_input_directory(): STANDARD_INPUT_NAME, paths.given_texts_directory(): "texts"}
    return unnamed.get(path.parent) or path.stem or place


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _megabytes(size: int) -> str:
    for unit, factor in ("GB", 1e9), ("MB", 1e6), ("kB", 1e3):
        if size >= 0.95 * factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"


def _listed(items: Iterable[str]) -> str:
    shown = list(items)
    more = f" and {len(shown) - _SHOWN:,} more" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def matches_manifest(path: Path, entry: Mapping[str, Any] | None) -> bool:
    """Return whether a cached file has the size and hash of its entry in the manifest."""
    try:
        return (
            entry is not None
            and path.is_file()
            and not path.is_symlink()
            and path.stat().st_size == entry["bytes"]
            and files.sha256(path.read_bytes()) == entry["sha256"]
        )
    except OSError:
        return False


def read_manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """Read the entries of the fetched documents, by name; empty if the manifest is missing or damaged."""
    try:
        value = files.read_json(directory / MANIFEST)
        return {
            str(name): {
                "url": str(entry["url"]),
                "bytes": int(entry["bytes"]),
                "sha256": str(entry["sha256"]),
                "time": str(entry["time"]),
            }
            for name, entry in value["stories"].items()
            if re.fullmatch(r"[0-9]{3}", name)
        }
    except (FileNotFoundError, IntegrityError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def _fetched_corpus() -> Corpus:
    directory = paths.corpus_directory(GRIMM)
    manifest = read_manifest(directory)
    if not manifest:
        raise GrimmgenError(
            "no tales have been fetched yet",
            f"run `grimmgen fetch`, or take the bundled ones with --corpus {SAMPLER}",
        )
    found = [
        Document(name, directory / f"{name}.txt", entry["sha256"], latin1=True) for name, entry in manifest.items()
    ]
    return Corpus(GRIMM, GRIMM, _sorted(found))


def _sorted(documents: list[Document]) -> tuple[Document, ...]:
    return tuple(sorted(documents, key=lambda document: document.name))


def _digest(file: io.BufferedIOBase) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def _text_bounds(file: io.BufferedIOBase) -> tuple[int, int]:
    """Where the text of a file begins, after a byte order mark, and ends."""
    file.seek(0)
    first = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    return first, file.seek(0, io.SEEK_END)


def _byte_position(file: io.BufferedIOBase, first: int, last: int, fraction: float) -> int:
    """Convert a fraction of a text to a position in bytes: that of the next line, else word, else character.

    Args:
        file: that has the text.
        first: where the text begins.
        last: where it ends.
        fraction: of the text, from 0 to 1.
    """
    at = first + round(fraction * (last - first))
    if at in {first, last}:
        return at
    ahead = _read_section(file, at, min(last, at + 2000))
    for separator in b"\n", b" ":
        if (found := ahead.find(separator)) >= 0:
            return at + found + 1
    return at + len(ahead) - len(ahead.lstrip(_UTF8_CONTINUATION))


def _read_section(file: BinaryIO | io.BufferedIOBase, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)
