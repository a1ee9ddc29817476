"""Stories as ids, whatever their size: counted and encoded piece by piece, kept in memory or in a mapped file.

`count` gives the vocabulary that `Vocabulary.build` gives, `encode` the ids that `Vocabulary.encode` gives, from
pieces of a text instead of the whole: what they hold does not grow with the text. Letters that fold one by one are
folded by look-up in an array; a piece that has others (combining marks, a sigma, emoji) by `vocabulary.normalise`,
the plain truth.

One thread does all this, at hundreds of megabytes a second; training reads one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import mmap
import os
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration, Newlines
from grimmgen.errors import IntegrityError
from grimmgen.io import files, paths
from grimmgen.text.batches import IdSequence
from grimmgen.text.corpus import Document
from grimmgen.text.vocabulary import (
    LARGEST_TABLE,
    Codes,
    Counted,
    Keys,
    Vocabulary,
    check_options,
    code_points,
    normalise,
)

# Stories of more bytes than this, together, have their ids in a file.
IN_MEMORY = 64 << 20
# Token files that are kept, those used last; each takes as much room as its text (with phases, as n such texts).
KEPT = 3

_LOCK_TIMEOUT = 3600.0
_FORMAT = 2
_MAGIC = b"grimmids"
# Keys counted at a time: enough to make up for adding a whole table of counts.
_AT_ONCE = 1 << 17
# Characters after which a text is cut even where both sides are not normalised apart (a file of nothing but dots):
# memory stays bounded, and at worst a letter and its accent stay two characters there.
_LONGEST = 1 << 20
_FINAL_SIGMA = "\u03a3"
_SPACES = (" ", "\n")
_NOT_ALONE = 0xFFFF


class Text(Protocol):
    """What can be read piece by piece, more than once."""

    def pieces(self) -> Iterable[str]:
        """The text."""


# --- folding -------------------------------------------------------------------------------------------------


def seam(text: str, start: int = 1) -> int:
    """The last place, from `start` on, where a text can be cut so that both sides are normalised apart; else 0.

    There, nothing reaches across: no line end of two characters, no letter that is composed with its neighbour,
    and no sigma that would have to look beyond to know whether it ends a word. The end of a text is such a place
    where it is a space, whatever follows.
    """
    for at in range(len(text), start - 1, -1):
        before, after = text[at - 1 : at], text[at : at + 1]
        if before in _SPACES or (after and _stands_alone(before) and _stands_alone(after)):
            return at
    return 0


def _stands_alone(character: str) -> bool:
    # None of these joins what stands before it (as Hangul's vowels and finals do), nor is it passed over in search
    # of a word's end (as a few ASCII signs are).
    if character.isascii():
        return character not in "\r'.:^`"
    return (
        unicodedata.category(character) in {"Lu", "Ll", "Lo", "Nd"}
        and not "\u1100" <= character <= "\u11ff"
        and character != _FINAL_SIGMA
    )


@functools.lru_cache(maxsize=4)
def _folds(lower: bool, newlines: Newlines) -> NDArray[np.uint16]:
    """What each character up to U+FFFF is normalised to, where that is one character whatever its neighbours are.

    _NOT_ALONE is said of all others.
    """
    table = np.full(1 << 16, _NOT_ALONE, np.uint16)
    for code in range((1 << 16) - 1):
        character = chr(code)
        if unicodedata.category(character) in {"Mn", "Mc", "Me", "Cs"} or 0x1100 <= code <= 0x11FF:
            continue
        folded = normalise(character, lower, newlines)
        if len(folded) == 1 and folded < chr(_NOT_ALONE) and character != _FINAL_SIGMA:
            table[code] = ord(folded)
    return table


def fold(text: str, lower: bool, newlines: Newlines) -> Codes:
    """The characters of the normalised text, as integers as narrow as they may be."""
    if text.isascii():
        return np.frombuffer(normalise(text, lower, newlines).encode(), np.uint8)
    joined = text.replace("\r\n", "\n") if "\r" in text else text
    # Beyond U+FFFF are pairs of surrogates, which do not stand alone.
    codes = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), "<u2")
    folded = _folds(lower, newlines).take(codes)
    return code_points(normalise(text, lower, newlines)) if (folded == _NOT_ALONE).any() else folded


def _folded(pieces: Iterable[str], lower: bool, newlines: Newlines) -> Iterator[Codes]:
    """The characters of a normalised text, piece by piece."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        at = seam(text, max(1, len(rest)))
        if not at and len(text) > _LONGEST:
            at = len(text) - (2 if text.endswith("\r\n") else 1)
        rest = text[at:]
        if at:
            yield fold(text[:at], lower, newlines)
    if rest:
        yield fold(rest, lower, newlines)


