"""What of a text stands verbatim in the training stories: the longest copies, where they come from, what is new.

Everything follows from one question: how long is the longest suffix of a text that stands somewhere in the
training stories? The index that answers it, exactly, is a suffix array of the training text read backwards, so
that a suffix of the question is a prefix there, and one binary search finds it. Texts are UTF-8, in which a
character is found where its bytes are found, and nowhere else.

Knows stories and text, and nothing of models.
"""

from __future__ import annotations

import bisect
import copy
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Newlines
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.text.corpus import Document
from grimmgen.text.normalisation import normalise

if TYPE_CHECKING:
    from grimmgen.runs.registry import TrainedModel

# A copy counts from so many characters on; n-grams of these lengths are looked for.
COPY_LENGTHS = (20, 40, 80)
NGRAM_LENGTHS = (4, 8, 12, 16, 24, 32)

_FORMAT = 1
# Between stories, before the first and after the last: no byte of UTF-8, so that no copy crosses it.
_BORDER = b"\xff"
# The bytes of a character but its first.
_CONTINUATION = bytes(range(0x80, 0xC0))
# Suffixes sorted at a time: what bounds the memory.
_CHUNK = 1 << 22
_WORD = 8
# Characters of a copy that is longer than it may be.
_BEYOND = 1000


@dataclass(frozen=True)
class Copy:
    """A piece of a text that stands in a training story, too.

    Attributes:
        text: what was copied.
        begin: where it begins in the text that was judged, in characters.
        story: the name of a training story that has it.
        place: where it begins in that story as the network sees it (normalised), in characters.
        line: where it begins there, from 1.
    """

    text: str
    begin: int
    story: str
    place: int
    line: int


@dataclass(frozen=True)
class Novelty:
    """How much of a text is new.

    Attributes:
        name: of the text.
        characters: of the text.
        longest: its longest copy; None if no character of it is known.
        copied: for each of COPY_LENGTHS, the share of characters inside copies of at least that length.
        novel: for each of NGRAM_LENGTHS, the share of the text's character n-grams that no training story has;
            None where the text has no n-gram so long.
    """

    name: str
    characters: int
    longest: Copy | None
    copied: dict[int, float]
    novel: dict[int, float | None]


