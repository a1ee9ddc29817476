"""Adam with decoupled weight decay, and the gradient clipped by its global norm.

With the gradient g of all weights w together, and t the number of the update from 1:

    (1)  g ← g min(1, clip / (‖g‖ + 10⁻⁶))
    (2)  m ← β₁ m + (1 - β₁) g         the mean of the gradient
         v ← β₂ v + (1 - β₂) g²        the mean of its square
    (3)  w ← w - rate decay w
    (4)  w ← w - rate m̂ / (√v̂ + ε)     with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)

Kingma and Ba (2015), arXiv 1412.6980; Loshchilov and Hutter (2019), arXiv 1711.05101. The backends compute (1) to (4)
in one pass over memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def clip_scale(clip: float, norm: float) -> float:
    """The factor of (1).

    Args:
        clip: the largest norm that the gradient may have.
        norm: the norm that it has.
    """
    return min(1.0, clip / (norm + 1e-6))


class AdamW:
    """The state of the optimiser.

    Args:
        weights: (name, weight) pairs, all on one device.
        decay: weight decay.

    Attributes:
        steps: updates so far.
        exp_avg: m for each weight, by its name.
        exp_avg_sq: v for each weight.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]], decay: float = 0.0) -> None:
        self._weights = dict(weights)
        self._decay = decay
        self.steps = 0
        self.exp_avg = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self.exp_avg_sq = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}

    def tensors(self, gradients: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Weight, gradient, m and v of each weight."""
        return [
            (weight, gradients[name], self.exp_avg[name], self.exp_avg_sq[name])
            for name, weight in self._weights.items()
        ]

    def advance(self, rate: float) -> list[float]:
        """Count an update; returns 1 - β₁, β₂, 1 - β₂, 1 - rate decay, rate / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε.

        Args:
            rate: the learning rate.
        """
        self.steps += 1
        kept = 1.0 - rate * self._decay
        pace = rate / (1.0 - _BETA1**self.steps)
        root = (1.0 - _BETA2**self.steps) ** -0.5
        return [1.0 - _BETA1, _BETA2, 1.0 - _BETA2, kept, pace, root, _EPSILON]
