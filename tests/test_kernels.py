"""The compiled kernel against the plain path in float64: every instruction set that this machine has."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from grimmgen import kernels
from grimmgen.cells import lstm, softmax
from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError
from grimmgen.kernels import library, native

INSTRUCTIONS = library.instruction_sets()
built = pytest.mark.skipif(not INSTRUCTIONS, reason=f"there is no compiled kernel: {library.load()[1]}")
ROUNDING = library.instruction_sets("bf16")
rounds = pytest.mark.skipif(not ROUNDING, reason="there are no instructions for bfloat16 here")
each_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS or ["none"])
SIZES = [1, 7, 100, 129]
BATCHES = [1, 3, 64]
STEPS = [1, 50]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def difference(made: Tensor, right: Tensor) -> float:
    """Relative to the right one's norm; a right one that is all zeros wants all zeros."""
    norm: float = right.norm().item()
    distance: float = (made.double() - right).norm().item()
    return distance / (norm or 1e-30)


def double(draw: torch.Generator, *shape: int) -> Tensor:
    # Numbers that float32 has too, so that the kernel is not charged for the rounding of its input.
    return torch.randn(*shape, generator=draw).double()


class Case:
    """The arguments of a window, in float64 and in float32."""

    def __init__(self, T: int, B: int, H: int, masked: bool, resets: bool, V: int = 0) -> None:
        draw = torch.Generator().manual_seed(1000 * T + 10 * B + H)
        if V:
            self.ids = torch.randint(0, V, (T, B), generator=draw)
            x = [double(draw, V, 4 * H), double(draw, 4 * H)]
        else:
            x = [double(draw, T, B, 4 * H)]
        u = (double(draw, H, 4 * H).float() * H**-0.5).double()
        self.double = [t.requires_grad_() for t in (*x, u, double(draw, B, H), double(draw, B, H))]
        self.float = [t.detach().float().requires_grad_() for t in self.double]
        self.mask = torch.rand(T, B, H, generator=draw).lt(0.8) * 1.25 if masked else None
        self.starts = torch.rand(T, B, generator=draw).lt(0.1) if resets else None
        self.upstream = double(draw, T, B, H), double(draw, B, H)

    def right(self, precision: Products = "fp32") -> tuple[Tensor, Tensor]:
        """The plain path: in float64, or with products of bfloat16 in float32."""
        x, *rest = self.double if precision == "fp32" else self.float
        if hasattr(self, "ids"):
            bias, *rest = rest
            x = torch.nn.functional.embedding(self.ids, x + bias)
        mask = None if self.mask is None else self.mask.to(x.dtype)
        made: tuple[Tensor, Tensor] = lstm.LSTMWindow.apply(x, *rest, mask, self.starts, precision)  # type: ignore[no-untyped-call]
        return made

    def made(self, instructions: str) -> tuple[Tensor, Tensor]:
        looks_up = hasattr(self, "ids")
        function: Any = native.LookUpWindow if looks_up else native.LSTMWindow
        given = [self.ids, *self.float] if looks_up else self.float
        made: tuple[Tensor, Tensor] = function.apply(instructions, *given, self.mask, self.starts)
        return made

    def everything(self, instructions: str) -> tuple[Tensor, ...]:
        made = self.made(instructions)
        return *made, *torch.autograd.grad(made, self.float, [u.float() for u in self.upstream])

    def compare(self, instructions: str, outputs: tuple[int, ...] = (0, 1)) -> None:
        made, right = self.made(instructions), self.right()
        for a, b in zip(made, right, strict=True):
            assert difference(a, b) < 1e-5
        upstream = [self.upstream[i] for i in outputs]
        ours = torch.autograd.grad([made[i] for i in outputs], self.float, [u.float() for u in upstream])
        theirs = torch.autograd.grad([right[i] for i in outputs], self.double, upstream)
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert difference(a, b) < 1e-5, number

    def compare_rounded(self, instructions: str) -> None:
        """With products of bfloat16, against the plain path that rounds likewise, and against the truth.

        The two add up in another order, so that what goes into the next product differs by some 1e-7; where that
        is on either side of a boundary, about once in 20,000 numbers, one is rounded up and the other down, by
        2⁻⁸. That is seldom enough to leave a single step exact to 1e-4; from step to step it spreads.
        """
        made = self.everything(instructions)
        right, rounded = self.right(), self.right("bf16")
        exact = *right, *torch.autograd.grad(right, self.double, self.upstream)
        plain = *rounded, *torch.autograd.grad(rounded, self.float, [u.float() for u in self.upstream])
        steps = len(self.upstream[0])
        for number, (a, b, c) in enumerate(zip(made, plain, exact, strict=True)):
            assert difference(a, b.double()) < (1e-4 if steps == 1 else 2e-3), number
            assert difference(a, c) < 3e-2, number


