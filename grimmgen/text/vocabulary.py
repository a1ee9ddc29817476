"""From text to n-grams to ids and back.

A story is cut into n-grams that do not overlap (tutorial, "Preprocessing data": `th`, `e `, `ki`, `ng`); the
last one may be shorter. N-grams seen fewer than `min_count` times in the training stories become `<unk>`.
Knows characters and ids, and nothing of files, stories or networks.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import LONGEST_NGRAM, Newlines
from grimmgen.errors import IntegrityError, UsageError

Ids = NDArray[np.int32]
# Characters of a normalised text, as integers of any width.
Codes = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
_Integers = NDArray[np.int64]

UNKNOWN = 0
END = 1
SPECIALS = ("<unk>", "<end>")

_CODE_POINTS = 0x110000
# Up to this many possible keys a table that holds a number for each of them is the fastest dictionary.
LARGEST_TABLE = 1 << 22
_LARGEST_KEY = 1 << 63


def normalise(text: str, lower: bool, newlines: Newlines = "keep") -> str:
    r"""The text as the network sees it: line ends as LF (or as a space), lower case if asked for, composed (NFC).

    >>> normalise("The\r\nKing", lower=True), normalise("The\r\nKing", lower=True, newlines="space")
    ('the\nking', 'the king')
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if newlines == "space":
        text = text.replace("\n", " ")
    if lower:
        text = text.lower()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Vocabulary:
    """N-gram ↔ id. Id 0 is `<unk>`, 1 is `<end>`, then the n-grams, most frequent first, ties by code point.

    Attributes:
        ngram: n, the characters of a token.
        lower: whether text is folded to lower case.
        newlines: whether line ends are kept, or read as spaces.
        min_count: occurrences in the training stories that an n-gram needs.
        ngrams: the n-grams with an id, in the order of their ids.
        counts: how often each occurs in the training stories.
        alphabet: every character of the training stories, in the order of code points.
        hidden: characters inside the n-grams that `<unk>` hides in the training stories, counted; the empty
            string counts the places that a shorter last n-gram leaves empty.
    """

    ngram: int
    lower: bool
    newlines: Newlines
    min_count: int
    ngrams: tuple[str, ...]
    counts: tuple[int, ...]
    alphabet: str
    hidden: tuple[tuple[str, int], ...]

    @classmethod
    def build(
        cls,
        texts: Iterable[str],
        ngram: int = 2,
        min_count: int = 10,
        lower: bool = True,
        newlines: Newlines = "keep",
        phases: bool = False,
    ) -> Vocabulary:
        """Count the n-grams of the training stories and keep the frequent ones.

        Args:
            texts: the training stories, as they were read.
            ngram: n, from 1 to 8.
            min_count: occurrences that an n-gram needs to get an id.
            lower: fold to lower case first.
            newlines: keep line ends, or read them as spaces.
            phases: count each story cut in all n ways, from its first character, its second, and so on.

        Raises:
            UsageError: n is out of range, too long for so many different characters, or nothing is kept.
        """
        check_options(ngram, min_count)
        folded = [normalise(text, lower, newlines) for text in texts]
        seen = [np.unique(code_points(text)) for text in folded]
        keys = Keys(_text(np.unique(np.concatenate(seen))) if seen else "", ngram)
        counted = Counted.of(
            keys.of(code_points(text[phase:])) for text in folded for phase in range(ngram if phases else 1)
        )
        return cls.of_counts(keys, counted, min_count, lower, newlines)

    @classmethod
    def of_counts(
        cls, keys: Keys, counted: Counted, min_count: int, lower: bool, newlines: Newlines
    ) -> Vocabulary:
        """The vocabulary of n-grams that were counted; the arguments are those of `build`.

        Raises:
            UsageError: nothing is kept.
        """
        if not len(counted.keys):
            raise UsageError("the training stories are empty", "give more text")
        kept = counted.counts >= min_count
        if not kept.any():
            raise UsageError(
                f"no {keys.ngram}-gram occurs {min_count} times in the training stories",
                "lower --min-count or give more text",
            )
        # Keys are in the order of their n-grams' code points: their digits are.
        order = np.lexsort((counted.keys[kept], -counted.counts[kept]))
        hidden = np.zeros(keys.base, np.int64)
        for ranks in keys.ranks(counted.keys[~kept]):
            np.add.at(hidden, ranks, counted.counts[~kept])
        return cls(
            ngram=keys.ngram,
            lower=lower,
            newlines=newlines,
            min_count=min_count,
            ngrams=tuple(keys.text(key) for key in counted.keys[kept][order].tolist()),
            counts=tuple(counted.counts[kept][order].tolist()),
            alphabet=keys.alphabet,
            hidden=tuple(
                (character, count)
                for character, count in zip(["", *keys.alphabet], hidden.tolist(), strict=False)
                if count
            ),
        )

    def __len__(self) -> int:
        """V: the n-grams and the two special tokens."""
        return len(self.ngrams) + len(SPECIALS)

    @property
    def unknown(self) -> float:
        """The share of the training stories' n-grams that `<unk>` hides, from 0 to 1."""
        # Every n-gram has n places, the empty ones counted too.
        hidden = sum(count for _, count in self.hidden) // self.ngram
        return hidden / (hidden + sum(self.counts))

    def normalise(self, text: str) -> str:
        """The text as this vocabulary's network sees it."""
        return normalise(text, self.lower, self.newlines)

    def encode(self, text: str) -> Ids:
        """The ids of the text's n-grams, [⌈characters / n⌉]; `<end>` is not among them.

        The text is normalised first; any Unicode text has ids.
        """
        return self.ids(code_points(self.normalise(text)))

    def encode_phases(self, text: str) -> list[Ids]:
        """The ids of the text cut in all n ways: from its first character on, from its second, and so on."""
        codes = code_points(self.normalise(text))
        return [self.ids(codes[phase:]) for phase in range(self.ngram)]

    def ids(self, codes: Codes) -> Ids:
        """The ids of the n-grams of a text that is normalised already, [⌈characters / n⌉]."""
        keys = self._keys.of(codes)
        if self._table is not None:
            return self._table.take(keys)
        known, ids = self._sorted_keys
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, ids[place], np.int32(UNKNOWN))

    def encode_with_costs(self, text: str) -> tuple[Ids, NDArray[np.float64], int]:
        """What evaluation needs of a text: ids [N], the nats that spelling each one adds [N], characters.

        An n-gram that `<unk>` hides is spelt character by character, with the frequencies that characters
        have inside the hidden n-grams of the training stories, each count plus one; one count more stands
        for a character never seen, which then costs ln 1,114,112 nats beside. Known n-grams add nothing.
        """
        codes = code_points(self.normalise(text))
        ids = self.ids(codes)
        return ids, self.costs(codes, ids), len(codes)

    def costs(self, codes: Codes, ids: Ids) -> NDArray[np.float64]:
        """The nats that spelling each n-gram adds, [N]; `encode_with_costs` says how.

        Args:
            codes: a text that is normalised already.
            ids: its n-grams, [N].
        """
        costs = np.zeros(len(ids))
        hidden = np.flatnonzero(ids == UNKNOWN)
        for ranks in self._keys.ranks(self._keys.of(codes)[hidden]):
            costs[hidden] += self._rank_costs[ranks]
        return costs

    def decode(self, ids: Iterable[int]) -> str:
        """The text of these ids; `<unk>` and `<end>` have none.

        >>> Vocabulary.build(["the king"], min_count=1).decode([5, 2, 1])
        'the '
        """
        return "".join(self.ngrams[i - len(SPECIALS)] for i in ids if i >= len(SPECIALS))

    def token(self, i: int) -> str:
        """The n-gram of an id, or the name of a special token."""
        return SPECIALS[i] if i < len(SPECIALS) else self.ngrams[i - len(SPECIALS)]

    def unseen(self, text: str) -> list[str]:
        """The characters of `text` that no training story has, in the order of their appearance."""
        return [c for c in dict.fromkeys(self.normalise(text)) if c not in self._alphabet_set]

    def spelling_cost(self, character: str) -> float:
        """The nats that one character of a hidden n-gram costs; the empty string is an empty place."""
        counts, total = self._spelling
        if character and character not in self._alphabet_set:
            return math.log(total) + math.log(_CODE_POINTS)
        return math.log(total) - math.log(counts.get(character, 0) + 1)

    def to_json(self) -> dict[str, Any]:
        """A value that `from_json` reads."""
        return {
            "ngram": self.ngram,
            "lower": self.lower,
            "newlines": self.newlines,
            "min_count": self.min_count,
            "ngrams": list(self.ngrams),
            "counts": list(self.counts),
            "alphabet": self.alphabet,
            "hidden": dict(self.hidden),
        }

    @classmethod
    def from_json(cls, value: object) -> Vocabulary:
        """The vocabulary that `to_json` wrote, every part of it checked.

        Raises:
            IntegrityError: a part is missing, doubled, out of order or of the wrong type.
        """
        match value:
            case {
                "ngram": int(ngram),
                "lower": bool(lower),
                "newlines": ("keep" | "space") as newlines,
                "min_count": int(min_count),
                "ngrams": list(ngrams),
                "counts": list(counts),
                "alphabet": str(alphabet),
                "hidden": dict(hidden),
            } if type(ngram) is type(min_count) is int and 1 <= ngram <= LONGEST_NGRAM and min_count >= 1:
                pass
            case _:
                raise IntegrityError("the vocabulary lacks a part or has one of the wrong type", _REMEDY)
        well = (
            len(ngrams) == len(counts) > 0
            and all(isinstance(gram, str) and 1 <= len(gram) <= ngram for gram in ngrams)
            and all(type(count) is int and count >= min_count for count in counts)
            and len(set(ngrams)) == len(ngrams)
            and list(alphabet) == sorted(set(alphabet))
            and (len(alphabet) + 2) ** ngram <= _LARGEST_KEY
            and set().union(*ngrams) <= set(alphabet)
            and hidden.keys() <= {"", *alphabet}
            and all(type(count) is int and count > 0 for count in hidden.values())
        )
        if not well or [g for _, g in sorted(zip([-c for c in counts], ngrams, strict=True))] != ngrams:
            raise IntegrityError("the vocabulary has entries that are missing, doubled or out of order", _REMEDY)
        return cls(
            ngram,
            lower,
            newlines,
            min_count,
            tuple(ngrams),
            tuple(counts),
            alphabet,
            tuple(sorted(hidden.items())),
        )

    @cached_property
    def _keys(self) -> Keys:
        return Keys(self.alphabet, self.ngram)

    @cached_property
    def _rank_costs(self) -> NDArray[np.float64]:
        # A lone surrogate stands for all characters never seen: no text has an n-gram of it.
        return np.array([self.spelling_cost(character) for character in ["", *self.alphabet, "\udfff"]])

    @cached_property
    def _alphabet_set(self) -> frozenset[str]:
        return frozenset(self.alphabet)

    @cached_property
    def _spelling(self) -> tuple[dict[str, int], int]:
        counts = dict(self.hidden)
        # One for each character, one for the empty place, one for the characters never seen.
        return counts, sum(counts.values()) + len(self.alphabet) + 2

    @cached_property
    def _sorted_keys(self) -> tuple[_Integers, Ids]:
        keys = np.concatenate([self._keys.of(code_points(gram)) for gram in self.ngrams])
        order = np.argsort(keys)
        return keys[order].astype(np.int64), (order + len(SPECIALS)).astype(np.int32)

    @cached_property
    def _table(self) -> Ids | None:
        if self._keys.possible > LARGEST_TABLE:
            return None
        table = np.full(self._keys.possible, UNKNOWN, np.int32)
        keys, ids = self._sorted_keys
        table[keys] = ids
        return table


