"""The compiled backend against the reference backend in float64: every instruction set that this machine has.

T  time steps    B  batch rows    H  hidden units    V  vocabulary size    N  predictions
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any, TypeAlias, cast

import pytest
import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.network.backends.cpu import library, program
from grimmgen.network.backends.cpu.backend import CPUBackend
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import CellSpec, Sizes, cells
from tests.equations import Case, check_close
from tests.pairs import pairs

AVAILABLE = library.instruction_sets()
FP32 = [name for name, found in AVAILABLE.items() if found.word == 1]
BF16 = [name for name, found in AVAILABLE.items() if found.word == 2]
COMPILED = [cell for cell in cells().values() if AVAILABLE and cell.name in next(iter(AVAILABLE.values())).cells]
CPU = torch.device("cpu")
Tensors: TypeAlias = "list[Tensor]"

built = pytest.mark.skipif(not FP32, reason=f"there is no compiled library: {library.load()[1]}")
has_bf16 = pytest.mark.skipif(not BF16, reason="there are no instructions for bfloat16 here")
each_instruction_set = pytest.mark.parametrize("instructions", FP32 or ["none"])
each_bf16_set = pytest.mark.parametrize("instructions", BF16 or ["none"])
each_cell = pytest.mark.parametrize("cell", COMPILED, ids=lambda cell: cell.name)
THREADS = [1, 2, 7]
SHAPES = [(1, 1, 1), (1, 3, 7), (1, 64, 129), (20, 1, 7), (20, 3, 100), (5, 7, 19), (20, 64, 129)]  # T, B, H


@pytest.fixture(autouse=True)
def restore_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def backend_of(instructions: str, overwrite: bool = False) -> CPUBackend:
    return CPUBackend(AVAILABLE[instructions], overwrite)


@functools.cache
def case_of(cell: CellSpec, T: int, B: int, H: int, dropout: str, resets: bool, ids: bool) -> Case:
    return Case.draw(cell, T, B, H, 11, dropout, resets, ids)


@functools.cache
def expected(precision: Products, double: bool, *arguments: Any) -> dict[str, Tensor]:
    case = case_of(*arguments)
    return (case if double else case.float()).results(ReferenceBackend(precision))


def check_layer(instructions: str, *arguments: Any) -> None:
    case = case_of(*arguments).float()
    check_close(case.results(backend_of(instructions)), expected("fp32", True, *arguments), 1e-5)


def check_bf16_layer(instructions: str, *arguments: Any) -> None:
    """Compare with the reference backend that rounds likewise, and with the exact result.

    The two add in different orders, so that factors of the next product differ by some 1e-7: about one in 20,000
    is then rounded to the other neighbour, 2⁻⁸ away. A single time step stays exact to 1e-4; over several the
    difference spreads.
    """
    made = case_of(*arguments).float().results(backend_of(instructions))
    check_close(made, expected("bf16", False, *arguments), 1e-4 if arguments[1] == 1 else 2e-3)
    check_close(made, expected("fp32", True, *arguments), 3e-2)


def design_id(value: Any) -> str:
    """The name of a parameter's value, or the names of several, in the name of a test case."""
    if isinstance(value, tuple):
        return "-".join(map(design_id, value))
    return value.name if isinstance(value, CellSpec) else str(value)


# --- layers of cells ---------------------------------------------------------------------------------------------


