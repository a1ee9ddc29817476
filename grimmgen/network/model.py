"""The network: token ids in, the losses of the next tokens out.

Layers of cells over one-hot tokens or an embedding, and a softmax layer on top, as the tutorial builds them ("Defining
parameters", "Defining sequential calculations…"). The forward and the backward pass are explicit: each line of
`backward` reverses one of `forward`. Knows weights and windows, and nothing of documents, optimisers or files.

    T  time steps    B  batch rows    H  hidden units    L  layers    E  embedding size    V  vocabulary size
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError
from grimmgen.network.backends import choose_backend
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import cells
from grimmgen.network.shapes import token_axes, weight_shapes
from grimmgen.network.threads import limit_threads
from grimmgen.text.batches import Window

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend

# What the network carries from one time step to the next: one tensor [L, B, H] for each state of its cell, in the
# order of the cell's specification (LSTM: h and c).
State: TypeAlias = tuple[Tensor, ...]


def choose_device(name: str) -> torch.device:
    """The device of that name: `cpu`, `cuda`, `cuda:1`, or `auto`: a CUDA GPU if there is one, else the CPU.

    The threads of the CPU are limited (`limit_threads`).

    Raises:
        UsageError: the name is not known, or there is no such device.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", name):
        raise UsageError(f"--device {name!r} is not known", "give auto, cpu, cuda or cuda:N")
    limit_threads()
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        build = "" if torch.version.cuda or torch.version.hip else ", and is a build for CPUs"
        raise UsageError(f"--device {name}: PyTorch finds no CUDA GPU here{build}", "give --device cpu or auto")
    device = torch.device(name)
    if ":" in name and device.index >= (count := torch.cuda.device_count()):
        raise UsageError(f"--device {name}: this machine has {count} GPUs", f"give cuda:0 to cuda:{count - 1}")
    return device


class Inputs(NamedTuple):
    """A window on the device of the weights.

    Attributes:
        ids: [T, B] int64.
        targets: the ids that follow, [T, B] int64; negative where there is none.
        resets: where the state is reset before the time step, [T, B] bool; None is nowhere.
    """

    ids: Tensor
    targets: Tensor
    resets: Tensor | None


class Dropout:
    """The dropout masks of one training step, in the order in which they are drawn.

    Args:
        backend: draws them.
        seeds: one for each mask, int64 [masks], on the device.
        rows: the batch rows of this process; masks are drawn for all B rows and sliced. None is all.
        batch_size: B, the rows of all processes.
    """

    def __init__(self, backend: Backend, seeds: Tensor, batch_size: int, rows: slice | None = None) -> None:
        self._backend, self._seeds, self._batch_size, self._rows = backend, seeds, batch_size, rows
        self._drawn = 0

    def mask(self, shape: tuple[int, ...], dropout: float) -> Tensor | None:
        """The next mask, the same for all batch rows; None for no dropout."""
        if dropout == 0.0:
            return None
        self._drawn += 1
        return self._backend.dropout_mask(shape, dropout, self._seeds[self._drawn - 1])

    def mask_of_rows(self, steps: int, hidden: int, dropout: float) -> Tensor | None:
        """The next mask, [steps, B, hidden], of the rows of this process."""
        mask = self.mask((steps, self._batch_size, hidden), dropout)
        return mask if mask is None or self._rows is None else mask[:, self._rows].contiguous()


def mask_count(configuration: Configuration) -> int:
    """How many masks a training step draws at most."""
    return 1 + 3 * configuration.layers


class Forward(NamedTuple):
    """The forward pass of a window.

    Attributes:
        hidden: what the softmax layer reads, [T·B, H], or projected, [T·B, E].
        output_weight: its weight, [H, V] or [E, V].
        state: after the window.
        tape: what the backward pass needs, one entry for each layer.
    """

    hidden: Tensor
    output_weight: Tensor
    state: State
    tape: list[_LayerTape]
    input_mask: Tensor | None
    embedding: Tensor | None
    looked_up: bool  # whether the first layer read embeddings, and not products of embeddings
    unprojected: Tensor | None  # [T·B, H]


class _LayerTape(NamedTuple):
    saved: Any
    recurrent_mask: Tensor | None  # weight drop
    output_mask: Tensor | None  # dropout on the output alone


