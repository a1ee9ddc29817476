"""Training: its events, what it writes, and that a resumed run is bit-equal."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.configuration import PRESETS, Configuration, DropoutMode, Schedule
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.evaluation.scores import LARGEST_PERPLEXITY
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel, State
from grimmgen.network.train_step import StepResult, TrainStep
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Evaluated, Event, Finished, PlatformChanged, RateDecayed, Saved, Started, Stepped
from grimmgen.text import encoding
from grimmgen.text.batches import Window, epoch
from grimmgen.text.corpus import Corpus, open_corpus
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.split import split_by_hash
from grimmgen.training import loop as loop_module
from grimmgen.training import session as training_module
from grimmgen.training import text as text_module
from grimmgen.training.loop import DivergedError, Progress, SaveDue, TrainingLoop
from grimmgen.training.schedule import Plateau, cosine, progress_of
from grimmgen.training.session import Training
from grimmgen.training.text import prepare_text

# Three updates per epoch.
TINY: dict[str, Any] = {"hidden": 6, "batch_size": 9, "unroll": 25, "min_count": 1}
SMALL = Configuration(hidden=6, batch_size=4, unroll=10, epochs=3, min_count=1, dropout=0.3)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    directory = tmp_path / "tales"
    directory.mkdir()
    for number in range(12):
        tale = f"the king number {number} went into the forest and found a fox. " * (1 + number % 3)
        (directory / f"{number:02d}.txt").write_text(tale, encoding="utf-8")
    return open_corpus(str(directory))


def trained(corpus: Corpus, configuration: Configuration = SMALL) -> tuple[Training, list[Event]]:
    training = Training.begin(corpus, configuration)
    return training, list(training.events())


def only(kind: type[Any], events: list[Event]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def without_times(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in event.items() if k not in {"seconds", "run", "path"}} for event in log]


def test_events_come_in_order_and_agree_with_the_log(corpus: Corpus) -> None:
    training, events = trained(corpus)
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert [e.step for e in only(Stepped, events)] == list(range(1, 3 * started.updates + 1))
    assert [e.epoch for e in only(Evaluated, events)] == [1, 2, 3]
    assert (finished.reason, finished.epoch, finished.step) == ("epochs", 3, 3 * started.updates)
    best = min(only(Evaluated, events), key=lambda e: e.perplexity)
    assert (finished.best_perplexity, finished.best_epoch) == (best.perplexity, best.epoch)
    assert isinstance(events[-2], Saved)
    log = training.run.log()
    assert [e["event"] for e in log] == ["started", "evaluated", "evaluated", "evaluated", "finished"]


def test_perplexity_falls(corpus: Corpus) -> None:
    _, events = trained(
        corpus, Configuration(hidden=24, batch_size=4, unroll=10, epochs=20, min_count=1, learning_rate=0.02)
    )
    perplexities = [e.perplexity for e in only(Evaluated, events)]
    assert perplexities[-1] < perplexities[0] / 3


def test_weights_depend_on_the_random_seed_only(corpus: Corpus) -> None:
    weights = [
        trained(corpus, Configuration(**{**SMALL.to_json(), "random_seed": seed}))[0].run.checkpoint().weights
        for seed in (1, 1, 2)
    ]
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not np.array_equal(weights[0]["output.weight"], weights[2]["output.weight"])


def contents(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    checkpoint = Checkpoint.read(path)
    progress = {k: v for k, v in (checkpoint.progress or {}).items() if k != "seconds"}
    tensors = {**checkpoint.weights, **checkpoint.training_tensors}
    return progress, {name: tensor.tobytes() for name, tensor in tensors.items()}


def resumed_is_bit_equal(
    corpus: Corpus, configuration: Configuration, stops: Iterable[int] | None = None
) -> list[Event]:
    """Stop after each of these updates (None: all), resume and compare; returns the events of one whole run."""
    whole, events = trained(corpus, configuration)
    steps = len(only(Stepped, events))
    stepped = [(e.step, e.perplexity, e.rate) for e in only(Stepped, events)]
    for stop in range(1, steps + 1) if stops is None else stops:
        first = Training.begin(corpus, configuration)
        seen: list[Event] = []
        for event in first.events():
            seen.append(event)
            if isinstance(event, Stepped) and event.step == stop:
                first.stop()
        last = seen[-1]
        assert isinstance(last, Finished)
        # The last update ends the run by itself.
        assert last.reason == ("epochs" if stop == steps else "interrupted")
        second = Training.resume(registry.find(first.run.name))
        after = list(second.events())
        assert [(e.step, e.perplexity, e.rate) for e in only(Stepped, seen + after)] == stepped
        assert contents(first.run.last_path) == contents(whole.run.last_path)
        best, expected = Checkpoint.read(first.run.best_path), Checkpoint.read(whole.run.best_path)
        assert all(np.array_equal(best.weights[name], expected.weights[name]) for name in expected.weights)
        assert without_times(first.run.log()) == without_times(whole.run.log())
    return events


@pytest.mark.slow
@pytest.mark.parametrize("reset_state", [True, False])
def test_a_resume_from_any_update_is_bit_equal(corpus: Corpus, reset_state: bool) -> None:
    # Fault 34: at every step, including the ends of epochs, with a decay on the way.
    configuration = Configuration(
        **{
            **SMALL.to_json(),
            "reset_state": reset_state,
            "layers": 2,
            "decay_patience": 1,
            "learning_rate": 0.5,
            "epochs": 4,
            "batch_size": 9,
            "unroll": 25,
        }
    )
    assert only(RateDecayed, resumed_is_bit_equal(corpus, configuration))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_resume_is_bit_equal_for_each_preset(corpus: Corpus, preset: str) -> None:
    options = {**PRESETS[preset], **TINY, "epochs": 2}
    options |= {name: 4 for name in ("embedding",) if PRESETS[preset].get(name)}
    # Within an epoch and at its end.
    resumed_is_bit_equal(corpus, Configuration(**options), (1, 3))


@pytest.mark.parametrize(("cell", "mode"), [*zip(cells(), itertools.cycle(get_args(DropoutMode)), strict=False)])
def test_a_resume_is_bit_equal_for_each_cell(corpus: Corpus, cell: str, mode: DropoutMode) -> None:
    options: dict[str, Any] = {**TINY, "cell": cell, "layers": 2, "embedding": 4, "tied": True, "phases": True}
    options |= {"dropout": 0.3, "dropout_mode": mode, "input_dropout": 0.2, "weight_drop": 0.2, "epochs": 2}
    options |= {"schedule": "cosine", "weight_decay": 0.1, "newlines": "space"}
    resumed_is_bit_equal(corpus, Configuration(**options), (2,))


@pytest.mark.parametrize("cell", cells())
def test_a_resume_is_bit_equal_with_bfloat16_products(corpus: Corpus, cell: str) -> None:
    options: dict[str, Any] = {**TINY, "cell": cell, "layers": 2, "embedding": 4, "epochs": 2}
    rounded = resumed_is_bit_equal(corpus, Configuration(**options, precision="bf16"), (2,))
    _, exact = trained(corpus, Configuration(**options, precision="fp32"))
    ours, theirs = ([event.perplexity for event in only(Stepped, events)] for events in (rounded, exact))
    assert ours != theirs
    assert np.allclose(ours, theirs, rtol=0.01)


def test_memory_mapped_ids_train_bit_equal(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = Configuration(**TINY, epochs=2, phases=True)
    expected, _ = trained(corpus, configuration)
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    resumed_is_bit_equal(corpus, configuration, (1, 4))
    mapped, _ = trained(corpus, configuration)
    assert contents(mapped.run.last_path) == contents(expected.run.last_path)


def test_validation_of_a_large_text_is_limited(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "VALIDATION_NGRAMS", 9)
    training = Training.begin(corpus, SMALL)
    assert training._text is not None
    # Each of the twelve documents has a few n-grams of validation text.
    lengths = [len(document.ids) for document in training._text.validation]
    assert sum(lengths[:-1]) < 9 <= sum(lengths)
    assert len(lengths) < 12


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_mogrifier_of_few_rounds_is_trained_and_resumed(corpus: Corpus, rounds: int) -> None:
    configuration = Configuration(**TINY, cell="mogrifier", rounds=rounds, embedding=4, epochs=2)
    resumed_is_bit_equal(corpus, configuration, (1,))


@pytest.mark.parametrize("phases", [False, True])
def test_a_caller_may_stop_iterating_at_the_end_of_an_epoch(corpus: Corpus, phases: bool) -> None:
    configuration = Configuration(**TINY, epochs=2, phases=phases)
    whole, events = trained(corpus, configuration)
    edges = [one.step for one, other in itertools.pairwise(only(Stepped, events)) if one.epoch != other.epoch]
    for edge in edges:
        first = Training.begin(corpus, configuration)
        iterator = first.events()
        assert any(isinstance(event, Stepped) and event.step == edge for event in iterator)
        iterator.close()  # type: ignore[attr-defined]
        list(Training.resume(first.run).events())
        assert contents(first.run.last_path) == contents(whole.run.last_path)
    assert edges


def test_a_caller_that_stops_iterating_loses_nothing(corpus: Corpus) -> None:
    whole, _ = trained(corpus)
    first = Training.begin(corpus, SMALL)
    events = first.events()
    for _ in itertools.takewhile(lambda e: not (isinstance(e, Stepped) and e.step == 5), events):
        pass
    assert isinstance(events, Iterator)
    events.close()  # type: ignore[attr-defined]
    list(Training.resume(first.run).events())
    assert contents(first.run.last_path) == contents(whole.run.last_path)


def test_events_after_the_checkpoint_are_logged_once(corpus: Corpus) -> None:
    whole, _ = trained(corpus)
    crashed = Training.begin(corpus, SMALL)
    crashed.stop()
    list(crashed.events())
    # As if the process had been killed an epoch later, before its next save.
    crashed.run.append_log({"event": "evaluated", "step": 10**6, "epoch": 1})
    list(Training.resume(crashed.run).events())
    assert without_times(crashed.run.log()) == without_times(whole.run.log())


def test_an_unsaved_evaluation_is_logged_once(corpus: Corpus) -> None:
    whole, events = trained(corpus)
    edge = only(Evaluated, events)[0].step
    crashed = Training.begin(corpus, SMALL)
    iterator = crashed.events()
    assert any(isinstance(event, Stepped) and event.step == edge for event in iterator)
    # The caller stops at the last update of the epoch; the resume is killed between the log and its first save.
    iterator.close()  # type: ignore[attr-defined]
    crashed.run.append_log(next(e for e in whole.run.log() if e["event"] == "evaluated"))
    list(Training.resume(crashed.run).events())
    assert without_times(crashed.run.log()) == without_times(whole.run.log())


def test_a_resume_may_change_the_limits(corpus: Corpus) -> None:
    longer, _ = trained(corpus, Configuration(**{**SMALL.to_json(), "epochs": 5}))
    first, _ = trained(corpus)
    events = list(Training.resume(first.run, epochs=5).events())
    assert [e.epoch for e in only(Evaluated, events)] == [4, 5]
    assert contents(first.run.last_path) == contents(longer.run.last_path)
    assert first.run.configuration.epochs == 5
    list(Training.resume(first.run, patience=3).events())
    assert first.run.configuration.patience == 3


def test_a_resume_of_a_finished_run_does_nothing(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    before = training.run.log()
    events = list(Training.resume(training.run).events())
    assert only(Stepped, events) == []
    assert without_times(training.run.log()) == without_times(before)


def test_a_budget_ends_within_an_epoch_with_an_evaluation(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock on which a tenth of a second passes with each call.
    clock = itertools.count(0.0, 0.1).__next__
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=clock))
    _, events = trained(corpus, Configuration(**{**SMALL.to_json(), "epochs": 10**6, "budget": 3.0}))
    assert 1 <= len(only(Stepped, events)) <= 10
    assert len(only(Evaluated, events)) == 1
    assert only(Finished, events)[0].reason == "budget"


def test_a_stop_within_an_evaluation_resumes_bit_equal(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 33: an evaluation of a large text takes minutes.
    whole, _ = trained(corpus)
    first, seen = Training.begin(corpus, SMALL), list[Event]()
    with monkeypatch.context() as patch:
        # However short it is, it is stopped before its first window.
        patch.setattr(loop_module, "_SHORT_EVALUATION", -1.0)
        for event in first.events():
            seen.append(event)
            if isinstance(event, Stepped) and event.step == only(Started, seen)[0].updates:
                first.stop()
    assert only(Evaluated, seen) == []
    assert only(Finished, seen)[0].reason == "interrupted"
    assert only(Finished, seen)[0].step == only(Started, seen)[0].updates
    list(Training.resume(first.run).events())
    assert contents(first.run.last_path) == contents(whole.run.last_path)
    assert without_times(first.run.log()) == without_times(whole.run.log())


def test_a_short_budget_evaluates_a_part_of_the_set(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    # Of more than a thousand n-grams.
    directory = Path(corpus.source if isinstance(corpus.source, str) else corpus.source[0])
    (directory / "00.txt").write_text("the king went into the forest and found a fox. " * 999, encoding="utf-8")
    corpus = open_corpus(str(directory))
    now, losses = [0.0], LanguageModel.losses

    def slow(model: LanguageModel, window: Window, state: State) -> Any:
        now[0] += 1e-3 * window.inputs.size  # seconds
        return losses(model, window, state)

    monkeypatch.setattr(LanguageModel, "losses", slow)
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(TrainingLoop, "_limit_reached", lambda loop: "budget" if loop.progress.step else None)
    ngrams = []
    for budget in (18.0, 1000.0):
        training = Training.begin(corpus, dataclasses.replace(SMALL, budget=budget))
        [*_, evaluated] = only(Evaluated, list(training.events()))
        saved = Checkpoint.read(training.run.last_path)
        ngrams.append((saved.progress or {})["validation_ngrams"])
        # A resume evaluates the same part.
        monkeypatch.setattr(
            TrainingLoop, "_limit_reached", lambda loop: "budget" if loop.progress.step > 1 else None
        )
        again = list(Training.resume(training.run, budget=budget + 1.0).events())
        monkeypatch.setattr(TrainingLoop, "_limit_reached", lambda loop: "budget" if loop.progress.step else None)
        assert len(only(Evaluated, again)) == 1
        saved = Checkpoint.read(training.run.last_path)
        assert (saved.progress or {})["validation_ngrams"] == ngrams[-1]
        assert evaluated.perplexity > 1.0
    assert ngrams == [1024, 0]  # at a millisecond each, in a twelfth of the time


@pytest.mark.parametrize(("limit", "counted"), [(64 << 20, 40.0), (0, 10.0)])
@pytest.mark.parametrize("from_start", [True, False])
def test_reading_counts_only_for_a_small_text(
    limit: int, counted: float, from_start: bool, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Start-up takes 10 s, reading 30 s.
    now, loops = [0.0], list[TrainingLoop]()
    read = prepare_text

    def slow(*arguments: Any) -> Any:
        now[0] += 30.0
        return read(*arguments)

    def make_loop(*arguments: Any) -> TrainingLoop:
        loops.append(TrainingLoop(*arguments))
        return loops[-1]

    monkeypatch.setattr(training_module, "IN_MEMORY", limit)
    monkeypatch.setattr(training_module, "prepare_text", slow)
    monkeypatch.setattr(training_module, "TrainingLoop", make_loop)
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    now[0] = 10.0
    training = Training.begin(corpus, SMALL)
    training.counted_from = 0.0 if from_start else None
    next(training.events())
    assert [loop.startup_seconds for loop in loops] == [counted if from_start else 0.0]


def test_training_ends_when_the_rate_has_decayed(corpus: Corpus) -> None:
    # With such a low rate the perplexity improves only once: every second evaluation decays the rate.
    configuration = Configuration(
        **{**SMALL.to_json(), "epochs": 100, "decay_patience": 1, "decay_factor": 0.05, "learning_rate": 1e-12}
    )
    _, events = trained(corpus, configuration)
    decays = only(RateDecayed, events)
    assert only(Finished, events)[0].reason == "converged"
    assert [e.new_rate for e in decays] == pytest.approx([5e-14, 2.5e-15])


def test_plateau_equals_the_code_of_the_tutorial() -> None:
    perplexities = [9.0, 8.0, 8.5, 8.1, 8.0, 8.2, 8.3, 7.9, 9, 9, 9, 9, 9, 9]
    # The tutorial's code, from its section "Decaying learning rate over time".
    decay_count, minimum, gstep = 0, 1e10, 0
    schedule = Plateau(0.001)
    for perplexity in perplexities:
        if perplexity < minimum:
            decay_count = 0
            minimum = perplexity
        else:
            decay_count += 1
        if decay_count >= 5:
            decay_count = 0
            gstep += 1
        schedule = schedule.after(perplexity, factor=0.5, patience=5)
        assert schedule == Plateau(0.001 * 0.5**gstep, minimum, decay_count)
    assert gstep == 2


@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.3, 1.0])
def test_cosine_warms_up_and_falls_to_one_percent(warmup: float) -> None:
    progress = np.linspace(0.0, 1.0, 1001)
    rates = np.array([cosine(float(p), warmup) for p in progress])
    assert rates.min() >= 0.01 - 1e-12
    assert rates.max() == pytest.approx(1.0)
    rising = progress < warmup
    assert rates[rising].tolist() == pytest.approx([max(0.01, p / warmup) for p in progress[rising]])
    falling = [p for p in progress if warmup <= p < 1]
    expected = [0.01 + 0.99 * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))) / 2 for p in falling]
    assert rates[~rising][: len(expected)].tolist() == pytest.approx(expected)
    assert (np.diff(rates[~rising]) <= 0).all()
    assert warmup == 1.0 or rates[-1] == pytest.approx(0.01)


def test_progress_is_that_of_the_updates_or_of_the_budget() -> None:
    assert progress_of(3, 12, 100.0, None) == 0.25
    assert progress_of(3, 12, 5.0, 10.0) == 0.5
    assert progress_of(3, 12, 1.0, 10.0) == 0.25
    assert progress_of(12, 12, 11.0, 10.0) == 1.0


def test_the_cosine_schedule_ignores_the_validation_set(corpus: Corpus) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "warmup": 0.25, "learning_rate": 0.02, "decay_patience": 1}
    _, events = trained(corpus, Configuration(**{**TINY, **options}, epochs=8))
    steps = len(only(Stepped, events))
    rates = [e.rate for e in only(Stepped, events)]
    assert rates == pytest.approx([0.02 * cosine(k / steps, 0.25) for k in range(steps)])
    assert max(rates) == pytest.approx(0.02)
    assert rates[0] == pytest.approx(0.0002)
    assert rates[-1] < 0.0005
    assert only(Evaluated, events)[-1].rate == pytest.approx(0.0002)
    assert only(RateDecayed, events) == []
    assert only(Finished, events)[0].reason == "epochs"


def test_the_cosine_schedule_follows_the_budget(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {
        "schedule": "cosine",
        "epochs": 10**6,
        "budget": 0.2,
        "patience": 0,
        "learning_rate": 0.02,
    }
    loops: list[TrainingLoop] = []

    def make_loop(*arguments: Any) -> TrainingLoop:
        loops.append(TrainingLoop(*arguments))
        return loops[-1]

    monkeypatch.setattr(training_module, "TrainingLoop", make_loop)
    before = 0.0
    for event in Training.begin(corpus, Configuration(**TINY, **options)).events():
        if isinstance(event, Stepped):
            # The rate has fallen when the time that is reserved for the evaluation and the last save begins.
            end = 0.2 - loops[-1].progress.reserve
            assert event.rate == pytest.approx(0.02 * cosine(min(1.0, before / end), 0.02), rel=1e-4)
        if isinstance(event, Stepped | Evaluated):
            before = event.seconds
    assert isinstance(event, Finished)
    assert event.reason == "budget"


def test_weight_decay_is_decoupled_from_the_gradient(corpus: Corpus) -> None:
    # The first updates differ by the decay only: by the same fraction of each weight.
    stopped = []
    for decay in (0.0, 0.5):
        options: dict[str, Any] = {"weight_decay": decay, "learning_rate": 0.01, "initialisation": "xavier"}
        training = Training.begin(corpus, Configuration(**TINY, **options))
        for event in training.events():
            if isinstance(event, Stepped):
                training.stop()
        stopped.append(Checkpoint.read(training.run.last_path).weights)
    model = LanguageModel(training._configuration, len(training.run.checkpoint().vocabulary))
    model.initialise()
    for name, first in model.weights().items():
        np.testing.assert_allclose(stopped[0][name] - stopped[1][name], first * 0.005, atol=1e-6)


@pytest.mark.slow
def test_weight_decay_keeps_weights_small(corpus: Corpus) -> None:
    norms = []
    for decay in (0.0, 2.0):
        training, _ = trained(
            corpus, Configuration(**TINY, epochs=15, patience=0, learning_rate=0.02, weight_decay=decay)
        )
        weights = Checkpoint.read(training.run.last_path).weights
        norms.append(math.sqrt(sum(float((w**2).sum()) for w in weights.values())))
    assert norms[1] < 0.7 * norms[0]


def test_an_epoch_reads_one_phase_of_each_document(corpus: Corpus) -> None:
    plain, _ = trained(corpus, Configuration(**TINY, epochs=1))
    configuration = Configuration(**TINY, epochs=1, phases=True, dropout=0.0)
    phased, events = trained(corpus, configuration)
    grams = [set(training.run.checkpoint().vocabulary.texts) for training in (plain, phased)]
    assert grams[0] < grams[1]
    started, *_ = only(Started, events)
    texts = [document.read() for document in split_by_hash(corpus).parts["train"]]
    assert started.ngrams == sum(math.ceil(len(text) / 2) for text in texts)
    # One epoch reads one phase of each document, as drawn by `epoch`.
    vocabulary = phased.run.checkpoint().vocabulary
    documents = [[vocabulary.encode(text, phase) for phase in range(2)] for text in texts]
    windows = epoch(documents, 9, 25, 0, 0)
    assert len(only(Stepped, events)) == len(windows)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    losses, _ = model.losses(windows[0], model.zero_state(9))
    first = only(Stepped, events)[0]
    assert first.perplexity == pytest.approx(math.exp(losses.sum() / windows[0].predictions), rel=1e-5)


def test_a_loss_that_is_not_finite_keeps_the_checkpoint(corpus: Corpus) -> None:
    # Fault 35
    training = Training.begin(corpus, SMALL)
    training.stop()
    list(training.events())
    before = training.run.last_path.read_bytes()
    resumed = Training.resume(training.run)
    assert resumed._checkpoint is not None
    resumed._checkpoint.weights["output.bias"][:] = np.inf
    with pytest.raises(GrimmgenError, match=r"not finite at update 1.*--lr 0\.0001"):
        list(resumed.events())
    assert training.run.last_path.read_bytes() == before


def test_a_run_is_locked_while_it_is_trained(corpus: Corpus) -> None:  # fault 36
    first, second = Training.begin(corpus, SMALL), Training.begin(corpus, SMALL)
    events = first.events()
    next(events)
    next(second.events())
    with pytest.raises(GrimmgenError, match=f"the run {first.run.name} is in use by process"):
        next(Training(first.run, SMALL, corpus, split_by_hash(corpus), "cpu").events())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10**5}, r"--batch-size 100000 is more than the \d+ tokens"),  # fault 38
        ({"min_count": 10**6}, "no 2-gram occurs 1000000 times"),
    ],
)
def test_a_text_too_short_is_refused_before_a_run_is_created(
    corpus: Corpus, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Training.begin(corpus, Configuration(**{**SMALL.to_json(), **change}))
    assert registry.all_runs() == []


def test_a_resume_with_a_changed_document_is_an_error(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    document = split_by_hash(corpus).parts["train"][0]
    Path(document.place).write_text("another tale", encoding="utf-8")
    with pytest.raises(IntegrityError, match="changed"):
        list(Training.resume(training.run, epochs=9).events())


def test_the_logged_perplexity_is_that_of_the_best_weights(corpus: Corpus) -> None:
    training, events = trained(corpus)
    checkpoint = training.run.checkpoint()
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    documents = split_by_hash(corpus).parts["valid"]
    texts = encode_for_evaluation([(d.name, d.read()) for d in documents], checkpoint.vocabulary)
    assert evaluate(model, texts).total.perplexity == only(Finished, events)[0].best_perplexity


def test_evaluation_equals_one_document_at_a_time(corpus: Corpus) -> None:
    training, _ = trained(corpus, Configuration(**{**SMALL.to_json(), "min_count": 12}))
    checkpoint = training.run.checkpoint()
    vocabulary = checkpoint.vocabulary
    assert isinstance(vocabulary, NgramVocabulary)
    model = LanguageModel(checkpoint.configuration, len(vocabulary))
    model.load_weights(checkpoint.weights)
    texts = [("a", "The king went."), ("b", "zzz, the fox and 中"), ("c", "x")]
    result = evaluate(model, encode_for_evaluation(texts, vocabulary))
    for (_, text), score in zip(texts, result.documents, strict=True):
        ids = vocabulary.encode(text)
        inputs = torch.tensor([1, *ids.tolist()])[:, None]
        logits, _ = model.logits(inputs, model.zero_state(1))
        targets = torch.tensor([*ids.tolist(), 1])
        nats = torch.nn.functional.cross_entropy(logits[:, 0].double(), targets, reduction="sum").item()
        unknown = [text.lower()[i * 2 : i * 2 + 2] for i in np.flatnonzero(ids == 0)]
        nats += sum(vocabulary.spelling_cost(c) for gram in unknown for c in gram)
        nats += sum(vocabulary.spelling_cost("") for gram in unknown if len(gram) < 2)
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert score.bits_per_character == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
        assert score.unknown == len(unknown)
    assert result.total.perplexity == pytest.approx(
        math.exp(sum(s.nats for s in result.documents) / sum(s.predictions for s in result.documents))
    )


# --- the loop by itself ----------------------------------------------------------------------------------


class FakeStep:
    """A training step that counts: its loss is the number of the update, its state the sum of the losses."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, _: Window, state: State, __: float, random_seed: int) -> StepResult:
        self.seeds.append(random_seed)
        return StepResult(float(len(self.seeds)), 1.0, (state[0] + len(self.seeds),))


