"""The recurrence over a window on a GPU: one Triton kernel forward and one backward, for every cell.

The kernels take a cell's pointwise functions as parameters. The Triton module of a cell (`lstm_triton.py` beside
`lstm.py`) has

    pointwise_forward(x, a, state, weights) -> new_state, saved
    pointwise_backward(saved, state, new_state, weights, d_state) -> d_x, d_a, d_state, d_weights
    SAVED           the number of arrays [B, H] that a time step saves
    SAME_GRADIENTS  whether d_x and d_a, the gradients by x and by the recurrent product a, are the same
    H_CARRIED       whether h reaches the new state by another path than the recurrent product

The functions compute what those of `CellSpec` do, on tuples of tiles: one for each gate, state, saved array or row
of the extra weights. `new_state` is the state after dropout. Without a recurrent product, `a` is None and d_a is
unused.

A program has some rows and loops over the time steps. Rows are independent, so programs never wait for each other;
a program reads at each time step what it wrote at the one before. The recurrent product is computed inside, from
weights that stay in the second-level cache, or by the vendor's library between launches of one time step each.

    T  time steps    B  batch rows    H  hidden units    G  gates    S  states
    ROWS, UNITS  rows and columns of a tile    DEPTH  how much of a product's inner dimension is read at once
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators, disable-error-code="assignment"

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from grimmgen.network.cells import CellSpec, Sizes

# Bytes of the largest recurrent weight that every program may read at each time step: from the second-level cache
# that takes about as long (2 µs, at 64 bytes a cycle) as the two launches of a time step. Estimated, not measured.
_SMALL_WEIGHT = 1 << 18
# Programs that may do so at once, one to a multiprocessor; they share the second-level cache.
_MOST_PROGRAMS = 128
# Of every launch: the default differs between versions of Triton.
LAUNCH_OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}


@dataclass(frozen=True)
class LaunchConfig:
    """How the recurrence over a window is divided into launches, programs and tiles.

    Attributes:
        whole_window: one launch for all time steps; otherwise one for each.
        product_inside: the kernels compute the recurrent product, and a program has all units of its rows;
            otherwise it has one tile of them.
        rows: of a tile. With one row products are float32 multiply-adds; with more they run on the tensor cores.
        units: of a tile.
        depth: how much of a product's inner dimension is read at once. The backward pass of one row reads twice as
            much: it has one product, not G. Chosen so that no kernel spills registers (tests/test_gpu_kernels.py).
        warps: of a program.
    """

    whole_window: bool
    product_inside: bool
    rows: int
    units: int
    depth: int
    warps: int


def launch_config(B: int, H: int, gates: int, arithmetic: str | None) -> LaunchConfig:
    """The launch configuration for a window.

    It determines the order of summation, so it depends on nothing that could differ between two runs of a model.

    Args:
        B: batch rows.
        H: hidden units.
        gates: G.
        arithmetic: of the recurrent product, `ieee`, `tf32` or `bf16`; None for a cell that has none.
    """
    units = triton.next_power_of_2(H)
    if arithmetic is None:
        return LaunchConfig(True, False, 1, min(units, 512), 0, 4)
    # The tensor cores have no float32 multiplication.
    rows = 1 if arithmetic == "ieee" else 16
    weight_bytes = gates * H * H * (2 if arithmetic == "bf16" else 4)
    if weight_bytes > _SMALL_WEIGHT or triton.cdiv(B, rows) > _MOST_PROGRAMS:
        return LaunchConfig(False, False, 1, min(units, 512), 0, 4)
    return LaunchConfig(True, True, rows, max(16, min(units, 128)), 32 if arithmetic == "bf16" else 16, 8)


def constants(cell: CellSpec, pointwise: Any, config: LaunchConfig, H: int, backward: bool) -> dict[str, Any]:
    """The constants with which a kernel is compiled, by their names; see `Recurrence`."""
    blocks = triton.cdiv(H, config.units)
    shared = {
        "H": H,
        "G": len(cell.gates),
        "S": len(cell.states),
        "SAVED": pointwise.SAVED,
        "EXTRA": sum(math.prod(shape) for shape in cell.extra_weights(Sizes(H, 0, 0)).values()) // H,
        "SPAN": config.units * blocks if config.product_inside else config.units,
        "ROWS": config.rows,
        "UNITS": config.units,
        "DEPTH": 2 * config.depth if backward and config.rows == 1 else config.depth,
    }
    if not backward:
        return {**shared, "pointwise_forward": pointwise.pointwise_forward}
    first_carried = 0 if pointwise.H_CARRIED else 1
    return {**shared, "pointwise_backward": pointwise.pointwise_backward, "FIRST_CARRIED": first_carried}


class Recurrence:
    """The kernels of a cell for windows of one size.

    Args:
        cell: the cell.
        pointwise: its Triton module.
        T: time steps.
        B: batch rows.
        H: hidden units.
        arithmetic: see `launch_config`.
        mask_stride: rows from one time step of the dropout mask to the next: B, or 0 for one mask.
    """

    def __init__(
        self, cell: CellSpec, pointwise: Any, T: int, B: int, H: int, arithmetic: str | None, mask_stride: int
    ) -> None:
        self.T, self.B, self.H = T, B, H
        self.config = config = launch_config(B, H, len(cell.gates), arithmetic)
        self._mask_stride = mask_stride
        self._constants = [constants(cell, pointwise, config, H, backward) for backward in (False, True)]
        blocks = 1 if config.product_inside else triton.cdiv(H, config.units)
        self._grid = (triton.cdiv(B, config.rows), blocks)

    def forward(self, *arrays: Tensor | None, first: int, last: int) -> None:
        """Launch `recurrence_forward` with its arrays, from x to saved."""
        self._launch(recurrence_forward, self._constants[0], arrays, first, last)

    def backward(self, *arrays: Tensor | None, first: int, last: int) -> None:
        """Launch `recurrence_backward` with its arrays, from u to d_a."""
        self._launch(recurrence_backward, self._constants[1], arrays, first, last)

    def _launch(
        self, kernel: Any, constants: dict[str, Any], arrays: tuple[Tensor | None, ...], first: int, last: int
    ) -> None:
        numbers = (first, last, self.T, self.B, self._mask_stride)
        kernel[self._grid](*arrays, *numbers, **constants, num_warps=self.config.warps, **LAUNCH_OPTIONS)


@triton.jit(do_not_specialize=["first", "last", "T"])
def recurrence_forward(
    x,  # [T, B, GH]: the input's share of the gates, with the bias
    u,  # [H, GH] in the product's type: the recurrent weight; None without a recurrent product
    product,  # [B, GH]: the recurrent product of the only time step; None to compute it here
    extra,  # [EXTRA, H]: the extra weights, or None
    mask,  # [T, B, H], [1, B, H] or None: the dropout mask of h
    resets,  # [T, B] uint8, or None
    states,  # [S, T + 1, B, H]: those of time step `first` are read, the others written
    h_in,  # [T, B, H] in the product's type: h after resets; likewise; None without a recurrent product
    saved,  # [T, B, SAVED, H]: written
    first,  # time step
    last,  # time step after the last one of this launch
    T,
    B,
    mask_stride,  # rows from one time step of the mask to the next: B, or 0 for the same mask
    pointwise_forward: tl.constexpr,  # of the cell
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Run a cell through time steps `first` to `last`; see `ReferenceBackend.layer`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < B
    state_stride = (tl.cast(T, tl.int64) + 1) * B * H
    for t in range(first, last):
        step = tl.cast(t, tl.int64)
        row = step * B + rows
        next_mask = row_mask & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            unit_mask = units < H
            tile_mask = row_mask[:, None] & unit_mask[None, :]
            at = row[:, None] * H + units[None, :]
            x_t = _load(x + row[:, None] * (G * H) + units[None, :], H, tile_mask, G)
            state = _load(states + at, state_stride, tile_mask, S)
            if resets is not None:
                state = _zero_where(_is_reset(resets, row, row_mask), state, S)
            if u is None:
                a = None
            elif product is None:
                a = _products(h_in, row, row_mask, u + units, unit_mask, H, G * H, H, G, ROWS, UNITS, DEPTH)
            else:
                a = _load(product + rows[:, None] * (G * H) + units[None, :], H, tile_mask, G)
            weights = ()
            if extra is not None:
                weights = _load(extra + units[None, :], H, unit_mask[None, :], EXTRA)
            new_state, saved_t = pointwise_forward(x_t, a, state, weights)
            h = new_state[0]
            if mask is not None:
                at_mask = (step * mask_stride + rows)[:, None] * H + units[None, :]
                h *= tl.load(mask + at_mask, mask=tile_mask, other=0.0)
            for k in tl.static_range(SAVED):
                tl.store(saved + row[:, None] * (SAVED * H) + k * H + units[None, :], saved_t[k], mask=tile_mask)
            for k in tl.static_range(1, S):
                tl.store(states + k * state_stride + at + B * H, new_state[k], mask=tile_mask)
            tl.store(states + at + B * H, h, mask=tile_mask)
            if h_in is not None:
                if resets is not None:
                    h = tl.where(_is_reset(resets, row + B, next_mask), 0.0, h)
                next_tile_mask = next_mask[:, None] & unit_mask[None, :]
                tl.store(h_in + at + B * H, h.to(h_in.dtype.element_ty), mask=next_tile_mask)
        if product is None:
            # The next time step reads what other threads of the program have written.
            tl.debug_barrier()


@triton.jit(do_not_specialize=["first", "last", "T"])
def recurrence_backward(
    u,  # [H, GH] in the product's type: the recurrent weight; None without a recurrent product
    product,  # [B, H]: d_a Uᵀ of the time step after the only one; None to compute it here
    extra,  # [EXTRA, H]: the extra weights, or None
    mask,  # [T, B, H], [1, B, H] or None: the dropout mask of h
    resets,  # [T, B] uint8, or None
    states,  # [S, T + 1, B, H]: of the forward pass
    saved,  # [T, B, SAVED, H]: of the forward pass
    d_h,  # [T, B, H]: the gradients by the hidden states
    d_states,  # [S, B, H]: before, the gradients by the states after the window's part; after, by those before it,
    # without the path of h through the recurrent product, and before they are zeroed where there is a reset
    d_extra,  # [B, EXTRA, H]: the gradients by the extra weights are added, for each row; or None
    d_x,  # [T, B, GH]: written, the gradients by x
    d_a,  # [T, B, GH] in the product's type: written, those by the recurrent product; None where d_x has them
    first,  # the lowest time step, computed last
    last,  # one above the highest time step, which is computed first
    T,
    B,
    mask_stride,  # rows from one time step of the mask to the next: B, or 0 for the same mask
    pointwise_backward: tl.constexpr,  # of the cell
    H: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    SAVED: tl.constexpr,
    EXTRA: tl.constexpr,
    FIRST_CARRIED: tl.constexpr,  # 1 where the gradient by h is carried by the recurrent product alone, else 0
    SPAN: tl.constexpr,  # units of a program
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Back-propagate through time steps `last` - 1 down to `first`; see `ReferenceBackend.layer_backward`."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row_mask = rows < B
    state_stride = (tl.cast(T, tl.int64) + 1) * B * H
    d_state_stride = tl.cast(B, tl.int64) * H
    for t in range(first, last):
        step = tl.cast(first + last - 1 - t, tl.int64)
        row = step * B + rows
        next_mask = row_mask & (row + B < tl.cast(T, tl.int64) * B)
        for begin in range(tl.program_id(1) * SPAN, (tl.program_id(1) + 1) * SPAN, UNITS):
            units = begin + tl.arange(0, UNITS)
            unit_mask = units < H
            tile_mask = row_mask[:, None] & unit_mask[None, :]
            at = row[:, None] * H + units[None, :]
            at_row = rows[:, None] * H + units[None, :]
            at_gates = row[:, None] * (G * H) + units[None, :]
            saved_t = _load(saved + row[:, None] * (SAVED * H) + units[None, :], H, tile_mask, SAVED)
            state = _load(states + at, state_stride, tile_mask, S)
            new_state = _load(states + at + B * H, state_stride, tile_mask, S)
            d_h_t = tl.load(d_h + at, mask=tile_mask, other=0.0)
            at_carried = d_states + FIRST_CARRIED * d_state_stride + at_row
            d_state = _load(at_carried, d_state_stride, tile_mask, S - FIRST_CARRIED)
            if u is None:
                d_next = tl.zeros((ROWS, UNITS), tl.float32)
            elif product is None:
                factor = d_x if d_a is None else d_a
                d_next = _products(
                    factor, row + B, next_mask, u + units * (G * H), unit_mask, G * H, 1, 0, 1, ROWS, UNITS, DEPTH
                )[0]
            else:
                d_next = tl.load(product + at_row, mask=tile_mask, other=0.0)
            if FIRST_CARRIED == 0:
                d_next += d_state[0]
                d_state = d_state[1:]
            d_state = (d_next,) + d_state  # noqa: RUF005 - Triton has no starred expressions
            if resets is not None:
                state = _zero_where(_is_reset(resets, row, row_mask), state, S)
                d_state = _zero_where(_is_reset(resets, row + B, next_mask), d_state, S)
            d_h_t += d_state[0]
            if mask is not None:
                at_mask = (step * mask_stride + rows)[:, None] * H + units[None, :]
                d_h_t *= tl.load(mask + at_mask, mask=tile_mask, other=0.0)
            d_state = (d_h_t,) + d_state[1:]  # noqa: RUF005
            weights = ()
            if extra is not None:
                weights = _load(extra + units[None, :], H, unit_mask[None, :], EXTRA)
            d_x_t, d_a_t, d_state, d_weights = pointwise_backward(saved_t, state, new_state, weights, d_state)
            for k in tl.static_range(FIRST_CARRIED, S):
                tl.store(d_states + k * d_state_stride + at_row, d_state[k], mask=tile_mask)
            for k in tl.static_range(G):
                tl.store(d_x + at_gates + k * H, d_x_t[k], mask=tile_mask)
            if d_a is not None:
                for k in tl.static_range(G):
                    tl.store(d_a + at_gates + k * H, d_a_t[k].to(d_a.dtype.element_ty), mask=tile_mask)
            for k in tl.static_range(EXTRA):
                at_extra = d_extra + rows[:, None] * (EXTRA * H) + k * H + units[None, :]
                tl.store(at_extra, tl.load(at_extra, mask=tile_mask, other=0.0) + d_weights[k], mask=tile_mask)
        if product is None:
            # The time step before reads what other threads of the program have written.
            tl.debug_barrier()


@triton.jit
def _load(pointers, stride, mask, COUNT: tl.constexpr):
    """COUNT tiles whose addresses are a stride apart."""
    tiles = ()
    for k in tl.static_range(COUNT):
        tiles += (tl.load(pointers + k * stride, mask=mask, other=0.0),)
    return tiles


@triton.jit
def _is_reset(resets, row, row_mask):
    """Whether the state is reset before the time step, [ROWS, 1]."""
    return tl.load(resets + row, mask=row_mask, other=0)[:, None] != 0


@triton.jit
def _zero_where(condition, tiles, COUNT: tl.constexpr):
    """The tiles, zero where the condition holds."""
    kept = ()
    for k in tl.static_range(COUNT):
        kept += (tl.where(condition, 0.0, tiles[k]),)
    return kept


@triton.jit
def _products(
    factor,
    row,
    row_mask,
    columns,
    unit_mask,
    K: tl.constexpr,
    K_STRIDE: tl.constexpr,
    GATE_STRIDE: tl.constexpr,
    GATES: tl.constexpr,
    ROWS: tl.constexpr,
    UNITS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """Products of rows of `factor`, [ROWS, K], with columns of each gate, [K, UNITS]; GATES tiles [ROWS, UNITS].

    `columns` has the addresses of the first gate's, whose elements are K_STRIDE apart; the next gate's are
    GATE_STRIDE further.
    """
    k = tl.arange(0, DEPTH)
    b = columns[None, :] + k[:, None] * K_STRIDE
    sums = ()
    for _ in tl.static_range(GATES):
        sums += (tl.zeros((DEPTH if ROWS == 1 else ROWS, UNITS), tl.float32),)
    if ROWS == 1:
        # One sum for each position of the depth, added up at the end. The loop is unrolled, so that many loads are
        # in flight at a time.
        for begin in tl.static_range(0, K, DEPTH):
            a = tl.load(factor + row * K + (begin + k), mask=row_mask & (begin + k < K), other=0.0)[:, None]
            b_mask = unit_mask[None, :] & (begin + k < K)[:, None]
            added = ()
            for gate in tl.static_range(GATES):
                added += (sums[gate] + a * tl.load(b + gate * GATE_STRIDE, mask=b_mask, other=0.0),)
            sums = added
            b += DEPTH * K_STRIDE
        totals = ()
        for gate in tl.static_range(GATES):
            totals += (tl.sum(sums[gate], axis=0)[None, :],)
        sums = totals
    else:
        # On the tensor cores: bfloat16, or float32 rounded to TF32.
        for begin in range(0, K, DEPTH):
            a_mask = row_mask[:, None] & (begin + k < K)[None, :]
            a = tl.load(factor + row[:, None] * K + (begin + k)[None, :], mask=a_mask, other=0.0)
            b_mask = unit_mask[None, :] & (begin + k < K)[:, None]
            added = ()
            for gate in tl.static_range(GATES):
                b_gate = tl.load(b + gate * GATE_STRIDE, mask=b_mask, other=0.0)
                added += (tl.dot(a, b_gate, sums[gate], input_precision="tf32"),)
            sums = added
            b += DEPTH * K_STRIDE
    return sums
