"""Sources: which files a corpus consists of, found from the arguments of --corpus.

A file is recognised by its suffix and its first bytes; nothing else of it is read here. What is left out is reported
with the reason. A file that was named has to be readable; one that was found in a directory, an archive or by a pattern
is skipped if it is not text.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import shlex
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal

from grimmgen.errors import GrimmgenError, UsageError, did_you_mean
from grimmgen.io import files, paths
from grimmgen.reading import archives, decoding, file_kinds
from grimmgen.reading.tables import LONGEST_ROW

Format = Literal["text", "html", "epub", "csv", "jsonl"]

STANDARD_INPUT = "-"
STANDARD_INPUT_NAME = "standard input"
_FORMATS: dict[str, Format] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
    ".html": "html",
    ".htm": "html",
    ".xhtml": "html",
    ".epub": "epub",
    ".csv": "csv",
    ".tsv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_ARCHIVE = ".zip"
_EXPECTED = "give grimm, sampler, or the path of a text file or directory"


@dataclass(frozen=True)
class Source:
    """A file of a corpus.

    Attributes:
        name: unique in the corpus, with slashes, as in `letters/a.md` or `box.zip/b.txt`.
        path: the file on the disk.
        members: the name inside the archive `path`; empty if it is no archive.
        format: how its text is extracted.
    """

    name: str
    path: Path
    members: tuple[str, ...] = ()
    format: Format = "text"

    @property
    def place(self) -> str:
        """The whole path, for messages."""
        return self.name if self.name == STANDARD_INPUT_NAME else _joined([str(self.path), *self.members])

    def open(self) -> BinaryIO:
        """Open its bytes, decompressed; see `archives.open_bytes`.

        Raises:
            GrimmgenError: it cannot be read.
        """
        with wrap_read_errors(self.path):
            return archives.open_bytes(self.path, self.members)


@dataclass(frozen=True)
class Skipped:
    """A file or directory that is no part of a corpus, with the reason."""

    name: str
    reason: str


def find_sources(arguments: Sequence[str]) -> tuple[list[Source], list[Skipped]]:
    """Find the files of a corpus.

    Args:
        arguments: files, directories, patterns (`books/**/*.md`), zip archives, and `-` for the standard input.

    Returns:
        The sources and what was skipped, each sorted by name. A file that is reached by several names, through links
        or several arguments, is one source.

    Raises:
        UsageError: there is no such file, or it is not a regular one.
        GrimmgenError: a file that was named is not text or cannot be read, or no text was found.
    """
    search = _Search()
    for argument in arguments:
        search.add_argument(argument)
    sources = search.sources()
    skipped = sorted(search.skipped, key=lambda one: one.name)
    if not sources:
        what = f"{', '.join(arguments)} has no text file in it"
        if skipped:
            shown = ", ".join(f"{one.name} ({one.reason})" for one in skipped[:3])
            what += f"; {len(skipped)} skipped: {shown}{', …' if len(skipped) > 3 else ''}"
        raise GrimmgenError(what, "give a directory with text files, or one file")
    return sources, skipped


@contextlib.contextmanager
def wrap_read_errors(path: Path) -> Iterator[None]:
    """Turn an OSError in reading a file of the user's into a GrimmgenError of one line."""
    try:
        yield
    except OSError as error:
        raise GrimmgenError(f"cannot read {path} ({_reason(error)})", _read_remedy(error, path)) from error


def _missing(argument: str) -> UsageError:
    path, names = Path(argument), ["grimm", "sampler"]
    with contextlib.suppress(OSError, ValueError):
        names += map(str, path.parent.iterdir())
    return UsageError(f"there is no corpus {argument!r}{did_you_mean(argument, names)}", _EXPECTED)


def _read_remedy(error: OSError, path: Path) -> str:
    if error.errno in {errno.EACCES, errno.EPERM}:
        if os.name == "nt":
            return "give yourself the permission to read it"
        return f"give yourself the permission to read it, as with chmod -R u+rX {shlex.quote(str(path))}"
    return "check the path" if error.errno != errno.EIO else "the disk reports an error; check it"


def _reason(error: OSError) -> str:
    return error.strerror or error.__class__.__name__


def _joined(parts: Iterable[str]) -> str:
    """A name of these parts, in UTF-8 whatever encoding the locale has for file names."""
    return os.fsencode("/".join(parts)).decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Found:
    """A source before it has its name.

    Attributes:
        parts: of the name, as short as it can be.
        full: of the whole path, which ends with `parts`.
    """

    parts: tuple[str, ...]
    full: tuple[str, ...]
    source: Source