def fake_loop(step: FakeStep, **options: Any) -> TrainingLoop:
    """A loop over two epochs of three windows; a second passes with each look at the clock."""
    configuration = Configuration(batch_size=2, unroll=2, **{"epochs": 2, "decay_patience": 1, **options})
    return TrainingLoop(
        configuration,
        step,  # type: ignore[arg-type]
        (torch.zeros(1, 2, 1),),
        Progress(Plateau(configuration.learning_rate)),
        lambda number: epoch([[np.arange(2, 13, dtype=np.uint16)]], 2, 2, 0, number),
        3,
        lambda: (7.0, 2.0),
        lambda: False,
        itertools.count().__next__,
        5.0,
        lambda clocks, stop: (clocks, stop),
    )


def test_the_loop_yields_events_and_knows_no_files(home: Path) -> None:
    step = FakeStep()
    loop = fake_loop(step)
    events = list(loop.events())
    assert [type(event) for event in events if not isinstance(event, SaveDue)] == [
        *[Stepped] * 3,
        Evaluated,
        *[Stepped] * 3,
        *(Evaluated, RateDecayed, Finished),
    ]
    assert any(isinstance(event, SaveDue) for event in events)
    # All randomness of an update follows from the random seed and its number.
    assert step.seeds == [np.random.SeedSequence([0, k]).generate_state(1)[0] for k in range(6)]
    assert loop.state[0].tolist() == [[[21.0], [21.0]]]
    assert (loop.progress.step, loop.progress.epoch, loop.progress.window) == (6, 2, 0)
    assert not home.exists()


