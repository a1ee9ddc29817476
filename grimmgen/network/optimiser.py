"""Adam with decoupled weight decay, and the gradient clipped by its global norm.

With the gradient g of all weights w together, and t the number of the update from 1:

    (1)  g ← g min(1, clip / (‖g‖ + 10⁻⁶))
    (2)  m ← β₁ m + (1 - β₁) g         the mean of the gradient
         v ← β₂ v + (1 - β₂) g²        the mean of its square
    (3)  w ← w - rate decay w
    (4)  w ← w - rate m̂ / (√v̂ + ε)     with m̂ = m / (1 - β₁ᵗ), v̂ = v / (1 - β₂ᵗ)

Kingma and Ba (2015), arXiv 1412.6980; Loshchilov and Hutter (2019), arXiv 1711.05101. On a CPU the compiled kernel
does each of the two passes over memory, (1) and (2) to (4), at once for all weights; on a GPU one of Triton's
kernels does the second.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from grimmgen.network import backends

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def clipping(clip: float, norm: float) -> float:
    """What (1) multiplies the gradient with.

    Args:
        clip: the largest norm that the gradient may have.
        norm: the one that it has.
    """
    return min(1.0, clip / (norm + 1e-6))


class AdamW:
    """The optimiser of some weights.

    Args:
        weights: all on one device.
        decay: what a weight is pulled to zero by, times the rate.

    Attributes:
        steps: how many have been done.
        exp_avg: m for each weight, shaped like it.
        exp_avg_sq: v for each weight.
    """

    def __init__(self, weights: Iterable[Tensor], decay: float = 0.0) -> None:
        self._weights = list(weights)
        self._decay = decay
        self.steps = 0
        self.exp_avg = [torch.zeros_like(weight) for weight in self._weights]
        self.exp_avg_sq = [torch.zeros_like(weight) for weight in self._weights]

    def zero_gradient(self) -> None:
        """Forget the gradient."""
        for weight in self._weights:
            weight.grad = None

    def norm(self) -> float:
        """The norm of the gradient, ‖g‖."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        if gradients and (instructions := backends.compiled(gradients[0])) is not None:
            from grimmgen.network.backends.cpu import native

            return native.norm(instructions, gradients)
        return self.norm_there().item() if gradients else 0.0

    def norm_there(self) -> Tensor:
        """The same, float64 [], left where the weights are; one of them at least has a gradient."""
        gradients = [weight.grad for weight in self._weights if weight.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def advance(self, rate: float) -> list[float]:
        """Count a step; the numbers that it is done with: 1 - β₁, β₂, 1 - β₂, kept, pace, root, ε.

        Args:
            rate: the learning rate.
        """
        self.steps += 1
        kept = 1.0 - rate * self._decay
        pace = rate / (1.0 - _BETA1**self.steps)
        root = (1.0 - _BETA2**self.steps) ** -0.5
        return [1.0 - _BETA1, _BETA2, 1.0 - _BETA2, kept, pace, root, _EPSILON]

    def step_there(self, numbers: Tensor, norm: Tensor) -> None:
        """`step` on a GPU that Triton's kernels serve, with nothing that has to be known outside of it.

        Args:
            numbers: `clip` and those of `advance`, float32 [8].
            norm: of `norm_there`.
        """
        from grimmgen.network.backends.cuda import gpu

        with torch.no_grad():
            gpu.adamw(self.learning(), norm, numbers)

    @torch.no_grad()
    def step(self, rate: float, clip: float, norm: float) -> None:
        """Learn from the gradient; a weight that has none stays as it is.

        Args:
            rate: the learning rate.
            clip: the largest norm that the gradient may have.
            norm: the one that it has.
        """
        learning = self.learning()
        numbers = self.advance(rate)
        if learning and backends.on_gpu(first := learning[0][0]):
            given = torch.tensor([clip, *numbers, norm], dtype=torch.float64).to(first.device)
            self.step_there(given[:-1].float(), given[-1])
            return
        scale = clipping(clip, norm)
        if learning and (instructions := backends.compiled(learning[0][0])) is not None:
            from grimmgen.network.backends.cpu import native

            native.adamw(instructions, learning, array("f", [scale, *numbers]))
            return
        kept, pace, root = numbers[3:6]
        for weight, gradient, m, v in learning:
            g = gradient * scale  # (1)
            m.lerp_(g, 1.0 - _BETA1)  # (2)
            v.mul_(_BETA2).addcmul_(g, g, value=1.0 - _BETA2)
            weight.mul_(kept)  # (3)
            weight.addcdiv_(m, (v.sqrt() * root).add_(_EPSILON), value=-pace)  # (4)

    def learning(self) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Weight, gradient, m and v of each weight that has a gradient."""
        given = zip(self._weights, self.exp_avg, self.exp_avg_sq, strict=True)
        return [(weight, weight.grad, m, v) for weight, m, v in given if weight.grad is not None]
