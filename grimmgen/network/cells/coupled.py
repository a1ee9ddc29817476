"""The LSTM with coupled gates: what the forget gate lets go is what the input gate lets in, i = 1 - f.

With the gates in the order f, c, o and σ the logistic function, one time step is

    (1)  z    = x + h U                 for the three gates at once; x has the input's share and the bias
    (2)  f, o = σ(z_f), σ(z_o)
    (3)  c̃    = tanh(z_c)
    (4)  c'   = f c + (1 - f) c̃
    (5)  h'   = o tanh(c')

Three gates are a quarter fewer products than the LSTM's four. Greff et al. (2017), "LSTM: A search space odyssey",
arXiv 1503.04069 ("coupled input and forget gate").
"""

from __future__ import annotations

from grimmgen.network.cells import Array, Arrays, CellSpec, Gradients, Ops


def forward(
    ops: Ops, x: Array, a: Array, state: Arrays, weights: dict[str, Array] | None = None
) -> tuple[Arrays, Arrays]:
    """Equations (1) to (5); see `CellSpec.pointwise_forward`."""
    _, c = state
    z = x + a  # (1)
    f, _, o = ops.split(ops.sigmoid(z), 3)  # (2); one call for all gates is faster than two
    _, z_c, _ = ops.split(z, 3)
    candidate = ops.tanh(z_c)  # (3)
    new_c = f * c + (1 - f) * candidate  # (4)
    tanh_c = ops.tanh(new_c)
    return (o * tanh_c, new_c), (f, candidate, o, tanh_c)  # (5)


def backward(
    ops: Ops, saved: Arrays, state: Arrays, weights: dict[str, Array] | None, d_state: Arrays
) -> Gradients:
    """The gradients of `forward`, numbered after the equations that they reverse."""
    f, candidate, o, tanh_c = saved
    _, c = state
    d_h, d_c = d_state
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)  # (5)
    d_z = (
        d_c * (c - candidate) * f * (1 - f),  # (4), (2)
        d_c * (1 - f) * (1 - candidate * candidate),  # (4), (3)
        d_h * tanh_c * o * (1 - o),  # (5), (2)
    )
    return Gradients(d_z, d_z, (0 * d_h, d_c * f))  # (1), (4)


CELL = CellSpec("coupled", "coupled LSTM", ("f", "c", "o"), ("h", "c"), forward, backward)
