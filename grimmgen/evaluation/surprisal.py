"""What a model finds hard: the surprisal of each n-gram of a text, and what it had expected there.

Surprisal is the negative binary logarithm of the probability that the model gave to what came (Hale 2001). Those
of a text sum to what `grimmgen.evaluation.static` says that it costs, where that reads it in one part. Runs on NumPy
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from grimmgen.network.backends.numpy import Stepper
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.text.vocabulary import END


@dataclass(frozen=True)
class Surprise:
    """One n-gram as the model met it.

    Attributes:
        text: its characters; the empty string is the end of the text.
        bits: its surprisal, that of spelling what `<unk>` hides included.
        expected: the likeliest tokens before it was read, and their probabilities, the best first; tokens
            are named as `Vocabulary.token` does.
    """

    text: str
    bits: float
    expected: tuple[tuple[str, float], ...]

    @property
    def bits_per_character(self) -> float:
        """Over its characters; an end counts as one."""
        return self.bits / max(1, len(self.text))


def surprises(checkpoint: Checkpoint, text: str, candidates: int = 5) -> list[Surprise]:
    """How surprising each n-gram of a text is, then its end, read from a state of zeros.

    Args:
        checkpoint: the model.
        text: as it was read from a file; it is normalised first.
        candidates: how many of the expected tokens to tell.
    """
    vocabulary, configuration = checkpoint.vocabulary, checkpoint.configuration
    ids, spelling, _ = vocabulary.encode_with_costs(text)
    text, n = vocabulary.normalise(text), vocabulary.ngram
    state = np.zeros((2, configuration.layers, 1, configuration.hidden), np.float32)
    stepper = Stepper(configuration, checkpoint.weights, *state)
    candidates = min(candidates, len(vocabulary))
    found, last = [], END
    for place, token in enumerate([*ids.tolist(), END]):
        logits = stepper.step([last])[0].astype(np.float64)
        logits -= logits.max()
        normaliser = math.log(np.exp(logits).sum())
        nats = normaliser - float(logits[token]) + (float(spelling[place]) if place < len(ids) else 0.0)
        best = np.argpartition(logits, -candidates)[-candidates:]
        best = best[np.lexsort((best, -logits[best]))]
        expected = ((vocabulary.token(int(i)), math.exp(float(logits[i]) - normaliser)) for i in best)
        found.append(Surprise(text[place * n : (place + 1) * n], nats / math.log(2), tuple(expected)))
        last = token
    return found
