"""The n-grams of a corpus: how many each part has, and what its vocabulary leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from grimmgen.configuration import Configuration
from grimmgen.text import encoding
from grimmgen.text.split import PARTS, Part, Split
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary


@dataclass(frozen=True)
class PartStatistics:
    """The counts of one part of a corpus.

    Attributes:
        documents: number of documents.
        characters: number of characters, normalised.
        tokens: number of n-grams.
        distinct: number of different n-grams.
        unknown: share of the n-grams that are `<unk>`.
    """

    documents: int
    characters: int
    tokens: int
    distinct: int
    unknown: float


@dataclass(frozen=True)
class Statistics:
    """The counts of a corpus.

    Attributes:
        vocabulary: of the training set.
        parts: the counts of each part.
        documents: number of different documents; one may be cut into several parts.
        distinct: number of different n-grams.
        beginning: the first n-grams of the first document of the training set.
    """

    vocabulary: Vocabulary
    parts: dict[Part, PartStatistics]
    documents: int
    distinct: int
    beginning: list[str]


def count_tokens(split: Split, configuration: Configuration) -> Statistics:
    """Build the vocabulary of the training set and count the n-grams of each part."""
    c, parts = configuration, split.parts
    everything = [document for part in PARTS for document in parts[part]]
    vocabulary = Vocabulary.build(parts["train"], c.ngram, c.min_count, c.normalisation, c.phases)
    complete = Vocabulary.build(everything, c.ngram, 1, c.normalisation)
    counts = {}
    for part in PARTS:
        characters = tokens = unknown = 0
        seen = np.zeros(len(complete), np.bool_)
        for document in parts[part]:
            for codes in encoding.ngram_codes(document.pieces(), vocabulary):
                ids = vocabulary.ids(codes)
                characters += len(codes)
                tokens += len(ids)
                unknown += int(np.count_nonzero(ids == UNKNOWN))
                seen[complete.ids(codes)] = True
        distinct = int(np.count_nonzero(seen))
        counts[part] = PartStatistics(len(parts[part]), characters, tokens, distinct, unknown / max(1, tokens))
    first = vocabulary.normalise(next(iter(parts["train"][0].pieces()), ""))[: 16 * c.ngram]
    beginning = [first[i : i + c.ngram] for i in range(0, len(first), c.ngram)]
    documents = len({document.name for document in everything})
    return Statistics(vocabulary, counts, documents, len(complete.ngrams), beginning)
