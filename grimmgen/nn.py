"""The cells as `torch.nn.Module`s: drop-in replacements of `torch.nn.LSTM` and `torch.nn.GRU`, and three more.

    >>> import torch
    >>> from grimmgen import nn
    >>> lstm = nn.LSTM(10, 20, num_layers=2)
    >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
    >>> output.shape, h_n.shape
    (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))

The arguments, the shapes, the layout of the state and the names in state dictionaries are those of PyTorch's modules:
`grimmgen.nn.LSTM(…).load_state_dict(torch.nn.LSTM(…).state_dict())` works, and the other way round. Float32 on a
CPU runs on the compiled kernels, everything else on PyTorch's operations. There are no bidirectional layers, no
projections, no packed sequences and no second derivatives.

    T  time steps    B  batch rows    H  hidden units    L  layers    G  gates
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from grimmgen.network.backends import choose_backend
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import CellSpec, Sizes, cells

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend

__all__ = ["GRU", "LSTM", "CoupledLSTM", "MinGRU", "PeepholeLSTM"]


class _Layer(torch.autograd.Function):
    """A layer of cells over a window, for autograd: the backend's `layer` and `layer_backward`."""

    @staticmethod
    def forward(ctx: Any, backend: Backend, cell: CellSpec, x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Run the layer; `tensors` are the states, then the weights in the order of `CellSpec.shapes`."""
        states, names = len(cell.states), list(cell.shapes(Sizes(1, 1, 0)))
        weights = dict(zip(names, tensors[states:], strict=True))
        layer = backend.layer(cell, weights, x.contiguous(), tensors[:states])
        ctx.backend, ctx.cell, ctx.layer = backend, cell, layer.saved
        ctx.save_for_backward(x, *tensors)
        ctx.set_materialize_grads(False)
        return layer.h, *layer.state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_h: Tensor | None, *d_state: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors  # raises if one of them was changed in place
        cell = ctx.cell
        if d_h is None:
            T, B = x.shape[:2]
            d_h = x.new_zeros(T, B, tensors[0].shape[1])
        found = ctx.backend.layer_backward(cell, ctx.layer, d_h, d_state)
        return (
            None,
            None,
            found.inputs,
            *found.state,
            *(found.weights[name] for name in cell.shapes(Sizes(1, 1, 0))),
        )


class _Recurrent(nn.Module):
    """Layers of one cell; see the module's docstring for what is as in PyTorch."""

    cell_name = ""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if bidirectional or proj_size:
            raise ValueError(
                "grimmgen.nn has neither bidirectional layers nor projections: use torch.nn for these"
            )
        if not 0.0 <= dropout <= 1.0:
            raise ValueError(f"dropout is {dropout}, not a probability")
        self.cell = cells()[self.cell_name]
        self.input_size, self.hidden_size, self.num_layers = input_size, hidden_size, num_layers
        self.bias, self.batch_first, self.dropout = bias, batch_first, dropout
        for layer in range(num_layers):
            for name, shape in self._shapes(input_size if layer == 0 else hidden_size).items():
                parameter = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
                self.register_parameter(f"{name}_l{layer}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all weights uniformly from ±1/√H, as PyTorch does."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:  # noqa: A002 - PyTorch's name
        """Run all layers over a sequence.

        Args:
            input: [T, B, inputs], [B, T, inputs] with `batch_first`, or [T, inputs] for one sequence.
            hx: the initial state: for an LSTM (h_0, c_0), else h_0, each [L, B, H] or [L, H]; None is zeros.

        Returns:
            The hidden states of the last layer, in the layout of the input, and the last state, like `hx`.
        """
        if not isinstance(input, Tensor):
            raise TypeError(f"grimmgen.nn reads tensors, not {type(input).__name__}: pad packed sequences first")
        if input.dim() not in {2, 3} or input.shape[-1] != self.input_size:
            raise ValueError(f"the input is {list(input.shape)}, not [T, B, {self.input_size}]")
        one = input.dim() == 2
        x = input.unsqueeze(1) if one else input.transpose(0, 1) if self.batch_first else input
        B = x.shape[1]
        count = len(self.cell.states)
        if hx is None:
            zeros = x.new_zeros(self.num_layers, B, self.hidden_size)
            state: tuple[Tensor, ...] = (zeros,) * count
        else:
            state = tuple(hx) if count > 1 else (hx,)
            state = tuple(part.unsqueeze(1) if one else part for part in state)
        shape = [self.num_layers, B, self.hidden_size]
        if len(state) != count or any(list(part.shape) != shape for part in state):
            raise ValueError(f"the state is {[list(part.shape) for part in state]}, not {count} × {shape}")
        # The kernels for GPUs are used by models alone, which check them first.
        backend: Backend = ReferenceBackend()
        if x.device.type == "cpu":
            backend = choose_backend(self.cell_name, x.device, x.dtype, overwrite=False)
        last = []
        for layer in range(self.num_layers):
            weights = self._layer_weights(layer)
            tensors = (part[layer].contiguous() for part in state)
            names = self.cell.shapes(Sizes(1, 1, 0))
            arguments = (*tensors, *(weights[name] for name in names))
            x, *after = _Layer.apply(backend, self.cell, x, *arguments)  # type: ignore[no-untyped-call]
            last.append(after)
            if self.dropout and self.training and layer + 1 < self.num_layers:
                x = nn.functional.dropout(x, self.dropout)
        states = tuple(torch.stack(parts) for parts in zip(*last, strict=True))
        if one:
            x, states = x.squeeze(1), tuple(part.squeeze(1) for part in states)
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, states if count > 1 else states[0]

    def flatten_parameters(self) -> None:
        """Do nothing: there is nothing to flatten; PyTorch's modules have this method."""

    def extra_repr(self) -> str:
        """What stands between the brackets of `repr`."""
        shown = f"{self.input_size}, {self.hidden_size}"
        for name, default in (("num_layers", 1), ("bias", True), ("batch_first", False), ("dropout", 0.0)):
            if (value := getattr(self, name)) != default:
                shown += f", {name}={value}"
        return shown

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        """The parameters of a layer, named and shaped as PyTorch's, without the layer's number."""
        columns = len(self.cell.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"weight_ih": (columns, inputs)}
        if self.cell.recurrent_product:
            shapes["weight_hh"] = (columns, self.hidden_size)
        if self.bias:
            shapes["bias_ih"] = (columns,)
            if self.cell.recurrent_product:
                shapes["bias_hh"] = (columns,)
        return shapes

    def _parameter(self, name: str, layer: int) -> Tensor:
        return self.get_parameter(f"{name}_l{layer}")

    def _layer_weights(self, layer: int) -> dict[str, Tensor]:
        """The weights of a layer, named and shaped as `CellSpec.shapes` says."""
        input_weight = self._parameter("weight_ih", layer).t()
        weights = {"input_weight": input_weight, "bias": input_weight.new_zeros(input_weight.shape[1])}
        if self.cell.recurrent_product:
            weights["recurrent_weight"] = self._parameter("weight_hh", layer).t()
        if self.bias:
            weights["bias"] = self._parameter("bias_ih", layer)
            if self.cell.recurrent_product:
                weights["bias"] = weights["bias"] + self._parameter("bias_hh", layer)
        return weights


class LSTM(_Recurrent):
    """`torch.nn.LSTM`; the equations are in `grimmgen.network.cells.lstm`."""

    cell_name = "lstm"


class CoupledLSTM(_Recurrent):
    """An LSTM whose input gate is 1 - f, without one of its own; see `grimmgen.network.cells.coupled`."""

    cell_name = "coupled"


class PeepholeLSTM(_Recurrent):
    """An LSTM with peephole connections, `peephole_l…` [3, H]; see `grimmgen.network.cells.peephole`."""

    cell_name = "peephole"

    def _shapes(self, inputs: int) -> dict[str, tuple[int, ...]]:
        return {**super()._shapes(inputs), "peephole": (3, self.hidden_size)}

    def _layer_weights(self, layer: int) -> dict[str, Tensor]:
        return {**super()._layer_weights(layer), "peephole": self._parameter("peephole", layer)}


class GRU(_Recurrent):
    """`torch.nn.GRU`; the equations are in `grimmgen.network.cells.gru`."""

    cell_name = "gru"

    def _layer_weights(self, layer: int) -> dict[str, Tensor]:
        weights, H = super()._layer_weights(layer), self.hidden_size
        weights["recurrent_bias"] = weights["bias"].new_zeros(H)
        if self.bias:
            # The reset gate scales the recurrent bias of the candidate: it is no part of the sum of the two biases.
            bias_ih, bias_hh = self._parameter("bias_ih", layer), self._parameter("bias_hh", layer)
            weights["bias"] = torch.cat((bias_ih[: 2 * H] + bias_hh[: 2 * H], bias_ih[2 * H :]))
            weights["recurrent_bias"] = bias_hh[2 * H :]
        return weights


class MinGRU(_Recurrent):
    """The minimal GRU, without a recurrent product; see `grimmgen.network.cells.mingru`."""

    cell_name = "mingru"
