"""The training loop: what it yields, what it leaves on the disk, and that stopping changes nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from grimmgen.configuration import PRESETS, Cell, Configuration, DropoutMode
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.model import LanguageModel
from grimmgen.runs import registry
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.events import Evaluated, Event, Finished, RateDecayed, Saved, Started, Stepped
from grimmgen.text import encoding
from grimmgen.text.batches import epoch
from grimmgen.text.corpus import Corpus, open_corpus
from grimmgen.text.split import split_by_hash
from grimmgen.training import session as training_module
from grimmgen.training.session import Plateau, Training, cosine

# A run of three updates an epoch.
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


def test_events_tell_the_whole_story_in_order(corpus: Corpus) -> None:
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


def test_the_model_learns(corpus: Corpus) -> None:
    _, events = trained(
        corpus, Configuration(hidden=24, batch_size=4, unroll=10, epochs=20, min_count=1, learning_rate=0.02)
    )
    perplexities = [e.perplexity for e in only(Evaluated, events)]
    assert perplexities[-1] < perplexities[0] / 3


def test_the_same_random_seed_gives_the_same_weights_and_another_gives_others(corpus: Corpus) -> None:
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
    """Stop after each of these updates (None: any), resume and compare; returns the events of the whole run."""
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
        # An update that is the last of all ends the run by itself.
        assert last.reason == ("epochs" if stop == steps else "interrupted")
        second = Training.resume(registry.find(first.run.name))
        after = list(second.events())
        assert [(e.step, e.perplexity, e.rate) for e in only(Stepped, seen + after)] == stepped
        assert contents(first.run.last_path) == contents(whole.run.last_path)
        best, right = Checkpoint.read(first.run.best_path), Checkpoint.read(whole.run.best_path)
        assert all(np.array_equal(best.weights[name], right.weights[name]) for name in right.weights)
        assert without_times(first.run.log()) == without_times(whole.run.log())
    return events


@pytest.mark.slow
@pytest.mark.parametrize("reset_state", [True, False])
def test_a_run_stopped_after_any_update_and_resumed_is_bit_equal(corpus: Corpus, reset_state: bool) -> None:
    # Fault 34: every step, the edges of epochs among them; a decay on the way; carried state either way.
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
def test_a_run_of_any_preset_is_bit_equal_when_resumed(corpus: Corpus, preset: str) -> None:
    options = {**PRESETS[preset], **TINY, "epochs": 2}
    options |= {name: 4 for name in ("embedding",) if PRESETS[preset].get(name)}
    # Within an epoch, and at its end.
    resumed_is_bit_equal(corpus, Configuration(**options), (1, 3))


@pytest.mark.parametrize(
    ("cell", "mode"), [*zip(get_args(Cell), itertools.cycle(get_args(DropoutMode)), strict=False)]
)
def test_a_run_of_any_cell_is_bit_equal_when_resumed(corpus: Corpus, cell: Cell, mode: DropoutMode) -> None:
    options: dict[str, Any] = {**TINY, "cell": cell, "layers": 2, "embedding": 4, "tied": True, "phases": True}
    options |= {"dropout": 0.3, "dropout_mode": mode, "input_dropout": 0.2, "weight_drop": 0.2, "epochs": 2}
    options |= {"schedule": "cosine", "weight_decay": 0.1, "newlines": "space"}
    resumed_is_bit_equal(corpus, Configuration(**options), (2,))


@pytest.mark.parametrize("cell", get_args(Cell))
def test_a_run_of_bfloat16_products_is_bit_equal_when_resumed(corpus: Corpus, cell: Cell) -> None:
    options: dict[str, Any] = {**TINY, "cell": cell, "layers": 2, "embedding": 4, "epochs": 2}
    resumed_is_bit_equal(corpus, Configuration(**options, precision="bf16"), (1, 3))
    _, exact = trained(corpus, Configuration(**options, precision="fp32"))
    _, rounded = trained(corpus, Configuration(**options, precision="bf16"))
    ours, theirs = ([event.perplexity for event in only(Stepped, events)] for events in (rounded, exact))
    assert ours != theirs
    assert np.allclose(ours, theirs, rtol=0.01)


def test_a_run_on_ids_in_a_file_is_the_one_on_ids_in_memory_and_resumes_to_the_bit(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(**TINY, epochs=2, phases=True)
    right, _ = trained(corpus, configuration)
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    resumed_is_bit_equal(corpus, configuration, (1, 4))
    made, _ = trained(corpus, configuration)
    assert contents(made.run.last_path) == contents(right.run.last_path)


def test_of_much_text_a_part_is_validated_with(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_module, "_VALIDATION", 9)
    training = Training.begin(corpus, SMALL)
    assert training._prepared is not None
    # Of twelve stories, each with a few n-grams to validate with.
    read = [len(story.ids) for story in training._prepared.validation]
    assert sum(read[:-1]) < 9 <= sum(read)
    assert len(read) < 12


@pytest.mark.parametrize("rounds", [0, 1])
def test_a_mogrifier_of_hardly_any_rounds_is_trained_and_resumed(corpus: Corpus, rounds: int) -> None:
    configuration = Configuration(**TINY, cell="mogrifier", rounds=rounds, embedding=4, epochs=2)
    resumed_is_bit_equal(corpus, configuration, (1,))


@pytest.mark.parametrize("phases", [False, True])
def test_a_listener_may_leave_after_the_last_update_of_an_epoch(corpus: Corpus, phases: bool) -> None:
    configuration = Configuration(**TINY, epochs=2, phases=phases)
    whole, events = trained(corpus, configuration)
    edges = [one.step for one, other in itertools.pairwise(only(Stepped, events)) if one.epoch != other.epoch]
    for edge in edges:
        first = Training.begin(corpus, configuration)
        heard = first.events()
        assert any(isinstance(event, Stepped) and event.step == edge for event in heard)
        heard.close()  # type: ignore[attr-defined]
        list(Training.resume(first.run).events())
        assert contents(first.run.last_path) == contents(whole.run.last_path)
    assert edges


def test_a_listener_that_leaves_loses_nothing(corpus: Corpus) -> None:
    whole, _ = trained(corpus)
    first = Training.begin(corpus, SMALL)
    events = first.events()
    for _ in itertools.takewhile(lambda e: not (isinstance(e, Stepped) and e.step == 5), events):
        pass
    assert isinstance(events, Iterator)
    events.close()  # type: ignore[attr-defined]
    list(Training.resume(first.run).events())
    assert contents(first.run.last_path) == contents(whole.run.last_path)


def test_what_was_logged_after_the_checkpoint_is_logged_once_after_a_crash(corpus: Corpus) -> None:
    whole, _ = trained(corpus)
    crashed = Training.begin(corpus, SMALL)
    crashed.stop()
    list(crashed.events())
    # As if the process had gone on for an epoch and been killed before its next save.
    crashed.run.append_log({"event": "evaluated", "step": 10**6, "epoch": 1})
    list(Training.resume(crashed.run).events())
    assert without_times(crashed.run.log()) == without_times(whole.run.log())


def test_an_evaluation_that_was_logged_and_not_saved_is_logged_once(corpus: Corpus) -> None:
    whole, events = trained(corpus)
    edge = only(Evaluated, events)[0].step
    crashed = Training.begin(corpus, SMALL)
    heard = crashed.events()
    assert any(isinstance(event, Stepped) and event.step == edge for event in heard)
    # Its listener leaves at the last update of the epoch; the resume is killed between the log and its first save.
    heard.close()  # type: ignore[attr-defined]
    crashed.run.append_log(next(e for e in whole.run.log() if e["event"] == "evaluated"))
    list(Training.resume(crashed.run).events())
    assert without_times(crashed.run.log()) == without_times(whole.run.log())


def test_limits_can_be_moved_when_a_run_is_resumed(corpus: Corpus) -> None:
    longer, _ = trained(corpus, Configuration(**{**SMALL.to_json(), "epochs": 5}))
    first, _ = trained(corpus)
    events = list(Training.resume(first.run, epochs=5).events())
    assert [e.epoch for e in only(Evaluated, events)] == [4, 5]
    assert contents(first.run.last_path) == contents(longer.run.last_path)
    assert first.run.configuration.epochs == 5


def test_a_finished_run_resumed_has_nothing_to_do(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    before = training.run.log()
    events = list(Training.resume(training.run).events())
    assert only(Stepped, events) == []
    assert without_times(training.run.log()) == without_times(before)


def test_a_budget_ends_training_within_an_epoch_and_is_judged_there(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A clock on which a second passes whenever it is looked at.
    monkeypatch.setattr(training_module, "time", SimpleNamespace(monotonic=itertools.count().__next__))
    _, events = trained(corpus, Configuration(**{**SMALL.to_json(), "epochs": 10**6, "budget": 10.0}))
    assert 1 <= len(only(Stepped, events)) <= 10
    assert len(only(Evaluated, events)) == 1
    assert only(Finished, events)[0].reason == "budget"


def test_training_ends_when_the_rate_has_decayed_away(corpus: Corpus) -> None:
    # A rate of next to nothing never improves twice: every second evaluation lowers it.
    configuration = Configuration(
        **{**SMALL.to_json(), "epochs": 100, "decay_patience": 1, "decay_factor": 0.05, "learning_rate": 1e-12}
    )
    _, events = trained(corpus, configuration)
    decays = only(RateDecayed, events)
    assert only(Finished, events)[0].reason == "converged"
    assert [e.new_rate for e in decays] == pytest.approx([5e-14, 2.5e-15])


def test_plateau_is_the_tutorials() -> None:
    perplexities = [9.0, 8.0, 8.5, 8.1, 8.0, 8.2, 8.3, 7.9, 9, 9, 9, 9, 9, 9]
    # The tutorial's own lines, from its section "Decaying learning rate over time".
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
def test_cosine_rises_over_the_warmup_then_falls_to_a_hundredth(warmup: float) -> None:
    places = np.linspace(0.0, 1.0, 1001)
    shares = np.array([cosine(float(place), warmup) for place in places])
    assert shares.min() >= 0.01 - 1e-12
    assert shares.max() == pytest.approx(1.0)
    rising = places < warmup
    assert shares[rising].tolist() == pytest.approx([max(0.01, p / warmup) for p in places[rising]])
    right = [
        0.01 + 0.99 * (1 + math.cos(math.pi * (p - warmup) / (1 - warmup))) / 2 for p in places if warmup <= p < 1
    ]
    assert shares[~rising][: len(right)].tolist() == pytest.approx(right)
    assert (np.diff(shares[~rising]) <= 0).all()
    assert warmup == 1.0 or shares[-1] == pytest.approx(0.01)


def test_a_run_of_a_cosine_warms_up_and_ends_low_whatever_validation_says(corpus: Corpus) -> None:
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


def test_a_cosine_follows_the_budget_where_it_ends_sooner(corpus: Corpus) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "epochs": 10**6, "budget": 0.2, "learning_rate": 0.02}
    _, events = trained(corpus, Configuration(**TINY, **options))
    before = 0.0
    for event in events:
        if isinstance(event, Stepped):
            assert event.rate == pytest.approx(0.02 * cosine(before / 0.2, 0.02), rel=1e-4)
        if isinstance(event, Stepped | Evaluated):
            before = event.seconds
    assert only(Finished, events)[0].reason == "budget"


def test_weight_decay_shrinks_the_weights_apart_from_the_gradient(corpus: Corpus) -> None:
    # With dropout away, the first update differs by the decay alone: each weight by the same share.
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
def test_weight_decay_keeps_weights_small_in_the_long_run(corpus: Corpus) -> None:
    norms = []
    for decay in (0.0, 2.0):
        training, _ = trained(corpus, Configuration(**TINY, epochs=15, learning_rate=0.02, weight_decay=decay))
        weights = Checkpoint.read(training.run.last_path).weights
        norms.append(math.sqrt(sum(float((w**2).sum()) for w in weights.values())))
    assert norms[1] < 0.7 * norms[0]


def test_with_phases_the_vocabulary_is_of_both_cuts_and_an_epoch_reads_one_of_each_story(corpus: Corpus) -> None:
    plain, _ = trained(corpus, Configuration(**TINY, epochs=1))
    configuration = Configuration(**TINY, epochs=1, phases=True, dropout=0.0)
    phased, events = trained(corpus, configuration)
    grams = [set(training.run.checkpoint().vocabulary.ngrams) for training in (plain, phased)]
    assert grams[0] < grams[1]
    started, *_ = only(Started, events)
    texts = [story.read() for story in split_by_hash(corpus).parts["train"]]
    assert started.ngrams == sum(math.ceil(len(text) / 2) for text in texts)
    # One epoch reads each story cut in one of its ways, as drawn.
    vocabulary = phased.run.checkpoint().vocabulary
    stories = [[vocabulary.encode(text, phase) for phase in range(2)] for text in texts]
    windows = epoch(stories, 9, 25, 0, 0)
    assert len(only(Stepped, events)) == len(windows)
    model = LanguageModel(configuration, len(vocabulary))
    model.initialise()
    losses, _ = model.losses(windows[0], model.zero_state(9))
    first = only(Stepped, events)[0]
    assert first.perplexity == pytest.approx(math.exp(losses.sum() / windows[0].predictions), rel=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_update_and_keeps_the_checkpoint(corpus: Corpus) -> None:
    # Fault 35.
    training = Training.begin(corpus, SMALL)
    training.stop()
    list(training.events())
    before = training.run.last_path.read_bytes()
    resumed = Training.resume(training.run)
    assert resumed._checkpoint is not None
    resumed._checkpoint.weights["output.bias"][:] = np.inf
    with pytest.raises(GrimmgenError, match=r"no longer finite at update \d+.*train anew with --lr 0.0001"):
        list(resumed.events())
    assert training.run.last_path.read_bytes() == before


def test_two_trainings_of_one_run_are_refused_of_two_runs_are_fine(corpus: Corpus) -> None:  # fault 36
    first, second = Training.begin(corpus, SMALL), Training.begin(corpus, SMALL)
    events = first.events()
    next(events)
    next(second.events())
    with pytest.raises(GrimmgenError, match=f"the run {first.run.name} is in use by process"):
        next(Training(first.run, SMALL, corpus, split_by_hash(corpus), "cpu").events())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 10**5}, r"--batch-size 100000 is more than the \d+ n-grams"),  # fault 38
        ({"min_count": 10**6}, "no 2-gram occurs 1000000 times"),
    ],
)
def test_a_text_too_short_is_refused_before_there_is_a_run(
    corpus: Corpus, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Training.begin(corpus, Configuration(**{**SMALL.to_json(), **change}))
    assert registry.all_runs() == []


def test_a_changed_story_is_noticed_when_a_run_is_resumed(corpus: Corpus) -> None:
    training, _ = trained(corpus)
    story = split_by_hash(corpus).parts["train"][0]
    assert isinstance(story.path, Path)
    story.path.write_text("another tale", encoding="utf-8")
    with pytest.raises(IntegrityError, match="has changed"):
        list(Training.resume(training.run, epochs=9).events())


def test_the_logged_perplexity_is_that_of_evaluation_with_the_best_weights(corpus: Corpus) -> None:
    training, events = trained(corpus)
    checkpoint = training.run.checkpoint()
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    stories = split_by_hash(corpus).parts["valid"]
    texts = encode_for_evaluation([(s.name, s.read()) for s in stories], checkpoint.vocabulary)
    assert evaluate(model, texts).total.perplexity == only(Finished, events)[0].best_perplexity


def test_evaluation_is_the_mean_over_stories_read_alone_unknown_ngrams_charged(corpus: Corpus) -> None:
    training, _ = trained(corpus, Configuration(**{**SMALL.to_json(), "min_count": 12}))
    checkpoint = training.run.checkpoint()
    vocabulary = checkpoint.vocabulary
    model = LanguageModel(checkpoint.configuration, len(vocabulary)).double()
    model.load_weights(checkpoint.weights)
    texts = [("a", "The king went."), ("b", "zzz, the fox and 中"), ("c", "x")]
    result = evaluate(model.float(), encode_for_evaluation(texts, vocabulary))
    for (_, text), score in zip(texts, result.documents, strict=True):
        ids = vocabulary.encode(text)
        inputs = torch.tensor([1, *ids.tolist()])[:, None]
        hidden, _ = model(inputs, model.zero_state(1), None)
        logits = hidden[:, 0] @ model.output.weight + model.output.bias
        targets = torch.tensor([*ids.tolist(), 1])
        nats = torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
        spelt = [text.lower()[i * 2 : i * 2 + 2] for i in np.flatnonzero(ids == 0)]
        nats += sum(vocabulary.spelling_cost(c) for gram in spelt for c in gram)
        nats += sum(vocabulary.spelling_cost("") for gram in spelt if len(gram) < 2)
        assert score.nats == pytest.approx(nats, rel=1e-5)
        assert score.bits_per_character == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
        assert score.unknown == len(spelt)
    assert result.total.perplexity == pytest.approx(
        math.exp(sum(s.nats for s in result.documents) / sum(s.predictions for s in result.documents))
    )