# Each kernel of a cell, which is one per instruction set, with each shape: both decide where vectors end.
@built
@pytest.mark.parametrize(
    ("kernel", "shape", "ids", "threads"),
    pairs(itertools.product(FP32, COMPILED), SHAPES, [False, True], THREADS),
    ids=design_id,
)
def test_layer(kernel: tuple[str, CellSpec], shape: tuple[int, int, int], ids: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    check_layer(*kernel, *shape, "fresh", True, ids)


@built
@pytest.mark.parametrize(
    ("dropout", "resets"), [("none", False), ("fresh", False), ("locked", True), ("none", True)]
)
@each_cell
@each_instruction_set
def test_layer_masks_and_resets(instructions: str, cell: CellSpec, dropout: str, resets: bool) -> None:
    for ids in (False, True):
        check_layer(instructions, cell, 5, 7, 19, dropout, resets, ids)


@has_bf16
@pytest.mark.parametrize(
    ("kernel", "shape", "ids", "threads"),
    pairs(itertools.product(BF16, COMPILED), SHAPES, [False, True], THREADS),
    ids=design_id,
)
def test_bf16_layer(kernel: tuple[str, CellSpec], shape: tuple[int, int, int], ids: bool, threads: int) -> None:
    torch.set_num_threads(threads)
    check_bf16_layer(*kernel, *shape, "fresh", True, ids)


@has_bf16
@pytest.mark.parametrize(("dropout", "resets"), [("none", False), ("locked", False), ("none", True)])
@each_cell
@each_bf16_set
def test_bf16_layer_masks_and_resets(instructions: str, cell: CellSpec, dropout: str, resets: bool) -> None:
    check_bf16_layer(instructions, cell, 5, 7, 19, dropout, resets, False)


@has_bf16
@pytest.mark.parametrize("cell", [cell for cell in COMPILED if cell.recurrent_product], ids=lambda cell: cell.name)
def test_products_that_are_not_rounded_are_caught(cell: CellSpec) -> None:
    with pytest.raises(AssertionError):
        check_bf16_layer(FP32[0], cell, 1, 3, 100, "fresh", True, False)


@built
@each_cell
@each_instruction_set
def test_layer_with_absent_upstream_gradients(instructions: str, cell: CellSpec) -> None:
    case = case_of(cell, 4, 3, 10, "fresh", True, False)
    for present in range(len(cell.states) + 1):
        made = case.float().results(backend_of(instructions), (present,))
        check_close(made, case.results(ReferenceBackend(), (present,)), 1e-5)


@built
@each_cell
def test_reset_stops_the_gradient_by_the_state(cell: CellSpec) -> None:
    case = case_of(cell, 3, 2, 5, "none", False, False).float()
    resets = torch.zeros(3, 2, dtype=torch.bool)
    resets[0, 1] = True
    made = case._replace(resets=resets).results(backend_of(FP32[0]))
    for name in cell.states:
        assert made[f"d state {name}"][0].any()
        assert not made[f"d state {name}"][1].any()


@built
@pytest.mark.parametrize("ids", [False, True])
@each_cell
@each_instruction_set
def test_layer_of_strided_tensors(instructions: str, cell: CellSpec, ids: bool) -> None:
    def strided(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        # Every other number of twice as many, or the transpose of a transposed copy.
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else torch.stack([tensor, -tensor], 1)[:, 0]

    right, case = (
        expected("fp32", True, cell, 4, 6, 9, "fresh", True, ids),
        case_of(cell, 4, 6, 9, "fresh", True, ids),
    )
    case, mask = case.float(), case.mask
    assert mask is not None
    case = case._replace(
        weights={name: strided(weight) for name, weight in case.weights.items()},
        inputs=strided(case.inputs),
        state=tuple(map(strided, case.state)),
        mask=strided(mask.float()),
        upstream=tuple(map(strided, case.upstream)),
    )
    check_close(case.results(backend_of(instructions)), right, 1e-5)


@built
@each_cell
@pytest.mark.parametrize("instructions", [*FP32, *BF16] or ["none"])
def test_layer_is_the_same_with_any_number_of_threads(instructions: str, cell: CellSpec) -> None:
    case = case_of(cell, 20, 9, 33, "fresh", True, True).float()
    torch.set_num_threads(1)
    once = case.results(backend_of(instructions))
    for threads in (1, 2, 3, 3):
        torch.set_num_threads(threads)
        again = case.results(backend_of(instructions))
        assert all(torch.equal(again[name], right) for name, right in once.items())


@built
@pytest.mark.parametrize("ids", [False, True])
@each_cell
@each_instruction_set
def test_backward_runs_twice_unless_it_overwrites(instructions: str, cell: CellSpec, ids: bool) -> None:
    case = case_of(cell, 5, 7, 19, "fresh", True, ids).float()

    def gradients(overwrite: bool, passes: int) -> list[Tensors]:
        backend = backend_of(instructions, overwrite)
        saved = backend.layer(cell, case.weights, case.inputs, case.state, case.mask, case.resets).saved
        found = [backend.layer_backward(cell, saved, case.upstream[0], case.upstream[1:]) for _ in range(passes)]
        return [[*f.weights.values(), *f.state, *([] if f.inputs is None else [f.inputs])] for f in found]

    first, second = gradients(overwrite=False, passes=2)
    (only,) = gradients(overwrite=True, passes=1)
    with pytest.raises(RuntimeError, match="overwrite=False allows several"):
        gradients(overwrite=True, passes=2)
    for a, b, c in zip(first, second, only, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@built
@each_cell
@pytest.mark.parametrize("wrong", [-1, 11])
def test_id_out_of_range_is_refused(cell: CellSpec, wrong: int) -> None:
    case = case_of(cell, 2, 1, 2, "none", False, True).float()
    ids = case.inputs.clone()
    ids[1] = wrong
    with pytest.raises(IndexError, match="an id is not within the vocabulary of 11"):
        backend_of(FP32[0]).layer(cell, case.weights, ids, case.state)


@built
@each_cell
@each_instruction_set
def test_nan_passes_through_a_layer(instructions: str, cell: CellSpec) -> None:
    case = case_of(cell, 3, 2, 20, "none", False, False).float()
    inputs = case.inputs.clone()
    inputs[1, 1, 3] = float("nan")
    h = backend_of(instructions).layer(cell, case.weights, inputs, case.state).h
    assert h[2, 1].isnan().any()
    assert not h[:, 0].isnan().any()


@built
@pytest.mark.parametrize("instructions", [*FP32, *BF16] or ["none"])
def test_sigmoid_and_tanh_over_their_whole_range(instructions: str) -> None:
    B, H = 11, 401
    z = torch.cat([torch.linspace(-100, 100, 4001), torch.logspace(-30, 0, 205), -torch.logspace(-30, 0, 205)])
    z, zeros = z.view(B, H), torch.zeros(B, H)
    weights = {"recurrent_weight": torch.zeros(H, 4 * H), "bias": torch.zeros(4 * H)}

    def new_c(i: Tensor, f: Tensor, candidate: Tensor) -> Tensor:
        # With c = 1 before the time step, c' = f + i c̃; a gate at 100 is open. Each row looks up its own.
        looked_up = torch.cat([i, f, candidate, zeros], dim=1)
        state, ids = (zeros, torch.ones(B, H)), torch.arange(B)[None]
        backend = backend_of(instructions)
        return backend.layer(cells()["lstm"], {**weights, "input_weight": looked_up}, ids, state).state[1].double()

    closed, open_gate = torch.full((B, H), -100.0), torch.full((B, H), 100.0)
    sigmoid, tanh = torch.sigmoid(z.double()), torch.tanh(z.double())
    assert ((new_c(closed, z, zeros) - sigmoid).abs() <= 5e-7 * sigmoid + 1e-37).all()
    assert ((new_c(open_gate, closed, z) - tanh).abs() <= 6e-7 * tanh.abs() + 1e-37).all()


# --- a wrong kernel is caught ------------------------------------------------------------------------------------


def sabotage(monkeypatch: pytest.MonkeyPatch, kernel: str, field: str, factor: float) -> None:
    """Multiply what kernels of this name write to an argument."""
    right = program.run

    def sabotaged(called: library.Kernel, arguments: Any, ranges: Any) -> None:
        right(called, arguments, ranges)
        if called.name == kernel and (array := arguments[called.fields.index(field)]) is not None:
            array.mul_(factor)

    monkeypatch.setattr(program, "run", sabotaged)


OUTPUTS = [
    *((cell, f"{cell.name}_{kernel}", field)
      for cell in COMPILED
      for kernel, field in (
          ("forward", "states"), ("forward", "saved"), ("backward", "gradients"), ("backward", "d_states"),
          *([("backward", "d_extra")] if AVAILABLE[FP32[0]].cells[cell.name].extra else [])
      )),
    *((cell, "weight_gradient", field) for cell in COMPILED for field in ("d_table", "d_bias")),
    *((cell, "weight_gradient", "d_weight") for cell in COMPILED if cell.recurrent_product),
]  # fmt: skip


@built
@pytest.mark.parametrize(("cell", "kernel", "field"), OUTPUTS, ids=lambda v: v if isinstance(v, str) else v.name)
def test_sabotaged_layer_is_caught(
    cell: CellSpec, kernel: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, kernel, field, 1.0001)
    with pytest.raises(AssertionError):
        check_layer(FP32[0], cell, 5, 3, 7, "fresh", True, True)


@has_bf16
@pytest.mark.parametrize(("cell", "kernel", "field"), OUTPUTS, ids=lambda v: v if isinstance(v, str) else v.name)
@each_bf16_set
def test_sabotaged_bf16_layer_is_caught(
    instructions: str, cell: CellSpec, kernel: str, field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(monkeypatch, kernel, field, 1.0003)
    with pytest.raises(AssertionError):
        check_bf16_layer(instructions, cell, 1, 3, 7, "fresh", True, True)


@built
@pytest.mark.parametrize(
    ("kernel", "field"), [("linear", "y"), ("weight_gradient", "d_weight"), ("weight_gradient", "d_bias")]
)
def test_sabotaged_linear_is_caught(kernel: str, field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, kernel, field, 1.0001)
    with pytest.raises(AssertionError):
        test_linear(FP32[0], 3, 7, 129, 1)


@built
@pytest.mark.parametrize("field", ["losses", "d_hidden", "d_weight", "d_bias"])
def test_sabotaged_cross_entropy_is_caught(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage(monkeypatch, "cross_entropy", field, 1.0001)
    with pytest.raises(AssertionError):
        test_cross_entropy(FP32[0], 129, 5, 17, 1)


# --- layers without cells ----------------------------------------------------------------------------------------


def draw(seed: int, *shapes: tuple[int, ...]) -> tuple[Tensors, Tensors]:
    """Tensors in float64, and the same in float32."""
    generator = torch.Generator().manual_seed(seed)
    single = [torch.randn(shape, generator=generator) for shape in shapes]
    return [tensor.double() for tensor in single], single


def check_all(made: Tensors, right: Tensors, tolerance: float) -> None:
    named = [dict(zip("abcde", tensors, strict=False)) for tensors in (made, right)]
    check_close(named[0], named[1], tolerance)


def linear_results(backend: Any, x: Tensor, weight: Tensor, bias: Tensor, d_y: Tensor) -> Tensors:
    gradients = backend.linear_backward(x, weight, d_y)
    return [backend.linear(x, weight), backend.linear(x, weight, bias), *gradients]


def with_threads(sets: list[str], shapes: list[tuple[int, int, int]]) -> list[tuple[str, int, int, int, int]]:
    """Every two of an instruction set, a shape and a number of threads."""
    return [(name, *shape, threads) for name, shape, threads in pairs(sets, shapes, THREADS)]


# N, K, M: several passes over the inner dimension, and over the rows for the weight gradient.
LINEAR = [(1, 1, 1), (3, 7, 129), (129, 100, 7), (300, 129, 65), (17, 2100, 33), (1100, 5, 9)]


@built
@pytest.mark.parametrize(("instructions", "N", "K", "M", "threads"), with_threads(FP32, LINEAR))
def test_linear(instructions: str, N: int, K: int, M: int, threads: int) -> None:
    torch.set_num_threads(threads)
    double, single = draw(N + K + M, (N, K), (K, M), (M,), (N, M))
    made = linear_results(backend_of(instructions), *single)
    check_all(made, linear_results(ReferenceBackend(), *double), 1e-5)
    assert all(map(torch.equal, linear_results(backend_of(instructions), *single), made))
    strided = [t.mT.contiguous().mT if t.dim() > 1 else t for t in single]
    assert all(map(torch.equal, linear_results(backend_of(instructions), *strided), made))


@has_bf16
@pytest.mark.parametrize(("instructions", "N", "K", "M", "threads"), with_threads(BF16, LINEAR))
def test_bf16_linear(instructions: str, N: int, K: int, M: int, threads: int) -> None:
    torch.set_num_threads(threads)
    double, single = draw(N + K + M, (N, K), (K, M), (M,), (N, M))
    made = linear_results(backend_of(instructions), *single)
    check_all(made, linear_results(ReferenceBackend("bf16"), *single), 1e-5)
    check_all(made, linear_results(ReferenceBackend(), *double), 1e-2)
    assert all(map(torch.equal, linear_results(backend_of(instructions), *single), made))


def softmax_case(N: int, H: int, V: int) -> tuple[Tensors, Tensors, Tensor]:
    targets = torch.randint(-1, V, (N,), generator=torch.Generator().manual_seed(N))
    targets[0] = V - 1
    return *draw(N + H + V, (N, H), (H, V), (V,)), targets


SOFTMAX = [(1, 1, 1), (2, 7, 3), (129, 5, 17), (300, 100, 65), (700, 129, 545)]  # N, H, V
# N is a power of two: the kernel divides by N before it rounds to bfloat16, the reference backend afterwards.
BF16_SOFTMAX = [(1, 1, 2), (2, 7, 3), (128, 5, 17), (256, 100, 65), (1024, 129, 545)]


@built
@pytest.mark.parametrize(("instructions", "N", "H", "V", "threads"), with_threads(FP32, SOFTMAX))
def test_cross_entropy(instructions: str, N: int, H: int, V: int, threads: int) -> None:
    torch.set_num_threads(threads)
    backend: Any = backend_of(instructions)
    reference: Any = ReferenceBackend()
    double, single, targets = softmax_case(N, H, V)
    made = list(backend.cross_entropy(*single, targets))
    if V > 1:
        check_all(made, list(reference.cross_entropy(*double, targets)), 1e-5)
    assert all(map(torch.equal, backend.cross_entropy(*single, targets), made))
    losses = backend.negative_log_likelihood(*single, targets)
    assert (losses[targets < 0] == 0).all()
    assert torch.allclose(losses.double(), reference.negative_log_likelihood(*double, targets), atol=1e-5)


@has_bf16
@pytest.mark.parametrize(("instructions", "N", "H", "V", "threads"), with_threads(BF16, BF16_SOFTMAX))
def test_bf16_cross_entropy(instructions: str, N: int, H: int, V: int, threads: int) -> None:
    torch.set_num_threads(threads)
    backend, rounded, exact = (
        cast("Any", b) for b in (backend_of(instructions), ReferenceBackend("bf16"), ReferenceBackend())
    )
    double, single, targets = softmax_case(N, H, V)
    made = list(backend.cross_entropy(*single, targets))
    check_all(made, list(rounded.cross_entropy(*single, targets)), 1e-3)
    check_all(made, list(exact.cross_entropy(*double, targets)), 3e-2)
    assert all(map(torch.equal, backend.cross_entropy(*single, targets), made))


@built
@each_instruction_set
def test_loss_of_an_underflowing_probability_is_finite(instructions: str) -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[500.0, 0.0]])
    losses = backend_of(instructions).negative_log_likelihood(hidden, weight, torch.zeros(2), torch.tensor([1]))
    assert losses.item() == pytest.approx(500.0)


@built
@each_instruction_set
def test_nan_passes_through_the_loss(instructions: str) -> None:
    backend: Any = backend_of(instructions)
    _, single, targets = softmax_case(3, 2, 40)
    single[0][1, 0], targets[:] = float("nan"), 1
    assert backend.cross_entropy(*single, targets)[0].isnan()


@built
def test_target_out_of_range_is_refused() -> None:
    given = torch.zeros(2, 2), torch.zeros(2, 5), torch.zeros(5)
    for backend in (backend_of(FP32[0]), ReferenceBackend()):
        loss = backend.cross_entropy(*given, torch.tensor([0, -1]))[0]
        assert loss.item() == pytest.approx(torch.tensor(5.0).log().item() / 2), "a negative target is none"
    with pytest.raises(IndexError, match="a target is not within the vocabulary of 5"):
        backend_of(FP32[0]).cross_entropy(*given, torch.tensor([0, 5]))


# --- elementwise operations --------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "add": lambda backend, a, b: backend.add(a, b),
    "add transposed": lambda backend, a, b: backend.add(a[0].t(), b[1].t()),
    "multiply": lambda backend, a, b: backend.multiply(a, b),
    "multiply by one row": lambda backend, a, b: backend.multiply(a, b[:1]),
    "multiply transposed": lambda backend, a, b: backend.multiply(a.mT, b.mT),
    "stack": lambda backend, a, b: backend.stack([a[0], b[1]]),
    "stack transposed": lambda backend, a, b: backend.stack([a[0].t(), b[0].t()]),
}


@built
@pytest.mark.parametrize(("instructions", "name", "threads"), pairs(FP32, OPERATIONS, THREADS))
def test_elementwise_operation(
    instructions: str, name: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(program, "_FEW", 8)  # so that several threads share the work
    _, (a, b) = draw(0, (2, 19, 13), (2, 19, 13))
    assert torch.equal(
        OPERATIONS[name](backend_of(instructions), a, b), OPERATIONS[name](ReferenceBackend(), a, b)
    )


@built
@pytest.mark.parametrize(("instructions", "threads"), pairs(FP32, THREADS))
def test_lookup(instructions: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(threads)
    monkeypatch.setattr(program, "_FEW", 8)
    _, (table, d_rows) = draw(0, (9, 70), (7, 3, 70))
    ids = torch.randint(9, (7, 3), generator=torch.Generator().manual_seed(1))
    backend, reference = backend_of(instructions), ReferenceBackend()
    assert torch.equal(backend.lookup(table, ids), table[ids])
    assert torch.equal(backend.lookup(table.t()[:9], ids), table.t()[ids])
    expected = reference.lookup_backward(ids, d_rows, 9)
    torch.testing.assert_close(backend.lookup_backward(ids, d_rows, 9), expected)
    assert len(set(ids.flatten().tolist())) < ids.numel(), "some ids are added up"
    with pytest.raises(IndexError, match="an id is not within the vocabulary of 9"):
        backend.lookup(table, ids + 8)


@built
@each_instruction_set
def test_copy_of_strided_matrices(instructions: str) -> None:
    source = torch.arange(60.0).view(4, 15)
    for part in (source, source.t(), source[1:, 2:], source[::2], source[:, 0], source[2, ::3]):
        target = torch.full((*part.shape[:-1], part.shape[-1] + 2), -1.0)
        backend_of(instructions).copy(part, target[..., :-2])
        assert torch.equal(target[..., :-2], part)
        assert (target[..., -2:] == -1).all()


@built
@pytest.mark.parametrize("seed", [1, 2**40 + 3, -5])
@each_instruction_set
def test_dropout_mask_is_the_same_on_all_backends(instructions: str, seed: int) -> None:
    for shape, dropout in (((1,), 0.5), ((7, 3, 129), 0.2), ((1, 64, 9), 0.999), ((0, 4), 0.1)):
        right = ReferenceBackend().dropout_mask(shape, dropout, torch.tensor(seed))
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(backend_of(instructions).dropout_mask(shape, dropout, torch.tensor(seed)), right)


def test_dropout_masks_are_unbiased_and_independent() -> None:
    first, second = (ReferenceBackend().dropout_mask((50, 64, 128), 0.2, torch.tensor(seed)) for seed in (1, 2))
    for mask in (first, second):
        assert mask.unique().tolist() == [0.0, 1.25]  # type: ignore[no-untyped-call]
        # Five standard deviations, for all elements and for each row and unit.
        for elements, mean in (
            (mask.numel(), mask.mean()),
            (3200, mask.mean(dim=(0, 1))),
            (6400, mask.mean(dim=(0, 2))),
        ):
            assert (mean - 1).abs().max() < 5 * 0.5 / elements**0.5
    # Independent masks agree with the probability 0.68: those of two seeds, and neighbours in one mask.
    for a, b in ((first, second), (first[1:], first[:-1]), (first[..., 1:], first[..., :-1])):
        assert abs((a == b).double().mean().item() - 0.68) < 5 * 0.47 / 400_000**0.5


# --- the choice of a backend -------------------------------------------------------------------------------------


def description(cell: str = "lstm", dtype: torch.dtype = torch.float32, precision: Products = "fp32") -> str:
    return backends.choose_backend(cell, CPU, dtype, precision).description


@built
@each_instruction_set
def test_environment_variable_chooses_the_backend(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    for cell in cells().values():
        backend = backends.choose_backend(cell.name, CPU, torch.float32)
        if cell in COMPILED:
            assert isinstance(backend, CPUBackend)
            assert backend.instructions.name == instructions
            assert backend.description.startswith("native ")
            assert backend.description.endswith(", 2 threads")
        else:
            assert isinstance(backend, ReferenceBackend)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert description() == "PyTorch"


@built
def test_fastest_instruction_set_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced in ("", "native"):
        monkeypatch.setenv("GRIMMGEN_KERNEL", forced)
        backend = backends.choose_backend("lstm", CPU, torch.float32)
        assert isinstance(backend, CPUBackend)
        assert backend.instructions.name == FP32[0]


@has_bf16
def test_bf16_has_instruction_sets_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for forced, expected_name in (("", BF16[0]), ("native", BF16[0]), ("avx512", "avx512bf16")):
        monkeypatch.setenv("GRIMMGEN_KERNEL", forced)
        backend = backends.choose_backend("lstm", CPU, torch.float32, "bf16")
        assert isinstance(backend, CPUBackend)
        assert backend.instructions.name == expected_name
        assert " bf16, " in backend.description
        assert "bf16" not in description()


@built
def test_bf16_without_instructions_runs_on_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "scalar")
    assert description(precision="bf16").startswith("PyTorch bf16 (this processor has no bfloat16 instructions")


def test_float64_runs_on_pytorch() -> None:
    assert description(dtype=torch.float64).startswith("PyTorch (")


def test_unknown_instruction_set_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec is not available here"):
        description()


@built
def test_compiled_backend_takes_pytorchs_threads() -> None:
    torch.set_num_threads(3)
    backend = backend_of(FP32[0])
    for _ in range(2):
        with backend.threads(), backend.threads():
            assert torch.get_num_threads() == 1
            assert backend.description.endswith("3 threads")
        assert torch.get_num_threads() == 3
    with ReferenceBackend().threads():
        assert torch.get_num_threads() == 3


# --- the library -------------------------------------------------------------------------------------------------


def test_missing_library_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, reason = missing = library.load(tmp_path)
    assert found is None
    assert reason == "the package was installed without a C compiler"
    monkeypatch.setattr(library, "load", lambda: missing)
    monkeypatch.setattr(library, "instruction_sets", dict)
    assert description() == f"PyTorch ({reason})"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "native")
    with pytest.raises(UsageError, match="without a C compiler"):
        description()


def test_library_that_cannot_be_loaded_is_a_reason(tmp_path: Path) -> None:
    (tmp_path / f"_kernels{EXTENSION_SUFFIXES[0]}").write_bytes(b"no library")
    found, reason = library.load(tmp_path)
    assert found is None
    assert reason.startswith("cannot load ")


@pytest.mark.skipif(sys.platform != "linux", reason="compiles a library as Linux does")
def test_library_of_another_build_is_a_reason(tmp_path: Path) -> None:
    path = tmp_path / f"_kernels{EXTENSION_SUFFIXES[0]}"
    command = ["gcc", "-shared", "-x", "c", "-", "-o", str(path)]
    try:
        subprocess.run(command, input=b"void constants(void) {}", check=True)
    except FileNotFoundError:
        pytest.skip("there is no C compiler")
    found, reason = library.load(tmp_path)
    assert found is None
    assert "is of another build of grimmgen" in reason


@built
def test_library_of_other_sources_is_a_reason(tmp_path: Path) -> None:
    folder = tmp_path / "backends" / "cpu"
    shutil.copytree(Path(library.__file__).parent, folder)
    shutil.copytree(Path(library.__file__).parents[2] / "cells", tmp_path / "cells")
    if not (folder / "program.c").exists():
        pytest.skip("installed without the sources")
    load = library.load.__wrapped__  # not cached
    assert load(folder)[0] is not None
    header = next((tmp_path / "cells").glob("*.h"))
    header.write_text(header.read_text("utf-8") + "\n", encoding="utf-8")
    found, reason = load(folder)
    assert found is None
    assert "was not built from the sources beside it" in reason


@built
def test_library_agrees_with_the_cells() -> None:
    assert isinstance(library.load()[0], ctypes.CDLL)
    names = {frozenset(found.kernels) for found in AVAILABLE.values()}
    assert len(names) == 1
    for found in AVAILABLE.values():
        for name, compiled in found.cells.items():
            assert compiled.gates == len(cells()[name].gates)
            assert compiled.states == len(cells()[name].states) <= 2
            rows = cells()[name].extra_weights(Sizes(1, 1, 1)).values()
            assert compiled.extra == sum(math.prod(shape) for shape in rows) <= 3
            # MOST_STATES, MOST_EXTRA and MOST_COLUMNS of recurrence.h: the sizes of its arrays.
            assert compiled.width <= 4
            assert (compiled.recurrent_rotation >= 0) == cells()[name].recurrent_product
            assert compiled.forward.address
            assert compiled.backward.address
            assert bool(compiled.read.address) == bool(compiled.sample.address) == (found.word == 1)


@built
def test_kernel_with_missing_arguments_is_not_called() -> None:
    kernel = AVAILABLE[FP32[0]].kernels["add"]
    with pytest.raises(AssertionError):
        program.run(dataclasses.replace(kernel), [torch.ones(3), torch.ones(3)], [(0, 3)])
