"""Scores of documents under a model, and the significance of the difference between two models.

Bits per character count all bits, including those of `<end>` and of spelling out unknown characters
(`Vocabulary.encode_with_costs`), divided by the characters of the normalised text.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# A larger one would overflow. It is that of a model that has diverged.
LARGEST_PERPLEXITY = math.exp(700.0)
# With fewer documents, bootstrap intervals are too narrow.
MIN_DOCUMENTS = 6
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """The score of one document, or of several together.

    Attributes:
        name: of the document.
        nats: negative log-likelihood of the whole text.
        predictions: number of predicted tokens, `<end>` included.
        characters: of the normalised text.
        unknown: number of `<unk>` tokens.
    """

    name: str
    nats: float
    predictions: int
    characters: int
    unknown: int

    @property
    def perplexity(self) -> float:
        """Perplexity per token."""
        return bounded_perplexity(self.nats / self.predictions)

    @property
    def bits(self) -> float:
        """Negative log-likelihood in bits."""
        return self.nats / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """Bits per character, which can be compared across vocabularies."""
        return self.bits / self.characters


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model on several documents.

    Attributes:
        documents: one score per document.
    """

    documents: tuple[Score, ...]

    @property
    def total(self) -> Score:
        """The score of all documents together."""
        return Score(
            "total",
            math.fsum(score.nats for score in self.documents),
            sum(score.predictions for score in self.documents),
            sum(score.characters for score in self.documents),
            sum(score.unknown for score in self.documents),
        )

    def __repr__(self) -> str:
        """State the figures of all documents together, as a notebook shows them."""
        total = self.total
        return (
            f"<Evaluation of {len(self.documents)} documents: perplexity {total.perplexity:.2f},"
            f" {total.bits_per_character:.3f} bits per character>"
        )


@dataclass(frozen=True)
class Difference:
    """The difference between two models in bits per character, over the same documents.

    Attributes:
        mean: bits per character of the first model minus those of the second.
        low: lower end of the 95 % confidence interval; None with fewer than `MIN_DOCUMENTS` documents.
        high: upper end of the interval, or None.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def significant(self) -> bool | None:
        """Whether the 95 % interval excludes zero; None if there is no interval."""
        return None if self.low is None or self.high is None else not self.low <= 0.0 <= self.high


def bounded_perplexity(loss: float) -> float:
    """Return the perplexity of a mean loss in nats, at most LARGEST_PERPLEXITY."""
    return math.exp(loss) if loss < math.log(LARGEST_PERPLEXITY) else LARGEST_PERPLEXITY


def compare(one: Evaluation, other: Evaluation, random_seed: int = 0) -> Difference:
    """Compare two models on the same documents by a paired bootstrap.

    Documents are resampled with replacement (Efron 1979, percentile interval), both models' scores of a document
    together, so that the variation between documents cancels. The statistic of a sample is computed as that of the
    total: all bits divided by all characters.

    Args:
        one: scores of the first model.
        other: scores of the second model, for the same documents in the same order.
        random_seed: of the resampling.
    """
    a, b = ([[score.bits, score.characters] for score in side.documents] for side in (one, other))
    figures = np.array([*zip(*a, strict=True), *zip(*b, strict=True)])  # [4, N], N documents
    mean = one.total.bits_per_character - other.total.bits_per_character
    documents = figures.shape[1]
    if documents < MIN_DOCUMENTS:
        return Difference(mean, None, None)
    random = np.random.default_rng(random_seed)
    shares = np.full(documents, 1.0 / documents)
    differences = []
    # In batches, to bound the memory with many documents.
    batch = max(1, (1 << 20) // documents)
    for done in range(0, _RESAMPLES, batch):
        times = random.multinomial(documents, shares, min(batch, _RESAMPLES - done))  # [samples, N]
        bits, characters, other_bits, other_characters = figures @ times.T
        differences.append(bits / characters - other_bits / other_characters)
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    return Difference(mean, float(low), float(high))