@built
@each_instruction_set
@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", STEPS)
def test_window_and_its_gradients_are_the_plain_ones(instructions: str, T: int, B: int, H: int) -> None:
    torch.set_num_threads(1 + H % 3)
    Case(T, B, H, masked=True, resets=True).compare(instructions)
    Case(T, B, H, masked=True, resets=True, V=11).compare(instructions)


@rounds
@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", STEPS)
def test_window_of_bfloat16_products_is_the_plain_one(T: int, B: int, H: int) -> None:
    torch.set_num_threads(1 + H % 3)
    Case(T, B, H, masked=True, resets=True).compare_rounded(ROUNDING[0])
    Case(T, B, H, masked=True, resets=True, V=11).compare_rounded(ROUNDING[0])


@rounds
@pytest.mark.parametrize(("masked", "resets"), [(False, False), (True, False), (False, True)])
def test_masks_and_resets_with_bfloat16_products(masked: bool, resets: bool) -> None:
    Case(5, 7, 19, masked, resets).compare_rounded(ROUNDING[0])


@rounds
@pytest.mark.parametrize("wrong", ["lstm_backward", "weights", "nothing rounded"])
def test_a_sabotaged_kernel_of_bfloat16_products_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if wrong == "nothing rounded":
        with pytest.raises(AssertionError):
            Case(1, 3, 100, masked=True, resets=True).compare_rounded(INSTRUCTIONS[0])
        return
    sabotage(wrong, 1.0003, monkeypatch)
    with pytest.raises(AssertionError):
        Case(1, 3, 7, masked=True, resets=True).compare_rounded(ROUNDING[0])


@built
@each_instruction_set
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("masked", "resets"), [(False, False), (True, False), (False, True)])
def test_masks_resets_and_threads(instructions: str, count: int, masked: bool, resets: bool) -> None:
    torch.set_num_threads(count)
    Case(5, 7, 19, masked, resets).compare(instructions)
    Case(5, 7, 19, masked, resets, V=5).compare(instructions)


@built
@each_instruction_set
@pytest.mark.parametrize("outputs", [(0,), (1,)])
def test_gradients_that_are_absent_upstream(instructions: str, outputs: tuple[int, ...]) -> None:
    Case(4, 3, 10, masked=True, resets=True).compare(instructions, outputs)


@built
def test_a_story_that_starts_forgets_what_was_before() -> None:
    case = Case(3, 2, 5, masked=False, resets=True)
    assert case.starts is not None
    case.starts[:] = False
    case.starts[0, 1] = True
    grad_h0, grad_c0 = case.everything(INSTRUCTIONS[0])[-2:]
    assert grad_h0[0].all()
    assert grad_c0[0].all()
    assert not grad_h0[1].any()
    assert not grad_c0[1].any()


@built
@each_instruction_set
def test_arguments_need_not_be_contiguous(instructions: str) -> None:
    case = Case(4, 6, 9, masked=True, resets=True)
    case.float = [t.detach().mT.contiguous().mT.requires_grad_() for t in case.float]
    assert case.mask is not None
    case.mask = case.mask.mT.contiguous().mT
    case.upstream = tuple(u.mT.contiguous().mT for u in case.upstream)  # type: ignore[assignment]
    case.compare(instructions)