def test_the_loop_repeats_an_evaluation_that_was_interrupted() -> None:
    loop = fake_loop(FakeStep())
    assert any(isinstance(event, Evaluated) for event in loop.events())
    again = dataclasses.replace(loop, progress=Progress.from_json(loop.progress.to_json()))
    first = next(event for event in again.events() if not isinstance(event, SaveDue))
    assert isinstance(first, Evaluated)
    assert (first.step, first.epoch) == (3, 1)


def test_the_loop_evaluates_at_the_end_of_the_budget() -> None:
    loop = fake_loop(FakeStep(), budget=5.0)
    for event in loop.events():
        if isinstance(event, Stepped) and event.seconds >= 5.0:
            break
    again = dataclasses.replace(loop, progress=Progress.from_json(loop.progress.to_json()))
    evaluated, finished = again.events()
    assert isinstance(evaluated, Evaluated)
    assert isinstance(finished, Finished)
    assert (evaluated.step, finished.reason, finished.best_perplexity) == (loop.progress.step, "budget", 7.0)


@pytest.mark.parametrize("schedule", ["plateau", "cosine"])
def test_the_loop_stops_when_validation_stops_improving(schedule: Schedule) -> None:
    # The lowest perplexity is that of the third evaluation; patience counts on over the ends of a resume.
    scores = [9.0, 8.0, 7.0, 7.5, 7.0, 8.0, 6.0]
    limits: dict[str, Any] = {"schedule": schedule, "epochs": 7, "decay_patience": 5}

    def evaluations(loop: TrainingLoop, events: int) -> list[Any]:
        loop.evaluate = lambda: (scores[loop.progress.epoch], 2.0)
        return [e for e in itertools.islice(loop.events(), events) if isinstance(e, Evaluated | Finished)]

    for patience, evaluated, reason in ((3, 6, "patience"), (4, 7, "epochs"), (0, 7, "epochs")):
        *found, finished = evaluations(fake_loop(FakeStep(), **{**limits, "patience": patience}), 1000)
        assert [e.perplexity for e in found] == scores[:evaluated]
        assert (finished.reason, finished.best_epoch) == (reason, 3 if reason == "patience" else 7)
    whole = evaluations(fake_loop(FakeStep(), **limits, patience=3), 1000)
    first = fake_loop(FakeStep(), **limits, patience=3)
    begun = evaluations(first, 21)
    again = dataclasses.replace(first, progress=Progress.from_json(first.progress.to_json()))
    rest = evaluations(again, 1000)
    assert 0 < len(begun) < len(whole)
    assert [(e.epoch, e.step) for e in [*begun, *rest]] == [(e.epoch, e.step) for e in whole]
    # It has ended; a resume with more patience continues.
    assert [type(e) for e in evaluations(dataclasses.replace(again), 1000)] == [Finished]
    again.configuration = dataclasses.replace(again.configuration, patience=4)
    assert [e.epoch for e in evaluations(again, 1000)] == [7, 7]


