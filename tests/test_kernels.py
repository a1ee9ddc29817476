"""The compiled kernel against the plain path in float64: every instruction set that this machine has."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError
from grimmgen.network import backends, loss, products
from grimmgen.network.backends.cpu import library, native, programs
from grimmgen.network.cells import gru, lstm, peephole

INSTRUCTIONS = library.instruction_sets()
built = pytest.mark.skipif(not INSTRUCTIONS, reason=f"there is no compiled kernel: {library.load()[1]}")
ROUNDING = library.instruction_sets("bf16")
rounds = pytest.mark.skipif(not ROUNDING, reason="there are no instructions for bfloat16 here")
each_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS or ["none"])


class Cell(NamedTuple):
    gates: int
    plain: Any  # its operation on the plain path
    native: Any  # the compiled one, of the instruction set, x, ids, bias, weights, states, mask, starts
    states: int  # 2: h and c; 1: h alone
    own: Callable[[int], tuple[int, ...]]  # H → the shape of the weights that the LSTM has not


def lstm_window(instructions: str, x: Tensor, ids: Tensor | None, bias: Tensor | None, *rest: Any) -> Any:
    if ids is None:
        return native.LSTMWindow.apply(instructions, x, *rest)  # type: ignore[no-untyped-call]
    return native.LookUpWindow.apply(instructions, ids, x, bias, *rest)  # type: ignore[no-untyped-call]


CELLS = {
    "lstm": Cell(4, lstm.LSTMWindow, lstm_window, 2, lambda _: ()),
    "peephole": Cell(4, peephole.PeepholeWindow, native.PeepholeWindow.apply, 2, lambda H: (3, H)),
    "gru": Cell(3, gru.GRUWindow, native.GRUWindow.apply, 1, lambda H: (H,)),
}
each_cell = pytest.mark.parametrize("cell", CELLS)
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

    def __init__(self, T: int, B: int, H: int, masked: bool, resets: bool, V: int = 0, cell: str = "lstm") -> None:
        # With this seed no gradient is a sum that all but cancels: of such a one float32 has no digits left.
        draw = torch.Generator().manual_seed(500_000 + 1000 * T + 10 * B + H + 2 * V)
        self.cell = CELLS[cell]
        G = self.cell.gates
        self.ids = torch.randint(0, V, (T, B), generator=draw) if V else None
        x = [double(draw, V, G * H), double(draw, G * H)] if V else [double(draw, T, B, G * H)]
        u = (double(draw, H, G * H).float() * H**-0.5).double()
        # Larger peepholes make a cell state grow, and an error with it.
        own = [0.5 * double(draw, *self.cell.own(H))] if self.cell.own(H) else []
        states = [double(draw, B, H) for _ in range(self.cell.states)]
        self.double = [t.requires_grad_() for t in (*x, u, *own, *states)]
        self.float = [t.detach().float().requires_grad_() for t in self.double]
        self.mask = torch.rand(T, B, H, generator=draw).lt(0.8) * 1.25 if masked else None
        self.starts = torch.rand(T, B, generator=draw).lt(0.1) if resets else None
        self.upstream = (double(draw, T, B, H), double(draw, B, H))[: self.cell.states]

    def right(self, precision: Products = "fp32") -> tuple[Tensor, ...]:
        """The plain path: in float64, or with products of bfloat16 in float32."""
        x, *rest = self.double if precision == "fp32" else self.float
        if self.ids is not None:
            bias, *rest = rest
            x = torch.nn.functional.embedding(self.ids, x + bias)
        mask = None if self.mask is None else self.mask.to(x.dtype)
        made = self.cell.plain.apply(x, *rest, mask, self.starts, precision)
        return made if self.cell.states == 2 else (made,)

    def made(self, instructions: str) -> tuple[Tensor, ...]:
        x, *rest = self.float
        bias = rest.pop(0) if self.ids is not None else None
        made = self.cell.native(instructions, x, self.ids, bias, *rest, self.mask, self.starts)
        return made if self.cell.states == 2 else (made,)

    def everything(self, instructions: str) -> tuple[Tensor, ...]:
        made = self.made(instructions)
        return *made, *torch.autograd.grad(made, self.float, [u.float() for u in self.upstream])

    def compare(self, instructions: str, outputs: tuple[int, ...] | None = None) -> None:
        made, right = self.made(instructions), self.right()
        for a, b in zip(made, right, strict=True):
            assert difference(a, b) < 1e-5
        outputs = tuple(range(self.cell.states)) if outputs is None else outputs
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
@each_cell
@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", STEPS)
def test_window_and_its_gradients_are_the_plain_ones(instructions: str, cell: str, T: int, B: int, H: int) -> None:
    torch.set_num_threads(1 + H % 3)
    for V in (0, 11):
        Case(T, B, H, masked=True, resets=True, V=V, cell=cell).compare(instructions)


@rounds
@each_cell
@pytest.mark.parametrize("H", SIZES)
@pytest.mark.parametrize("B", BATCHES)
@pytest.mark.parametrize("T", STEPS)
def test_window_of_bfloat16_products_is_the_plain_one(cell: str, T: int, B: int, H: int) -> None:
    torch.set_num_threads(1 + H % 3)
    for V in (0, 11):
        Case(T, B, H, masked=True, resets=True, V=V, cell=cell).compare_rounded(ROUNDING[0])


@rounds
@each_cell
@pytest.mark.parametrize(("masked", "resets"), [(False, False), (True, False), (False, True)])
def test_masks_and_resets_with_bfloat16_products(cell: str, masked: bool, resets: bool) -> None:
    Case(5, 7, 19, masked, resets, cell=cell).compare_rounded(ROUNDING[0])


# What a sabotage multiplies: of which function, the argument at which place; and in which cell.
WRONG = [
    *[("lstm", "lstm_backward", at) for at in (8, 10, 11)],  # the gradients by z, h0, c0
    ("peephole", "lstm_backward", 12),  # by the peepholes
    *[("gru", "gru_backward", at) for at in (7, 9)],  # by a and x, by h0
    *[(cell, "weights", at) for cell in CELLS for at in (9, 10, 11)],  # by U, by the input weight, by biases
]


@rounds
@pytest.mark.parametrize(("cell", "wrong", "at"), WRONG)
def test_a_sabotaged_kernel_of_bfloat16_products_is_caught(
    cell: str, wrong: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(wrong, at, 1.0003, monkeypatch)
    with pytest.raises(AssertionError):
        Case(1, 3, 7, masked=True, resets=True, V=11, cell=cell).compare_rounded(ROUNDING[0])


@rounds
@each_cell
def test_products_that_are_not_rounded_are_caught(cell: str) -> None:
    with pytest.raises(AssertionError):
        Case(1, 3, 100, masked=True, resets=True, cell=cell).compare_rounded(INSTRUCTIONS[0])


@built
@each_instruction_set
@each_cell
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("masked", "resets"), [(False, False), (True, False), (False, True)])
def test_masks_resets_and_threads(instructions: str, cell: str, count: int, masked: bool, resets: bool) -> None:
    torch.set_num_threads(count)
    for V in (0, 5):
        Case(5, 7, 19, masked, resets, V, cell).compare(instructions)


@built
@each_instruction_set
@pytest.mark.parametrize("cell", ["lstm", "peephole"])
@pytest.mark.parametrize("outputs", [(0,), (1,)])
def test_gradients_that_are_absent_upstream(instructions: str, cell: str, outputs: tuple[int, ...]) -> None:
    Case(4, 3, 10, masked=True, resets=True, cell=cell).compare(instructions, outputs)


@built
@each_cell
def test_a_story_that_starts_forgets_what_was_before(cell: str) -> None:
    case = Case(3, 2, 5, masked=False, resets=True, cell=cell)
    assert case.starts is not None
    case.starts[:] = False
    case.starts[0, 1] = True
    for by_state in case.everything(INSTRUCTIONS[0])[-case.cell.states :]:
        assert by_state[0].all()
        assert not by_state[1].any()


@built
@each_instruction_set
@each_cell
def test_arguments_need_not_be_contiguous(instructions: str, cell: str) -> None:
    case = Case(4, 6, 9, masked=True, resets=True, cell=cell)

    def astride(given: Tensor) -> Tensor:
        # Every other number of twice as many, or the transpose of a transposed copy.
        return given.mT.contiguous().mT if given.dim() > 1 else torch.stack([given, -given], 1)[:, 0]

    case.float = [astride(t.detach()).requires_grad_() for t in case.float]
    assert case.mask is not None
    case.mask = case.mask.mT.contiguous().mT
    case.upstream = tuple(u.mT.contiguous().mT for u in case.upstream)
    case.compare(instructions)


@built
@pytest.mark.parametrize("instructions", INSTRUCTIONS + ROUNDING or ["none"])
@each_cell
@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_again_and_with_any_number_of_threads(instructions: str, cell: str, count: int) -> None:
    case = Case(20, 9, 33, masked=True, resets=True, V=13, cell=cell)
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
    right = loss.CrossEntropy.apply(*wide, targets)  # type: ignore[no-untyped-call]
    made = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
    if V > 1:
        assert difference(made, right) < 1e-5
    for factor in (1, 3):
        ours = torch.autograd.grad(factor * made, narrow, retain_graph=True)
        theirs = torch.autograd.grad(factor * loss.CrossEntropy.apply(*wide, targets), wide)  # type: ignore[no-untyped-call]
        for a, b in zip(ours, theirs, strict=True):
            assert difference(a, b) < 1e-5 or V == 1
        again = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
        assert all(map(torch.equal, torch.autograd.grad(factor * again, narrow), ours))
    losses = native.negative_log_likelihood(instructions, hidden, weight, bias, targets)
    right_losses = loss.negative_log_likelihood(wide[0], wide[1], wide[2], targets)
    assert (losses[targets < 0] == 0).all()
    assert torch.allclose(losses.double(), right_losses, atol=1e-5)


@rounds
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (2, 7, 3), (128, 5, 17), (256, 100, 65), (1024, 129, 545)])
def test_cross_entropy_of_bfloat16_products_is_the_plain_one(count: int, N: int, H: int, V: int) -> None:
    # N is a power of two: the kernel divides by it before it rounds, the plain path afterwards.
    torch.set_num_threads(count)
    wide, narrow, targets = head(N, H, V)
    right = loss.CrossEntropy.apply(*wide, targets)  # type: ignore[no-untyped-call]
    rounded = loss.CrossEntropy.apply(*narrow, targets, "bf16")  # type: ignore[no-untyped-call]
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


AFFINE = [(1, 1, 1), (3, 7, 129), (129, 100, 7), (300, 129, 65)]  # N, K, M


def affine_of(N: int, K: int, M: int, biased: bool) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """x, the weight and perhaps the bias, in float64 and in float32; and a gradient by what is made of them."""
    draw = torch.Generator().manual_seed(N + K + M)
    wide = [double(draw, N, K), double(draw, K, M), double(draw, M)][: 2 + biased]
    upstream = double(draw, N, M)
    return [t.requires_grad_() for t in wide], [t.detach().float().requires_grad_() for t in wide], upstream


def everything_of(made: Tensor, given: list[Tensor], upstream: Tensor) -> list[Tensor]:
    return [made, *torch.autograd.grad(made, given, upstream)]


@built
@each_instruction_set
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("N", "K", "M"), AFFINE)
def test_affine_and_its_gradients_are_the_plain_ones(
    instructions: str, count: int, biased: bool, N: int, K: int, M: int
) -> None:
    torch.set_num_threads(count)
    wide, narrow, upstream = affine_of(N, K, M, biased)

    def made() -> list[Tensor]:
        y = native.Affine.apply(instructions, *narrow, *[None] * (3 - len(narrow)))  # type: ignore[no-untyped-call]
        return everything_of(y, narrow, upstream.float())

    ours = made()
    for a, b in zip(ours, everything_of(sum(wide[2:], wide[0] @ wide[1]), wide, upstream), strict=True):
        assert difference(a, b) < 1e-5
    assert all(map(torch.equal, made(), ours))


@rounds
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(("N", "K", "M"), AFFINE)
def test_affine_of_bfloat16_products_is_the_plain_one(count: int, N: int, K: int, M: int) -> None:
    torch.set_num_threads(count)
    wide, narrow, upstream = affine_of(N, K, M, biased=True)
    y = native.Affine.apply(ROUNDING[0], *narrow)  # type: ignore[no-untyped-call]
    rounded = products.Affine.apply(*narrow, "bf16")  # type: ignore[no-untyped-call]
    ours = everything_of(y, narrow, upstream.float())
    plain = everything_of(rounded, narrow, upstream.float())
    exact = everything_of(wide[0] @ wide[1] + wide[2], wide, upstream)
    for a, b, c in zip(ours, plain, exact, strict=True):
        assert difference(a, b.double()) < 1e-5
        assert difference(a, c) < 1e-2


@built
@pytest.mark.parametrize(("wrong", "at"), [("affine", 6), ("weights", 9), ("weights", 11)])
def test_a_sabotaged_affine_is_caught(wrong: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(wrong, at, 1.0001, monkeypatch)
    with pytest.raises(AssertionError):
        test_affine_and_its_gradients_are_the_plain_ones(INSTRUCTIONS[0], 1, True, 3, 7, 129)


@built
@each_cell
@pytest.mark.parametrize("wrong", [-1, 5])
def test_an_id_that_is_not_within_the_vocabulary_reaches_no_memory(cell: str, wrong: int) -> None:
    case = Case(2, 1, 2, masked=False, resets=False, V=5, cell=cell)
    assert case.ids is not None
    case.ids[1] = wrong
    with pytest.raises(IndexError, match="an id is not within the vocabulary of 5"):
        case.made(INSTRUCTIONS[0])


@built
def test_a_target_that_is_not_within_the_vocabulary_reaches_no_memory() -> None:
    def loss(wrong: int) -> float:
        given = INSTRUCTIONS[0], torch.zeros(2, 2), torch.zeros(2, 5), torch.zeros(5), torch.tensor([0, wrong])
        made: float = native.CrossEntropy.apply(*given).item()  # type: ignore[no-untyped-call]
        return made

    assert loss(-1) == pytest.approx(math.log(5) / 2), "a target may be none"
    with pytest.raises(IndexError, match="a target is not within the vocabulary of 5"):
        loss(5)


@built
def test_what_is_not_a_number_stays_so() -> None:
    for instructions in INSTRUCTIONS:
        _, narrow, targets = head(3, 2, 40)
        targets[:] = 1
        with torch.no_grad():
            narrow[0][1, 0] = float("nan")
        loss = native.CrossEntropy.apply(instructions, *narrow, targets)  # type: ignore[no-untyped-call]
        assert loss.isnan()
        for cell in CELLS:
            case = Case(3, 2, 20, masked=False, resets=False, cell=cell)
            with torch.no_grad():
                case.float[0][1, 1, 3] = float("nan")
            assert case.made(instructions)[0][2, 1].isnan().any()


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the library's functions, as they are called."""
    called: list[str] = []
    right = programs.run

    def noted(name: str, given: Any) -> None:
        called.append(name)
        right(name, given)

    monkeypatch.setattr(programs, "run", noted)
    return called


