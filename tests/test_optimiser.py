"""The optimiser against PyTorch's, on the reference backend and on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from grimmgen.network.backends.cpu import library, program
from grimmgen.network.backends.cpu.backend import CPUBackend
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.optimiser import AdamW, clip_scale

BACKENDS: dict[str, Any] = {
    "reference": ReferenceBackend(),
    **{name: CPUBackend(found) for name, found in library.instruction_sets().items()},
}
COMPILED = [name for name in BACKENDS if name != "reference"]
SHAPES = [(1,), (7, 3), (129,), (0, 4), (300, 100), (700, 800)]


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def ours(name: str, dtype: torch.dtype, clip: float) -> list[Tensor]:
    """The weights and both moments after four steps; the third gradient is zero from the second step on."""
    backend = BACKENDS[name]
    weights = {str(number): weight.to(dtype) for number, weight in enumerate(draw(0))}
    optimiser = AdamW(weights.items(), 0.1)
    for step in range(4):
        gradients = dict(zip(weights, (gradient.to(dtype) for gradient in draw(step + 1)), strict=True))
        if step:
            gradients["2"].zero_()
        scale = clip_scale(clip, float(backend.norm(gradients.values())))
        backend.adam(optimiser.tensors(gradients), [scale, *optimiser.advance(0.01 / (step + 1))])
    assert optimiser.steps == 4
    return [*weights.values(), *optimiser.exp_avg.values(), *optimiser.exp_avg_sq.values()]


def theirs(clip: float) -> list[Tensor]:
    weights = [weight.double().requires_grad_() for weight in draw(0)]
    optimiser = torch.optim.AdamW(weights, weight_decay=0.1)
    for step in range(4):
        for number, (weight, gradient) in enumerate(zip(weights, draw(step + 1), strict=True)):
            weight.grad = gradient.double() * (number != 2 or step == 0)
        optimiser.param_groups[0]["lr"] = 0.01 / (step + 1)
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimiser.step()
    moments = [[optimiser.state[weight][name] for weight in weights] for name in ("exp_avg", "exp_avg_sq")]
    return [tensor.detach() for tensor in (*weights, *moments[0], *moments[1])]


@pytest.mark.parametrize("clip", [1.0, 1e6])
@pytest.mark.parametrize("name", BACKENDS)
def test_steps_agree_with_torch(name: str, clip: float) -> None:
    made, right = ours(name, torch.float32, clip), theirs(clip)
    for begin in range(0, len(made), len(SHAPES)):
        # The weights, their m, their v. What almost cancels is as exact as what was added.
        typical = right[begin + len(SHAPES) - 1].square().mean().sqrt()
        for a, b in zip(made[begin : begin + len(SHAPES)], right[begin:], strict=False):
            assert a.shape == b.shape
            assert (a.double() - b).norm() <= 1e-6 * b.norm() + 1e-6 * typical * b.numel() ** 0.5


def test_float64_steps_agree_with_torch_exactly() -> None:
    for made, right in zip(ours("reference", torch.float64, 1.0), theirs(1.0), strict=True):
        assert (made - right).norm() <= 1e-13 * right.norm()


@pytest.mark.parametrize("name", COMPILED)
def test_steps_do_not_depend_on_the_threads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_FEW", 1)
    made = []
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        made.append(ours(name, torch.float32, 1.0))
    assert all(torch.equal(a, b) for other in made[1:] for a, b in zip(made[0], other, strict=True))


@pytest.mark.parametrize("name", BACKENDS)
def test_norm_of_a_gradient_that_is_not_finite(name: str) -> None:
    for wrong in (float("nan"), float("inf")):
        gradient = torch.ones(20)
        gradient[17] = wrong
        assert not torch.tensor(float(BACKENDS[name].norm([gradient]))).isfinite()
    assert float(BACKENDS[name].norm([torch.zeros(3)])) == 0.0


@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_may_be_strided(name: str) -> None:
    gradient = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)).T
    weights, backend = [torch.zeros(30, 40), torch.zeros(30, 40)], BACKENDS[name]
    for weight, given in zip(weights, (gradient, gradient.contiguous()), strict=True):
        optimiser = AdamW([("weight", weight)])
        scale = clip_scale(1.0, float(backend.norm([given])))
        backend.adam(optimiser.tensors({"weight": given}), [scale, *optimiser.advance(0.1)])
    assert weights[0].any()
    assert torch.equal(*weights)


def test_clip_scale() -> None:
    assert clip_scale(5.0, 0.0) == clip_scale(5.0, 4.9) == 1.0
    assert clip_scale(5.0, 50.0) == pytest.approx(0.1)
