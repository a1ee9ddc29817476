"""The kernels for a GPU, in training: gives those of `kernels.py` the signatures of the plain ones.

A window goes one of two ways. While the recurrent weights are small, one launch does all of its steps. When they
are large, each step is a product by the vendor's library, which all of the GPU works at, and one launch for all
that is between two products. Either way the weight gradients of all steps are one product in the end.

Nothing here waits for the GPU, looks at a number that it made or depends on which program is done first, so that a
whole update can be captured in a CUDA graph (`grimmgen.network.captured`), and gives the same bits each time.

Sums are float32. Products are float32, too, unless bf16 is asked for; in TF32 where the program that uses grimmgen
has told PyTorch so (`torch.set_float32_matmul_precision("high")`).

    T  steps    B  rows    H  hidden units    G  gates    V  vocabulary size    N  predictions, T·B
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends.cuda import kernels

# Bytes of recurrent weights that every program may read anew at each step: from the second-level cache that takes
# about as long (2 µs, at 64 bytes a cycle) as the two launches of the other way. Reckoned, not measured.
_SMALL = 1 << 18
# Programs, one to a processor of the GPU, that may read so at once; they share the second-level cache.
_PROGRAMS = 128
# Numbers of a block of logits: what is more goes block by block.
_LOGITS = 1 << 24
# Of every launch: the default differs from one version of Triton to the next.
_LAUNCH: dict[str, Any] = {"enable_fp_fusion": True}


class Way(NamedTuple):
    """How a window is cut into programs and tiles.

    Attributes:
        whole: one launch for all steps.
        rows: of a tile. One: multiplied and added up number by number; more: by the tensor cores.
        units: of a tile.
        depth: of what is summed up, how much is read at once; of one row's gradients, which are one product and
            not four, twice as much. So chosen that no kernel spills a register (tests/test_gpu_kernels.py).
        warps: of a program.
    """

    whole: bool
    rows: int
    units: int
    depth: int
    warps: int


def way(B: int, H: int, gates: int, precision: str) -> Way:
    """How a window goes that has so many rows, hidden units and gates, in `ieee`, `tf32` or `bf16`.

    It decides the order of sums, and so depends on nothing that could differ between two runs of the same model.
    """
    # The tensor cores round what they multiply: they have no float32.
    rows = 1 if precision == "ieee" else 16
    weights = gates * H * H * (2 if precision == "bf16" else 4)
    if weights > _SMALL or -(-B // rows) > _PROGRAMS:
        return Way(False, 1, min(triton.next_power_of_2(H), 512), 0, 4)
    units = max(16, min(triton.next_power_of_2(H), 128))
    return Way(True, rows, units, 32 if precision == "bf16" else 16, 8)


class LSTMWindow(torch.autograd.Function):
    """`grimmgen.network.cells.lstm.LSTMWindow` for a GPU."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        return _lstm_forward(ctx, x, recurrent_weight, None, h0, c0, mask, starts, precision)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        grad_x, grad_u, _, d_h, d_c = _lstm_backward(ctx, grad_h, grad_c)
        return grad_x, grad_u, d_h, d_c, None, None, None


class PeepholeWindow(torch.autograd.Function):
    """`grimmgen.network.cells.peephole.PeepholeWindow` for a GPU."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        peephole: Tensor,
        h0: Tensor,
        c0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        return _lstm_forward(ctx, x, recurrent_weight, peephole, h0, c0, mask, starts, precision)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return *_lstm_backward(ctx, grad_h, grad_c), None, None, None


def _lstm_forward(
    ctx: Any,
    x: Tensor,
    recurrent_weight: Tensor,
    peephole: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products,
) -> tuple[Tensor, Tensor]:
    T, B, _ = x.shape
    H = h0.shape[1]
    x, peephole, mask, starts = x.contiguous(), _dense(peephole), _dense(mask), _bytes(starts)
    u = recurrent_weight.to(_type(precision)).contiguous()
    h, entered = _room(T, h0, starts, u.dtype)
    c = x.new_empty(T + 1, B, H)
    c[0] = c0
    gates = torch.empty_like(x)
    window = _Window(T, B, H, 4, _units(precision), 0 if mask is None or len(mask) == 1 else B)
    given = (peephole, mask, starts, h, entered, c, gates)
    if window.way.whole:
        window.launch(kernels.lstm_forward, (x, u, None, *given), 0, T)
    else:
        for t in range(T):
            window.launch(kernels.lstm_forward, (x, u, _mm(entered[t], u), *given), t, t + 1)
    ctx.window = window
    ctx.save_for_backward(u, peephole, mask, starts, entered, c, gates)
    return h[1:], c[T]


def _lstm_backward(ctx: Any, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients by x, U, the peepholes if there are any, h0 and c0."""
    window: _Window = ctx.window
    T, B, H = window.T, window.B, window.H
    u, peephole, mask, starts, entered, c, gates = ctx.saved_tensors
    d_c = grad_c.clone(memory_format=torch.contiguous_format)
    grad_x = torch.empty_like(gates)
    rounded = grad_x if u.dtype == grad_x.dtype else torch.empty_like(grad_x, dtype=u.dtype)
    given = (peephole, mask, starts, c, gates, grad_h.contiguous(), d_c, grad_x, rounded)
    if window.way.whole:
        window.launch(kernels.lstm_backward, (u, None, *given), 0, T)
    else:
        carried = torch.zeros_like(d_c)
        for t in reversed(range(T)):
            window.launch(kernels.lstm_backward, (u, carried, *given), t, t + 1)
            carried = _mm(rounded[t], u.t())
    d_h = _mm(rounded[0], u.t()) if window.way.whole else carried
    grad_u = _mm(entered.view(T * B, H).t(), rounded.view(T * B, 4 * H))
    grad_peephole = None
    if peephole is not None:
        c_in = c[:T] if starts is None else c[:T].masked_fill(_fresh(starts), 0.0)
        d_i, d_f, _, d_o = torch.split(grad_x, H, dim=2)
        seen = ((d_i, c_in), (d_f, c_in), (d_o, c[1:]))
        grad_peephole = torch.stack([(d * c).sum(dim=(0, 1)) for d, c in seen])
    if starts is not None:
        d_h, d_c = (d.masked_fill(_fresh(starts[0]), 0.0) for d in (d_h, d_c))
    return grad_x, grad_u, grad_peephole, d_h, d_c