class Hours:
    """A clock that is set forward by what a training does: updates, evaluations and saves, in seconds."""

    def __init__(self, update: float, evaluation: float, save: float, expected: float) -> None:
        self.now, self.evaluation, self.save = 0.0, evaluation, save
        step = FakeStep()

        def timed_step(*arguments: Any) -> StepResult:
            self.now += update
            return step(*arguments)

        self.loop = dataclasses.replace(
            fake_loop(step),
            step=timed_step,  # type: ignore[arg-type]
            clock=lambda: self.now,
            save_seconds=30.0,
            evaluate=self.evaluate,
            evaluation_seconds=expected,
        )

    def evaluate(self) -> tuple[float, float] | None:
        for _ in range(1000):
            if self.loop.evaluation_stopped():
                return None
            self.now += self.evaluation / 1000
        return 7.0, 2.0

    def train(self, budget: float) -> list[Any]:
        self.loop.configuration = Configuration(
            batch_size=2, unroll=2, epochs=10**6, schedule="cosine", budget=budget, patience=0
        )
        events = []
        for event in self.loop.events():
            events.append(event)
            if isinstance(event, SaveDue | Finished):
                self.now += self.save
        return events


@pytest.mark.parametrize("budget", [10.0, 60.0, 300.0])
@pytest.mark.parametrize(("update", "evaluation", "save"), [(0.1, 0.5, 0.1), (2.0, 1.2, 0.4), (0.5, 1.0, 2.0)])
@pytest.mark.parametrize("error", [0.5, 1.0])
def test_a_budget_is_kept(budget: float, update: float, evaluation: float, save: float, error: float) -> None:
    # Evaluations after each epoch of three updates; the expected duration of the first is wrong.
    hours = Hours(update, evaluation, save, evaluation * error)
    events = hours.train(budget)
    assert budget - 2 * (update + evaluation + 2.5 * save) < hours.now < budget + max(1.0, 0.02 * budget)
    assert events[-1].reason == "budget"
    assert isinstance(events[-2], Evaluated)
    # A resume has nothing left to do.
    [finished] = dataclasses.replace(hours.loop).events()
    assert isinstance(finished, Finished)