class _Cut:
    """Cuts a text that comes piece by piece into n-grams, from its `phase`-th character on."""

    def __init__(self, ngram: int, phase: int) -> None:
        self._ngram = ngram
        self._skip = phase
        self._rest: Codes = np.zeros(0, np.uint8)

    def whole(self, codes: Codes) -> Codes:
        """What is complete after this piece: characters of whole n-grams."""
        skipped = min(self._skip, len(codes))
        self._skip -= skipped
        codes = np.concatenate([self._rest, codes[skipped:]])
        end = len(codes) - len(codes) % self._ngram
        self._rest = codes[end:]
        return codes[:end]

    def last(self) -> Codes:
        """The shorter n-gram at the text's end, if there is one."""
        return self._rest


# --- counting ------------------------------------------------------------------------------------------------


def count(
    texts: Sequence[Text],
    ngram: int = 2,
    min_count: int = 10,
    lower: bool = True,
    newlines: Newlines = "keep",
    phases: bool = False,
) -> Vocabulary:
    """The vocabulary that `Vocabulary.build` makes of these texts, which are read twice, a piece at a time.

    What it holds grows with the number of different n-grams alone.

    Raises:
        UsageError: see `Vocabulary.build`.
    """
    check_options(ngram, min_count)
    keys = Keys(_alphabet(texts, lower, newlines), ngram)
    tally = _Tally(keys.possible)
    for text in texts:
        cuts = [_Cut(ngram, phase) for phase in range(ngram if phases else 1)]
        for codes in _folded(text.pieces(), lower, newlines):
            for cut in cuts:
                tally.add(keys.of(cut.whole(codes)))
        for cut in cuts:
            tally.add(keys.of(cut.last()))
    return Vocabulary.of_counts(keys, tally.counted(), min_count, lower, newlines)


def _alphabet(texts: Iterable[Text], lower: bool, newlines: Newlines) -> str:
    """The characters of the normalised texts, in order."""
    narrow, wide = b"", np.zeros(0x110000, np.bool_)
    for text in texts:
        for codes in _folded(text.pieces(), lower, newlines):
            if codes.dtype == np.uint8:
                # Quicker than looking each one up: what is known goes, and hardly ever is anything left.
                narrow += bytes(set(codes.tobytes().translate(None, narrow)))
            elif not wide.take(codes).all():
                wide[codes] = True
    wide[list(narrow)] = True
    return "".join(map(chr, np.flatnonzero(wide)))


class _Tally:
    """Counts keys that come in parts: in a table where all that are possible fit into one."""

    def __init__(self, possible: int) -> None:
        self._table = np.zeros(possible, np.int64) if possible <= LARGEST_TABLE else None
        self._at_once = max(_AT_ONCE, possible) if self._table is not None else LARGEST_TABLE
        self._waiting: list[NDArray[Any]] = []
        self._keys = 0  # that wait
        self._counted: list[Counted] = []

    def add(self, keys: NDArray[Any]) -> None:
        self._waiting.append(keys)
        self._keys += len(keys)
        if self._keys >= self._at_once:
            self._flush()

    def counted(self) -> Counted:
        self._flush()
        if self._table is None:
            return Counted.sum(self._counted)
        keys = np.flatnonzero(self._table)
        return Counted(keys, self._table[keys])

    def _flush(self) -> None:
        keys = np.concatenate([np.zeros(0, np.uint8), *self._waiting])
        self._waiting, self._keys = [], 0
        if self._table is not None:
            self._table += np.bincount(keys, minlength=len(self._table))
            return
        self._counted.append(Counted.of([keys]))
        # Summed up as often as that doubles what there is: work in proportion, and little that is held twice.
        if sum(len(part.keys) for part in self._counted[1:]) >= len(self._counted[0].keys):
            self._counted = [Counted.sum(self._counted)]