SERVED = {"pack", "lstm_forward", "gru_forward", "cross_entropy", "sum"}


def use(dtype: torch.dtype, precision: Products = "fp32") -> None:
    x, u, state = torch.zeros(2, 3, 8, dtype=dtype), torch.zeros(2, 8, dtype=dtype), torch.zeros(3, 2, dtype=dtype)
    weight, bias, targets = torch.zeros(2, 5, dtype=dtype), torch.zeros(5, dtype=dtype), torch.zeros(6).long()
    ids, p = torch.zeros(2, 3).long(), torch.zeros(3, 2, dtype=dtype)
    h, _ = backends.lstm_window(x, u, state, state, None, None, precision)
    h, _ = backends.lstm_look_up_window(ids, x[0], x[0, 0], u, state, state, None, None, precision)
    backends.peephole_window(x, u, p, state, state, None, None, precision)
    backends.peephole_look_up_window(ids, x[0], x[0, 0], u, p, state, state, None, None, precision)
    x, u = x[..., :6], u[:, :6]
    backends.gru_window(x, u, p[0], state, None, None, precision)
    backends.gru_look_up_window(ids, x[0], x[0, 0], u, p[0], state, None, None, precision)
    backends.cross_entropy(h.view(6, 2), weight, bias, targets, precision)
    backends.negative_log_likelihood(h.view(6, 2), weight, bias, targets)


