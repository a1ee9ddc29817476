"""Activation functions that the cells share and Triton does not have."""
# mypy: allow-untyped-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tanh(x):
    """The hyperbolic tangent, to within 2⁻²² of its value."""
    # The quotient loses digits near zero, where it is the difference of two nearly equal numbers: there a series.
    square = x * x
    series = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    shrunk = tl.exp(-2.0 * tl.abs(x))
    ratio = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(square < 0.0625, series, tl.where(x < 0.0, -ratio, ratio))
