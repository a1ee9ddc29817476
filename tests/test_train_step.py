"""Training steps on a CPU: gradients against autograd, recorded steps against eager ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from grimmgen.configuration import PRESETS, Configuration, DropoutMode, Products
from grimmgen.network.backends.cpu import library, program
from grimmgen.network.backends.cpu.backend import CPUBackend
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import Sizes, cells
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Dropout, Inputs, LanguageModel, State, mask_count
from grimmgen.network.train_step import GradientStep
from tests.builders import NETWORKS
from tests.equations import model_loss
from tests.learner import Learner, V
from tests.pairs import pairs

AVAILABLE = library.instruction_sets()
FP32 = [name for name, found in AVAILABLE.items() if found.word == 1]
COMPILED = [name for name in cells() if FP32 and name in AVAILABLE[FP32[0]].cells]
built = pytest.mark.skipif(not FP32, reason=f"there is no compiled library: {library.load()[1]}")

TINY: dict[str, Any] = {"hidden": 24, "batch_size": 5, "unroll": 12, "min_count": 1}
ALL: dict[str, Any] = {
    "layers": 2,
    "embedding": 8,
    "tied": True,
    "dropout_mode": "locked",
    "input_dropout": 0.1,
    "weight_drop": 0.1,
    "weight_decay": 0.1,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "tutorial": {},
    "layers": {"layers": 3},
    "output": {"dropout_mode": "output", "reset_state": False},
    "no-dropout": {"dropout": 0.0},
    "embedding": {"embedding": 8, "input_dropout": 0.1},
    "all": ALL,
    # So large that each thread has a share of everything.
    "large": {"hidden": 300, "layers": 2, "dropout_mode": "locked", "weight_drop": 0.1},
}
PRECISIONS: list[Products] = ["fp32", "bf16"] if len(AVAILABLE) > len(FP32) else ["fp32"]


@pytest.fixture(autouse=True)
def restore_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- gradients of whole models against autograd ------------------------------------------------------------------


class KeptDropout(Dropout):
    """Dropout that keeps its masks, for the oracle."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.masks: list[Tensor] = []

    def mask(self, shape: tuple[int, ...], dropout: float) -> Tensor | None:
        if (mask := super().mask(shape, dropout)) is not None:
            self.masks.append(mask.double())
        return mask


class Problem:
    """A model in float64 whose weights look trained, and a window."""

    def __init__(self, dropout: str, resets: bool, **options: Any) -> None:
        if dropout != "none":
            options |= {"dropout_mode": dropout, "dropout": 0.4, "weight_drop": 0.3}
            options |= {"input_dropout": 0.25} if "embedding" in options else {}
        self.model = LanguageModel(Configuration(hidden=5, batch_size=3, **options), V).double()
        generator = torch.Generator().manual_seed(8)
        for weight in self.model.parameters():
            weight.normal_(0.0, 0.6, generator=generator)
        ids, targets = torch.randint(0, V, (2, 7, 3), generator=generator)
        targets[5:, 2] = -1
        where = torch.rand(7, 3, generator=generator) < 0.3 if resets else None
        self.inputs = Inputs(ids, targets, where)
        self.state: State = tuple(0.5 * part.normal_(generator=generator) for part in self.model.zero_state(3))
        seeds = torch.arange(5, 5 + mask_count(self.model.configuration))
        self.dropout = None if dropout == "none" else KeptDropout(ReferenceBackend(), seeds, 3)

    def check(self, backend: ReferenceBackend) -> None:
        """Compare the loss, the state after the window and all gradients with autograd's."""
        made = gradients(self.model, backend, self.inputs, self.state, self.dropout)
        masks = None if self.dropout is None else iter(self.dropout.masks)
        weights = {name: weight.clone().requires_grad_() for name, weight in self.model.named_parameters()}
        loss, state = model_loss(self.model.configuration, weights, *self.inputs, self.state, masks)
        assert masks is None or next(masks, None) is None, "a mask was drawn and not applied"
        assert abs(made.loss.item() - loss.item()) < 1e-12
        for a, b in zip(made.state, state, strict=True):
            assert (a - b).abs().max() < 1e-12
        learned = {name: weight for name, weight in weights.items() if weight.numel()}
        assert made.gradients.keys() == weights.keys()
        for name, right in zip(learned, torch.autograd.grad(loss, list(learned.values())), strict=True):
            assert right.abs().max() > 1e-5, f"the test is no test of {name}"
            assert (made.gradients[name] - right).abs().max() < 1e-12, name


@pytest.mark.parametrize(
    ("network", "dropout", "resets"), pairs(NETWORKS, ["none", *get_args(DropoutMode)], [False, True])
)
def test_gradients_of_models_agree_with_autograd(network: str, dropout: str, resets: bool) -> None:
    Problem(dropout, resets, **NETWORKS[network]).check(ReferenceBackend())


