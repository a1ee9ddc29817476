"""The matrix product of the plain path, by the faster of the two libraries that PyTorch carries for a CPU.

For float32 `torch.mm` asks MKL, which reaches 150-190 GFLOP/s on two cores of a processor that is not its
maker's; oneDNN reaches twice that, and PyTorch's own compiler reaches it through the operation used here.
Where that operation is absent, and for every other type or device, this is `torch.mm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch._C._has_mkldnn else None


def product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two matrices, [N, K] and [K, M], either of which may be a transposed view: [N, M]."""
    if _ONEDNN is None or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.mm(a, b)
    result: Tensor = _ONEDNN(a, b.t(), None, "none", [], "")
    return result
