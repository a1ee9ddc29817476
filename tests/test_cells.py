"""The cells and the softmax layer against automatic differentiation, numbers, and `torch.nn`.

T  steps    B  rows    H  hidden units    E  numbers of the input    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from grimmgen.network.loss import CrossEntropy, negative_log_likelihood
from grimmgen.network.products import product
from torch import Tensor

from grimmgen.network.cells import gru, lstm, mogrifier, peephole
from tests.equations import Tensors, gru_step, lstm_step, mogrifier_step, peephole_step


class Cell(NamedTuple):
    module: ModuleType
    window: Any  # its operation
    step: Callable[..., Tensors]  # its equations: x[t], the weights, h, c → h, c
    states: int  # 2: h and c; 1: h alone
    shapes: Callable[[int, int], list[tuple[int, ...]]]  # H, E → of x[t]'s row and of the weights


def mogrifier_of(rounds: int) -> Cell:
    def shapes(H: int, E: int) -> list[tuple[int, ...]]:
        return [(E,), (E, 4 * H), (4 * H,), (H, 4 * H), ((rounds + 1) // 2, H, E), (rounds // 2, E, H)]

    return Cell(mogrifier, mogrifier.MogrifierWindow, mogrifier_step, 2, shapes)


CELLS = {
    "lstm": Cell(lstm, lstm.LSTMWindow, lstm_step, 2, lambda H, _: [(4 * H,), (H, 4 * H)]),
    "peephole": Cell(
        peephole, peephole.PeepholeWindow, peephole_step, 2, lambda H, _: [(4 * H,), (H, 4 * H), (3, H)]
    ),
    "gru": Cell(gru, gru.GRUWindow, gru_step, 1, lambda H, _: [(3 * H,), (H, 3 * H), (H,)]),
    **{f"mogrifier of {rounds} rounds": mogrifier_of(rounds) for rounds in range(6)},
}
# Of the rounds of the Mogrifier only as many as a test can profit from.
FOUR = ["lstm", "peephole", "gru", "mogrifier of 5 rounds"]
GRADIENTS = [(name, at) for name in FOUR for at in range(len(CELLS[name].shapes(1, 1)) + CELLS[name].states)]
SHAPES = [(1, 1, 1, 1), (1, 3, 7, 2), (5, 1, 4, 6), (6, 3, 5, 1), (4, 2, 1, 3), (50, 2, 3, 4)]


def plain(cell: Cell, inputs: Tensors, mask: Tensor | None, starts: Tensor | None) -> Tensors:
    """The equations, a step at a time, for automatic differentiation."""
    x, weights, state = inputs[0], inputs[1 : -cell.states], inputs[-cell.states :]
    outputs = []
    for t in range(len(x)):
        if starts is not None:
            state = tuple(s * (~starts[t]).to(x.dtype)[:, None] for s in state)
        state = cell.step(x[t], *weights, *state)
        if mask is not None:
            state = (state[0] * mask[t if len(mask) > 1 else 0], *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), *state[1:]


def run(cell: Cell, inputs: Tensors, mask: Tensor | None, starts: Tensor | None) -> Tensors:
    """The same by the cell's operation."""
    made = cell.window.apply(*inputs, mask, starts)
    return made if cell.states == 2 else (made,)


