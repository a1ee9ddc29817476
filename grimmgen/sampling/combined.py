"""The distribution of the next token under a mixture with counts, or under several models together.

Each model's network is mixed with the counts of its checkpoint, if it has any; then the probabilities of all models,
which share a vocabulary, are averaged.

    B  rows    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from grimmgen.counts.mixture import Mixture
from grimmgen.network.backends.numpy import Floats, Stepper
from grimmgen.sampling.logits import log_probabilities


class CombinedStepper:
    """Steppers whose predictions are mixed with counts and averaged; with what the samplers need of a stepper.

    Args:
        members: for each model its stepper, B rows, and its counts, if it has any.
        histories: what each row has read, [B].
        weight: of the counts, constant; None is that of the fitted gate.

    Attributes:
        logits: log-probabilities of the token that follows the last one read, [B, V].
    """

    def __init__(
        self,
        members: Sequence[tuple[Stepper, Mixture | None]],
        histories: Sequence[Sequence[int]],
        weight: float | None,
    ) -> None:
        self._members, self._weight = members, weight
        self._longest = max((mixture.counts.index.longest for _, mixture in members if mixture), default=0)
        self._histories = [[*history[-self._longest :]] for history in histories]
        self.logits: Floats = self._combine()

    def step(self, ids: NDArray[np.int64]) -> None:
        """Read one token per row, [B]."""
        for stepper, _ in self._members:
            stepper.step(ids)
        for history, token in zip(self._histories, ids.tolist(), strict=True):
            history.append(token)
            del history[: -self._longest or None]
        self.logits = self._combine()

    def select_rows(self, rows: NDArray[np.int64]) -> None:
        """Replace each row i by the row `rows[i]`."""
        for stepper, _ in self._members:
            stepper.select_rows(rows)
        self._histories = [[*self._histories[row]] for row in rows.tolist()]
        self.logits = self.logits[rows]

    def _combine(self) -> Floats:
        with np.errstate(divide="ignore", invalid="ignore"):
            log_p = np.stack([log_probabilities(stepper.logits) for stepper, _ in self._members])
            for of_model, (_, mixture) in zip(log_p, self._members, strict=True):
                if mixture is not None:
                    for row, history in zip(of_model, self._histories, strict=True):
                        row[:] = mixture.log_probabilities(history, row, self._weight)
            if len(log_p) > 1:
                return np.asarray(np.logaddexp.reduce(log_p, axis=0) - np.log(len(log_p)), np.float32)
        return np.asarray(log_p[0], np.float32)
