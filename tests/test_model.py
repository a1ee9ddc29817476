"""The network: its weights, its parts put together, and its likeness in NumPy."""

from __future__ import annotations

import math
from typing import Any, get_args

import numpy as np
import pytest
import torch
from grimmgen.network.loss import CrossEntropy
from grimmgen.network.products import Affine
from torch import Tensor

from grimmgen.configuration import Configuration, DropoutMode
from grimmgen.errors import UsageError
from grimmgen.network.backends.numpy import Stepper
from grimmgen.network.cells import cells, gru, lstm, mogrifier, peephole
from grimmgen.network.model import LanguageModel, State, choose_device
from grimmgen.network.shapes import weight_shapes
from grimmgen.text.batches import NO_TARGET, Window
from tests.builders import NETWORKS
from tests.equations import gru_step, lstm_step, mogrifier_step, peephole_step

V = 11


def model_of(configuration: Configuration) -> LanguageModel:
    model = LanguageModel(configuration, V)
    model.initialise()
    return model


def random_window(T: int, B: int, resets: bool = False) -> Window:
    draw = np.random.default_rng(3)
    ids = draw.integers(0, V, (T + 1, B)).astype(np.int32)
    return Window(ids[:-1], ids[1:].copy(), (draw.random((T, B)) < 0.2) if resets else np.zeros((T, B), np.bool_))


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


@pytest.mark.parametrize("network", NETWORKS)
def test_weights_have_the_names_and_shapes_that_are_promised_and_come_back(network: str) -> None:
    configuration = Configuration(hidden=6, **NETWORKS[network])
    model = model_of(configuration)
    assert {name: w.shape for name, w in model.weights().items()} == weight_shapes(configuration, V)
    assert all(np.isfinite(w).all() and (w.size == 0 or w.any()) for w in model.weights().values())
    other = LanguageModel(configuration, V)
    other.load_weights(model.weights())
    assert all(
        np.array_equal(a, b) for a, b in zip(model.weights().values(), other.weights().values(), strict=True)
    )
    window = random_window(5, 2)
    assert np.array_equal(
        model.losses(window, model.zero_state(2))[0], other.losses(window, other.zero_state(2))[0]
    )


def test_a_tied_model_learns_one_matrix_for_both_ends() -> None:
    model = model_of(Configuration(hidden=6, embedding=4, tied=True))
    names = [name for name, _ in model.named_parameters()]
    assert {"embedding", "output.projection", "output.bias"} < set(names)
    assert "output.weight" not in names
    inputs = torch.zeros(3, 2, dtype=torch.int64)
    hidden, weight, _ = model._output(model(inputs, model.zero_state(2), None)[0])
    before = hidden @ weight
    with torch.no_grad():
        model.get_parameter("embedding")[5] += 1.0  # not among the inputs
    same, weight, _ = model._output(model(inputs, model.zero_state(2), None)[0])
    moved = (hidden @ weight - before).abs().amax(dim=0) > 1e-7
    assert torch.equal(hidden, same)
    assert moved.tolist() == [token == 5 for token in range(V)]


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
    loss, _ = model.loss(window, (zeros, zeros), None)
    assert loss.item() == pytest.approx(right.item(), abs=1e-12)
    right.backward()  # type: ignore[no-untyped-call]
    theirs = [getattr(oracle, f"weight_ih_l{layer}").grad.T for layer in range(layers)]
    loss.backward()  # type: ignore[no-untyped-call]
    for layer in range(layers):
        ours = weights[f"layers.{layer}.input_weight"].grad
        assert ours is not None
        # Both graphs share the output layer's weights, not these.
        assert torch.allclose(ours, theirs[layer], atol=1e-12)


