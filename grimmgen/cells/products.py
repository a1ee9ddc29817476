"""The matrix product of the plain path, by the faster of the two libraries that PyTorch carries for a CPU.

For float32 `torch.mm` asks MKL, which reaches 150-190 GFLOP/s on two cores of a processor that is not its
maker's; oneDNN reaches twice that, and PyTorch's own compiler reaches it through the operation used here.
Where that operation is absent, and for every other type or device, this is `torch.mm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch._C._has_mkldnn else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, [N, K] and [K, M], either of which may be a transposed view: [N, M]."""
    if _ONEDNN is None or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.mm(a, b)
    result: Tensor = _ONEDNN(a, b.t(), None, "none", [], "")
    return result


class Affine(torch.autograd.Function):
    """x W + b by way of `product`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The rows x [N, K] times the weight [K, M], plus the bias [M] if there is one: [N, M]."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        result = product(x, weight)
        return result if bias is None else result.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum(dim=0) if ctx.has_bias else None
        return product(grad, weight.t()), product(x.t(), grad), grad_bias
