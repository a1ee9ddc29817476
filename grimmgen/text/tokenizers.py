"""The tokenizers of `--tokens`: vocabularies of n-grams (`grimmgen.text.ngrams`), words and byte pairs.

Words and byte pairs cut each pre-token (`grimmgen.text.pretokens`) by itself, and have a token for every character
of the training set: only a character that it does not have is `<unk>`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration, Normalisation, Tokenization, tokenization
from grimmgen.errors import UsageError
from grimmgen.text import byte_pairs, pretokens
from grimmgen.text.documents import END
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.normalisation import CodePoints, Text
from grimmgen.text.pretokens import PretokenCutter
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

# Different pre-tokens whose ids are kept.
_MOST_KEPT = 1 << 18
# Different pre-tokens that byte pairs are learnt from: the most frequent ones, to bound the time.
_MOST_LEARNT = 1 << 17


def build_vocabulary(
    texts: Iterable[Text], configuration: Configuration, base: Vocabulary | None = None
) -> Vocabulary:
    """Build the vocabulary of a training set.

    Args:
        texts: the training documents, or their texts as strings; they are read piece by piece, perhaps twice.
        configuration: the tokenizer and its options.
        base: the vocabulary of the model that training starts from, of the same tokenizer; it is extended.

    Raises:
        UsageError: the texts are too short, or have too many different characters.
    """
    c = configuration
    if base is not None:
        return base.extended(texts, c.normalisation, c.phases)
    match c.tokenization:
        case Tokenization("word"):
            return WordVocabulary.build(texts, c.min_count, c.normalisation)
        case Tokenization("bpe", size):
            return BytePairVocabulary.build(texts, size, c.min_count, c.normalisation)
        case Tokenization(_, n):
            return NgramVocabulary.build(texts, n, c.min_count, c.normalisation, c.phases)


def vocabulary_from_json(value: object) -> Vocabulary:
    """Restore a vocabulary from the value of `Vocabulary.to_json`, and check all of it.

    Raises:
        IntegrityError: a part is missing, duplicated, out of order or of the wrong type.
    """
    if not isinstance(value, dict) or "tokens" not in value:
        return NgramVocabulary.from_json(value)
    return (WordVocabulary if value["tokens"] == "word" else BytePairVocabulary).from_json(value)


@dataclass(frozen=True)
class PretokenVocabulary(Vocabulary):
    """A vocabulary that cuts each pre-token by itself, with a token for every character of the training set."""

    @abstractmethod
    def split(self, pretoken: str) -> list[str]:
        """Cut a pre-token into texts of tokens; a character without a token is a text by itself."""

    @property
    def unknown_share(self) -> float:  # noqa: D102 - see Vocabulary, as for those that follow
        return 0.0

    @cached_property
    def characters_per_token(self) -> float:  # noqa: D102
        characters = sum(len(text) * count for text, count in zip(self.texts, self.counts, strict=True))
        return characters / max(1, sum(self.counts))

    @cached_property
    def longest_token(self) -> int:  # noqa: D102
        return max(map(len, self.texts))

    @property
    def unknown_length(self) -> int:  # noqa: D102
        return 1

    def cutter(self) -> PretokenCutter:  # noqa: D102
        return PretokenCutter()

    def encode_joined(  # noqa: D102
        self,
        pieces: Iterable[CodePoints],
        phase: int = 0,  # noqa: ARG002 - as in Vocabulary
        with_costs: bool = False,
    ) -> Iterator[Block]:
        cutter = PretokenCutter()
        for codes in chain(pieces, [None]):
            complete = cutter.rest() if codes is None else cutter.add(codes)
            # A NUL is a pre-token by itself; here it has no ids, and is no character.
            found = [
                () if pretoken == END else self._ids_of_pretokens[pretoken]
                for pretoken in pretokens.split(pretokens.text_of(complete))
            ]
            ids = np.fromiter(chain.from_iterable(found), np.int32)
            costs = self.costs(complete, ids) if with_costs else np.zeros(0)
            lengths = np.fromiter(map(len, found), np.int64, len(found))
            ends = np.cumsum(lengths)[lengths == 0]
            characters = np.flatnonzero(complete == 0) - np.arange(len(ends))
            yield Block(ids, costs, len(complete) - len(ends), ends, characters)

    def ids(self, codes: CodePoints) -> Ids:  # noqa: D102
        found = map(self._ids_of_pretokens.__getitem__, pretokens.split(pretokens.text_of(codes)))
        return np.fromiter(chain.from_iterable(found), np.int32)

    def costs(self, codes: CodePoints, ids: Ids) -> NDArray[np.float64]:  # noqa: ARG002 - as in Vocabulary
        """Return the spelling cost of each token in nats, [N]: ln 1,114,112 for a character never seen."""
        return np.where(ids == UNKNOWN, math.log(CODE_POINTS), 0.0)

    def read_prompt(self, prompt: str) -> tuple[list[int], list[PromptEnd]]:  # noqa: D102
        begin = pretokens.last_begin(prompt)
        last = prompt[begin:]
        if not last:
            return [], [PromptEnd([], "")]
        return self.encode(prompt[:begin]).tolist(), self._ends(last) or [PromptEnd(self._ids_of(last), "")]

    @abstractmethod
    def _ends(self, last: str) -> list[PromptEnd]:
        """All ways to read the last pre-token of a prompt, of which there may be more than the prompt has."""

    def _ids_of(self, text: str) -> list[int]:
        """The ids of a pre-token, or of its beginning."""
        return list(self._ids_of_pretokens[text]) if text else []

    def to_json(self) -> dict[str, Any]:  # noqa: D102
        return {
            "tokens": self.tokens,
            **normalisation_to_json(self.normalisation),
            "min_count": self.min_count,
            "texts": list(self.texts),
            "counts": list(self.counts),
        }

    @cached_property
    def _ids_of_pretokens(self) -> _IdsOfPretokens:
        return _IdsOfPretokens(self)


class _IdsOfPretokens(dict[str, tuple[int, ...]]):
    """The ids of pre-tokens, computed when they are needed first."""

    def __init__(self, vocabulary: PretokenVocabulary) -> None:
        super().__init__()
        self._split = vocabulary.split
        self._ids = {text: i for i, text in enumerate(vocabulary.texts, len(SPECIALS))}

    def __missing__(self, pretoken: str) -> tuple[int, ...]:
        if len(self) >= _MOST_KEPT:
            self.clear()
        ids = tuple(self._ids.get(text, UNKNOWN) for text in self._split(pretoken))
        self[pretoken] = ids
        return ids


@dataclass(frozen=True)
class WordVocabulary(PretokenVocabulary):
    """Words, punctuation and white space: the frequent pre-tokens, and the characters that spell the others.

    The most frequent token is first, ties by code point.
    """

    @classmethod
    def build(
        cls,
        texts: Iterable[Text],
        min_count: int = 10,
        normalisation: Normalisation = Normalisation(),
    ) -> WordVocabulary:
        """Count the words of the training set; those that occur `min_count` times get an id.

        Raises:
            UsageError: the texts are empty.
        """
        return cls(normalisation, min_count, (), (), "").extended(texts, normalisation)

    def extended(  # noqa: D102
        self,
        texts: Iterable[Text],
        normalisation: Normalisation,
        phases: bool = False,  # noqa: ARG002 - as in Vocabulary
    ) -> WordVocabulary:
        counted, characters = _count(texts, normalisation)
        kept = Counter(dict(zip(self.texts, self.counts, strict=True)))
        kept.update(characters)
        for text, count in counted.items():
            is_word = len(text) > 1 and (count >= self.min_count or text in self._words)
            if is_word:
                kept[text] += count
            for character in text:
                kept[character] += 0 if is_word else count
        words, counts = ranked(kept)
        return replace(self, normalisation=normalisation, texts=words, counts=counts, alphabet=_alphabet(words))

    @property
    def tokens(self) -> str:  # noqa: D102
        return "word"

    def split(self, pretoken: str) -> list[str]:  # noqa: D102
        return [pretoken] if pretoken in self._words else [*pretoken]

    def spelt(self, text: Text) -> tuple[int, int]:
        """Return how many pre-tokens of a text are spelt from characters, and how many there are."""
        counted, dropped = pretokens.count_pretokens([text], self.normalisation)
        spelt = sum(count for pretoken, count in counted.items() if pretoken not in self._words) + sum(
            dropped.values()
        )
        return spelt, sum(counted.values()) + sum(dropped.values())

    def _ends(self, last: str) -> list[PromptEnd]:
        # A word that the prompt has begun; white space and the space of a word; or a word that is spelt.
        ends = [PromptEnd([], last)] if self.starting_with(last) else []
        if len(last) > 1:
            if last.endswith(" ") and self.starting_with(" "):
                ends.append(PromptEnd(self._ids_of(last[:-1]), " "))
            ends.append(PromptEnd([i for character in last for i in self._ids_of(character)], ""))
        return ends

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset(self.texts)

    @classmethod
    def from_json(cls, value: object) -> WordVocabulary:
        """Restore a vocabulary from the value of `to_json`, and check all of it.

        Raises:
            IntegrityError: a part is missing, duplicated, out of order or of the wrong type.
        """
        tokens, normalisation, min_count, texts, counts = _parts(value)
        if not (
            tokens == "word"
            and in_order(texts, counts)
            and all(
                len(text) == 1 or (count >= min_count and pretokens.split(text) == [text])
                for text, count in zip(texts, counts, strict=True)
            )
        ):
            raise inconsistent()
        return cls(normalisation, min_count, tuple(texts), tuple(counts), _alphabet(texts))


@dataclass(frozen=True)
class BytePairVocabulary(PretokenVocabulary):
    """Byte pairs: the characters by code point, then the tokens that are joined from them, in the order they are.

    Attributes:
        size: the largest number of tokens, with the special ones.
    """

    size: int

    @classmethod
    def build(
        cls,
        texts: Iterable[Text],
        size: int,
        min_count: int = 10,
        normalisation: Normalisation = Normalisation(),
    ) -> BytePairVocabulary:
        """Learn the byte pairs of the training set.

        Raises:
            UsageError: the texts are empty, or have too many different characters for the size.
        """
        counted, characters = _count(texts, normalisation)
        alphabet = sorted(set(characters).union(*counted))
        if (smallest := len(SPECIALS) + len(alphabet)) > size:
            raise UsageError(
                f"--tokens bpe:{size} is too small for {len(alphabet)} different characters",
                f"give bpe:{smallest} or more",
            )
        frequent = dict(sorted(counted.items(), key=lambda item: (-item[1], item[0]))[:_MOST_LEARNT])
        tokens = (*alphabet, *byte_pairs.learn(frequent, size - smallest, min_count))
        return cls(normalisation, min_count, tokens, (), "".join(alphabet), size)._counted(counted, characters)

    def extended(  # noqa: D102
        self,
        texts: Iterable[Text],
        normalisation: Normalisation,
        phases: bool = False,  # noqa: ARG002 - as in Vocabulary
    ) -> BytePairVocabulary:
        counted, characters = _count(texts, normalisation)
        alphabet = sorted({*self.alphabet, *characters}.union(*counted))
        pairs = [text for text in self.texts if len(text) > 1]
        # A new character takes the place of the pair that was joined last, on which no other is built.
        room = self.size - len(SPECIALS) - len(alphabet)
        if room < 0:
            raise UsageError(
                f"--tokens {self.tokens} is too small for {len(alphabet)} different characters",
                "train without --from, or from a model with more tokens",
            )
        before = Counter(dict(zip(self.texts, self.counts, strict=True)))
        tokens = (*alphabet, *pairs[:room])
        extended = replace(self, normalisation=normalisation, texts=tokens, counts=(), alphabet="".join(alphabet))
        return extended._counted(counted, characters + before)

    def _counted(self, counted: Mapping[str, int], before: Counter[str]) -> BytePairVocabulary:
        """With the counts of the tokens in these pre-tokens, added to those from before."""
        for pretoken, count in counted.items():
            for text in self.split(pretoken):
                before[text] += count
        return replace(self, counts=tuple(before[text] for text in self.texts))

    @property
    def tokens(self) -> str:  # noqa: D102
        return Tokenization("bpe", self.size).name

    def split(self, pretoken: str) -> list[str]:  # noqa: D102
        parts = [*pretoken]
        byte_pairs.join(parts, self._ranks)
        return parts

    def _ends(self, last: str) -> list[PromptEnd]:
        return [
            PromptEnd(self._ids_of(last[:end]), last[end:])
            for end in range(max(0, len(last) - self.longest_token), len(last))
            if self.starting_with(last[end:])
        ]

    @cached_property
    def _ranks(self) -> dict[str, int]:
        return {text: rank for rank, text in enumerate(self.texts) if len(text) > 1}

    @classmethod
    def from_json(cls, value: object) -> BytePairVocabulary:
        """Restore a vocabulary from the value of `to_json`, and check all of it.

        Raises:
            IntegrityError: a part is missing, duplicated, out of order or of the wrong type.
        """
        tokens, normalisation, min_count, texts, counts = _parts(value)
        try:
            size = tokenization(tokens).size
        except UsageError:
            raise incomplete() from None
        alphabet = _alphabet(texts)
        known = set(alphabet)
        if not (
            tokens == Tokenization("bpe", size).name
            and len(SPECIALS) + len(texts) <= size
            and texts[: len(alphabet)] == list(alphabet)
        ):
            raise inconsistent()
        for text in texts[len(alphabet) :]:
            # Two tokens before it make it up, within a pre-token.
            joined = any(text[:at] in known and text[at:] in known for at in range(1, len(text)))
            if not joined or len(text) > byte_pairs.LONGEST or len(pretokens.split(text)) != 1:
                raise inconsistent()
            known.add(text)
        return cls(normalisation, min_count, tuple(texts), tuple(counts), alphabet, size)


def _count(texts: Iterable[Text], normalisation: Normalisation) -> tuple[Counter[str], Counter[str]]:
    """The pre-tokens of the training set, and the characters of those that were not counted.

    Raises:
        UsageError: there are none.
    """
    counted, characters = pretokens.count_pretokens(texts, normalisation)
    if not counted:
        raise UsageError("the training stories are empty", "give more text")
    return counted, characters


def _parts(value: object) -> tuple[str, Normalisation, int, list[str], list[int]]:
    """The parts of a stored vocabulary of pre-tokens, of the right types."""
    match value:
        case {
            "tokens": str(tokens),
            "min_count": int(min_count),
            "texts": list(texts),
            "counts": list(counts),
        } if type(min_count) is int and min_count >= 1:
            pass
        case _:
            raise incomplete()
    if not valid_entries(texts, counts, 0) or not set().union(*texts) <= {
        text for text in texts if len(text) == 1
    }:
        raise inconsistent()
    return tokens, normalisation_from_json(value), min_count, texts, counts


def _alphabet(texts: Sequence[str]) -> str:
    return "".join(sorted(text for text in texts if len(text) == 1))
