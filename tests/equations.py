"""The equations of every cell, one step of operations that PyTorch differentiates by itself."""

from __future__ import annotations

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


def lstm_step(x: Tensor, u: Tensor, h: Tensor, c: Tensor) -> Tensors:
    i, f, candidate, o = (x + h @ u).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
    return torch.sigmoid(o) * torch.tanh(c), c


def peephole_step(x: Tensor, u: Tensor, p: Tensor, h: Tensor, c: Tensor) -> Tensors:
    i, f, candidate, o = (x + h @ u).chunk(4, dim=1)
    c = torch.sigmoid(f + p[1] * c) * c + torch.sigmoid(i + p[0] * c) * torch.tanh(candidate)
    return torch.sigmoid(o + p[2] * c) * torch.tanh(c), c


def gru_step(x: Tensor, u: Tensor, b: Tensor, h: Tensor) -> Tensors:
    (x_r, x_z, x_n), (h_r, h_z, h_n) = x.chunk(3, dim=1), (h @ u).chunk(3, dim=1)
    z = torch.sigmoid(x_z + h_z)
    return ((1 - z) * torch.tanh(x_n + torch.sigmoid(x_r + h_r) * (h_n + b)) + z * h,)


def mogrifier_step(
    x: Tensor, w: Tensor, b: Tensor, u: Tensor, q: Tensor, r: Tensor, h: Tensor, c: Tensor
) -> Tensors:
    for number in range(1, len(q) + len(r) + 1):
        if number % 2 == 1:
            x = 2 * torch.sigmoid(h @ q[number // 2]) * x
        else:
            h = 2 * torch.sigmoid(x @ r[number // 2 - 1]) * h
    return lstm_step(x @ w + b, u, h, c)
