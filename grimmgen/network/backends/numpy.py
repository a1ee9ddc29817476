"""Inference one time step at a time, for generation, without importing PyTorch.

`Stepper` is NumPy, written to be read; `NativeStepper` is the same compiled (`native_steps.h`). The equations are
those of `grimmgen.network.cells`, without dropout; tests compare the three with each other.

    B  batch rows    H  hidden units    L  layers    V  vocabulary size    G  columns of a cell's gates
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grimmgen.configuration import Configuration
from grimmgen.network.backends.cpu.library import WIDTH, function
from grimmgen.network.shapes import layer_shapes

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
# Hidden states, cell states, logits, and which rows have ended.
Snapshot = tuple[Floats, Floats, Floats, NDArray[np.bool_]]


class Stepper:
    """A network that reads one n-gram a row and tells what may come next.

    Args:
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        h: hidden states to begin with, [L, B, H], without gaps; kept and changed.
        c: cell states to begin with, likewise. A GRU has none.

    Attributes:
        h: the hidden states; they may be changed in place between two calls.
        c: the cell states, likewise.
        logits: of what may follow the n-grams read last, [B, V]; zeros before there are any.
    """

    def __init__(self, configuration: Configuration, weights: Mapping[str, Floats], h: Floats, c: Floats) -> None:
        self._cell = configuration.cell
        self.h, self.c = h, c
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
        B, V = h.shape[1], len(self._table)
        self.logits = np.zeros((B, V), np.float32)

    def step(self, ids: ArrayLike) -> Floats:
        """Read one n-gram a row, [B]; returns the logits of the next one, [B, V], the caller's to keep.

        Raises:
            IndexError: an id is not within the vocabulary.
        """
        return self.read(np.asarray(ids)[None])

    def read(self, ids: ArrayLike) -> Floats:
        """Read several n-grams a row, [T, B], T at least 1; returns as `step` does after the last.

        Raises:
            IndexError: an id is not within the vocabulary; nothing is read.
        """
        for row in self._rows(ids):
            self._step(row)
        return self.logits.copy()

    def _rows(self, ids: ArrayLike) -> Ids:
        rows = np.asarray(ids, np.int64)
        assert rows.shape[1:] == self.h.shape[1:2]
        self._check(rows)
        return rows

    def _check(self, ids: Ids) -> None:
        if not (ids.size and 0 <= ids.min() <= ids.max() < len(self._table)):
            raise IndexError(f"there is no id, or one that is not within the vocabulary of {len(self._table)}")

    def _step(self, ids: Ids) -> None:
        x = self._table[ids]
        for depth, layer in enumerate(self._layers):
            if depth and self._cell != "mogrifier":
                x = x @ layer["input_weight"] + layer["bias"]
            h, c = self.h[depth], self.c[depth]
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
            self.h[depth], self.c[depth] = h, c
            x = h
        weight, output_bias = self._output
        self.logits = x @ weight + output_bias


class NativeStepper(Stepper):
    """The same, compiled: for every cell but the mogrifier.

    Args:
        instructions: the instruction set.
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        h: as for `Stepper`.
        c: as for `Stepper`.
    """

    def __init__(
        self, instructions: str, configuration: Configuration, weights: Mapping[str, Floats], h: Floats, c: Floats
    ) -> None:
        super().__init__(configuration, weights, h, c)
        self._read = function(f"read_{instructions}", "pnp")
        self._sample = function(f"tell_{instructions}", "pnpnppnnpp")
        (L, B, H), V = h.shape, len(self._table)
        G = self._table.shape[1]
        assert h.flags.c_contiguous
        assert c.flags.c_contiguous
        self._ended = np.zeros(B, np.bool_)
        # The library knows where arrays are, and does not keep them.
        self._kept: list[NDArray[Any]] = [h, c, self.logits]
        layers = np.zeros((L, 4), np.uintp)
        for number, (place, layer) in enumerate(zip(layers, self._layers, strict=True)):
            place[0] = self._keep(_packed(instructions, layer["recurrent_weight"]))
            if number:
                place[1] = self._keep(_packed(instructions, layer["input_weight"]))
                place[2] = self._keep(layer["bias"])
            if self._cell != "lstm":
                place[3] = self._keep(layer["peephole" if self._cell == "peephole" else "recurrent_bias"])
        output_weight, output_bias = self._output
        self._network = _Network(
            *(_CELLS.index(self._cell), L, B, H, V),
            table=self._keep(self._table),
            layers=self._keep(layers),
            output_weight=self._keep(_packed(instructions, output_weight)),
            output_bias=self._keep(output_bias),
            h=h.ctypes.data,
            c=c.ctypes.data,
            logits=self.logits.ctypes.data,
            gates=self._keep(np.empty((2, B, G), np.float32)),
            best=self._keep(np.empty(V, np.float32)),
            sums=self._keep(np.empty(V, np.float64)),
            ids=self._keep(np.empty(V, np.int64)),
        )

    def _keep(self, array: NDArray[Any]) -> int:
        array = np.ascontiguousarray(array)
        self._kept.append(array)
        return array.ctypes.data

    def read(self, ids: ArrayLike) -> Floats:  # noqa: D102 - see Stepper
        rows = self._rows(ids)
        self._ended[:] = False
        # A few at a time, so that Ctrl-C need not wait for the end of a prompt.
        for begin in range(0, len(rows), _AT_ONCE):
            part = np.ascontiguousarray(rows[begin : begin + _AT_ONCE])
            self._read(ctypes.byref(self._network), len(part), part.ctypes.data)
        return self.logits.copy()

    def sample(
        self,
        uniforms: NDArray[np.float64],
        *,
        top_k: int,
        temperature: float,
        forbidden: Sequence[int],
        end: int,
    ) -> Ids:
        """Sample several n-grams per row, each of which is read before the next one is sampled.

        The fused form of `grimmgen.sampling.logits.filter_logits` and `draw` for temperature and top-k alone.

        Args:
            uniforms: random numbers in [0, 1), one per n-gram, [N, B].
            top_k: sample from this many most probable ids, and `end`; 0 is all, 1 only the most probable.
            temperature: divides the logits; 0 takes the most probable id.
            forbidden: ids that are not sampled.
            end: the id that ends a document.

        Returns:
            The ids, [N, B]. A row that has sampled `end` yields only `end` from there on, in further calls too,
            until it reads again.

        Raises:
            IndexError: `end` or a forbidden id is not within the vocabulary.
        """
        self._check(np.array([*forbidden, end]))
        uniforms = np.ascontiguousarray(uniforms, np.float64)
        forbidden_ids = np.array(forbidden, np.int64)
        assert uniforms.shape[1:] == self._ended.shape
        temperature_pointer = np.array(temperature, np.float64)
        ids = np.empty(uniforms.shape, np.int64)
        self._sample(
            ctypes.byref(self._network),
            len(uniforms),
            uniforms.ctypes.data,
            top_k,
            temperature_pointer.ctypes.data,
            forbidden_ids.ctypes.data,
            len(forbidden_ids),
            end,
            self._ended.ctypes.data,
            ids.ctypes.data,
        )
        return ids

    def snapshot(self) -> Snapshot:
        """Copy the state of all rows, for `restore`."""
        return self.h.copy(), self.c.copy(), self.logits.copy(), self._ended.copy()

    def restore(self, snapshot: Snapshot) -> None:
        """Set all rows back to a state that `snapshot` has returned."""
        self.h[:], self.c[:], self.logits[:], self._ended[:] = snapshot


# As in native_steps.h.
_CELLS = ["lstm", "peephole", "gru"]
# Tokens of a prompt.
_AT_ONCE = 1024


class _Network(ctypes.Structure):
    """`network` of native_steps.h."""

    # So that a name that is not among the fields is an error.
    __slots__ = ()
    _fields_ = (
        *((name, ctypes.c_int64) for name in "cell L B H V".split()),
        *(
            (n, ctypes.c_void_p)
            for n in "table layers output_weight output_bias h c logits gates best sums ids".split()
        ),
    )


def _packed(instructions: str, weight: Floats) -> Floats:
    """A right factor [K, N], packed as native_kernels.h says; an instruction set has its own form."""
    weight = np.ascontiguousarray(weight)
    K, N = weight.shape
    width = WIDTH[instructions]
    packed = np.empty(K * -(-N // width) * width, np.float32)
    panels = -(-N // (4 * width))
    function(f"pack_{instructions}", "nnpnnpnn")(K, N, weight.ctypes.data, N, 1, packed.ctypes.data, 0, panels)
    return packed


def _sigmoid(z: Floats) -> Floats:
    # By way of tanh, which does not overflow.
    half = np.float32(0.5)
    sigmoid: Floats = half + half * np.tanh(half * z)
    return sigmoid


def _lstm(z: Floats, c: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.network.cells.lstm`, (3) to (5)."""
    H = c.shape[1]
    i_f_o = _sigmoid(z)
    c = i_f_o[:, H : 2 * H] * c + i_f_o[:, :H] * np.tanh(z[:, 2 * H : 3 * H])
    return i_f_o[:, 3 * H :] * np.tanh(c), c


