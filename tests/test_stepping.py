"""Single-step inference: compiled against NumPy and PyTorch, for every instruction set of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.network.backends.cpu import library
from grimmgen.network.backends.cpu import stepper as stepper_module
from grimmgen.network.backends.cpu.stepper import CompiledStepper
from grimmgen.network.backends.numpy import Floats, Stepper
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.network.shapes import weight_shapes
from grimmgen.sampling.logits import draw, filter_logits
from grimmgen.sampling.options import SamplingOptions
from tests.builders import NETWORKS, random_tensors

INSTRUCTIONS = [name for name, instructions in library.instruction_sets().items() if instructions.word == 1]
built = pytest.mark.skipif(not INSTRUCTIONS, reason=f"no compiled kernel: {library.load()[1]}")
each_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS or ["none"])
COMPILED_CELLS = [name for name, cell in cells().items() if not cell.pre_step]
COMPILED = {name: options for name, options in NETWORKS.items() if options["cell"] in COMPILED_CELLS}
END = 1


def weights_of(configuration: Configuration, V: int) -> dict[str, Floats]:
    weights = random_tensors(weight_shapes(configuration, V))
    # Large enough for the logits to differ.
    weights["output.bias"] = np.random.default_rng(1).normal(0, 1, V).astype(np.float32)
    return weights


def state_of(configuration: Configuration, B: int) -> Floats:
    """A random state, [S, L, B, H]."""
    states = len(cells()[configuration.cell].states)
    shape = (states, configuration.layers, B, configuration.hidden)
    return np.random.default_rng(2).normal(0, 0.5, shape).astype(np.float32)


def compiled_stepper(
    instructions: str, configuration: Configuration, weights: dict[str, Floats], state: Floats
) -> CompiledStepper:
    return CompiledStepper(library.instruction_sets()[instructions], configuration, weights, state)


def steppers(instructions: str, V: int, B: int, **options: Any) -> tuple[CompiledStepper, Stepper]:
    configuration = Configuration(**options)
    weights = weights_of(configuration, V)
    compiled = compiled_stepper(instructions, configuration, weights, state_of(configuration, B))
    return compiled, Stepper(configuration, weights, state_of(configuration, B))


def random_ids(T: int, B: int, V: int) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, V, (T, B))


def difference(actual: Floats, expected: NDArray[np.floating[Any]]) -> float:
    """The norm of the difference relative to the norm of the expected values."""
    return float(np.linalg.norm(actual.astype(np.float64) - expected) / np.linalg.norm(expected))


def compare(compiled: CompiledStepper, plain: Stepper, ids: NDArray[np.int64]) -> None:
    for row in ids:
        assert difference(compiled.step(row), plain.step(row)) < 1e-5
    assert difference(compiled.state, plain.state) < 1e-5


@built
@each_instruction_set
@pytest.mark.parametrize("network", COMPILED)
@pytest.mark.parametrize(("H", "V", "B"), [(1, 2, 1), (7, 11, 3), (100, 65, 1), (129, 545, 64), (129, 257, 1)])
def test_compiled_steps_equal_numpy(network: str, H: int, V: int, B: int, instructions: str) -> None:
    compare(*steppers(instructions, V, B, hidden=H, **COMPILED[network]), random_ids(4, B, V))


@built
@each_instruction_set
@pytest.mark.parametrize("network", COMPILED)
@pytest.mark.parametrize(("H", "V", "B"), [(1, 3, 3), (7, 11, 1), (100, 65, 3), (129, 97, 64)])
def test_reading_equals_the_pytorch_model_in_float64(
    network: str, H: int, V: int, B: int, instructions: str
) -> None:
    T = 5
    configuration = Configuration(hidden=H, dropout=0.0, **COMPILED[network])
    weights = weights_of(configuration, V)
    model = LanguageModel(configuration, V)
    model.load_weights(weights)
    model.double()
    ids, state = random_ids(T, B, V), state_of(configuration, B)
    logits, after = model.logits(torch.from_numpy(ids), tuple(torch.from_numpy(state).double()))
    compiled = compiled_stepper(instructions, configuration, weights, state)
    assert difference(compiled.read(ids), logits[-1].numpy()) < 1e-5
    assert difference(compiled.state, torch.stack(after).numpy()) < 1e-5


@built
@each_instruction_set
@pytest.mark.parametrize("cell", COMPILED_CELLS)
def test_a_row_is_bit_equal_whatever_the_batch(cell: str, instructions: str) -> None:
    for H, V in ((7, 11), (130, 300)):
        many, _ = steppers(instructions, V, 7, hidden=H, layers=2, cell=cell)
        one, _ = steppers(instructions, V, 1, hidden=H, layers=2, cell=cell)
        one.state[:] = many.state[:, :, 3:4]
        ids = random_ids(5, 7, V)
        assert (many.read(ids)[3] == one.read(ids[:, 3:4])[0]).all()


# --- sampling ------------------------------------------------------------------------------------------------


def read_and_sample(
    stepper: CompiledStepper, N: int, top_k: int = 3, temperature: float = 1.0
) -> NDArray[np.int64]:
    B = stepper.state.shape[2]
    uniforms = np.random.default_rng(4).random((N, B))
    stepper.step([END] * B)
    return stepper.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=END)


def read_and_sample_plainly(stepper: Stepper, N: int, top_k: int, temperature: float) -> NDArray[np.int64]:
    """The same in the order of `filter_logits`."""
    B = stepper.state.shape[2]
    options = SamplingOptions(top_k=top_k, temperature=temperature)
    stepper.step([END] * B)
    ids, ended = np.full((N, B), END), np.zeros(B, np.bool_)
    for row, uniforms in zip(ids, np.random.default_rng(4).random((N, B)), strict=True):
        for b in np.flatnonzero(~ended):
            row[b] = draw(filter_logits(stepper.logits[b], options, forbidden=[0]), uniforms[b])
        ended = row == END
        if ended.all():
            break
        stepper.step(row)
    return ids


@built
@each_instruction_set
@pytest.mark.parametrize("cell", COMPILED_CELLS)
@pytest.mark.parametrize(
    ("top_k", "temperature"),
    [(3, 1.0), (1, 1.0), (0, 1.0), (40, 0.7), (64, 1.0), (65, 2.0), (3, 0.0), (3, 1e-300)],
)
def test_compiled_sampling_equals_the_plain_order(
    cell: str, top_k: int, temperature: float, instructions: str
) -> None:
    for V, B in ((301, 1), (65, 5)):
        compiled, plain = steppers(instructions, V, B, hidden=20, layers=2, cell=cell)
        ids = read_and_sample(compiled, 40, top_k, temperature)
        assert (ids == read_and_sample_plainly(plain, 40, top_k, temperature)).all()
        assert 0 not in ids
        # The last sample has been read by both, unless all rows have ended.
        assert (ids[-1] == END).all() or difference(compiled.logits, plain.logits) < 1e-5


def lstm_stepper(
    instructions: str, weights: dict[str, Floats], B: int, hidden: int = 2, state: bool = False
) -> CompiledStepper:
    configuration = Configuration(hidden=hidden)
    values = state_of(configuration, B) if state else np.zeros((2, 1, B, hidden), np.float32)
    return compiled_stepper(instructions, configuration, weights, values)


@built
@each_instruction_set
def test_an_ended_row_yields_end_until_it_reads_again(instructions: str) -> None:
    weights = weights_of(Configuration(hidden=4), 9)
    weights["output.bias"][END] = weights["output.bias"].max()
    stepper = lstm_stepper(instructions, weights, 6, hidden=4, state=True)
    ended = read_and_sample(stepper, 12, top_k=0) == END
    assert 0 < ended[3].sum() < 6
    assert (np.maximum.accumulate(ended) == ended).all()
    ids = stepper.sample(np.full((2, 6), 0.9), top_k=0, temperature=1.0, forbidden=[0], end=END)
    assert (ids[:, ended[-1]] == END).all()
    stepper.step([END] * 6)
    ids = stepper.sample(np.full((1, 6), 0.999), top_k=0, temperature=1.0, forbidden=[0, END], end=END)
    assert (ids != END).all()


@built
@each_instruction_set
def test_restore_returns_to_a_snapshot(instructions: str) -> None:
    stepper = lstm_stepper(instructions, weights_of(Configuration(hidden=4), 9), 6, hidden=4, state=True)
    stepper.step([END] * 6)
    snapshot = stepper.snapshot()
    samples = []
    for _ in range(2):
        stepper.restore(snapshot)
        uniforms = np.random.default_rng(5).random((9, 6))
        samples.append(stepper.sample(uniforms, top_k=0, temperature=1.0, forbidden=[0], end=END))
    assert (samples[0] == samples[1]).all()


@built
@each_instruction_set
def test_equal_logits_and_extreme_uniforms_stay_in_range(instructions: str) -> None:
    V = 70
    shapes = weight_shapes(Configuration(hidden=2), V)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["output.bias"][5], weights["output.bias"][66] = 1.0, 1.0
    weights["output.bias"][END] = -np.inf

    def sampled(uniform: float, top_k: int, temperature: float = 1.0) -> int:
        stepper = lstm_stepper(instructions, weights, 1)
        stepper.step([END])
        uniforms = np.full((1, 1), uniform)
        return int(stepper.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=END)[0, 0])

    last = np.nextafter(1.0, 0.0)
    assert (sampled(0.0, 2), sampled(0.49, 2), sampled(0.51, 2), sampled(last, 2)) == (5, 5, 66, 66)
    assert (sampled(0.0, 0), sampled(last, 0)) == (2, 69)
    assert (sampled(0.0, 3, 0.0), sampled(last, 3, 0.0)) == (5, 5)
    assert sampled(last, 1) in {5, 66}


@built
@each_instruction_set
@pytest.mark.parametrize("end", [1, 2, 40, 69])
def test_the_end_is_always_sampled_with_its_probability(end: int, instructions: str) -> None:
    shapes = weight_shapes(Configuration(hidden=2), 70)
    weights = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    weights["output.bias"][[3, 50]] = np.log(4.0)

    def counts(top_k: int, temperature: float = 1.0) -> list[int]:
        stepper = lstm_stepper(instructions, weights, 900)
        stepper.step([0] * 900)
        uniforms = np.linspace(0.0, 1.0, 900, endpoint=False)[None]
        ids = stepper.sample(uniforms, top_k=top_k, temperature=temperature, forbidden=[0], end=end)[0]
        assert (np.diff(ids) >= 0).all()
        return [int((ids == token).sum()) for token in (3, 50, end)]

    # Two of weight four, the end of weight one; at half the temperature their squares.
    assert counts(2) == pytest.approx([400, 400, 100], abs=1)
    assert counts(2, 0.5) == pytest.approx([436, 436, 27], abs=1)
    assert counts(1) in ([900, 0, 0], [0, 900, 0])
    assert counts(2, 0.0) == [900, 0, 0]


@pytest.mark.parametrize("instructions", ["plain", *INSTRUCTIONS])
@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_ids_outside_the_vocabulary_are_refused(
    wrong: int, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(hidden=2)
    stepper = backends.stepper(configuration, weights_of(configuration, 11), state_of(configuration, 2))
    before = stepper.state.copy()
    with pytest.raises(IndexError, match="not within the vocabulary of 11"):
        stepper.step([0, wrong])
    with pytest.raises(IndexError):
        stepper.read(np.array([[1, 2], [wrong, 2]]))
    with pytest.raises(IndexError):
        stepper.read(np.zeros((0, 2), np.int64))
    assert (stepper.state == before).all()
    if isinstance(stepper, CompiledStepper):
        for forbidden, end in (([wrong], END), ([0], wrong)):
            with pytest.raises(IndexError):
                stepper.sample(np.zeros((1, 2)), top_k=1, temperature=1.0, forbidden=forbidden, end=end)


# --- the checks can fail; dispatch ---------------------------------------------------------------------------


@built
@pytest.mark.parametrize("network", ["lstm1", "peephole2", "gru1"])
def test_swapped_gates_are_detected(network: str) -> None:
    compiled, plain = steppers(INSTRUCTIONS[0], 11, 3, hidden=8, **COMPILED[network])
    compare(compiled, plain, random_ids(1, 3, 11))
    gates = plain._table.reshape(11, -1, 8)
    gates[:, [0, 1]] = gates[:, [1, 0]]
    with pytest.raises(AssertionError):
        compare(compiled, plain, random_ids(1, 3, 11))


@built
def test_a_slightly_wrong_weight_is_detected() -> None:
    compiled, plain = steppers(INSTRUCTIONS[0], 11, 3, hidden=8)
    weight, bias = plain._output
    plain._output = weight, bias + np.float32(1e-3)
    with pytest.raises(AssertionError):
        compare(compiled, plain, random_ids(1, 3, 11))


def stepper_class(**options: Any) -> str:
    configuration = Configuration(hidden=2, **options)
    stepper = backends.stepper(configuration, weights_of(configuration, 5), state_of(configuration, 1))
    return type(stepper).__name__


@built
def test_the_environment_selects_the_stepper(monkeypatch: pytest.MonkeyPatch) -> None:
    selected = list[str]()

    def recorded(instructions: library.InstructionSet, *arguments: Any) -> CompiledStepper:
        selected.append(instructions.name)
        return CompiledStepper(instructions, *arguments)

    monkeypatch.setattr(stepper_module, "CompiledStepper", recorded)
    for value in ("native", "", *INSTRUCTIONS):
        selected.clear()
        monkeypatch.setenv("GRIMMGEN_KERNEL", value)
        assert stepper_class() == "CompiledStepper"
        assert selected == [value if value in INSTRUCTIONS else INSTRUCTIONS[0]]
        assert stepper_class(cell="mogrifier", embedding=3) == "Stepper"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert stepper_class() == "Stepper"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec"):
        stepper_class()


def test_numpy_is_the_fallback_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(library, "instruction_sets", dict)
    assert stepper_class() == "Stepper"
