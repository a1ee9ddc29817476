"""One step of the network at a time, in NumPy: what telling a story needs, without importing PyTorch.

The equations are those of `grimmgen.cells.lstm`, without dropout; tests hold the two against each other.

    B  stories told at once    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Configuration

Floats = NDArray[np.float32]


class Stepper:
    """A network that reads one n-gram a row and tells what may come next.

    Args:
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        h: hidden states to begin with, [L, B, H]; kept and changed.
        c: cell states to begin with, [L, B, H]; kept and changed.
    """

    def __init__(self, configuration: Configuration, weights: Mapping[str, Floats], h: Floats, c: Floats) -> None:
        H = configuration.hidden
        self._h, self._c = h, c
        embedding = weights.get("embedding")  # [V, E]
        if configuration.tied:
            assert embedding is not None
            output_weight = weights["output.projection"] @ embedding.T  # [H, V]
        else:
            output_weight = weights["output.weight"]
        self._output = output_weight, weights["output.bias"]
        # σ(z) = ½ + ½ tanh(z/2): one tanh serves all gates, if the columns of i, f and o are halved beforehand.
        scale = np.repeat(np.array([0.5, 0.5, 1.0, 0.5], np.float32), H)
        self._layers = [
            (
                weights[f"layers.{layer}.input_weight"] * scale,
                weights[f"layers.{layer}.recurrent_weight"] * scale,
                weights[f"layers.{layer}.bias"] * scale,
            )
            for layer in range(configuration.layers)
        ]
        if embedding is not None:
            # What a token adds to the gates is one row again.
            input_weight, recurrent_weight, bias = self._layers[0]
            self._layers[0] = embedding @ input_weight, recurrent_weight, bias

    def step(self, ids: Sequence[int]) -> Floats:
        """Read one n-gram a row; returns the logits of the next one, [B, V]."""
        x: Floats | None = None  # [B, H], what the layer above reads
        for depth, (input_weight, recurrent_weight, bias) in enumerate(self._layers):
            z = input_weight[ids] if x is None else x @ input_weight  # [B, 4H]
            z += bias
            z += self._h[depth] @ recurrent_weight
            np.tanh(z, out=z)
            i, f, candidate, o = np.split(z, 4, axis=1)  # i, f, o are 2σ - 1 here
            c = self._c[depth]
            c *= 0.5 + 0.5 * f
            c += (0.5 + 0.5 * i) * candidate
            x = np.tanh(c) * (0.5 + 0.5 * o)
            self._h[depth] = x
        assert x is not None
        weight, output_bias = self._output
        logits: Floats = x @ weight + output_bias
        return logits
