"""Dynamic evaluation: the update rule, the gradient statistics, and documents side by side."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from grimmgen.evaluation.dynamic import evaluate_dynamically, gradient_rms, sample
from grimmgen.evaluation.scores import Evaluation
from grimmgen.evaluation.static import evaluate
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Inputs, LanguageModel
from tests.builders import NETWORKS
from tests.test_evaluation import TEXTS, model_and_documents

# One network with each set of weights.
SOME = [name for name in NETWORKS if name == "lstm1" or name.endswith(("2-tied", "1-1-round"))]
# Of these, one with one-hot n-grams, one with tied weights, and one with those of a hook.
FEW = ["lstm1", "mingru2-tied", "mogrifier1-1-round"]


def nats(evaluation: Evaluation) -> dict[str, float]:
    return {score.name: score.nats for score in evaluation.documents}


@pytest.mark.parametrize(("network", "segment"), [*((network, 5) for network in SOME), ("lstm1", 40)])
def test_rate_zero_gives_the_static_scores(network: str, segment: int) -> None:
    regularised = {"dropout": 0.9, "weight_drop": 0.5}  # must have no effect on evaluation
    model, documents = model_and_documents(**NETWORKS[network], **regularised)
    static = evaluate(model, documents)
    dynamic = evaluate_dynamically(model, documents, 0.0, segment=segment)
    for expected, score in zip(static.documents, dynamic.documents, strict=True):
        assert score.nats == pytest.approx(expected.nats, rel=1e-5)
        for name in ("name", "predictions", "characters", "unknown"):
            assert getattr(score, name) == getattr(expected, name)


@pytest.mark.parametrize("network", FEW)
def test_weights_are_not_changed(network: str) -> None:
    model, documents = model_and_documents(**NETWORKS[network])
    before = model.weights()
    evaluate_dynamically(model, documents, 0.01, segment=5)
    after = model.weights()
    assert {name: w.tobytes() for name, w in after.items()} == {name: w.tobytes() for name, w in before.items()}


def test_an_interrupt_ends_all_threads() -> None:
    model, documents = model_and_documents()
    before = model.weights()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_dynamically(model, documents, 0.1, notify_done=interrupt)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("dynamic")]
    assert all(np.array_equal(before[name], weight) for name, weight in model.weights().items())


def test_each_document_starts_from_the_trained_weights() -> None:
    model, documents = model_and_documents(embedding=4, tied=True)
    together = nats(evaluate_dynamically(model, documents, 0.01, segment=5))
    reverse = nats(evaluate_dynamically(model, documents[::-1], 0.01, segment=5))
    alone: dict[str, float] = {}
    for document in documents:
        alone |= nats(evaluate_dynamically(model, [document], 0.01, segment=5))
    assert together == reverse
    # A document alone has all threads, which changes the order of a sum.
    assert together == pytest.approx(alone, rel=1e-6)


def test_documents_side_by_side_have_the_scores_of_one_thread() -> None:
    model, documents = model_and_documents(embedding=4)
    threads, found = torch.get_num_threads(), []
    try:
        for some in (1, 3):
            torch.set_num_threads(some)
            found.append(nats(evaluate_dynamically(model, documents, 0.01, segment=5)))
            assert torch.get_num_threads() == some
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    assert len(found[0]) == len(documents) > 3


def test_repetition_is_adapted_to_after_it_is_scored() -> None:
    model, documents = model_and_documents(min_count=1)
    assert not documents[0].spelling
    static = nats(evaluate(model, documents))
    dynamic = nats(evaluate_dynamically(model, documents, 0.05, segment=4))
    assert dynamic["repetitive"] < 0.8 * static["repetitive"]
    # A document of one segment is scored before the first update.
    assert dynamic["short"] == pytest.approx(static["short"], rel=1e-6)
    one_segment = nats(evaluate_dynamically(model, documents, 0.01, segment=70))
    assert one_segment == pytest.approx(static, rel=1e-5)


def test_update_follows_the_equation_of_krause() -> None:
    model, documents = model_and_documents(embedding=4)
    document, rate, decay, damping = documents[0], 0.01, 0.1, 0.5
    expected = 0.0
    twin = LanguageModel(model.configuration, model.vocabulary_size)
    twin.load_weights(model.weights())
    rms = gradient_rms(model, 7)
    mean = torch.cat([r.flatten() for r in rms.values()]).mean()
    trained = dict(model.named_parameters())
    state = twin.zero_state(1)
    ids = [1, *document.ids.tolist(), 1]
    for begin in range(0, len(ids) - 1, 7):
        read = torch.tensor(ids[begin : begin + 8])[:, None]
        inputs = Inputs(read[:-1], read[1:], None)
        loss, found, state, *_ = gradients(twin, ReferenceBackend(), inputs, state)
        # The mean is over 7 time steps also in the last segment, which is shorter.
        steps = len(inputs.ids)
        expected += steps * loss.item()
        for name, weight in twin.named_parameters():
            weight.sub_(rate * found[name] * steps / 7 / (rms[name] + damping * mean))
            weight.add_(decay * (trained[name] - weight))
    score = evaluate_dynamically(model, [document], rate, decay, damping, segment=7).documents[0]
    assert score.nats == pytest.approx(expected + document.spelling, rel=1e-4)
    assert score.bits_per_character == pytest.approx(score.nats / math.log(2) / len(TEXTS["repetitive"]))


@pytest.mark.parametrize("network", FEW)
def test_gradient_rms_is_finite_and_reproducible(network: str) -> None:
    model, _ = model_and_documents(**NETWORKS[network])
    rms, again = (gradient_rms(model, 3) for _ in range(2))
    assert {name: r.shape for name, r in rms.items()} == {n: w.shape for n, w in model.named_parameters()}
    assert all(torch.isfinite(r).all() for r in rms.values())
    assert sum(float(r.sum()) for r in rms.values()) > 0
    assert all(torch.equal(r, again[name]) for name, r in rms.items())


def test_sample_follows_the_models_distribution() -> None:
    model, _ = model_and_documents()
    for weight in model.parameters():
        weight.zero_()
    model.weights_by_name["output.bias"][4] = 2.0
    window = sample(model, 30, 200)
    V = model.vocabulary_size
    probability = np.exp(2.0) / (V - 1 + np.exp(2.0))
    assert np.mean(window.targets == 4) == pytest.approx(probability, abs=0.02)
    assert np.array_equal(window.inputs[1:], window.targets[:-1])
    assert (window.inputs[0] == 1).all()
    assert np.array_equal(window.starts, window.inputs == 1)
    assert len(np.unique(window.targets[:, 0])) > 1


def test_progress_counts_the_documents() -> None:
    model, documents = model_and_documents()
    counts: list[int] = []
    evaluate_dynamically(model, documents, notify_done=counts.append)
    assert counts == [1, 2, 3, 4]
