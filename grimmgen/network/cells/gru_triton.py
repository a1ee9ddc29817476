"""The pointwise functions of the GRU in Triton; `gru.py` has the equations and their numbers."""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from grimmgen.network.cells.activations_triton import tanh

SAVED = 4  # r, z, n, s
SAME_GRADIENTS = False
H_CARRIED = True


@triton.jit
def pointwise_forward(x, a, state, weights):
    """Equations (2) to (5)."""
    h, recurrent_bias = state[0], weights[0]
    r, z = tl.sigmoid(x[0] + a[0]), tl.sigmoid(x[1] + a[1])  # (2)
    s = a[2] + recurrent_bias  # (3)
    n = tanh(x[2] + r * s)  # (4)
    return (n + z * (h - n),), (r, z, n, s)  # (5)


@triton.jit
def pointwise_backward(saved, state, new_state, weights, d_state):
    """The gradients of `pointwise_forward`, numbered after the equations that they reverse."""
    r, z, n, s = saved
    h, d_h = state[0], d_state[0]
    d_n = d_h * (1.0 - z) * (1.0 - n * n)  # (5), (4)
    d_r = d_n * s * r * (1.0 - r)  # (4), (2)
    d_z = d_h * (h - n) * z * (1.0 - z)  # (5), (2)
    d_s = d_n * r  # (4)
    return (d_r, d_z, d_n), (d_r, d_z, d_s), (d_h * z,), (d_s,)