def loss_by_equations(
    model: LanguageModel, window: Window, state: State, generator: torch.Generator | None
) -> tuple[Tensor, State]:
    """The loss and the state after, of operations that PyTorch differentiates by itself, a step at a time."""
    options, weights = model.configuration, dict(model.named_parameters())
    inputs, targets = (torch.from_numpy(ids).long() for ids in (window.inputs, window.targets))
    (T, B), H, E = inputs.shape, options.hidden, options.embedding
    keep = torch.from_numpy(~window.starts).double()[:, :, None]

    def mask(dropped: float, *shape: int) -> Tensor:
        drawn = model._mask(shape, dropped, generator)
        return torch.ones(shape, dtype=torch.float64) if drawn is None else drawn.double()

    below = torch.nn.functional.one_hot(inputs, V).double()
    if E:
        below = below @ (weights["embedding"] * mask(options.input_dropout, V, E))
    last_h, last_c = [], []
    for layer in range(options.layers):
        own = {
            name.split(".")[-1]: weight for name, weight in weights.items() if name.startswith(f"layers.{layer}.")
        }
        w, b = own["input_weight"], own["bias"]
        u = own["recurrent_weight"] * mask(options.weight_drop, *own["recurrent_weight"].shape)
        fed_back = mask(options.dropout if options.dropout_mode == "tutorial" else 0.0, T, B, H)
        h, c, outputs = state[0][layer], state[1][layer], []
        for t in range(T):
            h, c, x = h * keep[t], c * keep[t], below[t]
            match options.cell:
                case "lstm":
                    h, c = lstm_step(x @ w + b, u, h, c)
                case "peephole":
                    h, c = peephole_step(x @ w + b, u, own["peephole"], h, c)
                case "gru":
                    (h,) = gru_step(x @ w + b, u, own["recurrent_bias"], h)
                case "mogrifier":
                    h, c = mogrifier_step(x, w, b, u, own["q"], own["r"], h, c)
            h = h * fed_back[t]
            outputs.append(h)
        last_h.append(h)
        last_c.append(state[1][layer] if options.cell == "gru" else c)
        below = torch.stack(outputs)
        if options.dropout_mode != "tutorial":
            below = below * mask(options.dropout, 1 if options.dropout_mode == "locked" else T, B, H)
    if options.tied:
        below = below @ weights["output.projection"]
    weight = weights["embedding"].T if options.tied else weights["output.weight"]
    logits = (below @ weight + weights["output.bias"]).reshape(T * B, V)
    total = torch.nn.functional.cross_entropy(logits, targets.reshape(-1), ignore_index=NO_TARGET, reduction="sum")
    return total / (T * B), (torch.stack(last_h), torch.stack(last_c))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("mode", ["dry", *get_args(DropoutMode)])
@pytest.mark.parametrize("network", NETWORKS)
def test_the_loss_and_its_gradients_are_those_of_automatic_differentiation(
    network: str, mode: Any, resets: bool
) -> None:
    options = dict(NETWORKS[network])
    if mode != "dry":
        options |= {"dropout_mode": mode, "dropout": 0.4, "weight_drop": 0.3}
        options |= {"input_dropout": 0.25} if "embedding" in options else {}
    model = model_of(Configuration(hidden=5, initialisation="xavier", reset_state=resets, **options)).double()
    draw = np.random.default_rng(8)
    with torch.no_grad():
        # As trained: no weight near zero, the biases and peepholes neither.
        for weight in model.parameters():
            weight.copy_(torch.from_numpy(draw.normal(0.0, 0.6, weight.shape)))
    window = random_window(7, 3, resets)
    assert window.starts.any() == resets
    window.targets[5:, 2] = NO_TARGET
    state = tuple(torch.from_numpy(draw.normal(0.0, 0.5, (2, model.configuration.layers, 3, 5))))
    ours, theirs = (None if mode == "dry" else torch.Generator().manual_seed(21) for _ in range(2))
    loss, after = model.loss(window, state, ours)
    right, right_after = loss_by_equations(model, window, state, theirs)
    # As many numbers were drawn.
    assert ours is None or theirs is None or torch.equal(ours.get_state(), theirs.get_state())
    assert abs(loss.item() - right.item()) < 1e-12
    for a, b in zip(after, right_after, strict=True):
        assert not a.requires_grad
        assert (a - b).abs().max().item() < 1e-12
    names, weights = zip(*((n, w) for n, w in model.named_parameters() if w.numel()), strict=True)
    made, wanted = torch.autograd.grad(loss, weights), torch.autograd.grad(right, weights)
    for name, a, b in zip(names, made, wanted, strict=True):
        assert b.abs().max().item() > 1e-5, f"the test says nothing of {name}"
        assert (a - b).abs().max().item() < 1e-12, name