# --- encoding ------------------------------------------------------------------------------------------------


def ngrams(pieces: Iterable[str], vocabulary: Vocabulary, phase: int = 0) -> Iterator[Codes]:
    """The characters of a text's n-grams, cut from its `phase`-th character on, for `Vocabulary.ids`.

    Whole n-grams at a time; only the last may be shorter.
    """
    cut = _Cut(vocabulary.ngram, phase)
    for codes in _folded(pieces, vocabulary.lower, vocabulary.newlines):
        yield cut.whole(codes)
    yield cut.last()


def narrow(vocabulary: Vocabulary) -> type[np.uint16] | type[np.int32]:
    """The integers in which the ids of a vocabulary are kept."""
    return np.uint16 if len(vocabulary) <= 1 << 16 else np.int32


def encode(text: Text, vocabulary: Vocabulary, phase: int = 0) -> Iterator[NDArray[Any]]:
    """The ids that `Vocabulary.encode_phases` gives of a text for this phase, piece by piece."""
    for codes in ngrams(text.pieces(), vocabulary, phase):
        yield vocabulary.ids(codes).astype(narrow(vocabulary))


@dataclass(frozen=True)
class Encoded:
    """The stories that are learnt from.

    Attributes:
        vocabulary: of them.
        stories: for each story that is not empty the ways in which it may be cut.
    """

    vocabulary: Vocabulary
    documents: list[list[IdSequence]]


def encode_stories(
    stories: Sequence[Document], configuration: Configuration, waiting: Callable[[str], None] | None = None
) -> Encoded:
    """Count and encode the stories that are learnt from; a large text's ids are in a file of the cache.

    That file is found again by the next run on the same text with the same options. Of such files those that were
    used last stay, `KEPT` of them.

    Args:
        stories: of the training part.
        configuration: how they are cut and counted.
        waiting: told if another process is encoding.

    Raises:
        UsageError: nothing is kept, see `Vocabulary.build`.
        GrimmgenError: a story cannot be read, or the cache not be written.
        IntegrityError: a story is not what it was.
    """
    phases = range(configuration.ngram if configuration.phases else 1)
    if sum(story.size for story in stories) > IN_MEMORY:
        return _mapped(stories, configuration, phases, waiting)
    vocabulary = _count(stories, configuration)
    encoded: list[list[IdSequence]] = [
        [np.concatenate(list(encode(story, vocabulary, phase))) for phase in phases] for story in stories
    ]
    return Encoded(vocabulary, [ways for ways in encoded if len(ways[0])])


def _count(stories: Sequence[Document], options: Configuration) -> Vocabulary:
    return count(stories, options.ngram, options.min_count, options.lower, options.newlines, options.phases)


# --- the file of a large text's ids --------------------------------------------------------------------------
#
# The ids of all stories, way after way; a JSON object that has the vocabulary and the lengths; the CRC-32 of all
# that, in four bytes; how long the object is, in eight; eight bytes that say what the file is. Every byte is
# checked when it is opened: ids that have changed on the disk would be learnt from, and nobody would know.


class _Ids:
    """Ids in a mapped file; a slice is copied and its pages are let go, so that memory stays bounded."""

    def __init__(self, mapped: mmap.mmap, kind: type[Any], first: int, length: int) -> None:
        self._mapped, self._kind, self._first, self._length = mapped, np.dtype(kind), first, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, cut: slice, /) -> NDArray[Any]:
        begin, end, _ = cut.indices(self._length)
        place = (self._first + begin) * self._kind.itemsize
        ids = np.frombuffer(self._mapped, self._kind, max(0, end - begin), place).copy()
        # What is read stays in the operating system's cache, but no longer counts as ours.
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)
        return ids