def test_an_evaluation_ends_with_the_budget() -> None:
    hours = Hours(1.0, 300.0, 1.0, expected=2.0)
    *_, finished = hours.train(60.0)
    assert 59.0 < hours.now < 61.2
    assert (finished.reason, finished.best_perplexity) == ("budget", None)
    # A resume catches up on it.
    hours.loop = dataclasses.replace(hours.loop)
    *_, evaluated, finished = hours.loop.events()
    assert isinstance(evaluated, Evaluated)
    assert isinstance(finished, Finished)
    assert finished.best_perplexity == 7.0


def test_a_long_evaluation_is_preceded_by_a_save() -> None:
    for expected, event in ((4.0, SaveDue), (3.0, Stepped)):
        loop = dataclasses.replace(
            fake_loop(FakeStep()), evaluation_seconds=expected, clock=lambda: 0.0, save_seconds=1e9
        )
        events = list(loop.events())
        evaluated = next(number for number, found in enumerate(events) if isinstance(found, Evaluated))
        assert isinstance(events[evaluated - 1], event)


def test_ranks_is_a_deprecated_name(corpus: Corpus) -> None:
    sys.modules.pop("grimmgen.ranks", None)
    with pytest.warns(DeprecationWarning, match="process_group"):
        from grimmgen import ranks
    with ranks.joined() as group, pytest.warns(DeprecationWarning, match="use `group`"):
        training = Training.begin(corpus, SMALL, ranks=group)
    training.stop()
    list(training.events())
    with pytest.warns(DeprecationWarning, match="use `group`"):
        Training.resume(training.run, ranks=group)