# The operation whose backward is sabotaged, how many gradients of its own reach a weight, and where it is used.
SABOTAGES: list[tuple[Any, int, str]] = [
    (lstm, 2, "lstm2"),
    (peephole, 3, "peephole2-tied"),
    (gru, 3, "gru2-embedded"),
    (mogrifier, 6, "mogrifier2-tied"),
    (Affine, 3, "lstm2-embedded"),
    (CrossEntropy, 3, "lstm1-tied"),
]


@pytest.mark.parametrize(
    ("operation", "wrong", "network"),
    [(operation, wrong, network) for operation, count, network in SABOTAGES for wrong in range(count)],
)
def test_a_sabotaged_backward_is_caught_in_the_model(
    operation: Any, wrong: int, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = operation.backward

    def sabotaged(*given: Any) -> tuple[Any, ...]:
        made = list(right(*given))
        # A product without a bias has no gradient by one.
        made[wrong] = None if made[wrong] is None else made[wrong] * 1.0001
        return tuple(made)

    monkeypatch.setattr(operation, "backward", sabotaged)
    with pytest.raises(AssertionError):
        test_the_loss_and_its_gradients_are_those_of_automatic_differentiation(network, "locked", resets=True)


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
    assert torch.allclose(state[0], carried[0], atol=1e-6)


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
    assert torch.equal(state[0][0], hidden[-1])  # what is carried is what was dropped
    dry, _ = model(inputs, model.zero_state(5), None, None)
    kept = hidden[0] != 0
    assert torch.allclose(hidden[0][kept], dry[0][kept] * 2)
    assert not torch.allclose(hidden[1][hidden[1] != 0], (dry[1] * 2)[hidden[1] != 0])


@pytest.mark.parametrize("cell", cells())
@pytest.mark.parametrize("mode", ["output", "locked"])
def test_these_modes_drop_what_goes_up_and_nothing_that_is_carried(cell: str, mode: DropoutMode) -> None:
    model = model_of(Configuration(cell=cell, hidden=40, embedding=6, dropout=0.5, dropout_mode=mode))
    inputs = torch.from_numpy(random_window(6, 5).inputs).long()
    hidden, state = model(inputs, model.zero_state(5), None, torch.Generator().manual_seed(0))
    dry, dry_state = model(inputs, model.zero_state(5), None, None)
    assert torch.equal(state[0], dry_state[0])
    assert torch.equal(state[1], dry_state[1])
    kept = hidden != 0  # [T, B, H]
    assert torch.equal(hidden, dry * kept * 2)
    assert kept.double().mean().item() == pytest.approx(0.5, abs=0.1)
    assert not torch.equal(kept[:, 0], kept[:, 1]), "every row has a mask of its own"
    alike = [torch.equal(kept[0], kept[t]) for t in range(1, 6)]
    assert alike == [mode == "locked"] * 5


def given_to_layers(model: LanguageModel, random_seed: int) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """Per layer: what comes from below, the recurrent weight, and the mask of what the next step receives."""
    seen: list[tuple[Tensor, Tensor, Tensor | None]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, given: seen.append((given[0], given[1], given[4])))
        for layer in model.layers
    ]
    generator = torch.Generator().manual_seed(random_seed)
    model(torch.zeros(6, 5, dtype=torch.int64), model.zero_state(5), None, generator)
    for hook in hooks:
        hook.remove()
    return seen


