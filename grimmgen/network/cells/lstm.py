"""The LSTM cell of the tutorial ("Defining an LSTM cell and its operations") over a window of T steps.

With the gates in the order i, f, c, o side by side in the columns of x and U, and σ the logistic function:

    (1)  h̄, c̄ = h[t-1], c[t-1]; both zero where a story starts at step t
    (2)  z    = x[t] + h̄ U              what the tutorial writes i·ix + o·im + ib, for the four gates at once
    (3)  i, f, c̃, o = σ(z_i), σ(z_f), tanh(z_c), σ(z_o)
    (4)  c[t] = f c̄ + i c̃
    (5)  h[t] = m[t] o tanh(c[t])       m is the dropout mask: as in the tutorial, the next step receives it too

Hochreiter and Schmidhuber (1997), with the forget gate of Gers, Schmidhuber and Cummins (2000).
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

    gates: Tensor  # [T, B, 4H]  i, f, c̃, o
    h: Tensor  # [T, B, H]  h̄, the hidden state that entered each step
    c: Tensor  # [T, B, H]  c̄, the cell state that entered each step
    tanh_c: Tensor  # [T, B, H]  tanh(c[t])
    recurrent_weight: Tensor  # [H, 4H]  U
    mask: Tensor | None  # [T, B, H]  m
    keep: Tensor | None  # [T, B, 1]  0 where a story starts, else 1


def forward(
    x: Tensor,
    recurrent_weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor, Saved]:
    """Run the cell through a window.

    Args:
        x: what the input and the bias add to each gate, [T, B, 4H].
        recurrent_weight: U, [H, 4H].
        h0: hidden state before the first step, [B, H].
        c0: cell state before the first step, [B, H].
        mask: dropout mask m with the scale in it, [T, B, H], or [1, B, H], which is a locked mask: the same at
            every step; None is no dropout.
        starts: true where a story starts, [T, B] bool; None is nowhere.
        precision: of the matrix products.

    Returns:
        The hidden states [T, B, H], the last cell state [B, H], and what `backward` needs.
    """
    T, B, _ = x.shape
    H = h0.shape[1]
    gates = x.new_empty(T, B, 4 * H)
    h = x.new_empty(T + 1, B, H)
    c = x.new_empty(T + 1, B, H)
    tanh_c = x.new_empty(T, B, H)
    candidate = x.new_empty(B, H)
    h[0], c[0] = h0, c0
    mask = None if mask is None else mask.expand(T, B, H)
    keep = None if starts is None else (~starts).to(x.dtype).unsqueeze(2)  # [T, B, 1]
    # A product with `keep` at the few steps where a story starts, not at all of them.
    resets = set() if starts is None else set(starts.any(dim=1).nonzero().flatten().tolist())
    for t, (z, i_f, i, f, z_c, o) in enumerate(
        zip(gates, gates[..., : 2 * H], *torch.split(gates, H, dim=2), strict=True)
    ):
        h_in, c_in = h[t], c[t]
        if keep is not None and t in resets:
            h_in, c_in = h_in * keep[t], c_in * keep[t]  # (1)
        torch.add(x[t], product(h_in, recurrent_weight, precision), out=z)  # (2)
        i_f.sigmoid_()  # (3)
        o.sigmoid_()
        # tanh is several times faster on memory that is contiguous.
        z_c.copy_(candidate.copy_(z_c).tanh_())
        c_out, h_out = c[t + 1], h[t + 1]
        torch.mul(f, c_in, out=c_out).addcmul_(i, candidate)  # (4)
        torch.mul(o, torch.tanh(c_out, out=tanh_c[t]), out=h_out)  # (5)
        if mask is not None:
            h_out.mul_(mask[t])
    if resets and keep is not None:
        entered_h, entered_c = h[:-1] * keep, c[:-1] * keep
    else:
        entered_h, entered_c = h[:-1], c[:-1]
    saved = Saved(gates, entered_h, entered_c, tanh_c, recurrent_weight, mask, keep if resets else None)
    return h[1:], c[T], saved


def backward(
    grad_h: Tensor, grad_c: Tensor | None, saved: Saved, precision: Products = "fp32"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Back-propagate through a window; the lines are numbered after the forward lines that they reverse.

    Args:
        grad_h: the loss's derivative by each hidden state that came out, [T, B, H].
        grad_c: by the last cell state, [B, H]; None is zero.
        saved: of the forward pass.
        precision: that of the forward pass.

    Returns:
        The derivatives by x [T, B, 4H], by U [H, 4H], by h0 [B, H] and by c0 [B, H].
    """
    gates, h_in, c_in, tanh_c, recurrent_weight, mask, keep = saved
    T, B, _ = gates.shape
    H = h_in.shape[2]
    grad_x, through = slopes(gates, c_in, tanh_c)  # each step's slopes are replaced by its gradients
    d_c = torch.zeros_like(h_in[0]) if grad_c is None else grad_c.clone()
    carried_h = torch.zeros_like(d_c)
    transposed = recurrent_weight.t()
    d_i_f_c = grad_x.view(T, B, 4, H)[:, :, :3]
    d_o, f = grad_x[..., 3 * H :], gates[..., H : 2 * H]
    steps = zip(range(T), grad_h, through, grad_x, d_i_f_c, d_o, f, strict=True)
    for t, d_out, through_t, d_z, d_z_ifc, d_z_o, f_t in reversed(list(steps)):
        d_h = carried_h.add_(d_out)
        if mask is not None:
            d_h.mul_(mask[t])  # (5)
        d_c.addcmul_(d_h, through_t)
        d_z_ifc.mul_(d_c.unsqueeze(1))  # (4), (3)
        d_z_o.mul_(d_h)
        d_c.mul_(f_t)
        carried_h = product(d_z, transposed, precision)  # (2)
        if keep is not None:
            carried_h.mul_(keep[t])  # (1)
            d_c.mul_(keep[t])
    grad_recurrent_weight = product(
        h_in.reshape(T * B, H).t(), grad_x.view(T * B, 4 * H), precision
    )  # (2), all steps
    return grad_x, grad_recurrent_weight, carried_h, d_c


