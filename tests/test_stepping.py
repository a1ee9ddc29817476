"""One step at a time: compiled against NumPy and PyTorch, for every instruction set that this machine has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.network.backends import numpy
from grimmgen.network.backends.cpu import library
from grimmgen.network.backends.numpy import Floats, NativeStepper, Stepper
from grimmgen.network.model import LanguageModel
from grimmgen.network.shapes import weight_shapes
from tests.builders import NETWORKS, random_tensors

INSTRUCTIONS = library.instruction_sets()
built = pytest.mark.skipif(not INSTRUCTIONS, reason=f"there is no compiled kernel: {library.load()[1]}")
each_instruction_set = pytest.mark.parametrize("instructions", INSTRUCTIONS or ["none"])
COMPILED = {name: options for name, options in NETWORKS.items() if options["cell"] != "mogrifier"}
END = 1


def weights_of(configuration: Configuration, V: int) -> dict[str, Floats]:
    made = random_tensors(weight_shapes(configuration, V))
    # Such that the gates are neither all open nor all shut, and the logits differ.
    made["output.bias"] = np.random.default_rng(1).normal(0, 1, V).astype(np.float32)
    return made


def state_of(configuration: Configuration, B: int) -> tuple[Floats, Floats]:
    shape = (2, configuration.layers, B, configuration.hidden)
    h, c = np.random.default_rng(2).normal(0, 0.5, shape).astype(np.float32)
    return h, c


def steppers(instructions: str, V: int, B: int, **options: Any) -> tuple[NativeStepper, Stepper]:
    configuration = Configuration(**options)
    weights = weights_of(configuration, V)
    native = NativeStepper(instructions, configuration, weights, *state_of(configuration, B))
    return native, Stepper(configuration, weights, *state_of(configuration, B))


def random_ids(T: int, B: int, V: int) -> NDArray[np.int64]:
    return np.random.default_rng(3).integers(0, V, (T, B))


def difference(made: Floats, right: NDArray[np.floating[Any]]) -> float:
    """Relative to the right one's norm."""
    return float(np.linalg.norm(made.astype(np.float64) - right) / np.linalg.norm(right))


def compare(native: NativeStepper, plain: Stepper, ids: NDArray[np.int64]) -> None:
    for row in ids:
        assert difference(native.step(row), plain.step(row)) < 1e-5
    assert difference(native.h, plain.h) < 1e-5
    assert difference(native.c, plain.c) < 1e-5


@built
@each_instruction_set
@pytest.mark.parametrize("network", COMPILED)
@pytest.mark.parametrize(("H", "V", "B"), [(1, 2, 1), (7, 11, 3), (100, 65, 1), (129, 545, 64), (129, 257, 1)])
def test_compiled_steps_are_those_of_numpy(network: str, H: int, V: int, B: int, instructions: str) -> None:
    compare(*steppers(instructions, V, B, hidden=H, **COMPILED[network]), random_ids(4, B, V))


@built
@each_instruction_set
@pytest.mark.parametrize("network", COMPILED)
@pytest.mark.parametrize(("H", "V", "B"), [(1, 3, 3), (7, 11, 1), (100, 65, 3), (129, 97, 64)])
def test_reading_is_what_the_model_does_in_float64(
    network: str, H: int, V: int, B: int, instructions: str
) -> None:
    T = 5
    configuration = Configuration(hidden=H, dropout=0.0, **COMPILED[network])
    weights = weights_of(configuration, V)
    model = LanguageModel(configuration, V)
    model.load_weights(weights)
    model.double().eval()
    h, c = state_of(configuration, B)
    state = type(model.zero_state(B))(torch.from_numpy(h).double(), torch.from_numpy(c).double())
    ids = random_ids(T, B, V)
    with torch.no_grad():
        hidden, after = model(torch.from_numpy(ids), state, None)
        rows, weight, bias = model._output(hidden)
        right = (rows @ weight + bias).view(T, B, V)[-1].numpy()
    made = NativeStepper(instructions, configuration, weights, h.copy(), c.copy())
    assert difference(made.read(ids), right) < 1e-5
    assert difference(made.h, after.h.numpy()) < 1e-5
    if configuration.cell != "gru":
        assert difference(made.c, after.c.numpy()) < 1e-5


