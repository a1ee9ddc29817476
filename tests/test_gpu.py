"""Training on a GPU: captured steps, bit-equal resume, checkpoints that change the device, memory.

All of it is skipped without an NVIDIA GPU; `test_gpu_kernels.py` tests everywhere what the kernels compute.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.configuration import PRESETS, Configuration, DropoutMode, Products
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Event, Finished, Started, Stepped
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.generator import TextGenerator
from grimmgen.text.corpus import Corpus, open_corpus
from grimmgen.training.session import Training
from tests.learner import Learner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU here"),
]

CELLS = [name for name in cells() if find_spec(f"grimmgen.network.cells.{name}_triton")]
TINY: dict[str, Any] = {"hidden": 24, "batch_size": 5, "unroll": 12, "min_count": 1, "epochs": 2}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "embedding": 8, "tied": True, "dropout_mode": "locked", "weight_drop": 0.1, "weight_decay": 0.1},
    {"hidden": 300, "dropout_mode": "output", "reset_state": False},
]
each_cell = pytest.mark.parametrize("cell", CELLS)
each_precision = pytest.mark.parametrize("precision", get_args(Products))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    directory = tmp_path / "tales"
    directory.mkdir()
    for number in range(12):
        tale = f"the king number {number} went into the forest and found a fox. " * (1 + number % 3)
        (directory / f"{number:02d}.txt").write_text(tale, encoding="utf-8")
    return open_corpus(str(directory))


def learner(configuration: Configuration, precision: Products, record: bool) -> Learner:
    created = Learner(configuration, precision, record, "cuda")
    assert created.step.description.endswith(", CUDA graph") == record
    return created


@pytest.mark.parametrize("options", OPTIONS)
@each_precision
@each_cell
def test_captured_step_equals_the_eager_one_to_the_bit(
    cell: str, precision: Products, options: dict[str, Any]
) -> None:
    configuration = Configuration(**{**TINY, **options, "cell": cell})
    eager, graph, again = (learner(configuration, precision, record) for record in (False, True, True))
    results = eager.train(7)
    assert graph.train(7) == results
    assert again.train(7) == results
    for expected, actual, repeated in zip(eager.tensors(), graph.tensors(), again.tensors(), strict=True):
        assert torch.equal(actual, expected)
        assert torch.equal(repeated, expected)


@each_cell
def test_capture_changes_nothing(cell: str) -> None:
    from grimmgen.network.backends.cuda.graph import capture

    trained = learner(Configuration(**TINY, cell=cell), "fp32", record=False)
    trained.train(3)
    before = trained.tensors()
    shape = TINY["unroll"], TINY["batch_size"]
    assert capture(trained.model, trained.optimiser, trained.model.backend(), shape)[1] == ", CUDA graph"
    assert all(map(torch.equal, trained.tensors(), before))
    assert trained.optimiser.steps == 3


def test_captured_step_that_is_not_finite_changes_no_weight() -> None:
    trained = learner(Configuration(**TINY), "fp32", record=True)
    trained.train(2)
    trained.model.weights_by_name["output.bias"][5] = np.nan
    before = [weight.clone() for weight in trained.model.parameters()]
    [(loss, _)] = trained.train(1, first=2)
    assert np.isnan(loss)
    assert all(a.equal(b) or a.isnan().any() for a, b in zip(trained.model.parameters(), before, strict=True))
    assert trained.optimiser.steps == 2


@each_precision
@each_cell
def test_steps_are_those_of_the_reference_backend(
    cell: str, precision: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(**TINY, cell=cell)
    results = learner(configuration, precision, record=True).train(5)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    expected = learner(configuration, precision, record=False).train(5)
    assert np.allclose(results, expected, rtol=1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("kernel", ["", "plain"])
def test_step_of_the_reference_backend_is_not_captured(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    options = {**TINY, "cell": "lstm" if kernel else "mogrifier", "embedding": 8}
    assert ", no CUDA graph (" in Learner(Configuration(**options), device="cuda").step.description


def train(training: Training, stop: int | None = None) -> list[Event]:
    events = []
    for event in training.events():
        events.append(event)
        if isinstance(event, Stepped) and event.step == stop:
            training.stop()
    return events


@pytest.mark.parametrize("mode", get_args(DropoutMode))
@each_precision
@each_cell
def test_stopped_and_resumed_run_is_bit_equal(
    corpus: Corpus, cell: str, mode: DropoutMode, precision: Products
) -> None:  # fault 34
    configuration = Configuration(**TINY, cell=cell, dropout_mode=mode, precision=precision, layers=2, phases=True)
    whole = Training.begin(corpus, configuration, device="cuda")
    events = train(whole)
    assert isinstance(events[0], Started)
    assert events[0].kernel == ("Triton bf16" if precision == "bf16" else "Triton") + ", CUDA graph"
    expected = whole.run.last_path
    for stop in (1, 3):
        part = Training.begin(corpus, configuration, device="cuda")
        assert isinstance(last := train(part, stop)[-1], Finished)
        assert last.reason == "interrupted"
        after = train(Training.resume(registry.find(part.run.name), device="cuda"))
        steps = [(e.step, e.perplexity) for e in events if isinstance(e, Stepped) and e.step > stop]
        assert [(e.step, e.perplexity) for e in after if isinstance(e, Stepped)] == steps
        resumed, uninterrupted = map(Checkpoint.read, (part.run.last_path, expected))
        for kind in ("weights", "training_tensors"):
            tensors, others = getattr(resumed, kind), getattr(uninterrupted, kind)
            assert all(tensors[name].tobytes() == others[name].tobytes() for name in others)


@pytest.mark.parametrize("preset", PRESETS)
def test_run_resumes_on_another_device(corpus: Corpus, preset: str) -> None:
    options = {**PRESETS[preset], **TINY, "schedule": "plateau", "budget": None}
    options |= {name: 4 for name in ("embedding",) if PRESETS[preset].get(name)}
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        begun = Training.begin(corpus, Configuration(**{**options, "epochs": 1}), device=first)
        train(begun)
        checkpoint = begun.run.checkpoint()
        documents = [("document", "the king found a fox")]
        perplexities = []
        for device in (first, second):
            model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(device)
            model.load_weights(checkpoint.weights)
            scored = evaluate(model, encode_for_evaluation(documents, checkpoint.vocabulary))
            perplexities.append(scored.total.perplexity)
        assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)
        # Text is generated on the CPU, wherever a run was trained.
        trained_model = TrainedModel(begun.run.name, checkpoint)
        assert TextGenerator(trained_model).generate("the king", length=20, random_seed=1)
        copy = begun.run.path.parent / f"copy-{first}"
        shutil.copytree(begun.run.path, copy)
        ends = []
        for run, device in ((begun.run, first), (registry.find(copy.name), second)):
            events = train(Training.resume(run, device=device, epochs=2))
            ends.append([event.perplexity for event in events if isinstance(event, Stepped)][-1])
        # The CPU may round products to bfloat16.
        assert ends[0] == pytest.approx(ends[1], rel=0.05)


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (128 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("kernel", ["native", "plain"])
def test_out_of_gpu_memory_is_an_error(
    corpus: Corpus, tmp_path: Path, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fault 37
    monkeypatch.setenv("GRIMMGEN_KERNEL", kernel)
    # The network takes some 20 MB; the input's share of a window's gates, four times the memory that is left.
    tale = "the king went into the forest and found a fox. "
    for number in range(12):
        (tmp_path / "tales" / f"{number:02d}.txt").write_text(tale * 1000, encoding="utf-8")
    configuration = Configuration(**{**TINY, "hidden": 512, "batch_size": 64, "unroll": 1000})
    with pytest.raises(GrimmgenError, match="out of memory"):
        train(Training.begin(open_corpus(corpus.source), configuration, device="cuda"))


def test_text_shorter_than_a_window_is_trained_on(corpus: Corpus) -> None:
    training = Training.begin(corpus, Configuration(**{**TINY, "unroll": 5000}), device="cuda")
    assert isinstance(train(training)[-1], Finished)