class _Search:
    """What has been found and seen so far."""

    def __init__(self) -> None:
        self.skipped: list[Skipped] = []
        self._found: list[_Found] = []
        # The name of each file and directory, by its device and number.
        self._seen: dict[tuple[object, ...], str] = {}

    def sources(self) -> list[Source]:
        """All sources, sorted by their names, which are as long as they have to be to differ."""
        names = {number: found.parts for number, found in enumerate(self._found)}
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, parts in names.items():
            groups.setdefault(parts, []).append(number)
        while clashes := [numbers for numbers in groups.values() if len(numbers) > 1]:
            groups = {parts: numbers for parts, numbers in groups.items() if len(numbers) == 1}
            for number in (number for numbers in clashes for number in numbers):
                full = self._found[number].full
                names[number] = full[-len(names[number]) - 1 :]
                groups.setdefault(names[number], []).append(number)
        named = [replace(self._found[number].source, name=_joined(parts)) for number, parts in names.items()]
        return sorted(named, key=lambda source: source.name)

    def add_argument(self, argument: str) -> None:
        if argument == STANDARD_INPUT:
            self._add_file(_spool(), (STANDARD_INPUT_NAME,), required=True)
            return
        if not argument:
            raise UsageError("--corpus is empty", _EXPECTED)
        path = Path(argument)
        try:
            path = path.expanduser()
            with wrap_read_errors(path):
                if glob.has_magic(argument) and not os.path.lexists(path):
                    self._add_matches(path)
                elif path.is_dir():
                    self._add_directory(path.resolve(), ())
                else:
                    path = path.resolve(strict=True)
                    self._add_file(path, (path.name,), required=True)
        except (ValueError, RuntimeError):
            # A NUL in the path; a circle of links, or the home directory of an unknown user.
            raise _missing(argument) from None
        except GrimmgenError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise _missing(argument) from None
            raise

    def _add_matches(self, pattern: Path) -> None:
        root = next(parent for parent in pattern.parents if not glob.has_magic(str(parent)))
        matches = sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
        if not matches:
            raise UsageError(f"no file matches {str(pattern)!r}", _EXPECTED)
        for match in map(Path, matches):
            parts = match.relative_to(root).parts
            if match.is_dir():
                self._add_directory(match, parts)
            else:
                self._add_file(match, parts, any_suffix=True)

    def _add_directory(self, root: Path, parts: tuple[str, ...]) -> None:
        """Add the files below a directory; those that are reached through links after the others."""
        waiting, links = [(root, parts)], list[tuple[Path, tuple[str, ...]]]()
        while waiting or links:
            path, parts = waiting.pop() if waiting else links.pop(0)
            name = _joined(parts)
            try:
                if path != root:
                    status = path.stat()
                    if not stat.S_ISDIR(status.st_mode):
                        self._add_file(path, parts)
                        continue
                if not self._is_new(path, name or path.name):
                    continue
                with os.scandir(path) as entries:
                    ordered = sorted(entries, key=lambda entry: entry.name)
                for entry in ordered:
                    below = (Path(entry.path), (*parts, entry.name))
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        self._skip(_joined(below[1]), "hidden")
                    elif entry.is_symlink():
                        links.append(below)
                    elif entry.is_dir():
                        waiting.append(below)
                    else:
                        self._add_file(*below)
            except OSError as error:
                if path == root:
                    raise
                lost = isinstance(error, FileNotFoundError) or error.errno == errno.ELOOP
                self._skip(name, "a link to nothing" if lost else f"cannot be read: {_reason(error)}")

    def _add_file(
        self, path: Path, parts: tuple[str, ...], any_suffix: bool = False, required: bool = False
    ) -> None:
        """Add a file, or the files in a zip archive.

        Args:
            path: of the file.
            parts: of its name.
            any_suffix: whether it may have any suffix, if it is text.
            required: whether it is an error if it is not text; else it is skipped.
        """
        name = _joined(parts)
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                # A pipe can be read only once, and a device need not end.
                raise UsageError(f"{path} is not a file", "copy what it holds into a text file, and give that")
            if not self._is_new(path, name):
                return
            if not status.st_size and not required:
                self._skip(name, "empty")
            elif path.suffix.lower() == _ARCHIVE:
                self._add_members(path, parts)
            else:
                self._add_text(Source(name, path), parts, any_suffix or required, required)
        except OSError as error:
            if required:
                raise
            self._skip(name, f"cannot be read: {_reason(error)}")
        except GrimmgenError as error:
            if required:
                raise
            self._skip(name, error.what.removeprefix(f"{path} "))

    def _add_members(self, path: Path, parts: tuple[str, ...]) -> None:
        for info in archives.archive_members(path):
            inside = PurePosixPath(info.filename)
            below = (*parts, *inside.relative_to(inside.anchor).parts)
            name = _joined(below)
            if inside.is_absolute() or ".." in inside.parts:
                self._skip(name, "its path leads out of the archive")
            elif any(part.startswith(".") or part == "__MACOSX" for part in inside.parts):
                self._skip(name, "hidden")
            elif stat.S_ISLNK(info.external_attr >> 16):
                self._skip(name, "a link")
            elif info.flag_bits & 1:
                self._skip(name, "encrypted")
            elif not info.file_size:
                self._skip(name, "empty")
            else:
                try:
                    self._add_text(Source(name, path, (info.filename,)), below)
                except GrimmgenError as error:
                    self._skip(name, error.what.removeprefix(f"{path}/{info.filename} "))

    def _add_text(
        self, source: Source, parts: tuple[str, ...], any_suffix: bool = False, required: bool = False
    ) -> None:
        """Add a file, which may be compressed, if it is text."""
        name = source.members[-1] if source.members else source.path.name
        suffix = PurePosixPath(archives.without_compression(name)).suffix.lower()
        with archives.open_bytes(source.path, source.members) as file:
            head = file.read(file_kinds.HEAD)
        kind = file_kinds.describe(head)
        form = _FORMATS.get(suffix)
        if form == "epub" and kind in {"an EPUB book", "a zip archive"}:
            kind = None
        elif kind is None and not decoding.may_be_text(head, nuls=form in {"csv", "jsonl"}):
            kind = "not text"
        if kind is not None:
            if required:
                raise GrimmgenError(f"{source.place} is {kind}", file_kinds.remedy(kind))
            self._skip(source.name, kind)
        elif form is None and not any_suffix:
            self._skip(source.name, f"{suffix or 'no suffix'}: read only if it is named")
        else:
            source = replace(source, format=form or "text")
            full = (*source.path.absolute().parts, *PurePosixPath("/".join(source.members)).parts)
            self._found.append(_Found(parts, full, source))

    def _is_new(self, path: Path, name: str) -> bool:
        status = path.stat()
        key = (status.st_dev, status.st_ino) if status.st_ino else (os.path.realpath(path),)
        first = self._seen.setdefault(key, name)
        if first is not name:
            self._skip(name, f"the same as {first}")
        return first is name

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name, reason))


