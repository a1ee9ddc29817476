"""The network: n-grams in, the next n-gram's losses out.

Layers of cells over a look-up of one-hot n-grams, and a softmax layer on top, as the tutorial builds them
("Defining parameters", "Defining sequential calculations…"). Knows weights and windows, and nothing of
stories, optimisers or files.

    T  steps    B  rows    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grimmgen import kernels
from grimmgen.batches import Window
from grimmgen.configuration import GATES, Configuration, weight_shapes
from grimmgen.errors import UsageError


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        UsageError: the name is not known, or there is no such device.
    """
    if name not in {"auto", "cpu", "cuda"}:
        raise UsageError(f"--device {name!r} is not known", "give auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA GPU here", "give --device cpu or auto")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class State(NamedTuple):
    """What the network carries from step to step."""

    h: Tensor  # [L, B, H]
    c: Tensor  # [L, B, H]


class Layer(nn.Module):
    """The weights of one layer of cells; the tutorial's ix, fx, cx, ox stand side by side, and so on."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input_weight = nn.Parameter(torch.empty(inputs, GATES * hidden))  # [V or H, 4H]
        self.recurrent_weight = nn.Parameter(torch.empty(hidden, GATES * hidden))  # [H, 4H]
        self.bias = nn.Parameter(torch.empty(GATES * hidden))  # [4H]


class Output(nn.Module):
    """The weights of the softmax layer (tutorial: w and b)."""

    def __init__(self, hidden: int, vocabulary_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden, vocabulary_size))  # [H, V]
        self.bias = nn.Parameter(torch.empty(vocabulary_size))  # [V]


class LanguageModel(nn.Module):
    """A recurrent language model over n-grams.

    Args:
        configuration: units, layers, dropout, initialisation.
        vocabulary_size: V.
    """

    def __init__(self, configuration: Configuration, vocabulary_size: int) -> None:
        super().__init__()
        self.configuration = configuration
        self.vocabulary_size = vocabulary_size
        H = configuration.hidden
        self.layers = nn.ModuleList(
            Layer(vocabulary_size if layer == 0 else H, H) for layer in range(configuration.layers)
        )
        self.output = Output(H, vocabulary_size)

    def initialise(self) -> None:
        """Draw the weights: the same ones for the same random seed.

        The tutorial draws weights from a normal distribution with σ 0.02, cut off at 2σ, and advises Xavier's
        (Glorot and Bengio 2010: uniform in ±√(6 / (fan-in + fan-out)), here for each gate by itself) for more
        than one layer. Biases are uniform in ±0.02.
        """
        generator = torch.Generator().manual_seed(self.configuration.random_seed)
        xavier = self.configuration.initialisation == "xavier" or (
            self.configuration.initialisation == "auto" and self.configuration.layers > 1
        )
        with torch.no_grad():
            for name, weight in self.named_parameters():
                drawn = torch.empty(weight.shape)
                if weight.dim() == 1:
                    drawn.uniform_(-0.02, 0.02, generator=generator)
                elif xavier:
                    fan_out = self.vocabulary_size if name == "output.weight" else self.configuration.hidden
                    bound = math.sqrt(6.0 / (weight.shape[0] + fan_out))
                    drawn.uniform_(-bound, bound, generator=generator)
                else:
                    nn.init.trunc_normal_(drawn, std=0.02, a=-0.04, b=0.04, generator=generator)
                weight.copy_(drawn)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output.bias.device

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""
        shape = (self.configuration.layers, rows, self.configuration.hidden)
        return State(torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device))

    def forward(
        self, inputs: Tensor, state: State, starts: Tensor | None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, State]:
        """Read a window.

        Args:
            inputs: ids, [T, B] int64.
            state: before the first step.
            starts: true where the state is put to zero, [T, B] bool; None is nowhere.
            generator: draws the dropout masks; None is no dropout.

        Returns:
            The last layer's hidden states [T, B, H], and the state after the last step.
        """
        T, B = inputs.shape
        H = self.configuration.hidden
        hidden = torch.empty(0)
        last_h, last_c = [], []
        for depth, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            mask = None
            if generator is not None:
                mask = kernels.dropout_mask((T, B, H), self.configuration.dropout, self.device, generator)
            entered = (layer.recurrent_weight, state.h[depth], state.c[depth], mask, starts)
            if depth == 0:
                hidden, c = kernels.lstm_look_up_window(inputs, layer.input_weight, layer.bias, *entered)
            else:
                x = torch.addmm(layer.bias, hidden.reshape(T * B, H), layer.input_weight).view(T, B, GATES * H)
                hidden, c = kernels.lstm_window(x, *entered)
            last_h.append(hidden[-1])
            last_c.append(c)
        return hidden, State(torch.stack(last_h), torch.stack(last_c))

    def loss(self, window: Window, state: State, generator: torch.Generator | None) -> tuple[Tensor, State]:
        """The training loss of a window: the mean over its T·B predictions, in nats, and the state after it.

        The state returned is cut off from this window's gradients (truncated back-propagation through time).
        """
        inputs, targets, starts = self._tensors(window)
        hidden, after = self(inputs, state, starts, generator)
        loss = kernels.cross_entropy(
            hidden.reshape(-1, hidden.shape[2]), self.output.weight, self.output.bias, targets.reshape(-1)
        )
        return loss, State(after.h.detach(), after.c.detach())

    @torch.no_grad()
    def losses(self, window: Window, state: State) -> tuple[NDArray[np.float64], State]:
        """The loss of each prediction of a window in nats, [T, B], zero where there is none; no dropout."""
        inputs, targets, starts = self._tensors(window)
        hidden, after = self(inputs, state, starts)
        losses = kernels.negative_log_likelihood(
            hidden.reshape(-1, hidden.shape[2]), self.output.weight, self.output.bias, targets.reshape(-1)
        )
        return losses.view(inputs.shape).double().cpu().numpy(), after

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """A copy of the weights, named and shaped as `weight_shapes` says."""
        return {name: weight.detach().cpu().numpy().copy() for name, weight in self.named_parameters()}

    def load_weights(self, weights: dict[str, NDArray[np.float32]]) -> None:
        """Take these weights, which must have the names and shapes that `weight_shapes` says."""
        assert {name: w.shape for name, w in weights.items()} == weight_shapes(
            self.configuration, self.vocabulary_size
        )
        with torch.no_grad():
            for name, weight in self.named_parameters():
                weight.copy_(torch.from_numpy(weights[name]))

    def _tensors(self, window: Window) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs = torch.from_numpy(window.inputs).to(self.device, torch.int64)
        targets = torch.from_numpy(window.targets).to(self.device, torch.int64)
        if not self.configuration.reset_state:
            return inputs, targets, None
        return inputs, targets, torch.from_numpy(window.starts).to(self.device)
