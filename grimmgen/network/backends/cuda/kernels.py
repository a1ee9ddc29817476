"""The kernels for a GPU, in Triton: windows of cells, the softmax layer's loss, the optimiser. Called by `gpu.py`.

A program of a window has some rows and goes through the steps by itself: the rows of a batch do not see each
other, so that programs never wait for one another. What it makes at one step it reads back at the next, through
the cache of the processor that it runs on; the recurrent weights come from the second-level cache, where all
programs find them. The same kernels do a single step, of all units side by side, when they are given its product.

The numbers in brackets are those of the equations in `grimmgen.network.cells`.

    T  steps    B  rows    H  hidden units    G  gates    V  vocabulary size
    ROWS, UNITS, DEPTH  a tile's rows and columns, and how much of what is summed up is read at once
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    # By its series where the other form would take the difference of two numbers that are nearly the same.
    square = x * x
    series = x * (1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835)))))
    shrunk = tl.exp(-2.0 * tl.abs(x))
    ratio = (1.0 - shrunk) / (1.0 + shrunk)
    return tl.where(square < 0.0625, series, tl.where(x < 0.0, -ratio, ratio))


@triton.jit
def _products(
    left,
    row,
    live_row,
    right,
    live_unit,
    K: tl.constexpr,
    ALONG: tl.constexpr,
    GATE: tl.constexpr,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Rows of `left`, K numbers each, times columns of one matrix or of as many as there are gates, [ROWS, UNITS].

    `right` has the addresses of the first gate's columns, whose numbers lie ALONG apart; the next gate's lie GATE
    further. For one gate the other sums are of no use.
    """
    k = tl.arange(0, DEPTH)
    b = right[None, :] + k[:, None] * ALONG
    s0 = tl.zeros((DEPTH if ROWS == 1 else ROWS, UNITS), tl.float32)
    s1, s2, s3 = s0, s0, s0
    if ROWS == 1:
        # Each depth keeps a sum of its own. The loop is unrolled, so that many loads are on their way at a time.
        for begin in tl.static_range(0, K, DEPTH):
            a = tl.load(left + row * K + (begin + k), mask=live_row & (begin + k < K), other=0.0)[:, None]
            live = live_unit[None, :] & (begin + k < K)[:, None]
            s0 += a * tl.load(b, mask=live, other=0.0)
            if GATES > 1:
                s1 += a * tl.load(b + GATE, mask=live, other=0.0)
                s2 += a * tl.load(b + 2 * GATE, mask=live, other=0.0)
            if GATES > 3:
                s3 += a * tl.load(b + 3 * GATE, mask=live, other=0.0)
            b += DEPTH * ALONG
        s0 = tl.sum(s0, axis=0)[None, :]
        if GATES > 1:
            s1, s2 = tl.sum(s1, axis=0)[None, :], tl.sum(s2, axis=0)[None, :]
        if GATES > 3:
            s3 = tl.sum(s3, axis=0)[None, :]
    else:
        # By the tensor cores: bfloat16, or what they make of float32.
        for begin in range(0, K, DEPTH):
            live_a = live_row[:, None] & (begin + k < K)[None, :]
            a = tl.load(left + row[:, None] * K + (begin + k)[None, :], mask=live_a, other=0.0)
            live = live_unit[None, :] & (begin + k < K)[:, None]
            s0 = tl.dot(a, tl.load(b, mask=live, other=0.0), s0, input_precision="tf32")
            if GATES > 1:
                b1 = tl.load(b + GATE, mask=live, other=0.0)
                b2 = tl.load(b + 2 * GATE, mask=live, other=0.0)
                s1 = tl.dot(a, b1, s1, input_precision="tf32")
                s2 = tl.dot(a, b2, s2, input_precision="tf32")
            if GATES > 3:
                b3 = tl.load(b + 3 * GATE, mask=live, other=0.0)
                s3 = tl.dot(a, b3, s3, input_precision="tf32")
            b += DEPTH * ALONG
    return s0, s1, s2, s3


@triton.jit
def _starting(starts, row, live_row):
    """Whether a story starts there, [ROWS, 1]."""
    return tl.load(starts + row, mask=live_row, other=0)[:, None] != 0