@built
@pytest.mark.parametrize("instructions", INSTRUCTIONS + ROUNDING or ["none"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_again_and_with_any_number_of_threads(instructions: str, count: int) -> None:
    case = Case(20, 9, 33, masked=True, resets=True, V=13)
    torch.set_num_threads(1)
    once = case.everything(instructions)
    torch.set_num_threads(count)
    for _ in range(3):
        assert all(map(torch.equal, case.everything(instructions), once))


def head(N: int, H: int, V: int) -> tuple[list[Tensor], list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(N + H + V)
    wide = [double(draw, N, H), double(draw, H, V), double(draw, V)]
    targets = torch.randint(-1, V, (N,), generator=draw)
    targets[0] = V - 1
    return [t.requires_grad_() for t in wide], [t.detach().float().requires_grad_() for t in wide], targets


@built
@each_instruction_set
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 1), (2, 7, 3), (129, 5, 17), (300, 100, 65), (700, 129, 545)])
def test_cross_entropy_is_the_plain_one(instructions: str, count: int, N: int, H: int, V: int) -> None:
    torch.set_num_threads(count)
    wide, narrow, targets = head(N, H, V)
    hidden, weight, bias = narrow
    right = softmax.CrossEntropy.apply(*wide, targets)  # type: ignore[no-untyped-call]
    made = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
    if V > 1:
        assert difference(made, right) < 1e-5
    for factor in (1, 3):
        ours = torch.autograd.grad(factor * made, narrow, retain_graph=True)
        theirs = torch.autograd.grad(factor * softmax.CrossEntropy.apply(*wide, targets), wide)  # type: ignore[no-untyped-call]
        for a, b in zip(ours, theirs, strict=True):
            assert difference(a, b) < 1e-5 or V == 1
        again = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
        assert all(map(torch.equal, torch.autograd.grad(factor * again, narrow), ours))
    losses = native.negative_log_likelihood(instructions, hidden, weight, bias, targets)
    right_losses = softmax.negative_log_likelihood(wide[0], wide[1], wide[2], targets)
    assert (losses[targets < 0] == 0).all()
    assert torch.allclose(losses.double(), right_losses, atol=1e-5)


@rounds
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (2, 7, 3), (128, 5, 17), (256, 100, 65), (1024, 129, 545)])
def test_cross_entropy_of_bfloat16_products_is_the_plain_one(count: int, N: int, H: int, V: int) -> None:
    # N is a power of two: the kernel divides by it before it rounds, the plain path afterwards.
    torch.set_num_threads(count)
    wide, narrow, targets = head(N, H, V)
    right = softmax.CrossEntropy.apply(*wide, targets)  # type: ignore[no-untyped-call]
    rounded = softmax.CrossEntropy.apply(*narrow, targets, "bf16")  # type: ignore[no-untyped-call]
    made = native.CrossEntropy.apply(ROUNDING[0], *narrow, targets)  # type: ignore[no-untyped-call]
    assert difference(made, rounded.double()) < 1e-5
    assert difference(made, right) < 1e-2
    ours, exact = torch.autograd.grad(made, narrow), torch.autograd.grad(right, wide)
    for a, b, c in zip(ours, torch.autograd.grad(rounded, narrow), exact, strict=True):
        # As in `Case.compare_rounded`.
        assert difference(a, b.double()) < 1e-3
        assert difference(a, c) < 3e-2
    again = native.CrossEntropy.apply(ROUNDING[0], *narrow, targets)  # type: ignore[no-untyped-call]
    assert all(map(torch.equal, torch.autograd.grad(again, narrow), ours))


@built
@each_instruction_set
def test_the_loss_of_what_is_all_but_impossible_is_finite(instructions: str) -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]])
    losses = native.negative_log_likelihood(instructions, hidden, weight, torch.zeros(2), torch.tensor([1]))
    assert losses.item() == pytest.approx(500.0)


@built
@each_instruction_set
def test_sigmoid_and_tanh_over_their_whole_range(instructions: str) -> None:
    z = torch.cat([torch.linspace(-100, 100, 4001), torch.logspace(-30, 0, 200), -torch.logspace(-30, 0, 200)])
    H = len(z)
    # c0 = 1, so that c = f + i c̃; a gate that is open has z = 100.
    zero, u, one = torch.zeros(1, H), torch.zeros(H, 4 * H), torch.ones(1, H)

    def cell(i: Tensor, f: Tensor, candidate: Tensor) -> Tensor:
        x = torch.cat([i, f, candidate, torch.zeros(H)]).view(1, 1, 4 * H)
        made: tuple[Tensor, Tensor] = native.LSTMWindow.apply(instructions, x, u, zero, one, None, None)  # type: ignore[no-untyped-call]
        return made[1][0].double()

    shut, open_ = torch.full((H,), -100.0), torch.full((H,), 100.0)
    f = cell(shut, z, torch.zeros(H))
    right = torch.sigmoid(z.double())
    assert ((f - right).abs() <= 5e-7 * right + 1e-37).all()
    candidate = cell(open_, shut, z)
    assert ((candidate - torch.tanh(z.double())).abs() <= 6e-7 * torch.tanh(z.double()).abs() + 1e-37).all()


