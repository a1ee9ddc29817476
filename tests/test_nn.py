"""The cells as modules: results of PyTorch's own, and the operations that they run on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import grimmgen.nn
from grimmgen.nn import GRU, LSTM


@pytest.mark.parametrize(("ours", "theirs"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
@pytest.mark.parametrize("batch_first", [False, True])
def test_module_equals_that_of_pytorch(ours: Any, theirs: Any, batch_first: bool) -> None:
    torch.manual_seed(0)
    modules = [kind(3, 5, 2, batch_first=batch_first) for kind in (theirs, ours)]
    modules[1].load_state_dict(modules[0].state_dict())
    x, upstream = torch.randn(4, 6, 3), torch.randn(4, 6, 5)
    results: list[list[Tensor | None]] = []
    for module in modules:
        inputs = x.clone().requires_grad_()
        hidden, last = module(inputs)
        (hidden * upstream).sum().backward()
        last = last if isinstance(last, tuple) else (last,)
        results.append([hidden, *last, inputs.grad, *(weight.grad for weight in module.parameters())])
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_kernels_for_gpus_are_not_used_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:  # fault 54
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("kernels were chosen")

    monkeypatch.setattr(grimmgen.nn, "choose_backend", refuse)
    hidden, _ = LSTM(3, 5, device="meta")(torch.empty(4, 6, 3, device="meta"))
    assert hidden.shape == (4, 6, 5)
