"""The Mogrifier LSTM over a window of T steps: before each step of the LSTM, input and state modulate each other.

In rounds 1, 3, 5, … the state scales the input, in rounds 2, 4, … the input scales the state. With the matrices
Q_k of the odd and R_k of the even rounds counted from 0, the gates in the order i, f, c, o side by side in the
columns of W and U, and σ the logistic function:

    (1)  h̄, c̄  = h[t-1], c[t-1]; both zero where a story starts at step t
         x_0, h_0 = x[t], h̄
         for k = 0, 1, …, as many rounds as there are:
    (2)      x_k+1 = 2σ(h_k Q_k) x_k          round 2k + 1
    (3)      h_k+1 = 2σ(x_k+1 R_k) h_k        round 2k + 2
    (4)  z    = x_k W + b + h_k U             of the last x_k and h_k
    (5)  i, f, c̃, o = σ(z_i), σ(z_f), tanh(z_c), σ(z_o)
    (6)  c[t] = f c̄ + i c̃
    (7)  h[t] = m[t] o tanh(c[t])             m is the dropout mask: the next step receives it too

Melis, Kočiský and Blunsom (2020), "Mogrifier LSTM", arXiv 1909.01792. Without rounds it is the LSTM. Unlike the
other cells this one is given its input as a vector of E numbers, since the product with W needs the state.
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

    x: Tensor  # [T, B, E]  x_0
    h: Tensor  # [T, B, H]  h_0, the hidden state that entered each step
    x_rounds: Tensor  # [⌈rounds/2⌉, T, B, E]  x_1, x_2, …
    h_rounds: Tensor  # [⌊rounds/2⌋, T, B, H]  h_1, h_2, …
    x_scales: Tensor  # [⌈rounds/2⌉, T, B, E]  2σ(h_k Q_k)
    h_scales: Tensor  # [⌊rounds/2⌋, T, B, H]  2σ(x_k+1 R_k)
    gates: Tensor  # [T, B, 4H]  i, f, c̃, o
    c: Tensor  # [T, B, H]  c̄, the cell state that entered each step
    tanh_c: Tensor  # [T, B, H]  tanh(c[t])
    input_weight: Tensor  # [E, 4H]  W
    recurrent_weight: Tensor  # [H, 4H]  U
    q: Tensor  # [⌈rounds/2⌉, H, E]  Q_0, Q_1, …
    r: Tensor  # [⌊rounds/2⌋, E, H]  R_0, R_1, …
    mask: Tensor | None  # [T, B, H]  m
    keep: Tensor | None  # [T, B, 1]  0 where a story starts, else 1


def forward(
    x: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    q: Tensor,
    r: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor, Saved]:
    """Run the cell through a window.

    Args:
        x: the input, [T, B, E].
        input_weight: W, [E, 4H].
        bias: b, [4H].
        recurrent_weight: U, [H, 4H].
        q: Q_k of the odd rounds, [⌈rounds/2⌉, H, E].
        r: R_k of the even rounds, [⌊rounds/2⌋, E, H].
        h0: hidden state before the first step, [B, H].
        c0: cell state before the first step, [B, H].
        mask: dropout mask m with the scale in it, [T, B, H], or [1, B, H], which is a locked mask: the same at
            every step; None is no dropout.
        starts: true where a story starts, [T, B] bool; None is nowhere.
        precision: of the matrix products.

    Returns:
        The hidden states [T, B, H], the last cell state [B, H], and what `backward` needs.
    """
    T, B, E = x.shape
    H = h0.shape[1]
    assert len(q) - len(r) in {0, 1}  # the rounds alternate, and the first is an odd one
    x_scales, x_rounds = x.new_empty(2, len(q), T, B, E)
    h_scales, h_rounds = x.new_empty(2, len(r), T, B, H)
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
        x_k, h_k = x[t], h_in
        for k in range(len(q)):
            scale = torch.sigmoid(product(h_k, q[k], precision), out=x_scales[k, t]).mul_(2)  # (2)
            x_k = torch.mul(scale, x_k, out=x_rounds[k, t])
            if k < len(r):
                scale = torch.sigmoid(product(x_k, r[k], precision), out=h_scales[k, t]).mul_(2)  # (3)
                h_k = torch.mul(scale, h_k, out=h_rounds[k, t])
        torch.add(product(x_k, input_weight, precision), product(h_k, recurrent_weight, precision), out=z).add_(
            bias
        )  # (4)
        i_f.sigmoid_()  # (5)
        o.sigmoid_()
        # tanh is several times faster on memory that is contiguous.
        z_c.copy_(candidate.copy_(z_c).tanh_())
        c_out, h_out = c[t + 1], h[t + 1]
        torch.mul(f, c_in, out=c_out).addcmul_(i, candidate)  # (6)
        torch.mul(o, torch.tanh(c_out, out=tanh_c[t]), out=h_out)  # (7)
        if mask is not None:
            h_out.mul_(mask[t])
    if resets and keep is not None:
        entered_h, entered_c = h[:-1] * keep, c[:-1] * keep
    else:
        entered_h, entered_c = h[:-1], c[:-1]
    rounds = x_rounds, h_rounds, x_scales, h_scales
    weights = input_weight, recurrent_weight, q, r
    saved = Saved(x, entered_h, *rounds, gates, entered_c, tanh_c, *weights, mask, keep if resets else None)
    return h[1:], c[T], saved


def backward(
    grad_h: Tensor, grad_c: Tensor | None, saved: Saved, precision: Products = "fp32"
) -> tuple[Tensor, ...]:
    """Back-propagate through a window; the lines are numbered after the forward lines that they reverse.

    Args:
        grad_h: the loss's derivative by each hidden state that came out, [T, B, H].
        grad_c: by the last cell state, [B, H]; None is zero.
        saved: of the forward pass.
        precision: that of the forward pass.

    Returns:
        The derivatives by x [T, B, E], by W [E, 4H], by b [4H], by U [H, 4H], by Q [⌈rounds/2⌉, H, E], by R
        [⌊rounds/2⌋, E, H], by h0 [B, H] and by c0 [B, H].
    """
    T, B, _ = saved.x.shape
    H = saved.h.shape[2]
    q, r, mask, keep = saved.q, saved.r, saved.mask, saved.keep
    x, h = [saved.x, *saved.x_rounds], [saved.h, *saved.h_rounds]  # x_0, x_1, … and h_0, h_1, …

    # What does not depend on the gradient is done for all steps at once. With s = 2σ(a), the derivative of
    # x_k+1 = s x_k by a is s (1 - s/2) x_k = x_k+1 - x_k+1 s/2, and that of h_k+1 likewise.
    # Each step's slopes are replaced by its gradients.
    d_z, through = slopes(saved.gates, saved.c, saved.tanh_c)
    d_q = torch.addcmul(saved.x_rounds, saved.x_rounds, saved.x_scales, value=-0.5)  # by h_k Q_k
    d_r = torch.addcmul(saved.h_rounds, saved.h_rounds, saved.h_scales, value=-0.5)  # by x_k+1 R_k

    grad_x = torch.empty_like(saved.x)
    d_c = torch.zeros_like(saved.c[0]) if grad_c is None else grad_c.clone()
    carried_h = torch.zeros_like(d_c)
    d_i_f_c, d_o, f = d_z.view(T, B, 4, H)[:, :, :3], d_z[..., 3 * H :], saved.gates[..., H : 2 * H]
    for t in reversed(range(T)):
        d_h = carried_h.add_(grad_h[t])
        if mask is not None:
            d_h.mul_(mask[t])  # (7)
        d_c.addcmul_(d_h, through[t])
        d_i_f_c[t].mul_(d_c.unsqueeze(1))  # (6), (5)
        d_o[t].mul_(d_h)
        d_c.mul_(f[t])
        d_x, d_h = (
            product(d_z[t], saved.input_weight.t(), precision),
            product(d_z[t], saved.recurrent_weight.t(), precision),
        )  # (4)
        for k in reversed(range(len(q))):
            if k < len(r):
                d_x.add_(product(d_r[k, t].mul_(d_h), r[k].t(), precision))  # (3)
                d_h.mul_(saved.h_scales[k, t])
            d_h.add_(product(d_q[k, t].mul_(d_x), q[k].t(), precision))  # (2)
            d_x.mul_(saved.x_scales[k, t])
        grad_x[t], carried_h = d_x, d_h
        if keep is not None:
            carried_h.mul_(keep[t])  # (1)
            d_c.mul_(keep[t])

    def by_weight(given: Tensor, d_made: Tensor) -> Tensor:
        return product(given.reshape(T * B, -1).t(), d_made.view(T * B, -1), precision)

    grad_q, grad_r = torch.empty_like(q), torch.empty_like(r)
    for k in range(len(q)):
        grad_q[k] = by_weight(h[k], d_q[k])  # (2), all steps
    for k in range(len(r)):
        grad_r[k] = by_weight(x[k + 1], d_r[k])  # (3), all steps
    grad_w, grad_b, grad_u = by_weight(x[-1], d_z), d_z.sum(dim=(0, 1)), by_weight(h[-1], d_z)  # (4), all steps
    return grad_x, grad_w, grad_b, grad_u, grad_q, grad_r, carried_h, d_c


class MogrifierWindow(torch.autograd.Function):
    """The window as one operation of PyTorch's automatic differentiation."""

    @staticmethod
    def forward(  # noqa: D102 - see the module's `forward`
        ctx: Any,
        x: Tensor,
        input_weight: Tensor,
        bias: Tensor,
        recurrent_weight: Tensor,
        q: Tensor,
        r: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        h, c, saved = forward(x, input_weight, bias, recurrent_weight, q, r, h0, c0, mask, starts, precision)
        ctx.save_for_backward(*saved)
        ctx.precision = precision
        return h, c

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return *backward(grad_h, grad_c, Saved(*ctx.saved_tensors), ctx.precision), None, None, None
