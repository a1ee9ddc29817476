"""From text to n-grams to ids and back.

A story is cut into n-grams that do not overlap (tutorial, "Preprocessing data": `th`, `e `, `ki`, `ng`); the
last one may be shorter. N-grams seen fewer than `min_count` times in the training stories become `<unk>`.
Knows characters and ids, and nothing of files, stories or networks.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import LONGEST_NGRAM, Newlines
from grimmgen.errors import IntegrityError, UsageError

Ids = NDArray[np.int32]
_Integers = NDArray[np.int64]

UNKNOWN = 0
END = 1
SPECIALS = ("<unk>", "<end>")

_CODE_POINTS = 0x110000
# Up to this many possible keys a table that holds an id for each of them is the fastest dictionary.
_LARGEST_TABLE = 1 << 22
_LARGEST_KEY = 1 << 63


def normalise(text: str, lower: bool, newlines: Newlines = "keep") -> str:
    r"""The text as the network sees it: line ends as LF (or as a space), lower case if asked for, composed (NFC).

    >>> normalise("The\r\nKing", lower=True), normalise("The\r\nKing", lower=True, newlines="space")
    ('the\nking', 'the king')
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if newlines == "space":
        text = text.replace("\n", " ")
    return unicodedata.normalize("NFC", text.lower() if lower else text)


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
        if not 1 <= ngram <= LONGEST_NGRAM:
            raise UsageError(f"--ngram {ngram} is out of range", f"give 1 to {LONGEST_NGRAM}")
        if min_count < 1:
            raise UsageError(f"--min-count {min_count} is out of range", "give 1 or more")
        folded = [normalise(text, lower, newlines) for text in texts]
        seen = [np.unique(_code_points(text)) for text in folded]
        alphabet = _text(np.unique(np.concatenate(seen))) if seen else ""
        keys = _Keys(alphabet, ngram)
        counter: Counter[int] = Counter()
        for text in (text[phase:] for text in folded for phase in range(ngram if phases else 1)):
            distinct, occurrences = np.unique(keys.of(text), return_counts=True)
            counter.update(dict(zip(distinct.tolist(), occurrences.tolist(), strict=True)))
        counted = [(keys.text(key), count) for key, count in counter.items()]
        kept = sorted(
            ((gram, count) for gram, count in counted if count >= min_count), key=lambda x: (-x[1], x[0])
        )
        if not kept:
            raise UsageError(
                f"no {ngram}-gram occurs {min_count} times in the training stories",
                "lower --min-count or give more text",
            )
        hidden: Counter[str] = Counter()
        for gram, count in counted:
            if count < min_count:
                for character in gram:
                    hidden[character] += count
                hidden[""] += count * (ngram - len(gram))
        return cls(
            ngram=ngram,
            lower=lower,
            newlines=newlines,
            min_count=min_count,
            ngrams=tuple(gram for gram, _ in kept),
            counts=tuple(count for _, count in kept),
            alphabet=alphabet,
            hidden=tuple(sorted((character, count) for character, count in hidden.items() if count)),
        )

    def __len__(self) -> int:
        """V: the n-grams and the two special tokens."""
        return len(self.ngrams) + len(SPECIALS)

    def normalise(self, text: str) -> str:
        """The text as this vocabulary's network sees it."""
        return normalise(text, self.lower, self.newlines)

    def encode(self, text: str) -> Ids:
        """The ids of the text's n-grams, [⌈characters / n⌉]; `<end>` is not among them.

        The text is normalised first; any Unicode text has ids.
        """
        return self._encode_keys(self._keys.of(self.normalise(text)))

    def encode_phases(self, text: str) -> list[Ids]:
        """The ids of the text cut in all n ways: from its first character on, from its second, and so on."""
        text = self.normalise(text)
        return [self._encode_keys(self._keys.of(text[phase:])) for phase in range(self.ngram)]

    def encode_with_costs(self, text: str) -> tuple[Ids, NDArray[np.float64], int]:
        """What evaluation needs of a text: ids [N], the nats that spelling each one adds [N], characters.

        An n-gram that `<unk>` hides is spelt character by character, with the frequencies that characters
        have inside the hidden n-grams of the training stories, each count plus one; one count more stands
        for a character never seen, which then costs ln 1,114,112 nats beside. Known n-grams add nothing.
        """
        text = self.normalise(text)
        keys = self._keys.of(text)
        ids = self._encode_keys(keys)
        costs = np.zeros(len(ids))
        for position in np.flatnonzero(ids == UNKNOWN):
            gram = text[position * self.ngram : (position + 1) * self.ngram]
            costs[position] = sum(self.spelling_cost(character) for character in gram) + self.spelling_cost("") * (
                self.ngram - len(gram)
            )
        return ids, costs, len(text)

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
    def _keys(self) -> _Keys:
        return _Keys(self.alphabet, self.ngram)

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
        keys = np.concatenate([self._keys.of(gram) for gram in self.ngrams])
        order = np.argsort(keys)
        return keys[order], (order + len(SPECIALS)).astype(np.int32)

    @cached_property
    def _table(self) -> Ids | None:
        if self._keys.possible > _LARGEST_TABLE:
            return None
        table = np.full(self._keys.possible, UNKNOWN, np.int32)
        keys, ids = self._sorted_keys
        table[keys] = ids
        return table

    def _encode_keys(self, keys: _Integers) -> Ids:
        if self._table is not None:
            return self._table[keys]
        known, ids = self._sorted_keys
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, ids[place], np.int32(UNKNOWN))


_REMEDY = "copy the file again, or train anew"


class _Keys:
    """N-grams as integers: the digits are ranks in the alphabet, so that equal n-grams have equal keys.

    Rank 0 is an empty place (a story's last n-gram may be short), the last rank a character never seen.
    """

    def __init__(self, alphabet: str, ngram: int) -> None:
        self.ngram = ngram
        self.base = len(alphabet) + 2
        self.possible = self.base**ngram
        if self.possible > _LARGEST_KEY:
            raise UsageError(
                f"{ngram}-grams over {len(alphabet)} different characters are too many", "lower --ngram"
            )
        self._alphabet = alphabet
        codes = _code_points(alphabet)
        self._ranks = np.full(int(codes.max(initial=0)) + 2, self.base - 1, np.int64)
        self._ranks[codes] = np.arange(1, len(codes) + 1)

    def of(self, text: str) -> _Integers:
        """The keys of a normalised text's n-grams, [⌈characters / n⌉]."""
        codes = _code_points(text)
        ranks = self._ranks[np.minimum(codes, len(self._ranks) - 1)]
        ranks = np.concatenate([ranks, np.zeros(-len(ranks) % self.ngram, np.int64)])
        keys = np.zeros(len(ranks) // self.ngram, np.int64)
        for digit in range(self.ngram):
            keys *= self.base
            keys += ranks[digit :: self.ngram]
        return keys

    def text(self, key: int) -> str:
        """The n-gram of a key whose characters all stand in the alphabet."""
        characters = []
        for _ in range(self.ngram):
            key, rank = divmod(key, self.base)
            characters.append(self._alphabet[rank - 1] if rank else "")
        return "".join(reversed(characters))


def _code_points(text: str) -> NDArray[np.uint32]:
    # A lone surrogate (a broken byte of a command line) is a character never seen, not an error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _text(codes: Sequence[int] | NDArray[np.uint32]) -> str:
    return np.asarray(codes, "<u4").tobytes().decode("utf-32-le", "surrogatepass")