@built
@each_instruction_set
def test_the_environment_forces_a_path(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    torch.set_num_threads(2)
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    use(torch.float32)
    assert {name.rpartition("_")[2] for name in called} == {instructions}
    assert {name.rpartition("_")[0] for name in called} == SERVED
    assert [called.count(f"{cell}_forward_{instructions}") for cell in ("lstm", "gru")] == [4, 2]
    assert backends.serving().startswith("native ")
    assert backends.serving().endswith(", 2 threads")
    called.clear()
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    use(torch.float32)
    assert not called
    assert backends.serving() == "PyTorch"


@rounds
def test_bfloat16_products_are_served_by_the_kernel_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    monkeypatch.setenv("GRIMMGEN_KERNEL", INSTRUCTIONS[0])
    use(torch.float32, "bf16")
    served = {name.partition(f"_{INSTRUCTIONS[0]}") for name in called}
    assert {name for name, _, kind in served if kind == "bf16"} == SERVED
    # To tell how likely a text is nothing is rounded.
    assert called[-1] == f"cross_entropy_{INSTRUCTIONS[0]}"
    assert " bf16, " in backends.serving(precision="bf16")
    assert "bf16" not in backends.serving()


@built
def test_bfloat16_products_without_instructions_for_them_are_served_by_the_plain_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    called = calls(monkeypatch)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "scalar")
    use(torch.float32, "bf16")
    assert {name.rpartition("_")[0] for name in called} == {"pack", "cross_entropy"}
    assert backends.serving(precision="bf16").startswith("PyTorch bf16 (there are no instructions for")


