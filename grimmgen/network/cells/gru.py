"""The gated recurrent unit.

With the gates in the order r, z, n and σ the logistic function, one time step is

    (1)  a    = h U                        for the three gates at once
    (2)  r, z = σ(x_r + a_r), σ(x_z + a_z)
    (3)  s    = a_n + b_n
    (4)  n    = tanh(x_n + r s)
    (5)  h'   = (1 - z) n + z h

Cho et al. (2014), arXiv 1406.1078, in the form of cuDNN and torch.nn.GRU: the reset gate r scales the recurrent
product, not h, so that the three gates share the product (1).

h reaches h' linearly, so that what a dropout mask has scaled up is scaled up again at the next time step: under a
locked mask a unit grows without bound while its z is above the share that dropout keeps.
"""

from __future__ import annotations

from grimmgen.network.cells import Array, Arrays, CellSpec, Gradients, Ops


def forward(ops: Ops, x: Array, a: Array, state: Arrays, weights: dict[str, Array]) -> tuple[Arrays, Arrays]:
    """Equations (2) to (5); see `CellSpec.pointwise_forward`."""
    (h,) = state
    r, z, _ = ops.split(ops.sigmoid(x + a), 3)  # (2); one call for all gates is faster than two
    s = ops.split(a, 3)[2] + weights["recurrent_bias"]  # (3)
    n = ops.tanh(ops.split(x, 3)[2] + r * s)  # (4)
    return (n + z * (h - n),), (r, z, n, s)  # (5)


def backward(ops: Ops, saved: Arrays, state: Arrays, weights: dict[str, Array], d_state: Arrays) -> Gradients:
    """The gradients of `forward`, numbered after the equations that they reverse."""
    (h,), (d_h,), (r, z, n, s) = state, d_state, saved
    d_n = d_h * (1 - z) * (1 - n * n)  # (5), (4)
    d_r = d_n * s * r * (1 - r)  # (4), (2)
    d_z = d_h * (h - n) * z * (1 - z)  # (5), (2)
    d_s = d_n * r  # (4)
    return Gradients((d_r, d_z, d_n), (d_r, d_z, d_s), (d_h * z,), {"recurrent_bias": d_s})


CELL = CellSpec(
    "gru",
    "GRU",
    ("r", "z", "n"),
    ("h",),
    forward,
    backward,
    candidate="n",
    extra_weights=lambda sizes: {"recurrent_bias": (sizes.hidden,)},
)
