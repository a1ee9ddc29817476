"""Inference on the compiled kernels (`inference.h`): one time step at a time, and tokens sampled in the same call.

B  batch rows    H  hidden units    L  layers    S  states of the cell    V  vocabulary size    N  tokens sampled
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from ctypes import CFUNCTYPE, c_int64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grimmgen.configuration import Configuration
from grimmgen.network.backends.cpu.library import InstructionSet, Kernel
from grimmgen.network.backends.numpy import Floats, Ids, Stepper

# Tokens of a prompt that are read in one call, so that Ctrl-C does not wait for the end of a long prompt.
_AT_ONCE = 1024
_FUNCTION = CFUNCTYPE(None, c_void_p, c_int64, c_int64, c_int64)


class CompiledStepper(Stepper):
    """The stepper, compiled, for the cells that have kernels.

    Args:
        instructions: the instruction set.
        configuration: of the model.
        weights: named and shaped as `weight_shapes` says.
        state: as for `Stepper`.
    """

    def __init__(
        self,
        instructions: InstructionSet,
        configuration: Configuration,
        weights: Mapping[str, Floats],
        state: Floats,
    ) -> None:
        super().__init__(configuration, weights, state)
        compiled = instructions.cells[configuration.cell]
        self._read, self._sample = (_callable(kernel) for kernel in (compiled.read, compiled.sample))
        self._read_fields, self._sample_fields = compiled.read.fields, compiled.sample.fields
        (_, L, B, H), V = state.shape, len(self._table)
        assert state.flags.c_contiguous
        # The library knows the arrays' addresses and does not keep them alive.
        self._kept: list[NDArray[Any]] = [state, self.logits]
        pack = _callable(instructions.kernels["pack"])
        rotation = compiled.recurrent_rotation * H

        def packed(weight: Floats, rotate: int = 0) -> int:
            weight = np.ascontiguousarray(np.roll(weight, rotate, axis=1) if rotate else weight)
            K, N = weight.shape
            lanes = instructions.lanes
            made = np.empty(K * -(-N // lanes) * lanes, np.float32)
            arguments = array("q", [K, N, weight.ctypes.data, N, 1, made.ctypes.data])
            assert len(arguments) == len(instructions.kernels["pack"].fields)
            pack(arguments.buffer_info()[0], 0, -(-N // (4 * lanes)), 0)
            return self._keep(made)

        layers = np.zeros((L, 4), np.uintp)
        for number, (place, layer) in enumerate(zip(layers, self._layers, strict=True)):
            if self._cell.recurrent_product:
                place[0] = packed(layer["recurrent_weight"], rotation)
            if number:
                place[1], place[2] = packed(layer["input_weight"]), self._keep(layer["bias"])
            extra = [layer[name].reshape(-1) for name in layer if name not in _COMMON]
            if extra:
                place[3] = self._keep(np.concatenate(extra))
        output_weight, output_bias = self._output
        values = {
            "L": L,
            "B": B,
            "H": H,
            "V": V,
            "table": self._keep(self._table),
            "layers": self._keep(layers),
            "output_weight": packed(output_weight),
            "output_bias": self._keep(output_bias),
            "states": state.ctypes.data,
            "logits": self.logits.ctypes.data,
            "scratch": self._keep(np.empty((B, compiled.width * H), np.float32)),
            "best": self._keep(np.empty(V, np.float32)),
            "sums": self._keep(np.empty(V, np.float64)),
            "candidates": self._keep(np.empty(V, np.int64)),
        }
        self._network = array("q", [values.pop(name) for name in instructions.network_fields])
        assert not values

    def read(self, ids: ArrayLike) -> Floats:  # noqa: D102 - see Stepper
        rows = self._rows(ids)
        self._ended[:] = False
        for begin in range(0, len(rows), _AT_ONCE):
            part = np.ascontiguousarray(rows[begin : begin + _AT_ONCE])
            arguments = array("q", [self._network.buffer_info()[0], len(part), part.ctypes.data])
            assert len(arguments) == len(self._read_fields)
            self._read(arguments.buffer_info()[0], 0, 0, 0)
        return self.logits.copy()

    def sample(
        self, uniforms: NDArray[np.float64], *, top_k: int, temperature: float, forbidden: Sequence[int], end: int
    ) -> Ids:
        """Sample tokens, each read before the next is sampled: temperature, top-k and the end, in this order.

        Args:
            uniforms: random numbers from 0 to 1, one for each token, [N, B].
            top_k: sample among this many best and the end; 0 is all, 1 the best alone.
            temperature: 0 is always the best.
            forbidden: ids that are not sampled.
            end: the id of the end.

        Returns:
            The ids, [N, B]. After `end` a row has nothing but that, in further calls too, until it reads something.

        Raises:
            IndexError: `end` or a forbidden id is not within the vocabulary.
        """
        self._check(np.array([*forbidden, end]))
        uniforms = np.ascontiguousarray(uniforms, np.float64)
        assert uniforms.shape[1:] == self._ended.shape
        excluded, degree = np.array(forbidden, np.int64), np.array(temperature, np.float64)
        ids = np.empty(uniforms.shape, np.int64)
        addresses = (a.ctypes.data for a in (uniforms, degree, excluded, self._ended, ids))
        where, degree_at, excluded_at, ended_at, ids_at = addresses
        arguments = array(
            "q",
            [
                *(self._network.buffer_info()[0], len(uniforms), where, top_k, degree_at),
                *(excluded_at, len(excluded), end, ended_at, ids_at),
            ],
        )
        assert len(arguments) == len(self._sample_fields)
        self._sample(arguments.buffer_info()[0], 0, 0, 0)
        return ids

    def _keep(self, values: NDArray[Any]) -> int:
        values = np.ascontiguousarray(values)
        self._kept.append(values)
        return values.ctypes.data


# The weights that every cell may have; the others are extra.
_COMMON = {"input_weight", "recurrent_weight", "bias"}


def _callable(kernel: Kernel) -> Any:
    return _FUNCTION(kernel.address)
