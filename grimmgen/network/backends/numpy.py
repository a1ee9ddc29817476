"""Inference in NumPy: the network one time step at a time, without PyTorch.

`Stepper` runs the cells' own pointwise functions and can be read; `grimmgen.network.backends.cpu.stepper` is the
compiled one, with the same interface.

    B  batch rows    H  hidden units    L  layers    S  states of the cell    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grimmgen.configuration import Configuration
from grimmgen.network.cells import Array, Arrays, CellSpec, Ops, cells

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]


class Snapshot(NamedTuple):
    """The state of a stepper: states of the cell, logits, and which rows have ended."""

    state: Floats
    logits: Floats
    ended: NDArray[np.bool_]


class InferenceWeights(NamedTuple):
    """The weights of a model, with those products taken that do not depend on the text.

    Attributes:
        table: what a token adds to the first layer: gates with their bias, [V, GH], or where a hook changes the
            input, its embedding [V, E].
        layers: the weights of each layer, by name.
        output_weight: [H, V].
        output_bias: [V].
    """

    table: Floats
    layers: list[dict[str, Floats]]
    output_weight: Floats
    output_bias: Floats

    @classmethod
    def of(cls, configuration: Configuration, weights: Mapping[str, Floats]) -> InferenceWeights:
        """Those of a model, whose weights are named and shaped as `weight_shapes` says."""
        embedding = weights.get("embedding")  # [V, E]
        if configuration.tied:
            assert embedding is not None
            output_weight = weights["output.projection"] @ embedding.T
        else:
            output_weight = weights["output.weight"]
        prefixes = [f"layers.{layer}." for layer in range(configuration.layers)]
        layers = [
            {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
            for prefix in prefixes
        ]
        if cells()[configuration.cell].pre_step:
            assert embedding is not None
            table = embedding
        else:
            gates = layers[0]["input_weight"] if embedding is None else embedding @ layers[0]["input_weight"]
            table = gates + layers[0]["bias"]
        return cls(table, layers, output_weight, weights["output.bias"])


def time_step(
    ops: Ops,
    cell: CellSpec,
    layers: Sequence[Mapping[str, Array]],
    x: Array,
    states: Sequence[Arrays],
    saved: list[Arrays] | None = None,
) -> list[Arrays]:
    """Run one time step of all layers, on any kind of array that has `ops`.

    Args:
        ops: the operations.
        cell: the cell.
        layers: the weights of each layer.
        x: a row of `InferenceWeights.table` for each row of the batch, [B, GH] or [B, E].
        states: that enter the time step, of each layer; each is [B, H].
        saved: receives what the pointwise function of each layer saves, its gates first.

    Returns:
        The states after it, of each layer.
    """
    after = []
    for depth, (weights, (h, *others)) in enumerate(zip(layers, states, strict=True)):
        if cell.pre_step:
            x, h, _ = cell.pre_step.forward(ops, x, h, weights)
        if depth or cell.pre_step:
            x = x @ weights["input_weight"] + weights["bias"]
        a = h @ weights["recurrent_weight"] if cell.recurrent_product else None
        new, of_layer = cell.pointwise_forward(ops, x, a, (h, *others), weights)
        if saved is not None:
            saved.append(of_layer)
        after.append(new)
        x = new[0]
    return after


class _Ops:
    """The operations of the cells' pointwise functions (`grimmgen.network.cells.Ops`)."""

    tanh = staticmethod(np.tanh)
    stack = staticmethod(np.stack)

    @staticmethod
    def split(x: Floats, parts: int) -> list[Floats]:
        # np.split takes several times as long.
        H = x.shape[1] // parts
        return [x[:, begin : begin + H] for begin in range(0, x.shape[1], H)]

    matmul = staticmethod(np.matmul)

    @staticmethod
    def sigmoid(x: Floats) -> Floats:
        # By tanh, which does not overflow.
        half = np.float32(0.5)
        result: Floats = half + half * np.tanh(half * x)
        return result


