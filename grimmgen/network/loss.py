"""The output layer and its loss (tutorial, "Softmax Classifier weights and biases").

With logits y = h W + b, p = softmax(y) and the target k of each of the N predictions:

    (1)  nll  = -ln p_k
    (2)  ∂nll/∂y = p - onehot(k)

The logits of a whole window are the largest array of a training step, and are needed for a moment only: they
are made a block at a time, and the block becomes its own gradient while it is in the processor's cache.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.products import product

# Rows a block: large enough for a fast matrix product, small enough for the second-level cache.
_BLOCK = 640


def negative_log_likelihood(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The loss of each prediction, in nats.

    Args:
        hidden: h, [N, H].
        weight: W, [H, V].
        bias: b, [V].
        targets: k, [N] int64; those below zero have a loss of zero.

    Returns:
        nll, [N].
    """
    losses = hidden.new_empty(len(hidden))
    for block in _blocks(len(hidden)):
        losses[block], _ = _losses(hidden[block], weight, bias, targets[block])
    return losses


class CrossEntropy(torch.autograd.Function):
    """The loss of a window, its gradients made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, precision: Products = "fp32"
    ) -> Tensor:
        """The sum of the losses divided by N, the number of rows with a target or without.

        So every target weighs the same, in the last window of an epoch too, where rows run out of text.
        Arguments as in `negative_log_likelihood`, and the precision of the matrix products; returns a scalar.
        """
        total = hidden.new_zeros(())
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight)
        grad_bias = torch.zeros_like(bias)
        for block in _blocks(len(hidden)):
            h, k = hidden[block], targets[block]
            losses, p = _losses(h, weight, bias, k, precision)  # (1)
            total += losses.sum()
            # (2), in place; a row without a target gets no gradient.
            p.scatter_add_(1, k.clamp(min=0).unsqueeze(1), p.new_full((len(k), 1), -1.0))
            if (k < 0).any():
                p[k < 0] = 0.0
            grad_hidden[block] = product(p, weight.t(), precision)
            grad_weight += product(h.t(), p, precision)
            grad_bias += p.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.rows = len(hidden)
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        scale = grad / ctx.rows
        return *(saved.mul_(scale) for saved in ctx.saved_tensors), None, None


def _losses(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, precision: Products = "fp32"
) -> tuple[Tensor, Tensor]:
    """The losses [n] of a block of rows and its probabilities [n, V]."""
    logits = product(hidden, weight, precision).add_(bias)
    p = torch.softmax(logits, dim=1)
    # -ln p_k, taken from the logits so that a p_k too small for its type does not become infinite:
    # the largest probability is at least 1/V, and its logit differs from the target's by what is missing.
    at_target = logits.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    losses = logits.amax(dim=1) - at_target - p.amax(dim=1).log()
    return losses.masked_fill_(targets < 0, 0.0), p


def _blocks(rows: int) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK, rows)) for begin in range(0, rows, _BLOCK)]
