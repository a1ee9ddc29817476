"""The LSTM cell of the tutorial ("Defining an LSTM cell and its operations").

With the gates in the order i, f, c, o and σ the logistic function, one time step is

    (1)  z       = x + h U                 for the four gates at once; x has the input's share and the bias
    (2)  i, f, o = σ(z_i), σ(z_f), σ(z_o)
    (3)  c̃       = tanh(z_c)
    (4)  c'      = f c + i c̃
    (5)  h'      = o tanh(c')

Hochreiter and Schmidhuber (1997), "Long short-term memory", with the forget gate of Gers, Schmidhuber and Cummins
(2000), "Learning to forget". The state is reset before (1) and dropout is applied after (5) by the recurrence.
"""

from __future__ import annotations

from grimmgen.network.cells import Array, Arrays, CellSpec, Gradients, Ops


def forward(
    ops: Ops, x: Array, a: Array, state: Arrays, weights: dict[str, Array] | None = None
) -> tuple[Arrays, Arrays]:
    """Equations (1) to (5); see `CellSpec.pointwise_forward`."""
    _, c = state
    z = x + a  # (1)
    i, f, _, o = ops.split(ops.sigmoid(z), 4)  # (2); one call for all gates is faster than three
    _, _, z_c, _ = ops.split(z, 4)
    candidate = ops.tanh(z_c)  # (3)
    new_c = f * c + i * candidate  # (4)
    tanh_c = ops.tanh(new_c)
    return (o * tanh_c, new_c), (i, f, candidate, o, tanh_c)  # (5)


def backward(
    ops: Ops, saved: Arrays, state: Arrays, weights: dict[str, Array] | None, d_state: Arrays
) -> Gradients:
    """The gradients of `forward`, numbered after the equations that they reverse."""
    i, f, candidate, o, tanh_c = saved
    _, c = state
    d_h, d_c = d_state
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)  # (5)
    d_z = (
        d_c * candidate * i * (1 - i),  # (4), (2)
        d_c * c * f * (1 - f),  # (4), (2)
        d_c * i * (1 - candidate * candidate),  # (4), (3)
        d_h * tanh_c * o * (1 - o),  # (5), (2)
    )
    return Gradients(d_z, d_z, (0 * d_h, d_c * f))  # (1), (4)


CELL = CellSpec("lstm", "LSTM", ("i", "f", "c", "o"), ("h", "c"), forward, backward)