class GRUWindow(torch.autograd.Function):
    """`grimmgen.network.cells.gru.GRUWindow` for a GPU."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any,
        x: Tensor,
        recurrent_weight: Tensor,
        recurrent_bias: Tensor,
        h0: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        precision: Products = "fp32",
    ) -> Tensor:
        T, B, _ = x.shape
        H = h0.shape[1]
        x, recurrent_bias = x.contiguous(), recurrent_bias.contiguous()
        mask, starts = _dense(mask), _bytes(starts)
        u = recurrent_weight.to(_type(precision)).contiguous()
        h, entered = _room(T, h0, starts, u.dtype)
        s = x.new_empty(T, B, H)
        gates = torch.empty_like(x)
        window = _Window(T, B, H, 3, _units(precision), 0 if mask is None or len(mask) == 1 else B)
        given = (recurrent_bias, mask, starts, h, entered, s, gates)
        if window.way.whole:
            window.launch(kernels.gru_forward, (x, u, None, *given), 0, T)
        else:
            for t in range(T):
                window.launch(kernels.gru_forward, (x, u, _mm(entered[t], u), *given), t, t + 1)
        ctx.window = window
        ctx.save_for_backward(u, mask, starts, h, entered, s, gates)
        return h[1:]

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        window: _Window = ctx.window
        T, B, H = window.T, window.B, window.H
        u, mask, starts, h, entered, s, gates = ctx.saved_tensors
        through = h.new_zeros(B, H)
        grad_x = torch.empty_like(gates)
        grad_a = torch.empty_like(gates, dtype=u.dtype)
        given = (mask, starts, h, s, gates, grad_h.contiguous(), through, grad_x, grad_a)
        if window.way.whole:
            window.launch(kernels.gru_backward, (u, None, *given), 0, T)
        else:
            carried = torch.zeros_like(through)
            for t in reversed(range(T)):
                window.launch(kernels.gru_backward, (u, carried, *given), t, t + 1)
                carried = _mm(grad_a[t], u.t())
        d_h = (_mm(grad_a[0], u.t()) if window.way.whole else carried) + through
        if starts is not None:
            d_h = d_h.masked_fill(_fresh(starts[0]), 0.0)
        grad_u = _mm(entered.view(T * B, H).t(), grad_a.view(T * B, 3 * H))
        # Not from `grad_a`, which may be rounded.
        grad_bias = (grad_x[..., 2 * H :] * gates[..., :H]).sum(dim=(0, 1))
        return grad_x, grad_u, grad_bias, d_h, None, None, None


class CrossEntropy(torch.autograd.Function):
    """`grimmgen.network.loss.CrossEntropy` for a GPU: logits are written, and once more as their gradient."""

    @staticmethod
    def forward(  # noqa: D102 - see the class
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, precision: Products = "fp32"
    ) -> Tensor:
        N, kind = len(hidden), _type(precision)
        # Each is rounded once, whatever it is multiplied with.
        h, w = hidden.to(kind), weight.to(kind)
        losses = hidden.new_empty(N)
        by_hidden, by_weight, by_bias = [], [], []
        for block in _blocks(N, len(bias)):
            d = _softmax(h[block], w, bias, targets[block], losses[block], kind, 1.0 / N)
            by_hidden.append(_mm(d, w.t()))
            by_weight.append(_mm(h[block].t(), d))
            by_bias.append(d.sum(dim=0, dtype=hidden.dtype))
        ctx.save_for_backward(torch.cat(by_hidden), _sum(by_weight), _sum(by_bias))
        return losses.sum() / N

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # noqa: D102
        return *(made * grad for made in ctx.saved_tensors), None, None


def negative_log_likelihood(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """`grimmgen.network.loss.negative_log_likelihood` for a GPU."""
    losses = hidden.new_empty(len(hidden))
    for block in _blocks(len(hidden), len(bias)):
        _softmax(hidden[block], weight, bias, targets[block], losses[block], None, 1.0)
    return losses


def adamw(learning: Iterable[tuple[Tensor, Tensor, Tensor, Tensor]], norm: Tensor, numbers: Tensor) -> None:
    """A step of `grimmgen.network.optimiser.AdamW`, in place, with nothing that has to be known outside of the GPU.

    Args:
        learning: weight, gradient, m and v of each.
        norm: of all gradients, float64 [].
        numbers: as of `AdamW.step_there`, float32 [8].
    """
    for weight, gradient, m, v in learning:
        if count := weight.numel():
            grid = (triton.cdiv(count, 1024),)
            given = (weight, gradient.contiguous(), m, v, norm, numbers, count)
            kernels.adamw[grid](*given, BLOCK=1024, **_LAUNCH)


class _Window:
    """The sizes of a window, and how its kernels are launched; of use for the way back, too."""

    def __init__(self, T: int, B: int, H: int, gates: int, precision: str, mask_rows: int) -> None:
        self.T, self.B, self.H = T, B, H
        self._mask_rows = mask_rows
        self.way = way(B, H, gates, precision)

    def launch(self, kernel: Any, arrays: Sequence[Tensor | None], first: int, last: int) -> None:
        """Do the steps from `first` to `last`, which itself is not done."""
        whole, rows, units, depth, warps = self.way
        blocks = triton.cdiv(self.H, units)
        backward = kernel in (kernels.lstm_backward, kernels.gru_backward)
        kernel[(triton.cdiv(self.B, rows), 1 if whole else blocks)](
            *arrays,
            first,
            last,
            self.T,
            self.B,
            self._mask_rows,
            H=self.H,
            SPAN=units * blocks if whole else units,
            ROWS=rows,
            UNITS=units,
            DEPTH=2 * depth if backward and rows == 1 else depth,
            num_warps=warps,
            **_LAUNCH,
        )


def _type(precision: Products) -> torch.dtype:
    """What a product's factors are."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _units(precision: Products) -> str:
    """What multiplies: `ieee`, `tf32` or `bf16`."""
    if precision == "bf16":
        return precision
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices of the same type; of bfloat16 it is float32."""
    if a.dtype != torch.bfloat16:
        return torch.mm(a, b)
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    # In Triton's interpreter.
    return torch.mm(a.float(), b.float())


def _room(T: int, h0: Tensor, starts: Tensor | None, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """For h, [T + 1, B, H], and for h̄ in the type of the products, [T, B, H]; each with its first step."""
    h = h0.new_empty(T + 1, *h0.shape)
    entered = h0.new_empty(T, *h0.shape, dtype=kind)
    h[0] = h0
    entered[0] = h0 if starts is None else h0.masked_fill(_fresh(starts[0]), 0.0)
    return h, entered


def _dense(given: Tensor | None) -> Tensor | None:
    return None if given is None else given.contiguous()


def _bytes(starts: Tensor | None) -> Tensor | None:
    return None if starts is None else starts.contiguous().view(torch.uint8)


def _fresh(starts: Tensor) -> Tensor:
    """Where a story starts, to be broadcast along the units."""
    return starts.bool().unsqueeze(-1)


def _softmax(
    h: Tensor,
    w: Tensor,
    bias: Tensor,
    targets: Tensor,
    losses: Tensor,
    kind: torch.dtype | None,
    scale: float,
) -> Tensor:
    """Fill in the losses, and give the gradient by the logits in that type, times the scale; None: do without."""
    logits = _mm(h, w)
    V = len(bias)
    gradient = logits if kind in (None, logits.dtype) else torch.empty_like(logits, dtype=kind)
    block = min(triton.next_power_of_2(V), 4096)
    kernels.softmax[(len(h),)](
        logits,
        bias.contiguous(),
        targets,
        losses,
        None if kind is None else gradient,
        scale,
        V,
        BLOCK=block,
        num_warps=4 if block <= 2048 else 8,
        **_LAUNCH,
    )
    return gradient


def _blocks(rows: int, V: int) -> list[slice]:
    block = max(1, _LOGITS // V)
    return [slice(begin, min(begin + block, rows)) for begin in range(0, rows, block)]


def _sum(parts: Sequence[Tensor]) -> Tensor:
    """The parts added up, always in the same order; there is one at least."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