def wrong_backend(operation: str, part: Any) -> ReferenceBackend:
    """A reference backend of which one gradient of one backward operation is 1.0001 of what it should be."""
    backend = ReferenceBackend()
    right = getattr(backend, operation)

    def sabotaged(*arguments: Any) -> Any:
        made = right(*arguments)
        if operation == "layer_backward" and part == "inputs":
            return made._replace(inputs=None if made.inputs is None else made.inputs * 1.0001)
        if operation == "layer_backward":
            return made._replace(weights={n: g * 1.0001 if n == part else g for n, g in made.weights.items()})
        return tuple(g * 1.0001 if k == part else g for k, g in enumerate(made))

    setattr(backend, operation, sabotaged)
    return backend


SABOTAGES: list[tuple[str, str, Any]] = [
    *(
        (f"{name}2-tied", "layer_backward", part)
        for name, cell in cells().items()
        for part in ("inputs", *cell.shapes(Sizes(1, 1, 1)))
    ),
    *(("lstm2-tied", "linear_backward", part) for part in (0, 1)),
    *(("lstm1-tied", "cross_entropy", part) for part in range(4)),
]


@pytest.mark.parametrize(("network", "operation", "part"), SABOTAGES)
def test_sabotaged_backward_is_caught_in_the_model(network: str, operation: str, part: Any) -> None:
    with pytest.raises(AssertionError):
        Problem("locked", True, **NETWORKS[network]).check(wrong_backend(operation, part))


# --- recorded against eager --------------------------------------------------------------------------------------


def assert_equal(made: Learner, right: Learner) -> None:
    assert all(map(torch.equal, made.tensors(), right.tensors()))


def check_recorded(configuration: Configuration, steps: int, precision: Products = "fp32") -> None:
    """Compare a recorded training with an eager one, and with itself."""
    eager = Learner(configuration, precision, record=False)
    results = eager.train(steps)
    assert all(math.isfinite(number) for result in results for number in result)
    for _ in range(2):
        recorded = Learner(configuration, precision)
        assert isinstance(recorded.step._backend, CPUBackend)
        assert recorded.step._gradients.program is not None
        assert recorded.step._update is not None
        assert recorded.train(steps) == results
        assert_equal(recorded, eager)


@built
@pytest.mark.parametrize(
    ("cell", "precision", "options", "threads"), pairs(COMPILED, PRECISIONS, OPTIONS, [1, 2, 7])
)
def test_recorded_step_equals_eager_step(cell: str, precision: Products, options: str, threads: int) -> None:
    torch.set_num_threads(threads)
    check_recorded(Configuration(**{**TINY, **OPTIONS[options], "cell": cell}), 4, precision)


@built
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_recorded(preset: str) -> None:
    check_recorded(Configuration(**{**PRESETS[preset], "batch_size": 3, "unroll": 4, "hidden": 16}), 3)


