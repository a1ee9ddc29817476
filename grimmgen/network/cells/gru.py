"""The gated recurrent unit over a window of T steps.

With the gates in the order r, z, n side by side in the columns of x and U, and σ the logistic function:

    (1)  h̄    = h[t-1]; zero where a story starts at step t
    (2)  a    = h̄ U                        for the three gates at once
    (3)  r, z = σ(x_r[t] + a_r), σ(x_z[t] + a_z)
    (4)  s    = a_n + b_n
    (5)  n    = tanh(x_n[t] + r s)
    (6)  h[t] = m[t] ((1 - z) n + z h̄)     m is the dropout mask: the next step receives it too

Cho et al. (2014), arXiv 1406.1078, in the form of cuDNN and torch.nn.GRU: the reset gate r scales what the
recurrent weights have made of h̄, not h̄ itself, so that all three gates share the product (2).

Unlike in an LSTM, h̄ goes on linearly, and what m has scaled up is scaled up again at the next step: under a
locked mask, a unit whose z stays above the share that dropout keeps grows without bound.

Knows nothing of vocabularies, layers or optimisers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.products import product


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    gates: Tensor  # [T, B, 3H]  r, z, n
    s: Tensor  # [T, B, H]  what r scales
    h: Tensor  # [T, B, H]  h̄, the hidden state that entered each step
    recurrent_weight: Tensor  # [H, 3H]  U
    mask: Tensor | None  # [T, B, H]  m
    keep: Tensor | None  # [T, B, 1]  0 where a story starts, else 1


def forward(
    x: Tensor,
    recurrent_weight: Tensor,
    recurrent_bias: Tensor,
    h0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Saved]:
    """Run the cell through a window.

    Args:
        x: what the input and the bias add to each gate, [T, B, 3H].
        recurrent_weight: U, [H, 3H].
        recurrent_bias: b_n, [H]. The other gates have no need of a bias besides the one in x.
        h0: hidden state before the first step, [B, H].
        mask: dropout mask m with the scale in it, [T, B, H], or [1, B, H], which is a locked mask: the same at
            every step; None is no dropout.
        starts: true where a story starts, [T, B] bool; None is nowhere.
        precision: of the matrix products.

    Returns:
        The hidden states [T, B, H], and what `backward` needs.
    """
    T, B, _ = x.shape
    H = h0.shape[1]
    gates = x.new_empty(T, B, 3 * H)
    s = x.new_empty(T, B, H)
    h = x.new_empty(T + 1, B, H)
    candidate = x.new_empty(B, H)
    h[0] = h0
    mask = None if mask is None else mask.expand(T, B, H)
    keep = None if starts is None else (~starts).to(x.dtype).unsqueeze(2)  # [T, B, 1]
    # A product with `keep` at the few steps where a story starts, not at all of them.
    resets = set() if starts is None else set(starts.any(dim=1).nonzero().flatten().tolist())
    x_r_z, x_n = torch.split(x, [2 * H, H], dim=2)
    for t, (r_z, r, z, n) in enumerate(zip(gates[..., : 2 * H], *torch.split(gates, H, dim=2), strict=True)):
        h_in = h[t]
        if keep is not None and t in resets:
            h_in = h_in * keep[t]  # (1)
        a_r_z, a_n = torch.split(product(h_in, recurrent_weight, precision), [2 * H, H], dim=1)  # (2)
        torch.add(x_r_z[t], a_r_z, out=r_z).sigmoid_()  # (3)
        torch.add(a_n, recurrent_bias, out=s[t])  # (4)
        # tanh is several times faster on memory that is contiguous.
        n.copy_(torch.addcmul(x_n[t], r, s[t], out=candidate).tanh_())  # (5)
        torch.lerp(candidate, h_in, z, out=h[t + 1])  # (6)
        if mask is not None:
            h[t + 1].mul_(mask[t])
    entered_h = h[:-1] * keep if resets and keep is not None else h[:-1]
    return h[1:], Saved(gates, s, entered_h, recurrent_weight, mask, keep if resets else None)


def backward(grad_h: Tensor, saved: Saved, precision: Products = "fp32") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Back-propagate through a window; the lines are numbered after the forward lines that they reverse.

    Args:
        grad_h: the loss's derivative by each hidden state that came out, [T, B, H].
        saved: of the forward pass.
        precision: that of the forward pass.

    Returns:
        The derivatives by x [T, B, 3H], by U [H, 3H], by b_n [H] and by h0 [B, H].
    """
    gates, s, h_in, recurrent_weight, mask, keep = saved
    T, B, _ = gates.shape
    H = h_in.shape[2]
    r, z, n = torch.split(gates, H, dim=2)

    # What does not depend on the gradient is done for all steps at once: the derivatives of h[t] / m[t], by x_n
    # and, side by side, by a_r, a_z and a_n.
    grad_a = torch.empty_like(gates)  # each step's derivatives are replaced by its gradients
    of_r, of_z, of_n = torch.split(grad_a, H, dim=2)
    of_x_n = (1 - z) * (1 - n * n)
    torch.mul(of_x_n, r, out=of_n)
    torch.mul(of_n, s, out=of_r).addcmul_(of_r, r, value=-1)  # ∂h/∂x_n s r (1 - r)
    torch.addcmul(z, z, z, value=-1, out=of_z).mul_(h_in - n)  # (h̄ - n) z (1 - z)

    d_h = torch.empty_like(h_in)
    carried_h = torch.zeros_like(h_in[0])
    transposed = recurrent_weight.t()
    steps = zip(range(T), grad_h, d_h, grad_a, grad_a.view(T, B, 3, H), z, strict=True)
    for t, d_out, d_h_t, d_a, d_a_rzn, z_t in reversed(list(steps)):
        torch.add(carried_h, d_out, out=d_h_t)
        if mask is not None:
            d_h_t.mul_(mask[t])  # (6)
        d_a_rzn.mul_(d_h_t.unsqueeze(1))  # (6), (5), (4), (3)
        carried_h = product(d_a, transposed, precision).addcmul_(d_h_t, z_t)  # (2), (6)
        if keep is not None:
            carried_h.mul_(keep[t])  # (1)
    grad_x = torch.cat((grad_a[..., : 2 * H], of_x_n.mul_(d_h)), dim=2)  # (5), (3), all steps
    grad_recurrent_bias = of_n.sum(dim=(0, 1))  # (4), all steps
    grad_recurrent_weight = product(
        h_in.reshape(T * B, H).t(), grad_a.view(T * B, 3 * H), precision
    )  # (2), all steps
    return grad_x, grad_recurrent_weight, grad_recurrent_bias, carried_h


class GRUWindow(torch.autograd.Function):
    """The window as one operation of PyTorch's automatic differentiation."""

    @staticmethod
    def forward(  # noqa: D102 - see the module's `forward`
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        recurrent_bias: Tensor,
        h0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> Tensor:
        h, saved = forward(x, recurrent_weight, recurrent_bias, h0, mask, starts, precision)
        ctx.save_for_backward(*saved)
        ctx.precision = precision
        return h

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return *backward(grad_h, Saved(*ctx.saved_tensors), ctx.precision), None, None, None
