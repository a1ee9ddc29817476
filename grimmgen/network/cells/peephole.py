"""The LSTM cell with peephole connections: the gates see the cell state, each unit its own.

With the gates in the order i, f, c, o, the diagonal weights p_i, p_f and p_o, and σ the logistic function, one time
step is

    (1)  z    = x + h U                    for the four gates at once; x has the input's share and the bias
    (2)  i, f = σ(z_i + p_i c), σ(z_f + p_f c)
    (3)  c̃    = tanh(z_c)
    (4)  c'   = f c + i c̃
    (5)  o    = σ(z_o + p_o c')            the output gate sees the new cell state
    (6)  h'   = o tanh(c')

Gers, Schraudolph and Schmidhuber (2002), "Learning precise timing with LSTM recurrent networks".
"""

from __future__ import annotations

from grimmgen.network.cells import Array, Arrays, CellSpec, Gradients, Ops


def forward(ops: Ops, x: Array, a: Array, state: Arrays, weights: dict[str, Array]) -> tuple[Arrays, Arrays]:
    """Equations (1) to (6); see `CellSpec.pointwise_forward`."""
    p_i, p_f, p_o = weights["peephole"]
    _, c = state
    z_i, z_f, z_c, z_o = ops.split(x + a, 4)  # (1)
    i, f = ops.sigmoid(z_i + p_i * c), ops.sigmoid(z_f + p_f * c)  # (2)
    candidate = ops.tanh(z_c)  # (3)
    new_c = f * c + i * candidate  # (4)
    o = ops.sigmoid(z_o + p_o * new_c)  # (5)
    tanh_c = ops.tanh(new_c)
    return (o * tanh_c, new_c), (i, f, candidate, o, tanh_c, new_c)  # (6)


def backward(ops: Ops, saved: Arrays, state: Arrays, weights: dict[str, Array], d_state: Arrays) -> Gradients:
    """The gradients of `forward`, numbered after the equations that they reverse."""
    i, f, candidate, o, tanh_c, new_c = saved
    p_i, p_f, p_o = weights["peephole"]
    _, c = state
    d_h, d_c = d_state
    d_o = d_h * tanh_c * o * (1 - o)  # (6), (5)
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c) + d_o * p_o  # (6), (5)
    d_i = d_c * candidate * i * (1 - i)  # (4), (2)
    d_f = d_c * c * f * (1 - f)
    d_z = (d_i, d_f, d_c * i * (1 - candidate * candidate), d_o)  # (4), (3)
    d_peephole = ops.stack((d_i * c, d_f * c, d_o * new_c))  # (2), (5)
    return Gradients(d_z, d_z, (0 * d_h, d_c * f + d_i * p_i + d_f * p_f), {"peephole": d_peephole})


CELL = CellSpec(
    "peephole",
    "peephole LSTM",
    ("i", "f", "c", "o"),
    ("h", "c"),
    forward,
    backward,
    extra_weights=lambda sizes: {"peephole": (3, sizes.hidden)},
)
