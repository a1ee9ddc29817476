"""Single-step inference: compiled against NumPy, and both against the model, on every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.network.backends.cpu import library, stepper
from grimmgen.network.backends.cpu.stepper import CompiledStepper
from grimmgen.network.backends.numpy import Floats, Stepper
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.network.shapes import weight_shapes
from grimmgen.sampling.logits import draw, filter_logits
from grimmgen.sampling.options import SamplingOptions
from tests.builders import NETWORKS, random_tensors
from tests.pairs import pairs

AVAILABLE = {name: found for name, found in library.instruction_sets().items() if found.word == 1}
CELLS = [name for name in cells() if AVAILABLE and name in next(iter(AVAILABLE.values())).cells]
COMPILED = {name: options for name, options in NETWORKS.items() if options["cell"] in CELLS}
built = pytest.mark.skipif(not AVAILABLE, reason=f"there is no compiled library: {library.load()[1]}")
each_instruction_set = pytest.mark.parametrize("instructions", AVAILABLE or ["none"])
each_cell = pytest.mark.parametrize("cell", CELLS)
FIRST = next(iter(AVAILABLE), "none")
END = 1


def weights_of(configuration: Configuration, V: int) -> dict[str, Floats]:
    weights = random_tensors(weight_shapes(configuration, V))
    # Such that the logits differ.
    weights["output.bias"] = np.random.default_rng(1).normal(0, 1, V).astype(np.float32)
    return weights


def state_of(configuration: Configuration, B: int) -> Floats:
    shape = (len(cells()[configuration.cell].states), configuration.layers, B, configuration.hidden)
    return np.random.default_rng(2).normal(0, 0.5, shape).astype(np.float32)


def steppers(instructions: str, V: int, B: int, **options: Any) -> tuple[CompiledStepper, Stepper]:
    """A compiled stepper and the NumPy one, of the same model and state."""
    configuration = Configuration(**options)
    arguments = configuration, weights_of(configuration, V)
    state = state_of(configuration, B)
    return CompiledStepper(AVAILABLE[instructions], *arguments, state.copy()), Stepper(*arguments, state)


def random_ids(T: int, B: int, V: int) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, V, (T, B))


def difference(made: NDArray[Any], right: NDArray[Any]) -> float:
    """Relative to the norm of the right one."""
    return float(np.linalg.norm(made.astype(np.float64) - right) / np.linalg.norm(right))


def check(compiled: Stepper, plain: Stepper, ids: NDArray[np.int64]) -> None:
    for row in ids:
        assert difference(compiled.step(row), plain.step(row)) < 1e-5
        assert difference(compiled.state, plain.state) < 1e-5


# --- reading -----------------------------------------------------------------------------------------------------


@built
@pytest.mark.parametrize(
    ("network", "size", "instructions"),
    pairs(COMPILED, [(1, 2, 1), (7, 11, 3), (100, 65, 1), (129, 545, 64), (129, 257, 1)], AVAILABLE),
    ids=str,
)
def test_compiled_steps_agree_with_numpy(network: str, size: tuple[int, int, int], instructions: str) -> None:
    H, V, B = size
    check(*steppers(instructions, V, B, hidden=H, **COMPILED[network]), random_ids(4, B, V))


READ = [(1, 3, 3), (7, 11, 1), (100, 65, 3), (129, 97, 64)]  # H, V, B


@pytest.mark.parametrize(
    ("network", "size", "kind"),
    [
        *pairs(COMPILED, READ, ["numpy", *AVAILABLE]),
        *pairs([name for name in NETWORKS if name not in COMPILED], READ, ["numpy"]),
    ],
    ids=str,
)
def test_reading_agrees_with_the_model(network: str, size: tuple[int, int, int], kind: str) -> None:
    H, V, B = size
    configuration = Configuration(hidden=H, **NETWORKS[network])
    weights, state, ids = weights_of(configuration, V), state_of(configuration, B), random_ids(5, B, V)
    model = LanguageModel(configuration, V)
    model.load_weights(weights)
    model.double()
    before = tuple(torch.from_numpy(state).double())
    right, after = model.logits(torch.from_numpy(ids), before)
    made = (
        Stepper(configuration, weights, state)
        if kind == "numpy"
        else CompiledStepper(AVAILABLE[kind], configuration, weights, state)
    )
    assert difference(made.read(ids), right[-1].numpy()) < 1e-5
    assert difference(made.state, np.stack([part.numpy() for part in after])) < 1e-5


@built
@each_instruction_set
@each_cell
def test_row_does_not_depend_on_the_rows_beside_it(cell: str, instructions: str) -> None:
    for H, V in ((7, 11), (130, 300)):
        many, _ = steppers(instructions, V, 7, hidden=H, layers=2, cell=cell)
        one, _ = steppers(instructions, V, 1, hidden=H, layers=2, cell=cell)
        one.state[:] = many.state[:, :, 3:4]
        ids = random_ids(5, 7, V)
        assert (many.read(ids)[3] == one.read(ids[:, 3:4])[0]).all()


@built
@each_cell
def test_long_prompt_is_read_in_parts(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = random_ids(8, 2, 11)
    whole, parts = (steppers(FIRST, 11, 2, hidden=7, cell=cell)[0] for _ in range(2))
    right = whole.read(ids)
    monkeypatch.setattr(stepper, "_AT_ONCE", 3)
    assert (parts.read(ids) == right).all()
    assert (parts.state == whole.state).all()


@pytest.mark.parametrize("kind", ["plain", *AVAILABLE])
def test_restore_returns_to_the_snapshot(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kind)
    configuration = Configuration(hidden=5)
    made = backends.stepper(configuration, weights_of(configuration, 11), state_of(configuration, 2))
    made.read([[1, 2], [3, 4]])
    snapshot = made.snapshot()
    first = made.step([5, 6])
    assert not (made.state == snapshot.state).all()
    made.restore(snapshot)
    assert (made.logits == snapshot.logits).all()
    assert (made.step([5, 6]) == first).all()


@pytest.mark.parametrize("kind", ["plain", *AVAILABLE])
@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_ids_out_of_range_are_refused(wrong: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kind)
    configuration = Configuration(hidden=2)
    made = backends.stepper(configuration, weights_of(configuration, 11), state_of(configuration, 2))
    before = made.state.copy()
    with pytest.raises(IndexError, match="not within the vocabulary of 11"):
        made.step([0, wrong])
    for ids in (np.array([[1, 2], [wrong, 2]]), np.zeros((0, 2), np.int64)):
        with pytest.raises(IndexError):
            made.read(ids)
    assert (made.state == before).all()
    if isinstance(made, CompiledStepper):
        for forbidden, end in (([wrong], END), ([0], wrong)):
            with pytest.raises(IndexError):
                made.sample(np.zeros((1, 2)), top_k=1, temperature=1.0, forbidden=forbidden, end=end)


@built
@each_cell
def test_gates_in_another_order_are_caught(cell: str) -> None:
    compiled, plain = steppers(FIRST, 11, 3, hidden=8, cell=cell)
    check(compiled, plain, random_ids(1, 3, 11))
    gates = plain._table.reshape(11, -1, 8)
    gates[:, [0, 1]] = gates[:, [1, 0]]
    with pytest.raises(AssertionError):
        check(compiled, plain, random_ids(1, 3, 11))


@built
def test_weight_that_is_slightly_wrong_is_caught() -> None:
    compiled, plain = steppers(FIRST, 11, 3, hidden=8)
    weight, bias = plain._output
    plain._output = weight, bias + np.float32(1e-3)
    with pytest.raises(AssertionError):
        check(compiled, plain, random_ids(1, 3, 11))


# --- sampling ----------------------------------------------------------------------------------------------------


def plain_sample(plain: Stepper, uniforms: NDArray[np.float64], options: SamplingOptions) -> NDArray[np.int64]:
    """The oracle: the functions of `grimmgen.sampling.logits`, one token after the other."""
    ids = np.full(uniforms.shape, END)
    ended = np.zeros(uniforms.shape[1], np.bool_)
    for row, chosen in zip(uniforms, ids, strict=True):
        for b in np.flatnonzero(~ended):
            chosen[b] = draw(filter_logits(plain.logits[b], options, forbidden=[0]), row[b])
        ended |= chosen == END
        if ended.all():
            break
        plain.step(chosen)
    return ids


LIMITS = [(3, 1.0), (1, 1.0), (0, 1.0), (40, 0.7), (64, 1.0), (65, 2.0), (3, 0.0), (3, 1e-300)]


@built
@pytest.mark.parametrize(("cell", "limits", "instructions"), pairs(CELLS, LIMITS, AVAILABLE), ids=str)
def test_sampling_agrees_with_the_documented_order(
    cell: str, limits: tuple[int, float], instructions: str
) -> None:
    top_k, temperature = limits
    for V, B in ((301, 1), (65, 5)):
        compiled, plain = steppers(instructions, V, B, hidden=20, layers=2, cell=cell)
        uniforms = np.random.default_rng(4).random((40, B))
        for made in (compiled, plain):
            made.step([END] * B)
        ids = compiled.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=END)
        assert (ids == plain_sample(plain, uniforms, SamplingOptions(top_k=top_k, temperature=temperature))).all()
        assert 0 not in ids
        # The last token sampled has been read, unless all rows have ended.
        assert (ids[-1] == END).all() or difference(compiled.logits[:, 1:], plain.logits[:, 1:]) < 1e-5


@built
@each_instruction_set
@each_cell
def test_ended_row_stays_ended_until_it_reads(instructions: str, cell: str) -> None:
    configuration = Configuration(hidden=4, cell=cell)
    weights = weights_of(configuration, 9)
    weights["output.bias"][END] = weights["output.bias"].max()
    made = CompiledStepper(AVAILABLE[instructions], configuration, weights, state_of(configuration, 6))
    options: dict[str, Any] = {"top_k": 0, "temperature": 1.0, "end": END}
    made.step([END] * 6)
    ended = made.sample(np.random.default_rng(4).random((12, 6)), forbidden=[0], **options) == END
    assert 0 < ended[3].sum() < 6
    assert (np.maximum.accumulate(ended) == ended).all()
    again = made.sample(np.full((2, 6), 0.9), forbidden=[0], **options)
    assert (again[:, ended[-1]] == END).all()
    snapshot = made.snapshot()
    assert (snapshot.ended >= ended[-1]).all()
    made.step([END] * 6)
    assert (made.sample(np.full((1, 6), 0.999), forbidden=[0, END], **options) != END).all()
    made.restore(snapshot)
    assert (made.sample(np.full((1, 6), 0.9), forbidden=[0], **options)[0, ended[-1]] == END).all()


def constant_stepper(instructions: str, bias: dict[int, float], V: int = 70, B: int = 1) -> CompiledStepper:
    """A stepper whose logits are the bias, whatever it reads."""
    configuration = Configuration(hidden=2)
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, V).items()}
    for token, value in bias.items():
        weights["output.bias"][token] = value
    made = CompiledStepper(AVAILABLE[instructions], configuration, weights, np.zeros((2, 1, B, 2), np.float32))
    made.step([0] * B)
    return made


@built
@each_instruction_set
def test_first_of_equal_logits_are_kept(instructions: str) -> None:
    def sample(uniform: float, top_k: int, temperature: float = 1.0) -> int:
        made = constant_stepper(instructions, {5: 1.0, 66: 1.0, END: -np.inf})
        uniforms = np.full((1, 1), uniform)
        return int(made.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=END)[0, 0])

    last = np.nextafter(1.0, 0.0)
    assert (sample(0.0, 2), sample(0.49, 2), sample(0.51, 2), sample(last, 2)) == (5, 5, 66, 66)
    assert (sample(0.0, 0), sample(last, 0)) == (2, 69)
    assert (sample(0.0, 3, 0.0), sample(last, 3, 0.0)) == (5, 5)
    assert sample(last, 1) in {5, 66}


@built
@each_instruction_set
@pytest.mark.parametrize("end", [1, 2, 40, 69])
def test_end_is_always_a_candidate(end: int, instructions: str) -> None:
    def counts(top_k: int, temperature: float = 1.0) -> list[int]:
        made = constant_stepper(instructions, {3: np.log(4.0), 50: np.log(4.0)}, B=900)
        uniforms = np.linspace(0.0, 1.0, 900, endpoint=False)[None]
        ids = made.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=end)[0]
        assert (np.diff(ids) >= 0).all()
        return [int((ids == token).sum()) for token in (3, 50, end)]

    # Two of weight four, the end of weight one; at half the temperature their squares.
    assert counts(2) == pytest.approx([400, 400, 100], abs=1)
    assert counts(2, 0.5) == pytest.approx([436, 436, 27], abs=1)
    assert counts(1) in ([900, 0, 0], [0, 900, 0])
    assert counts(2, 0.0) == [900, 0, 0]


# --- the choice of a stepper -------------------------------------------------------------------------------------


def chosen(cell: Any = "lstm") -> Stepper:
    configuration = Configuration(hidden=2, cell=cell, embedding=3)
    return backends.stepper(configuration, weights_of(configuration, 5), state_of(configuration, 1))


@built
def test_environment_variable_chooses_the_stepper(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def init(self: CompiledStepper, instructions: Any, *arguments: Any) -> None:
        used.append(instructions.name)
        Stepper.__init__(self, *arguments)

    monkeypatch.setattr(CompiledStepper, "__init__", init)
    for forced, instructions in (("native", FIRST), ("", FIRST), *((name, name) for name in AVAILABLE)):
        used.clear()
        monkeypatch.setenv("GRIMMGEN_KERNEL", forced)
        for cell in cells():
            assert isinstance(chosen(cell), CompiledStepper) == (cell in CELLS)
        assert used == [instructions] * len(CELLS)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert type(chosen()) is Stepper
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec is not available here"):
        chosen()


def test_numpy_is_used_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(library, "instruction_sets", dict)
    assert type(chosen()) is Stepper