_REMEDY = "copy the file again, or train anew"


def check_options(ngram: int, min_count: int) -> None:
    """Refuse what nothing can be counted with.

    Raises:
        UsageError: n or the occurrences asked for are out of range.
    """
    if not 1 <= ngram <= LONGEST_NGRAM:
        raise UsageError(f"--ngram {ngram} is out of range", f"give 1 to {LONGEST_NGRAM}")
    if min_count < 1:
        raise UsageError(f"--min-count {min_count} is out of range", "give 1 or more")


class Keys:
    """N-grams as integers: the digits are ranks in the alphabet, so that equal n-grams have equal keys.

    Rank 0 is an empty place (a story's last n-gram may be short), the last rank a character never seen.

    Attributes:
        ngram: n, the digits of a key.
        alphabet: the characters that have a rank of their own, in the order of code points.
        base: of the digits: how many ranks there are.
        possible: how many keys.
    """

    def __init__(self, alphabet: str, ngram: int) -> None:
        self.ngram = ngram
        self.alphabet = alphabet
        self.base = len(alphabet) + 2
        self.possible = self.base**ngram
        if self.possible > _LARGEST_KEY:
            raise UsageError(
                f"{ngram}-grams over {len(alphabet)} different characters are too many", "lower --ngram"
            )
        codes = code_points(alphabet)
        # Narrow integers: what is read through them is a large text.
        self._ranks = np.full(int(codes.max(initial=0)) + 2, self.base - 1, np.min_scalar_type(self.base - 1))
        self._ranks[codes] = np.arange(1, len(codes) + 1)
        self._type = np.min_scalar_type(-self.possible)

    def of(self, codes: Codes) -> NDArray[Any]:
        """The keys of a normalised text's n-grams, [⌈characters / n⌉]."""
        if self.ngram == 2 and codes.dtype == np.uint8 and len(codes) % 2 == 0:
            return self._pairs.take(codes.view(np.uint16))
        ranks = self._ranks.take(codes, mode="clip")
        if missing := -len(ranks) % self.ngram:
            ranks = np.concatenate([ranks, np.zeros(missing, ranks.dtype)])
        keys: NDArray[np.int64] = ranks[:: self.ngram].astype(self._type)
        for digit in range(1, self.ngram):
            keys *= self.base
            keys += ranks[digit :: self.ngram]
        return keys

    @cached_property
    def _pairs(self) -> NDArray[Any]:
        """The keys of all pairs of bytes, by what two bytes side by side are as one integer: most bigrams' way."""
        return self.of(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).astype(np.uint16))

    def ranks(self, keys: NDArray[Any]) -> Iterable[_Integers]:
        """The ranks of each key's characters: those of the first characters, [len(keys)], and so on."""
        for digit in reversed(range(self.ngram)):
            yield keys.astype(np.int64) // self.base**digit % self.base

    def text(self, key: int) -> str:
        """The n-gram of a key whose characters all stand in the alphabet."""
        characters = []
        for _ in range(self.ngram):
            key, rank = divmod(key, self.base)
            characters.append(self.alphabet[rank - 1] if rank else "")
        return "".join(reversed(characters))


