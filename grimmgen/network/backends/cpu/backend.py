"""The CPU backend: the operations of a training step on the compiled kernels, for contiguous float32 tensors.

Each operation has the name, the arguments and the results of the reference backend's, and calls one or a few kernels
(`layers.h`, `recurrence.h`). Recording a training step is appending these calls to a program. Results are the same in
every run with the same number of threads; another number changes only the order in which the weight gradients of the
softmax layer are summed.

    T  time steps    B  batch rows    H  hidden units    G  gates    V  vocabulary size    N  predictions, T·B
"""

from __future__ import annotations

import contextlib
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends.cpu import program
from grimmgen.network.backends.cpu.library import CompiledCell, InstructionSet, Kernel, constants
from grimmgen.network.backends.cpu.program import Argument, Pointers, Program, check_ids
from grimmgen.network.backends.reference import Layer, LayerGradients, dropout_threshold
from grimmgen.network.cells import CellSpec, Sizes

_TITLES = {"amx": "AMX", "avx512": "AVX-512", "avx2": "AVX2", "portable": "128-bit vectors", "scalar": "plain C"}


@dataclass
class _Saved:
    """What the backward pass of a layer needs."""

    inputs: Tensor  # ids [T, B] or dense [T, B, inputs]
    weights: Mapping[str, Tensor]
    mask: Tensor | None
    resets: Tensor | None
    states: Tensor  # [S, T + 1, B, H]
    columns: Tensor  # [T, B, W, H]
    overwritten: bool = False


