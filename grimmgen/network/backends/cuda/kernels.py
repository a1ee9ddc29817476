"""Triton kernels of the softmax layer, dropout masks and the optimiser; `recurrence.py` has those of the cells.

N  predictions    V  vocabulary size
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softmax(
    logits,  # [N, V], without the bias
    bias,  # [V]
    targets,  # [N]: negative for a row without a loss
    losses,  # [N]: written
    gradient,  # [N, V]: written, by the logits, of the losses' sum times the scale; may be `logits`; None for none
    scale,
    V,
    BLOCK: tl.constexpr,  # columns read at once
):
    """(1) and (2) of `ReferenceBackend.cross_entropy`, one row per program."""
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
    # A target outside of the vocabulary has a loss of NaN; nothing is read there.
    in_vocabulary = (target >= 0) & (target < V)
    at_target = tl.load(logits + row * V + target, mask=in_vocabulary, other=float("nan"))
    at_target += tl.load(bias + target, mask=in_vocabulary, other=0.0)
    tl.store(losses + row, tl.where(target < 0, 0.0, highest - at_target + tl.log(total)))  # (1)
    if gradient is not None:
        # The gradient may replace the logits: the target's is read before any is replaced.
        tl.debug_barrier()
        scale = tl.where(target < 0, 0.0, scale)
        for begin in range(0, V, BLOCK):
            at = begin + tl.arange(0, BLOCK)
            y = tl.load(logits + row * V + at, mask=at < V, other=float("-inf"))
            y += tl.load(bias + at, mask=at < V, other=0.0)
            p = tl.exp(y - highest) / total
            d = (p - tl.where(at == target, 1.0, 0.0)) * scale  # (2)
            tl.store(gradient + row * V + at, d.to(gradient.dtype.element_ty), mask=at < V)


@triton.jit(do_not_specialize=["seed", "threshold"])
def dropout_mask(mask, seed, threshold, scale, count, BLOCK: tl.constexpr):
    """`ReferenceBackend.dropout_mask`, of `count` elements; `threshold` is a uint32, `seed` an int64 in memory."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(seed)
    x = at.to(tl.uint32) ^ word.to(tl.uint32)
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15) ^ (word >> 32).to(tl.uint32)) * 0x846CA68B
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    kept = (x ^ (x >> 16)) < tl.cast(threshold, tl.uint32)
    tl.store(mask + at, tl.where(kept, scale, 0.0), mask=at < count)


@triton.jit
def adam(
    weight,  # [count]: updated
    gradient,  # [count]
    m,  # [count]: updated
    v,  # [count]: updated
    numbers,  # float64 [8]: the gradient's scale, or its largest norm; those of `AdamW.advance`
    loss_and_norm,  # float64 [2]: nothing is updated unless both are finite; None where the scale is known
    count,
    BLOCK: tl.constexpr,
):
    """One step of Adam; the equations are those of `grimmgen.network.optimiser`."""
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    scale = tl.load(numbers)
    if loss_and_norm is not None:
        loss, norm = tl.load(loss_and_norm), tl.load(loss_and_norm + 1)
        # In float64, as `clip_scale` computes it, so that captured and eager steps agree to the bit.
        scale = tl.minimum(1.0, scale / (norm + 1e-6))
        # The sum is finite only if both are; NaN compares as false.
        count = tl.where(tl.abs(loss) + norm < float("inf"), count, 0)
    live = at < count
    w = tl.load(weight + at, mask=live, other=0.0)
    g = tl.load(gradient + at, mask=live, other=0.0)
    mean = tl.load(m + at, mask=live, other=0.0)
    square = tl.load(v + at, mask=live, other=0.0)
    g *= scale.to(tl.float32)  # (1)
    mean += tl.load(numbers + 1).to(tl.float32) * (g - mean)  # (2)
    square = tl.load(numbers + 2).to(tl.float32) * square + tl.load(numbers + 3).to(tl.float32) * g * g
    w *= tl.load(numbers + 4).to(tl.float32)  # (3)
    pace, root, epsilon = tl.load(numbers + 5), tl.load(numbers + 6), tl.load(numbers + 7)
    w -= pace.to(tl.float32) * mean / (tl.sqrt(square) * root.to(tl.float32) + epsilon.to(tl.float32))  # (4)
    tl.store(weight + at, w, mask=live)
    tl.store(m + at, mean, mask=live)
    tl.store(v + at, square, mask=live)
