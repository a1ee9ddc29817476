"""The pointwise functions of the minGRU in Triton; `mingru.py` has the equations and their numbers."""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

SAVED = 2  # z, h̃
SAME_GRADIENTS = True
H_CARRIED = True


@triton.jit
def pointwise_forward(x, a, state, weights):
    """Equations (1) to (3)."""
    z, candidate = tl.sigmoid(x[0]), x[1]  # (1), (2)
    h = state[0]
    return (h + z * (candidate - h),), (z, candidate)  # (3)


@triton.jit
def pointwise_backward(saved, state, new_state, weights, d_state):
    """The gradients of `pointwise_forward`, numbered after the equations that they reverse."""
    z, candidate = saved
    h, d_h = state[0], d_state[0]
    d_z = d_h * (candidate - h) * z * (1.0 - z)  # (3), (1)
    return (d_z, d_h * z), (), (d_h * (1.0 - z),), ()  # (3), (2)
