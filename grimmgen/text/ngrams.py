"""N-grams: cutting a text into them, counting them, and their vocabulary.

A text is cut into n-grams that do not overlap (tutorial, "Preprocessing data": `th`, `e `, `ki`, `ng`); the last
one may be shorter. For speed they are integers (keys) up to the vocabulary.

    N  n-grams of a text          K  different n-grams          V  vocabulary size

Texts are read piece by piece, so that the memory grows with K and not with the texts. One thread counts some
hundred megabytes per second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import LONGEST_NGRAM, Normalisation, Tokenization
from grimmgen.errors import UsageError
from grimmgen.text.documents import JoinedText
from grimmgen.text.normalisation import CodePoints, Text, code_points, normalised_pieces, pieces_of
from grimmgen.text.vocabulary import (
    CODE_POINTS,
    SPECIALS,
    UNKNOWN,
    Block,
    Ids,
    PromptEnd,
    Vocabulary,
    in_order,
    incomplete,
    inconsistent,
    normalisation_from_json,
    normalisation_to_json,
    ranked,
    valid_entries,
)

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
        self._filled_ranks = self._ranks.copy()
        self._filled_ranks[0] = 0
        self._type = np.min_scalar_type(-self.size)

    def keys(self, codes: CodePoints, filled: bool = False) -> NDArray[Any]:
        """Return the keys of the n-grams of a normalised text, [N = ⌈characters / n⌉].

        Args:
            codes: of the text.
            filled: whether a NUL is an empty place, as `NgramCutter.add_documents` has it.
        """
        if self.ngram == 2 and codes.dtype == np.uint8 and len(codes) % 2 == 0:
            return (self._filled_byte_pairs if filled else self._byte_pairs).take(codes.view(np.uint16))
        ranks = (self._filled_ranks if filled else self._ranks).take(codes, mode="clip")
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

    @cached_property
    def _filled_byte_pairs(self) -> NDArray[Any]:
        return self.keys(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).astype(np.uint16), filled=True)

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
        self._phase = self._skip = phase
        self._rest: CodePoints = np.zeros(0, np.uint8)

    def add(self, codes: CodePoints) -> CodePoints:
        """Add a piece; return the characters of the n-grams that are complete now."""
        skipped = min(self._skip, len(codes))
        self._skip -= skipped
        codes = np.concatenate([self._rest, codes[skipped:]])
        end = len(codes) - len(codes) % self._ngram
        self._rest = codes[end:]
        return codes[:end]

    def add_documents(self, codes: CodePoints) -> tuple[CodePoints, _Integers]:
        """Add a piece of several texts, each of which ends with a NUL.

        Returns:
            The characters of the n-grams that are complete now, with NULs in the empty places of the shorter n-gram at
            the end of a text; and the number of characters up to each end of a text, [D].
        """
        nuls = np.flatnonzero(codes == 0)
        if not len(nuls):
            return self.add(codes), nuls
        complete = np.concatenate([self._rest, codes[: nuls[-1] + 1]])
        ends = nuls + len(self._rest)
        begins = np.concatenate([[0], ends[:-1] + 1])
        skips = np.full(len(ends), self._phase)
        skips[0] = self._skip
        skips = np.minimum(skips, ends - begins)
        lengths = ends - begins - skips
        # How often each character stands in the result: as many NULs as are needed to fill an n-gram.
        times = np.ones(len(complete), np.int8)
        times[ends] = -lengths % self._ngram
        for skipped in range(self._phase):
            times[begins[skips > skipped] + skipped] = 0
        # A mask is faster.
        filled = complete[times.view(np.bool_)] if self._ngram <= 2 else np.repeat(complete, times)
        self._skip, self._rest = self._phase, self._rest[:0]
        return np.concatenate([filled, self.add(codes[nuls[-1] + 1 :])]), np.cumsum(lengths)

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
        joined = isinstance(text, JoinedText)
        cutters = [NgramCutter(ngram, phase) for phase in range(ngram if phases else 1)]
        for codes in normalised_pieces(pieces_of(text), normalisation):
            for cutter in cutters:
                complete = cutter.add_documents(codes)[0] if joined else cutter.add(codes)
                counter.add(keys.keys(complete, joined))
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
    seen[0] &= not any(isinstance(text, JoinedText) for text in texts)
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


@dataclass(frozen=True)
class NgramVocabulary(Vocabulary):
    """The vocabulary of n-grams: the most frequent first, ties by code point; rare ones are `<unk>`.

    Attributes:
        ngram: n, the characters of a token.
        unknown_characters: (character, occurrences) inside the training set's n-grams that became `<unk>`. The
            empty string stands for the empty places of a shorter last n-gram.
    """

    ngram: int
    unknown_characters: tuple[tuple[str, int], ...]

    @classmethod
    def build(
        cls,
        texts: Iterable[Text],
        ngram: int = 2,
        min_count: int = 10,
        normalisation: Normalisation = Normalisation(),
        phases: bool = False,
    ) -> NgramVocabulary:
        """Count the n-grams of the training set and keep the frequent ones.

        Args:
            texts: the training documents, or their texts as strings; they are read piece by piece, twice.
            ngram: n, from 1 to 8.
            min_count: occurrences that an n-gram needs to get an id.
            normalisation: of the texts.
            phases: count the n-grams from each text's first character on, from its second, … and from its n-th.

        Raises:
            UsageError: an option is out of range, n is too large for so many different characters, or no n-gram is
                frequent enough.
        """
        if not 1 <= ngram <= LONGEST_NGRAM:
            raise UsageError(f"--ngram {ngram} is out of range", f"give 1 to {LONGEST_NGRAM}")
        if min_count < 1:
            raise UsageError(f"--min-count {min_count} is out of range", "give 1 or more")
        keys, counted = count_ngrams(texts, ngram, normalisation, phases)
        if not len(counted.keys):
            raise UsageError("the training stories are empty", "give more text")
        frequent = counted.counts >= min_count
        if not frequent.any():
            raise UsageError(
                f"no {ngram}-gram occurs {min_count} times in the training stories",
                "lower --min-count or give more text",
            )
        kept = _by_frequency(NgramCounts(counted.keys[frequent], counted.counts[frequent]))
        return cls(
            normalisation,
            min_count,
            tuple(keys.text(key) for key in kept.keys.tolist()),
            tuple(kept.counts.tolist()),
            keys.alphabet,
            ngram,
            _count_characters(keys, NgramCounts(counted.keys[~frequent], counted.counts[~frequent])),
        )

    def extended(  # noqa: D102 - see Vocabulary, as for those that follow
        self, texts: Iterable[Text], normalisation: Normalisation, phases: bool
    ) -> NgramVocabulary:
        keys, counted = count_ngrams(texts, self.ngram, normalisation, phases)
        if not len(counted.keys):
            raise UsageError("the training stories are empty", "give more text")
        kept = Counter(dict(zip(self.texts, self.counts, strict=True)))
        known = np.array([keys.text(key) in kept for key in counted.keys.tolist()])
        frequent = known | (counted.counts >= self.min_count)
        for key, count in zip(counted.keys[frequent].tolist(), counted.counts[frequent].tolist(), strict=True):
            kept[keys.text(key)] += count
        unknown = Counter(dict(self.unknown_characters))
        unknown.update(
            dict(_count_characters(keys, NgramCounts(counted.keys[~frequent], counted.counts[~frequent])))
        )
        ngrams, counts = ranked(kept)
        return replace(
            self,
            normalisation=normalisation,
            texts=ngrams,
            counts=counts,
            alphabet="".join(sorted({*self.alphabet, *keys.alphabet})),
            unknown_characters=tuple(sorted(unknown.items())),
        )

    @property
    def tokens(self) -> str:  # noqa: D102
        return Tokenization("ngram", self.ngram).name

    @property
    def unknown_share(self) -> float:  # noqa: D102
        # Every n-gram has n places, the empty ones included.
        unknown = sum(count for _, count in self.unknown_characters) // self.ngram
        return unknown / (unknown + sum(self.counts))

    @property
    def characters_per_token(self) -> float:  # noqa: D102
        return self.ngram

    @property
    def longest_token(self) -> int:  # noqa: D102
        return self.ngram

    @property
    def unknown_length(self) -> int:  # noqa: D102
        return self.ngram

    def cutter(self) -> NgramCutter:  # noqa: D102
        return NgramCutter(self.ngram)

    def encode_joined(  # noqa: D102
        self, pieces: Iterable[CodePoints], phase: int = 0, with_costs: bool = False
    ) -> Iterator[Block]:
        cutter = NgramCutter(self.ngram, phase)
        for codes in pieces:
            complete, characters = cutter.add_documents(codes)
            ids = self.ids(complete, filled=True)
            costs = self.costs(complete, ids, filled=True) if with_costs else np.zeros(0)
            ngrams = np.cumsum(-(-np.diff(characters, prepend=0) // self.ngram))
            yield Block(ids, costs, int(np.count_nonzero(complete)), ngrams, characters)

    def ids(self, codes: CodePoints, filled: bool = False) -> Ids:  # noqa: D102
        keys = self._keys.keys(codes, filled)
        if self._table is not None:
            return self._table.take(keys)
        known, ids = self._sorted_keys
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, ids[place], np.int32(UNKNOWN))

    def costs(self, codes: CodePoints, ids: Ids, filled: bool = False) -> NDArray[np.float64]:
        """Return the spelling cost of each n-gram in nats, [N]; see `encode_with_costs`.

        An n-gram that becomes `<unk>` is spelt character by character, with the frequencies that characters have
        inside the unknown n-grams of the training set, each count plus one; one more count stands for a character
        never seen, which then costs another ln 1,114,112 nats.
        """
        costs = np.zeros(len(ids))
        unknown = np.flatnonzero(ids == UNKNOWN)
        for ranks in self._keys.ranks(self._keys.keys(codes, filled)[unknown]):
            costs[unknown] += self._rank_costs[ranks]
        return costs

    def spelling_cost(self, character: str) -> float:
        """Return the nats that one character of an unknown n-gram costs; the empty string is an empty place."""
        counts, total = self._spelling
        if character and character not in self._alphabet_set:
            return math.log(total) + math.log(CODE_POINTS)
        return math.log(total) - math.log(counts.get(character, 0) + 1)

    def starting_with(self, prefix: str) -> list[int]:
        """Return the ids of the n-grams that start with a prefix and are longer, in ascending order.

        An n-gram that equals it would be the shorter last one of a text.
        """
        return [i for i in super().starting_with(prefix) if len(self.token(i)) > len(prefix)]

    def read_prompt(self, prompt: str) -> tuple[list[int], list[PromptEnd]]:  # noqa: D102
        whole = len(prompt) - len(prompt) % self.ngram
        ids, rest = self.encode(prompt[:whole]).tolist(), prompt[whole:]
        if rest and not self.starting_with(rest):
            return ids, [PromptEnd([UNKNOWN], "")]
        return ids, [PromptEnd([], rest)]

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "ngram": self.ngram,
            **normalisation_to_json(self.normalisation),
            "min_count": self.min_count,
            "ngrams": list(self.texts),
            "counts": list(self.counts),
            "alphabet": self.alphabet,
            "hidden": dict(self.unknown_characters),
        }

    @classmethod
    def from_json(cls, value: object) -> NgramVocabulary:
        """Restore a vocabulary from the value of `to_json`, and check all of it.

        Raises:
            IntegrityError: a part is missing, duplicated, out of order or of the wrong type.
        """
        match value:
            case {
                "ngram": int(ngram),
                "min_count": int(min_count),
                "ngrams": list(ngrams),
                "counts": list(counts),
                "alphabet": str(alphabet),
                "hidden": dict(unknown_characters),
            } if type(ngram) is type(min_count) is int and 1 <= ngram <= LONGEST_NGRAM and min_count >= 1:
                pass
            case _:
                raise incomplete()
        if not (
            valid_entries(ngrams, counts, min_count)
            and all(len(gram) <= ngram for gram in ngrams)
            and list(alphabet) == sorted(set(alphabet))
            and fits_int64(len(alphabet), ngram)
            and set().union(*ngrams) <= set(alphabet)
            and unknown_characters.keys() <= {"", *alphabet}
            and all(type(count) is int and count > 0 for count in unknown_characters.values())
            and in_order(ngrams, counts)
        ):
            raise inconsistent()
        return cls(
            normalisation_from_json(value),
            min_count,
            tuple(ngrams),
            tuple(counts),
            alphabet,
            ngram,
            tuple(sorted(unknown_characters.items())),
        )

    @cached_property
    def _keys(self) -> NgramKeys:
        return NgramKeys(self.alphabet, self.ngram)

    @cached_property
    def _rank_costs(self) -> NDArray[np.float64]:
        # A lone surrogate stands for all characters never seen, since the alphabet never has one.
        return np.array([self.spelling_cost(character) for character in ["", *self.alphabet, "\udfff"]])

    @cached_property
    def _spelling(self) -> tuple[dict[str, int], int]:
        """Occurrences of characters in unknown n-grams, and their sum after each count was raised by one."""
        counts = dict(self.unknown_characters)
        # One for each character, one for the empty place, one for the characters never seen.
        return counts, sum(counts.values()) + len(self.alphabet) + 2

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.int64], Ids]:
        keys = np.concatenate([self._keys.keys(code_points(gram)) for gram in self.texts])
        order = np.argsort(keys)
        return keys[order].astype(np.int64), (order + len(SPECIALS)).astype(np.int32)

    @cached_property
    def _table(self) -> Ids | None:
        """The id of every possible key, unless there are too many."""
        if self._keys.size > LARGEST_TABLE:
            return None
        table = np.full(self._keys.size, UNKNOWN, np.int32)
        keys, ids = self._sorted_keys
        table[keys] = ids
        return table


def _by_frequency(counted: NgramCounts) -> NgramCounts:
    """The most frequent n-grams first, ties by code point, which is the order of the keys."""
    order = np.lexsort((counted.keys, -counted.counts))
    return NgramCounts(counted.keys[order], counted.counts[order])


def _count_characters(keys: NgramKeys, counted: NgramCounts) -> tuple[tuple[str, int], ...]:
    """Occurrences of each character inside n-grams, "" for an empty place; characters without any are left out."""
    counts = np.zeros(keys.base, np.int64)
    for ranks in keys.ranks(counted.keys):
        np.add.at(counts, ranks, counted.counts)
    return tuple(
        (character, count)
        for character, count in zip(["", *keys.alphabet], counts.tolist(), strict=False)
        if count
    )