def window(
    cell: Cell, T: int, B: int, H: int, E: int, dropout: str, resets: bool
) -> tuple[Tensors, Tensor | None, Tensor | None]:
    """Its inputs, its mask and its starts."""
    draw = torch.Generator().manual_seed(T * 1000 + B * 100 + H * 10 + E)
    row, *weights = cell.shapes(H, E)

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(shape, generator=draw, dtype=torch.float64)).requires_grad_()

    # A matrix of weights makes numbers no larger than it was given, however many it adds up.
    drawn = (normal(*shape, scale=shape[-2] ** -0.5 if len(shape) > 1 else 1.0) for shape in weights)
    inputs = (normal(T, B, *row), *drawn, *(normal(B, H) for _ in range(cell.states)))
    steps = {"none": 0, "fresh": T, "locked": 1}[dropout]
    mask = torch.rand(steps, B, H, generator=draw, dtype=torch.float64).lt(0.8).double() / 0.8 if steps else None
    starts = torch.rand(T, B, generator=draw).lt(0.3) if resets else None
    return inputs, mask, starts


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws is the same in every run: where a gradient almost cancels, float32 has no digits left."""
    torch.manual_seed(0)


def difference(made: Tensors, right: Tensors) -> float:
    assert [a.shape for a in made] == [b.shape for b in right]
    return torch.cat([(a - b).abs().flatten() for a, b in zip(made, right, strict=True)]).max().item()


def gradients(outputs: Tensors, inputs: Tensors, upstream: Tensors) -> Tensors:
    return torch.autograd.grad(
        outputs, inputs, upstream, retain_graph=True, allow_unused=True, materialize_grads=True
    )


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("dropout", ["none", "fresh", "locked"])
@pytest.mark.parametrize(("T", "B", "H", "E"), SHAPES)
@pytest.mark.parametrize("name", CELLS)
def test_window_and_its_gradients_are_those_of_automatic_differentiation(
    name: str, T: int, B: int, H: int, E: int, dropout: str, resets: bool
) -> None:
    inputs, mask, starts = window(CELLS[name], T, B, H, E, dropout, resets)
    made = run(CELLS[name], inputs, mask, starts)
    right = plain(CELLS[name], inputs, mask, starts)
    assert difference(made, right) < 1e-13
    # A gradient for every output, and none at all for the last cell state, or for the hidden states.
    upstream = tuple(torch.randn_like(output) for output in right)
    for some in (slice(None), slice(1), slice(1, None))[: 2 * CELLS[name].states - 1]:
        ours = gradients(made[some], inputs, upstream[some])
        theirs = gradients(right[some], inputs, upstream[some])
        assert difference(ours, theirs) < 1e-11


@pytest.mark.parametrize("name", [name for name, cell in CELLS.items() if cell.states == 2])
def test_no_gradient_of_the_last_cell_state_is_one_of_zero(name: str) -> None:
    inputs, mask, starts = window(CELLS[name], 4, 2, 3, 5, "fresh", resets=True)
    module = CELLS[name].module
    h, c, saved = module.forward(*(given.detach() for given in inputs), mask, starts)
    absent = module.backward(torch.ones_like(h), None, saved)
    assert difference(absent, module.backward(torch.ones_like(h), torch.zeros_like(c), saved)) == 0


@pytest.mark.parametrize("dropout", ["fresh", "locked"])
@pytest.mark.parametrize("name", FOUR)
def test_numerical_gradients_agree(name: str, dropout: str) -> None:
    inputs, mask, starts = window(CELLS[name], 3, 2, 2, 3, dropout, resets=True)
    assert torch.autograd.gradcheck(lambda *given: run(CELLS[name], given, mask, starts), inputs)


@pytest.mark.parametrize(("name", "wrong"), GRADIENTS)
def test_a_sabotaged_backward_is_caught(name: str, wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = CELLS[name].module.backward

    def sabotaged(*given: Any) -> Tensors:
        made = list(right(*given))
        made[wrong] = made[wrong] * 1.001
        return tuple(made)

    monkeypatch.setattr(CELLS[name].module, "backward", sabotaged)
    with pytest.raises(AssertionError):
        test_window_and_its_gradients_are_those_of_automatic_differentiation(
            name, 6, 3, 5, 4, "fresh", resets=True
        )


@pytest.mark.parametrize(("T", "B", "H", "E"), SHAPES)
@pytest.mark.parametrize("name", ["lstm", "peephole", "gru", "mogrifier of 0 rounds", "mogrifier of 5 rounds"])
def test_window_is_that_of_torch_nn_with_converted_weights(name: str, T: int, B: int, H: int, E: int) -> None:
    cell = CELLS[name]
    oracle = (torch.nn.GRU if name == "gru" else torch.nn.LSTM)(E, H, dtype=torch.float64)
    w, u, b, recurrent_b = (weight + 0 for weight in oracle.parameters())
    x, h0, c0 = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((T, B, E), (B, H), (B, H)))
    state = (h0, c0)[: cell.states]
    # The gates of torch.nn.LSTM stand in the order i, f, g, o, which is i, f, c̃, o here; those of torch.nn.GRU
    # in ours. What a cell adds to the LSTM is put to zero: it then is one.
    if name == "gru":
        b, b_n = b + recurrent_b * (torch.arange(3 * H) < 2 * H), recurrent_b[2 * H :]
        inputs: Tensors = (x @ w.T + b, u.T, b_n)
    elif cell.module is mogrifier:
        q, r = (torch.zeros(shape, dtype=torch.float64) for shape in cell.shapes(H, E)[-2:])
        inputs = (x, w.T, b + recurrent_b, u.T, q, r)
    else:
        added = (torch.zeros(shape, dtype=torch.float64) for shape in cell.shapes(H, E)[2:])
        inputs = (x @ w.T + b + recurrent_b, u.T, *added)
    made = run(cell, (*inputs, *state), None, None)
    h, last = oracle(x, tuple(s[None] for s in state) if cell.states == 2 else h0[None])
    right = (h, last[1][0]) if cell.states == 2 else (h,)
    assert difference(made, right) < 1e-13
    upstream = tuple(torch.randn_like(output) for output in right)
    learned = (x, *oracle.parameters(), *state)
    assert difference(gradients(made, learned, upstream), gradients(right, learned, upstream)) < 1e-11


@pytest.mark.parametrize("H", [1, 7, 100, 129])
@pytest.mark.parametrize("name", FOUR)
def test_float32_is_as_good_as_float32_can_be(name: str, H: int) -> None:
    inputs, mask, starts = window(CELLS[name], 20, 3, H, H + 1, "fresh", resets=True)
    single = tuple(a.detach().float().requires_grad_() for a in inputs)
    assert mask is not None
    right = plain(CELLS[name], inputs, mask, starts)
    ours = run(CELLS[name], single, mask.float(), starts)
    upstream = tuple(torch.randn_like(output) for output in right)
    wanted = *right, *gradients(right, inputs, upstream)
    made = *ours, *gradients(ours, single, tuple(a.float() for a in upstream))
    for a, b in zip(made, wanted, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


@pytest.mark.parametrize("name", FOUR)
def test_every_product_of_a_cell_rounds_to_bfloat16_on_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cell, asked = CELLS[name], []
    right = cell.module.product

    def noted(a: Tensor, b: Tensor, precision: str = "fp32") -> Tensor:
        asked.append(precision)
        return right(a, b, precision)  # type: ignore[no-any-return]

    monkeypatch.setattr(cell.module, "product", noted)
    inputs, mask, starts = window(cell, 3, 2, 30, 20, "fresh", resets=False)
    exact, rounded = (cell.window.apply(*inputs, mask, starts, precision) for precision in ("fp32", "bf16"))
    exact, rounded = ((made,) if cell.states == 1 else made for made in (exact, rounded))
    upstream = tuple(torch.randn_like(output) for output in exact)
    truth, made = (*exact, *gradients(exact, inputs, upstream)), (*rounded, *gradients(rounded, inputs, upstream))
    assert asked.count("fp32") == asked.count("bf16") > 6
    for a, b in zip(made, truth, strict=True):
        assert 1e-5 * b.norm() < (a - b).norm() < 3e-2 * b.norm()


@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (7, 5, 11), (650, 3, 4), (1290, 2, 3)])
def test_cross_entropy_is_that_of_torch_rows_without_a_target_apart(N: int, H: int, V: int) -> None:
    draw = torch.Generator().manual_seed(N)
    given = [
        torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()
        for shape in ((N, H), (H, V), (V,))
    ]
    hidden, weight, bias = given
    targets = torch.randint(-1, V, (N,), generator=draw)
    losses = torch.nn.functional.cross_entropy(hidden @ weight + bias, targets, ignore_index=-1, reduction="none")
    assert difference((negative_log_likelihood(hidden, weight, bias, targets),), (losses,)) < 1e-12
    made = CrossEntropy.apply(hidden, weight, bias, targets)  # type: ignore[no-untyped-call]
    right = losses.sum() / N
    assert difference((made,), (right,)) < 1e-12
    ours, theirs = torch.autograd.grad(3 * made, given), torch.autograd.grad(3 * right, given)
    assert difference(ours, theirs) < 1e-12


def test_the_loss_of_what_is_all_but_impossible_is_finite() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]])
    losses = negative_log_likelihood(hidden, weight, torch.zeros(2), torch.tensor([1]))
    assert losses.item() == pytest.approx(500.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_product_is_the_matrix_product(dtype: torch.dtype, transposed: tuple[bool, bool]) -> None:
    a = torch.randn(4, 7, dtype=dtype).T if transposed[0] else torch.randn(7, 4, dtype=dtype)
    b = torch.randn(5, 4, dtype=dtype).T if transposed[1] else torch.randn(4, 5, dtype=dtype)
    assert torch.allclose(product(a, b), (a.double() @ b.double()).to(dtype), atol=1e-5)
    exact = a.bfloat16().double() @ b.bfloat16().double()
    assert torch.allclose(product(a, b, "bf16"), exact.to(dtype), atol=1e-5)
    assert product(a, b, "bf16").dtype == dtype