def test_precision_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    precision: Products
    for precision in ("fp32", "bf16"):
        asked = Configuration(precision=precision)
        assert backends.resolve_precision(asked, torch.device("cpu")) == precision
    had = library.instruction_sets("bf16")
    for cell in backends.COMPILED:
        resolved = backends.resolve_precision(Configuration(cell=cell), torch.device("cpu"))
        assert resolved == ("bf16" if had else "fp32")
    assert backends.resolve_precision(Configuration(cell="mogrifier", embedding=4), torch.device("cpu")) == "fp32"
    assert backends.resolve_precision(Configuration(), torch.device("cuda")) == "fp32"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert backends.resolve_precision(Configuration(), torch.device("cpu")) == "fp32"


def test_other_types_are_served_by_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    called = calls(monkeypatch)
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    use(torch.float64)
    assert not called
    assert backends.serving(dtype=torch.float64).startswith("PyTorch (")


def test_an_unknown_path_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec is not to be had here"):
        backends.serving()


def test_without_the_library_the_plain_path_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, reason = right = library.load.__wrapped__(tmp_path)
    assert loaded is None
    assert reason == "the package was installed without a C compiler"
    monkeypatch.setattr(library, "load", lambda: right)
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    assert backends.serving() == f"PyTorch ({reason})"
    use(torch.float32)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "native")
    with pytest.raises(UsageError, match="without a C compiler"):
        backends.serving()