class Stepper:
    """A network that reads one token per row and gives the logits of the next one.

    Args:
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        state: the initial states, [S, L, B, H], contiguous; kept and changed.

    Attributes:
        state: may be changed in place between two calls.
        logits: of the token that follows the last one read, [B, V]; zeros before there is one.
    """

    def __init__(self, configuration: Configuration, weights: Mapping[str, Floats], state: Floats) -> None:
        self._cell = cells()[configuration.cell]
        self.state = state
        self._table, self._layers, weight, bias = InferenceWeights.of(configuration, weights)
        self._output = weight, bias
        # The states of each layer, as views.
        self._states = [tuple(state[:, depth]) for depth in range(configuration.layers)]
        B = state.shape[2]
        self.logits = np.zeros((B, len(self._table)), np.float32)
        self._ended = np.zeros(B, np.bool_)

    def step(self, ids: ArrayLike) -> Floats:
        """Read one token per row, [B]; returns a copy of the logits of the next one, [B, V].

        Raises:
            IndexError: an id is not within the vocabulary.
        """
        return self.read(np.asarray(ids)[None])

    def read(self, ids: ArrayLike) -> Floats:
        """Read tokens, [T, B] with T at least 1; returns as `step` does after the last.

        Raises:
            IndexError: an id is not within the vocabulary; nothing is read.
        """
        rows = self._rows(ids)
        self._ended[:] = False
        # The weights of an untrusted checkpoint may overflow; the generator checks the logits.
        with np.errstate(over="ignore", invalid="ignore"):
            for row in rows:
                self._step(row)
        return self.logits.copy()

    def snapshot(self) -> Snapshot:
        """A copy of the state of all rows, for `restore`."""
        return Snapshot(self.state.copy(), self.logits.copy(), self._ended.copy())

    def restore(self, snapshot: Snapshot) -> None:
        """Put all rows back to a snapshot."""
        self.state[:], self.logits[:], self._ended[:] = snapshot

    def select_rows(self, rows: NDArray[np.int64]) -> None:
        """Replace the state of each row i by that of the row `rows[i]`."""
        self.state[:] = self.state[:, :, rows]
        self.logits[:] = self.logits[rows]

    def _rows(self, ids: ArrayLike) -> Ids:
        rows = np.asarray(ids, np.int64)
        assert rows.shape[1:] == self._ended.shape
        self._check(rows)
        return rows

    def _check(self, ids: Ids) -> None:
        # As unsigned integers negative ids are large.
        if not ids.size or (ids.view(np.uint64) >= len(self._table)).any():
            raise IndexError(f"there is no id, or one that is not within the vocabulary of {len(self._table)}")

    def _step(self, ids: Ids) -> None:
        h = self._run_layers(ids)
        weight, bias = self._output
        np.add(h @ weight, bias, out=self.logits)

    def _run_layers(self, ids: Ids, saved: list[Arrays] | None = None) -> Floats:
        """Read one token per row; returns the last layer's hidden state, [B, H]."""
        after = time_step(_Ops, self._cell, self._layers, self._table[ids], self._states, saved)
        for states, new in zip(self._states, after, strict=True):
            for target, part in zip(states, new, strict=True):
                target[:] = part
        h: Floats = after[-1][0]
        return h


class TracingStepper(Stepper):
    """A stepper that shows its gates."""

    def trace(self, ids: ArrayLike) -> Floats:
        """Read one token per row, [B]; returns the values of the gates, [L, G, B, H], in the order of `CellSpec.gates`.

        The logits are not computed.

        Raises:
            IndexError: an id is not within the vocabulary.
        """
        [row] = self._rows(np.asarray(ids)[None])
        saved: list[Arrays] = []
        with np.errstate(over="ignore", invalid="ignore"):
            self._run_layers(row, saved)
        return np.stack([np.stack(of_layer[: len(self._cell.gates)]) for of_layer in saved])
