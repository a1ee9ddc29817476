"""The pointwise functions of the coupled LSTM in Triton; `coupled.py` has the equations and their numbers."""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from grimmgen.network.cells.activations_triton import tanh

SAVED = 3  # f, c̃, o
SAME_GRADIENTS = True
H_CARRIED = False


@triton.jit
def pointwise_forward(x, a, state, weights):
    """Equations (1) to (5)."""
    _, c = state
    z_f, z_c, z_o = x[0] + a[0], x[1] + a[1], x[2] + a[2]  # (1)
    f, o = tl.sigmoid(z_f), tl.sigmoid(z_o)  # (2)
    candidate = tanh(z_c)  # (3)
    new_c = candidate + f * (c - candidate)  # (4)
    return (o * tanh(new_c), new_c), (f, candidate, o)  # (5)


@triton.jit
def pointwise_backward(saved, state, new_state, weights, d_state):
    """The gradients of `pointwise_forward`, numbered after the equations that they reverse."""
    f, candidate, o = saved
    _, c = state
    d_h, d_c = d_state
    tanh_c = tanh(new_state[1])
    d_c += d_h * o * (1.0 - tanh_c * tanh_c)  # (5)
    d_f = d_c * (c - candidate) * f * (1.0 - f)  # (4), (2)
    d_candidate = d_c * (1.0 - f) * (1.0 - candidate * candidate)  # (4), (3)
    d_o = d_h * tanh_c * o * (1.0 - o)  # (5), (2)
    d_z = (d_f, d_candidate, d_o)
    return d_z, d_z, (0.0, d_c * f), ()  # (1), (4)
