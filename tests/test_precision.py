"""`--precision auto`: what there is to choose from, how it is measured, and that a run keeps its choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grimmgen.configuration import Configuration
from grimmgen.evaluation.dynamic import evaluate_dynamically
from grimmgen.evaluation.static import EncodedDocument
from grimmgen.io import files
from grimmgen.network import backends, precision
from grimmgen.network.backends.cpu import library
from grimmgen.network.backends.cpu.library import InstructionSet
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.network.precision import PrecisionChoice, choose_precision, measured_steps, restore_choice
from grimmgen.network.train_step import TrainStep
from grimmgen.runs import registry
from grimmgen.runs.events import Event, PlatformChanged, Started, Stepped
from grimmgen.text.corpus import open_corpus
from grimmgen.training.session import Training
from tests.program import Ran

CPU = torch.device("cpu")
SETS = library.instruction_sets()
BF16 = [name for name, found in SETS.items() if found.word == 2]
built = pytest.mark.skipif(not SETS, reason="there is no compiled library")


@pytest.fixture(autouse=True)
def own_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment variable chooses the kernels, and small networks are measured, too."""
    monkeypatch.delenv("GRIMMGEN_KERNEL", raising=False)
    monkeypatch.setattr(precision, "_SMALL", 0)


Offer = Callable[[Sequence[str], dict[str, float]], list[None]]


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch) -> Offer:
    """Offer these candidates, which take so many milliseconds; returns a list with an entry for each measurement."""

    def offer(names: Sequence[str], milliseconds: dict[str, float]) -> list[None]:
        measured: list[None] = []

        def measure(*_: Any) -> dict[str, float]:
            measured.append(None)
            return milliseconds

        monkeypatch.setattr(precision, "candidates", lambda *_: tuple(names))
        monkeypatch.setattr(precision, "measure", measure)
        return measured

    return offer