@built
@each_instruction_set
@pytest.mark.parametrize("cell", ["lstm", "peephole", "gru"])
def test_a_story_is_the_same_to_the_bit_whatever_is_told_beside_it(cell: str, instructions: str) -> None:
    for H, V in ((7, 11), (130, 300)):
        many, _ = steppers(instructions, V, 7, hidden=H, layers=2, cell=cell)
        one, _ = steppers(instructions, V, 1, hidden=H, layers=2, cell=cell)
        one.h[:], one.c[:] = many.h[:, 3:4], many.c[:, 3:4]
        ids = random_ids(5, 7, V)
        assert (many.read(ids)[3] == one.read(ids[:, 3:4])[0]).all()


def told(stepper: Stepper, N: int, top_k: int = 3, temperature: float = 1.0) -> NDArray[np.int64]:
    B = stepper.h.shape[1]
    numbers = np.random.default_rng(4).random((N, B))
    stepper.step([END] * B)
    return stepper.tell(numbers, top_k=top_k, temperature=temperature, never=[0], end=END)


@built
@each_instruction_set
@pytest.mark.parametrize("cell", ["lstm", "peephole", "gru"])
@pytest.mark.parametrize(
    ("top_k", "temperature"),
    [(3, 1.0), (1, 1.0), (0, 1.0), (40, 0.7), (64, 1.0), (65, 2.0), (3, 0.0), (3, 1e-300)],
)
def test_both_paths_tell_the_same(cell: str, top_k: int, temperature: float, instructions: str) -> None:
    for V, B in ((301, 1), (65, 5)):
        native, plain = steppers(instructions, V, B, hidden=20, layers=2, cell=cell)
        made, right = (told(stepper, 40, top_k, temperature) for stepper in (native, plain))
        assert (made == right).all()
        assert 0 not in made
        # What was drawn last has been read: both go on from there, unless all is over.
        assert (made[-1] == END).all() or difference(native.logits, plain.logits) < 1e-5


@pytest.mark.parametrize("instructions", ["plain", *INSTRUCTIONS])
def test_after_its_end_a_row_tells_nothing_until_it_reads_again(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(hidden=4)
    weights = weights_of(configuration, 9)
    weights["output.bias"][END] = weights["output.bias"].max()
    stepper = backends.stepper(configuration, weights, *state_of(configuration, 6))
    ids = told(stepper, 12, top_k=0)
    ended = ids == END
    assert 0 < ended[3].sum() < 6
    assert (np.maximum.accumulate(ended) == ended).all()
    again = stepper.tell(np.full((2, 6), 0.9), top_k=0, temperature=1.0, never=[0], end=END)
    assert (again[:, ended[-1]] == END).all()
    stepper.step([END] * 6)
    again = stepper.tell(np.full((1, 6), 0.999), top_k=0, temperature=1.0, never=[0, END], end=END)
    assert (again != END).all()


@pytest.mark.parametrize("instructions", ["plain", *INSTRUCTIONS])
def test_the_draw_takes_the_first_of_equals_and_no_number_leads_beyond(
    instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(hidden=2)
    V = 70
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, V).items()}
    weights["output.bias"][5], weights["output.bias"][66] = 1.0, 1.0
    weights["output.bias"][END] = -np.inf

    def drawn(number: float, top_k: int, temperature: float = 1.0) -> int:
        stepper = backends.stepper(configuration, weights, *np.zeros((2, 1, 1, 2), np.float32))
        stepper.step([END])
        numbers = np.full((1, 1), number)
        return int(stepper.tell(numbers, top_k=top_k, temperature=temperature, never=[0], end=END)[0, 0])

    last = np.nextafter(1.0, 0.0)
    assert (drawn(0.0, 2), drawn(0.49, 2), drawn(0.51, 2), drawn(last, 2)) == (5, 5, 66, 66)
    assert (drawn(0.0, 0), drawn(last, 0)) == (2, 69)
    assert (drawn(0.0, 3, 0.0), drawn(last, 3, 0.0)) == (5, 5)
    assert drawn(last, 1) in {5, 66}