def _peephole(z: Floats, peephole: Floats, c: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.network.cells.peephole`: i and f see the old cell state, o the new one."""
    z_i, z_f, z_c, z_o = np.split(z, 4, axis=1)
    new = _sigmoid(z_f + peephole[1] * c) * c + _sigmoid(z_i + peephole[0] * c) * np.tanh(z_c)
    return _sigmoid(z_o + peephole[2] * new) * np.tanh(new), new


def _gru(x: Floats, a: Floats, recurrent_bias: Floats, h: Floats) -> Floats:
    """`grimmgen.network.cells.gru`, (3) to (6)."""
    H = h.shape[1]
    r_z = _sigmoid(x[:, : 2 * H] + a[:, : 2 * H])
    n = np.tanh(x[:, 2 * H :] + r_z[:, :H] * (a[:, 2 * H :] + recurrent_bias))
    new: Floats = n + r_z[:, H:] * (h - n)
    return new


def _mogrified(x: Floats, h: Floats, q: Floats, r: Floats) -> tuple[Floats, Floats]:
    """`grimmgen.network.cells.mogrifier`: input and state modulate each other, round by round."""
    two = np.float32(2.0)
    for number in range(len(q) + len(r)):
        if number % 2 == 0:
            x = two * _sigmoid(h @ q[number // 2]) * x
        else:
            h = two * _sigmoid(x @ r[number // 2]) * h
    return x, h