@built
@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_that_is_not_within_the_vocabulary_reaches_no_memory(wrong: int) -> None:
    V, instructions = 5, INSTRUCTIONS[0]
    ids, zeros = torch.tensor([[0], [wrong]]), torch.zeros(1, 2)
    with pytest.raises(IndexError, match="an id is not within the vocabulary of 5"):
        native.LookUpWindow.apply(  # type: ignore[no-untyped-call]
            instructions, ids, torch.zeros(V, 8), torch.zeros(8), torch.zeros(2, 8), zeros, zeros, None, None
        )
    given = instructions, torch.zeros(2, 2), torch.zeros(2, V), torch.zeros(V), ids.flatten()
    if wrong < 0:
        assert native.CrossEntropy.apply(*given).item() == pytest.approx(math.log(V) / 2), "a target may be none"  # type: ignore[no-untyped-call]
    else:
        with pytest.raises(IndexError, match="a target is not within the vocabulary of 5"):
            native.CrossEntropy.apply(*given)  # type: ignore[no-untyped-call]


@built
def test_what_is_not_a_number_stays_so() -> None:
    for instructions in INSTRUCTIONS:
        _, narrow, targets = head(3, 2, 40)
        targets[:] = 1
        with torch.no_grad():
            narrow[0][1, 0] = float("nan")
        loss = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
        assert loss.isnan()
        case = Case(3, 2, 20, masked=False, resets=False)
        with torch.no_grad():
            case.float[0][1, 1, 3] = float("nan")
        assert case.made(instructions)[0][2, 1].isnan().any()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the library's functions, as they are called."""
    called: list[str] = []
    right = native._run

    def noted(name: str, given: Any) -> None:
        called.append(name)
        right(name, given)

    monkeypatch.setattr(native, "_run", noted)
    return called


def use(dtype: torch.dtype, precision: Products = "fp32") -> None:
    x, u, state = torch.zeros(2, 3, 8, dtype=dtype), torch.zeros(2, 8, dtype=dtype), torch.zeros(3, 2, dtype=dtype)
    weight, bias, targets = torch.zeros(2, 5, dtype=dtype), torch.zeros(5, dtype=dtype), torch.zeros(6).long()
    h, _ = kernels.lstm_window(x, u, state, state, None, None, precision)
    h, _ = kernels.lstm_look_up_window(
        torch.zeros(2, 3).long(), x[0], x[0, 0], u, state, state, None, None, precision
    )
    kernels.cross_entropy(h.view(6, 2), weight, bias, targets, precision)
    kernels.negative_log_likelihood(h.view(6, 2), weight, bias, targets)


@built
@each_instruction_set
def test_the_environment_forces_a_path(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    torch.set_num_threads(2)
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    use(torch.float32)
    assert {name.rpartition("_")[2] for name in called} == {instructions}
    assert {name.rpartition("_")[0] for name in called} == {"pack", "lstm_forward", "cross_entropy"}
    assert kernels.serving().startswith("native ")
    assert kernels.serving().endswith(", 2 threads")
    called.clear()
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    use(torch.float32)
    assert not called
    assert kernels.serving() == "PyTorch"


@rounds
def test_bfloat16_products_are_served_by_the_kernel_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    monkeypatch.setenv("GRIMMGEN_KERNEL", INSTRUCTIONS[0])
    use(torch.float32, "bf16")
    served = {name.partition(f"_{INSTRUCTIONS[0]}") for name in called}
    assert {name for name, _, kind in served if kind == "bf16"} == {"pack", "lstm_forward", "cross_entropy"}
    # To tell how likely a text is nothing is rounded.
    assert called[-1] == f"cross_entropy_{INSTRUCTIONS[0]}"
    assert " bf16, " in kernels.serving(precision="bf16")
    assert "bf16" not in kernels.serving()


@built
def test_bfloat16_products_without_instructions_for_them_are_served_by_the_plain_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = calls(monkeypatch)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "scalar")
    use(torch.float32, "bf16")
    assert {name.rpartition("_")[0] for name in called} == {"pack", "cross_entropy"}
    assert kernels.serving(precision="bf16").startswith("PyTorch bf16 (there are no instructions for")