class CopyIndex:
    """The training stories, ready to be asked what they have.

    Args:
        backwards: the stories' UTF-8 between borders, all of it backwards.
        order: the suffix array of that, [n] int32.
        names: of the stories.
        starts: where each begins, forwards, in bytes.
    """

    def __init__(
        self, backwards: bytes | mmap.mmap, order: NDArray[np.int32], names: Sequence[str], starts: Sequence[int]
    ) -> None:
        self._backwards = backwards
        # Single items of a memoryview are had faster than those of an array.
        self._order = order.data
        self._names = names
        self._starts = starts

    @classmethod
    def build(cls, stories: Iterable[tuple[str, str]]) -> CopyIndex:
        """Index (name, normalised text) pairs, in memory."""
        backwards, names, starts = _join(stories)
        order = np.empty(len(backwards), np.int32)
        _sort(np.frombuffer(backwards, np.uint8), order, np.empty_like(order))
        return cls(backwards, order, names, starts)

    def longest_suffixes(self, told: str, candidates: Sequence[str], reach: int) -> list[int]:
        """How many of the last characters of `told + candidate` stand in a row in a training story.

        Nothing is kept between two calls. Time: a binary search a candidate, tens of microseconds.

        Args:
            told: the text so far, normalised; only its last `reach` characters matter.
            candidates: what may come next, normalised, each asked for by itself; one may be empty.
            reach: the longest answer that is told from longer ones, 1 or more characters.

        Returns:
            For each candidate the length in characters, at most `reach`.

        >>> CopyIndex.build([("a", "the king")]).longest_suffixes("a thin", ["", "g", " k"], reach=40)
        [2, 3, 2]
        """
        tail = told[-reach:]
        found = []
        for candidate in candidates:
            asked = (tail + candidate)[-reach:].encode("utf-8", "surrogatepass")[::-1]
            length, _ = self._longest(asked)
            found.append(_characters(asked[:length]))
        return found

    def longest_at_each(self, text: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The longest suffix of each beginning of a text that stands in a training story.

        Args:
            text: normalised, N characters.

        Returns:
            Lengths in characters, [N], and for each a place of the index, [N], for `copy`.
        """
        content = text.encode("utf-8", "surrogatepass")
        backwards = content[::-1]
        lengths, places = np.zeros(len(text), np.int64), np.zeros(len(text), np.int64)
        end, length, characters, place = 0, 0, 0, 0
        for number, character in enumerate(text):
            width = len(character.encode("utf-8", "surrogatepass"))
            end += width
            begin = len(content) - end
            asked = backwards[begin : begin + width]
            # A copy that goes on is the longest there is: a longer one would have been longer before, too.
            if place >= width and self._backwards[place - width : place] == asked:
                length, characters, place = length + width, characters + 1, place - width
            else:
                asked = backwards[begin : begin + length + width]
                length, place = self._longest(asked)
                # What ends within a character has not found that one.
                length = len(asked[:length].rstrip(_CONTINUATION))
                characters = _characters(asked[:length])
            lengths[number], places[number] = characters, place
        return lengths, places

    def copy(self, text: str, end: int, length: int, place: int) -> Copy:
        """What `longest_at_each` has found at the `end`-th character of a text."""
        copied = text[end - length : end]
        begin = len(self._backwards) - place - len(copied.encode("utf-8", "surrogatepass"))
        number = bisect.bisect_right(self._starts, begin) - 1
        before = self._forwards(self._starts[number], begin)
        return Copy(copied, end - length, self._names[number], len(before), before.count("\n") + 1)

    def _forwards(self, begin: int, end: int) -> str:
        n = len(self._backwards)
        return self._backwards[n - end : n - begin][::-1].decode("utf-8", "surrogatepass")

    def _longest(self, asked: bytes) -> tuple[int, int]:
        """The longest prefix of `asked` that stands in the backward text: its length, and where, in bytes."""
        size, text, order = len(asked), self._backwards, self._order
        after = bisect.bisect_left(order, asked, key=lambda place: text[place : place + size])
        best = 0, 0
        # What shares the longest prefix stands beside the place where it would be.
        for neighbour in order[max(0, after - 1) : after + 1]:
            length = _common(asked, text[neighbour : neighbour + size])
            if length > best[0]:
                best = length, neighbour
        return best


class CopyLimit:
    """Watches over one story that is told, so that no more of it in a row than so much stands in a training story.

    Args:
        index: of the training stories.
        most: characters in a row that may stand there.
        told: the story so far, normalised as the index is; what it has copied stays.
        ngram: the most characters that it goes on by.

    Attributes:
        clear: so many characters may come, whatever they are.
        longest: the longest copy that had to be taken because there was no other way on; 0 if there is none.
    """

    def __init__(self, index: CopyIndex, most: int, told: str, ngram: int) -> None:
        self._index, self._most, self._ngram = index, most, ngram
        # So much of a copy that is too long is told from one that is longer still.
        self._reach = most + _BEYOND
        self._told = told[-self._reach :]
        self.longest = 0
        self._look()

    def allows(self, piece: str) -> bool:
        """Whether the story may go on so."""
        return len(piece) <= self.clear or self._copied(piece, self._most + 1) <= self._most

    def copied(self, piece: str) -> int:
        """The longest copy that there would be if the story went on so, in characters."""
        return self._copied(piece, self._reach)

    def allowed_length(self, piece: str) -> int:
        """So many characters of this the story may go on with."""
        text = self._told[-self._most - 1 :]
        before, end = len(text), self.clear
        text += piece
        while end < len(piece):
            [length] = self._index.longest_suffixes(text[: before + end + 1], [""], self._most + 1)
            if length > self._most:
                return end
            # A copy grows by one character at a time: the next one that can be too long ends here.
            end += self._most + 1 - length
        return len(piece)

    def append(self, piece: str, copied: int = 0) -> None:
        """The story has gone on so; for want of another way, if it is too long a copy."""
        self.longest = max(self.longest, copied)
        self._told = (self._told + piece)[-self._reach :]
        self.clear -= len(piece)
        if self.clear < self._ngram:
            self._look()

    def appended(self, piece: str, copied: int = 0) -> CopyLimit:
        """Another, of the same story, should it go on so; see `append`."""
        other = copy.copy(self)
        other.append(piece, copied)
        return other

    def _look(self) -> None:
        [length] = self._index.longest_suffixes(self._told, [""], self._most + 1)
        self.clear = max(0, self._most - length)

    def _copied(self, piece: str, reach: int) -> int:
        begun = [piece[: end + 1] for end in range(len(piece))]
        return max(self._index.longest_suffixes(self._told, begun, reach), default=0)


def training_index(model: TrainedModel) -> CopyIndex:
    """The index of the documents that a model was trained on, normalised as they were then.

    Raises:
        UsageError: the model is a checkpoint file, which does not include its training set.
        GrimmgenError: a training document cannot be read, or the cache cannot be written.
    """
    if model.run is None:
        raise UsageError(f"{model.name} does not include its training stories", "give --run a run's name")
    configuration = model.checkpoint.configuration
    return index_of(model.run.split().parts["train"], configuration.lower, configuration.newlines)


def index_of(stories: Sequence[Document], lower: bool, newlines: Newlines) -> CopyIndex:
    """The index of training stories, normalised so: made once, then mapped from the cache.

    Args:
        stories: at least one.
        lower: whether their text is folded to lower case.
        newlines: whether their line ends are kept.

    Raises:
        GrimmgenError: a story cannot be read, or the cache cannot be written.
    """
    made_of = [[s.name, s.sha256 or s.digest(), list(s.span)] for s in stories]
    described = json.dumps([_FORMAT, lower, newlines, made_of])
    directory = paths.index_directory(files.sha256(described.encode())[:32])
    if (index := _mapped(directory)) is None:
        _write(directory, ((story.name, normalise(story.read(), lower, newlines)) for story in stories))
        index = _mapped(directory)
        if index is None:
            raise IntegrityError(f"{directory} does not hold what was just written", "check the disk")
    return index


def measure(index: CopyIndex, name: str, text: str) -> Novelty:
    """How much of a text, normalised as the index is, is new."""
    return measure_together(index, name, [text])


def measure_together(index: CopyIndex, name: str, texts: Sequence[str]) -> Novelty:
    """The same of several texts, as if each character counted once; the longest copy is that of all."""
    longest: Copy | None = None
    found: list[NDArray[np.int64]] = []
    inside = dict.fromkeys(COPY_LENGTHS, 0)
    grams, novel = dict.fromkeys(NGRAM_LENGTHS, 0), dict.fromkeys(NGRAM_LENGTHS, 0)
    for text in texts:
        lengths, places = index.longest_at_each(text)
        found.append(lengths)
        for least in COPY_LENGTHS:
            inside[least] += _inside(lengths, least)
        for n in NGRAM_LENGTHS:
            grams[n] += max(0, len(text) - n + 1)
            novel[n] += int(np.count_nonzero(lengths[n - 1 :] < n))
        if len(text) and (most := int(lengths.max())) > (len(longest.text) if longest else 0):
            at = int(lengths.argmax())
            longest = index.copy(text, at + 1, most, int(places[at]))
    characters = sum(map(len, texts))
    return Novelty(
        name,
        characters,
        longest,
        {least: count / max(1, characters) for least, count in inside.items()},
        {n: novel[n] / grams[n] if grams[n] else None for n in NGRAM_LENGTHS},
    )


def _inside(lengths: NDArray[np.int64], least: int) -> int:
    """How many characters stand inside a copy of at least so many."""
    ends = np.flatnonzero(lengths >= least) + 1
    edges = np.zeros(len(lengths) + 1, np.int64)
    np.add.at(edges, ends - lengths[ends - 1], 1)
    np.add.at(edges, ends, -1)
    return int(np.count_nonzero(np.cumsum(edges)))


def _characters(content: bytes) -> int:
    """How many characters these bytes have the first byte of."""
    return len(content.translate(None, _CONTINUATION))


def _common(one: bytes, other: bytes) -> int:
    """The length of the longest common prefix."""
    size = min(len(one), len(other))
    differing = int.from_bytes(one[:size]) ^ int.from_bytes(other[:size])
    return size - (differing.bit_length() + 7) // 8


# --- making and keeping the index ----------------------------------------------------------------------------


def _join(stories: Iterable[tuple[str, str]]) -> tuple[bytes, list[str], list[int]]:
    """The backward text of (name, normalised text) pairs, their names, and where each begins forwards."""
    names, starts, pieces, size = [], [], [_BORDER], 1
    for name, text in stories:
        content = text.encode("utf-8", "surrogatepass")
        names.append(name)
        starts.append(size)
        pieces += content, _BORDER
        size += len(content) + 1
    if size >= 1 << 31:
        raise GrimmgenError(f"{size:,} bytes of training stories are too many to index", "2 GB is the most")
    return b"".join(pieces)[::-1], names, starts


def _sort(text: NDArray[np.uint8], order: NDArray[np.int32], rank: NDArray[np.int32]) -> None:
    """The suffix array by prefix doubling (Manber and Myers 1993), of what is not sorted yet alone (Larsson and
    Sadakane 1999), so many suffixes at a time that the memory is bounded.

    Args:
        text: [n], ends with a border.
        order: becomes where the suffixes begin, in their order, [n].
        rank: becomes the place of each suffix in that order, [n].
    """  # noqa: D205
    n = len(text)
    padded = np.concatenate([text, np.zeros(_WORD, np.uint8)])
    # Eight characters, and two, at each place, read as one number.
    words: NDArray[np.uint64] = np.ndarray(n, ">u8", padded, strides=(1,))
    pairs: NDArray[np.uint16] = np.ndarray(n, ">u2", padded, strides=(1,))
    blocks = [slice(begin, min(n, begin + _CHUNK)) for begin in range(0, n, _CHUNK)]
    ends = np.cumsum(sum(np.bincount(pairs[block], minlength=1 << 16) for block in blocks))
    # Where a group of suffixes begins that are equal as far as they have been compared; at n nothing begins.
    heads = np.zeros(n + 1, np.bool_)
    heads[n] = True

    def number(suffixes: NDArray[np.int64], keys: NDArray[Any], at: NDArray[np.int64]) -> None:
        """Put suffixes, sorted by their keys, to these places of the order."""
        order[at] = suffixes
        fresh = np.concatenate([[True], keys[1:] != keys[:-1]])
        heads[at] |= fresh
        rank[suffixes] = np.maximum.accumulate(np.where(fresh, at, 0))

    first = done = 0
    while done < n:
        # All suffixes that begin with one of so many pairs of characters.
        last = max(first + 1, int(np.searchsorted(ends, done + _CHUNK, "right")))
        found = [np.flatnonzero((pairs[b] >= first) & (pairs[b] < last)) + b.start for b in blocks]
        suffixes = np.concatenate(found)
        if len(suffixes):
            begun = words[suffixes].astype(np.uint64)
            sorting = np.argsort(begun)
            number(suffixes[sorting], begun[sorting], np.arange(done, done + len(suffixes)))
        first, done = last, int(ends[last - 1])

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
            # The next `depth` characters are compared by the rank of the suffix that begins with them.
            behind = suffixes + depth
            follows = np.where(behind < n, rank[np.minimum(behind, n - 1)] + np.int64(1), 0)
            keys = (rank[suffixes].astype(np.int64) << 32) | follows
            sorting = np.argsort(keys)
            number(suffixes[sorting], keys[sorting], at)
        depth *= 2


def _room(file: IO[bytes], n: int) -> np.memmap[Any, np.dtype[np.int32]]:
    """So many integers in a file, mapped."""
    # A mapped file with holes would end the program where the disk turns out to be full; this is an error instead.
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, 4 * n)
    return np.memmap(file, np.int32, "r+" if hasattr(os, "posix_fallocate") else "w+", shape=n)


def _write(directory: Path, stories: Iterable[tuple[str, str]]) -> None:
    files.make_directory(directory)
    files.sweep(directory)
    backwards, names, starts = _join(stories)
    n = len(backwards)
    with files.atomic_writer(directory / "order") as file:
        order = _room(file, n)
        with tempfile.TemporaryFile(dir=directory) as scratch:
            _sort(np.frombuffer(backwards, np.uint8), order, _room(scratch, n))
        order.flush()
        sums = {"order": zlib.crc32(order.data), "text": zlib.crc32(backwards)}
        del order
    files.write_atomically(directory / "text", backwards)
    # Last: who finds it finds the others, too. Of two who write at once both write the same.
    described = {"format": _FORMAT, "bytes": n, "crc32": sums, "names": names, "starts": starts}
    files.write_json(directory / "index.json", described)


def _mapped(directory: Path) -> CopyIndex | None:
    """The index that lies there; None if there is none, or it is damaged and has to be made again."""
    try:
        value = files.read_json(directory / "index.json")
        mapped = {}
        for name, width in ("text", 1), ("order", 4):
            with (directory / name).open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if len(content) != width * value["bytes"] or zlib.crc32(content) != value["crc32"][name]:
                return None
            mapped[name] = content
        names, starts = [str(name) for name in value["names"]], [int(start) for start in value["starts"]]
        if len(names) != len(starts):
            return None
    except (OSError, IntegrityError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return None
    return CopyIndex(mapped["text"], np.frombuffer(mapped["order"], np.int32), names, starts)
