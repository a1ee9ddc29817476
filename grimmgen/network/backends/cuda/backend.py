"""The CUDA backend: the operations of a training step on Triton kernels, for float32 tensors on an NVIDIA GPU.

Each operation has the name, the arguments and the results of the reference backend's, and inherits it where plain
PyTorch is as fast. Nothing waits for the GPU or depends on a value there, so that a training step can be captured
in a CUDA graph (`graph.py`). No sum depends on the order in which programs end, so that results are reproducible.

Sums are float32, and so are products, unless the precision is bf16. They are TF32 where the program that uses
grimmgen has called `torch.set_float32_matmul_precision("high")`.

    T  time steps    B  batch rows    H  hidden units    G  gates    S  states    V  vocabulary size
"""

from __future__ import annotations

import functools
import importlib
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends.cuda import kernels
from grimmgen.network.backends.cuda.recurrence import LAUNCH_OPTIONS, Recurrence
from grimmgen.network.backends.reference import Layer, LayerGradients, ReferenceBackend, dropout_threshold
from grimmgen.network.cells import CellSpec, Sizes

# Logits in memory at a time.
_MOST_LOGITS = 1 << 24


class _Saved(NamedTuple):
    """What the backward pass of a layer needs."""

    recurrence: Recurrence
    inputs: Tensor  # ids [T, B] or dense [T, B, inputs]
    weights: Mapping[str, Tensor]
    u: Tensor | None  # [H, GH]: the recurrent weight in the product's type
    extra: Tensor | None  # [EXTRA, H]: the extra weights
    mask: Tensor | None  # [T, B, H] or [1, B, H]
    resets: Tensor | None  # [T, B] uint8
    states: Tensor  # [S, T + 1, B, H]
    h_in: Tensor | None  # [T, B, H] in the product's type: h after resets
    saved: Tensor  # [T, B, SAVED, H]


