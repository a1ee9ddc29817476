"""The vocabulary: tokens to ids and back. How a text is cut into tokens is up to its subclasses.

N  tokens of a text          V  vocabulary size
"""

from __future__ import annotations

import bisect
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, cast, get_args

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Language, Normalisation
from grimmgen.errors import IntegrityError
from grimmgen.text.normalisation import CodePoints, Text, normalise, normalised_codes

Ids = NDArray[np.int32]

UNKNOWN = 0
END = 1
SPECIALS = ("<unk>", "<end>")
# The characters of Unicode: what one that the training set does not have is chosen from.
CODE_POINTS = 0x110000

_REMEDY = "copy the file again, or train again"


class Cutter(Protocol):
    """Cuts a normalised text that arrives in pieces between two tokens."""

    def add(self, codes: CodePoints) -> CodePoints:
        """Add a piece; return the characters of the tokens that are complete now."""

    def rest(self) -> CodePoints:
        """Return the characters of the tokens at the end of the text, which may be none."""


class Block(NamedTuple):
    """Tokens of documents that follow each other.

    Attributes:
        ids: of the tokens, [N].
        costs: of spelling out each in nats, [N]; see `Vocabulary.encode_with_costs`.
        size: number of characters.
        ends: number of tokens up to the end of each document that ends among them, [D].
        characters: number of characters up to each of these ends, [D].
    """

    ids: Ids
    costs: NDArray[np.float64]
    size: int
    ends: NDArray[np.int64]
    characters: NDArray[np.int64]


class PromptEnd(NamedTuple):
    """One way in which the end of a prompt can be read.

    Attributes:
        ids: tokens that the prompt has completely.
        prefix: what follows them in the prompt: the first characters of a token that generation completes.
    """

    ids: list[int]
    prefix: str