def test_input_dropout_drops_numbers_of_the_embedding_one_mask_a_window() -> None:
    options: dict[str, Any] = {"embedding": 40, "input_dropout": 0.25, "dropout": 0.0, "dropout_mode": "output"}
    model = model_of(Configuration(cell="mogrifier", hidden=3, layers=2, **options))
    with torch.no_grad():
        model.get_parameter("embedding").fill_(1.0)
    (mask, _, fed_back), (above, _, _) = given_to_layers(model, 0)
    assert mask.shape == (6, 5, 40)
    scale = mask.max().item()
    assert scale == pytest.approx(4 / 3)
    assert set(mask.flatten().tolist()) == {0.0, scale}
    assert mask[0, 0].mean().item() == pytest.approx(1.0, abs=0.25)
    assert torch.equal(mask, mask[:1, :1].expand_as(mask)), "the same n-gram stands everywhere"
    assert not torch.equal(mask[0, 0], given_to_layers(model, 1)[0][0][0, 0])
    assert fed_back is None
    assert (above != 0).all(), "the layers above have no part in it"


@pytest.mark.parametrize("mode", get_args(DropoutMode))
@pytest.mark.parametrize("cell", cells())
def test_weight_drop_masks_each_recurrent_weight_once_a_window(cell: str, mode: DropoutMode) -> None:
    options: dict[str, Any] = {"embedding": 4, "dropout": 0.0, "dropout_mode": mode, "weight_drop": 0.3}
    model = model_of(Configuration(cell=cell, hidden=30, layers=2, **options))
    windows = [given_to_layers(model, random_seed) for random_seed in (1, 1, 2)]
    own = [layer.get_parameter("recurrent_weight") for layer in model.layers]
    masks = [[(left / w) for (_, left, _), w in zip(given, own, strict=True)] for given in windows]
    for mask in (mask for layers in masks for mask in layers):
        kept = mask > 0
        assert kept.double().mean().item() == pytest.approx(0.7, abs=0.05)
        assert torch.allclose(mask[kept], torch.tensor(1 / 0.7), rtol=1e-4)
    first, again, other = masks
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0], first[1])


def test_who_evaluates_drops_nothing() -> None:
    wet: dict[str, Any] = {"dropout": 0.9, "input_dropout": 0.9, "weight_drop": 0.9, "dropout_mode": "locked"}
    window = random_window(6, 2)
    losses = []
    for options in (wet, {"dropout": 0.0}):
        model = model_of(Configuration(hidden=6, embedding=5, **options))
        losses.append(model.losses(window, model.zero_state(2))[0])
    assert np.array_equal(losses[0], losses[1])


@pytest.mark.parametrize("network", NETWORKS)
def test_numpy_steps_are_the_models(network: str) -> None:
    configuration = Configuration(hidden=9, initialisation="xavier", **NETWORKS[network])
    model = model_of(configuration)
    window = random_window(30, 2)
    hidden, state = model(torch.from_numpy(window.inputs).long(), model.zero_state(2), None)
    rows, weight, bias = model._output(hidden)
    logits = (rows @ weight + bias).view(30, 2, V)
    h, c = np.zeros((2, configuration.layers, 2, 9), np.float32)
    stepper = Stepper(configuration, model.weights(), h, c)
    for t in range(30):
        made = stepper.step(window.inputs[t].tolist())
        np.testing.assert_allclose(made, logits[t].detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(h, state[0].detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(c, state[1].detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_device_that_is_not_there_is_refused_never_replaced() -> None:  # fault 37
    assert choose_device("cpu").type == "cpu"
    with pytest.raises(UsageError, match="--device 'tpu' is not known"):
        choose_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="no CUDA GPU"):
            choose_device("cuda")