def store_texts(texts: Iterable[str]) -> Path:
    """Store texts as JSON lines in a file of the cache that is named by its content; as a source, each is a document.

    Raises:
        UsageError: a text is too long for a line.
    """

    def lines() -> Iterator[bytes]:
        for number, text in enumerate(texts, 1):
            line = json.dumps({"text": text}, ensure_ascii=False)
            if len(line) > LONGEST_ROW:
                raise UsageError(
                    f"text {number} is longer than {LONGEST_ROW >> 20} MB", "write it to a file, and give its path"
                )
            yield f"{line}\n".encode("utf-8", "replace")

    return _store(lines(), paths.given_texts_directory(), lambda _: ".jsonl")


def _spool() -> Path:
    """Copy the standard input to a file of the cache that is named by its content."""
    if sys.stdin is None or sys.stdin.closed:
        raise UsageError("there is no standard input", "pipe text into the command, or give a file")
    pieces = iter(partial(sys.stdin.buffer.read, 1 << 20), b"")
    return _store(pieces, paths.standard_input_directory(), file_kinds.suffix)


def _store(pieces: Iterable[bytes], directory: Path, suffix: Callable[[bytes], str]) -> Path:
    """Write a file that is named by its content.

    Args:
        pieces: of the content.
        directory: of the file.
        suffix: of its name, by its first bytes.
    """
    files.make_directory(directory)
    digest, head = hashlib.sha256(), b""
    temporary = directory / f"{os.getpid()}-{threading.get_ident()}.part"
    with files.atomic_writer(temporary) as file:
        for piece in pieces:
            head = head or piece[: file_kinds.HEAD]
            digest.update(piece)
            file.write(piece)
    path = directory / f"{digest.hexdigest()[:32]}{suffix(head)}"
    with files.wrap_os_errors(f"cannot write {path}"):
        temporary.replace(path)
    return path
