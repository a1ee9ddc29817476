"""Counts beside the network: the index, Kneser-Ney, the gate, the mixture, and how a checkpoint keeps them."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from grimmgen.configuration import Configuration
from grimmgen.counts import storage
from grimmgen.counts.document import DocumentCounts
from grimmgen.counts.gate import Gate, _gradients
from grimmgen.counts.index import ContextIndex
from grimmgen.counts.kneser_ney import CountModel
from grimmgen.counts.mixture import Mixture, TokenScores
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.evaluation.comparison import evaluate_models
from grimmgen.evaluation.static import encode_documents_for_evaluation, evaluate, token_scores
from grimmgen.evaluation.surprisal import surprisal
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.model import LanguageModel
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import Run, TrainedModel, load_model
from grimmgen.sampling.combined import CombinedStepper
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.logits import log_probabilities
from grimmgen.sampling.options import SamplingOptions
from grimmgen.sampling.records import Record, replay, to_record
from grimmgen.text.batches import RaggedIds
from grimmgen.text.corpus import open_corpus
from grimmgen.text.vocabulary import END
from grimmgen.training.session import Training
from tests.builders import TEXT, tiny_checkpoint
from tests.program import Ran

V, K = 7, 4
CPU = torch.device("cpu")


def some_ids(size: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Ids with repetitions, and now and then `<end>`."""
    random = np.random.default_rng(seed)
    phrases = [random.integers(1, V, 9) for _ in range(4)]
    return np.concatenate([phrases[int(random.integers(4))] for _ in range(size // 9 + 1)])[:size]


def count_model(size: int = 400) -> CountModel:
    ids = np.concatenate([np.full(K, END), some_ids(size)]).astype(np.uint16)
    return CountModel.build(ContextIndex.of(ids, K, V))


# --- the index -----------------------------------------------------------------------------------------------


def test_intervals_are_the_occurrences_of_each_context() -> None:
    index = count_model().index
    ids = index.ids.tolist()
    for history in ([END], some_ids(60, 1)[:30].tolist(), [2], [V - 1, V - 1, V - 1, 3]):
        found = index.intervals(history)
        for length in range(min(K, len(history)) + 1):
            context = history[len(history) - length :]
            occurrences = {i for i in range(K, len(ids)) if ids[i - length : i] == context}
            begin, end = found[length] if length < len(found) else (0, 0)
            assert {*index.order[begin:end].tolist()} == occurrences
        assert np.array_equal(index.followers, index.ids[index.order])


def test_a_batch_of_texts_has_the_intervals_of_each() -> None:
    index = count_model().index
    texts = [np.concatenate([[END], some_ids(20, seed)]) for seed in (1, 2)]
    begins = np.repeat([0, 21], 21)
    begin, end = index.batch_intervals(np.concatenate(texts), begins)
    for number, text in enumerate(texts):
        for position in range(21):
            expected = index.intervals(text[:position].tolist())
            column = 21 * number + position
            pairs = [*zip(begin[:, column].tolist(), end[:, column].tolist(), strict=True)]
            assert pairs[: len(expected)] == expected
            assert all(low == high for low, high in pairs[len(expected) :])


def test_index_has_the_documents_of_each_phase() -> None:
    vocabulary = tiny_checkpoint().vocabulary
    cut = [vocabulary.encode(TEXT, phase) for phase in (0, 1)]
    lengths = np.array([[len(ids)] for ids in cut])
    index = ContextIndex.build(RaggedIds.of_lengths(np.concatenate(cut), lengths), vocabulary)
    assert index.longest == 8
    assert index.ids.tolist() == [END] * 8 + [*cut[0], END, *cut[1], END]
    assert sorted(index.order.tolist()) == [*range(8, len(index.ids))]


# --- probabilities -------------------------------------------------------------------------------------------


def slow_kneser_ney(model: CountModel, history: list[int], token: int) -> float:
    """The probability by the definition, counting anew with dictionaries."""
    ids = model.index.ids.tolist()
    p = 1.0 / V
    for length in range(min(K, len(history)) + 1):
        context = history[len(history) - length :]
        before: dict[int, set[int]] = defaultdict(set)
        for i in range(K, len(ids)):
            if ids[i - length : i] == context:
                # At the longest context each occurrence counts, else each different token before it.
                before[ids[i]].add(i if length == K else ids[i - length - 1])
        counts = {w: len(found) for w, found in before.items()}
        if not counts:
            break
        D = {w: (0.0, *model.discounts[length])[min(c, 3)] for w, c in counts.items()}
        total = sum(counts.values())
        p = (counts.get(token, 0) - D.get(token, 0.0)) / total + sum(D.values()) / total * p
    return p


def test_distribution_is_that_of_the_definition() -> None:
    model = count_model()
    text = [END, *some_ids(40, 1).tolist()]
    for position in range(1, len(text)):
        p, occurrences, backoff = model.distribution(text[:position])
        assert p.sum() == pytest.approx(1.0)
        assert len(occurrences) == len(backoff) <= K + 1
        assert p.tolist() == pytest.approx([slow_kneser_ney(model, text[:position], w) for w in range(V)])


def test_rows_of_many_and_of_few_entries_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    text = some_ids(20, 1).tolist()
    rows = []
    for short in (0, 1 << 20):
        monkeypatch.setattr("grimmgen.counts.kneser_ney._SHORT", short)
        rows.append([count_model().distribution(text[:n])[0] for n in range(20)])
    np.testing.assert_allclose(rows[0], rows[1])


def test_predictions_are_those_of_the_distribution() -> None:
    model = count_model()
    texts = [np.concatenate([[END], some_ids(30, seed)]) for seed in (1, 2)]
    found = model.predictions(np.concatenate(texts), np.repeat([0, 31], 31))
    for number, text in enumerate(texts):
        for position in range(1, 31):
            p, occurrences, backoff = model.distribution(text[:position].tolist())
            column = 31 * number + position
            assert found.p[column] == pytest.approx(p[text[position]])
            size = len(occurrences)
            assert found.occurrences[:size, column].tolist() == occurrences
            assert found.backoff[:, column].tolist() == pytest.approx([*backoff, *[1.0] * (K + 1 - size)])


def test_a_repeated_text_is_predicted() -> None:
    text = count_model().index.ids[K : K + 60].tolist()
    model = count_model()
    assert np.mean([model.distribution(text[:n])[0][text[n]] for n in range(K, 60)]) > 0.5


def test_document_counts_are_those_before_each_token() -> None:
    ids = some_ids(50, 3)
    found = DocumentCounts.of(ids, K)
    text = ids.tolist()
    for position in range(50):
        for length in range(1, K + 1):
            earlier = [
                text[i]
                for i in range(length, position)
                if text[i - length : i] == text[position - length : position]
            ]
            if position < length:
                earlier = []
            column = (length - 1, position)
            assert found.contexts[column] == len(earlier)
            assert found.targets[column] == earlier.count(text[position])
            assert found.different[column] == len({*earlier})


def test_document_counts_add_no_probability() -> None:
    ids = some_ids(30, 3)
    log_p = np.full(30, -np.log(V))
    total = np.zeros(30)
    for token in range(V):
        for position in range(30):
            changed = np.concatenate([ids[:position], [token]])
            total[position] += np.exp(DocumentCounts.of(changed, K).log_probabilities(log_p[: position + 1])[-1])
    np.testing.assert_allclose(total, 1.0)


# --- the gate ------------------------------------------------------------------------------------------------


def experts(size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Features, one of which says which of two experts is right."""
    random = np.random.default_rng(0)
    features = random.normal(size=(size, 3))
    right = (features[:, :1] > 0) == np.array([[True, False]])
    return features, np.log(np.where(right, 0.9, 0.1))


def test_gate_learns_which_expert_is_right() -> None:
    features, log_p = experts(3000)
    gate = Gate.fit(features, log_p)
    np.testing.assert_allclose(np.exp(gate.log_weights(features)).sum(axis=1), 1.0)
    constant = -np.log(0.5)  # of the best constant weights
    assert gate.nats(features, log_p).mean() < 0.5 * constant


def test_gate_of_a_few_tokens_stays_near_constant_weights() -> None:
    features, log_p = experts(3)
    assert np.ptp(np.exp(Gate.fit(features, log_p).log_weights(features)), axis=0).max() < 0.2


def test_gradients_of_the_gate_are_those_of_finite_differences() -> None:
    random = np.random.default_rng(0)
    parameters = [random.normal(size=shape) for shape in ((3, 4), (4,), (4, 2), (2,))]
    features, log_p = experts(5)
    gradients = _gradients(parameters, features, log_p)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for place in np.ndindex(parameter.shape):
            losses = []
            for step in (1e-6, -2e-6):
                parameter[place] += step
                losses.append(Gate(*parameters).nats(features, log_p).mean())
            parameter[place] += 1e-6
            assert gradient[place] == pytest.approx((losses[0] - losses[1]) / 2e-6, abs=1e-7)


# --- the mixture ---------------------------------------------------------------------------------------------


@functools.cache
def mixed_checkpoint(**options: Any) -> Checkpoint:
    """A tiny model with counts of TEXT, whose gate was fitted on another text."""
    checkpoint = tiny_checkpoint(**options)
    vocabulary = checkpoint.vocabulary
    ids = vocabulary.encode(TEXT * 3)
    counts = CountModel.build(
        ContextIndex.build(RaggedIds.of_lengths(ids, np.array([[len(ids)]])), checkpoint.vocabulary)
    )
    read = vocabulary.encode("the thin king is in the end, the hen and the king")
    random = np.random.default_rng(0)
    scores = TokenScores(*np.abs(random.normal(1.5, 0.5, (3, len(read) + 1))))
    return dataclasses.replace(checkpoint, mixture=Mixture.fit(counts, [read], [scores]))


def loaded(checkpoint: Checkpoint) -> LanguageModel:
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    return model


@pytest.mark.parametrize("weight", [None, 0.0, 0.3, 1.0])
def test_mixture_of_texts_is_that_of_each_step(weight: float | None) -> None:
    checkpoint = mixed_checkpoint()
    assert checkpoint.mixture is not None
    random = np.random.default_rng(1)
    ids = checkpoint.vocabulary.encode(TEXT)
    log_p = np.log(random.dirichlet(np.ones(len(checkpoint.vocabulary)), len(ids) + 1))
    targets = [*ids.tolist(), END]
    scores = TokenScores(
        -log_p[np.arange(len(targets)), targets], -(np.exp(log_p) * log_p).sum(axis=1), log_p.max(axis=1)
    )
    nats = checkpoint.mixture.nats([ids, ids], [scores, scores], weight=weight)
    for n, (row, target) in enumerate(zip(log_p, targets, strict=True)):
        mixed = checkpoint.mixture.log_probabilities([END, *targets[:n]], row, weight)
        assert np.exp(mixed).sum() == pytest.approx(1.0)
        assert -mixed[target] == pytest.approx(nats[n]) == pytest.approx(nats[len(targets) + n])
    if weight == 0.0:
        np.testing.assert_allclose(nats[: len(targets)], scores.nats)


def test_token_scores_add_up_to_the_evaluation(trained: Run) -> None:
    model = trained.load()
    network = loaded(model.checkpoint)
    documents = encode_documents_for_evaluation(model.split().parts["valid"], model.checkpoint.vocabulary)
    scores = token_scores(network, documents)
    expected = [score.nats for score in evaluate(network, documents).documents]
    found = [d.score(float(s.nats.sum())).nats for d, s in zip(documents, scores, strict=True)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert all((s.entropy > 0).all() and (-s.largest <= s.entropy + 1e-6).all() for s in scores)


def test_surprisal_is_that_of_the_mixture() -> None:
    checkpoint = mixed_checkpoint()
    alone = dataclasses.replace(checkpoint, mixture=None)
    assert surprisal(checkpoint, TEXT, mix=0.0) == surprisal(alone, TEXT)
    assert sum(t.bits for t in surprisal(checkpoint, TEXT)) < sum(t.bits for t in surprisal(alone, TEXT))


# --- checkpoints ---------------------------------------------------------------------------------------------


def test_a_checkpoint_with_counts_round_trips(tmp_path: Path) -> None:
    path = tmp_path / "counts.safetensors"
    checkpoint = mixed_checkpoint()
    checkpoint.write(path)
    read = Checkpoint.read(path)
    assert read.mixture is not None
    assert checkpoint.mixture is not None
    before, after = map(storage.to_tensors, (checkpoint.mixture, read.mixture))
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert read.mixture.counts.discounts == checkpoint.mixture.counts.discounts
    assert read.to_bytes() == path.read_bytes()
    header = path.read_bytes()[8:200_000].partition(b'__metadata__":')[2]
    assert b'\\"format\\": 3' in header


def test_a_checkpoint_without_counts_is_one_of_earlier_versions() -> None:
    assert b'\\"format\\": 2' in tiny_checkpoint().to_bytes()


Damage = Callable[[dict[str, Any], dict[str, np.ndarray[Any, Any]]], object]

DAMAGES: dict[str, Damage] = {
    "an id beyond the vocabulary": lambda _, t: t["counts.ids"].__setitem__(3, 60_000),
    "a place beyond the text": lambda _, t: t["counts.order"].__setitem__(3, 1 << 20),
    "a place without a context": lambda _, t: t["counts.order"].__setitem__(3, 0),
    "a negative place": lambda _, t: t["counts.order"].__setitem__(3, -5),
    "a gate that is not finite": lambda _, t: t["counts.gate.expert_bias"].__setitem__(0, np.nan),
    "another size": lambda h, _: h.__setitem__("size", h["size"] + 1),
    "a vast size": lambda h, _: h.__setitem__("size", 1 << 60),
    "no context": lambda h, _: h.__setitem__("longest", 0),
    "true for a number": lambda h, _: h.__setitem__("longest", True),
    "too few discounts": lambda h, _: h["discounts"].pop(),
    "a discount that is too large": lambda h, _: h["discounts"][0].__setitem__(0, 1.5),
    "no discount": lambda h, _: h["discounts"][0].__setitem__(0, 0),
    "a discount that is no number": lambda h, _: h["discounts"][0].__setitem__(0, "1"),
    "a list for a description": lambda h, _: h.clear(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_hostile_counts_are_refused(damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Faults 25 and 26. The hash is that of the hostile arrays.
    checkpoint = mixed_checkpoint()
    assert checkpoint.mixture is not None
    header = storage.to_header(checkpoint.mixture)
    tensors = {name: array.copy() for name, array in storage.to_tensors(checkpoint.mixture).items()}
    damage(header, tensors)
    if header:
        header["sha256"] = storage._hash(tensors)
    monkeypatch.setattr(storage, "to_header", lambda _: header or [1])
    monkeypatch.setattr(storage, "to_tensors", lambda _: tensors)
    path = tmp_path / "hostile.safetensors"
    checkpoint.write(path)
    monkeypatch.undo()
    with pytest.raises(IntegrityError) as caught:
        Checkpoint.read(path)
    assert str(path) in caught.value.what


def test_any_damaged_byte_of_the_counts_is_noticed(tmp_path: Path) -> None:  # fault 25
    path = tmp_path / "damaged.safetensors"
    checkpoint = mixed_checkpoint()
    content = bytearray(checkpoint.to_bytes())
    assert checkpoint.mixture is not None
    size = sum(array.nbytes for array in storage.to_tensors(checkpoint.mixture).values())
    for place in range(1, size, max(1, size // 40)):
        damaged = bytearray(content)
        damaged[-place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError):
            Checkpoint.read(path)


def test_counts_in_a_wrong_order_still_give_probabilities() -> None:
    # A hostile order that is within the text passes every check.
    model = count_model()
    random = np.random.default_rng(0)
    index = dataclasses.replace(
        model.index,
        order=random.permutation(model.index.order).astype(np.int32),
        shared=random.integers(0, 255, len(model.index.order)).astype(np.uint8),
    )
    hostile = CountModel(index, model.discounts)
    text = some_ids(30, 1)
    for n in range(30):
        p = hostile.distribution(text[:n].tolist())[0]
        assert p.sum() == pytest.approx(1.0)
        assert (p > 0).all()
    found = hostile.predictions(text, np.zeros(30, np.int64))
    assert ((found.p > 0) & (found.p <= 1)).all()


# --- training, evaluation, generation ------------------------------------------------------------------------

OPTIONS: dict[str, Any] = {"hidden": 8, "epochs": 2, "batch_size": 8, "min_count": 2, "counts": True}


@pytest.fixture(scope="module")
def counted(tales: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The best checkpoint of a run with counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRIMMGEN_HOME", str(tmp_path_factory.mktemp("counted")))
        training = Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="red-owl")
        for _ in training.events():
            pass
        return training.run.path


@pytest.fixture
def red_owl(counted: Path, home: Path) -> Run:
    """The run with counts, in the home of a test."""
    target = home / "data" / "runs" / "red-owl"
    shutil.copytree(counted, target)
    return Run(target)


def test_training_adds_counts_to_the_best_checkpoint_alone(red_owl: Run) -> None:
    assert Checkpoint.read(red_owl.best_path).mixture is not None
    assert Checkpoint.read(red_owl.last_path).mixture is None


def test_a_resumed_run_ends_with_the_same_counts(tales: Path, counted: Path) -> None:  # fault 34
    training = Training.begin(open_corpus(str(tales)), Configuration(**OPTIONS), run="red-owl")
    steps = 0
    for event in training.events():
        steps += type(event).__name__ == "Stepped"
        if steps == 3:
            training.stop()
    assert load_model("red-owl").checkpoint.mixture is None  # interrupted
    for _ in Training.resume(training.run).events():
        pass
    stored = Checkpoint.read(counted / "best.safetensors").mixture
    again = load_model("red-owl").checkpoint.mixture
    assert stored is not None
    assert again is not None
    assert storage.to_header(stored) == storage.to_header(again)


def test_mixture_is_better_than_network_and_named(red_owl: Run, run: Callable[..., Ran]) -> None:
    comparison = evaluate_models([red_owl.load()], [], "test", CPU, dynamic=True)
    mixture, network = comparison.results
    assert (mixture.kind, network.kind, mixture.run, network.run) == ("mixture", "network", "red-owl", "red-owl")
    assert mixture.name != network.name == "red-owl"
    for one, other in zip(mixture.total, network.total, strict=True):
        assert one is not None
        assert other is not None
        assert one.bits_per_character < other.bits_per_character
    [alone] = evaluate_models([red_owl.load()], [], "test", CPU, mix=0.0).results
    assert alone.total[0].nats == pytest.approx(network.total[0].nats, rel=1e-5)
    printed = json.loads(run("eval", "--split", "test", "--json").out)
    assert [(one["run"], one["kind"]) for one in printed] == [("red-owl", "mixture"), ("red-owl", "network")]
    [printed] = json.loads(run("eval", "--split", "test", "--json", "--mix", "0").out)
    assert printed["kind"] == "network"


@pytest.mark.usefixtures("red_owl")
def test_heatmap_takes_the_weight_of_the_counts(run: Callable[..., Ran], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the king went to the mill")
    maps = [run("eval", "--heatmap", str(text), "--json", "--mix", mix) for mix in ("0", "auto", "0.9")]
    assert [one.code for one in maps] == [0, 0, 0]
    assert len({one.out for one in maps}) == 3


@pytest.mark.parametrize(
    ("mix", "message"), [("2", "out of range"), ("nan", "out of range"), ("x", "not a number")]
)
@pytest.mark.parametrize("command", ["eval", "generate"])
@pytest.mark.usefixtures("trained")
def test_a_wrong_weight_is_a_usage_error(run: Callable[..., Ran], command: str, mix: str, message: str) -> None:
    found = run(command, "--mix", mix)
    assert found.code == 2
    assert message in found.err


def test_documents_of_a_batch_are_those_generated_alone() -> None:
    generator = TextGenerator(TrainedModel("test", mixed_checkpoint()))
    batch = generator.generate_batch("the k", SamplingOptions(length=40, random_seed=3), 3)
    alone = [generator.generate("the k", length=40, random_seed=seed) for seed in (3, 4, 5)]
    assert [generation.text for generation in batch] == alone
    assert alone[0] != generator.generate("the k", length=40, random_seed=3, mix=0.0)


def test_weight_one_generates_from_the_counts_alone() -> None:
    generator = TextGenerator(TrainedModel("test", mixed_checkpoint(min_count=1)))
    text = generator.generate("the king and the", length=30, greedy=True, mix=1.0)
    assert TEXT.startswith(text[:40])


@pytest.mark.parametrize("options", [{}, {"beam_width": 3}, {"temperature": 0.5, "mix": 0.4}])
def test_a_story_of_a_mixture_is_replayed(options: dict[str, Any]) -> None:
    generator = TextGenerator(
        TrainedModel("test", mixed_checkpoint()), others=[TrainedModel("b", mixed_checkpoint())]
    )
    [generation] = generator.generate_batch("the ", SamplingOptions(length=40, random_seed=1, **options), 1)
    stored = json.dumps(to_record(generator, generation)).encode()
    [record] = Record.parse_all(stored, "story.json")
    assert record.names == ["test", "b"]
    assert replay(generator, record, "story.json")[0].text == generation.text
    assert generator.log_probability(generation) < 0


def test_beams_follow_the_mixture() -> None:
    generator = TextGenerator(TrainedModel("test", mixed_checkpoint(min_count=1)))
    text = generator.generate("the king and the", length=30, beam_width=4, greedy=True, mix=1.0)
    assert TEXT.startswith(text[:30])


# --- ensembles -----------------------------------------------------------------------------------------------


def test_an_ensemble_averages_probabilities() -> None:
    checkpoints = [tiny_checkpoint(), mixed_checkpoint()]
    checkpoints[1] = dataclasses.replace(
        checkpoints[1], weights={n: -w for n, w in checkpoints[1].weights.items()}, mixture=None
    )
    models = [TrainedModel(str(n), checkpoint) for n, checkpoint in enumerate(checkpoints)]
    both = TextGenerator(models[0], others=models[1:])
    [generation] = both.generate_batch("", SamplingOptions(length=20, top_k=0, state="zeros"), 1)
    # The probability of the first token given the context.
    first = dataclasses.replace(
        generation, ids=generation.ids[:1], pieces=[both.vocabulary.decode(generation.ids[:1])]
    )
    alone = [TextGenerator(model).log_probability(first) for model in models]
    expected = np.logaddexp(alone[0], alone[1]) - np.log(2)
    assert both.log_probability(first) == pytest.approx(expected, rel=1e-5)


def test_an_ensemble_of_other_vocabularies_is_a_usage_error(
    trained: Run, run: Callable[..., Ran], tmp_path: Path
) -> None:
    path = tmp_path / "other.safetensors"
    tiny_checkpoint().write(path)
    found = run("generate", "--run", trained.name, "--run", str(path))
    assert found.code == 2
    assert "different vocabularies" in found.err
    with pytest.raises(UsageError, match="different vocabularies"):
        TextGenerator.load(trained.name, others=[str(path)])


def test_evaluation_has_a_row_of_the_ensemble(red_owl: Run) -> None:
    model = red_owl.load()
    results = evaluate_models([model, dataclasses.replace(model, name="twin")], [], "test", CPU).results
    found = {result.kind: result.static.total.nats for result in results}
    # Of two equal models, each with its counts, the average is the same.
    assert found["ensemble"] == pytest.approx(found["mixture"])
    assert len(results) == 5


def test_mixed_logits_are_log_probabilities() -> None:
    checkpoint = mixed_checkpoint()
    members = []
    for _ in range(2):
        state = np.zeros((2, 1, 3, checkpoint.configuration.hidden), np.float32)
        stepper = Stepper(checkpoint.configuration, checkpoint.weights, state)
        stepper.step([END] * 3)
        members.append((stepper, checkpoint.mixture))
    combined = CombinedStepper(members, [[END]] * 3, None)
    for ids in ([2, 3, 4], [3, 3, 2]):
        combined.step(np.array(ids))
        np.testing.assert_allclose(np.exp(combined.logits.astype(np.float64)).sum(axis=1), 1.0, rtol=1e-5)
    before = combined.logits
    combined.select_rows(np.array([2, 2, 0]))
    np.testing.assert_array_equal(combined.logits, before[[2, 2, 0]])
    combined.step(np.array([4, 4, 4]))
    np.testing.assert_array_equal(combined.logits[0], combined.logits[1])
    assert not np.allclose(log_probabilities(combined.logits)[0], log_probabilities(combined.logits)[2])
