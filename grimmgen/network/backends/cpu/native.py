"""The compiled kernel for a CPU, in training: gives its functions the signatures of the plain ones.

The kernel (`native.c`, loaded by `library.py`) is called from a few threads of our own: each does its share of a
window's rows (or of a gradient's columns) through all of its steps, and they meet when the window is done. Which
OpenMP PyTorch has loaded does not matter. The calls of a whole update may be recorded (`programs.py`), and made
again as one.

Results are the same at every run with the same number of threads (`torch.set_num_threads`); another number sums
the weight gradients of the softmax layer in another order, and changes nothing else.

    T  steps    B  rows    H  hidden units    V  vocabulary size    N  predictions, T·B
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from grimmgen.network.backends.cpu import programs
from grimmgen.network.backends.cpu.library import WIDTH

# As in native.c.
_CHUNK, _BLOCK, _SLICE = 256, 128, 4096


class LSTMWindow(torch.autograd.Function):
    """`grimmgen.network.cells.lstm.LSTMWindow`, compiled; the first argument is the instruction set."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        instructions: str,
        x: Tensor,
        recurrent_weight: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        T, B, _ = x.shape
        return _forward(ctx, instructions, (T, B), x, None, None, recurrent_weight, h0, c0, mask, starts)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        grad_z, grad_u, d_h, d_c, *_ = _backward(ctx, grad_h, grad_c, 0)
        return None, grad_z, grad_u, d_h, d_c, None, None


class LookUpWindow(torch.autograd.Function):
    """The same for a layer that reads one-hot n-grams: x[t, b] = input_weight[ids[t, b]] + bias."""

    @staticmethod
    def forward(
        ctx: Any,
        instructions: str,
        ids: Tensor,
        input_weight: Tensor,
        bias: Tensor,
        recurrent_weight: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Run the cell through a window.

        Args:
            ctx: PyTorch's.
            instructions: the instruction set.
            ids: [T, B] int64.
            input_weight: [V, 4H].
            bias: [4H].
            recurrent_weight: [H, 4H].
            h0: [B, H].
            c0: [B, H].
            mask: [T, B, H] or None.
            starts: [T, B] bool or None.
        """
        ctx.vocabulary_size = len(input_weight)
        shape = _shape(input_weight, ids)
        return _forward(ctx, instructions, shape, input_weight, ids, bias, recurrent_weight, h0, c0, mask, starts)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        _, grad_u, d_h, d_c, grad_input, grad_bias, _ = _backward(ctx, grad_h, grad_c, ctx.vocabulary_size)
        return None, None, grad_input, grad_bias, grad_u, d_h, d_c, None, None


class PeepholeWindow(torch.autograd.Function):
    """`grimmgen.network.cells.peephole.PeepholeWindow`, compiled, for dense and for one-hot input.

    The first argument is the instruction set; then come x [T, B, 4H] and two times None, or the input weight
    [V, 4H], ids [T, B] int64 of its rows, and the bias [4H]; then the arguments of the plain one.
    """

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        instructions: str,
        x: Tensor,
        ids: Tensor | None,
        bias: Tensor | None,
        recurrent_weight: Tensor,
        peephole: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.vocabulary_size = 0 if ids is None else len(x)
        given = (x, ids, bias, recurrent_weight, h0, c0, mask, starts, peephole)
        return _forward(ctx, instructions, _shape(x, ids), *given)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None) -> tuple[Tensor | None, ...]:  # noqa: D102
        V = ctx.vocabulary_size
        grad_z, grad_u, d_h, d_c, grad_input, grad_bias, grad_p = _backward(ctx, grad_h, grad_c, V)
        return None, grad_input if V else grad_z, None, grad_bias, grad_u, grad_p, d_h, d_c, None, None


class GRUWindow(torch.autograd.Function):
    """`grimmgen.network.cells.gru.GRUWindow`, compiled; what enters as in `PeepholeWindow`, with 3H columns."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        instructions: str,
        x: Tensor,
        ids: Tensor | None,
        bias: Tensor | None,
        recurrent_weight: Tensor,
        recurrent_bias: Tensor,
        h0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
    ) -> Tensor:
        (T, B), H = _shape(x, ids), len(recurrent_weight)
        x, b_n = x.contiguous(), recurrent_bias.contiguous()
        ids, bias, mask, starts = (None if t is None else t.contiguous() for t in (ids, bias, mask, starts))
        h = x.new_empty(T + 1, B, H)
        gates = x.new_empty(T, B, 4 * H)
        h[0] = h0
        u = _pack(instructions, recurrent_weight.roll(H, 1))  # n, r, z
        given = (T, B, H, x, ids, bias, u, b_n, mask, starts, h, gates, x.new_empty(B, H))
        programs.share_out(f"gru_forward_{instructions}", given, B)
        ctx.instructions, ctx.done = instructions, False
        ctx.vocabulary_size = 0 if ids is None else len(x)
        ctx.save_for_backward(recurrent_weight, ids, mask, starts, h, gates)
        return h[1:]

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        recurrent_weight, ids, mask, starts, h, grad = _saved(ctx)
        (T, B, H), V = grad_h.shape, ctx.vocabulary_size
        d_h = h.new_zeros(B, H)
        u = _pack(ctx.instructions, recurrent_weight.roll(H, 1).t())
        rows = (T, B, H, u, mask, starts, h, grad, grad_h.contiguous(), d_h, h.new_empty(B, 3 * H))
        programs.share_out(f"gru_backward_{ctx.instructions}", rows, B)
        grad_a, grad_x = grad[..., : 3 * H], grad[..., H:]  # n, r, z and r, z, n
        grad_u, sums = h.new_empty(H, 3 * H), h.new_empty(3 * H)
        _weights(ctx.instructions, None, starts, h[:T].view(T * B, H), grad_a, grad_u, None, sums)
        grad_bias = None
        if V:
            grad_input, grad_bias = h.new_empty(V, 3 * H), h.new_empty(3 * H)
            _weights(ctx.instructions, ids, None, None, grad_x, None, grad_input, grad_bias)
            grad_x = grad_input
        return None, grad_x, None, grad_bias, grad_u.roll(-H, 1), sums[:H], d_h, None, None


