"""One step of the network at a time, in NumPy: what telling a story needs, without importing PyTorch.

The equations are those of `grimmgen.cells`, without dropout; tests hold the two against each other.

    B  stories told at once    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration, layer_shapes

Floats = NDArray[np.float32]


class Stepper:
    """A network that reads one n-gram a row and tells what may come next.

    Args:
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        h: hidden states to begin with, [L, B, H]; kept and changed.
        c: cell states to begin with, [L, B, H]; kept and changed. A GRU has none.
    """

    def __init__(self, configuration: Configuration, weights: Mapping[str, Floats], h: Floats, c: Floats) -> None:
        self._cell = configuration.cell
        self._h, self._c = h, c
        embedding = weights.get("embedding")  # [V, E]
        if configuration.tied:
            assert embedding is not None
            output_weight = weights["output.projection"] @ embedding.T
        else:
            output_weight = weights["output.weight"]
        self._output = output_weight, weights["output.bias"]  # [H, V], [V]
        self._layers = [
            {name: weights[f"layers.{layer}.{name}"] for name in layer_shapes(configuration, 1)}
            for layer in range(configuration.layers)
        ]
        # What a token adds to the first layer: a row, of gates or, for a mogrifier, of its embedding.
        first = self._layers[0]
        if self._cell == "mogrifier":
            assert embedding is not None
            self._table = embedding
        else:
            gates = first["input_weight"] if embedding is None else embedding @ first["input_weight"]
            self._table = gates + first["bias"]

    def step(self, ids: Sequence[int]) -> Floats:
        """Read one n-gram a row; returns the logits of the next one, [B, V]."""
        x = self._table[ids]
        for depth, layer in enumerate(self._layers):
            if depth and self._cell != "mogrifier":
                x = x @ layer["input_weight"] + layer["bias"]
            h, c = self._h[depth], self._c[depth]
            match self._cell:
                case "lstm":
                    h, c = _lstm(x + h @ layer["recurrent_weight"], c)
                case "peephole":
                    h, c = _peephole(x + h @ layer["recurrent_weight"], layer["peephole"], c)
                case "gru":
                    h = _gru(x, h @ layer["recurrent_weight"], layer["recurrent_bias"], h)
                case "mogrifier":
                    x, h = _mogrified(x, h, layer["q"], layer["r"])
                    z = x @ layer["input_weight"] + layer["bias"] + h @ layer["recurrent_weight"]
                    h, c = _lstm(z, c)
            self._h[depth], self._c[depth] = h, c
            x = h
        weight, output_bias = self._output
        logits: Floats = x @ weight + output_bias
        return logits


def _sigmoid(z: Floats) -> Floats:
    # By way of tanh, which does not overflow.
    half = np.float32(0.5)
    sigmoid: Floats = half + half * np.tanh(half * z)
    return sigmoid


def _lstm(z: Floats, c: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.cells.lstm`, (3) to (5)."""
    H = c.shape[1]
    i_f_o = _sigmoid(z)
    c = i_f_o[:, H : 2 * H] * c + i_f_o[:, :H] * np.tanh(z[:, 2 * H : 3 * H])
    return i_f_o[:, 3 * H :] * np.tanh(c), c


def _peephole(z: Floats, peephole: Floats, c: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.cells.peephole`: i and f see the old cell state, o the new one."""
    z_i, z_f, z_c, z_o = np.split(z, 4, axis=1)
    new = _sigmoid(z_f + peephole[1] * c) * c + _sigmoid(z_i + peephole[0] * c) * np.tanh(z_c)
    return _sigmoid(z_o + peephole[2] * new) * np.tanh(new), new


def _gru(x: Floats, a: Floats, recurrent_bias: Floats, h: Floats) -> Floats:
    """`grimmgen.cells.gru`, (3) to (6)."""
    H = h.shape[1]
    r_z = _sigmoid(x[:, : 2 * H] + a[:, : 2 * H])
    n = np.tanh(x[:, 2 * H :] + r_z[:, :H] * (a[:, 2 * H :] + recurrent_bias))
    new: Floats = n + r_z[:, H:] * (h - n)
    return new


def _mogrified(x: Floats, h: Floats, q: Floats, r: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.cells.mogrifier`: input and state modulate each other, round by round."""
    two = np.float32(2.0)
    for number in range(len(q) + len(r)):
        if number % 2 == 0:
            x = two * _sigmoid(h @ q[number // 2]) * x
        else:
            h = two * _sigmoid(x @ r[number // 2]) * h
    return x, h