@built
@pytest.mark.parametrize("cell", COMPILED)
@pytest.mark.parametrize("instructions", FP32)
def test_every_instruction_set_records(instructions: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        check_recorded(Configuration(**{**TINY, **ALL, "hidden": 13, "cell": cell}), 2)


@built
@pytest.mark.parametrize("options", ["tutorial", "all"])
@pytest.mark.parametrize("cell", COMPILED)
def test_compiled_step_agrees_with_the_reference(cell: str, options: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = Configuration(**{**TINY, **OPTIONS[options], "cell": cell})
    compiled = Learner(configuration)
    results = np.array(compiled.train(3))
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    reference = Learner(configuration)
    assert isinstance(reference.step._backend, ReferenceBackend)
    np.testing.assert_allclose(np.array(reference.train(3)), results, rtol=1e-5)
    for made, right in zip(compiled.model.parameters(), reference.model.parameters(), strict=True):
        assert (made - right).norm() < 1e-3 * right.norm()


@built
def test_recording_changes_nothing() -> None:
    learner = Learner(Configuration(**TINY), record=False)
    learner.train(3)
    before = learner.tensors()
    GradientStep(learner.model, learner.step._backend, (12, 5))
    assert all(map(torch.equal, learner.tensors(), before))
    assert learner.optimiser.steps == 3


@built
def test_recorded_and_eager_steps_alternate() -> None:
    """As in a run that continues from a checkpoint, whose state is elsewhere, or that has a shorter window."""
    configuration = Configuration(**{**TINY, **ALL})
    eager, mixed = Learner(configuration, record=False), Learner(configuration)

    def short_window(learner: Learner) -> tuple[float, float]:
        window = learner.window(99)
        window = type(window)(window.inputs[:7], window.targets[:7], window.starts[:7])
        loss, norm, learner.state = learner.step(window, learner.state, 0.01, 99)
        return loss, norm

    results = [*eager.train(3), short_window(eager), *eager.train(3, first=3), *eager.train(3, first=6)]
    made = [*mixed.train(3), short_window(mixed), *mixed.train(3, first=3)]
    mixed.state = tuple(part.clone() for part in mixed.state)
    made += mixed.train(3, first=6)
    assert made == results
    assert_equal(mixed, eager)
    assert mixed.step._gradients.program is not None


@built
@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize(("place", "wrong"), [("inputs", -1), ("inputs", V), ("targets", V)])
def test_id_out_of_range_changes_nothing(place: str, wrong: int, record: bool) -> None:
    learner = Learner(Configuration(**TINY), record=record)
    learner.train(1)
    before, window = learner.tensors(), learner.window(1)
    getattr(window, place)[3, 2] = wrong
    with pytest.raises(IndexError, match="not within the vocabulary of 21"):
        learner.step(window, learner.state, 0.1, 1)
    assert all(map(torch.equal, learner.tensors(), before))
    assert learner.optimiser.steps == 1


@pytest.mark.parametrize("record", [True, False])
@pytest.mark.parametrize("kernel", ["plain", ""])
def test_loss_that_is_not_finite_changes_nothing(
    kernel: str, record: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    learner = Learner(Configuration(**TINY), record=record)
    learner.train(2)
    learner.model.weights_by_name["output.bias"][5] = math.nan
    before = learner.tensors()[: -len(learner.state)]
    result = learner.step(learner.window(2), learner.state, 0.1, 2)
    assert math.isnan(result.loss)
    assert math.isnan(result.gradient_norm)
    assert not result.finite
    for made, right in zip(learner.tensors(), before, strict=False):
        assert torch.equal(made.nan_to_num(9.0), right.nan_to_num(9.0))
    assert learner.optimiser.steps == 2


def test_nothing_is_recorded_on_the_reference_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in cells().keys() - COMPILED:
        learner = Learner(Configuration(**TINY, cell=name, embedding=8))
        assert (learner.step._gradients.program, learner.step._gradients.note) == (None, "")
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert Learner(Configuration(**TINY)).step.description == "PyTorch"


@built
@pytest.mark.parametrize("when", ["gradients", "update"])
def test_step_is_eager_where_recording_lacks_memory(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    finish: Callable[..., None] = program.Program.finish

    def full(recorded: program.Program, *results: Any) -> None:
        if ("adam" in recorded.names) == (when == "update"):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.\nMore")
        finish(recorded, *results)

    with monkeypatch.context() as patch:
        patch.setattr(program.Program, "finish", full)
        learner = Learner(Configuration(**TINY))
    note = ", not recorded (DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes.)"
    assert learner.step.description.endswith(note)
    eager = Learner(Configuration(**TINY), record=False)
    assert learner.train(2) == eager.train(2)
    assert_equal(learner, eager)


class Reducer:
    """A reducer of one process: it keeps what it is given and changes nothing."""

    def __init__(self) -> None:
        self.begun: list[Tensor] = []
        self.finished = 0

    def begin(self, tensor: Tensor) -> None:
        self.begun.append(tensor)

    def finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("kernel", ["plain", ""])
def test_reducer_receives_the_loss_and_all_gradients(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    learner, reducer = Learner(Configuration(**{**TINY, **ALL})), Reducer()
    step = GradientStep(learner.model, learner.step._backend, None, reducer=reducer)
    assert step.program is None
    made = step(learner.window(0), learner.state, np.arange(mask_count(learner.model.configuration)))
    assert {t.data_ptr() for t in reducer.begun} == {t.data_ptr() for t in (made.loss, *made.gradients.values())}
    assert len(reducer.begun) == 1 + len(made.gradients)
    assert reducer.finished == 1


def test_rows_of_a_process_have_their_share_of_the_masks() -> None:
    backend, seeds = ReferenceBackend(), torch.arange(3)
    whole = Dropout(backend, seeds, 5).mask_of_rows(4, 7, 0.5)
    part = Dropout(backend, seeds, 5, slice(1, 3)).mask_of_rows(4, 7, 0.5)
    assert whole is not None
    assert part is not None
    assert torch.equal(part, whole[:, 1:3])


def peak_bytes(call: Callable[[], object]) -> int:
    """The most memory that PyTorch's tensors take at a time during a call, beyond what they take before it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        kept = call()
    assert profile.profiler is not None
    results = profile.profiler.kineto_results
    assert results is not None
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    assert changes
    del kept
    in_use = np.cumsum([nbytes for _, nbytes in sorted(changes, key=lambda change: change[0])])
    return int(in_use.max())


@built
@pytest.mark.parametrize("options", ["tutorial", "layers", "all", "large"])
@pytest.mark.parametrize("cell", COMPILED)
def test_recorded_step_needs_no_more_memory_than_eager(cell: str, options: str) -> None:
    configuration = Configuration(**{**TINY, **OPTIONS[options], "unroll": 50, "cell": cell})
    eager, recorded = (Learner(configuration, record=record) for record in (False, True))
    step, window = eager.step._gradients, eager.window(0)
    peak = peak_bytes(lambda: step(window, eager.state, np.arange(mask_count(configuration))))
    gradient_program, made = recorded.step._gradients.program, recorded.step._gradients.results
    assert gradient_program is not None
    assert made is not None
    assert recorded.step._update is not None
    results = sum(gradient.untyped_storage().nbytes() for gradient in made.gradients.values())
    assert gradient_program.scratch_bytes + results <= peak
    assert recorded.step._update.scratch_bytes == 0
