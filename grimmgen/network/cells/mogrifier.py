"""The Mogrifier LSTM: before each time step of the LSTM, its input and hidden state modulate each other.

In rounds 1, 3, 5, … the hidden state scales the input, in rounds 2, 4, … the input scales the hidden state. With
the matrices Q_k of the odd rounds and R_k of the even rounds, k from 0,

    (1)  x ← 2 σ(h Q_k) x                  odd rounds
    (2)  h ← 2 σ(x R_k) h                  even rounds

and then the time step of `lstm` with the product of x and the input weight. Melis, Kočiský and Blunsom (2020),
arXiv 1909.01792. The input has to be dense: a one-hot input has nothing to be modulated.

It is kept so that checkpoints of version 0.1.0 load; it has no compiled kernel, and for equal training time the LSTM is
better (`benchmarks/quality.py`).
"""

from __future__ import annotations

from typing import Any

from grimmgen.network.cells import Array, CellSpec, Ops, PreStep, Sizes, lstm


def modulate(ops: Ops, x: Array, h: Array, weights: dict[str, Array]) -> tuple[Array, Array, Any]:
    """Equations (1) and (2), round by round; see `PreStep.forward`."""
    saved = []
    q, r = weights["q"], weights["r"]
    for number in range(len(q) + len(r)):
        k = number // 2
        if number % 2 == 0:
            gate = 2 * ops.sigmoid(ops.matmul(h, q[k]))
            saved.append((gate, x, h))
            x = gate * x  # (1)
        else:
            gate = 2 * ops.sigmoid(ops.matmul(x, r[k]))
            saved.append((gate, x, h))
            h = gate * h  # (2)
    return x, h, saved


def modulate_backward(
    ops: Ops, saved: Any, weights: dict[str, Array], d_x: Array, d_h: Array
) -> tuple[Array, Array, dict[str, Array]]:
    """The gradients of `modulate`, numbered after the equations that they reverse."""
    q, r = weights["q"], weights["r"]
    d_q, d_r = 0 * q, 0 * r
    for number in reversed(range(len(saved))):
        gate, x, h = saved[number]
        k = number // 2
        if number % 2 == 0:
            d_product = d_x * x * gate * (1 - gate / 2)  # (1); the derivative of 2 σ(y) is g (1 - g / 2)
            d_x = d_x * gate
            d_h = d_h + ops.matmul(d_product, q[k].T)
            d_q[k] += ops.matmul(h.T, d_product)
        else:
            d_product = d_h * h * gate * (1 - gate / 2)  # (2)
            d_h = d_h * gate
            d_x = d_x + ops.matmul(d_product, r[k].T)
            d_r[k] += ops.matmul(x.T, d_product)
    return d_x, d_h, {"q": d_q, "r": d_r}


def extra_weights(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Q [⌈rounds / 2⌉, H, inputs] and R [⌊rounds / 2⌋, inputs, H]."""
    H, inputs, rounds = sizes
    return {"q": (-(-rounds // 2), H, inputs), "r": (rounds // 2, inputs, H)}


CELL = CellSpec(
    "mogrifier",
    "Mogrifier LSTM",
    lstm.CELL.gates,
    lstm.CELL.states,
    lstm.forward,
    lstm.backward,
    extra_weights=extra_weights,
    pre_step=PreStep(modulate, modulate_backward),
)
