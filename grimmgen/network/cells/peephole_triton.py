"""The pointwise functions of the peephole LSTM in Triton; `peephole.py` has the equations and their numbers."""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from grimmgen.network.cells.activations_triton import tanh

SAVED = 4  # i, f, c̃, o
SAME_GRADIENTS = True
H_CARRIED = False


@triton.jit
def pointwise_forward(x, a, state, weights):
    """Equations (1) to (6)."""
    p_i, p_f, p_o = weights
    _, c = state
    z_i, z_f, z_c, z_o = x[0] + a[0], x[1] + a[1], x[2] + a[2], x[3] + a[3]  # (1)
    i, f = tl.sigmoid(z_i + p_i * c), tl.sigmoid(z_f + p_f * c)  # (2)
    candidate = tanh(z_c)  # (3)
    new_c = f * c + i * candidate  # (4)
    o = tl.sigmoid(z_o + p_o * new_c)  # (5)
    return (o * tanh(new_c), new_c), (i, f, candidate, o)  # (6)


@triton.jit
def pointwise_backward(saved, state, new_state, weights, d_state):
    """The gradients of `pointwise_forward`, numbered after the equations that they reverse."""
    i, f, candidate, o = saved
    p_i, p_f, p_o = weights
    _, c = state
    _, new_c = new_state
    d_h, d_c = d_state
    tanh_c = tanh(new_c)
    d_o = d_h * tanh_c * o * (1.0 - o)  # (6), (5)
    d_c += d_h * o * (1.0 - tanh_c * tanh_c) + d_o * p_o  # (6), (5)
    d_i = d_c * candidate * i * (1.0 - i)  # (4), (2)
    d_f = d_c * c * f * (1.0 - f)  # (4), (2)
    d_candidate = d_c * i * (1.0 - candidate * candidate)  # (4), (3)
    d_z = (d_i, d_f, d_candidate, d_o)
    return d_z, d_z, (0.0, d_c * f + d_i * p_i + d_f * p_f), (d_i * c, d_f * c, d_o * new_c)  # (4), (2), (5)
