"""The cell and the softmax layer against automatic differentiation, numbers, and `torch.nn`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from grimmgen.cells import lstm
from grimmgen.cells.lstm import LSTMWindow
from grimmgen.cells.products import product
from grimmgen.cells.softmax import CrossEntropy, negative_log_likelihood

SHAPES = [(1, 1, 1), (1, 3, 7), (5, 1, 4), (6, 3, 5), (50, 2, 3)]


def plain(
    x: Tensor, u: Tensor, h: Tensor, c: Tensor, mask: Tensor | None, starts: Tensor | None
) -> tuple[Any, Any]:
    """The tutorial's equations, a step at a time, for automatic differentiation."""
    outputs = []
    for t in range(len(x)):
        if starts is not None:
            keep = (~starts[t]).to(x.dtype)[:, None]
            h, c = h * keep, c * keep
        i, f, candidate, o = (x[t] + h @ u).chunk(4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
        h = torch.sigmoid(o) * torch.tanh(c)
        if mask is not None:
            h = h * mask[t]
        outputs.append(h)
    return torch.stack(outputs), c


Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def window(T: int, B: int, H: int, masked: bool, resets: bool) -> tuple[Inputs, Tensor | None, Tensor | None]:
    draw = torch.Generator().manual_seed(T * 100 + B * 10 + H)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).requires_grad_()

    inputs = (normal(T, B, 4 * H), normal(H, 4 * H), normal(B, H), normal(B, H))
    mask = torch.rand(T, B, H, generator=draw, dtype=torch.float64).lt(0.8).double() / 0.8 if masked else None
    starts = torch.rand(T, B, generator=draw).lt(0.3) if resets else None
    return inputs, mask, starts


def difference(made: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(made, right, strict=True))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
def test_window_and_its_gradients_are_those_of_automatic_differentiation(
    T: int, B: int, H: int, masked: bool, resets: bool
) -> None:
    inputs, mask, starts = window(T, B, H, masked, resets)
    made = LSTMWindow.apply(*inputs, mask, starts)  # type: ignore[no-untyped-call]
    right = plain(*inputs, mask, starts)
    assert difference(made, right) < 1e-13
    # A gradient for every output, and none at all for the last cell state.
    upstream = tuple(torch.randn_like(output) for output in right)
    for outputs in (2, 1):
        ours = torch.autograd.grad(made[:outputs], inputs, upstream[:outputs], retain_graph=True)
        theirs = torch.autograd.grad(right[:outputs], inputs, upstream[:outputs], retain_graph=True)
        assert difference(ours, theirs) < 1e-11


def test_numerical_gradients_agree() -> None:
    inputs, mask, starts = window(4, 2, 3, masked=True, resets=True)
    assert torch.autograd.gradcheck(lambda *given: LSTMWindow.apply(*given, mask, starts), inputs)  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("wrong", range(4))
def test_a_sabotaged_backward_is_caught(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = lstm.backward

    def sabotaged(*given: Any) -> Any:
        gradients = list(right(*given))
        gradients[wrong] = gradients[wrong] * 1.001
        return tuple(gradients)

    monkeypatch.setattr(lstm, "backward", sabotaged)
    with pytest.raises(AssertionError):
        test_window_and_its_gradients_are_those_of_automatic_differentiation(6, 3, 5, masked=True, resets=True)


@pytest.mark.parametrize(("T", "B", "H"), SHAPES)
def test_window_is_that_of_torch_nn_lstm_with_converted_weights(T: int, B: int, H: int) -> None:
    (_, u, h0, c0), _, _ = window(T, B, H, masked=False, resets=False)
    width = 3
    weight = torch.randn(width, 4 * H, dtype=torch.float64)
    bias = torch.randn(4 * H, dtype=torch.float64)
    oracle = torch.nn.LSTM(width, H, dtype=torch.float64)
    with torch.no_grad():
        # The gates of torch.nn.LSTM stand in the order i, f, g, o, which is i, f, c̃, o here.
        oracle.get_parameter("weight_ih_l0").copy_(weight.T)
        oracle.get_parameter("weight_hh_l0").copy_(u.T)
        oracle.get_parameter("bias_ih_l0").copy_(bias)
        oracle.get_parameter("bias_hh_l0").zero_()
    given = torch.randn(T, B, width, dtype=torch.float64)
    right, (h_right, c_right) = oracle(given, (h0[None], c0[None]))
    h, c = LSTMWindow.apply(given @ weight + bias, u, h0, c0, None, None)  # type: ignore[no-untyped-call]
    assert difference((h, h[-1], c), (right, h_right[0], c_right[0])) < 1e-13
    upstream = torch.randn_like(right)
    ours = torch.autograd.grad(h, (u, h0, c0), upstream)
    theirs = torch.autograd.grad(right, (oracle.get_parameter("weight_hh_l0"), h0, c0), upstream)
    assert difference(ours, (theirs[0].T, *theirs[1:])) < 1e-11


@pytest.mark.parametrize("H", [1, 7, 100, 129])
def test_float32_is_as_good_as_float32_can_be(H: int) -> None:
    inputs, mask, starts = window(20, 3, H, masked=True, resets=True)
    x, u, h0, c0 = (given.detach() for given in inputs)
    right_inputs = x.requires_grad_(), (u * H**-0.5).requires_grad_(), h0.requires_grad_(), c0.requires_grad_()
    ours_inputs = [given.detach().float().requires_grad_() for given in right_inputs]
    assert mask is not None
    right = plain(*right_inputs, mask, starts)
    ours = LSTMWindow.apply(*ours_inputs, mask.float(), starts)  # type: ignore[no-untyped-call]
    upstream = torch.randn_like(right[0])
    wanted = (*right, *torch.autograd.grad(right[0], right_inputs, upstream))
    made = (*ours, *torch.autograd.grad(ours[0], ours_inputs, upstream.float()))
    for a, b in zip(made, wanted, strict=True):
        assert (a.double() - b).norm() <= 1e-5 * b.norm()


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