@dataclass(frozen=True)
class Vocabulary(ABC):
    """Token ↔ id. Id 0 is `<unk>`, 1 is `<end>`, then the tokens of the training set.

    Attributes:
        normalisation: of all texts, before they are cut.
        min_count: occurrences in the training set that a token needs to have an id.
        texts: the texts of the tokens with an id, in the order of their ids.
        counts: occurrences of each in the training set.
        alphabet: every character of the training set, in the order of code points.
    """

    normalisation: Normalisation
    min_count: int
    texts: tuple[str, ...]
    counts: tuple[int, ...]
    alphabet: str

    @property
    @abstractmethod
    def tokens(self) -> str:
        """How text is cut into tokens, as in `Configuration.tokens`."""

    @property
    @abstractmethod
    def unknown_share(self) -> float:
        """The share of the training set's tokens that became `<unk>`, from 0 to 1."""

    @property
    @abstractmethod
    def characters_per_token(self) -> float:
        """The mean length of the training set's tokens in characters."""

    @property
    @abstractmethod
    def longest_token(self) -> int:
        """The largest number of characters of a token, `<unk>` included."""

    @property
    @abstractmethod
    def unknown_length(self) -> int:
        """The number of characters that `<unk>` stands for."""

    @abstractmethod
    def cutter(self) -> Cutter:
        """Return a cutter for one text."""

    @abstractmethod
    def encode_joined(
        self, pieces: Iterable[CodePoints], phase: int = 0, with_costs: bool = False
    ) -> Iterator[Block]:
        """Encode documents that follow each other, short ones together.

        Args:
            pieces: of their normalised text, with a NUL after each document.
            phase: number of characters to skip at the beginning of each.
            with_costs: whether to compute the costs; else they are empty.
        """

    @abstractmethod
    def ids(self, codes: CodePoints) -> Ids:
        """Return the ids of complete tokens of a text that is normalised already, [N]."""

    @abstractmethod
    def costs(self, codes: CodePoints, ids: Ids) -> NDArray[np.float64]:
        """Return the spelling cost of each token in nats, [N]; see `encode_with_costs`.

        Args:
            codes: complete tokens of a text that is normalised already.
            ids: of its tokens, [N].
        """

    @abstractmethod
    def read_prompt(self, prompt: str) -> tuple[list[int], list[PromptEnd]]:
        """Encode a prompt, which may end within a token.

        Args:
            prompt: a normalised text.

        Returns:
            The ids that are the same however the text continues, and all ways to read the rest, at least one.
        """

    @abstractmethod
    def extended(self, texts: Iterable[Text], normalisation: Normalisation, phases: bool) -> Self:
        """The vocabulary of a training set to which other texts are added: no token is lost, frequent ones are added.

        Args:
            texts: that are added, or their pieces; see `build_vocabulary`.
            normalisation: of these texts, and of all texts from now on.
            phases: whether to count n-grams from every offset.

        Raises:
            UsageError: the texts are empty, or there are too many different characters for the tokenizer.
        """

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """Return a JSON value for `grimmgen.text.tokenizers.vocabulary_from_json`."""

    def __len__(self) -> int:
        """V: the tokens and the two special ones."""
        return len(self.texts) + len(SPECIALS)

    @property
    def id_type(self) -> type[np.uint16] | type[np.int32]:
        """The narrowest integer type in which ids are stored."""
        return np.uint16 if len(self) <= 1 << 16 else np.int32

    def normalise(self, text: str) -> str:
        """Normalise a text as the training set was."""
        return normalise(text, self.normalisation)

    def encode(self, text: str, phase: int = 0) -> Ids:
        """Return the ids of a text's tokens, [N], without `<end>`.

        Args:
            text: any Unicode text; it is normalised.
            phase: number of characters to skip at the beginning.
        """
        return self.ids(normalised_codes(text, self.normalisation)[phase:])

    def encode_with_costs(self, text: str) -> tuple[Ids, NDArray[np.float64], int]:
        """Return a text's ids [N], the spelling cost of each in nats [N], and the number of characters.

        The cost of `<unk>` is that of the characters it stands for; known tokens cost nothing. Thus the score of a
        text is that of its characters, whatever the vocabulary.
        """
        codes = normalised_codes(text, self.normalisation)
        ids = self.ids(codes)
        return ids, self.costs(codes, ids), len(codes)

    def shared_ids(self, other: Vocabulary) -> tuple[list[int], list[int]]:
        """The ids of the tokens that two vocabularies share, the special ones included: here, and in the other."""
        theirs = {text: i for i, text in enumerate(other.texts, len(SPECIALS))}
        shared = [(i, theirs[text]) for i, text in enumerate(self.texts, len(SPECIALS)) if text in theirs]
        special = range(len(SPECIALS))
        return [*special, *(own for own, _ in shared)], [*special, *(other for _, other in shared)]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; `<unk>` and `<end>` are left out."""
        return "".join(self.texts[i - len(SPECIALS)] for i in ids if i >= len(SPECIALS))

    def token(self, i: int) -> str:
        """Return the text of an id, or the name of a special token."""
        return SPECIALS[i] if i < len(SPECIALS) else self.texts[i - len(SPECIALS)]

    def lengths(self, ids: Ids) -> NDArray[np.int64]:
        """Return the characters of each token, [N]; the last n-gram of a text may have fewer than `<unk>`."""
        return self._lengths[ids]

    def cut(self, text: str, ids: Ids) -> list[str]:
        """Return the text of each token, [N], `<unk>` included.

        Args:
            text: normalised.
            ids: of its tokens, [N].
        """
        ends = np.cumsum(self.lengths(ids)).tolist()
        return [text[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def unseen(self, text: str) -> list[str]:
        """Return the characters of a text that the training set does not have, in order of appearance."""
        return [c for c in dict.fromkeys(self.normalise(text)) if c not in self._alphabet_set]

    def starting_with(self, prefix: str) -> list[int]:
        """Return the ids of the tokens that start with a prefix, in ascending order."""
        found = itertools.islice(self._sorted, bisect.bisect_left(self._sorted, (prefix,)), None)
        return sorted(i for _, i in itertools.takewhile(lambda entry: entry[0].startswith(prefix), found))

    @cached_property
    def _sorted(self) -> list[tuple[str, int]]:
        return sorted(zip(self.texts, range(len(SPECIALS), len(self)), strict=True))

    @cached_property
    def _alphabet_set(self) -> frozenset[str]:
        return frozenset(self.alphabet)

    @cached_property
    def _lengths(self) -> NDArray[np.int64]:
        return np.array([self.unknown_length, 0, *map(len, self.texts)])


def incomplete() -> IntegrityError:
    """The error of a stored vocabulary whose parts are not those of `to_json`."""
    return IntegrityError("the vocabulary lacks a part or has one of the wrong type", _REMEDY)


def inconsistent() -> IntegrityError:
    """The error of a stored vocabulary whose entries cannot be those of a training set."""
    return IntegrityError("the vocabulary has entries that are missing, duplicated or out of order", _REMEDY)


def normalisation_to_json(normalisation: Normalisation) -> dict[str, Any]:
    """The options of normalisation as parts of a vocabulary's JSON value."""
    return {name: value for name, value in normalisation._asdict().items() if value is not None}


def normalisation_from_json(value: object) -> Normalisation:
    """Restore the options of normalisation from a vocabulary's JSON value.

    Raises:
        IntegrityError: one is missing or of the wrong type.
    """
    match value:
        case {"lower": bool(lower), "newlines": ("keep" | "space") as newlines, **parts}:
            language = parts.get("language")
            if language is None or (isinstance(language, str) and language in get_args(Language)):
                return Normalisation(lower, newlines, cast("Language | None", language))
    raise incomplete()


def valid_entries(texts: Sequence[object], counts: Sequence[object], least: int) -> bool:
    """Whether these are different texts that are not empty, and a count of at least `least` for each."""
    return (
        len(texts) == len(counts) > 0
        and all(isinstance(text, str) and text for text in texts)
        and len(set(texts)) == len(texts)
        and all(type(count) is int and count >= least for count in counts)
    )


def ranked(counted: Mapping[str, int]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts and their counts, the most frequent first, ties by code point."""
    texts, counts = zip(*sorted(counted.items(), key=lambda item: (-item[1], item[0])), strict=True)
    return texts, counts


def in_order(texts: Sequence[str], counts: Sequence[int]) -> bool:
    """Whether different texts are in the order of `ranked`."""
    return ranked(dict(zip(texts, counts, strict=True)))[0] == tuple(texts)