def _mapped(
    stories: Sequence[Document], configuration: Configuration, phases: range, waiting: Callable[[str], None] | None
) -> Encoded:
    directory = paths.tokens_directory()
    # Several processes of a host that train together hash at the same time; one encodes, the others wait for it.
    key = _key(stories, configuration)
    path = directory / f"{key}.ids"
    # What is there needs no lock, which a cache that cannot be written does not give.
    with contextlib.suppress(FileNotFoundError, IntegrityError):
        encoded = _open(path)
        with contextlib.suppress(OSError):
            os.utime(path)
        return encoded
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the cache of encoded texts", _LOCK_TIMEOUT, waiting):
        files.sweep(directory)
        try:
            encoded = _open(path)
        except (FileNotFoundError, IntegrityError):
            files.make_way(path)
            _write(path, stories, _count(stories, configuration), phases)
            if _key(stories, configuration) != key:
                path.unlink()
                raise IntegrityError("the text has changed while it was read", "run the command again") from None
            encoded = _open(path)
        with files.explained(f"cannot use {path}"):
            others = [other for other in directory.glob("*.ids") if other != path]
            # A clock that was wrong makes the order wrong, but never removes the file that is in use.
            for old in sorted(others, key=lambda p: -p.lstat().st_mtime_ns)[KEPT - 1 :]:
                # Windows keeps a file that is in use; a later run will remove it.
                with contextlib.suppress(PermissionError):
                    old.unlink()
    return encoded


def _key(stories: Sequence[Document], options: Configuration) -> str:
    """One hash over all that the ids depend on."""
    texts = [(story.sha256 or story.digest(), story.part) for story in stories]
    ways = options.ngram, options.min_count, options.lower, options.newlines, options.phases
    what = [_FORMAT, unicodedata.unidata_version, ways, texts]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:32]


def _write(path: Path, stories: Sequence[Document], vocabulary: Vocabulary, phases: range) -> None:
    lengths, checksum = [], 0
    with files.replacing(path) as file:
        for story in stories:
            for phase in phases:
                length = 0
                for ids in encode(story, vocabulary, phase):
                    content = ids.tobytes()
                    checksum = zlib.crc32(content, checksum)
                    file.write(content)
                    length += len(ids)
                lengths.append(length)
        about = json.dumps({"vocabulary": vocabulary.to_json(), "ways": len(phases), "lengths": lengths}).encode()
        checksum = zlib.crc32(about, checksum)
        file.write(about + checksum.to_bytes(4, "little") + len(about).to_bytes(8, "little") + _MAGIC)


def _open(path: Path) -> Encoded:
    """What `_write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not what was written.
    """
    damaged = IntegrityError(f"{path} is no file of ids", "remove it")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise damaged
    with files.explained(f"cannot read {path}", missing_ok=True), files.opened(path) as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError:
            raise damaged from None  # it is empty
    try:
        return _decoded(mapped)
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError, IntegrityError):
        # Windows would not replace a file that is mapped.
        mapped.close()
        raise damaged from None


def _decoded(mapped: mmap.mmap) -> Encoded:
    """The vocabulary and the stories of a file of ids; one of several errors where it is none."""
    end = len(mapped) - 20 - int.from_bytes(mapped[-16:-8], "little")
    told = mapped[max(0, end) : -20]
    about = json.loads(told)
    vocabulary = Vocabulary.from_json(about["vocabulary"])
    ways, lengths, kind = int(about["ways"]), list(map(int, about["lengths"])), narrow(vocabulary)
    every = _Ids(mapped, kind, 0, sum(lengths))
    if mapped[-8:] != _MAGIC or end != len(every) * np.dtype(kind).itemsize or min(lengths) < 0:
        raise ValueError
    checksum = 0
    for at in range(0, len(every), 1 << 20):
        ids = every[at : at + (1 << 20)]
        checksum = zlib.crc32(ids.data, checksum)
        # An id that is none would lead beyond the end of the weights.
        if ids.max() >= len(vocabulary):
            raise ValueError
    if zlib.crc32(told, checksum) != int.from_bytes(mapped[-20:-16], "little"):
        raise ValueError
    firsts = np.cumsum([0, *lengths]).tolist()
    stories: list[list[IdSequence]] = [
        [_Ids(mapped, kind, firsts[i], lengths[i]) for i in range(story, story + ways)]
        for story in range(0, len(lengths), ways)
        if lengths[story]
    ]
    return Encoded(vocabulary, stories)


encode_documents = encode_stories
