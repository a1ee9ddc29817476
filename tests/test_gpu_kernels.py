"""Triton's kernels against the plain path in float64: on a GPU where there is one, else in Triton's interpreter.

Without a GPU they are compiled for two all the same: what they need of one can be read off.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from grimmgen.network.captured import GraphedUpdate
from torch import Tensor

from grimmgen.configuration import Configuration, Products
from grimmgen.network import backends, loss
from grimmgen.network.cells import gru, lstm, peephole
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.text.batches import Window

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
triton = pytest.importorskip("triton", reason="Triton is not installed: its kernels are not tested")
gpu: Any = pytest.importorskip("grimmgen.network.backends.cuda.gpu")


@pytest.fixture(autouse=True)
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Teach the interpreter bfloat16, which it cuts off where a GPU rounds, and multiplies as if it were integers.

    And some haste: it prepares Triton's language anew for each function that is called, and doubts each address.
    """
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime import interpreter as own

    builder, tl, handle = own.InterpreterBuilder, own.tl, own.TensorHandle
    cast, dot, prepare = builder.cast_impl, builder.create_dot, own._patch_lang
    prepared: dict[str, Any] = {}

    def prepare_once(function: Any) -> Any:
        if function.__module__ not in prepared:
            prepared[function.__module__] = prepare(function)
        return own._LangPatchScope()

    def rounded(self: Any, source: Any, kind: Any) -> Any:
        if (source.dtype.scalar, kind.scalar) != (tl.float32, tl.bfloat16):
            return cast(self, source, kind)
        bits = torch.from_numpy(np.ascontiguousarray(source.data)).bfloat16().view(torch.int16)
        return handle(bits.numpy().view(np.uint16), tl.bfloat16)

    def widened(given: Any) -> Any:
        if given.dtype.scalar != tl.bfloat16:
            return given
        return handle((given.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def multiplied(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), *rest)

    monkeypatch.setattr(builder, "cast_impl", rounded)
    monkeypatch.setattr(builder, "create_dot", multiplied)
    if hasattr(own, "_LangPatchScope"):
        monkeypatch.setattr(own, "_patch_lang", prepare_once)
    monkeypatch.setattr(own.interpreter_builder, "options", own.InterpreterOptions(sanitize_overflow=False))
    yield
    for scope in reversed(prepared.values()):
        scope.restore()


class Cell(NamedTuple):
    plain: Any
    fused: Any
    gates: int
    more: tuple[int, ...] | None  # dimensions before H of a weight besides U
    states: int


CELLS = {
    "lstm": Cell(lstm.LSTMWindow, gpu.LSTMWindow, 4, None, 2),
    "peephole": Cell(peephole.PeepholeWindow, gpu.PeepholeWindow, 4, (3,), 2),
    "gru": Cell(gru.GRUWindow, gpu.GRUWindow, 3, (), 1),
}
WAYS = {"one launch": 1 << 60, "a launch a step": 0}
Tensors = tuple[Tensor, ...]


class Case:
    """A window of a cell, in float64 and in float32."""

    def __init__(self, name: str, T: int, B: int, H: int, dropout: str, resets: bool) -> None:
        self.cell = cell = CELLS[name]
        draw = torch.Generator().manual_seed(1000 * T + 10 * B + H)

        def drawn(*shape: int, scale: float = 1.0) -> Tensor:
            # Numbers that float32 has too, so that the kernel is not charged for the rounding of its input.
            return (torch.randn(*shape, generator=draw) * scale).double().requires_grad_()

        more = [] if cell.more is None else [drawn(*cell.more, H)]
        u = drawn(H, cell.gates * H, scale=H**-0.5)
        self.wide = [drawn(T, B, cell.gates * H), u, *more, *(drawn(B, H) for _ in range(cell.states))]
        steps = {"none": 0, "fresh": T, "locked": 1}[dropout]
        self.mask = torch.rand(steps, B, H, generator=draw).lt(0.8) * 1.25 if steps else None
        self.starts = torch.rand(T, B, generator=draw).lt(0.3) if resets else None
        self.upstream = [torch.randn(T, B, H, generator=draw), torch.randn(B, H, generator=draw)][: cell.states]

    def plain(self, kind: torch.dtype, precision: Products = "fp32") -> Tensors:
        """What comes out, and the gradients by all that went in."""
        return self._everything(self.cell.plain, self.wide, kind, precision, "cpu")

    def fused(self, precision: Products = "fp32") -> Tensors:
        return self._everything(self.cell.fused, self.wide, torch.float32, precision, DEVICE)

    def _everything(
        self, window: Any, given: list[Tensor], kind: torch.dtype, precision: Products, device: str
    ) -> Tensors:
        inputs = [t.detach().to(device, kind).requires_grad_() for t in given]
        mask = None if self.mask is None else self.mask.to(device, kind)
        starts = None if self.starts is None else self.starts.to(device)
        made = window.apply(*inputs, mask, starts, precision)
        outputs: Tensors = made if isinstance(made, tuple) else (made,)
        upstream = [t.to(device, kind) for t in self.upstream]
        return tuple(t.detach().cpu() for t in (*outputs, *torch.autograd.grad(outputs, inputs, upstream)))


def differences(made: Tensors, right: Tensors) -> list[float]:
    """Each relative to the right one's norm."""
    assert [a.shape for a in made] == [b.shape for b in right]
    return [(a.double() - b).norm().item() / (b.norm().item() or 1e-30) for a, b in zip(made, right, strict=True)]


# Each size, number of rows and of steps, mask and resets once: the interpreter takes a millisecond for what a GPU
# does in a nanosecond, and there all go with all.
WINDOWS = [
    (1, 1, 1, "none", False),
    (5, 3, 7, "fresh", True),
    (5, 3, 16, "none", True),
    (1, 16, 33, "locked", True),
    (5, 1, 100, "fresh", False),
    (2, 3, 129, "locked", True),
]
if DEVICE == "cuda":
    # Steps cost nothing there, but each size, kind of dropout and number of rows is compiled anew, seconds each.
    WINDOWS = [
        (1, 1, 1, "none", False),
        (50, 3, 7, "fresh", True),
        (5, 16, 16, "none", True),
        (50, 16, 33, "locked", True),
        (50, 1, 100, "fresh", False),
        (50, 64, 128, "fresh", True),
        (50, 65, 128, "none", False),
        (5, 3, 129, "locked", True),
        (50, 65, 181, "fresh", True),
        (5, 65, 300, "fresh", True),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("T", "B", "H", "dropout", "resets"), WINDOWS)
@pytest.mark.parametrize("name", CELLS)
def test_a_window_is_the_plain_one(
    name: str, T: int, B: int, H: int, dropout: str, resets: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_SMALL", WAYS[way])
    case = Case(name, T, B, H, dropout, resets)
    assert max(differences(case.fused(), case.plain(torch.float64))) < 1e-5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("T", "B", "H", "dropout", "resets"), WINDOWS)
@pytest.mark.parametrize("name", CELLS)
def test_a_window_of_bfloat16_products_is_the_plain_one(
    name: str, T: int, B: int, H: int, dropout: str, resets: bool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_SMALL", WAYS[way])
    case = Case(name, T, B, H, dropout, resets)
    made = case.fused("bf16")
    # A number that lies between two of bfloat16 may be rounded up here and down there.
    assert max(differences(made, tuple(t.double() for t in case.plain(torch.float32, "bf16")))) < 4e-3
    assert max(differences(made, case.plain(torch.float64))) < 3e-2


@pytest.mark.parametrize("name", CELLS)
def test_a_window_in_tf32_is_the_plain_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_units", lambda _: "tf32")
    case = Case(name, 5, 3, 33, "fresh", resets=True)
    assert max(differences(case.fused(), case.plain(torch.float64))) < (1e-5 if DEVICE == "cpu" else 1e-2)


def test_tf32_is_for_who_asked_pytorch_for_it() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        for asked, units in (("highest", "ieee"), ("high", "tf32"), ("highest", "ieee")):
            torch.set_float32_matmul_precision(asked)
            assert gpu._units("fp32") == units
            assert gpu._units("bf16") == "bf16"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", CELLS)
def test_a_difference_would_be_seen(name: str) -> None:
    case = Case(name, 3, 2, 5, "fresh", resets=True)
    right = case.plain(torch.float64)
    assert case.starts is not None
    case.starts[1, 0] = ~case.starts[1, 0]
    assert max(differences(case.fused(), right)) > 1e-3


@pytest.mark.parametrize("way", WAYS)
def test_arguments_need_not_be_contiguous_and_the_bits_are_the_same_again(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_SMALL", WAYS[way])
    case = Case("lstm", 3, 2, 9, "fresh", resets=True)
    right = case.fused()
    assert case.mask is not None
    case.wide = [t.detach().mT.contiguous().mT.requires_grad_() for t in case.wide]
    case.mask = case.mask.mT.contiguous().mT
    case.upstream = [t.mT.contiguous().mT for t in case.upstream]
    assert all(map(torch.equal, case.fused(), right))


def test_how_a_window_is_cut() -> None:
    assert gpu.way(64, 128, 4, "ieee") == gpu.Way(True, 1, 128, 16, 8)
    assert gpu.way(64, 128, 4, "bf16") == gpu.Way(True, 16, 128, 32, 8)
    # Too large to be read at each step, or by too many at once.
    assert not gpu.way(64, 256, 4, "ieee").whole
    assert not gpu.way(64, 256, 4, "bf16").whole
    assert not gpu.way(256, 128, 4, "ieee").whole
    assert gpu.way(256, 128, 4, "bf16").whole
    assert gpu.way(1, 1, 3, "ieee").units == 16


@pytest.mark.parametrize("logits", [1 << 24, 30])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (7, 5, 11), (16, 9, 65)])
def test_cross_entropy_is_the_plain_one(
    N: int, H: int, V: int, precision: Products, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_LOGITS", logits)
    draw = torch.Generator().manual_seed(N)
    wide = [torch.randn(s, generator=draw).double().requires_grad_() for s in ((N, H), (H, V), (V,))]
    targets = torch.randint(-1, V, (N,), generator=draw)
    targets[0] = V - 1
    right = loss.CrossEntropy.apply(*wide, targets)  # type: ignore[no-untyped-call]
    narrow = [t.detach().float().to(DEVICE).requires_grad_() for t in wide]
    made = gpu.CrossEntropy.apply(*narrow, targets.to(DEVICE), precision)
    ours, theirs = torch.autograd.grad(3 * made, narrow), torch.autograd.grad(3 * right, wide)
    bound = 1e-5 if precision == "fp32" else 3e-2
    assert max(differences((made.cpu(), *(t.cpu() for t in ours)), (right, *theirs))) < bound
    losses = gpu.negative_log_likelihood(*(t.detach() for t in narrow), targets.to(DEVICE)).cpu()
    assert not losses[targets < 0].any()
    hidden, weight, bias = (t.detach() for t in wide)
    wanted = loss.negative_log_likelihood(hidden, weight, bias, targets)
    assert torch.allclose(losses.double(), wanted, atol=1e-5)


def test_the_loss_of_what_is_all_but_impossible_is_finite_and_of_what_does_not_exist_is_not() -> None:
    hidden, weight, bias = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]]), torch.zeros(2)
    given = [t.to(DEVICE) for t in (hidden, weight, bias)]
    losses = [gpu.negative_log_likelihood(*given, torch.tensor([k], device=DEVICE)).item() for k in (1, 0, -1, 2)]
    assert losses[:3] == pytest.approx([500.0, 0.0, 0.0])
    assert np.isnan(losses[3])