def test_a_library_that_cannot_be_loaded_is_said_so(tmp_path: Path) -> None:
    (tmp_path / f"_native{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    loaded, reason = library.load.__wrapped__(tmp_path)
    assert loaded is None
    assert "cannot be loaded" in reason


def sabotage(wrong: str, at: int, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multiply what a function of the library, called with these arguments, has made of the one at that place."""
    right = programs.run

    def sabotaged(name: str, given: Any) -> None:
        right(name, given)
        if name.startswith(wrong) and given[0][at] is not None:
            given[0][at].mul_(factor)

    monkeypatch.setattr(programs, "run", sabotaged)


@built
@pytest.mark.parametrize(("cell", "wrong", "at"), WRONG)
def test_a_sabotaged_kernel_is_caught(cell: str, wrong: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(wrong, at, 1.0001, monkeypatch)
    with pytest.raises(AssertionError):
        Case(5, 3, 7, masked=True, resets=True, V=11, cell=cell).compare(INSTRUCTIONS[0])


@built
def test_the_library_names_every_function_for_every_instruction_set() -> None:
    loaded, _ = library.load()
    assert isinstance(loaded, ctypes.CDLL)
    for instructions in INSTRUCTIONS + ROUNDING:
        for name in programs._TAKES:
            assert hasattr(loaded, f"{name}_{instructions}")


@built
def test_the_kernel_may_have_all_threads_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "native")
    torch.set_num_threads(3)
    for _ in range(2):
        with backends.alone(torch.device("cpu")), backends.alone(torch.device("cpu")):
            assert torch.get_num_threads() == 1
            assert backends.serving().endswith("3 threads")
        assert torch.get_num_threads() == 3
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    with backends.alone(torch.device("cpu")):
        assert torch.get_num_threads() == 3


@built
@each_cell
def test_backward_goes_once_and_says_so(cell: str) -> None:
    case = Case(2, 2, 3, masked=False, resets=False, cell=cell)
    h, *_ = case.made(INSTRUCTIONS[0])
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
