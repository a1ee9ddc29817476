"""The CUDA backend against the reference backend in float64, on a GPU or else in Triton's interpreter.

Without a GPU the kernels are compiled for two all the same, and the resources that they need are checked.

T  time steps    B  batch rows    H  hidden units    V  vocabulary size    N  predictions
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import GrimmgenError
from grimmgen.network import backends
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import CellSpec, cells
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Dropout, Inputs, LanguageModel, mask_count
from grimmgen.network.optimiser import AdamW, clip_scale
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window
from tests.equations import Case, check_close

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")
backend: Any = pytest.importorskip("grimmgen.network.backends.cuda.backend")
graph: Any = pytest.importorskip("grimmgen.network.backends.cuda.graph")
recurrence: Any = pytest.importorskip("grimmgen.network.backends.cuda.recurrence")
self_check: Any = pytest.importorskip("grimmgen.network.backends.cuda.self_check")

CELLS = [cell for cell in cells().values() if find_spec(f"grimmgen.network.cells.{cell.name}_triton")]
WITH_PRODUCT = [cell for cell in CELLS if cell.recurrent_product]
# Recurrent weights up to this size, in bytes, are multiplied inside one launch for the whole window.
LAUNCHES = {"whole window": 1 << 60, "one time step": 0}

each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
CELL_LAUNCHES = [
    (cell, name) for cell in CELLS for name in (LAUNCHES if cell.recurrent_product else ["whole window"])
]
each_launch = pytest.mark.parametrize(
    ("cell", "launch"), CELL_LAUNCHES, ids=lambda value: getattr(value, "name", value)
)
# T, B, H, dropout, resets, ids: each value once. The interpreter takes a millisecond for what a GPU does in a
# nanosecond; there, T costs nothing, but every other size is compiled anew, which takes seconds.
WINDOWS = [
    (1, 1, 1, "none", False, True),
    (5, 3, 7, "fresh", True, True),
    (5, 3, 16, "none", True, False),
    (1, 16, 33, "locked", True, True),
    (5, 1, 100, "fresh", False, False),
    (2, 3, 129, "locked", True, True),
]
if DEVICE == "cuda":
    WINDOWS = [
        (1, 1, 1, "none", False, True),
        (50, 3, 7, "fresh", True, True),
        (5, 16, 16, "none", True, False),
        (50, 16, 33, "locked", True, True),
        (50, 1, 100, "fresh", False, False),
        (50, 64, 128, "fresh", True, True),
        (50, 65, 128, "none", False, False),
        (5, 3, 129, "locked", True, True),
        (50, 65, 181, "fresh", True, False),
        (5, 65, 300, "fresh", True, True),
    ]


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Correct Triton's interpreter, which truncates to bfloat16 instead of rounding, and multiplies it as integer.

    And make it faster: it patches Triton's language again for every call of a function, and checks each address.
    """
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime import interpreter as module

    builder, tl, handle = module.InterpreterBuilder, module.tl, module.TensorHandle
    cast, dot, patch_language = builder.cast_impl, builder.create_dot, module._patch_lang
    patched: dict[str, Any] = {}

    def patch_once(function: Any) -> Any:
        if function.__module__ not in patched:
            patched[function.__module__] = patch_language(function)
        return module._LangPatchScope()

    def round_to_nearest(self: Any, source: Any, target: Any) -> Any:
        if (source.dtype.scalar, target.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, target)
        bits = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
        return handle(bits.numpy().view(np.uint16), tl.bfloat16)

    def to_float32(source: Any) -> Any:
        if source.dtype.scalar != tl.bfloat16:
            return source
        return handle((source.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def dot_in_float32(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, to_float32(a), to_float32(b), *rest)

    monkeypatch.setattr(builder, "cast_impl", round_to_nearest)
    monkeypatch.setattr(builder, "create_dot", dot_in_float32)
    if hasattr(module, "_LangPatchScope"):
        monkeypatch.setattr(module, "_patch_lang", patch_once)
    monkeypatch.setattr(module.interpreter_builder, "options", module.InterpreterOptions(sanitize_overflow=False))
    yield
    for scope in reversed(patched.values()):
        scope.restore()


def case_of(cell: CellSpec, T: int, B: int, H: int, dropout: str, resets: bool, ids: bool) -> Case:
    return Case.draw(cell, T, B, H, 11, dropout, resets, ids)


def results(case: Case, precision: Products = "fp32", present: tuple[int, ...] | None = None) -> dict[str, Tensor]:
    """Outputs and gradients of the CUDA backend in float32, by name."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(DEVICE)
        if isinstance(value, dict):
            return {name: move(part) for name, part in value.items()}
        return tuple(map(move, value)) if type(value) is tuple else value

    single = Case(*map(move, case.float()))
    tensors = single.results(backend.CUDABackend(precision), present)
    return {name: tensor.detach().cpu() for name, tensor in tensors.items()}


# --- layers of cells ---------------------------------------------------------------------------------------------


def every_other_window(first: int) -> pytest.MarkDecorator:
    """Each cell and launch with every other window, from the first or from the second: the interpreter is slow."""
    return pytest.mark.parametrize(
        ("cell", "launch", "T", "B", "H", "dropout", "resets", "ids"),
        [
            (cell, launch, *window)
            for number, (cell, launch) in enumerate(CELL_LAUNCHES, first)
            for window in (WINDOWS if DEVICE == "cuda" else WINDOWS[number % 2 :: 2])
        ],
        ids=lambda value: getattr(value, "name", value),
    )


@every_other_window(1)
def test_layer(
    cell: CellSpec,
    launch: str,
    T: int,
    B: int,
    H: int,
    dropout: str,
    resets: bool,
    ids: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recurrence, "_SMALL_WEIGHT", LAUNCHES[launch])
    case = case_of(cell, T, B, H, dropout, resets, ids)
    check_close(results(case), case.results(ReferenceBackend()), 1e-5)


@every_other_window(0)
def test_bf16_layer(
    cell: CellSpec,
    launch: str,
    T: int,
    B: int,
    H: int,
    dropout: str,
    resets: bool,
    ids: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recurrence, "_SMALL_WEIGHT", LAUNCHES[launch])
    case = case_of(cell, T, B, H, dropout, resets, ids)
    actual = results(case, "bf16")
    # A number halfway between two of bfloat16 may be rounded up by one backend and down by the other.
    check_close(actual, case.float().results(ReferenceBackend("bf16")), 4e-3)
    check_close(actual, case.results(ReferenceBackend()), 3e-2)


@pytest.mark.parametrize("cell", WITH_PRODUCT, ids=lambda cell: cell.name)
def test_tf32_layer(cell: CellSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.CUDABackend, "_arithmetic", lambda *_: "tf32")
    case = case_of(cell, 5, 3, 33, "fresh", True, True)
    check_close(results(case), case.results(ReferenceBackend()), 1e-5 if DEVICE == "cpu" else 1e-2)


def test_tf32_follows_the_setting_of_pytorch() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for setting, arithmetic in (("highest", "ieee"), ("high", "tf32"), ("highest", "ieee")):
            torch.set_float32_matmul_precision(setting)
            assert backend.CUDABackend()._arithmetic(cells()["lstm"]) == arithmetic
            assert backend.CUDABackend("bf16")._arithmetic(cells()["lstm"]) == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


@each_launch
def test_layer_without_gradients_by_the_last_states(
    cell: CellSpec, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "_SMALL_WEIGHT", LAUNCHES[launch])
    case = case_of(cell, 3, 2, 5, "fresh", True, True)
    check_close(results(case, present=(0,)), case.results(ReferenceBackend(), present=(0,)), 1e-5)


@each_cell
def test_wrong_resets_are_caught(cell: CellSpec) -> None:
    case = case_of(cell, 3, 2, 5, "fresh", True, True)
    expected = case.results(ReferenceBackend())
    assert case.resets is not None
    case.resets[1, 0] = ~case.resets[1, 0]
    with pytest.raises(AssertionError):
        check_close(results(case), expected, 1e-3)


# Each launch, and a cell without a recurrent product: the strides are those of the launch.
@pytest.mark.parametrize(
    ("name", "launch"), [*(("lstm", launch) for launch in LAUNCHES), ("mingru", "whole window")]
)
def test_layer_is_reproducible_and_takes_any_strides(
    name: str, launch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "_SMALL_WEIGHT", LAUNCHES[launch])
    case = case_of(cells()[name], 3, 2, 9, "fresh", True, False)

    def restride(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    assert case.mask is not None
    strided = case._replace(
        weights={name: restride(weight) for name, weight in case.weights.items()},
        inputs=restride(case.inputs),
        state=tuple(map(restride, case.state)),
        mask=restride(case.mask),
        upstream=tuple(map(restride, case.upstream)),
    )
    first, second = results(case), results(case)
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The product of a matrix that is stored by columns may sum in another order.
    check_close(results(strided), {name: tensor.double() for name, tensor in first.items()}, 1e-6)


def test_launch_config() -> None:
    config, LaunchConfig = recurrence.launch_config, recurrence.LaunchConfig
    assert config(64, 128, 4, "ieee") == LaunchConfig(True, True, 1, 128, 16, 8)
    assert config(64, 128, 4, "bf16") == LaunchConfig(True, True, 16, 128, 32, 8)
    # Weights too large to be read at each time step, or by too many programs at once.
    assert config(64, 256, 4, "ieee") == LaunchConfig(False, False, 1, 256, 0, 4)
    assert not config(64, 256, 4, "bf16").whole_window
    assert not config(256, 128, 4, "ieee").whole_window
    assert config(256, 128, 4, "bf16").whole_window
    assert config(1, 1, 3, "ieee").units == 16
    assert config(64, 2048, 2, None) == LaunchConfig(True, False, 1, 512, 0, 4)


# --- the softmax layer, dropout, the optimiser -------------------------------------------------------------------


@pytest.mark.parametrize("most_logits", [1 << 24, 30])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (7, 5, 11), (16, 9, 65)])
def test_cross_entropy(
    N: int, H: int, V: int, precision: Products, most_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "_MOST_LOGITS", most_logits)
    generator = torch.Generator().manual_seed(N)
    tensors = [torch.randn(shape, generator=generator) for shape in ((N, H), (H, V), (V,))]
    targets = torch.randint(-1, V, (N,), generator=generator)
    targets[0] = V - 1
    single, double = [t.to(DEVICE) for t in tensors], [t.double() for t in tensors]

    def results_of(some: Any, *arguments: Tensor) -> dict[str, Tensor]:
        tensors = [tensor.cpu() for tensor in some.cross_entropy(*arguments)]
        return dict(zip(("loss", "d_hidden", "d_weight", "d_bias"), tensors, strict=True))

    actual = results_of(backend.CUDABackend(precision), *single, targets.to(DEVICE))
    check_close(actual, results_of(ReferenceBackend(), *double, targets), 1e-5 if precision == "fp32" else 3e-2)
    losses = backend.CUDABackend().negative_log_likelihood(*single, targets.to(DEVICE)).cpu()
    assert not losses[targets < 0].any()
    expected = ReferenceBackend().negative_log_likelihood(double[0], double[1], double[2], targets)
    assert torch.allclose(losses.double(), expected, atol=1e-5)


def test_losses_of_improbable_and_invalid_targets() -> None:
    hidden, weight, bias = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]]), torch.zeros(2)
    tensors = [t.to(DEVICE) for t in (hidden.expand(4, 1), weight, bias, torch.tensor([1, 0, -1, 2]))]
    losses = backend.CUDABackend().negative_log_likelihood(*tensors).tolist()
    assert losses[:3] == pytest.approx([500.0, 0.0, 0.0])
    assert math.isnan(losses[3])


@pytest.mark.parametrize("dropout", [0.2, 0.5, 0.999999])
@pytest.mark.parametrize("shape", [(1,), (7, 300), (3, 5, 211)])
def test_dropout_mask_is_that_of_the_reference_backend(shape: tuple[int, ...], dropout: float) -> None:
    for number in (0, 7, -1, 2**40 + 3, -(2**63)):
        seed = torch.tensor([1, number])[1]
        actual = backend.CUDABackend().dropout_mask(shape, dropout, seed.to(DEVICE))
        assert torch.equal(actual.cpu(), ReferenceBackend().dropout_mask(shape, dropout, seed))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_adam(clip: float, on_device: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (1,), "b": (7, 300), "c": (0, 4), "d": (1025,)}

    def draw() -> dict[str, Tensor]:
        return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}

    initial = draw()
    weights = [{name: weight.clone().to(device) for name, weight in initial.items()} for device in ("cpu", DEVICE)]
    expected, actual = (AdamW(some.items(), 0.1) for some in weights)
    for _ in range(3):
        gradient = draw()
        norm = ReferenceBackend().norm(gradient.values())
        scale, numbers = clip_scale(clip, norm.item()), expected.advance(0.01)
        ReferenceBackend().adam(expected.tensors(gradient), [scale, *numbers])
        actual.advance(0.01)
        tensors = actual.tensors({name: tensor.to(DEVICE) for name, tensor in gradient.items()})
        if on_device:
            on_gpu = torch.tensor([clip, *numbers], dtype=torch.float64, device=DEVICE)
            loss_and_norm = torch.tensor([1.0, norm], dtype=torch.float64, device=DEVICE)
            backend.CUDABackend().adam(tensors, on_gpu, loss_and_norm)
        else:
            backend.CUDABackend().adam(tensors, [scale, *numbers])
    pairs = zip(
        (*weights[1].values(), *actual.exp_avg.values(), *actual.exp_avg_sq.values()),
        (*weights[0].values(), *expected.exp_avg.values(), *expected.exp_avg_sq.values()),
        strict=True,
    )
    for a, b in pairs:
        # The steps are as large as the learning rate, whatever the clipping, and not as the weights.
        assert torch.allclose(a.cpu(), b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("loss_and_norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_adam_changes_nothing_unless_loss_and_norm_are_finite(loss_and_norm: tuple[float, float]) -> None:
    tensors = tuple(torch.ones(3, device=DEVICE) for _ in range(4))
    numbers = torch.full((8,), 0.5, dtype=torch.float64, device=DEVICE)
    backend.CUDABackend().adam([tensors], numbers, torch.tensor(loss_and_norm, dtype=torch.float64, device=DEVICE))
    assert all(torch.equal(tensor.cpu(), torch.ones(3)) for tensor in tensors)


# --- the model, captured steps -----------------------------------------------------------------------------------


def model_of(cell: CellSpec, **options: Any) -> LanguageModel:
    configuration = Configuration(**{"cell": cell.name, "hidden": 5, "batch_size": 2, "unroll": 3, **options})
    model = LanguageModel(configuration, 11)
    model.initialise()
    return model


def window_of(step: int) -> Window:
    generator = np.random.default_rng(step)
    ids = generator.integers(0, 11, (2, 3, 2)).astype(np.int32)
    return Window(ids[0], ids[1], generator.random((3, 2)) < 0.3)


@each_cell
def test_model(cell: CellSpec) -> None:
    model = model_of(cell, layers=2, embedding=3, tied=True, dropout=0.3, dropout_mode="output").to(DEVICE)
    inputs = model.inputs(window_of(0))
    seeds = torch.arange(mask_count(model.configuration), device=DEVICE)

    def results_of(some: Any, model: LanguageModel, inputs: Inputs) -> dict[str, Tensor]:
        dropout = Dropout(some, seeds.to(model.device), 2)
        loss, by_name, state, *_ = gradients(model, some, inputs, model.zero_state(2), dropout)
        states = {f"state {k}": part for k, part in enumerate(state)}
        return {name: tensor.cpu() for name, tensor in ({"loss": loss} | by_name | states).items()}

    actual = results_of(backend.CUDABackend(), model, inputs)
    assert inputs.resets is not None
    on_cpu = Inputs(inputs.ids.cpu(), inputs.targets.cpu(), inputs.resets.cpu())
    expected = results_of(ReferenceBackend(), model.to("cpu").double(), on_cpu)
    check_close(actual, expected, 1e-5)


class Stream:
    """A stream of a GPU that is not there."""

    def wait_stream(self, other: Stream) -> None: ...


@pytest.fixture
def fake_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA graph that runs the step again, eagerly."""

    class Graph:
        captured: Any

        def replay(self) -> None:
            self.captured._step()

    graphs: list[Graph] = []

    def create() -> Graph:
        graphs.append(Graph())
        return graphs[-1]

    replacements: dict[str, Any] = {
        "Stream": lambda _: Stream(),
        "current_stream": lambda _: Stream(),
        "stream": lambda _: nullcontext(),
        "graph": lambda *_, **__: nullcontext(),
        "CUDAGraph": create,
    }
    for name, replacement in replacements.items():
        monkeypatch.setattr(torch.cuda, name, replacement)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    step = graph.CUDAGraph._step

    def remember(self: Any) -> None:
        if graphs:
            graphs[-1].captured = self
        step(self)

    monkeypatch.setattr(graph.CUDAGraph, "_step", remember)


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu.py tests it on the GPU")
@pytest.mark.usefixtures("fake_graph")
# The graph knows nothing of the cell but how many states it has.
@pytest.mark.parametrize(("name", "reset_state"), [("lstm", True), ("mingru", False)])
def test_captured_step_is_the_eager_one(name: str, reset_state: bool) -> None:
    triton_backend = backend.CUDABackend()
    models = [model_of(cells()[name], reset_state=reset_state) for _ in range(2)]
    optimisers = [AdamW(model.named_parameters(), 0.1) for model in models]
    captured, note = graph.capture(models[0], optimisers[0], triton_backend, (3, 2))
    assert note == ", CUDA graph"
    assert equal(models)
    assert optimisers[0].steps == 0
    model, optimiser = models[1], optimisers[1]
    state = states = model.zero_state(2)
    for step in range(3):
        window, rate = window_of(step), 0.01 / (step + 1)
        assert captured.fits(window)
        assert not captured.fits(window.first(1))
        seeds = np.arange(mask_count(model.configuration)) + step
        loss, norm, state = captured(window, state, rate, seeds)
        dropout = Dropout(triton_backend, torch.from_numpy(seeds), 2)
        expected, by_name, states, *_ = gradients(model, triton_backend, model.inputs(window), states, dropout)
        expected_norm = triton_backend.norm(by_name.values()).item()
        scale = clip_scale(model.configuration.clip, expected_norm)
        triton_backend.adam(optimiser.tensors(by_name), [scale, *optimiser.advance(rate)])
        assert (loss, norm) == (expected.item(), expected_norm)
        assert all(map(torch.equal, state, states))
        assert equal(models)
    assert optimisers[0].steps == optimiser.steps == 3


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu.py tests it on the GPU")
@pytest.mark.usefixtures("fake_graph")
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter
def test_captured_step_that_is_not_finite_changes_nothing() -> None:
    models = [model_of(cells()["lstm"]) for _ in range(2)]
    for model in models:
        model.weights_by_name["output.bias"][5] = math.inf
    optimiser = AdamW(models[0].named_parameters())
    captured, _ = graph.capture(models[0], optimiser, backend.CUDABackend(), (3, 2))
    seeds = np.zeros(mask_count(models[0].configuration), np.int64)
    loss, _, _ = captured(window_of(0), models[0].zero_state(2), 0.1, seeds)
    assert not math.isfinite(loss)
    assert equal(models)
    assert optimiser.steps == 0


def equal(models: list[LanguageModel]) -> bool:
    return all(map(torch.equal, *(model.parameters() for model in models)))


def test_step_that_cannot_be_captured_stays_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(cells()["lstm"])
    arguments = model, AdamW(model.named_parameters())

    def fail(error: Exception) -> Any:
        def raise_it(*_: Any) -> None:
            raise error

        return raise_it

    captured, note = graph.capture(*arguments, ReferenceBackend(), (3, 2))
    assert captured is None
    assert note.startswith(", no CUDA graph (")
    monkeypatch.setattr(graph.CUDAGraph, "__init__", fail(RuntimeError("operation not permitted\nand so on")))
    assert graph.capture(*arguments, backend.CUDABackend(), (3, 2)) == (
        None,
        ", no CUDA graph (operation not permitted)",
    )
    monkeypatch.setattr(graph.CUDAGraph, "__init__", fail(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        graph.capture(*arguments, backend.CUDABackend(), (3, 2))


# --- the choice of the backend -----------------------------------------------------------------------------------


def test_choice_of_backend_and_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def description(cell: str = "lstm", dtype: torch.dtype = torch.float32, precision: Products = "fp32") -> str:
        return backends.choose_backend(cell, torch.device("cuda"), dtype, precision).description

    capability = [8, 0]
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(backends, "_has_compiler", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: tuple(capability))
    assert [description(cell.name) for cell in CELLS] == ["Triton"] * len(CELLS)
    assert description(precision="bf16") == "Triton bf16"
    assert description("mogrifier") == "PyTorch (there is no Triton kernel for the cell mogrifier)"
    assert "for float32" in description(dtype=torch.float64)
    with monkeypatch.context() as bare:
        bare.setattr(backends, "_has_compiler", lambda: False)
        assert "C compiler" in description()
    capability[:] = 7, 5
    assert "this is 7.5" in description()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "not installed" in description()
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert "GRIMMGEN_KERNEL=plain" in description()
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "NVIDIA" in description()


# --- the self-check, fault 54 -------------------------------------------------------------------------------------


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """The self-check of a small model, as in a new process."""

    def check(cell: str = "lstm", precision: Products = "fp32") -> str:
        self_check.failure.cache_clear()
        found: str = self_check.failure(cell, self_check.Shape(5, 11, 3), torch.device(DEVICE), precision)
        return found

    monkeypatch.setattr(self_check, "_TIME_STEPS", 2)
    yield check
    self_check.failure.cache_clear()


def count_checks(monkeypatch: pytest.MonkeyPatch, found: str = "") -> list[None]:
    """Let each check find that; returns a list with an entry for each that is run and not read from the cache."""
    runs: list[None] = []

    def run(*_: Any) -> str:
        runs.append(None)
        return found

    monkeypatch.setattr(self_check, "_wrong", run)
    return runs


@pytest.mark.parametrize(("cell", "precision"), [*((cell.name, "fp32") for cell in CELLS), ("lstm", "bf16")])
def test_right_kernels_pass_their_self_check(cell: str, precision: Products, check: Callable[..., str]) -> None:
    assert check(cell, precision) == ""


@pytest.mark.parametrize("found", ["", "the loss differs by 12.0%"])
def test_verdict_is_cached(found: str, check: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    runs = count_checks(monkeypatch, found)
    first = check()
    assert first.endswith(found)
    assert bool(first) == bool(found)
    assert check() == first
    assert len(runs) == 1


def scaled(function: Any, factor: float) -> Any:
    """A function whose results are multiplied."""

    def multiply(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value * factor if value.is_floating_point() else value
        return type(value)(*map(multiply, value)) if hasattr(value, "_fields") else tuple(map(multiply, value))

    return lambda *arguments: multiply(function(*arguments))


@pytest.mark.parametrize(
    ("broken", "named"),
    [
        ("dropout_mask", "a dropout mask"),
        ("cross_entropy", "the loss"),
        ("negative_log_likelihood", "the evaluation"),
    ],
)
def test_wrong_operation_fails_the_self_check(
    broken: str, named: str, check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = getattr(backend.CUDABackend, broken)
    monkeypatch.setattr(backend.CUDABackend, broken, scaled(own, 1.01))
    assert f"self-check on this GPU: {named} differs by 1.0%" in check()


@pytest.mark.parametrize("launch", LAUNCHES)
def test_wrong_recurrence_fails_the_self_check(
    launch: str, check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrence, "_SMALL_WEIGHT", LAUNCHES[launch])
    forward = recurrence.Recurrence.forward

    def without_resets(self: Any, *arrays: Any, **steps: int) -> None:
        x, u, product, extra, mask, _, *rest = arrays
        forward(self, x, u, product, extra, mask, None, *rest, **steps)

    monkeypatch.setattr(recurrence.Recurrence, "forward", without_resets)
    assert "the hidden state differs" in check()


@pytest.mark.parametrize("clipped", [False, True])
def test_wrong_adam_fails_the_self_check(
    clipped: bool, check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adam = backend.CUDABackend.adam

    def without_effect(self: Any, tensors: Any, numbers: Any, loss_and_norm: Any = None) -> None:
        if (loss_and_norm is not None) == clipped:
            tensors = [tuple(map(Tensor.clone, some)) for some in tensors]
        adam(self, tensors, numbers, loss_and_norm)

    monkeypatch.setattr(backend.CUDABackend, "adam", without_effect)
    assert check().endswith(f"Adam's step{' of a clipped gradient' if clipped else ''} differs by 100.0%")


def test_exception_in_a_kernel_fails_the_self_check(
    check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("Python.h: no such file\nand so on")

    with monkeypatch.context() as broken:
        broken.setattr(backend, "_softmax", fail)
        assert check().endswith("RuntimeError: Python.h: no such file")
    # It is checked again once the header is there.
    assert check() == ""


def test_out_of_memory_is_no_verdict(check: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(backend, "_softmax", fail)
    with pytest.raises(torch.OutOfMemoryError):
        check()


def test_crashed_gpu_is_an_error_once(check: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(self_check, "_wrong", fail)
    monkeypatch.setattr(self_check, "_is_usable", lambda _: False)
    with pytest.raises(GrimmgenError, match="run the same command again"):
        check()
    assert "illegal memory access" in check()


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"failure": 3}', b"\xff"])
def test_damaged_verdict_is_found_again(
    content: bytes, home: Path, check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count_checks(monkeypatch)
    assert check() == ""
    [path] = (home / "cache" / "self-checks").iterdir()
    path.write_bytes(content)
    assert check() == ""
    assert len(runs) == 2


def test_verdict_is_of_the_gpu_and_the_versions(
    check: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count_checks(monkeypatch)
    platform = self_check._platform(torch.device(DEVICE))
    assert {"GPU", "driver", "torch", "triton", "grimmgen"} <= set(platform)
    for change in platform:
        monkeypatch.setattr(self_check, "_platform", lambda _, change=change: {**platform, change: "another"})
        check()
    assert len(runs) == len(platform)


@pytest.mark.usefixtures("check")
def test_model_falls_back_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grimmgen.network.model.choose_backend", lambda *_, **__: backend.CUDABackend())
    model = model_of(cells()["lstm"]).to(DEVICE)
    monkeypatch.setattr(self_check, "_wrong", lambda *_: "")
    assert model.backend().name == "Triton"
    self_check.failure.cache_clear()
    monkeypatch.setattr(self_check, "_wrong", lambda *_: "the loss differs by 12.0%")
    monkeypatch.setattr(self_check, "_cached", lambda _: None)
    assert model.backend().name == "PyTorch"
    step = TrainStep(model, AdamW(model.named_parameters()), "fp32")
    assert step.description.startswith("PyTorch (the Triton kernels failed their self-check on this GPU: the loss")


def test_launches_of_training_and_evaluation_are_checked() -> None:
    def counts(hidden: int, batch_size: int) -> set[int]:
        shape = self_check.Shape(hidden, 544, batch_size)
        return set(self_check._row_counts(cells()["lstm"], shape, "ieee"))

    assert counts(128, 64) == {64}
    assert counts(128, 256) == {3, 256}
    assert counts(128, 1 << 20) == {3, 16 * 129}
    assert counts(512, 256) == {256}


# --- compiled for GPUs that need not be there --------------------------------------------------------------------

# Shared memory of one multiprocessor of the smallest GPU of that capability, in bytes (8.0 as 8.6 and 8.9).
SHARED = {80: 99 * 1024, 90: 227 * 1024}


@pytest.mark.ahead
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for a GPU on Linux")
@pytest.mark.parametrize("capability", SHARED)
def test_kernels_fit_the_gpu_without_register_spills(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ahead", str(capability)]
    completed = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in completed.stdout.splitlines()]
    assert len(lines) == 8 * len(WITH_PRODUCT) + 2 * (len(CELLS) - len(WITH_PRODUCT)) + 8
    for line in lines:
        # A spilled register would be read at each of fifty time steps that wait for each other.
        assert line["spilled"] == 0, line
        assert line["registers"] <= 255, line
        assert line["shared"] <= SHARED[capability], line
        # All threads of a program have written a time step before any reads it at the next.
        if line.get("whole window"):
            assert line["memory"].endswith("SB"), line
        # The target's logit is read before its gradient replaces it.
        if line["kernel"] == "softmax":
            assert line["memory"].count("S") == 1 or re.search("LS[^S]*B[^S]*S", line["memory"]), line
