"""N-grams as integers: cutting a normalised text into them, and counting them.

    N  n-grams of a text          K  different n-grams

Texts are read piece by piece, so that the memory grows with K and not with the texts. One thread counts some
hundred megabytes per second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Normalisation
from grimmgen.errors import UsageError
from grimmgen.text.normalisation import CodePoints, Text, code_points, normalised_pieces, pieces_of

_Integers = NDArray[np.int64]

# Up to this many possible keys, an array with one entry for each is faster than any other look-up.
LARGEST_TABLE = 1 << 22
_LARGEST_KEY = 1 << 63
# Keys that are counted at once: enough to make up for the addition of a whole table of counts.
_BATCH = 1 << 17


def fits_int64(characters: int, ngram: int) -> bool:
    """Whether the keys of n-grams over so many different characters are 64-bit integers."""
    return bool((characters + 2) ** ngram <= _LARGEST_KEY)


class NgramKeys:
    """A mapping of n-grams to integers (keys), whose digits are the ranks of the characters in the alphabet.

    Rank 0 is an empty place, since the last n-gram of a text may be shorter; the last rank stands for all
    characters outside the alphabet. Keys are in the order of the n-grams' code points.

    Args:
        alphabet: different characters, in the order of code points.
        ngram: n, the digits of a key.

    Attributes:
        base: number of ranks.
        size: number of possible keys, base**n.

    Raises:
        UsageError: keys would not fit into 64 bits.
    """

    def __init__(self, alphabet: str, ngram: int) -> None:
        self.ngram = ngram
        self.alphabet = alphabet
        self.base = len(alphabet) + 2
        self.size = self.base**ngram
        if not fits_int64(len(alphabet), ngram):
            raise UsageError(
                f"{ngram}-grams over {len(alphabet)} different characters are too many", "lower --ngram"
            )
        codes = code_points(alphabet)
        # Narrow integers, since a large text is looked up in this array.
        self._ranks = np.full(int(codes.max(initial=0)) + 2, self.base - 1, np.min_scalar_type(self.base - 1))
        self._ranks[codes] = np.arange(1, len(codes) + 1)
        self._type = np.min_scalar_type(-self.size)

    def keys(self, codes: CodePoints) -> NDArray[Any]:
        """Return the keys of the n-grams of a normalised text, [N = ⌈characters / n⌉]."""
        if self.ngram == 2 and codes.dtype == np.uint8 and len(codes) % 2 == 0:
            return self._byte_pairs.take(codes.view(np.uint16))
        ranks = self._ranks.take(codes, mode="clip")
        if missing := -len(ranks) % self.ngram:
            ranks = np.concatenate([ranks, np.zeros(missing, ranks.dtype)])
        keys: NDArray[np.int64] = ranks[:: self.ngram].astype(self._type)
        for digit in range(1, self.ngram):
            keys *= self.base
            keys += ranks[digit :: self.ngram]
        return keys

    @cached_property
    def _byte_pairs(self) -> NDArray[Any]:
        """The keys of all pairs of bytes, [65536], indexed by the two bytes as one integer: for ASCII bigrams."""
        return self.keys(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).astype(np.uint16))

    def ranks(self, keys: NDArray[Any]) -> Iterable[_Integers]:
        """Yield the ranks of the keys' first characters, [len(keys)], of their second ones, and so on."""
        for digit in reversed(range(self.ngram)):
            yield keys.astype(np.int64) // self.base**digit % self.base

    def text(self, key: int) -> str:
        """Return the n-gram of a key; its characters have to be in the alphabet."""
        characters = []
        for _ in range(self.ngram):
            key, rank = divmod(key, self.base)
            characters.append(self.alphabet[rank - 1] if rank else "")
        return "".join(reversed(characters))


class NgramCutter:
    """Cuts a text that arrives in pieces into n-grams that do not overlap.

    Args:
        ngram: n.
        phase: number of characters to skip at the beginning of the text.
    """

    def __init__(self, ngram: int, phase: int = 0) -> None:
        self._ngram = ngram
        self._skip = phase
        self._rest: CodePoints = np.zeros(0, np.uint8)

    def add(self, codes: CodePoints) -> CodePoints:
        """Add a piece; return the characters of the n-grams that are complete now."""
        skipped = min(self._skip, len(codes))
        self._skip -= skipped
        codes = np.concatenate([self._rest, codes[skipped:]])
        end = len(codes) - len(codes) % self._ngram
        self._rest = codes[end:]
        return codes[:end]

    def rest(self) -> CodePoints:
        """Return the characters of the shorter n-gram at the end of the text, which may be none."""
        return self._rest


