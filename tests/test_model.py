"""The model: its weights, its dropout, its state. Its gradients are tested in test_train_step.py."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from grimmgen.configuration import Configuration, DropoutMode
from grimmgen.errors import UsageError
from grimmgen.network.backends.reference import Layer, ReferenceBackend
from grimmgen.network.cells import CellSpec, cells
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Dropout, Forward, LanguageModel, choose_device, mask_count
from grimmgen.network.shapes import parameter_count, weight_shapes
from grimmgen.text.batches import Window
from tests.builders import NETWORKS, tiny_configuration
from tests.equations import model_loss

V = 11
# One that every cell accepts, hooks included.
DENSE: dict[str, Any] = {"embedding": 6}


def initialised(configuration: Configuration) -> LanguageModel:
    model = LanguageModel(configuration, V)
    model.initialise()
    return model


def random_window(T: int, B: int, resets: bool = False) -> Window:
    generator = np.random.default_rng(3)
    ids = generator.integers(0, V, (T + 1, B)).astype(np.int32)
    starts = generator.random((T, B)) < 0.2 if resets else np.zeros((T, B), np.bool_)
    return Window(ids[:-1], ids[1:].copy(), starts)


# --- weights -----------------------------------------------------------------------------------------------------


def test_normal_initialisation_is_truncated_at_two_sigma() -> None:
    model = LanguageModel(Configuration(hidden=64), 300)
    model.initialise()
    weight, bias = (model.weights_by_name[f"layers.0.{name}"] for name in ("input_weight", "bias"))
    assert weight.abs().max().item() <= 0.04
    # The standard deviation of a normal distribution truncated at 2σ is 0.88 σ.
    assert weight.std().item() == pytest.approx(0.0176, rel=0.02)
    assert 0.015 < bias.abs().max().item() <= 0.02


@pytest.mark.parametrize(
    ("layers", "initialisation", "xavier"), [(1, "auto", False), (2, "auto", True), (1, "xavier", True)]
)
def test_xavier_is_for_several_layers_or_on_request(layers: int, initialisation: Any, xavier: bool) -> None:
    model = initialised(Configuration(hidden=32, layers=layers, initialisation=initialisation))
    weight, bound = model.weights_by_name["layers.0.recurrent_weight"], math.sqrt(6 / 64)
    assert (weight.abs().max().item() > 0.9 * bound) == xavier
    assert weight.abs().max().item() <= bound


def test_weights_follow_from_the_random_seed() -> None:
    first, same, other = (initialised(Configuration(hidden=5, random_seed=seed)).weights() for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_have_the_documented_shapes(network: str) -> None:
    configuration = Configuration(hidden=6, **NETWORKS[network])
    model, other = initialised(configuration), LanguageModel(configuration, V)
    weights = model.weights()
    assert {name: weight.shape for name, weight in weights.items()} == weight_shapes(configuration, V)
    assert sum(weight.size for weight in weights.values()) == parameter_count(configuration, V)
    assert all(np.isfinite(weight).all() and (weight.size == 0 or weight.any()) for weight in weights.values())
    other.load_weights(weights)
    assert all(map(np.array_equal, weights.values(), other.weights().values()))
    window = random_window(5, 2)
    first, second = (m.losses(window, m.zero_state(2))[0] for m in (model, other))
    assert np.array_equal(first, second)


def test_tied_model_uses_the_embedding_at_both_ends() -> None:
    model = initialised(Configuration(hidden=6, embedding=4, tied=True))
    assert {"embedding", "output.projection", "output.bias"} < set(model.weights())
    assert "output.weight" not in model.weights()
    ids = torch.zeros(3, 2, dtype=torch.int64)
    before, state = model.logits(ids, model.zero_state(2))
    model.weights_by_name["embedding"][5] += 1.0  # not among the inputs
    after, same_state = model.logits(ids, model.zero_state(2))
    changed = (after - before).abs().amax(dim=(0, 1)) > 1e-7
    assert all(map(torch.equal, state, same_state))
    assert changed.tolist() == [token == 5 for token in range(V)]


# --- loss and state ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_model_agrees_with_torch_nn(layers: int) -> None:
    model = initialised(Configuration(hidden=8, layers=layers, dropout=0.0)).double()
    weights = model.weights_by_name
    oracle = torch.nn.LSTM(V, 8, layers, dtype=torch.float64)
    with torch.no_grad():
        for layer in range(layers):
            getattr(oracle, f"weight_ih_l{layer}").copy_(weights[f"layers.{layer}.input_weight"].T)
            getattr(oracle, f"weight_hh_l{layer}").copy_(weights[f"layers.{layer}.recurrent_weight"].T)
            getattr(oracle, f"bias_ih_l{layer}").copy_(weights[f"layers.{layer}.bias"])
            getattr(oracle, f"bias_hh_l{layer}").zero_()
    inputs = model.inputs(random_window(9, 4))
    hidden, _ = oracle(torch.nn.functional.one_hot(inputs.ids, V).double())
    logits = hidden @ weights["output.weight"] + weights["output.bias"]
    right = torch.nn.functional.cross_entropy(logits.view(-1, V), inputs.targets.view(-1))
    made = gradients(model, ReferenceBackend(), inputs, model.zero_state(4))
    assert made.loss.item() == pytest.approx(right.item(), abs=1e-12)
    right.backward()  # type: ignore[no-untyped-call]
    for layer in range(layers):
        for ours, their in (("input_weight", "weight_ih"), ("recurrent_weight", "weight_hh"), ("bias", "bias_ih")):
            gradient = getattr(oracle, f"{their}_l{layer}").grad
            assert torch.allclose(
                made.gradients[f"layers.{layer}.{ours}"],
                gradient.T if gradient.dim() > 1 else gradient,
                atol=1e-12,
            )


@pytest.mark.parametrize("network", NETWORKS)
def test_losses_and_logits_agree_with_the_equations(network: str) -> None:
    model = initialised(Configuration(hidden=7, initialisation="xavier", **NETWORKS[network]))
    window, state = random_window(6, 3, resets=True), model.zero_state(3)
    inputs = model.inputs(window)
    losses, after = model.losses(window, state)
    right, right_after = model_loss(model.configuration, model.weights_by_name, *inputs, state)
    assert losses.dtype == np.float64
    assert losses.mean() == pytest.approx(right.item(), rel=1e-5)
    logits, same = model.logits(inputs.ids, state, inputs.resets)
    from_logits = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs.targets.view(-1), reduction="none"
    )
    np.testing.assert_allclose(losses.reshape(-1), from_logits.numpy(), rtol=1e-4, atol=1e-6)
    for a, b, c in zip(after, right_after, same, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        assert torch.equal(a, c)


def test_consecutive_windows_are_one_long_window() -> None:
    model = initialised(Configuration(hidden=7, layers=2))
    window = random_window(12, 3, resets=True)
    whole, state = model.losses(window, model.zero_state(3))
    parts, carried = [], model.zero_state(3)
    for cut in (slice(0, 5), slice(5, 12)):
        part = Window(window.inputs[cut], window.targets[cut], window.starts[cut])
        losses, carried = model.losses(part, carried)
        parts.append(losses)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5)
    assert torch.allclose(state[0], carried[0], atol=1e-6)


@pytest.mark.parametrize("reset_state", [True, False])
def test_state_is_reset_at_a_start_if_configured(reset_state: bool) -> None:
    model = initialised(Configuration(hidden=7, reset_state=reset_state, initialisation="xavier"))
    window = random_window(6, 1)
    window.starts[3] = True
    losses, _ = model.losses(window, model.zero_state(1))
    alone, _ = model.losses(Window(window.inputs[3:], window.targets[3:], window.starts[3:]), model.zero_state(1))
    assert np.allclose(losses[3:], alone, atol=1e-6) == reset_state


# --- dropout -----------------------------------------------------------------------------------------------------


class Recorder(ReferenceBackend):
    """A backend that keeps what its layers receive: inputs, weights, mask."""

    def __init__(self) -> None:
        super().__init__()
        self.received: list[tuple[Tensor, dict[str, Tensor], Tensor | None]] = []

    def layer(
        self, cell: CellSpec, weights: Any, inputs: Tensor, state: Any, mask: Any = None, resets: Any = None
    ) -> Layer:
        self.received.append((inputs, dict(weights), mask))
        return super().layer(cell, weights, inputs, state, mask, resets)


def forward(model: LanguageModel, ids: Tensor, random_seed: int | None) -> tuple[Forward, Recorder]:
    """The forward pass, with dropout masks of this random seed."""
    backend, B = Recorder(), ids.shape[1]
    dropout = None
    if random_seed is not None:
        generator = torch.Generator().manual_seed(random_seed)
        seeds = torch.randint(2**62, (mask_count(model.configuration),), generator=generator)
        dropout = Dropout(backend, seeds, B)
    return model.forward(backend, ids, model.zero_state(B), None, dropout), backend


def test_tutorial_dropout_reaches_output_and_next_step() -> None:
    model, ids = initialised(Configuration(hidden=40, dropout=0.5)), torch.zeros(2, 5, dtype=torch.int64)
    wet, dry = (forward(model, ids, seed)[0] for seed in (0, None))
    hidden, dry_hidden = (done.hidden.view(2, 5, 40) for done in (wet, dry))
    assert 0.3 < (hidden == 0).float().mean().item() < 0.7
    assert torch.equal(wet.state[0][0], hidden[-1])
    kept = hidden[0] != 0
    assert torch.allclose(hidden[0][kept], dry_hidden[0][kept] * 2)
    assert not torch.allclose(hidden[1][hidden[1] != 0], (dry_hidden[1] * 2)[hidden[1] != 0])


@pytest.mark.parametrize("cell", cells())
@pytest.mark.parametrize("mode", ["output", "locked"])
def test_output_dropout_does_not_reach_the_state(cell: Any, mode: DropoutMode) -> None:
    model = initialised(Configuration(cell=cell, hidden=40, dropout=0.5, dropout_mode=mode, **DENSE))
    ids = model.inputs(random_window(6, 5)).ids
    wet, dry = (forward(model, ids, seed)[0] for seed in (0, None))
    assert all(map(torch.equal, wet.state, dry.state))
    hidden, dry_hidden = (done.hidden.view(6, 5, 40) for done in (wet, dry))
    kept = hidden != 0
    assert torch.equal(hidden, dry_hidden * kept * 2)
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(kept[:, 0], kept[:, 1]), "each row has a mask of its own"
    assert [torch.equal(kept[0], kept[t]) for t in range(1, 6)] == [mode == "locked"] * 5


def test_input_dropout_masks_the_embedding_once_a_window() -> None:
    options: dict[str, Any] = {"embedding": 40, "input_dropout": 0.25, "dropout": 0.0, "dropout_mode": "output"}
    dense = next(name for name, cell in cells().items() if cell.pre_step)
    model = initialised(Configuration(cell=dense, hidden=3, layers=2, **options))
    model.weights_by_name["embedding"].fill_(1.0)
    ids = torch.zeros(6, 5, dtype=torch.int64)
    (mask, _, fed_back), (above, _, _) = forward(model, ids, 0)[1].received
    assert mask.shape == (6, 5, 40)
    assert set(mask.flatten().tolist()) == {0.0, mask.max().item()}
    assert mask.max().item() == pytest.approx(4 / 3)
    assert mask[0, 0].mean().item() == pytest.approx(1.0, abs=0.25)
    assert torch.equal(mask, mask[:1, :1].expand_as(mask)), "one token has one embedding in a window"
    assert not torch.equal(mask[0, 0], forward(model, ids, 1)[1].received[0][0][0, 0])
    assert fed_back is None
    assert (above != 0).all(), "the second layer's input has no mask"


@pytest.mark.parametrize("mode", get_args(DropoutMode))
@pytest.mark.parametrize("cell", [name for name, cell in cells().items() if cell.recurrent_product])
def test_weight_drop_masks_recurrent_weights_once(cell: Any, mode: DropoutMode) -> None:
    options: dict[str, Any] = {"dropout": 0.0, "dropout_mode": mode, "weight_drop": 0.3}
    model = initialised(Configuration(cell=cell, hidden=30, layers=2, **DENSE, **options))
    own = [model.weights_by_name[f"layers.{layer}.recurrent_weight"] for layer in range(2)]
    ids = torch.zeros(6, 5, dtype=torch.int64)
    first, again, other = (
        [
            w["recurrent_weight"] / u
            for (_, w, _), u in zip(forward(model, ids, seed)[1].received, own, strict=True)
        ]
        for seed in (1, 1, 2)
    )
    for mask in (*first, *other):
        kept = mask > 0
        assert kept.double().mean().item() == pytest.approx(0.7, abs=0.05)
        assert torch.allclose(mask[kept], torch.tensor(1 / 0.7), rtol=1e-4)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    assert not torch.equal(first[0], first[1])


def test_evaluation_has_no_dropout() -> None:
    wet: dict[str, Any] = {"dropout": 0.9, "input_dropout": 0.9, "weight_drop": 0.9, "dropout_mode": "locked"}
    models = [initialised(Configuration(hidden=6, embedding=5, **options)) for options in (wet, {"dropout": 0.0})]
    first, second = (model.losses(random_window(6, 2), model.zero_state(2))[0] for model in models)
    assert np.array_equal(first, second)


# --- devices -----------------------------------------------------------------------------------------------------


def test_missing_device_is_an_error() -> None:  # fault 37
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="--device 'tpu' is not known"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA GPU"):
            choose_device("cuda")


@pytest.mark.parametrize("network", ["lstm1", "gru2-tied", "mingru1"])
def test_some_rows_of_a_window_give_their_losses(network: str) -> None:
    """A window's first rows are a view, whose rows are not next to each other in memory."""
    model = LanguageModel(tiny_configuration(**{**NETWORKS[network], "batch_size": 5}), 7)
    model.initialise()
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 7, (10, 5)).astype(np.int32)
    window = Window(ids[:-1], ids[1:], draw.random((9, 5)) < 0.3)
    every, _ = model.losses(window, model.zero_state(5))
    some, _ = model.losses(window.first(3), model.zero_state(3))
    np.testing.assert_allclose(some, every[:, :3], rtol=1e-5)
