"""Every cell on the reference backend in float64, against autograd, numerical gradients and `torch.nn`.

T  time steps    B  batch rows    H  hidden units    E  input size    V  vocabulary size
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends import numpy
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import CellSpec, Sizes, cells
from tests.equations import Case, LayerFunction, check_close
from tests.pairs import pairs

# Where the shapes depend on the number of rounds, every number up to 5 is a case.
ROUNDS = {
    (f"{cell.name}-{rounds}" if rounds_matter else cell.name): (cell, rounds)
    for cell in cells().values()
    for rounds_matter in [cell.shapes(Sizes(1, 1, 1)) != cell.shapes(Sizes(1, 1, 2))]
    for rounds in (range(6) if rounds_matter else [0])
}
SHAPES = [(1, 1, 1, 1), (1, 3, 7, 2), (5, 1, 4, 6), (6, 3, 5, 1), (4, 2, 1, 3), (12, 2, 3, 4)]
REFERENCE = ReferenceBackend()
each_cell = pytest.mark.parametrize("cell", cells().values(), ids=list(cells()))


def draw(cell: CellSpec, T: int, B: int, H: int, E: int, dropout: str = "fresh", resets: bool = True) -> Case:
    return Case.draw(cell, T, B, H, E, dropout, resets, ids=False, rounds=5)


def check(case: Case) -> None:
    """All outputs and gradients, with all upstream gradients, with none but one, and with all but one."""
    outputs = range(len(case.upstream))
    present = {tuple(outputs), *((k,) for k in outputs), *(tuple(o for o in outputs if o != k) for k in outputs)}
    for some in sorted(present):
        check_close(case.results(REFERENCE, some), case.results(present=some), 1e-12)


@pytest.mark.parametrize(
    ("variant", "shape", "dropout", "resets"),
    pairs(ROUNDS, SHAPES, ["none", "fresh", "locked"], [False, True]),
    ids=str,
)
def test_layer_agrees_with_autograd(
    variant: str, shape: tuple[int, int, int, int], dropout: str, resets: bool
) -> None:
    cell, rounds = ROUNDS[variant]
    for ids in (False, True)[: 1 if cell.pre_step else 2]:
        check(Case.draw(cell, *shape, dropout, resets, ids, rounds))


@each_cell
def test_absent_state_gradients_count_as_zeros(cell: CellSpec) -> None:
    case = draw(cell, 4, 2, 3, 5)
    saved = REFERENCE.layer(cell, case.weights, case.inputs, case.state, case.mask, case.resets).saved
    zeros = [torch.zeros_like(part) for part in case.state]
    right = REFERENCE.layer_backward(cell, saved, case.upstream[0], zeros)
    for absent in (None, [None] * len(zeros)):
        made = REFERENCE.layer_backward(cell, saved, case.upstream[0], absent)
        assert all(torch.equal(made.weights[name], gradient) for name, gradient in right.weights.items())
        assert all(map(torch.equal, made.state, right.state))


@pytest.mark.parametrize("dropout", ["fresh", "locked"])
@each_cell
def test_layer_agrees_with_numerical_gradients(cell: CellSpec, dropout: str) -> None:
    case = draw(cell, 3, 2, 2, 3, dropout=dropout)
    names = [*case.weights, "inputs", *(f"state {name}" for name in cell.states)]
    tensors = [t.requires_grad_() for t in (*case.weights.values(), case.inputs, *case.state)]
    function = LayerFunction.apply
    assert torch.autograd.gradcheck(lambda *given: function(REFERENCE, case, names, *given), tensors)  # type: ignore[no-untyped-call]


def sabotage(call: Callable[..., Any], part: str, name: Any) -> Callable[..., Any]:
    """The function, with 0.001 added to one of the arrays in one part of the gradients that it returns."""

    def sabotaged(*arguments: Any) -> Any:
        found = call(*arguments)
        if isinstance(found, tuple) and not hasattr(found, "_replace"):
            return tuple(a + 0.001 if k == part else a for k, a in zip(("x", "h", "weights"), found, strict=True))
        changed = getattr(found, part)
        if isinstance(changed, dict):
            changed = {key: array + 0.001 if key == name else array for key, array in changed.items()}
        else:
            changed = tuple(array + 0.001 if k == name else array for k, array in enumerate(changed))
        return found._replace(**{part: changed})

    return sabotaged


def returned_gradients() -> list[Any]:
    """Cell, part of its `Gradients`, and name or number of every array in it."""
    found = []
    for cell in cells().values():
        gates = range(len(cell.gates))
        places: list[tuple[str, Any]] = [
            *(("x", k) for k in gates),
            *(("state", k) for k in range(len(cell.states))),
        ]
        places += [("recurrent", k) for k in gates if cell.recurrent_product]
        if not cell.pre_step:
            places += [("weights", name) for name in cell.extra_weights(Sizes(1, 1, 1))]
        found += [pytest.param(cell, *place, id=f"{cell.name}-{place[0]}-{place[1]}") for place in places]
    return found


@pytest.mark.parametrize(("cell", "part", "name"), returned_gradients())
def test_sabotaged_pointwise_backward_is_caught(cell: CellSpec, part: str, name: Any) -> None:
    wrong = dataclasses.replace(cell, pointwise_backward=sabotage(cell.pointwise_backward, part, name))
    with pytest.raises(AssertionError):
        check(draw(wrong, 6, 3, 5, 4))


@pytest.mark.parametrize(
    "name", ["inputs", *sorted({n for c in cells().values() for n in c.shapes(Sizes(1, 1, 1))}), "state"]
)
@each_cell
def test_sabotaged_layer_backward_is_caught(cell: CellSpec, name: str) -> None:
    class Wrong(ReferenceBackend):
        def layer_backward(self, *arguments: Any) -> Any:
            found: Any = super().layer_backward(*arguments)
            if name == "inputs":
                return found._replace(inputs=1.001 * found.inputs)
            if name == "state":
                return found._replace(state=(*found.state[:-1], found.state[-1] * 1.001))
            return found._replace(weights={n: g * 1.001 if n == name else g for n, g in found.weights.items()})

    case = draw(cell, 6, 3, 5, 4)
    if name in {"inputs", "state", *case.weights}:
        with pytest.raises(AssertionError):
            check_close(case.results(Wrong()), case.results(), 1e-12)


@pytest.mark.parametrize("part", ["x", "h"])
@pytest.mark.parametrize("cell", [cell for cell in cells().values() if cell.pre_step], ids=lambda cell: cell.name)
def test_sabotaged_pre_step_backward_is_caught(cell: CellSpec, part: str) -> None:
    assert cell.pre_step is not None
    hook = cell.pre_step._replace(backward=sabotage(cell.pre_step.backward, part, None))
    with pytest.raises(AssertionError):
        check(draw(dataclasses.replace(cell, pre_step=hook), 6, 3, 5, 4))


def from_torch(oracle: torch.nn.RNNBase, cell: CellSpec, E: int, H: int) -> dict[str, Tensor]:
    """The weights of `torch.nn.LSTM` or `torch.nn.GRU`; zeros in the place of what a cell adds to the LSTM."""
    w, u, b, recurrent_b = (weight + 0 for weight in oracle.parameters())
    weights = {name: torch.zeros(shape, dtype=w.dtype) for name, shape in cell.shapes(Sizes(H, E, 0)).items()}
    weights |= {"input_weight": w.T, "recurrent_weight": u.T}
    if isinstance(oracle, torch.nn.GRU):
        # The biases of r and z add up; that of the candidate's recurrent product is scaled by r.
        return {
            **weights,
            "bias": b + recurrent_b * (torch.arange(3 * H) < 2 * H),
            "recurrent_bias": recurrent_b[2 * H :],
        }
    return {**weights, "bias": b + recurrent_b}


@pytest.mark.parametrize(("T", "B", "H", "E"), SHAPES)
@pytest.mark.parametrize("name", ["lstm", "peephole", "gru", "mogrifier"])
def test_layer_agrees_with_torch_nn(name: str, T: int, B: int, H: int, E: int) -> None:
    cell = cells()[name]
    torch.manual_seed(0)
    oracle = (torch.nn.GRU if name == "gru" else torch.nn.LSTM)(E, H, dtype=torch.float64)
    case = Case.draw(cell, T, B, H, E, "none", resets=False, ids=False)
    x, *state = (tensor.requires_grad_() for tensor in (case.inputs, *case.state))
    weights = from_torch(oracle, cell, E, H)
    names = [*weights, "inputs", *(f"state {state_name}" for state_name in cell.states)]
    converted = case._replace(weights=weights)
    made = LayerFunction.apply(REFERENCE, converted, names, *weights.values(), x, *state)  # type: ignore[no-untyped-call]
    h, last = oracle(x, state[0][None] if name == "gru" else tuple(part[None] for part in state))
    right = (h, last[0]) if name == "gru" else (h, last[0][0], last[1][0])
    learned = (x, *oracle.parameters(), *state)
    for a, b in zip(made, right, strict=True):
        assert (a - b).abs().max() < 1e-13
    for a, b in zip(*(torch.autograd.grad(o, learned, case.upstream) for o in (made, right)), strict=True):
        assert (a - b).abs().max() < 1e-11


@pytest.mark.parametrize("H", [1, 7, 100, 129])
@each_cell
def test_float32_layer_is_accurate(cell: CellSpec, H: int) -> None:
    case = draw(cell, 20, 3, H, H + 1)
    check_close(case.float().results(REFERENCE), case.results(), 1e-5)


@each_cell
def test_bf16_rounds_every_product_of_a_layer(cell: CellSpec) -> None:
    class Counting(ReferenceBackend):
        products = 0

        def matmul(self, a: Tensor, b: Tensor) -> Tensor:
            self.products += 1
            return super().matmul(a, b)

    case = draw(cell, 3, 2, 30, 20, resets=False)
    backend = Counting("bf16")
    exact, rounded = case.results(), case.results(backend)
    assert backend.products >= 3
    for name, right in exact.items():
        assert (rounded[name] - right).norm() < 3e-2 * right.norm(), name
        if name not in {"d bias", "d inputs"}:
            assert (rounded[name] - right).norm() > 1e-5 * right.norm(), name


@each_cell
def test_pointwise_functions_are_array_agnostic(cell: CellSpec) -> None:
    case = draw(cell, 1, 2, 3, 4).float()
    x, product = torch.randn(2, 2, 3 * len(cell.gates), generator=torch.Generator().manual_seed(0))
    a = product if cell.recurrent_product else None
    right, _ = cell.pointwise_forward(REFERENCE, x, a, case.state, case.weights)
    weights = {name: weight.numpy() for name, weight in case.weights.items()}
    state = tuple(part.numpy() for part in case.state)
    made, _ = cell.pointwise_forward(numpy._Ops, x.numpy(), None if a is None else a.numpy(), state, weights)
    for ours, theirs in zip(made, right, strict=True):
        assert torch.allclose(torch.from_numpy(ours), theirs, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_matmul_is_the_matrix_product(dtype: torch.dtype, transposed: tuple[bool, bool]) -> None:
    torch.manual_seed(0)
    a = torch.randn(4, 7, dtype=dtype).T if transposed[0] else torch.randn(7, 4, dtype=dtype)
    b = torch.randn(5, 4, dtype=dtype).T if transposed[1] else torch.randn(4, 5, dtype=dtype)
    precision: Products
    for precision, x, y in (("fp32", a, b), ("bf16", a.bfloat16(), b.bfloat16())):
        made = ReferenceBackend(precision).matmul(a, b)
        assert made.dtype == dtype
        assert torch.allclose(made.double(), x.double() @ y.double(), atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
def test_linear_agrees_with_autograd(bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, b, d_y = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((7, 4), (4, 5), (5,), (7, 5))
    )
    y = x @ weight + b if bias else x @ weight
    assert torch.allclose(REFERENCE.linear(x, weight, b if bias else None), y, atol=1e-14)
    right = torch.autograd.grad(y, [x, weight, b], d_y, allow_unused=True, materialize_grads=True)
    made = REFERENCE.linear_backward(x, weight, d_y)
    assert all(torch.allclose(m, r, atol=1e-14) for m, r in zip(made[: 2 + bias], right, strict=False))


@pytest.mark.parametrize(("N", "H", "V"), [(1, 1, 2), (7, 5, 11), (650, 3, 4), (1290, 2, 3)])
def test_cross_entropy_agrees_with_torch(N: int, H: int, V: int) -> None:
    generator = torch.Generator().manual_seed(N)
    given = [
        torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((N, H), (H, V), (V,))
    ]
    targets = torch.randint(-1, V, (N,), generator=generator)
    right = torch.nn.functional.cross_entropy(
        given[0] @ given[1] + given[2], targets, ignore_index=-1, reduction="none"
    )
    hidden, weight, bias = (tensor.detach() for tensor in given)
    losses = REFERENCE.negative_log_likelihood(hidden, weight, bias, targets)
    assert torch.allclose(losses, right, atol=1e-12)
    assert (losses[targets < 0] == 0).all()
    loss, *made = REFERENCE.cross_entropy(hidden, weight, bias, targets)
    assert torch.allclose(loss, right.sum() / N, atol=1e-12)
    for ours, theirs in zip(made, torch.autograd.grad(right.sum() / N, given), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_loss_of_an_underflowing_probability_is_finite() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]])
    losses = REFERENCE.negative_log_likelihood(hidden, weight, torch.zeros(2), torch.tensor([1]))
    assert losses.item() == pytest.approx(500.0)