def slopes(gates: Tensor, c_in: Tensor, tanh_c: Tensor) -> tuple[Tensor, Tensor]:
    """What of the backward pass does not depend on the gradient, for all steps at once.

    Args:
        gates: i, f, c̃, o, [T, B, 4H].
        c_in: c̄, [T, B, H].
        tanh_c: tanh(c[t]), [T, B, H].

    Returns:
        Side by side the derivatives of c[t] by z_i, z_f and z_c and of h[t] / m[t] by z_o, [T, B, 4H], and the
        derivative of h[t] / m[t] by c[t], [T, B, H]; both in memory of their own.
    """
    i, f, candidate, o = torch.split(gates, tanh_c.shape[2], dim=2)
    factor = torch.empty_like(gates)
    of_i, of_f, of_candidate, of_o = torch.split(factor, tanh_c.shape[2], dim=2)
    torch.mul(i, candidate, out=of_i)
    torch.addcmul(i, of_i, candidate, value=-1, out=of_candidate)  # i (1 - c̃²)
    of_i.addcmul_(of_i, i, value=-1)  # c̃ i (1 - i)
    torch.mul(f, c_in, out=of_f).addcmul_(of_f, f, value=-1)  # c̄ f (1 - f)
    through = torch.mul(o, tanh_c)
    torch.addcmul(through, through, o, value=-1, out=of_o)  # tanh(c) o (1 - o)
    torch.addcmul(o, through, tanh_c, value=-1, out=through)  # o (1 - tanh²(c))
    return factor, through


class LSTMWindow(torch.autograd.Function):
    """The window as one operation of PyTorch's automatic differentiation."""

    @staticmethod
    def forward(  # noqa: D102 - see the module's `forward`
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        h, c, saved = forward(x, recurrent_weight, h0, c0, mask, starts, precision)
        ctx.save_for_backward(*saved)
        ctx.precision = precision
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        grad_x, grad_u, grad_h0, grad_c0 = backward(grad_h, grad_c, Saved(*ctx.saved_tensors), ctx.precision)
        return grad_x, grad_u, grad_h0, grad_c0, None, None, None