def only(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make these the only instructions of this machine."""
    found: dict[str, InstructionSet] = {n: s for n, s in SETS.items() if n.removesuffix("bf16") == instructions}
    monkeypatch.setattr(library, "instruction_sets", lambda: found)


# --- the candidates ----------------------------------------------------------------------------------------------


@built
def test_bf16_is_a_candidate_where_kernels_have_it() -> None:
    fastest = next(iter(SETS))
    expected = ("fp32", "bf16") if BF16 else ("fp32",)
    for name in cells():
        compiled = name in SETS[fastest].cells
        assert backends.candidates(name, CPU) == (expected if compiled else ("fp32",))


@built
def test_pytorch_is_a_candidate_beside_generic_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    only("scalar", monkeypatch)
    assert backends.candidates("lstm", CPU) == ("fp32", "PyTorch")
    monkeypatch.setenv("GRIMMGEN_KERNEL", "scalar")
    assert backends.candidates("lstm", CPU) == ("fp32",)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    assert backends.candidates("lstm", CPU) == ("fp32",)


def test_all_are_candidates_on_a_gpu_with_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(backends, "_why_not_triton", lambda *_: "")
    assert backends.candidates("lstm", cuda) == ("fp32", "bf16", "PyTorch")
    monkeypatch.setattr(backends, "_why_not_triton", lambda *_: "there are none")
    assert backends.candidates("lstm", cuda) == ("fp32",)


# --- measuring ---------------------------------------------------------------------------------------------------


def test_fastest_candidate_is_chosen(offer: Offer) -> None:
    times = {"fp32": 2.0, "bf16": 1.0, "PyTorch": 3.0}
    offer(list(times), times)
    choice = choose_precision(Configuration(), 11, CPU)
    assert (choice.precision, choice.kernels, choice.milliseconds) == ("bf16", True, times)
    times["PyTorch"] = 0.5
    choice = choose_precision(Configuration(), 11, CPU)
    assert (choice.precision, choice.kernels) == ("fp32", False)


def test_what_leaves_no_choice_is_not_measured(offer: Offer, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = offer(["fp32", "bf16"], {"fp32": 2.0, "bf16": 1.0})
    assert choose_precision(Configuration(precision="fp32"), 11, CPU) == PrecisionChoice("fp32")
    assert choose_precision(Configuration(precision="bf16"), 11, CPU) == PrecisionChoice("bf16")
    monkeypatch.setattr(precision, "_SMALL", 1e7)
    assert choose_precision(Configuration(hidden=8, batch_size=4), 11, CPU) == PrecisionChoice("fp32")
    assert not measured
    assert choose_precision(Configuration(), 544, CPU).precision == "bf16"
    offer(["fp32"], {})
    assert choose_precision(Configuration(), 544, CPU) == PrecisionChoice("fp32")


def test_least_time_of_each_candidate_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # Seconds of each training step; the first one warms up, and a busy machine disturbs some.
    seconds = {"PyTorch": [0.001, 0.012, 0.03, 0.011], "kernels": [0.9, 0.02, 0.021, 0.6]}
    now, call = 0.0, TrainStep.__call__

    def timed(self: TrainStep, *arguments: Any) -> Any:
        nonlocal now
        now += seconds["PyTorch" if self.description.startswith("PyTorch (measured") else "kernels"].pop(0)
        return call(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", timed)
    configuration = Configuration(hidden=8, batch_size=2, unroll=3)
    names: list[backends.Candidate] = ["fp32", "PyTorch"]
    assert precision.measure(configuration, 11, CPU, names, lambda: now) == {"fp32": 20.0, "PyTorch": 11.0}


def test_long_training_steps_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now, steps, call = 0.0, 0, TrainStep.__call__

    def timed(self: TrainStep, *arguments: Any) -> Any:
        nonlocal now, steps
        now, steps = now + 10.0, steps + 1
        return call(self, *arguments)

    monkeypatch.setattr(TrainStep, "__call__", timed)
    configuration = Configuration(hidden=8, batch_size=2, unroll=3)
    assert precision.measure(configuration, 11, CPU, ["fp32", "PyTorch"], lambda: now) == {
        "fp32": 1e4,
        "PyTorch": 1e4,
    }
    assert steps == 4


def test_large_training_steps_are_shortened() -> None:
    assert measured_steps(Configuration(), 544) == 50
    assert 8 < measured_steps(Configuration(hidden=512), 700) < 50
    assert measured_steps(Configuration(hidden=1024), 700) == 8
    assert measured_steps(Configuration(hidden=1024, unroll=5), 700) == 5


@pytest.mark.skipif(not BF16, reason="there are no instructions for bfloat16 here")
def test_bf16_is_measured_where_it_is_offered() -> None:
    choice = choose_precision(Configuration(hidden=32, batch_size=16), 50, CPU)
    assert set(choice.milliseconds) == {"fp32", "bf16"}
    assert choice.milliseconds[choice.chosen] == min(choice.milliseconds.values()) > 0.0


# --- a run and its choice ----------------------------------------------------------------------------------------

SMALL = Configuration(hidden=6, batch_size=4, unroll=10, epochs=3, min_count=1)


def begun(tales: Path) -> Training:
    return Training.begin(open_corpus(str(tales)), SMALL)


def until(training: Training, step: int) -> list[Event]:
    events = []
    for event in training.events():
        events.append(event)
        if isinstance(event, Stepped) and event.step == step:
            training.stop()
    return events


def started(events: list[Event]) -> Started:
    [event] = [event for event in events if isinstance(event, Started)]
    return event


@pytest.mark.parametrize("saved", [True, False])
def test_resumed_run_keeps_its_choice(tales: Path, saved: bool, offer: Offer) -> None:
    offer(["fp32", "PyTorch"], {"fp32": 2.0, "PyTorch": 1.0})
    training = begun(tales)
    whole = until(begun(tales), 8)
    if saved:
        until(training, 3)
    measured = offer(["fp32", "PyTorch"], {"fp32": 1.0, "PyTorch": 2.0})
    resumed = until(Training.resume(training.run), 8)
    assert not measured
    assert started(resumed).kernel.startswith("PyTorch (measured")
    assert started(resumed).milliseconds == {"fp32": 2.0, "PyTorch": 1.0}
    # fault 34
    assert [e.perplexity for e in resumed if isinstance(e, Stepped)] == [
        e.perplexity for e in whole if isinstance(e, Stepped) and e.step > 3 * saved
    ]


def test_choice_that_is_not_offered_is_made_again(tales: Path, offer: Offer) -> None:
    offer(["fp32", "bf16"], {"fp32": 2.0, "bf16": 1.0})
    training = begun(tales)
    assert started(until(training, 2)).precision == "bf16"
    offer(["fp32"], {})
    events = until(Training.resume(training.run), 3)
    assert started(events).precision == "fp32"
    [changed] = [event for event in events if isinstance(event, PlatformChanged)]
    assert changed.before["precision"] == "bf16"


def test_run_of_an_earlier_version_keeps_its_precision(tales: Path, offer: Offer) -> None:  # fault 50
    offer(["fp32", "bf16"], {"fp32": 2.0, "bf16": 1.0})
    training = begun(tales)
    until(training, 2)
    info = training.run.info()
    assert info.pop("precision")["chosen"] == "bf16"
    files.write_json(training.run.path / "run.json", info)
    measured = offer(["fp32", "bf16"], {"fp32": 1.0, "bf16": 2.0})
    assert started(until(Training.resume(training.run), 3)).precision == "bf16"
    assert not measured


@pytest.mark.parametrize(
    "kept",
    [None, 3, "bf16", [], {}, {"chosen": None}, {"chosen": []}, {"chosen": "fp16"}],
)
def test_damaged_choice_counts_as_none(kept: object, offer: Offer) -> None:
    offer(["fp32", "bf16"], {})
    assert restore_choice(kept, Configuration(), CPU) is None


def test_damaged_times_are_left_out(offer: Offer) -> None:
    offer(["fp32", "bf16"], {})
    for times in (None, [1.0], {"fp32": "2"}, {"fp32": float("nan")}):
        kept = {"chosen": "bf16", "milliseconds": times}
        assert restore_choice(kept, Configuration(), CPU) == PrecisionChoice("bf16")


def test_choice_and_times_are_reported(run: Callable[..., Ran], training: list[str], offer: Offer) -> None:
    offer(["fp32", "PyTorch"], {"fp32": 7.5, "PyTorch": 16.5})
    ran = run("train", "--run", "sly-fox", *training)
    assert ran.code == 0
    assert "fp32 7.5 ms, PyTorch 16.5 ms" in ran.err
    assert registry.find("sly-fox").info()["precision"]["chosen"] == "fp32"
    ran = run("train", "--resume", "--epochs", "3", "--json")
    events = [json.loads(line) for line in ran.out.splitlines()]
    [event] = [event for event in events if event["event"] == "started"]
    assert event["precision"] == "fp32"
    assert event["milliseconds"] == {"fp32": 7.5, "PyTorch": 16.5}


# --- dynamic evaluation --------------------------------------------------------------------------------------


def test_dynamic_evaluation_takes_bfloat16_where_there_is_any(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(Configuration(hidden=16, embedding=8, tied=True), 40)
    model.initialise()
    with_bf16 = "bf16" in backends.candidates("lstm", CPU)
    assert precision.one_row_precision(model, 8) == ("bf16" if with_bf16 else "fp32")
    with monkeypatch.context() as small:
        small.setattr(precision, "_SMALL", 1e7)
        assert precision.one_row_precision(model, 8) == "fp32"
    # What the caller gets is the precision of its products.
    document = EncodedDocument("fox", np.random.default_rng(0).integers(2, 40, 50).astype(np.int32), 0.0, 100)
    found = evaluate_dynamically(model, [document], segment=8).total.bits_per_character
    monkeypatch.setattr(precision, "candidates", lambda *_: ("fp32",))
    expected = evaluate_dynamically(model, [document], segment=8).total.bits_per_character
    assert found == pytest.approx(expected, rel=1e-3)
    assert (found == expected) != with_bf16