@pytest.mark.parametrize("instructions", ["plain", *INSTRUCTIONS])
@pytest.mark.parametrize("end", [1, 2, 40, 69])
def test_the_end_is_always_in_the_draw_in_its_place_and_as_probable_as_it_is(
    end: int, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(hidden=2)
    weights = {name: np.zeros(shape, np.float32) for name, shape in weight_shapes(configuration, 70).items()}
    weights["output.bias"][[3, 50]] = np.log(4.0)

    def drawn(top_k: int, temperature: float = 1.0) -> list[int]:
        stepper = backends.stepper(configuration, weights, *np.zeros((2, 1, 900, 2), np.float32))
        stepper.step([0] * 900)
        numbers = np.linspace(0.0, 1.0, 900, endpoint=False)[None]
        ids = stepper.tell(numbers, top_k=top_k, temperature=temperature, never=[0], end=end)[0]
        assert (np.diff(ids) >= 0).all()
        return [int((ids == token).sum()) for token in (3, 50, end)]

    # Two of weight four, the end of weight one; at half the temperature their squares.
    assert drawn(2) == pytest.approx([400, 400, 100], abs=1)
    assert drawn(2, 0.5) == pytest.approx([436, 436, 27], abs=1)
    assert drawn(1) in ([900, 0, 0], [0, 900, 0])
    assert drawn(2, 0.0) == [900, 0, 0]


@pytest.mark.parametrize("instructions", ["plain", *INSTRUCTIONS])
@pytest.mark.parametrize("wrong", [-1, 11, 2**40])
def test_ids_that_are_not_in_the_vocabulary_are_refused(
    wrong: int, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", instructions)
    configuration = Configuration(hidden=2)
    stepper = backends.stepper(configuration, weights_of(configuration, 11), *state_of(configuration, 2))
    before = stepper.h.copy()
    with pytest.raises(IndexError, match="not within the vocabulary of 11"):
        stepper.step([0, wrong])
    with pytest.raises(IndexError):
        stepper.read(np.array([[1, 2], [wrong, 2]]))
    with pytest.raises(IndexError):
        stepper.read(np.zeros((0, 2), np.int64))
    assert (stepper.h == before).all()
    for never, end in (([wrong], END), ([0], wrong)):
        with pytest.raises(IndexError):
            stepper.tell(np.zeros((1, 2)), top_k=1, temperature=1.0, never=never, end=end)


@built
@pytest.mark.parametrize("network", ["lstm1", "peephole2", "gru1"])
def test_a_wrong_order_of_the_gates_is_caught(network: str) -> None:
    native, plain = steppers(INSTRUCTIONS[0], 11, 3, hidden=8, **COMPILED[network])
    compare(native, plain, random_ids(1, 3, 11))
    gates = plain._table.reshape(11, -1, 8)
    gates[:, [0, 1]] = gates[:, [1, 0]]
    with pytest.raises(AssertionError):
        compare(native, plain, random_ids(1, 3, 11))


@built
def test_a_weight_a_little_off_is_caught() -> None:
    native, plain = steppers(INSTRUCTIONS[0], 11, 3, hidden=8)
    weight, bias = plain._output
    plain._output = weight, bias + np.float32(1e-3)
    with pytest.raises(AssertionError):
        compare(native, plain, random_ids(1, 3, 11))


def kind(**options: Any) -> str:
    configuration = Configuration(hidden=2, **options)
    stepper = backends.stepper(configuration, weights_of(configuration, 5), *state_of(configuration, 1))
    return type(stepper).__name__


@built
def test_the_environment_chooses_and_the_mogrifier_stays_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    called = list[str]()
    right = library.function

    def noted(name: str, takes: str) -> Any:
        called.append(name)
        return right(name, takes)

    monkeypatch.setattr(numpy, "function", noted)
    for forced, instructions in (
        ("native", INSTRUCTIONS[0]),
        ("", INSTRUCTIONS[0]),
        *((i, i) for i in INSTRUCTIONS),
    ):
        called.clear()
        monkeypatch.setenv("GRIMMGEN_KERNEL", forced)
        assert kind() == "NativeStepper"
        assert {name.rpartition("_")[2] for name in called} == {instructions}
        assert kind(cell="mogrifier", embedding=3) == "Stepper"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert kind() == "Stepper"
    monkeypatch.setenv("GRIMMGEN_KERNEL", "altivec")
    with pytest.raises(UsageError, match="altivec is not to be had here"):
        kind()


def test_without_the_library_numpy_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(library, "load", lambda: (None, "none"))
    assert kind() == "Stepper"
