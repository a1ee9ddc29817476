"""Encoding: documents of any size as ids, which are kept in memory or in a file of the cache.

Documents are normalised, cut into tokens and encoded piece by piece, so that the memory does not grow with the
text. One thread encodes some hundred megabytes of n-grams per second, and some ten of words or byte pairs.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.text import id_cache
from grimmgen.text.batches import RaggedIds
from grimmgen.text.corpus import Document, digest_of, marked_pieces, size_of
from grimmgen.text.documents import JoinedText
from grimmgen.text.normalisation import CodePoints, Text, normalised_pieces, pieces_of
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import Block, Vocabulary

# Bytes of text up to which the ids are kept in memory.
IN_MEMORY = 64 << 20


def token_codes(pieces: Iterable[str], vocabulary: Vocabulary, phase: int = 0) -> Iterator[CodePoints]:
    """Normalise a text and cut it between tokens, for `Vocabulary.ids` and `Vocabulary.costs`.

    Args:
        pieces: of one text, cut anywhere.
        vocabulary: has the tokenizer and the options of normalisation.
        phase: number of characters to skip at the beginning of the text.

    Yields:
        The code points of some complete tokens; any may be empty.
    """
    cutter = vocabulary.cutter()
    for codes in normalised_pieces(pieces, vocabulary.normalisation):
        skipped = min(phase, len(codes))
        phase -= skipped
        yield cutter.add(codes[skipped:])
    yield cutter.rest()


def encode(text: Text, vocabulary: Vocabulary, phase: int = 0) -> Iterator[NDArray[Any]]:
    """Yield the ids of `Vocabulary.encode(text, phase)` piece by piece, in the type `Vocabulary.id_type`."""
    for codes in token_codes(pieces_of(text), vocabulary, phase):
        yield vocabulary.ids(codes).astype(vocabulary.id_type)


def joined(documents: Sequence[Document]) -> JoinedText:
    """The text of documents one after the other."""
    return JoinedText(partial(marked_pieces, documents))


def encode_joined(
    documents: Sequence[Document], vocabulary: Vocabulary, phase: int = 0, with_costs: bool = False
) -> Iterator[Block]:
    """Encode documents one after the other; see `Vocabulary.encode_joined`."""
    pieces = normalised_pieces(marked_pieces(documents), vocabulary.normalisation)
    return vocabulary.encode_joined(pieces, phase, with_costs)


@dataclass(frozen=True)
class EncodedDocuments:
    """The training set as ids.

    Attributes:
        vocabulary: of the training set.
        documents: ids of the documents that are not empty, cut from their first character on; with phases also from
            their second, … and from their n-th.
    """

    vocabulary: Vocabulary
    documents: RaggedIds


def encode_documents(
    documents: Sequence[Document],
    configuration: Configuration,
    notify: Callable[[str], None] | None = None,
    base: Vocabulary | None = None,
) -> EncodedDocuments:
    """Build the vocabulary of the training set, and encode it.

    The ids of more than IN_MEMORY bytes of text are kept in a file of the cache, which later runs with the same
    text and options use again.

    Args:
        documents: the training set.
        configuration: the options of the vocabulary.
        notify: called with a message if another process is encoding.
        base: the vocabulary of the model that training starts from.

    Raises:
        UsageError: see `build_vocabulary`.
        GrimmgenError: a document cannot be read, or the cache cannot be written.
        IntegrityError: a document has changed since its hash was stored.
    """
    phases = range(configuration.tokenization.size if configuration.phases else 1)
    if size_of(documents) > IN_MEMORY:
        return _encode_to_cache(documents, configuration, phases, notify, base)
    vocabulary = build_vocabulary([joined(documents)], configuration, base)
    ids, lengths = list[NDArray[Any]](), list[NDArray[np.int64]]()
    for phase in phases:
        of_phase = id_cache.DocumentLengths()
        for block in encode_joined(documents, vocabulary, phase):
            ids.append(block.ids.astype(vocabulary.id_type))
            of_phase.add(len(block.ids), block.ends)
        lengths.append(of_phase.all())
    return EncodedDocuments(vocabulary, RaggedIds.of_lengths(np.concatenate(ids), np.stack(lengths)))


def _encode_to_cache(
    documents: Sequence[Document],
    configuration: Configuration,
    phases: range,
    notify: Callable[[str], None] | None,
    base: Vocabulary | None,
) -> EncodedDocuments:
    key = _cache_key(documents, configuration, base)

    def write(path: Path) -> None:
        vocabulary = build_vocabulary([joined(documents)], configuration, base)
        id_cache.write(path, vocabulary, [encode_joined(documents, vocabulary, phase) for phase in phases])

    return EncodedDocuments(*id_cache.load_or_write(key, write, notify))


def _cache_key(documents: Sequence[Document], options: Configuration, base: Vocabulary | None) -> str:
    """A hash of everything that the ids depend on."""
    chosen = options.tokens, options.min_count, options.normalisation, options.phases
    value = [id_cache.FORMAT, unicodedata.unidata_version, chosen, digest_of(documents)]
    if base is not None:
        value.append(base.to_json())
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:32]
