"""Verbatim copies from the training set: the longest ones, where they come from, and the share of new n-grams.

All figures follow from the longest suffix of a text that occurs in the training set. To find it exactly,
`CopyIndex` keeps a suffix array of the reversed training text, in which that suffix is a prefix, found by binary
search. Texts are indexed as UTF-8, so a character can match only at a character boundary.
"""

from __future__ import annotations

import bisect
import copy
import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Normalisation
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.text.corpus import digest_of, texts_of
from grimmgen.text.normalisation import normalise

if TYPE_CHECKING:
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.text.corpus import Document

# Minimum lengths of the copies, and lengths of the n-grams, that `measure` counts, in characters.
COPY_LENGTHS = (20, 40, 80)
NGRAM_LENGTHS = (4, 8, 12, 16, 24, 32)

_FORMAT = 1
# Separates documents. It is not a byte of UTF-8, so no copy extends over it.
_BORDER = b"\xff"
# The bytes of a UTF-8 character except its first.
_CONTINUATION = bytes(range(0x80, 0xC0))
# Suffixes sorted at a time, to bound the memory.
_CHUNK = 1 << 22
_WORD = 8
# `CopyLimit.copied` measures a copy up to this many characters beyond the limit.
_BEYOND = 1000


@dataclass(frozen=True)
class Copy:
    """A passage of a text that occurs verbatim in a training document.

    Attributes:
        text: the passage.
        begin: its position in the measured text, in characters.
        document: the name of a training document that contains it.
        offset: its position in that document (normalised), in characters.
        line: its line in that document, from 1.
    """

    text: str
    begin: int
    document: str
    offset: int
    line: int


@dataclass(frozen=True)
class Novelty:
    """How much of a text is new.

    Attributes:
        name: of the text.
        characters: of the text.
        longest: its longest copy; None if none of its characters occurs in the training set.
        copied: for each of COPY_LENGTHS, the share of characters in copies of at least that length.
        novel: for each of NGRAM_LENGTHS, the share of the text's character n-grams that do not occur in the
            training set; None if the text is shorter.
    """

    name: str
    characters: int
    longest: Copy | None
    copied: dict[int, float]
    novel: dict[int, float | None]


