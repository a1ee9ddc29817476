"""Compressed files and zip archives, read as streams of bounded size. Nothing is unpacked to the disk.

A file of a few kilobytes may unpack to terabytes. What is read is limited to a multiple of the size on the disk, above
an allowance; memory is limited by the size of the pieces, and by the largest dictionary of a decompressor.
"""

from __future__ import annotations

import contextlib
import functools
import io
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Bytes that any compressed file may unpack to, and the largest ratio beyond that. Text shrinks to a fifth or less
# only if it repeats itself.
_ALLOWANCE = 2 << 30
_RATIO = 100
# Memory of an xz decompressor, in bytes: the highest preset takes 65 MB.
_XZ_MEMORY = 256 << 20
_PIECE = 1 << 16
_DAMAGED = "copy or download it again"


class _Decompressor(Protocol):
    """What the decompressors of bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _GzipDecompressor:
    """The same for gzip; zlib checks header, length and checksum."""

    def __init__(self) -> None:
        self._object = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._object.eof

    @property
    def needs_input(self) -> bool:
        return not self._object.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._object.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, max_length)


# These are imported where they are used: some builds of Python do not have them.


def _bzip2() -> _Decompressor:
    import bz2

    return bz2.BZ2Decompressor()


def _xz() -> _Decompressor:
    import lzma

    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


def _zstd() -> _Decompressor:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise GrimmgenError(
            "reading .zst files needs the package backports.zstd", "pip install 'grimmgen[formats]'"
        ) from None
    return cast(_Decompressor, zstd.ZstdDecompressor())


_COMPRESSIONS: dict[str, Callable[[], _Decompressor]] = {
    ".gz": _GzipDecompressor,
    ".bz2": _bzip2,
    ".xz": _xz,
    ".zst": _zstd,
}


def is_compressed(name: str) -> bool:
    """Return whether a file's name says that it is compressed."""
    return PurePosixPath(name).suffix.lower() in _COMPRESSIONS


def without_compression(name: str) -> str:
    """Return a file's name without the suffix of a compression, if it has one: `a.txt.gz` is `a.txt`."""
    return PurePosixPath(name).stem if is_compressed(name) else name


def open_bytes(path: Path, members: Sequence[str] = ()) -> BinaryIO:
    """Open what a file contains, decompressed if its name says that it is compressed.

    Args:
        path: a regular file.
        members: the name of a file in the zip archive `path`; none for the file itself.

    Returns:
        A stream that is read forwards. Reading it raises IntegrityError where the data are damaged or unpack to far
        more than they should.

    Raises:
        OSError: the file cannot be opened.
        GrimmgenError: the package that decompresses it is missing.
        IntegrityError: the archive is damaged, or does not have the member.
    """
    if not members:
        file = files.open_regular(path)
        if (suffix := path.suffix.lower()) not in _COMPRESSIONS:
            return file
        limit = max(_ALLOWANCE, _RATIO * path.stat().st_size)
        return _bounded(_Decompressed(file, _COMPRESSIONS[suffix]), str(path), limit)
    return _archive(path).open(members[0])


def archive_members(path: Path) -> list[zipfile.ZipInfo]:
    """List the files of a zip archive, by name; of several with one name the last counts, as when unpacking.

    Raises:
        OSError: the archive cannot be read.
        IntegrityError: it is damaged.
    """
    return [info for _, info in sorted(_archive(path).members.items()) if not info.is_dir()]


class Archive:
    """A zip archive.

    Args:
        file: its path, or its bytes as a file.
        name: for messages.

    Attributes:
        members: its files and directories by name.

    Raises:
        OSError: it cannot be read.
        IntegrityError: it is damaged.
    """

    def __init__(self, file: Path | BinaryIO, name: str) -> None:
        self.name = name
        with _integrity(f"{name} is not a complete zip archive"):
            self._zip = zipfile.ZipFile(file)
        self.members = self._zip.NameToInfo

    def open(self, member: str) -> BinaryIO:
        """Open a file in it, decompressed if its name says that it is compressed; see `open_bytes`."""
        name = f"{self.name}/{member}"
        info = self.members.get(member)
        if info is None:
            raise IntegrityError(f"{self.name} has no file {member!r}", _DAMAGED)
        with _integrity(f"{name} cannot be unpacked"):
            raw: Any = self._zip.open(info)
        limit = max(_ALLOWANCE, _RATIO * info.compress_size)
        suffix = PurePosixPath(member).suffix.lower()
        if suffix in _COMPRESSIONS:
            raw = _Decompressed(_bounded(raw, name, limit), _COMPRESSIONS[suffix])
        return _bounded(raw, name, limit)


class _Decompressed(io.RawIOBase):
    """The bytes of a compressed stream, or of several one after the other."""

    def __init__(self, file: BinaryIO, decompressor: Callable[[], _Decompressor]) -> None:
        self._file = file
        self._new = decompressor
        self._current = decompressor()
        self._waiting = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        while True:
            if self._current.eof:
                rest = self._current.unused_data or self._file.read(_PIECE)
                # Streams may be padded with zeros.
                while rest and not (rest := rest.lstrip(b"\0")):
                    rest = self._file.read(_PIECE)
                if not rest:
                    return 0
                self._current, self._waiting = self._new(), rest
            elif self._current.needs_input and not self._waiting:
                self._waiting = self._file.read(_PIECE)
                if not self._waiting:
                    raise EOFError("the end is missing")
            content = self._current.decompress(self._waiting, len(view))
            self._waiting = b""
            if content:
                view[: len(content)] = content
                return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where it is damaged, or longer than the limit."""

    def __init__(self, raw: Any, name: str, limit: int) -> None:
        self._raw = raw
        self._name = name
        self._limit = limit
        self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with _integrity(f"{self._name} is damaged"):
            count: int = self._raw.readinto(buffer)
        self._left -= count
        if self._left < 0:
            raise IntegrityError(
                f"{self._name} unpacks to more than {self._limit >> 20:,} MB", "unpack it and give the text in it"
            )
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


def _bounded(raw: Any, name: str, limit: int) -> BinaryIO:
    return cast(BinaryIO, io.BufferedReader(_Bounded(raw, name, limit), _PIECE))


@functools.lru_cache(maxsize=1)
def _archive_as_of(path: Path, size: int, mtime: int) -> Archive:  # noqa: ARG001 - they are the key
    return Archive(path, str(path))


def _archive(path: Path) -> Archive:
    # The last archive stays open: its files are usually read one after the other, and reading the directory of a large
    # archive takes long.
    status = path.stat()
    return _archive_as_of(path, status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def _integrity(what: str) -> Iterator[None]:
    """Turn the many exceptions of decompressors into one; errors of the operating system, which have a number, stay."""
    try:
        yield
    except (GrimmgenError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno:
            raise
        reason = " ".join(str(error).split()) or error.__class__.__name__
        raise IntegrityError(f"{what} ({reason})", _DAMAGED) from None