@pytest.mark.parametrize("clip", [0.5, 1e6])
def test_a_step_of_the_optimiser_is_the_plain_one(clip: float) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(1,), (7, 300), (0, 4), (1025,)]
    given = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(4)]
    weights = [[w.clone().to(device).requires_grad_() for w in given[0]] for device in ("cpu", DEVICE)]
    plain, fused = (AdamW(some, 0.1) for some in weights)
    for step in range(3):
        for some in weights:
            for weight, gradient in zip(some, given[step + 1], strict=True):
                weight.grad = gradient.to(weight.device)
        norm = plain.norm()
        plain.step(0.01, clip, norm)
        numbers = torch.tensor([clip, *fused.advance(0.01)], device=DEVICE)
        fused.step_there(numbers, fused.norm_there())
    # Of what is clipped every weight learns as much: the steps have the size of the rate, not of the weights.
    pairs = zip(
        (*weights[1], *fused.exp_avg, *fused.exp_avg_sq),
        (*weights[0], *plain.exp_avg, *plain.exp_avg_sq),
        strict=True,
    )
    for a, b in pairs:
        assert torch.allclose(a.cpu(), b, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", CELLS)
def test_a_network_is_the_plain_one(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Configuration(
        cell=name,
        hidden=5,
        layers=2,
        embedding=3,
        tied=True,
        dropout=0.3,
        dropout_mode="output",
        batch_size=2,
        unroll=3,
    )
    model = LanguageModel(options, 11).to(DEVICE)
    model.initialise()
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randint(0, 11, (2, 3, 2), generator=draw).to(DEVICE)
    starts = torch.tensor([[True, False], [False, True], [False, False]], device=DEVICE)

    def everything() -> Tensors:
        generator = torch.Generator(DEVICE).manual_seed(1)
        loss, after = model.loss_of(inputs, targets, starts, model.zero_state(2), generator)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        return tuple(t.detach().cpu() for t in (loss, *after, *gradients))

    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    right = everything()
    assert "CrossEntropy" not in gpu_calls(monkeypatch, everything)
    monkeypatch.setattr(backends, "on_gpu", lambda _: True)
    assert gpu_calls(monkeypatch, everything) == {
        name.upper() if name != "peephole" else "Peephole",
        "CrossEntropy",
    }
    assert max(differences(everything(), tuple(t.double() for t in right))) < 1e-5


class Noted:
    """One of our operations, its use noted."""

    def __init__(self, name: str, called: set[str]) -> None:
        self._name, self._own, self._called = name.removesuffix("Window"), getattr(gpu, name), called

    def apply(self, *given: Any) -> Any:
        self._called.add(self._name)
        return self._own.apply(*given)


def gpu_calls(monkeypatch: pytest.MonkeyPatch, do: Any) -> set[str]:
    """Which of our operations are used, without `Window` at the end of their names."""
    called: set[str] = set()
    with monkeypatch.context() as patch:
        for operation in ("LSTMWindow", "PeepholeWindow", "GRUWindow", "CrossEntropy"):
            patch.setattr(gpu, operation, Noted(operation, called))
        do()
    return called


class Stream:
    """A stream of a GPU that is not there."""

    def wait_stream(self, other: Stream) -> None: ...


@pytest.mark.skipif(DEVICE == "cuda", reason="test_gpu.py shows it on the GPU")
@pytest.mark.parametrize("reset_state", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_what_is_captured_is_an_update(name: Any, reset_state: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Graph:
        """Of one update: what was captured is done again."""

        def register_generator_state(self, generator: torch.Generator) -> None: ...

        def replay(self) -> None:
            captured._run()

    for what, fake in (
        ("Stream", lambda _: Stream()),
        ("current_stream", lambda _: Stream()),
        ("CUDAGraph", Graph),
    ):
        monkeypatch.setattr(torch.cuda, what, fake)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "graph", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(backends, "on_gpu", lambda _: True)
    monkeypatch.setattr(backends, "compiled", lambda *_: None)
    options = Configuration(cell=name, hidden=5, batch_size=2, unroll=3, reset_state=reset_state, weight_decay=0.1)
    learners = []
    for _ in range(2):
        model = LanguageModel(options, 7)
        model.initialise()
        learners.append((model, AdamW(model.parameters(), options.weight_decay), torch.Generator()))
    captured = GraphedUpdate(*learners[0], "fp32")
    assert all(map(torch.equal, learners[0][0].parameters(), learners[1][0].parameters()))
    state = states = model.zero_state(2)
    model, optimiser, generator = learners[1]
    for step in range(3):
        ids = np.random.default_rng(step).integers(0, 7, (2, 3, 2)).astype(np.int32)
        window = Window(ids[0], ids[1], np.random.default_rng(step).random((3, 2)) < 0.3)
        assert captured.fits(window)
        assert not captured.fits(window.first(1))
        for _, _, drawn in learners:
            drawn.manual_seed(step)
        rate = 0.01 / (step + 1)
        made, made_norm, state = captured.update(window, state, rate)
        optimiser.zero_gradient()
        loss, states = model.loss(window, states, generator)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = optimiser.norm()
        optimiser.step(rate, options.clip, norm)
        assert (made, made_norm) == (loss.item(), norm)
        assert all(map(torch.equal, state, states))
        assert all(map(torch.equal, learners[0][0].parameters(), model.parameters()))
    assert learners[0][1].steps == optimiser.steps == 3


def test_what_serves_a_gpu_is_said_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    capability = [8, 0]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: tuple(capability))
    assert backends.serving(cuda) == "Triton"
    assert backends.serving(cuda, precision="bf16") == "Triton bf16"
    assert backends.serving(cuda, torch.float64).startswith("PyTorch (Triton's kernels are for float32")
    with monkeypatch.context() as bare:
        bare.setattr(backends, "_has_compiler", lambda: False)
        assert backends.serving(cuda) == "PyTorch (Triton needs a C compiler)"
    capability[:] = 7, 5
    assert backends.serving(cuda).endswith("this is 7.5)")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert backends.serving(cuda) == "PyTorch (Triton is not installed)"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert backends.serving(cuda) == "PyTorch (GRIMMGEN_KERNEL=plain)"
    monkeypatch.setattr(torch.version, "cuda", None)
    assert backends.serving(cuda) == "PyTorch (Triton's kernels are for NVIDIA's GPUs)"


# What one multiprocessor of the smallest GPU of that capability has for a program, in bytes (8.0 as 8.6 and 8.9).
SHARED = {80: 99 * 1024, 90: 227 * 1024}


@pytest.mark.ahead
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles for a GPU on Linux")
@pytest.mark.parametrize("capability", SHARED)
def test_kernels_fit_a_gpu_without_spilling_a_register(capability: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.ahead", str(capability)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 30
    for line in lines:
        # A spilled register is read back at each of fifty steps that wait for each other; there is room without.
        assert line["spilled"] == 0, line
        assert line["registers"] <= 255, line
        assert line["shared"] <= SHARED[capability], line
        # What a program reads back at the next step all of it has written before; and the logits are not replaced
        # by their gradient before the target's has been read.
        if line.get("one launch"):
            assert line["memory"].endswith("SB"), line
        if line["kernel"] == "softmax":
            assert line["memory"].count("S") == 1 or re.search("LS[^S]*B[^S]*S", line["memory"]), line
