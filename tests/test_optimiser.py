"""The optimiser against PyTorch's, on the plain path and on every instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from grimmgen.network.backends.cpu import library, programs
from grimmgen.network.optimiser import AdamW

PATHS = ["plain", *library.instruction_sets()]
SHAPES = [(1,), (7, 3), (129,), (0, 4), (300, 100), (700, 800)]


def drawn(seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=draw, dtype=dtype) for shape in SHAPES]


def ours(path: str, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, clip: float) -> list[Tensor]:
    """The weights and both moments after a few steps; the third weight has a gradient in the first one only."""
    monkeypatch.setenv("GRIMMGEN_KERNEL", path)
    weights = [weight.to(dtype).requires_grad_() for weight in drawn(0)]
    optimiser = AdamW(weights, 0.1)
    for step in range(4):
        optimiser.zero_gradient()
        for number, (weight, gradient) in enumerate(zip(weights, drawn(step + 1), strict=True)):
            if number != 2 or step == 0:
                weight.grad = gradient.to(dtype)
        optimiser.step(0.01 / (step + 1), clip, optimiser.norm())
    assert optimiser.steps == 4
    return [t.detach() for t in (*weights, *optimiser.exp_avg, *optimiser.exp_avg_sq)]


def theirs(clip: float) -> list[Tensor]:
    weights = [weight.double().requires_grad_() for weight in drawn(0)]
    optimiser = torch.optim.AdamW(weights, weight_decay=0.1)
    for step in range(4):
        optimiser.zero_grad()
        for number, (weight, gradient) in enumerate(zip(weights, drawn(step + 1), strict=True)):
            if number != 2 or step == 0:
                weight.grad = gradient.double()
        optimiser.param_groups[0]["lr"] = 0.01 / (step + 1)
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimiser.step()
    moments = [[optimiser.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq")]
    # There a weight's own steps are counted, here all of them; after the first they are the same.
    return [t.detach() for t in (*weights, *moments[0], *moments[1])]


@pytest.mark.parametrize("clip", [1.0, 1e6])
@pytest.mark.parametrize("path", PATHS)
def test_steps_are_those_of_torch(path: str, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    made, right = ours(path, monkeypatch, torch.float32, clip), theirs(clip)
    assert [a.shape for a in made] == [b.shape for b in right]
    for begin in range(0, len(made), len(SHAPES)):
        # The weights, their m, their v; what has cancelled in a small one is as exact as what it was made of.
        typical = right[begin + len(SHAPES) - 1].square().mean().sqrt()
        for a, b in zip(made[begin : begin + len(SHAPES)], right[begin:], strict=False):
            assert (a.double() - b).norm() <= 1e-6 * b.norm() + 1e-6 * typical * b.numel() ** 0.5


def test_in_float64_they_are_exactly_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for made, right in zip(ours("native", monkeypatch, torch.float64, 1.0), theirs(1.0), strict=True):
        assert (made - right).norm() <= 1e-13 * right.norm()


@pytest.mark.parametrize("path", PATHS[1:])
def test_steps_are_the_same_with_any_number_of_threads(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(programs, "_FEW", 1)
    made = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        made.append(ours(path, monkeypatch, torch.float32, 1.0))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("path", PATHS)
def test_a_gradient_that_is_not_finite_has_no_finite_norm(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", path)
    weight = torch.zeros(20)
    for wrong in (float("nan"), float("inf")):
        weight.grad = torch.ones(20)
        weight.grad[17] = wrong
        assert not torch.tensor(AdamW([weight]).norm()).isfinite()
    assert AdamW([torch.zeros(3)]).norm() == 0.0


def test_a_gradient_need_not_be_contiguous() -> None:
    weights = [torch.zeros(30, 40), torch.zeros(30, 40)]
    gradient = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).T
    for weight, given in zip(weights, (gradient, gradient.contiguous()), strict=True):
        weight.grad = given
        optimiser = AdamW([weight])
        optimiser.step(0.1, 1.0, optimiser.norm())
    assert torch.equal(*weights)
