"""How far back a model's state remembers: its loss as a function of the context that it is given.

The model reads stretches of held-out texts, each from a zero state, so that the k-th prediction of a stretch has a
context of k tokens. Its loss is compared with that of the same prediction by the model that has read the text from
its beginning; the difference of the two varies much less than either of them.

    N  predictions of a text    K  predictions of a stretch    R  stretches
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grimmgen.evaluation.activations import TokenisedText
from grimmgen.network.model import LanguageModel
from grimmgen.text.batches import evaluation_windows
from grimmgen.text.vocabulary import Ids

# Tokens of the longest context, and stretches that are read at most.
_LONGEST = 512
_MOST_STRETCHES = 256
_ROWS = 64
_STEPS = 128


@dataclass(frozen=True)
class ContextLoss:
    """The loss with contexts of some lengths, above that with the whole text before.

    Attributes:
        first: the shortest of these contexts, in tokens.
        last: the longest.
        excess: bits per character above the loss with the whole context.
        error: the standard error of this mean over stretches.
    """

    first: int
    last: int
    excess: float
    error: float


def context_losses(model: LanguageModel, texts: Sequence[TokenisedText]) -> tuple[float, list[ContextLoss]]:
    """Measure the loss for contexts of 1, 2, 3 to 4, 5 to 8, … tokens.

    Args:
        model: on any device.
        texts: at least one, none of them empty.

    Returns:
        Bits per character with the whole context, and the losses above it; none if all texts are too short.
    """
    ids = [text.ids.astype(np.int32) for text in texts]
    # `<end>`, the last prediction, has no character.
    characters = [np.array([*text.lengths, 0], np.float64) for text in texts]
    whole = _losses(model, ids, [(0, len(of_text) + 1) for of_text in ids])
    nats = math.fsum(float(losses.sum() + text.spelling.sum()) for losses, text in zip(whole, texts, strict=True))
    bits = nats / math.log(2) / sum(float(count.sum()) for count in characters)
    # Contexts are so short that a stretch can begin at half of all tokens.
    sizes = np.array([len(of_text) for of_text in ids])
    longest = _LONGEST
    while longest > 1 and np.maximum(0, sizes + 1 - longest).sum() < sizes.sum() / 2:
        longest //= 2
    # The first prediction of a text has no context, the second has one token, if `<end>` is not counted.
    stretches = [
        (number, begin, begin + longest)
        for number, size in enumerate(sizes.tolist())
        for begin in range(1, size + 2 - longest)
    ]
    stretches = stretches[:: -(-len(stretches) // _MOST_STRETCHES) or 1]
    if len(stretches) < 2:
        return bits, []
    partial = _losses(
        model, [ids[number] for number, _, _ in stretches], [(begin, end) for _, begin, end in stretches]
    )
    excess = np.stack(partial) - [whole[number][begin:end] for number, begin, end in stretches]  # [R, K]
    length = np.stack([characters[number][begin:end] for number, begin, end in stretches])
    found = []
    bounds = [0, *(1 << k for k in range(longest.bit_length()))]
    for begin, end in itertools.pairwise(bounds):
        # A ratio of sums over stretches, and its standard error by linearisation.
        above, count = excess[:, begin:end].sum(axis=1), length[:, begin:end].sum(axis=1)
        if not count.any():
            continue
        mean = above.sum() / count.sum()
        error = np.std(above - mean * count, ddof=1) / math.sqrt(len(above)) / count.mean()
        found.append(ContextLoss(begin + 1, end, float(mean) / math.log(2), float(error) / math.log(2)))
    return bits, found


def _losses(
    model: LanguageModel, ids: Sequence[Ids], spans: Sequence[tuple[int, int]]
) -> list[NDArray[np.float64]]:
    """The nats of the predictions of each span of a document, from a zero state."""
    found: list[NDArray[np.float64]] = [np.zeros(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda row: spans[row][0] - spans[row][1])
    for first in range(0, len(order), _ROWS):
        rows = order[first : first + _ROWS]
        state, parts = model.zero_state(len(rows)), []
        for window in evaluation_windows([ids[row] for row in rows], _STEPS, [spans[row] for row in rows]):
            losses, state = model.losses(window, state)
            parts.append(losses)
        read = np.concatenate(parts)
        for column, row in enumerate(rows):
            found[row] = read[: spans[row][1] - spans[row][0], column]
    return found