class CUDABackend(ReferenceBackend):
    """Operations on Triton kernels.

    Args:
        precision: of the matrix products: in `bf16` both factors are rounded to bfloat16 and sums are float32.

    Attributes:
        name: what computes.
        description: the same with the precision.
    """

    name = "Triton"

    def __init__(self, precision: Products = "fp32") -> None:
        super().__init__(precision)
        self.description = f"{self.name} bf16" if precision == "bf16" else self.name
        self._product_type = torch.bfloat16 if precision == "bf16" else torch.float32

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102 - see the reference backend
        a, b = a.to(self._product_type), b.to(self._product_type)
        if self._product_type == torch.float32:
            return torch.mm(a, b)
        if a.device.type == "cuda":
            return torch.mm(a, b, out_dtype=torch.float32)
        # In Triton's interpreter. The product of two bfloat16 numbers is exact in float32.
        return torch.mm(a.float(), b.float())

    # --- a layer of cells ------------------------------------------------------------------------------------

    def layer(  # noqa: D102 - see the reference backend
        self,
        cell: CellSpec,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Layer:
        (T, B), H = inputs.shape[:2], state[0].shape[1]
        if inputs.dim() == 2:
            # The product of a one-hot input with a matrix is a look-up of the matrix's rows.
            x = self.lookup(weights["input_weight"] + weights["bias"], inputs)
        else:
            x = self.linear(inputs.flatten(0, 1), weights["input_weight"], weights["bias"])
        mask = None if mask is None else mask.contiguous()
        resets = None if resets is None else resets.contiguous().view(torch.uint8)
        states = x.new_empty(len(cell.states), T + 1, B, H)
        for part, target in zip(state, states, strict=True):
            target[0] = part
        u = h_in = None
        if cell.recurrent_product:
            u = weights["recurrent_weight"].to(self._product_type).contiguous()
            h_in = torch.empty(T, B, H, dtype=self._product_type, device=x.device)
            h_in[0] = _reset(state[0], resets)
        extra = _extra_weights(cell, weights)
        pointwise = triton_cell(cell.name)
        saved = x.new_empty(T, B, pointwise.SAVED, H)
        mask_stride = 0 if mask is None or len(mask) == 1 else B
        recurrence = Recurrence(cell, pointwise, T, B, H, self._arithmetic(cell), mask_stride)
        arrays = (extra, mask, resets, states, h_in, saved)
        if u is None or h_in is None or recurrence.config.whole_window:
            recurrence.forward(x, u, None, *arrays, first=0, last=T)
        else:
            for t in range(T):
                recurrence.forward(x, u, self.matmul(h_in[t], u), *arrays, first=t, last=t + 1)
        kept = _Saved(recurrence, inputs, weights, u, *arrays)
        return Layer(states[0, 1:], tuple(part[T] for part in states), kept)

    def layer_backward(  # noqa: D102 - see the reference backend
        self, cell: CellSpec, saved: Any, d_h: Tensor, d_state: Sequence[Tensor | None] | None = None
    ) -> LayerGradients:
        kept: _Saved = saved
        recurrence, inputs, weights, u, extra, mask, resets, states, h_in, saved_steps = kept
        T, B, _, H = saved_steps.shape
        columns, S = len(cell.gates) * H, len(cell.states)
        d_states = d_h.new_zeros(S, B, H)
        d_last_h, *d_last = d_state or [None] * S
        if d_last_h is not None:
            d_h = torch.cat([d_h[:-1], (d_h[-1] + d_last_h)[None]])
        for part, target in zip(d_last, d_states[1:], strict=True):
            if part is not None:
                target.copy_(part)
        d_x = d_h.new_empty(T, B, columns)
        d_a, same_gradients = None, triton_cell(cell.name).SAME_GRADIENTS
        if u is not None and not (same_gradients and u.dtype == d_x.dtype):
            d_a = torch.empty_like(d_x, dtype=u.dtype)
        d_extra = None if extra is None else d_h.new_zeros(B, *extra.shape)
        arrays = (extra, mask, resets, states, saved_steps, d_h.contiguous(), d_states, d_extra, d_x, d_a)
        d_product = d_x if d_a is None else d_a  # by the recurrent product
        if u is None or recurrence.config.whole_window:
            recurrence.backward(u, None, *arrays, first=0, last=T)
            d_carried = None if u is None else self.matmul(d_product[0], u.t())
        else:
            d_carried = torch.zeros_like(d_states[0])
            for t in reversed(range(T)):
                recurrence.backward(u, d_carried, *arrays, first=t, last=t + 1)
                d_carried = self.matmul(d_product[t], u.t())
        if d_carried is not None:
            d_states[0] += d_carried
        d_weights: dict[str, Tensor] = {}
        if h_in is not None:
            d_weights["recurrent_weight"] = self.matmul(h_in.view(T * B, H).t(), d_product.view(T * B, columns))
        d_inputs = None
        if inputs.dim() == 2:
            table = self.lookup_backward(inputs, d_x, len(weights["input_weight"]))
            d_weights |= {"input_weight": table, "bias": table.sum(dim=0)}
        else:
            d_gates = d_product if same_gradients else d_x.to(self._product_type)
            d_gates = d_gates.view(T * B, columns)
            d_inputs = self.matmul(d_gates, weights["input_weight"].t()).view(inputs.shape)
            d_weights["input_weight"] = self.matmul(inputs.flatten(0, 1).t(), d_gates)
            d_weights["bias"] = d_x.sum(dim=(0, 1))
        if d_extra is not None:
            shapes = cell.extra_weights(Sizes(H, 0, 0))
            parts = d_extra.sum(dim=0).flatten().split_with_sizes([math.prod(shape) for shape in shapes.values()])
            d_weights |= {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        return LayerGradients(d_inputs, d_weights, tuple(_reset(part, resets) for part in d_states))

    def _arithmetic(self, cell: CellSpec) -> str | None:
        """What multiplies in the recurrent product: `ieee`, `tf32` or `bf16`; None without one."""
        if not cell.recurrent_product:
            return None
        if self.precision == "bf16":
            return "bf16"
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"

    def lookup_backward(self, ids: Tensor, d_rows: Tensor, V: int) -> Tensor:  # noqa: D102 - see the reference backend
        # Sums in a fixed order, unlike `index_add_`.
        d_table: Tensor = torch.ops.aten.embedding_dense_backward(d_rows, ids, V, -1, False)
        return d_table

    # --- the softmax layer -----------------------------------------------------------------------------------

    def cross_entropy(  # noqa: D102 - see the reference backend
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        N = len(hidden)
        # Rounded once, not for each product.
        h, w = hidden.to(self._product_type), weight.to(self._product_type)
        losses = hidden.new_empty(N)
        d_hidden, d_weight, d_bias = [], [], []
        for block in _blocks(N, len(bias)):
            logits = self.matmul(h[block], w)
            same = logits.dtype == self._product_type
            gradient = logits if same else torch.empty_like(logits, dtype=self._product_type)
            _softmax(logits, bias, targets[block], losses[block], gradient, 1.0 / N)
            d_hidden.append(self.matmul(gradient, w.t()))
            d_weight.append(self.matmul(h[block].t(), gradient))
            d_bias.append(gradient.sum(dim=0, dtype=hidden.dtype))
        total_weight, total_bias = functools.reduce(operator.add, d_weight), functools.reduce(operator.add, d_bias)
        return losses.sum() / N, torch.cat(d_hidden), total_weight, total_bias

    def negative_log_likelihood(  # noqa: D102 - see the reference backend
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> Tensor:
        losses = hidden.new_empty(len(hidden))
        for block in _blocks(len(hidden), len(bias)):
            _softmax(self.matmul(hidden[block], weight), bias, targets[block], losses[block], None, 1.0)
        return losses

    # --- dropout and the optimiser ---------------------------------------------------------------------------

    def dropout_mask(self, shape: Sequence[int], dropout: float, seed: Tensor) -> Tensor:  # noqa: D102
        mask = torch.empty(*shape, device=seed.device)
        threshold, scale = dropout_threshold(dropout)
        count = mask.numel()
        kernels.dropout_mask[(triton.cdiv(count, 1024),)](
            mask, seed, threshold, scale, count, BLOCK=1024, **LAUNCH_OPTIONS
        )
        return mask

    def adam(
        self,
        tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
        numbers: Sequence[float] | Tensor,
        loss_and_norm: Tensor | None = None,
    ) -> None:
        """One step of Adam in place; see the reference backend.

        With `loss_and_norm` the gradient is clipped on the GPU, and nothing is updated unless both are finite.

        Args:
            tensors: weight, gradient, m and v, for each weight.
            numbers: the gradient's scale, or its largest norm with `loss_and_norm`, and those of
                `AdamW.advance`; a tensor of them is float64 [8].
            loss_and_norm: the loss and the norm of all gradients together, float64 [2].
        """
        if not isinstance(numbers, Tensor):
            numbers = torch.tensor(numbers, dtype=torch.float64).to(tensors[0][0].device)
        for weight, gradient, m, v in tensors:
            if count := weight.numel():
                arrays = (weight, gradient.contiguous(), m, v, numbers, loss_and_norm)
                kernels.adam[(triton.cdiv(count, 1024),)](*arrays, count, BLOCK=1024, **LAUNCH_OPTIONS)


@functools.cache
def triton_cell(name: str) -> Any:
    """The Triton module of a cell."""
    return importlib.import_module(f"grimmgen.network.cells.{name}_triton")


def _reset(part: Tensor, resets: Tensor | None) -> Tensor:
    """A state [B, H], or its gradient, with zeros where it is reset before the first time step."""
    return part if resets is None else part.masked_fill(resets[0].bool().unsqueeze(1), 0.0)


def _extra_weights(cell: CellSpec, weights: Mapping[str, Tensor]) -> Tensor | None:
    """The extra weights below each other, [EXTRA, H]; None if there are none."""
    H = len(weights["bias"]) // len(cell.gates)
    rows = [weights[name].reshape(-1, H) for name in cell.extra_weights(Sizes(H, 0, 0))]
    return torch.cat(rows) if rows else None


def _softmax(
    logits: Tensor, bias: Tensor, targets: Tensor, losses: Tensor, gradient: Tensor | None, scale: float
) -> None:
    """Write the losses and, unless it is None, the gradient by the logits times the scale."""
    V = len(bias)
    block = min(triton.next_power_of_2(V), 4096)
    arguments: tuple[Any, ...] = (logits, bias.contiguous(), targets, losses, gradient, scale, V)
    warps = 4 if block <= 2048 else 8
    kernels.softmax[(len(logits),)](*arguments, BLOCK=block, num_warps=warps, **LAUNCH_OPTIONS)


def _blocks(rows: int, V: int) -> list[slice]:
    block = max(1, _MOST_LOGITS // V)
    return [slice(begin, min(begin + block, rows)) for begin in range(0, rows, block)]
