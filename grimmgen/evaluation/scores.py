"""What texts cost a model, and which difference between two models is real.

Bits per character are all bits, those of `<end>` and of spelling what `<unk>` hides included
(`Vocabulary.encode_with_costs` says how), divided by the characters of the normalised text.
Knows figures, and nothing of models.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# With fewer stories a bootstrap takes chance for certainty.
FEWEST_STORIES = 6
_RESAMPLES = 10_000


@dataclass(frozen=True)
class Score:
    """What one text, or several together, cost.

    Attributes:
        name: of the text.
        nats: the negative log-likelihood of all of it.
        predictions: tokens and ends of stories.
        characters: of the text.
        unknown: how many n-grams `<unk>` hides.
    """

    name: str
    nats: float
    predictions: int
    characters: int
    unknown: int

    @property
    def perplexity(self) -> float:
        """Per n-gram."""
        # A model that has gone astray may cost more than a float can be raised to.
        return math.exp(min(700.0, self.nats / self.predictions))

    @property
    def bits(self) -> float:
        """The same as `nats`, in bits."""
        return self.nats / math.log(2)

    @property
    def bits_per_character(self) -> float:
        """The unit in which unlike vocabularies compare."""
        return self.bits / self.characters


@dataclass(frozen=True)
class Evaluation:
    """The scores of some stories.

    Attributes:
        documents: one score a document.
    """

    documents: tuple[Score, ...]

    @property
    def total(self) -> Score:
        """All stories together."""
        return Score(
            "total",
            math.fsum(score.nats for score in self.documents),
            sum(score.predictions for score in self.documents),
            sum(score.characters for score in self.documents),
            sum(score.unknown for score in self.documents),
        )


@dataclass(frozen=True)
class Difference:
    """How much more one model needs than another for the same stories, in bits per character of all together.

    Attributes:
        mean: of these stories; above zero the first is the worse.
        low: where the 95 % confidence interval begins; None if there are too few stories to say.
        high: where it ends.
    """

    mean: float
    low: float | None
    high: float | None

    @property
    def real(self) -> bool | None:
        """Whether the interval leaves out zero; None if there are too few stories to say."""
        return None if self.low is None or self.high is None else not self.low <= 0.0 <= self.high


def compare(one: Evaluation, other: Evaluation, random_seed: int = 0) -> Difference:
    """The difference of two models' bits per character on the same stories, and how sure it is.

    The bootstrap (Efron 1979; the percentile interval) draws as many stories as there are, with replacement, both
    models' scores of a story together: what makes a story hard for both does not count. A drawn sample is weighed
    as the total is, all its bits by all its characters.

    Args:
        one: the first model's scores.
        other: the second's, of the same stories in the same order.
        random_seed: of the drawing.
    """
    a, b = ([[score.bits, score.characters] for score in side.documents] for side in (one, other))
    figures = np.array([*zip(*a, strict=True), *zip(*b, strict=True)])  # [4, stories]
    mean = one.total.bits_per_character - other.total.bits_per_character
    stories = figures.shape[1]
    if stories < FEWEST_STORIES:
        return Difference(mean, None, None)
    random = np.random.default_rng(random_seed)
    shares = np.full(stories, 1.0 / stories)
    drawn = []
    # So many at a time that the memory is small for many stories, too.
    batch = max(1, (1 << 20) // stories)
    for done in range(0, _RESAMPLES, batch):
        times = random.multinomial(stories, shares, min(batch, _RESAMPLES - done))  # [samples, stories]
        bits, characters, other_bits, other_characters = figures @ times.T
        drawn.append(bits / characters - other_bits / other_characters)
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])
    return Difference(mean, float(low), float(high))