def _shape(x: Tensor, ids: Tensor | None) -> tuple[int, int]:
    """T and B of what enters: x [T, B, GH], or ids [T, B] of the rows of x [V, GH].

    Raises:
        IndexError: there is no such row.
    """
    if ids is None:
        return x.shape[0], x.shape[1]
    programs.check("an id", ids.contiguous(), 0, len(x))
    return ids.shape[0], ids.shape[1]


def _forward(
    ctx: Any,
    instructions: str,
    shape: tuple[int, int],
    x: Tensor,
    ids: Tensor | None,
    bias: Tensor | None,
    recurrent_weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    peephole: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    (T, B), H = shape, len(recurrent_weight)
    x = x.contiguous()
    ids, bias, mask, starts = (None if t is None else t.contiguous() for t in (ids, bias, mask, starts))
    peephole = None if peephole is None else peephole.contiguous()
    h = x.new_empty(T + 1, B, H)
    c = x.new_empty(T + 1, B, H)
    gates = x.new_empty(T, B, 4 * H)
    h[0], c[0] = h0, c0
    u = _pack(instructions, recurrent_weight)
    room = x.new_empty(B, H)
    given = (T, B, H, x, ids, bias, u, peephole, mask, starts, h, c, gates, room)
    programs.share_out(f"lstm_forward_{instructions}", given, B)
    ctx.instructions, ctx.shape, ctx.done = instructions, (T, B, H), False
    ctx.save_for_backward(recurrent_weight, peephole, ids, mask, starts, h, c, gates)
    ctx.set_materialize_grads(False)
    return h[1:], c[T]


def _backward(ctx: Any, grad_h: Tensor | None, grad_c: Tensor | None, V: int) -> tuple[Tensor | None, ...]:
    """The gradients by x, U, h0, c0; where V is not zero, by the input weight and the bias; by peepholes."""
    T, B, H = ctx.shape
    # What was saved makes room for the gradients.
    recurrent_weight, peephole, ids, mask, starts, h, c, grad_z = _saved(ctx)
    if grad_h is not None:
        grad_h = grad_h.contiguous()
    d_h = h.new_zeros(B, H)
    d_c = h.new_zeros(B, H) if grad_c is None else grad_c.clone(memory_format=torch.contiguous_format)
    u = _pack(ctx.instructions, recurrent_weight.t())
    room = h.new_empty(B, 4 * H)
    d_peephole = None if peephole is None else h.new_zeros(B, 3, H)
    rows = (T, B, H, u, peephole, mask, starts, c, grad_z, grad_h, d_h, d_c, d_peephole, room)
    programs.share_out(f"lstm_backward_{ctx.instructions}", rows, B)
    grad_u = h.new_empty(H, 4 * H)
    grad_input, grad_bias = (h.new_empty(V, 4 * H), h.new_empty(4 * H)) if V else (None, None)
    _weights(ctx.instructions, ids, starts, h[:T].view(T * B, H), grad_z, grad_u, grad_input, grad_bias)
    grad_peephole = None if d_peephole is None else _total(ctx.instructions, d_peephole)
    return grad_z, grad_u, d_h, d_c, grad_input, grad_bias, grad_peephole


def _saved(ctx: Any) -> tuple[Any, ...]:
    """What was saved for the backward pass, which has its gradients written over it."""
    saved: tuple[Any, ...] = ctx.saved_tensors
    if ctx.done:
        raise RuntimeError(
            "the compiled kernel goes backward once; GRIMMGEN_KERNEL=plain goes as often as you like"
        )
    ctx.done = True
    return saved


def _weights(
    instructions: str,
    ids: Tensor | None,
    skip: Tensor | None,
    x: Tensor | None,
    grad: Tensor,
    grad_weight: Tensor | None,
    grad_input: Tensor | None,
    grad_bias: Tensor | None,
) -> None:
    """Fill in the gradients by the weights of a product, and of a look-up added to it; see native_kernels.h.

    Without `x` there is no product. The rows of `grad`, [N, M] or [T, B, M], may stand apart in memory, all alike.
    """
    M = grad.shape[-1]
    N, K = grad.numel() // M, 0 if x is None else x.shape[1]
    V = 0 if grad_input is None else len(grad_input)
    shares = programs.shares(_panels(instructions, M))
    rooms = [grad.new_empty(_CHUNK, K + (end - begin) * 4 * WIDTH[instructions]) for begin, end in shares]
    given = (N, K, M, V, ids, skip, x, grad, grad.stride(-2), grad_weight, grad_input, grad_bias)
    parts = zip(rooms, shares, strict=True)
    programs.run(f"weights_{instructions}", [(*given, room, *share) for room, share in parts])


class Affine(torch.autograd.Function):
    """`grimmgen.network.products.Affine`, compiled; the first argument is the instruction set."""

    @staticmethod
    def forward(ctx: Any, instructions: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:  # noqa: D102
        x = x.contiguous()
        ctx.save_for_backward(x, weight)
        ctx.instructions, ctx.has_bias = instructions, bias is not None
        return _product(instructions, x, weight, None if bias is None else bias.contiguous())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = _product(ctx.instructions, grad, weight.t(), None) if ctx.needs_input_grad[1] else None
        grad_weight = x.new_empty(weight.shape)
        grad_bias = x.new_empty(weight.shape[1]) if ctx.has_bias else None
        _weights(ctx.instructions, None, None, x, grad, grad_weight, None, grad_bias)
        return None, grad_x, grad_weight, grad_bias


def _product(instructions: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (N, K), M = x.shape, weight.shape[1]
    y = x.new_empty(N, M)
    shares = programs.shares(N)
    given = (N, K, M, x, _pack(instructions, weight), bias, y)
    parts = zip(x.new_empty(len(shares), _BLOCK, K), shares, strict=True)
    programs.run(f"affine_{instructions}", [(*given, room, *share) for room, share in parts])
    return y


class CrossEntropy(torch.autograd.Function):
    """`grimmgen.network.loss.CrossEntropy`, compiled; the first argument is the instruction set."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any, instructions: str, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> Tensor:
        losses, *gradients = _cross_entropy(instructions, hidden, weight, bias, targets, gradients=True)
        ctx.save_for_backward(*gradients)
        return _total(instructions, losses.view(-1, 1), len(losses)).view(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        # Training's gradient is 1, and to multiply by it costs as much as a tenth of the product it scales.
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        return None, *(saved if grad.item() == 1.0 else (made * grad for made in saved)), None


def norm(instructions: str, gradients: Sequence[Tensor]) -> float:
    """The norm of all of the gradients together; the same for any number of threads."""
    return root(squares(instructions, gradients))


def squares(instructions: str, gradients: Sequence[Tensor]) -> array[float]:
    """The sums of the gradients' squares, a slice at a time."""
    gradients = [gradient.contiguous() for gradient in gradients]
    counts = [gradient.numel() for gradient in gradients]
    sums = array("d", bytes(8 * sum(-(-count // _SLICE) for count in counts)))
    given = (len(counts), array("q", counts), programs.Pointers(gradients), sums)
    programs.run(
        f"squares_{instructions}", [(*given, *share) for share in programs.shares(len(sums), sum(counts))]
    )
    return sums


def root(sums: array[float]) -> float:
    """The norm, from what `squares` makes."""
    return math.sqrt(math.fsum(sums))


def adamw(
    instructions: str, learning: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], numbers: array[float]
) -> None:
    """A step of `grimmgen.network.optimiser.AdamW`, in place.

    Args:
        instructions: the instruction set.
        learning: weight, gradient, m and v of each.
        numbers: float32 [8]: what the gradients are multiplied with, and those of `AdamW.advance`.
    """
    learning = [(weight, gradient.contiguous(), m, v) for weight, gradient, m, v in learning]
    counts = [weight.numel() for weight, *_ in learning]
    given = (len(counts), array("q", counts), programs.Pointers(itertools.chain(*learning)), numbers)
    programs.run(
        f"adamw_{instructions}", [(*given, *share) for share in programs.shares(sum(counts), sum(counts))]
    )


def dropout_mask(instructions: str, shape: tuple[int, ...], dropout: float, generator: torch.Generator) -> Tensor:
    """A dropout mask with the scale in it; the same for the same generator, whatever computes it.

    Args:
        instructions: the instruction set.
        shape: of the mask.
        dropout: the probability of a zero, to within 2⁻³².
        generator: gives the seed.
    """
    mask = torch.empty(shape)
    threshold = min(round((1.0 - dropout) * 2**32), 2**32 - 1)
    scale = array("f", [2**32 / max(1, threshold)])
    seed = torch.empty((), dtype=torch.int64).random_(generator=generator)
    given = (seed, threshold, scale, mask)
    programs.run(
        f"dropout_mask_{instructions}", [(*given, *share) for share in programs.shares(mask.numel(), mask.numel())]
    )
    return mask


def negative_log_likelihood(
    instructions: str, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
) -> Tensor:
    """`grimmgen.network.loss.negative_log_likelihood`, compiled."""
    return _cross_entropy(instructions, hidden, weight, bias, targets, gradients=False)[0]


def _cross_entropy(
    instructions: str, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, gradients: bool
) -> list[Tensor]:
    """The losses [N], and the gradients of their sum / N by hidden, weight and bias if they are wanted."""
    (N, H), V = hidden.shape, weight.shape[1]
    hidden, bias, targets = hidden.contiguous(), bias.contiguous(), targets.contiguous()
    programs.check("a target", targets, -(2**63), V)
    losses = hidden.new_empty(N)
    shares = programs.shares(N)
    room = hidden.new_empty(len(shares), _BLOCK, 2 * (V + WIDTH[instructions]) + max(H, V))
    by_hidden: Tensor | None = None
    by_weight: Sequence[Tensor | None] = [None] * len(shares)
    by_bias: Sequence[Tensor | None] = [None] * len(shares)
    transposed: Tensor | None = None
    packed = _pack(instructions, weight)
    if gradients:
        by_hidden = torch.empty_like(hidden)
        by_weight = list(hidden.new_empty(len(shares), H, V))
        by_bias = list(hidden.new_empty(len(shares), V))
        transposed = _pack(instructions, weight.t())
    given = (N, H, V, hidden, packed, transposed, bias, targets, losses, by_hidden)
    parts = zip(by_weight, by_bias, room, shares, strict=True)
    programs.run(f"cross_entropy_{instructions}", [(*given, w, b, r, *share) for w, b, r, share in parts])
    if by_hidden is None:
        return [losses]
    return [losses, by_hidden, _sum(by_weight, weight), _sum(by_bias, bias)]


def copy(instructions: str, rows: Tensor | None, to: Tensor) -> None:
    """Copy rows to where they are to be, both [R, C]; None is zeros."""
    R, C = to.shape
    assert C == 1 or to.stride(1) == 1
    down, right = (0, 1) if rows is None else rows.stride()
    given = (C, rows, down, right, to, to.stride(0))
    programs.share_out(f"copy_{instructions}", given, R, R * C)


def add(instructions: str, a: Tensor, b: Tensor, to: Tensor) -> None:
    """Put a + b where they are to be, all of one shape and without gaps."""
    count = to.numel()
    programs.share_out(f"add_{instructions}", (a, b, to), count, count)


def multiply(instructions: str, a: Tensor, b: Tensor, to: Tensor) -> None:
    """Put a b where they are to be, [R, …], all without gaps; b may be one row for all, [1, …]."""
    assert b.shape in {a.shape, (1, *a.shape[1:])}
    repeats = b.shape != a.shape
    columns = b.numel() if repeats else b.shape[-1]
    given = (columns, a, b, 0 if repeats else columns, to)
    programs.share_out(f"multiply_rowwise_{instructions}", given, to.numel() // columns, to.numel())


def _total(instructions: str, rows: Tensor, divisor: int = 1) -> Tensor:
    """The sum over rows [R, …], over a divisor."""
    total = rows.new_empty(rows.shape[1:])
    given = (len(rows), total.numel(), divisor, rows, total)
    programs.run(
        f"sum_{instructions}", [(*given, *share) for share in programs.shares(total.numel(), rows.numel())]
    )
    return total


def _sum(parts: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """The threads' partial sums added up, always in the same order."""
    total = None
    for part in parts:
        assert part is not None
        total = part if total is None else total.add_(part)
    return torch.zeros_like(like) if total is None else total


def _panels(instructions: str, columns: int) -> int:
    return -(-columns // (4 * WIDTH[instructions]))


def _pack(instructions: str, matrix: Tensor) -> Tensor:
    """The right factor of a product, in the order in which the kernel reads it."""
    K, N = matrix.shape
    width = WIDTH[instructions]
    packed = matrix.new_empty(-(-K // (2 if instructions.endswith("bf16") else 1)) * -(-N // width) * width)
    down, right = matrix.stride()
    given = (K, N, matrix, down, right, packed)
    programs.share_out(f"pack_{instructions}", given, _panels(instructions, N), K * N)
    return packed