@dataclass(frozen=True)
class NgramCounts:
    """Number of occurrences of each n-gram.

    Attributes:
        keys: different keys in ascending order, [K], int64.
        counts: of each key, [K], int64.
    """

    keys: _Integers
    counts: _Integers

    @classmethod
    def sum(cls, parts: Sequence[NgramCounts]) -> NgramCounts:
        """Add up counts."""
        keys, places = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
        return cls(keys.astype(np.int64), counts)


def count_ngrams(
    texts: Iterable[Text], ngram: int, normalisation: Normalisation, phases: bool = False
) -> tuple[NgramKeys, NgramCounts]:
    """Count the n-grams of texts, which are read twice: for their alphabet, and for the n-grams.

    Args:
        texts: as they were read; they are normalised.
        ngram: n.
        normalisation: of the texts.
        phases: count the n-grams from each text's first character on, from its second, … and from its n-th.

    Returns:
        The keys over the texts' alphabet, and the counts.

    Raises:
        UsageError: n is too large for so many different characters.
    """
    texts = tuple(texts)
    keys = NgramKeys(_alphabet(texts, normalisation), ngram)
    counter = _KeyCounter(keys.size)
    for text in texts:
        cutters = [NgramCutter(ngram, phase) for phase in range(ngram if phases else 1)]
        for codes in normalised_pieces(pieces_of(text), normalisation):
            for cutter in cutters:
                counter.add(keys.keys(cutter.add(codes)))
        for cutter in cutters:
            counter.add(keys.keys(cutter.rest()))
    return keys, counter.counts()


def _alphabet(texts: Iterable[Text], normalisation: Normalisation) -> str:
    """The characters of the normalised texts, in the order of code points."""
    ascii_bytes, seen = b"", np.zeros(0x110000, np.bool_)
    for text in texts:
        for codes in normalised_pieces(pieces_of(text), normalisation):
            if codes.dtype == np.uint8:
                # Deleting the known bytes is faster than a look-up, since hardly ever any are left.
                ascii_bytes += bytes(set(codes.tobytes().translate(None, ascii_bytes)))
            elif not seen.take(codes).all():
                seen[codes] = True
    seen[list(ascii_bytes)] = True
    return "".join(map(chr, np.flatnonzero(seen)))


class _KeyCounter:
    """Counts keys that arrive in parts; in an array with one entry for each possible key, unless it is too large.

    Args:
        size: number of possible keys.
    """

    def __init__(self, size: int) -> None:
        self._table = np.zeros(size, np.int64) if size <= LARGEST_TABLE else None
        self._batch = max(_BATCH, size) if self._table is not None else LARGEST_TABLE
        self._waiting: list[NDArray[Any]] = []
        self._waiting_keys = 0
        self._parts: list[NgramCounts] = []  # without a table; the first is the largest

    def add(self, keys: NDArray[Any]) -> None:
        self._waiting.append(keys)
        self._waiting_keys += len(keys)
        if self._waiting_keys >= self._batch:
            self._flush()

    def counts(self) -> NgramCounts:
        self._flush()
        if self._table is None:
            return NgramCounts.sum(self._parts)
        keys = np.flatnonzero(self._table)
        return NgramCounts(keys, self._table[keys])

    def _flush(self) -> None:
        keys = np.concatenate([np.zeros(0, np.uint8), *self._waiting])
        self._waiting, self._waiting_keys = [], 0
        if self._table is not None:
            self._table += np.bincount(keys, minlength=len(self._table))
            return
        self._parts.append(NgramCounts(*np.unique(keys, return_counts=True)))
        # Merged whenever the later parts have as many keys as the first one: few merges, so that the work stays
        # proportional to the keys, and little that is stored twice.
        if sum(len(part.keys) for part in self._parts[1:]) >= len(self._parts[0].keys):
            self._parts = [NgramCounts.sum(self._parts)]
