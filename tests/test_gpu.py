"""Training on a GPU: an update captured in a CUDA graph, runs that resume, checkpoints that change the device.

All of it is skipped where there is no NVIDIA GPU; what the kernels compute is tested everywhere, in
`test_gpu_kernels.py`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.configuration import PRESETS, Configuration, DropoutMode, Products
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
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

FUSED: list[str] = ["lstm", "peephole", "gru"]
TINY: dict[str, Any] = {"hidden": 24, "batch_size": 5, "unroll": 12, "min_count": 1, "epochs": 2}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"layers": 2, "embedding": 8, "tied": True, "dropout_mode": "locked", "weight_drop": 0.1, "weight_decay": 0.1},
    {"hidden": 300, "dropout_mode": "output", "reset_state": False},
]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    directory = tmp_path / "tales"
    directory.mkdir()
    for number in range(12):
        tale = f"the king number {number} went into the forest and found a fox. " * (1 + number % 3)
        (directory / f"{number:02d}.txt").write_text(tale, encoding="utf-8")
    return open_corpus(str(directory))


def learner(configuration: Configuration, precision: Products, graph: bool) -> Learner:
    made = Learner(configuration, precision, graph, "cuda")
    assert made.told == (", CUDA graph" if graph else "")
    return made


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("precision", get_args(Products))
@pytest.mark.parametrize("cell", FUSED)
def test_a_captured_update_is_to_the_bit_one_that_is_not_and_the_same_again(
    cell: str, precision: Products, options: dict[str, Any]
) -> None:
    configuration = Configuration(**{**TINY, **options, "cell": cell})
    eager, graph, again = (learner(configuration, precision, graph) for graph in (False, True, True))
    told = eager.learn(7)
    assert graph.learn(7) == told
    assert again.learn(7) == told
    for right, made, same in zip(eager.numbers(), graph.numbers(), again.numbers(), strict=True):
        assert torch.equal(made, right)
        assert torch.equal(same, right)


@pytest.mark.parametrize("cell", FUSED)
def test_a_capture_changes_nothing(cell: str) -> None:
    graph = learner(Configuration(**TINY, cell=cell), "fp32", graph=False)
    graph.learn(3)
    before = graph.numbers()
    assert graph.capture()[0] is not None
    assert all(map(torch.equal, graph.numbers(), before))
    assert graph.optimiser.steps == 3


@pytest.mark.parametrize("precision", get_args(Products))
@pytest.mark.parametrize("cell", FUSED)
def test_updates_are_those_of_the_plain_path(
    cell: str, precision: Products, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(**TINY, cell=cell)
    made = learner(configuration, precision, graph=True).learn(5)
    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    right = learner(configuration, precision, graph=False).learn(5)
    assert np.allclose(made, right, rtol=1e-4 if precision == "fp32" else 1e-2)


def test_where_the_plain_path_serves_nothing_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    for cell, path in (("mogrifier", "native"), ("lstm", "plain")):
        monkeypatch.setenv("GRIMMGEN_KERNEL", path)
        captured, told = learner(Configuration(**{**TINY, "cell": cell}), "fp32", graph=False).capture()
        assert captured is None
        assert told.startswith(", no CUDA graph (")


def trained(training: Training, stop: int | None = None) -> list[Event]:
    events = []
    for event in training.events():
        events.append(event)
        if isinstance(event, Stepped) and event.step == stop:
            training.stop()
    return events


@pytest.mark.parametrize(("cell", "mode"), [*zip(FUSED, get_args(DropoutMode), strict=True)])
@pytest.mark.parametrize("precision", get_args(Products))
def test_a_run_that_is_stopped_and_resumed_is_bit_equal(
    corpus: Corpus, cell: str, mode: DropoutMode, precision: Products
) -> None:  # fault 34
    configuration = Configuration(**TINY, cell=cell, dropout_mode=mode, precision=precision, layers=2, phases=True)
    whole = Training.begin(corpus, configuration, device="cuda")
    events = trained(whole)
    assert isinstance(events[0], Started)
    assert events[0].kernel == ("Triton bf16" if precision == "bf16" else "Triton") + ", CUDA graph"
    right = whole.run.last_path
    for stop in (1, 3):
        part = Training.begin(corpus, configuration, device="cuda")
        assert isinstance(last := trained(part, stop)[-1], Finished)
        assert last.reason == "interrupted"
        after = trained(Training.resume(registry.find(part.run.name), device="cuda"))
        steps = [(e.step, e.perplexity) for e in events if isinstance(e, Stepped) and e.step > stop]
        assert [(e.step, e.perplexity) for e in after if isinstance(e, Stepped)] == steps
        made, wanted = (Checkpoint.read(path) for path in (part.run.last_path, right))
        for tensors, others in ((made.weights, wanted.weights), (made.training_tensors, wanted.training_tensors)):
            assert all(tensors[name].tobytes() == others[name].tobytes() for name in others)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_goes_on_on_another_device_and_tells_the_same_there(corpus: Corpus, preset: str) -> None:
    options = {**PRESETS[preset], **TINY, "schedule": "plateau", "budget": None}
    options |= {name: 4 for name in ("embedding",) if PRESETS[preset].get(name)}
    for first, second in (("cuda", "cpu"), ("cpu", "cuda")):
        begun = Training.begin(corpus, Configuration(**{**options, "epochs": 1}), device=first)
        trained(begun)
        checkpoint = begun.run.checkpoint()
        story = [("story", "the king found a fox")]
        perplexities = []
        for device in (first, second):
            model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary)).to(device)
            model.load_weights(checkpoint.weights)
            scored = evaluate(model, encode_for_evaluation(story, checkpoint.vocabulary))
            perplexities.append(scored.total.perplexity)
        assert perplexities[0] == pytest.approx(perplexities[1], rel=1e-4)
        # Text is generated on the CPU, wherever a run was trained.
        trained_model = TrainedModel(begun.run.name, checkpoint)
        assert TextGenerator(trained_model).generate("the king", length=20, random_seed=1)
        copy = begun.run.path.parent / f"copy-{first}"
        shutil.copytree(begun.run.path, copy)
        ends = []
        for run, device in ((begun.run, first), (registry.find(copy.name), second)):
            events = trained(Training.resume(run, device=device, epochs=2))
            ends.append([event.perplexity for event in events if isinstance(event, Stepped)][-1])
        # Dropout draws other numbers there.
        assert ends[0] == pytest.approx(ends[1], rel=0.2)


@pytest.fixture
def little_memory() -> Iterator[None]:
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + (128 << 20)) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("path", ["native", "plain"])
def test_a_gpu_without_memory_is_told(
    corpus: Corpus, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fault 37
    monkeypatch.setenv("GRIMMGEN_KERNEL", path)
    # The network takes some 20 MB, what a window adds to its gates four times what there is left.
    tale = "the king went into the forest and found a fox. "
    for number in range(12):
        (tmp_path / "tales" / f"{number:02d}.txt").write_text(tale * 1000, encoding="utf-8")
    configuration = Configuration(**{**TINY, "hidden": 512, "batch_size": 64, "unroll": 1000})
    with pytest.raises(GrimmgenError, match="the device is out of memory at update 1"):
        trained(Training.begin(open_corpus(corpus.source), configuration, device="cuda"))


def test_a_text_shorter_than_a_window_is_trained_on(corpus: Corpus) -> None:
    training = Training.begin(corpus, Configuration(**{**TINY, "unroll": 5000}), device="cuda")
    assert isinstance(trained(training)[-1], Finished)