@triton.jit(do_not_specialize=["first", "last", "T"])
def lstm_forward(
    x,  # [T, B, 4H]
    u,  # [H, 4H], in the type of the products
    made,  # [B, 4H], the product of the one step that is to be done; None: do the products here
    peephole,  # [3, H] or None
    mask,  # [T, B, H] or [1, B, H] or None
    starts,  # [T, B] bytes or None
    h,  # [T + 1, B, H], its first step there
    entered,  # [T, B, H], h̄ in the type of the products, its first step there
    c,  # [T + 1, B, H], its first step there
    gates,  # [T, B, 4H]
    first,  # step
    last,  # step, itself not done
    T,
    B,
    mask_rows,  # from one step of the mask to the next
    H: tl.constexpr,
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`grimmgen.network.cells.lstm.forward` and `peephole.forward`; fills in what is said to lack all but a first step."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_row = rows < B
    for t in range(first, last):
        step = tl.cast(t, tl.int64)
        row = step * B + rows
        more = live_row & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            live_unit = units < H
            live = live_row[:, None] & live_unit[None, :]
            at = row[:, None] * H + units[None, :]
            at_z = row[:, None] * (4 * H) + units[None, :]
            z_i = tl.load(x + at_z, mask=live, other=0.0)
            z_f = tl.load(x + at_z + H, mask=live, other=0.0)
            z_c = tl.load(x + at_z + 2 * H, mask=live, other=0.0)
            z_o = tl.load(x + at_z + 3 * H, mask=live, other=0.0)
            c_in = tl.load(c + at, mask=live, other=0.0)
            if starts is not None:
                c_in = tl.where(_starting(starts, row, live_row), 0.0, c_in)  # (1)
            if made is None:
                a_i, a_f, a_c, a_o = _products(
                    entered, row, live_row, u + units, live_unit, H, 4 * H, H, 4, ROWS, UNITS, DEPTH
                )
            else:
                at_a = rows[:, None] * (4 * H) + units[None, :]
                a_i = tl.load(made + at_a, mask=live, other=0.0)
                a_f = tl.load(made + at_a + H, mask=live, other=0.0)
                a_c = tl.load(made + at_a + 2 * H, mask=live, other=0.0)
                a_o = tl.load(made + at_a + 3 * H, mask=live, other=0.0)
            z_i, z_f, z_c, z_o = z_i + a_i, z_f + a_f, z_c + a_c, z_o + a_o  # (2)
            if peephole is not None:
                z_i += c_in * tl.load(peephole + units, mask=live_unit, other=0.0)[None, :]
                z_f += c_in * tl.load(peephole + H + units, mask=live_unit, other=0.0)[None, :]
            i, f, candidate = tl.sigmoid(z_i), tl.sigmoid(z_f), _tanh(z_c)  # (3)
            c_out = f * c_in + i * candidate  # (4)
            if peephole is not None:
                z_o += c_out * tl.load(peephole + 2 * H + units, mask=live_unit, other=0.0)[None, :]
            o = tl.sigmoid(z_o)
            h_out = o * _tanh(c_out)  # (5), with peepholes (6)
            if mask is not None:
                at_mask = (step * mask_rows + rows)[:, None] * H + units[None, :]
                h_out *= tl.load(mask + at_mask, mask=live, other=0.0)
            tl.store(gates + at_z, i, mask=live)
            tl.store(gates + at_z + H, f, mask=live)
            tl.store(gates + at_z + 2 * H, candidate, mask=live)
            tl.store(gates + at_z + 3 * H, o, mask=live)
            tl.store(c + at + B * H, c_out, mask=live)
            tl.store(h + at + B * H, h_out, mask=live)
            if starts is not None:
                h_out = tl.where(_starting(starts, row + B, more), 0.0, h_out)  # (1) of the next step
            going = more[:, None] & live_unit[None, :]
            tl.store(entered + at + B * H, h_out.to(entered.dtype.element_ty), mask=going)
        if made is None:
            # All of a row before any of its next step.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["first", "last", "T"])
def lstm_backward(
    u,  # [H, 4H], in the type of the products
    made,  # [B, H], the product of the one step that is to be done; None: do the products here
    peephole,  # [3, H] or None
    mask,  # [T, B, H] or [1, B, H] or None
    starts,  # [T, B] bytes or None
    c,  # [T + 1, B, H]
    gates,  # [T, B, 4H]
    grad_h,  # [T, B, H]
    d_c,  # [B, H], the gradient by the last cell state
    grad_x,  # [T, B, 4H]
    rounded,  # [T, B, 4H], the same in the type of the products; it may be the same array
    first,  # step, the last to be done
    last,  # step, the one after the first to be done
    T,
    B,
    mask_rows,  # from one step of the mask to the next
    H: tl.constexpr,
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`grimmgen.network.cells.lstm.backward` and `peephole.backward`, up to what is left for the state that entered.

    Fills in `grad_x` and `rounded`; leaves in `d_c` the gradient by the cell state that entered step `first`,
    whether or not a story starts there.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_row = rows < B
    for t in range(first, last):
        step = tl.cast(first + last - 1 - t, tl.int64)
        row = step * B + rows
        more = live_row & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            live_unit = units < H
            live = live_row[:, None] & live_unit[None, :]
            at = row[:, None] * H + units[None, :]
            at_row = rows[:, None] * H + units[None, :]
            at_z = row[:, None] * (4 * H) + units[None, :]
            i = tl.load(gates + at_z, mask=live, other=0.0)
            f = tl.load(gates + at_z + H, mask=live, other=0.0)
            candidate = tl.load(gates + at_z + 2 * H, mask=live, other=0.0)
            o = tl.load(gates + at_z + 3 * H, mask=live, other=0.0)
            c_in = tl.load(c + at, mask=live, other=0.0)
            tanh_c = _tanh(tl.load(c + at + B * H, mask=live, other=0.0))
            d_out = tl.load(grad_h + at, mask=live, other=0.0)
            d = tl.load(d_c + at_row, mask=live, other=0.0)
            if made is None:
                carried, _, _, _ = _products(
                    rounded,
                    row + B,
                    more,
                    u + units * (4 * H),
                    live_unit,
                    4 * H,
                    1,
                    0,
                    1,
                    ROWS,
                    UNITS,
                    DEPTH,
                )
            else:
                carried = tl.load(made + at_row, mask=live, other=0.0)  # (2) of the next step
            if starts is not None:
                starting = _starting(starts, row + B, more)
                carried = tl.where(starting, 0.0, carried)  # (1) of the next step
                d = tl.where(starting, 0.0, d)
                c_in = tl.where(_starting(starts, row, live_row), 0.0, c_in)
            d_h = d_out + carried
            if mask is not None:
                at_mask = (step * mask_rows + rows)[:, None] * H + units[None, :]
                d_h *= tl.load(mask + at_mask, mask=live, other=0.0)  # (5), with peepholes (6)
            d_o = d_h * tanh_c * o * (1.0 - o)
            d += d_h * o * (1.0 - tanh_c * tanh_c)
            if peephole is not None:
                d += d_o * tl.load(peephole + 2 * H + units, mask=live_unit, other=0.0)[None, :]
            d_i = d * candidate * i * (1.0 - i)  # (4), (3)
            d_f = d * c_in * f * (1.0 - f)
            d_candidate = d * i * (1.0 - candidate * candidate)
            d *= f
            if peephole is not None:
                d += d_i * tl.load(peephole + units, mask=live_unit, other=0.0)[None, :]
                d += d_f * tl.load(peephole + H + units, mask=live_unit, other=0.0)[None, :]
            tl.store(d_c + at_row, d, mask=live)
            _store_both(grad_x, rounded, at_z, d_i, live)
            _store_both(grad_x, rounded, at_z + H, d_f, live)
            _store_both(grad_x, rounded, at_z + 2 * H, d_candidate, live)
            _store_both(grad_x, rounded, at_z + 3 * H, d_o, live)
        if made is None:
            tl.debug_barrier()


@triton.jit
def _store_both(exact, rounded, at, value, live):
    """Store a gradient, and once more in another type if there is one."""
    tl.store(exact + at, value, mask=live)
    if rounded.dtype != exact.dtype:
        tl.store(rounded + at, value.to(rounded.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["first", "last", "T"])
def gru_forward(
    x,  # [T, B, 3H]
    u,  # [H, 3H], in the type of the products
    made,  # [B, 3H], the product of the one step that is to be done; None: do the products here
    bias,  # [H]
    mask,  # [T, B, H] or [1, B, H] or None
    starts,  # [T, B] bytes or None
    h,  # [T + 1, B, H], its first step there
    entered,  # [T, B, H], h̄ in the type of the products, its first step there
    s,  # [T, B, H]
    gates,  # [T, B, 3H]
    first,  # step
    last,  # step, itself not done
    T,
    B,
    mask_rows,  # from one step of the mask to the next
    H: tl.constexpr,
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`grimmgen.network.cells.gru.forward`; fills in `s` and `gates`, and what is said to lack all but a first step."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_row = rows < B
    for t in range(first, last):
        step = tl.cast(t, tl.int64)
        row = step * B + rows
        more = live_row & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            live_unit = units < H
            live = live_row[:, None] & live_unit[None, :]
            at = row[:, None] * H + units[None, :]
            at_z = row[:, None] * (3 * H) + units[None, :]
            x_r = tl.load(x + at_z, mask=live, other=0.0)
            x_z = tl.load(x + at_z + H, mask=live, other=0.0)
            x_n = tl.load(x + at_z + 2 * H, mask=live, other=0.0)
            h_in = tl.load(h + at, mask=live, other=0.0)
            if starts is not None:
                h_in = tl.where(_starting(starts, row, live_row), 0.0, h_in)  # (1)
            if made is None:
                a_r, a_z, a_n, _ = _products(
                    entered, row, live_row, u + units, live_unit, H, 3 * H, H, 3, ROWS, UNITS, DEPTH
                )  # (2)
            else:
                at_a = rows[:, None] * (3 * H) + units[None, :]
                a_r = tl.load(made + at_a, mask=live, other=0.0)
                a_z = tl.load(made + at_a + H, mask=live, other=0.0)
                a_n = tl.load(made + at_a + 2 * H, mask=live, other=0.0)
            r, z = tl.sigmoid(x_r + a_r), tl.sigmoid(x_z + a_z)  # (3)
            scaled = a_n + tl.load(bias + units, mask=live_unit, other=0.0)[None, :]  # (4)
            n = _tanh(x_n + r * scaled)  # (5)
            h_out = n + z * (h_in - n)  # (6)
            if mask is not None:
                at_mask = (step * mask_rows + rows)[:, None] * H + units[None, :]
                h_out *= tl.load(mask + at_mask, mask=live, other=0.0)
            tl.store(gates + at_z, r, mask=live)
            tl.store(gates + at_z + H, z, mask=live)
            tl.store(gates + at_z + 2 * H, n, mask=live)
            tl.store(s + at, scaled, mask=live)
            tl.store(h + at + B * H, h_out, mask=live)
            if starts is not None:
                h_out = tl.where(_starting(starts, row + B, more), 0.0, h_out)  # (1) of the next step
            going = more[:, None] & live_unit[None, :]
            tl.store(entered + at + B * H, h_out.to(entered.dtype.element_ty), mask=going)
        if made is None:
            tl.debug_barrier()


@triton.jit(do_not_specialize=["first", "last", "T"])
def gru_backward(
    u,  # [H, 3H], in the type of the products
    made,  # [B, H], the product of the one step that is to be done; None: do the products here
    mask,  # [T, B, H] or [1, B, H] or None
    starts,  # [T, B] bytes or None
    h,  # [T + 1, B, H]
    s,  # [T, B, H]
    gates,  # [T, B, 3H]
    grad_h,  # [T, B, H]
    through,  # [B, H], zeros: what goes on past the gates, d_h z
    grad_x,  # [T, B, 3H]
    grad_a,  # [T, B, 3H], in the type of the products
    first,  # step, the last to be done
    last,  # step, the one after the first to be done
    T,
    B,
    mask_rows,  # from one step of the mask to the next
    H: tl.constexpr,
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """`grimmgen.network.cells.gru.backward`, up to what is left for the state that entered; fills in both gradients."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_row = rows < B
    for t in range(first, last):
        step = tl.cast(first + last - 1 - t, tl.int64)
        row = step * B + rows
        more = live_row & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            live_unit = units < H
            live = live_row[:, None] & live_unit[None, :]
            at = row[:, None] * H + units[None, :]
            at_row = rows[:, None] * H + units[None, :]
            at_z = row[:, None] * (3 * H) + units[None, :]
            r = tl.load(gates + at_z, mask=live, other=0.0)
            z = tl.load(gates + at_z + H, mask=live, other=0.0)
            n = tl.load(gates + at_z + 2 * H, mask=live, other=0.0)
            scaled = tl.load(s + at, mask=live, other=0.0)
            h_in = tl.load(h + at, mask=live, other=0.0)
            d_out = tl.load(grad_h + at, mask=live, other=0.0)
            carried = tl.load(through + at_row, mask=live, other=0.0)  # (6) of the next step
            if made is None:
                product, _, _, _ = _products(
                    grad_a,
                    row + B,
                    more,
                    u + units * (3 * H),
                    live_unit,
                    3 * H,
                    1,
                    0,
                    1,
                    ROWS,
                    UNITS,
                    DEPTH,
                )
            else:
                product = tl.load(made + at_row, mask=live, other=0.0)
            carried += product  # (2) of the next step
            if starts is not None:
                carried = tl.where(_starting(starts, row + B, more), 0.0, carried)  # (1) of the next step
                h_in = tl.where(_starting(starts, row, live_row), 0.0, h_in)
            d_h = d_out + carried
            if mask is not None:
                at_mask = (step * mask_rows + rows)[:, None] * H + units[None, :]
                d_h *= tl.load(mask + at_mask, mask=live, other=0.0)  # (6)
            d_z = d_h * (h_in - n) * z * (1.0 - z)
            d_x_n = d_h * (1.0 - z) * (1.0 - n * n)  # (5)
            d_r = d_x_n * scaled * r * (1.0 - r)  # (3)
            tl.store(through + at_row, d_h * z, mask=live)
            tl.store(grad_x + at_z, d_r, mask=live)
            tl.store(grad_x + at_z + H, d_z, mask=live)
            tl.store(grad_x + at_z + 2 * H, d_x_n, mask=live)
            tl.store(grad_a + at_z, d_r.to(grad_a.dtype.element_ty), mask=live)
            tl.store(grad_a + at_z + H, d_z.to(grad_a.dtype.element_ty), mask=live)
            tl.store(grad_a + at_z + 2 * H, (d_x_n * r).to(grad_a.dtype.element_ty), mask=live)
        if made is None:
            tl.debug_barrier()


@triton.jit
def softmax(
    logits,  # [N, V], without the bias
    bias,  # [V]
    targets,  # [N]
    losses,  # [N], to be filled in
    gradient,  # [N, V], to be filled in, of the losses' sum times the scale; it may be `logits`; None: not wanted
    scale,
    V,
    BLOCK: tl.constexpr,  # columns at a time
):
    """(1) and (2) of `grimmgen.network.loss`: a row a program."""
    row = tl.cast(tl.program_id(0), tl.int64)
    target = tl.load(targets + row)
    highest = float("-inf")
    total = 0.0
    for begin in range(0, V, BLOCK):
        at = begin + tl.arange(0, BLOCK)
        y = tl.load(logits + row * V + at, mask=at < V, other=float("-inf"))
        y += tl.load(bias + at, mask=at < V, other=0.0)
        top = tl.maximum(highest, tl.max(y, axis=0))
        total = total * tl.exp(highest - top) + tl.sum(tl.exp(y - top), axis=0)
        highest = top
    # Nothing is read where there is no target, and a target that does not exist costs no number.
    there = (target >= 0) & (target < V)
    at_target = tl.load(logits + row * V + target, mask=there, other=float("nan"))
    at_target += tl.load(bias + target, mask=there, other=0.0)
    tl.store(losses + row, tl.where(target < 0, 0.0, highest - at_target + tl.log(total)))  # (1)
    if gradient is not None:
        # Where the gradient replaces the logits, the target's is to have been read before any is replaced.
        tl.debug_barrier()
        scale = tl.where(target < 0, 0.0, scale)
        for begin in range(0, V, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            y = tl.load(logits + row * V + at, mask=at < V, other=float("-inf"))
            y += tl.load(bias + at, mask=at < V, other=0.0)
            p = tl.exp(y - highest) / total
            d = (p - tl.where(at == target, 1.0, 0.0)) * scale  # (2)
            tl.store(gradient + row * V + at, d.to(gradient.dtype.element_ty), mask=at < V)


@triton.jit
def adamw(weight, gradient, m, v, norm, numbers, count, BLOCK: tl.constexpr):
    """A step of `grimmgen.network.optimiser.AdamW`, in place; `numbers` as of its `step_there`."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = at < count
    w = tl.load(weight + at, mask=live, other=0.0)
    g = tl.load(gradient + at, mask=live, other=0.0)
    mean = tl.load(m + at, mask=live, other=0.0)
    square = tl.load(v + at, mask=live, other=0.0)
    g *= tl.minimum(1.0, tl.load(numbers) / (tl.load(norm).to(tl.float32) + 1e-6))  # (1)
    mean += tl.load(numbers + 1) * (g - mean)  # (2)
    square = tl.load(numbers + 2) * square + tl.load(numbers + 3) * g * g
    w *= tl.load(numbers + 4)  # (3)
    w -= tl.load(numbers + 5) * mean / (tl.sqrt(square) * tl.load(numbers + 6) + tl.load(numbers + 7))  # (4)
    tl.store(weight + at, w, mask=live)
    tl.store(m + at, mean, mask=live)
    tl.store(v + at, square, mask=live)