@dataclass(frozen=True)
class Counted:
    """How often n-grams occur.

    Attributes:
        keys: of the n-grams, each once, in their order, [K].
        counts: [K], int64.
    """

    keys: _Integers
    counts: _Integers

    @classmethod
    def of(cls, parts: Iterable[NDArray[Any]]) -> Counted:
        """Count the keys of some texts."""
        return cls.sum([cls(*np.unique(keys, return_counts=True)) for keys in parts])

    @classmethod
    def sum(cls, parts: Sequence[Counted]) -> Counted:
        """Counts of parts, as counts of the whole."""
        if not parts:
            return cls(np.zeros(0, np.int64), np.zeros(0, np.int64))
        keys, places = np.unique(np.concatenate([part.keys for part in parts]), return_inverse=True)
        counts = np.zeros(len(keys), np.int64)
        np.add.at(counts, places, np.concatenate([part.counts for part in parts]))
        return cls(keys.astype(np.int64), counts)


def code_points(text: str) -> NDArray[np.uint32]:
    """The characters of a text as integers."""
    # A lone surrogate (a broken byte of a command line) is a character never seen, not an error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _text(codes: Sequence[int] | NDArray[np.uint32]) -> str:
    return np.asarray(codes, "<u4").tobytes().decode("utf-32-le", "surrogatepass")