class CPUBackend:
    """Operations on the kernels of one instruction set.

    Args:
        instructions: the instruction set; of bfloat16 products where its name says so.
        overwrite: whether the backward pass of a layer may write its gradients over what the forward pass saved:
            less memory, but it can run only once.

    Attributes:
        name: what computes.
        description: the same with the precision and the number of threads.
    """

    def __init__(self, instructions: InstructionSet, overwrite: bool = True) -> None:
        self.instructions = instructions
        self.name = f"native {_TITLES[instructions.name.removesuffix('bf16')]}"
        self.precision: Products = "bf16" if instructions.word == 2 else "fp32"
        self._overwrite = overwrite
        self._kernels = instructions.kernels
        self._program: Program | None = None

    @property
    def description(self) -> str:  # noqa: D102 - see the class
        threads = program.thread_count()
        rounded = " bf16" if self.precision == "bf16" else ""
        return f"{self.name}{rounded}, {threads} thread{'s' if threads != 1 else ''}"

    @contextlib.contextmanager
    def recording(self) -> Iterator[Program]:
        """A program of the operations called within; none of them is computed yet, and results have no values."""
        assert self._program is None
        self._program = Program()
        try:
            yield self._program
        finally:
            self._program = None

    def threads(self) -> contextlib.AbstractContextManager[None]:
        """A context for training steps: nothing large is left to PyTorch, and the kernels get all threads."""
        return program.one_thread_for_pytorch()

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
        compiled = self.instructions.cells[cell.name]
        (T, B), H, S = inputs.shape[:2], state[0].shape[1], len(cell.states)
        ids, x, bias = None, inputs, None
        if inputs.dim() == 2:
            ids, x, bias = inputs, self._contiguous(weights["input_weight"]), self._contiguous(weights["bias"])
            self._check("an id", ids, 0, len(x))
        else:
            inputs = self._contiguous(inputs)
            x = self.linear(inputs.view(T * B, -1), weights["input_weight"], weights["bias"])
        assert resets is None or resets.is_contiguous()
        mask = None if mask is None else self._contiguous(mask.expand(T, B, H))
        states, columns = self._empty(S, T + 1, B, H), self._empty(T, B, compiled.width, H)
        for part, target in zip(state, states, strict=True):
            self.copy(part, target[0])
        u, scratch = self._pack_recurrent(compiled, weights), self._left_rows(B, H)
        extra = self._extra(cell, weights)
        self._call(
            compiled.forward,
            *(T, B, H, x, ids, bias, u, extra, mask, resets, states, columns, scratch),
            total=B,
        )
        saved = _Saved(inputs, weights, mask, resets, states, columns)
        return Layer(states[0, 1:], tuple(part[T] for part in states), saved)

    def layer_backward(  # noqa: D102 - see the reference backend
        self, cell: CellSpec, saved: _Saved, d_h: Tensor, d_state: Sequence[Tensor | None] | None = None
    ) -> LayerGradients:
        compiled = self.instructions.cells[cell.name]
        if saved.overwritten:
            raise RuntimeError("this layer's backward pass has already run: overwrite=False allows several")
        saved.overwritten = self._overwrite
        inputs, weights, mask, resets = saved.inputs, saved.weights, saved.mask, saved.resets
        states, columns = saved.states, saved.columns
        T, B, W, H = columns.shape
        G = compiled.gates
        gradients = columns if self._overwrite else self._empty(T, B, W, H)
        d_states = self._empty(len(cell.states), B, H)
        for part, target in zip(d_state or [None] * len(cell.states), d_states, strict=True):
            self._fill(part, target)
        d_extra = None
        if compiled.extra:
            d_extra = self._empty(B, compiled.extra, H)
            self._fill(None, d_extra.view(B, -1))
        u = self._pack_recurrent(compiled, weights, transposed=True)
        self._call(
            compiled.backward,
            *(T, B, H, u, self._extra(cell, weights), mask, resets, states, columns, gradients),
            *(self._contiguous(d_h), d_states, d_extra, self._left_rows(B, G * H)),
            total=B,
        )
        d_weights: dict[str, Tensor] = {}
        rows = gradients.view(T * B, W * H)
        d_x = rows[:, compiled.input_column * H : (compiled.input_column + G) * H]
        d_inputs = d_table = d_bias = None
        if inputs.dim() == 2:
            d_table, d_bias = self._empty(len(weights["input_weight"]), G * H), self._empty(G * H)
        if cell.recurrent_product:
            d_u, d_a = self._empty(H, G * H), rows[:, : G * H]
            h_in = states[0, :T].view(T * B, H)
            together = d_table is not None and compiled.input_column == 0
            self._weight_gradient(
                d_a,
                h_in,
                d_u,
                resets,
                *((inputs, d_table, d_bias) if together else (None, None, None)),
            )
            if not together and d_table is not None:
                self._weight_gradient(d_x, None, None, None, inputs, d_table, d_bias)
            d_weights["recurrent_weight"] = self._rotate(d_u, -compiled.recurrent_rotation * H)
        elif d_table is not None:
            self._weight_gradient(d_x, None, None, None, inputs, d_table, d_bias)
        if d_table is not None and d_bias is not None:
            d_weights |= {"input_weight": d_table, "bias": d_bias}
        else:
            dense = self._contiguous(d_x)
            d_inputs, d_weights["input_weight"], d_weights["bias"] = self.linear_backward(
                inputs.view(T * B, -1), weights["input_weight"], dense
            )
            d_inputs = d_inputs.view(inputs.shape)
        if d_extra is not None:
            total = self._sum(d_extra.view(B, -1))
            first = 0
            for name, shape in cell.extra_weights(Sizes(H, 0, 0)).items():
                count = math.prod(shape)
                d_weights[name] = total[first : first + count].view(shape)
                first += count
        return LayerGradients(d_inputs, d_weights, tuple(d_states))

    def _extra(self, cell: CellSpec, weights: Mapping[str, Tensor]) -> Tensor | None:
        """The extra weights, one after the other."""
        names = list(cell.extra_weights(Sizes(1, 0, 0)))
        if len(names) <= 1:
            return self._contiguous(weights[names[0]]) if names else None
        joined = self._empty(sum(weights[name].numel() for name in names))
        first = 0
        for name in names:
            self.copy(weights[name].view(-1), joined[first : first + weights[name].numel()])
            first += weights[name].numel()
        return joined

    def _pack_recurrent(
        self, compiled: CompiledCell, weights: Mapping[str, Tensor], transposed: bool = False
    ) -> Tensor | None:
        if compiled.recurrent_rotation < 0:
            return None
        u = weights["recurrent_weight"]
        u = self._rotate(u, compiled.recurrent_rotation * len(u))
        return self._pack(u.t() if transposed else u)

    def _left_rows(self, B: int, K: int) -> Tensor:
        """Scratch for left factors [B, K] whose rows the threads share; `LEFT_ROWS` in packing.h."""
        return self._empty(B + (self.instructions.tile - 1) * self._threads, self.instructions.words(K))

    def _rotate(self, matrix: Tensor, columns: int) -> Tensor:
        """The matrix with its columns rotated to the right."""
        if columns == 0:
            return matrix
        rotated = self._empty(*matrix.shape)
        columns %= matrix.shape[1]
        self.copy(matrix[:, :-columns], rotated[:, columns:])
        self.copy(matrix[:, -columns:], rotated[:, :columns])
        return rotated

    # --- layers without cells --------------------------------------------------------------------------------

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: D102 - see above
        (N, K), M = x.shape, weight.shape[1]
        y = self._empty(N, M)
        scratch = self._empty(self._threads, self.instructions.left_words(self.instructions.block, K))
        x, bias = self._contiguous(x), None if bias is None else self._contiguous(bias)
        self._call(self._kernels["linear"], K, M, x, self._pack(weight), bias, y, scratch, total=N)
        return y

    def linear_backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D102
        d_weight, d_bias = self._empty(*weight.shape), self._empty(weight.shape[1])
        d_y = self._contiguous(d_y)
        self._weight_gradient(d_y, self._contiguous(x), d_weight, None, None, None, d_bias)
        return self.linear(d_y, weight.t()), d_weight, d_bias

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:  # noqa: D102 - see the reference backend
        V, E = table.shape
        self._check("an id", ids, 0, V)
        rows = self._empty(*ids.shape, E)
        self._elementwise("lookup", ids.numel(), E, ids, self._contiguous(table), rows)
        return rows

    def lookup_backward(self, ids: Tensor, d_rows: Tensor, V: int) -> Tensor:  # noqa: D102 - see the reference backend
        E = d_rows.shape[-1]
        d_table, d_total = self._empty(V, E), self._empty(E)
        self._weight_gradient(self._contiguous(d_rows).view(-1, E), None, None, None, ids, d_table, d_total)
        return d_table

    def _weight_gradient(
        self,
        d_y: Tensor,
        x: Tensor | None,
        d_weight: Tensor | None,
        skip: Tensor | None,
        ids: Tensor | None,
        d_table: Tensor | None,
        d_bias: Tensor | None,
    ) -> None:
        """Fill in the gradients by the weights of a product, and of a look-up added to it; see layers.h."""
        (N, M), K = d_y.shape, 0 if x is None else x.shape[1]
        panels = -(-M // (4 * self.instructions.lanes))
        widest = max(end - begin for begin, end in program.ranges(panels, self._threads))
        chunk = self.instructions.chunk
        stride = self.instructions.left_words(K, chunk) + chunk * widest * 4 * self.instructions.lanes
        scratch = self._empty(self._threads, stride)
        self._call(
            self._kernels["weight_gradient"],
            *(N, K, M, 0 if d_table is None else len(d_table), ids, skip, x, d_y, d_y.stride(0)),
            *(d_weight, d_table, d_bias, scratch, stride),
            total=panels,
        )

    def cross_entropy(  # noqa: D102 - see the reference backend
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (N, H), V = hidden.shape, weight.shape[1]
        shares = len(program.ranges(N, self._threads))
        d_hidden, d_weights, d_biases = self._empty(N, H), self._empty(shares, H, V), self._empty(shares, V)
        losses = self._softmax(hidden, weight, bias, targets, d_hidden, d_weights, d_biases)
        d_weight, d_bias = d_weights[0], d_biases[0]
        for more, more_bias in zip(d_weights[1:], d_biases[1:], strict=True):
            d_weight, d_bias = self.add(d_weight, more), self.add(d_bias, more_bias)
        return self._sum(losses.view(N, 1), N).view(()), d_hidden, d_weight, d_bias

    def negative_log_likelihood(  # noqa: D102 - see the reference backend
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> Tensor:
        return self._softmax(hidden, weight, bias, targets, None, None, None)

    def _softmax(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor,
        targets: Tensor,
        d_hidden: Tensor | None,
        d_weights: Tensor | None,
        d_biases: Tensor | None,
    ) -> Tensor:
        (N, H), V = hidden.shape, weight.shape[1]
        hidden, bias = self._contiguous(hidden), self._contiguous(bias)
        self._check("a target", targets, -(2**63), V)
        losses = self._empty(N)
        block, left_words = self.instructions.block, self.instructions.left_words
        most = max(left_words(block, H), left_words(block, V), left_words(H, block))
        stride = 2 * block * (V + self.instructions.lanes) + most
        self._call(
            self._kernels["cross_entropy"],
            *(
                N,
                H,
                V,
                hidden,
                self._pack(weight),
                None if d_hidden is None else self._pack(weight.t()),
                bias,
                targets,
            ),
            *(losses, d_hidden, d_weights, d_biases, self._empty(self._threads, stride), stride),
            total=N,
        )
        return losses

    # --- elementwise operations ------------------------------------------------------------------------------

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102 - see the reference backend
        a, b = self._contiguous(a), self._contiguous(b)
        assert b.shape in {a.shape, (1, *a.shape[1:])}
        product = self._empty(*a.shape)
        repeats = b.shape != a.shape
        columns = b.numel() if repeats else b.shape[-1]
        self._elementwise("multiply", a.numel() // columns, columns, a, b, 0 if repeats else columns, product)
        return product

    def add(self, a: Tensor, b: Tensor) -> Tensor:  # noqa: D102 - see the reference backend
        a, b = self._contiguous(a), self._contiguous(b)
        assert a.shape == b.shape
        total = self._empty(*a.shape)
        self._elementwise("add", a.numel(), a, b, total)
        return total

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """The tensors along a new first axis."""
        made = self._empty(len(tensors), *tensors[0].shape)
        for tensor, target in zip(tensors, made, strict=True):
            self.copy(tensor, target)
        return made

    def copy(self, source: Tensor, target: Tensor) -> None:  # noqa: D102 - see the reference backend
        assert source.shape == target.shape
        self._fill(source, target)

    def dropout_mask(self, shape: Sequence[int], dropout: float, seed: Tensor) -> Tensor:  # noqa: D102
        mask = self._empty(*shape)
        threshold, scale = dropout_threshold(dropout)
        self._elementwise("dropout_mask", mask.numel(), seed, threshold, array("f", [scale]), mask)
        return mask

    # --- the optimiser ---------------------------------------------------------------------------------------

    def norm(self, gradients: Iterable[Tensor]) -> float:
        """The norm of all gradients together; the same for any number of threads."""
        return norm_of(self.squares(gradients))

    def squares(self, gradients: Iterable[Tensor]) -> array[float]:
        """The sums of the gradients' squares, a slice at a time; `norm_of` makes the norm of them."""
        gradients = [self._contiguous(gradient) for gradient in gradients]
        counts = [gradient.numel() for gradient in gradients]
        sums = array("d", bytes(8 * sum(-(-count // constants().slice) for count in counts)))
        arguments = len(counts), array("q", counts), Pointers(gradients), sums
        self._call(self._kernels["squares"], *arguments, total=len(sums), elements=sum(counts))
        return sums

    def adam(
        self, tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], numbers: Sequence[float] | array[float]
    ) -> None:
        """One step of Adam; see the reference backend. An array of numbers is read anew at each run of a program."""
        flat = [t for weight, gradient, m, v in tensors for t in (weight, self._contiguous(gradient), m, v)]
        counts = [weight.numel() for weight, *_ in tensors]
        numbers = numbers if isinstance(numbers, array) else array("f", numbers)
        arguments = len(counts), array("q", counts), Pointers(flat), numbers
        self._elementwise("adam", sum(counts), *arguments)

    # --- calls of the kernels --------------------------------------------------------------------------------

    @property
    def _threads(self) -> int:
        return program.thread_count() if self._program is None else self._program.threads

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape) if self._program is None else self._program.empty(*shape)

    def _check(self, what: str, ids: Tensor, least: int, V: int) -> None:
        assert ids.is_contiguous()
        if self._program is None:
            check_ids(what, ids, least, V)
        else:
            self._program.check(what, ids, least, V)

    def _call(self, kernel: Kernel, *arguments: Argument, total: int, elements: int | None = None) -> None:
        recorded = self._program is not None
        shares = program.ranges(total, self._threads, elements, recorded)
        if self._program is None:
            program.run(kernel, arguments, shares)
        else:
            self._program.add(kernel, arguments, shares)

    def _elementwise(self, name: str, total: int, *arguments: Any) -> None:
        elements = max(total, *(a.numel() for a in arguments if isinstance(a, Tensor)), 0)
        self._call(self._kernels[name], *arguments, total=total, elements=elements)

    def _fill(self, source: Tensor | None, target: Tensor) -> None:
        """Copy rows to a target whose rows are contiguous; None is zeros."""
        if source is not None and source.dim() > 2 and not source.is_contiguous():
            for part, place in zip(source, target, strict=True):
                self._fill(part, place)
            return
        matrix = target.view(1, -1) if target.dim() == 1 else target.flatten(0, -2) if target.dim() > 2 else target
        rows = None
        if source is not None:
            rows = source.reshape(matrix.shape) if source.dim() != 2 else source
        R, C = matrix.shape
        assert C == 1 or matrix.stride(1) == 1
        strides = (0, 1) if rows is None else rows.stride()
        self._elementwise("copy", R, C, rows, *strides, matrix, matrix.stride(0))

    def _contiguous(self, tensor: Tensor) -> Tensor:
        if tensor.is_contiguous():
            return tensor
        made = self._empty(*tensor.shape)
        self._fill(tensor, made)
        return made

    def _sum(self, rows: Tensor, divisor: int = 1) -> Tensor:
        """The sum over the rows of a matrix [R, C], over a divisor: [C]."""
        total = self._empty(rows.shape[1])
        self._call(
            self._kernels["sum"], *rows.shape, divisor, rows, total, total=rows.shape[1], elements=rows.numel()
        )
        return total

    def _pack(self, matrix: Tensor) -> Tensor:
        """The right factor of a product [K, N], in the order in which the kernels read it."""
        K, N = matrix.shape
        lanes = self.instructions.lanes
        packed = self._empty(self.instructions.words(K) * -(-N // lanes) * lanes)
        panels = -(-N // (4 * lanes))
        self._call(self._kernels["pack"], K, N, matrix, *matrix.stride(), packed, total=panels, elements=K * N)
        return packed


def norm_of(squares: array[float]) -> float:
    """The norm, from the sums of squares."""
    return math.sqrt(math.fsum(squares))