class CopyIndex:
    """A searchable index of the training documents.

    Args:
        text: the UTF-8 of the documents with borders around them, reversed, n bytes.
        order: the suffix array of `text`, [n] int32.
        names: of the documents.
        starts: the position of each document in the text that is not reversed, in bytes.
    """

    def __init__(
        self, text: bytes | mmap.mmap, order: NDArray[np.int32], names: Sequence[str], starts: Sequence[int]
    ) -> None:
        self._text = text
        # Reading single items is faster from a memoryview than from an array.
        self._order = order.data
        self._names = names
        self._starts = starts

    @classmethod
    def build(cls, documents: Iterable[tuple[str, str]]) -> CopyIndex:
        """Index (name, normalised text) pairs, in memory."""
        joined, names, starts = _join(documents)
        order = np.empty(len(joined), np.int32)
        _sort(np.frombuffer(joined, np.uint8), order, np.empty_like(order))
        return cls(joined, order, names, starts)

    def longest_suffixes(self, text: str, candidates: Sequence[str], limit: int) -> list[int]:
        """The length of the longest suffix of `text + candidate` in the training set, for each candidate.

        The cost is one binary search for each candidate, tens of microseconds.

        Args:
            text: normalised; only its last `limit` characters matter.
            candidates: possible continuations, normalised; may be empty strings.
            limit: the maximum length that is distinguished, 1 or more characters.

        Returns:
            For each candidate the length in characters, at most `limit`.

        >>> CopyIndex.build([("a", "the king")]).longest_suffixes("a thin", ["", "g", " k"], limit=40)
        [2, 3, 2]
        """
        tail = text[-limit:]
        lengths = []
        for candidate in candidates:
            query = (tail + candidate)[-limit:].encode("utf-8", "surrogatepass")[::-1]
            length, _ = self._longest_prefix(query)
            lengths.append(_character_count(query[:length]))
        return lengths

    def longest_at_each(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each position of a text, the longest suffix of the text up to there that is in the training set.

        Args:
            text: normalised, N characters.

        Returns:
            Lengths in characters, [N], and positions in the index, [N], for `copy`.
        """
        content = text.encode("utf-8", "surrogatepass")
        reverse = content[::-1]
        lengths, positions = np.zeros(len(text), np.int64), np.zeros(len(text), np.int64)
        end, length, characters, position = 0, 0, 0, 0
        for number, character in enumerate(text):
            width = len(character.encode("utf-8", "surrogatepass"))
            end += width
            begin = len(content) - end
            query = reverse[begin : begin + width]
            # If the previous match continues with this character, it is the longest: a longer one would have been
            # found at the previous position.
            if position >= width and self._text[position - width : position] == query:
                length, characters, position = length + width, characters + 1, position - width
            else:
                query = reverse[begin : begin + length + width]
                length, position = self._longest_prefix(query)
                # Drop a character that matches only in part.
                length = len(query[:length].rstrip(_CONTINUATION))
                characters = _character_count(query[:length])
            lengths[number], positions[number] = characters, position
        return lengths, positions

    def copy(self, text: str, end: int, length: int, position: int) -> Copy:
        """The copy that ends before character `end` of a text, from the results of `longest_at_each`."""
        passage = text[end - length : end]
        begin = len(self._text) - position - len(passage.encode("utf-8", "surrogatepass"))
        number = bisect.bisect_right(self._starts, begin) - 1
        before = self._slice(self._starts[number], begin)
        return Copy(passage, end - length, self._names[number], len(before), before.count("\n") + 1)

    def _slice(self, begin: int, end: int) -> str:
        """These bytes of the text that is not reversed."""
        n = len(self._text)
        return self._text[n - end : n - begin][::-1].decode("utf-8", "surrogatepass")

    def _longest_prefix(self, query: bytes) -> tuple[int, int]:
        """The longest prefix of `query` in the reversed text: its length and its position, in bytes."""
        size, text, order = len(query), self._text, self._order
        after = bisect.bisect_left(order, query, key=lambda position: text[position : position + size])
        best = 0, 0
        # The suffixes with the longest common prefix are the neighbours of the insertion point.
        for position in order[max(0, after - 1) : after + 1]:
            length = _common_prefix(query, text[position : position + size])
            if length > best[0]:
                best = length, position
        return best


class CopyLimit:
    """Limits how many consecutive characters of one generated text may occur in the training set.

    Args:
        index: of the training set.
        limit: maximum length of a copy, in characters.
        text: the prompt, normalised as the index is; copies that end in it are not counted.
        longest_token: maximum number of characters of a token.

    Attributes:
        longest: the longest copy that was appended because every continuation exceeded the limit; 0 if none.
    """

    def __init__(self, index: CopyIndex, limit: int, text: str, longest_token: int) -> None:
        self._index, self._limit, self._longest_token = index, limit, longest_token
        # Copies beyond the limit are distinguished up to this length.
        self._longest_measured = limit + _BEYOND
        self._text = text[-self._longest_measured :]
        self.longest = 0
        self._update_budget()

    def allows(self, piece: str) -> bool:
        """Whether appending a piece keeps within the limit."""
        return len(piece) <= self._budget or self._longest_copy(piece, self._limit + 1) <= self._limit

    def copied(self, piece: str) -> int:
        """The length of the longest copy that appending a piece would make, in characters."""
        return self._longest_copy(piece, self._longest_measured)

    def allowed_length(self, piece: str) -> int:
        """How many leading characters of a piece may be appended."""
        text = self._text[-self._limit - 1 :]
        before, end = len(text), self._budget
        text += piece
        while end < len(piece):
            [length] = self._index.longest_suffixes(text[: before + end + 1], [""], self._limit + 1)
            if length > self._limit:
                return end
            # A copy grows by one character at a time, so none can exceed the limit before this position.
            end += self._limit + 1 - length
        return len(piece)

    def append(self, piece: str, copied: int = 0) -> None:
        """Append a piece to the text.

        Args:
            piece: normalised.
            copied: the length of the copy that it makes, if that exceeds the limit.
        """
        self.longest = max(self.longest, copied)
        self._text = (self._text + piece)[-self._longest_measured :]
        self._budget -= len(piece)
        if self._budget < self._longest_token:
            self._update_budget()

    def appended(self, piece: str, copied: int = 0) -> CopyLimit:
        """A copy of this object with a piece appended; see `append`."""
        other = copy.copy(self)
        other.append(piece, copied)
        return other

    def _update_budget(self) -> None:
        """Compute how many characters can be appended without a look-up."""
        [length] = self._index.longest_suffixes(self._text, [""], self._limit + 1)
        self._budget = max(0, self._limit - length)

    def _longest_copy(self, piece: str, limit: int) -> int:
        prefixes = [piece[: end + 1] for end in range(len(piece))]
        return max(self._index.longest_suffixes(self._text, prefixes, limit), default=0)


def training_index(model: TrainedModel) -> CopyIndex:
    """The index of the documents that a model was trained on, normalised as they were then.

    Raises:
        UsageError: the model is a checkpoint file, which does not include its training set.
        GrimmgenError: a training document cannot be read, or the cache cannot be written.
    """
    configuration = model.checkpoint.configuration
    return copy_index(_training_documents(model), configuration.normalisation)


def training_document_keys(model: TrainedModel) -> Iterator[bytes]:
    """Yield the `document_key` of each document that a model was trained on, normalised as it was then.

    Raises:
        UsageError: the model is a checkpoint file, which does not include its training set.
        GrimmgenError: a training document cannot be read.
    """
    configuration = model.checkpoint.configuration
    for text in texts_of(_training_documents(model)):
        yield document_key(normalise(text, configuration.normalisation))


def document_key(text: str) -> bytes:
    """Return a hash of a normalised text that ignores the white space around it."""
    return hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=12).digest()


def _training_documents(model: TrainedModel) -> Sequence[Document]:
    if not model.has_split:
        raise UsageError(f"{model.name} does not include its training stories", "give --run a run's name")
    return model.split().parts["train"]


def copy_index(documents: Sequence[Document], normalisation: Normalisation) -> CopyIndex:
    """The index of these documents, built on first use and then mapped from the cache.

    Args:
        documents: at least one.
        normalisation: of the text.

    Raises:
        GrimmgenError: a document cannot be read, or the cache cannot be written.
    """
    key = json.dumps([_FORMAT, normalisation, digest_of(documents)])
    directory = paths.index_directory(files.sha256(key.encode())[:32])
    if (index := _open_index(directory)) is None:
        texts = (normalise(text, normalisation) for text in texts_of(documents))
        _write_index(directory, zip((document.name for document in documents), texts, strict=True))
        index = _open_index(directory)
        if index is None:
            raise IntegrityError(f"{directory} does not hold what was just written", "check the disk")
    return index


def measure(index: CopyIndex, name: str, text: str) -> Novelty:
    """Measure the novelty of a text that is normalised as the index is."""
    return measure_together(index, name, [text])


def measure_together(index: CopyIndex, name: str, texts: Sequence[str]) -> Novelty:
    """Measure the novelty of several texts as one; shares are over the characters or n-grams of all."""
    longest: Copy | None = None
    inside = dict.fromkeys(COPY_LENGTHS, 0)
    ngrams, novel = dict.fromkeys(NGRAM_LENGTHS, 0), dict.fromkeys(NGRAM_LENGTHS, 0)
    for text in texts:
        lengths, positions = index.longest_at_each(text)
        for least in COPY_LENGTHS:
            inside[least] += _copied_characters(lengths, least)
        for n in NGRAM_LENGTHS:
            ngrams[n] += max(0, len(text) - n + 1)
            novel[n] += int(np.count_nonzero(lengths[n - 1 :] < n))
        if len(text) and (most := int(lengths.max())) > (len(longest.text) if longest else 0):
            at = int(lengths.argmax())
            longest = index.copy(text, at + 1, most, int(positions[at]))
    characters = sum(map(len, texts))
    return Novelty(
        name,
        characters,
        longest,
        {least: count / max(1, characters) for least, count in inside.items()},
        {n: novel[n] / ngrams[n] if ngrams[n] else None for n in NGRAM_LENGTHS},
    )


def _copied_characters(lengths: NDArray[np.int64], least: int) -> int:
    """The number of characters in copies of at least `least` characters."""
    ends = np.flatnonzero(lengths >= least) + 1
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(edges, ends - lengths[ends - 1], 1)
    np.add.at(edges, ends, -1)
    return int(np.count_nonzero(np.cumsum(edges)))


def _character_count(content: bytes) -> int:
    """The number of characters whose first byte is in `content`."""
    return len(content.translate(None, _CONTINUATION))


def _common_prefix(one: bytes, other: bytes) -> int:
    """The length of the longest common prefix."""
    size = min(len(one), len(other))
    differing = int.from_bytes(one[:size]) ^ int.from_bytes(other[:size])
    return size - (differing.bit_length() + 7) // 8


# --- building and storing the index --------------------------------------------------------------------------


def _join(documents: Iterable[tuple[str, str]]) -> tuple[bytes, list[str], list[int]]:
    """Join (name, normalised text) pairs: the reversed text, the names, and each start in bytes, not reversed."""
    names, starts, pieces, size = [], [], [_BORDER], 1
    for name, text in documents:
        content = text.encode("utf-8", "surrogatepass")
        names.append(name)
        starts.append(size)
        pieces += content, _BORDER
        size += len(content) + 1
    if size >= 1 << 31:
        raise GrimmgenError(f"{size:,} bytes of training stories are too many to index", "2 GB is the limit")
    return b"".join(pieces)[::-1], names, starts


def _sort(text: NDArray[np.uint8], order: NDArray[np.int32], rank: NDArray[np.int32]) -> None:
    """Build a suffix array by prefix doubling, in bounded memory.

    After Manber and Myers 1993; groups that are already sorted are skipped as in Larsson and Sadakane 1999.

    Args:
        text: [n], ends with a border.
        order: receives the suffix array: the start of each suffix, in ascending order of the suffixes, [n].
        rank: scratch buffer; receives the position of each suffix in `order`, [n].
    """
    n = len(text)
    padded = np.concatenate([text, np.zeros(_WORD, np.uint8)])
    # The eight bytes, and the two bytes, at each position as one number.
    words: NDArray[np.uint64] = np.ndarray(n, ">u8", padded, strides=(1,))
    pairs: NDArray[np.uint16] = np.ndarray(n, ">u2", padded, strides=(1,))
    blocks = [slice(begin, min(n, begin + _CHUNK)) for begin in range(0, n, _CHUNK)]
    ends = np.cumsum(sum(np.bincount(pairs[block], minlength=1 << 16) for block in blocks))
    # Marks the first of each group of suffixes that are equal in all bytes compared so far; [n] is a sentinel.
    heads = np.zeros(n + 1, np.bool_)
    heads[n] = True

    def place(suffixes: NDArray[np.int64], keys: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Store suffixes, sorted by their keys, at these positions of the order."""
        order[at] = suffixes
        first_of_key = np.concatenate([[True], keys[1:] != keys[:-1]])
        heads[at] |= first_of_key
        rank[suffixes] = np.maximum.accumulate(np.where(first_of_key, at, 0))

    # 1. Sort by the first eight bytes, the suffixes of a range of leading pairs at a time.
    first = done = 0
    while done < n:
        last = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        found = [np.flatnonzero((pairs[b] >= first) & (pairs[b] < last)) + b.start for b in blocks]
        suffixes = np.concatenate(found)
        if len(suffixes):
            leading = words[suffixes].astype(np.uint64)
            sorting = np.argsort(leading)
            place(suffixes[sorting], leading[sorting], np.arange(done, done + len(suffixes)))
        first, done = last, int(ends[last - 1])

    # 2. Double the number of bytes compared, until every suffix is a group of its own.
    depth = _WORD
    while not heads.all():
        end = 0
        while end < n:
            begin, end = end, min(n, end + _CHUNK)
            end += int(heads[end:].argmax())
            at = np.flatnonzero(~(heads[begin:end] & heads[begin + 1 : end + 1])) + begin
            if not len(at):
                continue
            suffixes = order[at].astype(np.int64)
            # The next `depth` bytes are compared by the rank of the suffix that begins with them.
            following = suffixes + depth
            ranks = np.where(following < n, rank[np.minimum(following, n - 1)] + np.int64(1), 0)
            keys = (rank[suffixes].astype(np.int64) << 32) | ranks
            sorting = np.argsort(keys)
            place(suffixes[sorting], keys[sorting], at)
        depth *= 2


def _mapped_integers(file: IO[bytes], n: int) -> np.memmap[Any, np.dtype[np.int32]]:
    """Map n integers of a file, which is extended to their size."""
    # With the space reserved, a full disk raises an error; writing to a mapped sparse file would kill the process.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, 4 * n)
    return np.memmap(file, np.int32, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=n)


def _write_index(directory: Path, documents: Iterable[tuple[str, str]]) -> None:
    files.make_directory(directory)
    files.sweep(directory)
    text, names, starts = _join(documents)
    n = len(text)
    with files.atomic_writer(directory / "order") as file:
        order = _mapped_integers(file, n)
        with tempfile.TemporaryFile(dir=directory) as scratch:
            _sort(np.frombuffer(text, np.uint8), order, _mapped_integers(scratch, n))
        order.flush()
        checksums = {"order": zlib.crc32(order.data), "text": zlib.crc32(text)}
        del order
    files.write_atomically(directory / "text", text)
    # Written last, as the mark of a complete index. Concurrent writers write the same content.
    header = {"format": _FORMAT, "bytes": n, "crc32": checksums, "names": names, "starts": starts}
    files.write_json(directory / "index.json", header)


def _open_index(directory: Path) -> CopyIndex | None:
    """Map the index in a directory; None if it is missing or damaged."""
    try:
        header = files.read_json(directory / "index.json")
        mapped = {}
        for name, width in ("text", 1), ("order", 4):
            with (directory / name).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(content) != width * header["bytes"] or zlib.crc32(content) != header["crc32"][name]:
                return None
            mapped[name] = content
        names, starts = [str(name) for name in header["names"]], [int(start) for start in header["starts"]]
        if len(names) != len(starts):
            return None
    except (OSError, IntegrityError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return CopyIndex(mapped["text"], np.frombuffer(mapped["order"], np.int32), names, starts)
