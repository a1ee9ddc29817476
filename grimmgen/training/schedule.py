"""Learning rate schedules: pure functions of the training so far."""

from __future__ import annotations

import math
from dataclasses import dataclass

# Training has converged when the learning rate has decayed below this fraction of the initial one.
LOWEST_RATE = 0.01


@dataclass(frozen=True)
class Plateau:
    """Decay the learning rate when the validation perplexity stops falling.

    (Tutorial, "Decaying learning rate over time".)

    Attributes:
        rate: the current learning rate.
        minimum: lowest validation perplexity so far.
        waited: evaluations since the minimum or the last decay.
    """

    rate: float
    minimum: float = math.inf
    waited: int = 0

    def after(self, perplexity: float, factor: float, patience: int) -> Plateau:
        """Return the schedule after an evaluation.

        >>> Plateau(0.001, minimum=12.0, waited=4).after(12.5, factor=0.5, patience=5)
        Plateau(rate=0.0005, minimum=12.0, waited=0)

        Args:
            perplexity: of the validation set.
            factor: by which the rate is multiplied when it decays.
            patience: evaluations without a new minimum before the rate decays.
        """
        if perplexity < self.minimum:
            return Plateau(self.rate, perplexity, 0)
        if self.waited + 1 >= patience:
            return Plateau(self.rate * factor, self.minimum, 0)
        return Plateau(self.rate, self.minimum, self.waited + 1)


def cosine(progress: float, warmup: float) -> float:
    """Return the fraction of the highest learning rate at a progress from 0 to 1.

    It rises linearly over the warm-up and falls along half a cosine to 1 % at the end (Loshchilov and Hutter 2017,
    without restarts).

    >>> [round(cosine(p, 0.1), 3) for p in (0.05, 0.1, 0.55, 1.0)]
    [0.5, 1.0, 0.505, 0.01]

    Args:
        progress: fraction of the training that is done.
        warmup: fraction of the training over which the rate rises.
    """
    if progress < warmup:
        return max(0.01, progress / warmup)
    falling = (progress - warmup) / max(1e-9, 1.0 - warmup)
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * falling))


def progress_of(step: int, steps: int, seconds: float, budget: float | None) -> float:
    """Return the fraction of the training that is done, by updates or by time, whichever is more.

    Args:
        step: updates so far.
        steps: updates of all epochs.
        seconds: of training so far.
        budget: limit of the seconds; None is no limit.
    """
    done = step / steps
    if budget is not None:
        done = max(done, seconds / budget)
    return min(1.0, done)
