"""The cache of encoded texts: files of ids that are mapped into memory.

A file has the ids of all documents in the first phase, then in the second and so on; the number of ids of each
document in each phase (8 bytes each); a JSON object with the vocabulary and the number of phases and of documents; and
three fixed fields: the CRC-32 of all that (4 bytes), the length of the JSON object (8 bytes) and the magic number (8
bytes). The whole file is checked when it is opened, since a damaged id would otherwise be trained on unnoticed.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.errors import IntegrityError
from grimmgen.io import files, paths
from grimmgen.text.batches import RaggedIds
from grimmgen.text.tokenizers import vocabulary_from_json
from grimmgen.text.vocabulary import Block, Vocabulary

FORMAT = 3
# Number of files that are kept, the most recently used ones. Each has 2 or 4 bytes per n-gram and phase.
KEPT = 3

_MAGIC = b"grimmids"
_TRAILER = 20  # bytes: checksum, length, magic number
_LOCK_TIMEOUT = 3600.0

# A vocabulary, and the documents that are not empty.
Encoded = tuple[Vocabulary, RaggedIds]


class MappedIds:
    """Ids in a mapped file; reading copies them and releases the pages, so that the memory stays bounded."""

    def __init__(self, mapped: mmap.mmap, kind: type[Any], length: int) -> None:
        self._mapped, self._type, self._length = mapped, np.dtype(kind), length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, cut: slice, /) -> NDArray[Any]:
        begin, end, _ = cut.indices(self._length)
        ids = np.frombuffer(self._mapped, self._type, max(0, end - begin), begin * self._type.itemsize).copy()
        self._release()
        return ids

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """Return the ids at these places."""
        ids = np.frombuffer(self._mapped, self._type, self._length).take(indices)
        self._release()
        return ids

    def _release(self) -> None:
        # The pages stay in the operating system's cache, but no longer count as memory of this process.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)


def load_or_write(
    key: str, write_file: Callable[[Path], None], notify: Callable[[str], None] | None = None
) -> Encoded:
    """Open the file of a key; if it is missing or damaged, write it first.

    Of several processes that need the same file, one writes it and the others wait.

    Args:
        key: identifies the text and the options it is encoded with.
        write_file: writes the file to the given path, with `write`.
        notify: called with a message if another process is writing.

    Raises:
        GrimmgenError: the cache cannot be written, or another process writes for an hour.
    """
    directory = paths.id_cache_directory()
    path = directory / f"{key}.ids"
    # Reading takes no lock, so that a cache that cannot be written can still be used.
    if encoded := _open(path):
        with contextlib.suppress(OSError):
            os.utime(path)
        return encoded
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the cache of encoded texts", _LOCK_TIMEOUT, notify):
        files.sweep(directory)
        encoded = _open(path)
        if encoded is None:
            files.remove_directory(path)
            write_file(path)
            encoded = read(path)
        _remove_old(directory, path)
    return encoded


def write(path: Path, vocabulary: Vocabulary, phases: Sequence[Iterable[Block]]) -> None:
    """Write a file of ids.

    Args:
        path: of the file.
        vocabulary: of the ids.
        phases: the ids of all documents in each phase.

    Raises:
        GrimmgenError: the file cannot be written.
    """
    lengths, checksum = list[NDArray[np.int64]](), 0
    with files.atomic_writer(path) as file:
        for blocks in phases:
            of_phase = DocumentLengths()
            for block in blocks:
                content = block.ids.astype(vocabulary.id_type).tobytes()
                checksum = zlib.crc32(content, checksum)
                file.write(content)
                of_phase.add(len(block.ids), block.ends)
            lengths.append(of_phase.all())
        counts = np.stack(lengths).astype("<i8")
        description = {"vocabulary": vocabulary.to_json(), "phases": len(counts), "documents": counts.shape[1]}
        metadata = json.dumps(description).encode()
        checksum = zlib.crc32(metadata, zlib.crc32(counts.tobytes(), checksum))
        file.write(counts.tobytes() + metadata + checksum.to_bytes(4, "little"))
        file.write(len(metadata).to_bytes(8, "little") + _MAGIC)


class DocumentLengths:
    """The lengths of documents that arrive in blocks."""

    def __init__(self) -> None:
        self._ends: list[NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._size = 0

    def add(self, size: int, ends: NDArray[np.int64]) -> None:
        """Add a block of this size in which documents end at these places."""
        self._ends.append(ends + self._size)
        self._size += size

    def all(self) -> NDArray[np.int64]:
        """Return the length of each document."""
        ends = np.concatenate(self._ends)
        return ends[1:] - ends[:-1]


def read(path: Path) -> Encoded:
    """Map a file of `write` into memory, and check it.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is damaged.
    """
    damaged = IntegrityError(f"{path} is not a file of ids", "remove it")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise damaged
    with files.wrap_os_errors(f"cannot read {path}", missing_ok=True), files.open_regular(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise damaged from None  # an empty file
    try:
        return _decode(mapped)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, IntegrityError):
        # Windows cannot replace a file that is mapped.
        mapped.close()
        raise damaged from None


def _open(path: Path) -> Encoded | None:
    """Read a file of ids; None if it is missing or damaged."""
    with contextlib.suppress(FileNotFoundError, IntegrityError):
        return read(path)
    return None


def _decode(mapped: mmap.mmap) -> Encoded:
    """Decode a mapped file; raise one of several exceptions if it is damaged."""
    end = len(mapped) - _TRAILER - int.from_bytes(mapped[-16:-8], "little")
    metadata_bytes = mapped[max(0, end) : -_TRAILER]
    metadata = json.loads(metadata_bytes)
    vocabulary = vocabulary_from_json(metadata["vocabulary"])
    phases, documents, kind = int(metadata["phases"]), int(metadata["documents"]), vocabulary.id_type
    if mapped[-8:] != _MAGIC or min(phases, documents) < 1 or end < 8 * phases * documents:
        raise ValueError
    counts = mapped[end - 8 * phases * documents : end]
    lengths = np.frombuffer(counts, "<i8").reshape(phases, documents).astype(np.int64)
    ids = MappedIds(mapped, kind, int(lengths.sum()))
    if end - len(counts) != len(ids) * np.dtype(kind).itemsize or lengths.min() < 0:
        raise ValueError
    checksum = 0
    for at in range(0, len(ids), 1 << 20):
        piece = ids[at : at + (1 << 20)]
        checksum = zlib.crc32(piece.data, checksum)
        # A larger id would read beyond the end of the weights.
        if piece.max() >= len(vocabulary):
            raise ValueError
    if zlib.crc32(metadata_bytes, zlib.crc32(counts, checksum)) != int.from_bytes(mapped[-20:-16], "little"):
        raise ValueError
    return vocabulary, RaggedIds.of_lengths(ids, lengths)


def _remove_old(directory: Path, used: Path) -> None:
    """Remove all files of ids but the KEPT most recently used ones; never `used`, whatever its time is."""
    with files.wrap_os_errors(f"cannot clean up {directory}"):
        others = [path for path in directory.glob("*.ids") if path != used]
        for path in sorted(others, key=lambda p: -p.lstat().st_mtime_ns)[KEPT - 1 :]:
            # Windows cannot remove a file that is in use; a later run will.
            with contextlib.suppress(PermissionError):
                path.unlink()