def test_precision_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    precision: Products
    for precision in ("fp32", "bf16"):
        asked = Configuration(precision=precision)
        assert kernels.resolve_precision(asked, torch.device("cpu")) == precision
    had = library.instruction_sets("bf16")
    assert kernels.resolve_precision(Configuration(), torch.device("cpu")) == ("bf16" if had else "fp32")
    assert kernels.resolve_precision(Configuration(cell="gru"), torch.device("cpu")) == "fp32"
    assert kernels.resolve_precision(Configuration(), torch.device("cuda")) == "fp32"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert kernels.resolve_precision(Configuration(), torch.device("cpu")) == "fp32"


def test_other_types_are_served_by_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    use(torch.float64)
    assert not called
    assert kernels.serving(dtype=torch.float64).startswith("PyTorch (")


def test_an_unknown_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec is not to be had here"):
        kernels.serving()


def test_without_the_library_the_plain_path_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, reason = right = library.load.__wrapped__(tmp_path)
    assert loaded is None
    assert reason == "the package was installed without a C compiler"
    monkeypatch.setattr(library, "load", lambda: right)
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    assert kernels.serving() == f"PyTorch ({reason})"
    use(torch.float32)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "native")
    with pytest.raises(UsageError, match="without a C compiler"):
        kernels.serving()


def test_a_library_that_cannot_be_loaded_is_said_so(tmp_path: Path) -> None:
    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    loaded, reason = library.load.__wrapped__(tmp_path)
    assert loaded is None
    assert "cannot be loaded" in reason


def sabotage(wrong: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply the gradient by the first hidden state, or by the recurrent weight."""
    right = native._run

    def sabotaged(name: str, given: Any) -> None:
        right(name, given)
        if name.startswith(wrong):
            given[0][9 if wrong == "lstm_backward" else 8].mul_(factor)

    monkeypatch.setattr(native, "_run", sabotaged)


@built
@pytest.mark.parametrize("wrong", ["lstm_backward", "weights"])
def test_a_sabotaged_kernel_is_caught(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(wrong, 1.0001, monkeypatch)
    with pytest.raises(AssertionError):
        Case(5, 3, 7, masked=True, resets=True).compare(INSTRUCTIONS[0])


@built
def test_the_library_names_every_function_for_every_instruction_set() -> None:
    loaded, _ = library.load()
    assert isinstance(loaded, ctypes.CDLL)
    for instructions in INSTRUCTIONS + ROUNDING:
        for name in ("pack", "lstm_forward", "lstm_backward", "weights", "affine", "cross_entropy"):
            assert hasattr(loaded, f"{name}_{instructions}")


@built
def test_the_kernel_may_have_all_threads_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "native")
    torch.set_num_threads(3)
    for _ in range(2):
        with kernels.alone(torch.device("cpu")), kernels.alone(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            assert kernels.serving().endswith("3 threads")
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    with kernels.alone(torch.device("cpu")):
        assert torch.get_num_threads() == 3


@built
def test_backward_goes_once_and_says_so() -> None:
    case = Case(2, 2, 3, masked=False, resets=False)
    h, _ = case.made(INSTRUCTIONS[0])
    torch.autograd.grad(h.sum(), case.float, retain_graph=True)
    with pytest.raises(RuntimeError, match="goes backward once"):
        torch.autograd.grad(h.sum(), case.float)


@built
@each_instruction_set
def test_dropout_masks_are_fair_and_the_same_for_the_same_generator(instructions: str) -> None:
    shape = (50, 64, 128)

    def mask(seed: int, count: int, isa: str = instructions) -> Tensor:
        torch.set_num_threads(count)
        return native.dropout_mask(isa, shape, 0.2, torch.Generator().manual_seed(seed))

    first, second = mask(1, 2), mask(2, 2)
    assert torch.equal(first, mask(1, 1, INSTRUCTIONS[0]))
    for made in (first, second):
        assert made.unique().tolist() == [0.0, 1.25]  # type: ignore[no-untyped-call]
        # Five standard deviations, for all elements and for each row and unit.
        for elements, mean in (
            (made.numel(), made.mean()),
            (3200, made.mean(dim=(0, 1))),
            (6400, made.mean((0, 2))),
        ):
            assert (mean - 1).abs().max() < 5 * 0.5 / elements**0.5
    # Masks of two seeds, and neighbours in one mask, agree as often as chance has them agree: 0.68.
    for a, b in ((first, second), (first[1:], first[:-1]), (first[..., 1:], first[..., :-1])):
        assert abs((a == b).double().mean().item() - 0.68) < 5 * 0.47 / 400_000**0.5