class LanguageModel:
    """A recurrent language model over tokens.

    Args:
        configuration: cell, units, layers, dropout, initialisation.
        vocabulary_size: V.

    Attributes:
        weights_by_name: the weights, named and shaped as `weight_shapes` says.
    """

    def __init__(self, configuration: Configuration, vocabulary_size: int) -> None:
        self.configuration = configuration
        self.vocabulary_size = vocabulary_size
        self.cell = cells()[configuration.cell]
        self.weights_by_name = {
            name: torch.empty(shape) for name, shape in weight_shapes(configuration, vocabulary_size).items()
        }

    def to(self, device: torch.device | str) -> LanguageModel:
        """Move the weights to a device; returns the model itself."""
        self.weights_by_name = {name: weight.to(device) for name, weight in self.weights_by_name.items()}
        return self

    def double(self) -> LanguageModel:
        """Make the weights float64; returns the model itself."""
        self.weights_by_name = {name: weight.double() for name, weight in self.weights_by_name.items()}
        return self

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """The names of the weights, and the weights."""
        return iter(self.weights_by_name.items())

    def parameters(self) -> Iterator[Tensor]:
        """The weights."""
        return iter(self.weights_by_name.values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.weights_by_name["output.bias"].device

    def backend(self, precision: Products = "fp32", kernels: bool = True) -> Backend:
        """The backend for the weights: that of `choose_backend`, unless its kernels fail their self-check."""
        dtype = self.weights_by_name["output.bias"].dtype
        backend = choose_backend(self.configuration.cell, self.device, dtype, precision, kernels=kernels)
        if backend.name == "Triton":
            from grimmgen.network.backends.cuda.self_check import Shape, failure

            options = self.configuration
            shape = Shape(options.hidden, self.vocabulary_size, options.batch_size)
            if reason := failure(options.cell, shape, self.device, precision):
                return ReferenceBackend(precision, reason)
        return backend

    def initialise(self) -> None:
        """Draw the weights: the same ones for the same random seed.

        The tutorial draws weights from a normal distribution with σ 0.02, truncated at 2σ, and advises Xavier's
        (Glorot and Bengio 2010: uniform in ±√(6 / (fan-in + fan-out)), here for each gate by itself) for more
        than one layer. Biases are uniform in ±0.02. With Xavier's, an embedding is uniform in ±0.1.
        """
        generator = torch.Generator().manual_seed(self.configuration.random_seed)
        xavier = self.configuration.initialisation == "xavier" or (
            self.configuration.initialisation == "auto" and self.configuration.layers > 1
        )
        for name, weight in self.named_parameters():
            drawn = torch.empty(weight.shape)
            if weight.dim() == 1:
                drawn.uniform_(-0.02, 0.02, generator=generator)
            elif xavier:
                # The columns of these weights are several gates, each of them a matrix of its own.
                gates = len(self.cell.gates) if name.endswith(("input_weight", "recurrent_weight")) else 1
                fan_in, fan_out = weight.shape[-2], weight.shape[-1] // gates
                bound = 0.1 if name == "embedding" else math.sqrt(6.0 / (fan_in + fan_out))
                drawn.uniform_(-bound, bound, generator=generator)
            else:
                nn.init.trunc_normal_(drawn, std=0.02, a=-0.04, b=0.04, generator=generator)
            weight.copy_(drawn)

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""
        shape = (self.configuration.layers, rows, self.configuration.hidden)
        dtype = self.weights_by_name["output.bias"].dtype
        return tuple(torch.zeros(shape, device=self.device, dtype=dtype) for _ in self.cell.states)

    # --- forward and backward --------------------------------------------------------------------------------

    def forward(
        self,
        backend: Backend,
        ids: Tensor,
        state: State,
        resets: Tensor | None,
        dropout: Dropout | None = None,
        short: bool = False,
    ) -> Forward:
        """Read a window.

        Args:
            backend: computes.
            ids: [T, B] int64.
            state: before the first time step.
            resets: where the state is reset before the time step, [T, B] bool; None is nowhere.
            dropout: the masks; None is no dropout.
            short: compute products for the tokens of the window, not for the vocabulary: less work where these are
                fewer. It changes the last digits.
        """
        options, weights = self.configuration, self.weights_by_name
        (T, B), H = ids.shape, options.hidden
        embedding = weights.get("embedding")
        table = input_mask = unprojected = None
        inputs, looked_up = ids, False
        if embedding is not None:
            if dropout is not None:
                input_mask = dropout.mask(tuple(embedding.shape), options.input_dropout)
            if input_mask is not None:
                embedding = backend.multiply(embedding, input_mask)  # (1)
            if looked_up := bool(self.cell.pre_step) or short:
                inputs = backend.lookup(embedding, ids)  # (2)
            else:
                # The products of all embeddings are fewer than those of all tokens of the window.
                table = backend.linear(embedding, weights["layers.0.input_weight"])  # (2)
        tape, states = [], []
        for depth in range(options.layers):
            layer = self._layer(depth)
            if depth == 0 and table is not None:
                layer["input_weight"] = table
            recurrent_mask = recurrent_dropout = output_mask = None
            if dropout is not None:
                if self.cell.recurrent_product:
                    shape = tuple(layer["recurrent_weight"].shape)
                    recurrent_mask = dropout.mask(shape, options.weight_drop)
                if options.dropout_mode == "tutorial":
                    recurrent_dropout = dropout.mask_of_rows(T, H, options.dropout)
                else:
                    steps = 1 if options.dropout_mode == "locked" else T
                    output_mask = dropout.mask_of_rows(steps, H, options.dropout)
            if recurrent_mask is not None:
                layer["recurrent_weight"] = backend.multiply(layer["recurrent_weight"], recurrent_mask)  # (3)
            entered = tuple(part[depth] for part in state)
            done = backend.layer(self.cell, layer, inputs, entered, recurrent_dropout, resets)  # (4)
            inputs = done.h
            if output_mask is not None:
                inputs = backend.multiply(inputs, output_mask)  # (5)
            states.append(done.state)
            tape.append(_LayerTape(done.saved, recurrent_mask, output_mask))
        hidden = inputs.reshape(T * B, H)
        if options.tied and short:
            unprojected = hidden
            hidden = backend.linear(hidden, weights["output.projection"])  # (6)
            output_weight = weights["embedding"].t()
        elif options.tied:
            output_weight = backend.linear(weights["output.projection"], weights["embedding"].t())  # (6)
        else:
            output_weight = weights["output.weight"]
        after = tuple(_stack(backend, parts) for parts in zip(*states, strict=True))
        return Forward(hidden, output_weight, after, tape, input_mask, embedding, looked_up, unprojected)

    def backward(
        self,
        backend: Backend,
        done: Forward,
        ids: Tensor,
        d_hidden: Tensor,
        d_output_weight: Tensor,
        d_output_bias: Tensor,
        ready: Callable[[Tensor], None] = lambda _: None,
    ) -> dict[str, Tensor]:
        """Back-propagate through the window (truncated: no further); the lines are numbered after `forward`'s.

        Args:
            backend: that computed the forward pass.
            done: the forward pass; its tape is consumed.
            ids: that were read, [T, B].
            d_hidden: the gradient by what the softmax layer reads, [T·B, H].
            d_output_weight: by its weight, [H, V].
            d_output_bias: by its bias, [V].
            ready: called with each weight's gradient as soon as it is complete.

        Returns:
            The gradients by the weights, by their names.
        """
        weights, gradients = self.weights_by_name, dict[str, Tensor]()

        def complete(name: str, gradient: Tensor) -> None:
            gradients[name] = gradient
            ready(gradient)

        d_embedding = None
        complete("output.bias", d_output_bias)
        if done.unprojected is not None:
            d_hidden, d_projection, _ = backend.linear_backward(
                done.unprojected, weights["output.projection"], d_hidden
            )  # (6)
            complete("output.projection", d_projection)
            d_embedding = d_output_weight.t()
        elif self.configuration.tied:
            d_projection, d_transposed, _ = backend.linear_backward(
                weights["output.projection"], weights["embedding"].t(), d_output_weight
            )  # (6)
            complete("output.projection", d_projection)
            d_embedding = d_transposed.t()
        else:
            complete("output.weight", d_output_weight)
        d_h = d_hidden.view(*ids.shape, -1)
        for depth in reversed(range(self.configuration.layers)):
            layer = done.tape.pop()
            if layer.output_mask is not None:
                d_h = backend.multiply(d_h, layer.output_mask)  # (5)
            found = backend.layer_backward(self.cell, layer.saved, d_h)  # (4)
            d_layer = found.weights
            if layer.recurrent_mask is not None:
                d_layer["recurrent_weight"] = backend.multiply(
                    d_layer["recurrent_weight"], layer.recurrent_mask
                )  # (3)
            if depth == 0 and done.embedding is not None:
                if done.looked_up:
                    assert found.inputs is not None
                    d_looked_up = backend.lookup_backward(ids, found.inputs, len(done.embedding))  # (2)
                else:
                    d_looked_up, d_layer["input_weight"], _ = backend.linear_backward(
                        done.embedding, weights["layers.0.input_weight"], d_layer["input_weight"]
                    )  # (2)
                if done.input_mask is not None:
                    d_looked_up = backend.multiply(d_looked_up, done.input_mask)  # (1)
                d_embedding = d_looked_up if d_embedding is None else backend.add(d_looked_up, d_embedding)
            elif depth > 0:
                assert found.inputs is not None
                d_h = found.inputs
            for name, gradient in d_layer.items():
                complete(f"layers.{depth}.{name}", gradient)
        if d_embedding is not None:
            complete("embedding", d_embedding)
        return gradients

    def losses(self, window: Window, state: State) -> tuple[NDArray[np.float64], State]:
        """The loss of each prediction of a window in nats, [T, B], zero where there is no target; and the state after.

        There is no dropout, and products are float32, however the model was trained.
        """
        inputs, backend = self.inputs(window), self.backend()
        done = self.forward(backend, inputs.ids, state, inputs.resets)
        bias = self.weights_by_name["output.bias"]
        losses = backend.negative_log_likelihood(done.hidden, done.output_weight, bias, inputs.targets.reshape(-1))
        return losses.view(inputs.ids.shape).double().cpu().numpy(), done.state

    def logits(
        self, ids: Tensor, state: State, resets: Tensor | None = None, short: bool = False
    ) -> tuple[Tensor, State]:
        """The logits of the token after each of those read, [T, B, V], and the state after them."""
        done = self.forward(self.backend(), ids, state, resets, short=short)
        logits = done.hidden @ done.output_weight + self.weights_by_name["output.bias"]
        return logits.view(*ids.shape, -1), done.state

    def token_scores(self, window: Window, state: State) -> tuple[NDArray[np.float64], State]:
        """The loss, the entropy and the largest log-probability at each prediction, [3, T, B]; and the state after.

        The losses are those of `losses`, up to rounding; where there is no target, the values mean nothing.
        """
        inputs = self.inputs(window)
        logits, state = self.logits(inputs.ids, state, inputs.resets)
        return token_scores(logits, inputs.targets), state

    def inputs(self, window: Window) -> Inputs:
        """A window as tensors on the device of the weights."""

        def tensor(values: NDArray[Any], kind: type[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values, kind)).to(self.device)

        resets = tensor(window.starts, np.bool_) if self.configuration.reset_state else None
        return Inputs(tensor(window.inputs, np.int64), tensor(window.targets, np.int64), resets)

    # --- the weights -----------------------------------------------------------------------------------------

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights."""
        return {name: weight.cpu().numpy().copy() for name, weight in self.named_parameters()}

    def load_weights(self, weights: dict[str, NDArray[np.float32]]) -> None:
        """Copy these weights into the model; names and shapes must match `weight_shapes`."""
        shapes = weight_shapes(self.configuration, self.vocabulary_size)
        assert {name: weight.shape for name, weight in weights.items()} == shapes
        for name, weight in self.named_parameters():
            weight.copy_(torch.from_numpy(weights[name]))

    def load_base(
        self, weights: Mapping[str, NDArray[np.float32]], ids: Sequence[int], their_ids: Sequence[int]
    ) -> None:
        """Copy the weights of a model with the same architecture and other tokens; new tokens keep their own.

        Args:
            weights: of the other model.
            ids: of the tokens that both have, here.
            their_ids: of the same tokens, in the other model.
        """
        axes = token_axes(self.configuration)
        for name, weight in self.named_parameters():
            other = torch.from_numpy(weights[name]).to(weight.device)
            if name in axes:
                theirs = other.index_select(axes[name], torch.tensor(their_ids, device=weight.device))
                weight.index_copy_(axes[name], torch.tensor(ids, device=weight.device), theirs)
            else:
                weight.copy_(other)

    def _layer(self, depth: int) -> dict[str, Tensor]:
        prefix = f"layers.{depth}."
        return {
            name.removeprefix(prefix): weight
            for name, weight in self.named_parameters()
            if name.startswith(prefix)
        }


def token_scores(logits: Tensor, targets: Tensor) -> NDArray[np.float64]:
    """The loss, the entropy and the largest log-probability at each prediction, [3, …].

    Args:
        logits: […, V].
        targets: […]; where one is negative, the values mean nothing.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    losses = -log_p.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    largest, entropy = log_p.amax(dim=-1), -(log_p.exp() * log_p).sum(dim=-1)
    return torch.stack([losses, entropy, largest]).double().cpu().numpy()


def _stack(backend: Backend, parts: tuple[Tensor, ...]) -> Tensor:
    """The states [B, H] of all layers along a new first axis, [L, B, H]."""
    return backend.stack(parts)
