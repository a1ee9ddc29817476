"""An update on a CPU recorded as a program of the compiled kernel's; test_gpu.py has the CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from grimmgen.network.captured import RecordedUpdate
from torch import Tensor

from grimmgen.configuration import PRESETS, Configuration, Products
from grimmgen.network.backends import COMPILED
from grimmgen.network.backends.cpu import library, native, recording
from tests.learner import Learner, V

INSTRUCTIONS = library.instruction_sets()
pytestmark = pytest.mark.skipif(not INSTRUCTIONS, reason=f"there is no compiled kernel: {library.load()[1]}")

TINY: dict[str, Any] = {"hidden": 24, "batch_size": 5, "unroll": 12, "min_count": 1}
OPTIONS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "layers": {"layers": 3},
    "output": {"dropout_mode": "output", "reset_state": False},
    "no-dropout": {"dropout": 0.0},
    "embedding": {"embedding": 8, "input_dropout": 0.1},
    "all": {
        "layers": 2,
        "embedding": 8,
        "tied": True,
        "dropout_mode": "locked",
        "input_dropout": 0.1,
        "weight_drop": 0.1,
        "weight_decay": 0.1,
    },
    # So large that each thread has a share of everything.
    "large": {"hidden": 300, "layers": 2, "dropout_mode": "locked", "weight_drop": 0.1},
}
PRECISIONS: list[Products] = ["fp32", "bf16"] if library.instruction_sets("bf16") else ["fp32"]


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def equal(made: Learner, right: Learner) -> bool:
    return all(map(torch.equal, made.numbers(), right.numbers()))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("cell", sorted(COMPILED))
def test_a_recorded_update_is_to_the_bit_one_that_is_not(
    cell: str, precision: Products, options: str, count: int
) -> None:
    torch.set_num_threads(count)
    configuration = Configuration(**{**TINY, **OPTIONS[options], "cell": cell})
    plain, recorded, again = (Learner(configuration, precision, captured) for captured in (False, True, True))
    assert isinstance(recorded.captured, RecordedUpdate)
    told = plain.learn(6)
    assert recorded.learn(6) == told
    assert again.learn(6) == told
    assert equal(recorded, plain)
    assert equal(again, plain)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_recorded(preset: str) -> None:
    small: dict[str, Any] = {"batch_size": 3, "unroll": 4, "hidden": 16}
    configuration = Configuration(**{**PRESETS[preset], **small})
    plain, recorded = (Learner(configuration, "fp32", captured) for captured in (False, True))
    assert recorded.learn(3) == plain.learn(3)
    assert equal(recorded, plain)


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_every_instruction_set_records(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(**{**TINY, **OPTIONS["all"], "hidden": 13})
    plain, recorded = (Learner(configuration, "fp32", captured) for captured in (False, True))
    assert recorded.learn(3) == plain.learn(3)
    assert equal(recorded, plain)
    assert isinstance(recorded.captured, RecordedUpdate)
    assert {name.rpartition("_")[2] for name in recorded.captured._gradient.names} == {instructions}


def test_to_record_changes_nothing() -> None:
    learner = Learner(Configuration(**TINY), "fp32", captured=False)
    learner.learn(3)
    before = learner.numbers()
    assert learner.capture()[0] is not None
    assert all(map(torch.equal, learner.numbers(), before))
    assert learner.optimiser.steps == 3


def test_updates_of_both_kinds_go_together_in_one_run() -> None:
    """As in a run whose last window is shorter, or that goes on from a checkpoint, whose state is elsewhere."""
    configuration = Configuration(**{**TINY, **OPTIONS["all"]})
    plain, mixed = (Learner(configuration, "fp32", captured) for captured in (False, True))
    captured = mixed.captured
    assert captured is not None
    told = plain.learn(9)
    made = mixed.learn(3)
    mixed.captured = None
    made += mixed.learn(3, first=3)
    mixed.captured, mixed.state = captured, tuple(part.clone() for part in mixed.state)
    made += mixed.learn(3, first=6)
    assert made == told
    assert equal(mixed, plain)
    window = mixed.window(0)
    assert captured.fits(window)
    assert not captured.fits(window.first(4))


@pytest.mark.parametrize("wrong", [-1, V])
def test_an_id_that_is_none_is_refused_before_memory_is_read_there(wrong: int) -> None:
    learner = Learner(Configuration(**TINY), "fp32", captured=True)
    assert learner.captured is not None
    for place in ("inputs", "targets"):
        window = learner.window(0)
        getattr(window, place)[3, 2] = wrong
        if wrong == -1 and place == "targets":
            continue  # which is none, and no mistake
        before = learner.numbers()
        with pytest.raises(IndexError, match="not within the vocabulary of 21"):
            learner.captured.update(window, learner.state, 0.1)
        assert all(map(torch.equal, learner.numbers(), before))


def test_nothing_is_learnt_from_what_is_not_finite() -> None:
    learner = Learner(Configuration(**TINY), "fp32", captured=True)
    learner.learn(2)
    with torch.no_grad():
        learner.model.output.bias[5] = math.nan
    weights = [weight.detach().clone() for weight in learner.model.parameters()]
    [(loss, norm)] = learner.learn(1, first=2)
    assert math.isnan(loss)
    assert math.isnan(norm)
    for weight, before in zip(learner.model.parameters(), weights, strict=True):
        assert np.array_equal(weight.detach(), before, equal_nan=True)
    assert learner.optimiser.steps == 2


def test_where_the_kernel_does_not_serve_nothing_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    mogrifier = Configuration(**TINY, cell="mogrifier", embedding=8)
    assert Learner(mogrifier, "fp32", captured=False).capture() == (None, "")
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert Learner(Configuration(**TINY), "fp32", captured=False).capture() == (None, "")


def test_what_cannot_be_recorded_is_done_as_before_and_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(Configuration(**TINY), "fp32", captured=False)
    forward = type(learner.model).forward

    def other(model: Any, *given: Any, **named: Any) -> Any:
        hidden, state = forward(model, *given, **named)
        return hidden.sin(), state

    monkeypatch.setattr(type(learner.model), "forward", other)
    assert learner.capture() == (None, ", not recorded (aten.sin.default cannot be recorded)")
    plain = Learner(Configuration(**TINY), "fp32", captured=False)
    assert learner.learn(2) == plain.learn(2)


def test_where_the_memory_does_not_hold_what_is_recorded_it_is_done_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.\nAnd so on"
        )

    learner, plain = (Learner(Configuration(**TINY), "fp32", captured=False) for _ in range(2))
    with monkeypatch.context() as patch:
        patch.setattr(native, "adamw", full)
        captured, told = learner.capture()
    assert captured is None
    assert told == ", not recorded (DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.)"
    assert all(weight.grad is None for weight in learner.model.parameters())
    assert learner.learn(2) == plain.learn(2)


@pytest.mark.parametrize(
    "operation",
    [
        lambda a: a * 2.0,
        lambda a: a + 2.0,
        lambda a: a.add(a, alpha=2),
        lambda a: a * a[:, :1],
        lambda a: a + a[:1],
        lambda a: a.double() + a.double(),
        lambda a: a.t().add_(a.t()),
        lambda a: a.roll(1, 0),
        lambda a: torch.stack([a, a], dim=1),
        lambda a: torch.empty(3, 5).copy_(a[:1]),
        lambda a: a.long(),
        lambda a: a.new_zeros(2, dtype=torch.int64),
        lambda a: torch.empty(5, 3).t().copy_(a),
        lambda a: a.view(1, 3, 5).transpose(0, 2).clone(),
        lambda a: a.roll(1),
        lambda a: a.random_(),
        lambda a: torch.empty(3, 5).copy_(a, non_blocking=True),
        lambda a: a[0, 0].item(),
    ],
)
def test_an_operation_of_another_kind_is_refused(operation: Callable[[Tensor], Tensor]) -> None:
    a = torch.ones(3, 5)
    with pytest.raises(NotImplementedError, match="cannot be recorded"), recording.recording(INSTRUCTIONS[0]):
        operation(a)


def test_nothing_is_computed_while_it_is_recorded() -> None:
    with recording.recording(INSTRUCTIONS[0]) as program:
        a, b = torch.ones_like(torch.empty(3, 4)), torch.empty(3, 4)
        made = a * a
        b.copy_(made)
    assert program.names == [f"{name}_{INSTRUCTIONS[0]}" for name in ("multiply_rowwise", "copy")]
    b.fill_(7.0)
    program()
    assert torch.equal(b, torch.ones(3, 4))
    a.fill_(3.0)
    program()
    assert torch.equal(b, torch.full((3, 4), 9.0))


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": lambda a, b: a + b,
    "add transposed": lambda a, _: a[:, :3] + a[:, :3].t(),
    "multiply": lambda a, b: a * b,
    "multiply by one row for all": lambda a, b: a.view(3, 5, 1) * b[:1, :].reshape(1, 5, 1),
    "clone transposed": lambda a, _: a.t().contiguous(),
    "roll": lambda a, _: a.roll(2, 1),
    "roll back": lambda a, _: a.roll(-1, 1),
    "stack": lambda a, b: torch.stack([a, b]),
    "zeros": lambda a, _: a.new_zeros(2, 3, 4),
    "add in place": lambda a, b: (a + a).add_(b),
    "a part": lambda a, b: a[1:, 2:].contiguous() + b[1:, 2:].contiguous(),
}


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_recorded_as_pytorch_does_it(name: str, instructions: str) -> None:
    operation, (a, b) = OPERATIONS[name], torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    with recording.recording(instructions) as program:
        made = operation(a, b)
    made.fill_(math.nan)
    program()
    assert program.names
    assert torch.equal(made, operation(a, b))
