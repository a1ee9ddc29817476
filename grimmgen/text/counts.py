"""The tokens of a corpus: how many each part has, and what its vocabulary leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grimmgen.configuration import Configuration
from grimmgen.text import encoding
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.split import PARTS, Part, Split
from grimmgen.text.tokenizers import WordVocabulary, build_vocabulary
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary

# Tokens of `Statistics.beginning`.
_FIRST = 16


@dataclass(frozen=True)
class PartStatistics:
    """The counts of one part of a corpus.

    Attributes:
        documents: number of documents.
        characters: number of characters, normalised.
        tokens: number of tokens.
        distinct: number of different tokens; of n-grams also those that are `<unk>`.
        unknown: share of the tokens that are `<unk>`.
        spelt: share of the words, punctuation and white space that are spelt from characters; None if tokens are not
            words.
    """

    documents: int
    characters: int
    tokens: int
    distinct: int
    unknown: float
    spelt: float | None = None

    @property
    def characters_per_token(self) -> float:
        """The mean length of a token in characters."""
        return self.characters / max(1, self.tokens)


@dataclass(frozen=True)
class Statistics:
    """The counts of a corpus.

    Attributes:
        vocabulary: of the training set.
        parts: the counts of each part.
        documents: number of different documents; one may be cut into several parts.
        distinct: number of different tokens.
        beginning: the first tokens of the first document of the training set.
    """

    vocabulary: Vocabulary
    parts: dict[Part, PartStatistics]
    documents: int
    distinct: int
    beginning: list[str]


def count_tokens(split: Split, configuration: Configuration) -> Statistics:
    """Build the vocabulary of the training set and count the tokens of each part."""
    c, parts = configuration, split.parts
    vocabulary = complete = build_vocabulary([encoding.joined(parts["train"])], c)
    if isinstance(vocabulary, NgramVocabulary):
        complete = NgramVocabulary.build(
            [*map(encoding.joined, parts.values())], vocabulary.ngram, 1, c.normalisation
        )
    words = vocabulary if isinstance(vocabulary, WordVocabulary) else None
    counts = {}
    everywhere = np.zeros(len(complete), np.bool_)
    for part in PARTS:
        characters = tokens = unknown = pretokens = spelt = 0
        seen = np.zeros(len(complete), np.bool_)
        blocks = encoding.encode_joined(parts[part], vocabulary)
        others = encoding.encode_joined(parts[part], complete) if complete is not vocabulary else None
        for block in blocks:
            characters += block.size
            tokens += len(block.ids)
            unknown += int(np.count_nonzero(block.ids == UNKNOWN))
            seen[block.ids if others is None else next(others).ids] = True
        if words is not None:
            spelt, pretokens = words.spelt(encoding.joined(parts[part]))
        seen[:2] = False
        everywhere |= seen
        counts[part] = PartStatistics(
            len(parts[part]),
            characters,
            tokens,
            int(np.count_nonzero(seen)),
            unknown / max(1, tokens),
            None if words is None else spelt / max(1, pretokens),
        )
    first = vocabulary.normalise(next(iter(parts["train"][0].pieces()), ""))[: _FIRST * vocabulary.longest_token]
    beginning = vocabulary.cut(first, vocabulary.encode(first))[:_FIRST]
    documents = sum(map(len, parts.values())) if split.by_story else max(map(len, parts.values()))
    return Statistics(vocabulary, counts, documents, int(np.count_nonzero(everywhere)), beginning)