# --- runs that fail, and runs that are resumed -------------------------------------------------------------


def diverge_after(updates: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the loss be nan after so many updates of each training step."""
    call, done = TrainStep.__call__, Counter[int]()

    def step(self: TrainStep, *arguments: Any) -> StepResult:
        result = call(self, *arguments)
        done[id(self)] += 1
        return result if done[id(self)] <= updates else result._replace(loss=math.nan)

    monkeypatch.setattr(TrainStep, "__call__", step)


def failed(training: Training) -> str:
    with pytest.raises(GrimmgenError) as caught:
        list(training.events())
    return str(caught.value)


def test_divergence_saves_the_best_weights(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, events = trained(corpus, Configuration(**TINY, epochs=2))
    diverge_after(only(Evaluated, events)[-1].step, monkeypatch)
    training = Training.begin(corpus, Configuration(**TINY, epochs=9))
    said = re.fullmatch(
        r"the loss or its gradient is not finite at update 7; the best weights, of epoch (\d), are saved:"
        r" train a new run with --lr 0\.0001",
        failed(training),
    )
    assert said
    assert int(said[1]) == only(Finished, events)[0].best_epoch
    model, expected = (registry.load_model(run.run.name).checkpoint for run in (training, whole))
    assert all(np.array_equal(model.weights[name], expected.weights[name]) for name in expected.weights)
    assert training.run.log()[-1] == {
        "event": "failed",
        "step": 6,
        "error": "the loss or its gradient is not finite at update 7",
    }


def test_divergence_without_an_evaluation_saves_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    good, _ = trained(corpus)
    diverge_after(1, monkeypatch)
    bad = Training.begin(corpus, Configuration(**TINY, clip=1e12, learning_rate=1e6))
    assert failed(bad) == (
        "the loss or its gradient is not finite at update 2; no checkpoint was saved:"
        " train a new run with --clip 5 --lr 0.001"
    )
    assert not bad.run.has_checkpoint
    assert registry.load_model().run == good.run


def test_a_perplexity_that_overflows_is_no_minimum() -> None:
    results = iter([(LARGEST_PERPLEXITY, 2000.0), (9.0, 2.0)])
    loop = dataclasses.replace(fake_loop(FakeStep()), evaluate=lambda: next(results))
    events = [event for event in loop.events() if isinstance(event, Evaluated | RateDecayed | Finished)]
    diverged, decayed, evaluated, finished = events
    assert isinstance(diverged, Evaluated)
    assert isinstance(decayed, RateDecayed)
    assert isinstance(evaluated, Evaluated)
    assert isinstance(finished, Finished)
    assert (diverged.perplexity, diverged.best, evaluated.best) == (LARGEST_PERPLEXITY, False, True)
    assert decayed.minimum == LARGEST_PERPLEXITY, "not infinite, which JSON does not know"
    assert (finished.best_perplexity, finished.best_epoch) == (9.0, 2)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_validation_loss_that_is_not_finite_ends_training(loss: float) -> None:
    loop = dataclasses.replace(fake_loop(FakeStep()), evaluate=lambda: (LARGEST_PERPLEXITY, loss))
    with pytest.raises(DivergedError, match=r"the validation loss is not finite after update 3: .* --lr 0\.0001"):
        list(loop.events())


def test_another_failure_saves_the_best_weights_too(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.begin(corpus, Configuration(**TINY, epochs=9))
    events = training.events()
    assert any(isinstance(event, Evaluated) for event in events)

    def interrupted(*_: Any) -> StepResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(events)
    assert training.run.checkpoint().provenance["epoch"] == 1
    assert training.run.log()[-1]["error"] == "KeyboardInterrupt"


@pytest.mark.parametrize("kept", [(), ("best.safetensors",)])
def test_a_run_without_a_last_checkpoint_starts_again(corpus: Corpus, kept: tuple[str, ...]) -> None:
    # As if it had been killed before its first save, or between those of the best and the last checkpoint.
    whole, _ = trained(corpus)
    killed, _ = trained(corpus)
    for path in killed.run.path.glob("*.safetensors"):
        if path.name not in kept:
            path.unlink()
    events = list(Training.resume(killed.run).events())
    assert only(Started, events)[0].step == 0
    assert contents(killed.run.last_path) == contents(whole.run.last_path)
    assert contents(killed.run.best_path) == contents(whole.run.best_path)
    assert without_times(killed.run.log()) == without_times(whole.run.log())


def test_a_full_disk_names_the_command_that_continues(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.begin(corpus, SMALL)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", full)
        message = failed(training)
    assert message.endswith(
        f"free some space on the disk and continue with `grimmgen train --resume --run {training.run.name}`"
    )
    assert [event["event"] for event in training.run.log()][-1] == "failed"
    assert only(Finished, list(Training.resume(training.run).events()))
    assert [event["event"] for event in training.run.log()].count("failed") == 0


def test_a_run_is_finished_only_when_it_is_saved(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training.begin(corpus, SMALL)
    replace = Checkpoint.write

    def killed(checkpoint: Checkpoint, path: Path) -> None:
        if path == training.run.last_path:
            raise SystemExit
        replace(checkpoint, path)

    monkeypatch.setattr(Checkpoint, "write", killed)
    with pytest.raises(SystemExit):
        list(training.events())
    assert "finished" not in [event["event"] for event in training.run.log()]


def test_a_resume_locks_the_run_before_it_reads(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    first = Training.resume(training.run, epochs=6)
    # A second one would have read the checkpoint of epoch 3 by now, and write over that of epoch 6.
    with pytest.raises(GrimmgenError, match=f"the run {training.run.name} is in use by process"):
        Training.resume(training.run)
    list(first.events())
    second = Training.resume(training.run)
    assert second._configuration.epochs == 6
    list(second.events())
    assert Progress.from_json(Checkpoint.read(training.run.last_path).progress).epoch == 6


def test_the_lock_is_released_with_the_training(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    resumed = Training.resume(training.run)
    assert training.run.trainer
    del resumed
    assert training.run.trainer is None
    training.run.last_path.write_bytes(b"")
    for _ in range(2):
        with pytest.raises(IntegrityError):
            Training.resume(training.run)
    assert training.run.trainer is None


def test_the_events_of_a_training_are_iterated_once(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    before = training.run.last_path.read_bytes()
    with pytest.raises(GrimmgenError, match="has ended: resume the run"):
        next(training.events())
    assert training.run.last_path.read_bytes() == before


@pytest.mark.parametrize("name", ["best.safetensors", "last.safetensors", "previous.safetensors"])
def test_a_resume_refuses_checkpoints_of_another_run(corpus: Corpus, name: str) -> None:
    one, other = trained(corpus)[0].run, trained(corpus)[0].run
    for path in (one.last_path, one.previous_path):
        path.unlink(missing_ok=True)
    (one.path / name).write_bytes(other.last_path.read_bytes())
    if name == "best.safetensors":
        list(Training.resume(one).events())  # it is not read, and written anew
        assert one.checkpoint().provenance["run"] == one.name
        return
    with pytest.raises(IntegrityError, match=f"{name} is not a checkpoint of the run {one.name}"):
        Training.resume(one)


def test_a_resume_on_another_platform_is_an_event(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = trained(corpus)
    moved = Training.begin(corpus, SMALL)
    moved.stop()
    list(moved.events())
    assert only(PlatformChanged, list(Training.resume(moved.run).events())) == []

    monkeypatch.setenv("GRIMMGEN_KERNEL", "plain")
    threads = torch.get_num_threads()
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    resumed = Training.resume(moved.run, epochs=4)
    started, changed, *_ = resumed.events()
    assert isinstance(started, Started)
    assert isinstance(changed, PlatformChanged)
    assert changed.step == started.step > 0
    assert changed.before.keys() == changed.after.keys() >= {"threads"}
    assert (changed.before["threads"], changed.after["threads"]) == (threads, threads + 1)
    if changed.before.get("backend"):
        assert changed.after["backend"] == "PyTorch"
    names = [event["event"] for event in moved.run.log()]
    assert names == [*[e["event"] for e in whole.run.log()[:-1]], "platform changed", "evaluated", "finished"]
    # Resumed on the same platform, the event of the resume before is kept.
    assert only(PlatformChanged, list(Training.resume(moved.run, epochs=5).events())) == []
    assert "platform changed" in [event["event"] for event in moved.run.log()]


@pytest.mark.parametrize("stored", [None, 7, [], {"threads": None}, {"threads": [3]}, {"new": 3}, {}])
def test_an_unknown_platform_is_no_change(corpus: Corpus, stored: object) -> None:
    training, _ = trained(corpus)
    last = Checkpoint.read(training.run.last_path)
    provenance = {**last.provenance, "platform": stored}
    if stored is None:  # as in earlier versions
        del provenance["platform"]
    dataclasses.replace(last, provenance=provenance).write(training.run.last_path)
    assert only(PlatformChanged, list(Training.resume(training.run, epochs=4).events())) == []
