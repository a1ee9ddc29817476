"""The vocabulary: n-grams to ids and back.

A text is cut into n-grams that do not overlap (tutorial, "Preprocessing data": `th`, `e `, `ki`, `ng`); the last
one may be shorter. N-grams with fewer than `min_count` occurrences in the training set become `<unk>`.

    N  n-grams of a text          V  vocabulary size
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import LONGEST_NGRAM, Language, Normalisation
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.text.ngrams import LARGEST_TABLE, NgramCounts, NgramKeys, count_ngrams, fits_int64
from grimmgen.text.normalisation import CodePoints, Text, code_points, normalise, normalised_codes

Ids = NDArray[np.int32]

UNKNOWN = 0
END = 1
SPECIALS = ("<unk>", "<end>")

_CODE_POINTS = 0x110000
_REMEDY = "copy the file again, or train again"


@dataclass(frozen=True)
class Vocabulary:
    """N-gram ↔ id. Id 0 is `<unk>`, 1 is `<end>`, then the n-grams, most frequent first, ties by code point.

    Attributes:
        ngram: n, the characters of a token.
        normalisation: of all texts, before they are cut.
        min_count: occurrences in the training set that an n-gram needs to have an id.
        ngrams: the n-grams with an id, in the order of their ids.
        counts: occurrences of each in the training set.
        alphabet: every character of the training set, in the order of code points.
        unknown_characters: (character, occurrences) inside the training set's n-grams that became `<unk>`. The
            empty string stands for the empty places of a shorter last n-gram.
    """

    ngram: int
    normalisation: Normalisation
    min_count: int
    ngrams: tuple[str, ...]
    counts: tuple[int, ...]
    alphabet: str
    unknown_characters: tuple[tuple[str, int], ...]

    @classmethod
    def build(
        cls,
        texts: Iterable[Text],
        ngram: int = 2,
        min_count: int = 10,
        normalisation: Normalisation = Normalisation(),
        phases: bool = False,
    ) -> Vocabulary:
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
            ngram,
            normalisation,
            min_count,
            ngrams=tuple(keys.text(key) for key in kept.keys.tolist()),
            counts=tuple(kept.counts.tolist()),
            alphabet=keys.alphabet,
            unknown_characters=_count_characters(
                keys, NgramCounts(counted.keys[~frequent], counted.counts[~frequent])
            ),
        )

    def __len__(self) -> int:
        """V: the n-grams and the two special tokens."""
        return len(self.ngrams) + len(SPECIALS)

    @property
    def id_type(self) -> type[np.uint16] | type[np.int32]:
        """The narrowest integer type in which ids are stored."""
        return np.uint16 if len(self) <= 1 << 16 else np.int32

    @property
    def unknown_share(self) -> float:
        """The share of the training set's n-grams that became `<unk>`, from 0 to 1."""
        # Every n-gram has n places, the empty ones included.
        unknown = sum(count for _, count in self.unknown_characters) // self.ngram
        return unknown / (unknown + sum(self.counts))

    def normalise(self, text: str) -> str:
        """Normalise a text as the training set was."""
        return normalise(text, self.normalisation)

    def encode(self, text: str, phase: int = 0) -> Ids:
        """Return the ids of a text's n-grams, [N = ⌈characters / n⌉], without `<end>`.

        Args:
            text: any Unicode text; it is normalised.
            phase: number of characters to skip at the beginning.
        """
        return self.ids(normalised_codes(text, self.normalisation)[phase:])

    def encode_with_costs(self, text: str) -> tuple[Ids, NDArray[np.float64], int]:
        """Return a text's ids [N], the spelling cost of each in nats [N], and the number of characters.

        An n-gram that becomes `<unk>` is spelt character by character, with the frequencies that characters have
        inside the unknown n-grams of the training set, each count plus one; one more count stands for a character
        never seen, which then costs another ln 1,114,112 nats. Known n-grams cost nothing.
        """
        codes = normalised_codes(text, self.normalisation)
        ids = self.ids(codes)
        return ids, self.costs(codes, ids), len(codes)

    def ids(self, codes: CodePoints) -> Ids:
        """Return the ids of the n-grams of a text that is normalised already, [N]."""
        keys = self._keys.keys(codes)
        if self._table is not None:
            return self._table.take(keys)
        known, ids = self._sorted_keys
        place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        return np.where(known[place] == keys, ids[place], np.int32(UNKNOWN))

    def costs(self, codes: CodePoints, ids: Ids) -> NDArray[np.float64]:
        """Return the spelling cost of each n-gram in nats, [N]; see `encode_with_costs`.

        Args:
            codes: of a text that is normalised already.
            ids: of its n-grams, [N].
        """
        costs = np.zeros(len(ids))
        unknown = np.flatnonzero(ids == UNKNOWN)
        for ranks in self._keys.ranks(self._keys.keys(codes)[unknown]):
            costs[unknown] += self._rank_costs[ranks]
        return costs

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; `<unk>` and `<end>` are left out.

        >>> Vocabulary.build(["the king"], min_count=1).decode([5, 2, 1])
        'the '
        """
        return "".join(self.ngrams[i - len(SPECIALS)] for i in ids if i >= len(SPECIALS))

    def token(self, i: int) -> str:
        """Return the n-gram of an id, or the name of a special token."""
        return SPECIALS[i] if i < len(SPECIALS) else self.ngrams[i - len(SPECIALS)]

    def unseen(self, text: str) -> list[str]:
        """Return the characters of a text that the training set does not have, in order of appearance."""
        return [c for c in dict.fromkeys(self.normalise(text)) if c not in self._alphabet_set]

    def spelling_cost(self, character: str) -> float:
        """Return the nats that one character of an unknown n-gram costs; the empty string is an empty place."""
        counts, total = self._spelling
        if character and character not in self._alphabet_set:
            return math.log(total) + math.log(_CODE_POINTS)
        return math.log(total) - math.log(counts.get(character, 0) + 1)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value for `from_json`."""
        return {
            "ngram": self.ngram,
            **{name: value for name, value in self.normalisation._asdict().items() if value is not None},
            "min_count": self.min_count,
            "ngrams": list(self.ngrams),
            "counts": list(self.counts),
            "alphabet": self.alphabet,
            "hidden": dict(self.unknown_characters),
        }

    @classmethod
    def from_json(cls, value: object) -> Vocabulary:
        """Restore a vocabulary from the value of `to_json`, and check all of it.

        Raises:
            IntegrityError: a part is missing, duplicated, out of order or of the wrong type.
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
                "hidden": dict(unknown_characters),
                **parts,
            } if type(ngram) is type(min_count) is int and 1 <= ngram <= LONGEST_NGRAM and min_count >= 1:
                language = parts.get("language")
            case _:
                raise IntegrityError("the vocabulary lacks a part or has one of the wrong type", _REMEDY)
        valid = (
            len(ngrams) == len(counts) > 0
            and all(isinstance(gram, str) and 1 <= len(gram) <= ngram for gram in ngrams)
            and all(type(count) is int and count >= min_count for count in counts)
            and len(set(ngrams)) == len(ngrams)
            and list(alphabet) == sorted(set(alphabet))
            and fits_int64(len(alphabet), ngram)
            and set().union(*ngrams) <= set(alphabet)
            and unknown_characters.keys() <= {"", *alphabet}
            and all(type(count) is int and count > 0 for count in unknown_characters.values())
            and (language is None or (isinstance(language, str) and language in get_args(Language)))
        )
        if not valid or [g for _, g in sorted(zip([-c for c in counts], ngrams, strict=True))] != ngrams:
            raise IntegrityError(
                "the vocabulary has entries that are missing, duplicated or out of order", _REMEDY
            )
        return cls(
            ngram,
            Normalisation(lower, newlines, cast("Language | None", language)),
            min_count,
            tuple(ngrams),
            tuple(counts),
            alphabet,
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
    def _alphabet_set(self) -> frozenset[str]:
        return frozenset(self.alphabet)

    @cached_property
    def _spelling(self) -> tuple[dict[str, int], int]:
        """Occurrences of characters in unknown n-grams, and their sum after each count was raised by one."""
        counts = dict(self.unknown_characters)
        # One for each character, one for the empty place, one for the characters never seen.
        return counts, sum(counts.values()) + len(self.alphabet) + 2

    @cached_property
    def _sorted_keys(self) -> tuple[NDArray[np.int64], Ids]:
        keys = np.concatenate([self._keys.keys(code_points(gram)) for gram in self.ngrams])
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
