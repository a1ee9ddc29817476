"""The minimal gated recurrent unit: gates that depend on the input alone, and no recurrent product.

With the gates in the order z, h and σ the logistic function, one time step is

    (1)  z  = σ(x_z)
    (2)  h̃  = x_h
    (3)  h' = (1 - z) h + z h̃

Feng, Tung, Ahmed, Bengio and Hajimirsadeghi (2024), "Were RNNs all we needed?", arXiv 2410.01201, section 3.1, in the
form without the logarithm. The recurrence is elementwise: all products of a window are those with its input.
"""

from __future__ import annotations

from grimmgen.network.cells import Array, Arrays, CellSpec, Gradients, Ops


def forward(ops: Ops, x: Array, a: None, state: Arrays, weights: dict[str, Array]) -> tuple[Arrays, Arrays]:
    """Equations (1) to (3); see `CellSpec.pointwise_forward`."""
    (h,) = state
    x_z, candidate = ops.split(x, 2)  # (2)
    z = ops.sigmoid(x_z)  # (1)
    return (h + z * (candidate - h),), (z, candidate)  # (3)


def backward(ops: Ops, saved: Arrays, state: Arrays, weights: dict[str, Array], d_state: Arrays) -> Gradients:
    """The gradients of `forward`, numbered after the equations that they reverse."""
    (h,), (d_h,), (z, candidate) = state, d_state, saved
    d_z = d_h * (candidate - h) * z * (1 - z)  # (3), (1)
    return Gradients((d_z, d_h * z), None, (d_h * (1 - z),))  # (3), (2)


CELL = CellSpec("mingru", "minGRU", ("z", "h"), ("h",), forward, backward, candidate="h", recurrent_product=False)
