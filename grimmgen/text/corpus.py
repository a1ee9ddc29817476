"""Corpora: named sets of documents, and how their text is read.

A corpus is the fetched Grimm tales (`grimm`), the bundled ones (`sampler`), or a file or directory of the user's.
A document is read when it is needed, and checked against its hash where one is known.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import importlib.resources
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, cast

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths

GRIMM = "grimm"
SAMPLER = "sampler"
MANIFEST = "manifest.json"
# Largest fetched document in bytes: it is read at once, and takes up to twenty times its size in memory.
_LARGEST_FETCHED = 128 << 20
# Bytes that are read at once: few enough to stay in the processor's cache while they are encoded.
_PIECE = 1 << 17
# Bytes from which on the hash of a file is kept, for as long as its size and times do not change.
_LARGE = 1 << 24
_DIGESTS: dict[tuple[object, ...], str] = {}
_UTF8_CONTINUATION = bytes(range(0x80, 0xC0))


@dataclass(frozen=True)
class Document:
    """One document of a corpus.

    Attributes:
        name: unique in the corpus.
        path: the file with its text.
        sha256: expected hash of the file; None accepts any content.
        latin1: whether a file that is not UTF-8 is read as Latin-1, as some of the fetched tales have to be.
        span: the part of the text that the document consists of, from and to, as fractions of the file. It is the
            whole file, unless the corpus has too few documents to be split by document.
    """

    name: str
    path: Path | Traversable
    sha256: str | None = None
    latin1: bool = False
    span: tuple[float, float] = (0.0, 1.0)

    @property
    def size(self) -> int:
        """The approximate size of the span in bytes; 0 if the file cannot be read."""
        begin, end = self.span
        try:
            size = self.path.stat().st_size if isinstance(self.path, Path) else len(self.path.read_bytes())
        except OSError:
            return 0
        return round((end - begin) * size)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file as it is now; that of a large file is computed once.

        Raises:
            GrimmgenError: the file cannot be read.
        """
        with self._open() as file:
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
        """Return the bytes of the whole file, after a check of its hash.

        Raises:
            GrimmgenError: the file cannot be read, or is too large.
            IntegrityError: it has changed.
        """
        with self._open() as file:
            content = file.read(_LARGEST_FETCHED + 1)
        if len(content) > _LARGEST_FETCHED:
            raise GrimmgenError(
                f"{self.path} is larger than {_LARGEST_FETCHED >> 20} MB", "cut it into several files"
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
        self._check_hash(self.digest() if self.sha256 else None)
        with self._open() as file:
            yield from self._decode(file, "utf-8")

    def read(self) -> str:
        """Return the whole text; see `pieces`."""
        return "".join(self.pieces())

    @property
    def _remedy(self) -> str:
        return "run `grimmgen fetch` to repair it" if self.latin1 else "restore it, or train again"

    def _check_hash(self, sha256: str | None) -> None:
        if sha256 != self.sha256:
            raise IntegrityError(f"{self.path} has changed", self._remedy)

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
        at, end = (_byte_position(file, fraction) for fraction in self.span)
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
                    f"{self.path} is not UTF-8 (byte {at - pending + error.start})",
                    "convert it, as with iconv -t UTF-8",
                ) from None
            at += len(block)
            yield text


@dataclass(frozen=True)
class Corpus:
    """A named set of documents, sorted by name.

    Attributes:
        name: for messages.
        source: the arguments with which `open_corpus` opens it again: `grimm`, `sampler` or absolute paths; a string
            if there is one.
        documents: at least one.
    """

    name: str
    source: str | tuple[str, ...]
    documents: tuple[Document, ...]


def open_corpus(source: str | Sequence[str], options: Configuration | None = None) -> Corpus:
    """Open a corpus.

    Args:
        source: `grimm` (the fetched tales), `sampler` (the bundled ones), or the paths of files and directories.
        options: how the text is read (`grimmgen.configuration.READING`); None are the defaults.

    Raises:
        GrimmgenError: nothing has been fetched yet, or there are no texts.
        UsageError: there is no such file or directory.
    """
    if not isinstance(source, str):
        if len(source) == 1:
            return open_corpus(source[0], options)
        if {GRIMM, SAMPLER} & {*source}:
            raise UsageError(f"--corpus {GRIMM} and {SAMPLER} cannot be combined with others", "give one alone")
        opened = [open_corpus(argument, options) for argument in source]
        together = tuple(document for corpus in opened for document in corpus.documents)
        return Corpus("+".join(corpus.name for corpus in opened), tuple(str(c.source) for c in opened), together)
    if source == GRIMM:
        return _fetched_corpus()
    if source == SAMPLER:
        directory = importlib.resources.files("grimmgen") / "data" / SAMPLER
        found = [Document(t.name[:-4], t) for t in directory.iterdir() if t.name.endswith(".txt")]
        return Corpus(SAMPLER, SAMPLER, _sorted(found))
    if not source:
        raise UsageError("--corpus is empty", f"give {GRIMM}, {SAMPLER}, or the path of a text file or directory")
    path = Path(source)
    try:
        path = path.expanduser().resolve(strict=True)
        if path.is_dir():
            found = [
                Document(file.relative_to(path).as_posix()[:-4], file)
                for file in path.rglob("*.txt")
                if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
            ]
        elif path.is_file():
            found = [Document(path.stem, path)]
        else:
            # A pipe can be read only once, and a device need not end.
            raise UsageError(f"{path} is not a file", "copy what it holds into a text file, and give that")
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError):
        # RuntimeError: a cycle of links, or the home directory of an unknown user.
        raise UsageError(
            f"there is no corpus {source!r}", f"give {GRIMM}, {SAMPLER}, or the path of a text file or directory"
        ) from None
    except OSError as error:
        raise GrimmgenError(f"cannot read {path} ({error.strerror})", "check the permissions") from error
    if not found:
        raise GrimmgenError(f"{path} has no .txt file in it", "give a directory with text files, or one file")
    return Corpus(path.stem or str(path), str(path), _sorted(found))


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


def _byte_position(file: io.BufferedIOBase, fraction: float) -> int:
    """Convert a fraction of a file to a position in bytes: that of the next line, else word, else character."""
    file.seek(0)
    first = len(codecs.BOM_UTF8) if file.read(3) == codecs.BOM_UTF8 else 0
    last = file.seek(0, io.SEEK_END)
    at = first + round(fraction * (last - first))
    if at in {first, last}:
        return at
    file.seek(at)
    ahead = file.read(2000)
    for separator in b"\n", b" ":
        if (found := ahead.find(separator)) >= 0:
            return at + found + 1
    return at + len(ahead) - len(ahead.lstrip(_UTF8_CONTINUATION))
