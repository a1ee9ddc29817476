"""The matrix product of the plain path, in the precision that is asked for.

In `bf16` both factors are rounded to bfloat16 (8 bits of mantissa, the range of float32) and the sums are
float32; in `fp32` nothing is rounded, whatever type the factors have.

For float32 on a CPU `torch.mm` asks MKL, which reaches 150-190 GFLOP/s on two cores of a processor that is not its
maker's; oneDNN reaches twice that, and PyTorch's own compiler reaches it through the operation used here.
Where that operation is absent, and for every other type or device, this is `torch.mm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grimmgen.configuration import Products

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch._C._has_mkldnn else None


def product(a: Tensor, b: Tensor, precision: Products = "fp32") -> Tensor:
    """The product of two matrices, [N, K] and [K, M], either of which may be a transposed view: [N, M]."""
    if precision == "bf16":
        if a.device.type == "cuda":
            return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
        # A sum of products of two bfloat16 numbers, each exact in float32.
        a, b = a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)
    if _ONEDNN is None or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.mm(a, b)
    result: Tensor = _ONEDNN(a, b.t(), None, "none", [], "")
    return result


class Affine(torch.autograd.Function):
    """x W + b by way of `product`, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, precision: Products = "fp32") -> Tensor:
        """The rows x [N, K] times the weight [K, M], plus the bias [M] if there is one: [N, M]."""
        ctx.save_for_backward(x, weight)
        ctx.has_bias, ctx.precision = bias is not None, precision
        result = product(x, weight, precision)
        return result if bias is None else result.add_(bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        grad_bias = grad.sum(dim=0) if ctx.has_bias else None
        return (
            product(grad, weight.t(), ctx.precision),
            product(x.t(), grad, ctx.precision),
            grad_bias,
            None,
        )
