"""The surprisal of each token of a text, and the tokens that the model expected in its place.

Surprisal is the negative binary logarithm of the probability of a token in its context (Hale 2001). The surprisals
of a text sum to its score in bits (`grimmgen.evaluation.static`), unless that reads the text in parts. Needs NumPy
only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.cells import cells
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.text.vocabulary import END


@dataclass(frozen=True)
class TokenSurprisal:
    """The surprisal of one token.

    Attributes:
        text: its characters; empty for the end of the text.
        bits: its surprisal, including the spelling of unknown characters.
        expected: the most probable tokens in its context with their probabilities, in descending order; named by
            `Vocabulary.token`.
    """

    text: str
    bits: float
    expected: tuple[tuple[str, float], ...]

    @property
    def bits_per_character(self) -> float:
        """Bits divided by the token's characters; the end of the text counts as one."""
        return self.bits / max(1, len(self.text))


def surprisal(
    checkpoint: Checkpoint, text: str, candidates: int = 5, mix: float | None = None
) -> list[TokenSurprisal]:
    """Compute the surprisal of each token of a text and of its end, starting from a zero state.

    A network with counts is mixed with them.

    Args:
        checkpoint: the model.
        text: not normalised.
        candidates: number of expected tokens to return with each.
        mix: constant weight of the counts; None is that of the fitted gate, 0 the network alone.
    """
    vocabulary, configuration = checkpoint.vocabulary, checkpoint.configuration
    ids, spelling, _ = vocabulary.encode_with_costs(text)
    texts = [*vocabulary.cut(vocabulary.normalise(text), ids), ""]
    states = len(cells()[configuration.cell].states)
    state = np.zeros((states, configuration.layers, 1, configuration.hidden), np.float32)
    stepper = Stepper(configuration, checkpoint.weights, state)
    candidates = min(candidates, len(vocabulary))
    mixture = None if mix == 0.0 else checkpoint.mixture
    tokens, history = [], [END]
    for position, token in enumerate([*ids.tolist(), END]):
        logits = stepper.step(history[-1:])[0].astype(np.float64)  # [V]
        logits -= logits.max()
        log_p = logits - math.log(np.exp(logits).sum())
        if mixture is not None:
            log_p = mixture.log_probabilities(history[-mixture.counts.index.longest :], log_p, mix)
        nats = (float(spelling[position]) if position < len(ids) else 0.0) - float(log_p[token])
        best = np.argpartition(log_p, -candidates)[-candidates:]
        best = best[np.lexsort((best, -log_p[best]))]
        expected = ((vocabulary.token(int(i)), math.exp(float(log_p[i]))) for i in best)
        tokens.append(TokenSurprisal(texts[position], nats / math.log(2), tuple(expected)))
        history.append(token)
    return tokens
