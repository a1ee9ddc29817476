"""The network: its weights, its parts put together, and its likeness in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from grimmgen.batches import Window
from grimmgen.configuration import Configuration, weight_shapes
from grimmgen.errors import UsageError
from grimmgen.kernels.stepping import Stepper
from grimmgen.model import LanguageModel, State, choose_device

V = 11


def model_of(configuration: Configuration) -> LanguageModel:
    model = LanguageModel(configuration, V)
    model.initialise()
    return model


def random_window(T: int, B: int, resets: bool = False) -> Window:
    draw = np.random.default_rng(3)
    ids = draw.integers(0, V, (T + 1, B)).astype(np.int32)
    return Window(ids[:-1], ids[1:], (draw.random((T, B)) < 0.2) if resets else np.zeros((T, B), np.bool_))


def test_tutorial_initialisation_is_a_normal_of_002_cut_off_at_004_and_small_uniform_biases() -> None:
    weights = LanguageModel(Configuration(hidden=64), 300)
    weights.initialise()
    input_weight = weights.layers[0].get_parameter("input_weight")
    assert input_weight.abs().max().item() <= 0.04
    # Cut off at 2σ, the standard deviation of a normal is 0.88 σ.
    assert input_weight.std().item() == pytest.approx(0.0176, rel=0.02)
    bias = weights.layers[0].get_parameter("bias")
    assert 0.015 < bias.abs().max().item() <= 0.02


@pytest.mark.parametrize(
    ("layers", "init", "xavier"), [(1, "auto", False), (2, "auto", True), (1, "xavier", True)]
)
def test_xavier_is_for_more_than_one_layer_or_on_request(layers: int, init: str, xavier: bool) -> None:
    model = model_of(Configuration(hidden=32, layers=layers, initialisation=init))  # type: ignore[arg-type]
    recurrent = model.layers[0].get_parameter("recurrent_weight")
    bound = math.sqrt(6 / 64)
    assert (recurrent.abs().max().item() > 0.9 * bound) == xavier
    assert recurrent.abs().max().item() <= bound


def test_the_same_random_seed_draws_the_same_weights_another_one_others() -> None:
    first, same, other = (model_of(Configuration(hidden=5, random_seed=seed)).weights() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


def test_weights_have_the_names_and_shapes_that_are_promised_and_come_back() -> None:
    configuration = Configuration(hidden=6, layers=3)
    model = model_of(configuration)
    assert {name: w.shape for name, w in model.weights().items()} == weight_shapes(configuration, V)
    other = LanguageModel(configuration, V)
    other.load_weights(model.weights())
    assert all(
        np.array_equal(a, b) for a, b in zip(model.weights().values(), other.weights().values(), strict=True)
    )


@pytest.mark.parametrize("layers", [1, 2])
def test_model_is_embedding_lstm_and_linear_of_torch_with_converted_weights(layers: int) -> None:
    configuration = Configuration(hidden=8, layers=layers, dropout=0.0)
    model = model_of(configuration).double()
    weights = dict(model.named_parameters())
    oracle = torch.nn.LSTM(V, 8, layers, dtype=torch.float64)
    with torch.no_grad():
        for layer in range(layers):
            getattr(oracle, f"weight_ih_l{layer}").copy_(weights[f"layers.{layer}.input_weight"].T)
            getattr(oracle, f"weight_hh_l{layer}").copy_(weights[f"layers.{layer}.recurrent_weight"].T)
            getattr(oracle, f"bias_ih_l{layer}").copy_(weights[f"layers.{layer}.bias"])
            getattr(oracle, f"bias_hh_l{layer}").zero_()
    window = random_window(9, 4)
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(window.inputs).long(), V).double()
    hidden, _ = oracle(one_hot)
    logits = hidden @ weights["output.weight"] + weights["output.bias"]
    right = torch.nn.functional.cross_entropy(
        logits.reshape(-1, V), torch.from_numpy(window.targets).long().reshape(-1)
    )
    zeros = torch.zeros(layers, 4, 8, dtype=torch.float64)
    loss, _ = model.loss(window, State(zeros, zeros), None)
    assert loss.item() == pytest.approx(right.item(), abs=1e-12)
    right.backward()  # type: ignore[no-untyped-call]
    theirs = [getattr(oracle, f"weight_ih_l{layer}").grad.T for layer in range(layers)]
    loss.backward()  # type: ignore[no-untyped-call]
    for layer in range(layers):
        ours = weights[f"layers.{layer}.input_weight"].grad
        assert ours is not None
        # Both graphs share the output layer's weights, not these.
        assert torch.allclose(ours, theirs[layer], atol=1e-12)


def test_windows_one_after_the_other_are_one_long_window() -> None:
    model = model_of(Configuration(hidden=7, layers=2))
    window = random_window(12, 3, resets=True)
    whole, state = model.losses(window, model.zero_state(3))
    parts, carried = [], model.zero_state(3)
    for cut in (slice(0, 5), slice(5, 12)):
        part = Window(window.inputs[cut], window.targets[cut], window.starts[cut])
        losses, carried = model.losses(part, carried)
        parts.append(losses)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
    assert torch.allclose(state.h, carried.h, atol=1e-6)


@pytest.mark.parametrize("reset_state", [True, False])
def test_state_is_forgotten_where_a_story_starts_unless_it_is_kept(reset_state: bool) -> None:
    model = model_of(Configuration(hidden=7, reset_state=reset_state, initialisation="xavier"))
    window = random_window(6, 1)
    starts = np.zeros((6, 1), np.bool_)
    starts[3] = True
    with_start = Window(window.inputs, window.targets, starts)
    fresh = Window(window.inputs[3:], window.targets[3:], starts[3:])
    losses, _ = model.losses(with_start, model.zero_state(1))
    alone, _ = model.losses(fresh, model.zero_state(1))
    assert np.allclose(losses[3:], alone, atol=1e-6) == reset_state


def test_dropout_reaches_the_output_and_the_next_step() -> None:
    model = model_of(Configuration(hidden=40, dropout=0.5))
    inputs = torch.zeros(2, 5, dtype=torch.int64)
    hidden, state = model(inputs, model.zero_state(5), None, torch.Generator().manual_seed(0))
    assert 0.3 < (hidden == 0).float().mean().item() < 0.7
    assert torch.equal(state.h[0], hidden[-1])  # what is carried is what was dropped
    dry, _ = model(inputs, model.zero_state(5), None, None)
    kept = hidden[0] != 0
    assert torch.allclose(hidden[0][kept], dry[0][kept] * 2)
    assert not torch.allclose(hidden[1][hidden[1] != 0], (dry[1] * 2)[hidden[1] != 0])


@pytest.mark.parametrize("layers", [1, 2])
def test_numpy_steps_are_the_models(layers: int) -> None:
    configuration = Configuration(hidden=9, layers=layers, initialisation="xavier")
    model = model_of(configuration)
    window = random_window(30, 2)
    hidden, state = model(torch.from_numpy(window.inputs).long(), model.zero_state(2), None)
    logits = hidden @ model.output.weight + model.output.bias
    h, c = np.zeros((2, layers, 2, 9), np.float32)
    stepper = Stepper(configuration, model.weights(), h, c)
    for t in range(30):
        made = stepper.step(window.inputs[t].tolist())
        np.testing.assert_allclose(made, logits[t].detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(h, state.h.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(c, state.c.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_device_that_is_not_there_is_refused_never_replaced() -> None:  # fault 37
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="--device 'tpu' is not known"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA GPU"):
            choose_device("cuda")
