"""The LSTM cell with peephole connections, over a window of T steps.

The gates see the cell state, each unit its own, through the diagonal weights p_i, p_f and p_o. With the gates in
the order i, f, c, o side by side in the columns of x and U, and σ the logistic function:

    (1)  h̄, c̄ = h[t-1], c[t-1]; both zero where a story starts at step t
    (2)  z    = x[t] + h̄ U
    (3)  i, f, c̃ = σ(z_i + p_i c̄), σ(z_f + p_f c̄), tanh(z_c)
    (4)  c[t] = f c̄ + i c̃
    (5)  o    = σ(z_o + p_o c[t])        the output gate sees the new cell state
    (6)  h[t] = m[t] o tanh(c[t])        m is the dropout mask: the next step receives it too

Gers, Schraudolph and Schmidhuber (2002), "Learning precise timing with LSTM recurrent networks".
Knows nothing of vocabularies, layers or optimisers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.cells.lstm import slopes
from grimmgen.network.products import product


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    gates: Tensor  # [T, B, 4H]  i, f, c̃, o
    h: Tensor  # [T, B, H]  h̄, the hidden state that entered each step
    c: Tensor  # [T, B, H]  c̄, the cell state that entered each step
    c_out: Tensor  # [T, B, H]  c[t]
    tanh_c: Tensor  # [T, B, H]  tanh(c[t])
    recurrent_weight: Tensor  # [H, 4H]  U
    peephole: Tensor  # [3, H]  p_i, p_f, p_o
    mask: Tensor | None  # [T, B, H]  m
    keep: Tensor | None  # [T, B, 1]  0 where a story starts, else 1


def forward(
    x: Tensor,
    recurrent_weight: Tensor,
    peephole: Tensor,
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
        peephole: p_i, p_f and p_o, [3, H].
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
    p_i_f, p_o = peephole[:2], peephole[2]
    mask = None if mask is None else mask.expand(T, B, H)
    keep = None if starts is None else (~starts).to(x.dtype).unsqueeze(2)  # [T, B, 1]
    # A product with `keep` at the few steps where a story starts, not at all of them.
    resets = set() if starts is None else set(starts.any(dim=1).nonzero().flatten().tolist())
    gates_i_f = gates.view(T, B, 4, H)[:, :, :2]
    for t, (z, i_f, i, f, z_c, o) in enumerate(zip(gates, gates_i_f, *torch.split(gates, H, dim=2), strict=True)):
        h_in, c_in = h[t], c[t]
        if keep is not None and t in resets:
            h_in, c_in = h_in * keep[t], c_in * keep[t]  # (1)
        torch.add(x[t], product(h_in, recurrent_weight, precision), out=z)  # (2)
        i_f.addcmul_(c_in.unsqueeze(1), p_i_f).sigmoid_()  # (3)
        # tanh is several times faster on memory that is contiguous.
        z_c.copy_(candidate.copy_(z_c).tanh_())
        c_out, h_out = c[t + 1], h[t + 1]
        torch.mul(f, c_in, out=c_out).addcmul_(i, candidate)  # (4)
        o.addcmul_(c_out, p_o).sigmoid_()  # (5)
        torch.mul(o, torch.tanh(c_out, out=tanh_c[t]), out=h_out)  # (6)
        if mask is not None:
            h_out.mul_(mask[t])
    if resets and keep is not None:
        entered_h, entered_c = h[:-1] * keep, c[:-1] * keep
    else:
        entered_h, entered_c = h[:-1], c[:-1]
    keep = keep if resets else None
    saved = Saved(gates, entered_h, entered_c, c[1:], tanh_c, recurrent_weight, peephole, mask, keep)
    return h[1:], c[T], saved


def backward(
    grad_h: Tensor, grad_c: Tensor | None, saved: Saved, precision: Products = "fp32"
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Back-propagate through a window; the lines are numbered after the forward lines that they reverse.

    Args:
        grad_h: the loss's derivative by each hidden state that came out, [T, B, H].
        grad_c: by the last cell state, [B, H]; None is zero.
        saved: of the forward pass.
        precision: that of the forward pass.

    Returns:
        The derivatives by x [T, B, 4H], by U [H, 4H], by p [3, H], by h0 [B, H] and by c0 [B, H].
    """
    gates, h_in, c_in, c_out, tanh_c, recurrent_weight, peephole, mask, keep = saved
    T, B, _ = gates.shape
    H = h_in.shape[2]
    p_i, p_f, p_o = peephole

    # What does not depend on the gradient is done for all steps at once. The peepholes add ways by which h[t]
    # depends on c[t], through o, and c[t] on c̄, through i and f.
    grad_x, through = slopes(gates, c_in, tanh_c)  # each step's slopes are replaced by its gradients
    d_i, d_f, _, d_o = torch.split(grad_x, H, dim=2)
    through.addcmul_(d_o, p_o)
    onward = torch.addcmul(gates[..., H : 2 * H], d_i, p_i).addcmul_(d_f, p_f)  # f + p_i ∂c/∂z_i + p_f ∂c/∂z_f

    d_c = torch.zeros_like(h_in[0]) if grad_c is None else grad_c.clone()
    carried_h = torch.zeros_like(d_c)
    transposed = recurrent_weight.t()
    d_i_f_c = grad_x.view(T, B, 4, H)[:, :, :3]
    steps = zip(range(T), grad_h, through, grad_x, d_i_f_c, d_o, onward, strict=True)
    for t, d_out, through_t, d_z, d_z_ifc, d_z_o, onward_t in reversed(list(steps)):
        d_h = carried_h.add_(d_out)
        if mask is not None:
            d_h.mul_(mask[t])  # (6)
        d_c.addcmul_(d_h, through_t)  # (6), (5)
        d_z_o.mul_(d_h)
        d_z_ifc.mul_(d_c.unsqueeze(1))  # (4), (3)
        d_c.mul_(onward_t)
        carried_h = product(d_z, transposed, precision)  # (2)
        if keep is not None:
            carried_h.mul_(keep[t])  # (1)
            d_c.mul_(keep[t])
    grad_recurrent_weight = product(
        h_in.reshape(T * B, H).t(), grad_x.view(T * B, 4 * H), precision
    )  # (2), all steps
    seen = ((d_i, c_in), (d_f, c_in), (d_o, c_out))
    grad_peephole = torch.stack([(d * c).sum(dim=(0, 1)) for d, c in seen])  # (3), (5), all steps
    return grad_x, grad_recurrent_weight, grad_peephole, carried_h, d_c


class PeepholeWindow(torch.autograd.Function):
    """The window as one operation of PyTorch's automatic differentiation."""

    @staticmethod
    def forward(  # noqa: D102 - see the module's `forward`
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        peephole: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        h, c, saved = forward(x, recurrent_weight, peephole, h0, c0, mask, starts, precision)
        ctx.save_for_backward(*saved)
        ctx.precision = precision
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return *backward(grad_h, grad_c, Saved(*ctx.saved_tensors), ctx.precision), None, None, None
