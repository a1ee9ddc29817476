"""The text of a training: the encoded training and validation sets, checked before anything is trained."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.evaluation.static import EncodedDocument, encode_documents_for_evaluation
from grimmgen.text import encoding
from grimmgen.text.batches import RaggedIds, window_count
from grimmgen.text.corpus import Document, size_of
from grimmgen.text.lexicon import lexicon
from grimmgen.text.split import PARTS, Split
from grimmgen.text.vocabulary import UNKNOWN, Vocabulary
from grimmgen.training.distributed import ProcessGroup

if TYPE_CHECKING:
    import torch

# N-grams of the validation set that are evaluated after each epoch, at most: they settle three digits of perplexity.
VALIDATION_NGRAMS = 1 << 21
# How to sample from a model, unless it is the tutorial's: what readers preferred (benchmarks/README.md, Stories).
DECODING = {"temperature": 0.8, "min_p": 0.05}
# Bytes of a training set whose words are counted, at most. A model of more text spells well without.
_LARGEST_WITH_LEXICON = 16 << 20
# Number of quantiles, and the median in characters above which they are used.
_QUANTILES, _LONG = 33, 500


@dataclass(frozen=True)
class TrainingText:
    """The encoded text.

    Attributes:
        vocabulary: of the training set.
        training: ids of the training set, cut from one phase or from each.
        validation: documents of the validation set.
        updates: windows of an epoch.
        lexicon: words of the training set, if it is small enough and they are enough for new text.
    """

    vocabulary: Vocabulary
    training: RaggedIds
    validation: list[EncodedDocument]
    updates: int
    lexicon: list[str]

    @property
    def ngrams(self) -> int:
        """N-grams of the training set."""
        return int(self.training.lengths[0].sum())

    @property
    def size(self) -> int:
        """N-grams of the training set in all phases."""
        return int(self.training.lengths.sum())

    @property
    def beginnings(self) -> list[int]:
        """Ids that documents of the training set begin with; generation without a prompt begins with one."""
        firsts = self.training.ids.take(self.training.begins[0])
        return sorted({*np.unique(firsts).tolist()} - {UNKNOWN})

    @property
    def lengths(self) -> list[int]:
        """Quantiles of the lengths of training documents in characters; none if most are so short that they end anyway.

        Generation plans the ending of a document by them.
        """
        characters = self.training.lengths[0] * self.vocabulary.characters_per_token
        quantiles = np.quantile(characters, np.linspace(0, 1, _QUANTILES)).round().astype(int).tolist()
        return quantiles if quantiles[len(quantiles) // 2] >= _LONG else []

    def provenance(self, configuration: Configuration) -> dict[str, Any]:
        """What a checkpoint says about the training set, and how to sample from the model unless asked otherwise."""
        decoding = {} if configuration.is_tutorial else {**DECODING, "lexicon": bool(self.lexicon)}
        return {
            "beginnings": self.beginnings,
            "lengths": self.lengths,
            "lexicon": " ".join(self.lexicon),
            "decoding": decoding,
        }

    def sha256(self) -> str:
        """Hash of the vocabulary and the lengths, to compare the texts of several processes."""
        validation = [len(document.ids) for document in self.validation]
        digest = hashlib.sha256(json.dumps([self.vocabulary.to_json(), validation]).encode())
        digest.update(self.training.lengths.tobytes())
        return digest.hexdigest()


def prepare_text(
    configuration: Configuration,
    split: Split,
    device: torch.device,
    group: ProcessGroup,
    notify: Callable[[str], None] | None = None,
    base: Vocabulary | None = None,
) -> TrainingText:
    """Encode the training and validation sets of a split.

    Args:
        configuration: the options.
        split: the documents.
        device: on which the process trains; its type is compared between the processes.
        group: the processes that train together.
        notify: called with a message when another process is encoding the same text.
        base: the vocabulary of the model that training starts from.

    Raises:
        UsageError: the text is too short, or differs between the processes.
    """
    encoded = encoding.encode_documents(split.parts["train"], configuration, notify, base)
    for part in PARTS[1:]:
        # An empty test set would be found after the training.
        if not any(map(_has_text, split.parts[part])):
            name = "validation" if part == "valid" else part
            raise UsageError(f"the text is too short for a {name} set", "give more text")
    validation = encode_validation(split, encoded.vocabulary)
    # Each document has an end besides its n-grams.
    predictions = int(encoded.documents.lengths[0].sum()) + len(encoded.documents)
    if configuration.batch_size > predictions:
        raise UsageError(
            f"--batch-size {configuration.batch_size} is more than the {predictions} tokens of the training set",
            "lower it, or give more text",
        )
    updates = window_count(encoded.documents, configuration.batch_size, configuration.unroll)
    words = list[str]()
    if size_of(split.parts["train"]) <= _LARGEST_WITH_LEXICON:
        words = lexicon([encoding.joined(split.parts["train"])], configuration.normalisation)
    text = TrainingText(encoded.vocabulary, encoded.documents, validation, updates, words)
    if not group.all_equal(lambda: [configuration.to_json(), device.type, text.sha256()]):
        raise UsageError(
            "the processes do not have the same text, options and type of device", "give all hosts the same"
        )
    return text


def _has_text(document: Document) -> bool:
    return any(itertools.islice(document.pieces(), 1))


def encode_validation(split: Split, vocabulary: Vocabulary, ngrams: int | None = None) -> list[EncodedDocument]:
    """Encode the validation set.

    Args:
        split: the documents.
        vocabulary: of the training set.
        ngrams: encode only that many n-grams; None is all, or the first ones of a large text.
    """
    limit, exact = ngrams or VALIDATION_NGRAMS, ngrams is not None
    return encode_documents_for_evaluation(split.parts["valid"], vocabulary, limit, exact)
