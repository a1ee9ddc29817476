"""The network: n-grams in, the next n-gram's losses out.

Layers of cells over a look-up of one-hot n-grams, and a softmax layer on top, as the tutorial builds them
("Defining parameters", "Defining sequential calculations…"). Knows weights and windows, and nothing of
stories, optimisers or files.

    T  steps    B  rows    H  hidden units    L  layers    V  vocabulary size
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError
from grimmgen.network import backends
from grimmgen.network.cells import cells
from grimmgen.network.cells.mogrifier import MogrifierWindow
from grimmgen.network.shapes import layer_shapes, weight_shapes
from grimmgen.text.batches import Window


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


# What the network carries from one time step to the next: one tensor [L, B, H] for each state of its cell, in the
# order of the cell's specification (LSTM: h and c).
State: TypeAlias = tuple[Tensor, ...]


class Layer(nn.Module):
    """One layer of cells: its weights, named and shaped as `layer_shapes` says; the tutorial's ix, fx, cx, ox
    stand side by side in `input_weight`, and so on.
    """  # noqa: D205

    input_weight: Tensor
    recurrent_weight: Tensor
    bias: Tensor

    def __init__(self, configuration: Configuration, inputs: int) -> None:
        super().__init__()
        self.cell = configuration.cell
        for name, shape in layer_shapes(configuration, inputs).items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape)))

    def forward(
        self,
        below: Tensor,
        recurrent_weight: Tensor,
        h: Tensor,
        c: Tensor,
        mask: Tensor | None,
        starts: Tensor | None,
        table: Tensor | None = None,
        precision: Products = "fp32",
    ) -> tuple[Tensor, Tensor]:
        """Run through a window.

        Args:
            below: ids [T, B], or what the layer below sends up, [T, B, inputs].
            recurrent_weight: ours, or what weight drop has left of it.
            h: hidden state before, [B, H].
            c: cell state before, [B, H]; a GRU has none and hands it on.
            mask: dropout mask of what the next step receives, [T, B, H].
            starts: true where the state is put to zero, [T, B].
            table: what each n-gram adds to the gates, [V, GH], for ids; None is the input weight.
            precision: of the matrix products.

        Returns:
            The hidden states [T, B, H], and the cell state after, [B, H].
        """
        T, B = below.shape[:2]
        if self.cell == "mogrifier":
            q, r = self.get_parameter("q"), self.get_parameter("r")
            mogrified: tuple[Tensor, Tensor] = MogrifierWindow.apply(  # type: ignore[no-untyped-call]
                below, self.input_weight, self.bias, recurrent_weight, q, r, h, c, mask, starts, precision
            )
            return mogrified
        table = self.input_weight if table is None else table
        if below.dim() == 2:
            # One-hot times a matrix is a look-up of its rows.
            looked_up = (below, table, self.bias, recurrent_weight)
            match self.cell:
                case "gru":
                    b_n = self.get_parameter("recurrent_bias")
                    return backends.gru_look_up_window(*looked_up, b_n, h, mask, starts, precision), c
                case "peephole":
                    p = self.get_parameter("peephole")
                    return backends.peephole_look_up_window(*looked_up, p, h, c, mask, starts, precision)
                case _:
                    return backends.lstm_look_up_window(*looked_up, h, c, mask, starts, precision)
        x = backends.affine(below.reshape(T * B, -1), self.input_weight, self.bias, precision).view(T, B, -1)
        match self.cell:
            case "gru":
                b_n = self.get_parameter("recurrent_bias")
                return backends.gru_window(x, recurrent_weight, b_n, h, mask, starts, precision), c
            case "peephole":
                p = self.get_parameter("peephole")
                return backends.peephole_window(x, recurrent_weight, p, h, c, mask, starts, precision)
            case _:
                return backends.lstm_window(x, recurrent_weight, h, c, mask, starts, precision)


class Output(nn.Module):
    """The weights of the softmax layer (tutorial: w and b); tied, it has a projection to the embedding instead."""

    def __init__(self, hidden: int, vocabulary_size: int, tied_to: int = 0) -> None:
        super().__init__()
        if tied_to:
            self.projection = nn.Parameter(torch.empty(hidden, tied_to))  # [H, E]
        else:
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
        H, E = configuration.hidden, configuration.embedding
        self.embedding = nn.Parameter(torch.empty(vocabulary_size, E)) if E else None  # [V, E]
        self.layers = nn.ModuleList(
            Layer(configuration, (E or vocabulary_size) if layer == 0 else H)
            for layer in range(configuration.layers)
        )
        self.output = Output(H, vocabulary_size, E if configuration.tied else 0)

    def initialise(self) -> None:
        """Draw the weights: the same ones for the same random seed.

        The tutorial draws weights from a normal distribution with σ 0.02, cut off at 2σ, and advises Xavier's
        (Glorot and Bengio 2010: uniform in ±√(6 / (fan-in + fan-out)), here for each gate by itself) for more
        than one layer. Biases are uniform in ±0.02. An embedding is uniform in ±0.1 where Xavier's is used.
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
                    # The columns of a layer's weights are several gates, each of them a matrix of its own.
                    gates = (
                        len(cells()[self.configuration.cell].gates)
                        if name.endswith(("input_weight", "recurrent_weight"))
                        else 1
                    )
                    fan_in, fan_out = weight.shape[-2], weight.shape[-1] // gates
                    bound = 0.1 if name == "embedding" else math.sqrt(6.0 / (fan_in + fan_out))
                    drawn.uniform_(-bound, bound, generator=generator)
                else:
                    nn.init.trunc_normal_(drawn, std=0.02, a=-0.04, b=0.04, generator=generator)
                weight.copy_(drawn)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.output.bias.device

    def kernel(self, precision: Products = "fp32") -> str:
        """What computes the cells with products of that precision, in words."""
        if self.configuration.cell in backends.COMPILED:
            return backends.serving(self.device, self.output.bias.dtype, precision)
        return "PyTorch bf16" if precision == "bf16" else "PyTorch"

    def left_alone(self) -> AbstractContextManager[None]:
        """A context for training steps: the compiled kernel gets all threads if it does all that is large."""
        return backends.alone(self.device) if self.configuration.cell in backends.COMPILED else nullcontext()

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""
        shape = (self.configuration.layers, rows, self.configuration.hidden)
        return torch.zeros(shape, device=self.device), torch.zeros(shape, device=self.device)

    def forward(
        self,
        inputs: Tensor,
        state: State,
        starts: Tensor | None,
        generator: torch.Generator | None = None,
        precision: Products = "fp32",
        own: slice | None = None,
    ) -> tuple[Tensor, State]:
        """Read a window.

        Args:
            inputs: ids, [T, B] int64.
            state: before the first step.
            starts: true where the state is put to zero, [T, B] bool; None is nowhere.
            generator: draws the dropout masks; None is no dropout.
            precision: of the matrix products.
            own: which rows of a whole batch these are, of which others are read elsewhere: they have the masks
                that they would have there. None is all.

        Returns:
            The last layer's hidden states [T, B, H], and the state after the last step.
        """
        T = len(inputs)
        options = self.configuration
        B = inputs.shape[1] if own is None else options.batch_size  # of the masks that are drawn
        H = options.hidden
        # What goes up to the first layer: [T, B], or [T, B, E]; to the others [T, B, H].
        below, table = inputs, None
        if self.embedding is not None:
            embedding: Tensor = self.embedding
            if (mask := self._mask(tuple(embedding.shape), options.input_dropout, generator)) is not None:
                embedding = embedding * mask
            if options.cell == "mogrifier":
                below = nn.functional.embedding(inputs, embedding)
            else:
                # The product of all n-grams' embeddings is smaller than that of all of the window's.
                table = backends.affine(embedding, self.layers[0].get_parameter("input_weight"), None, precision)
        last_h, last_c = [], []
        for depth, layer in enumerate(self.layers):
            recurrent_weight: Tensor = layer.get_parameter("recurrent_weight")
            if (mask := self._mask(tuple(recurrent_weight.shape), options.weight_drop, generator)) is not None:
                recurrent_weight = recurrent_weight * mask
            fed_back = None
            if options.dropout_mode == "tutorial":
                fed_back = self._mask((T, B, H), options.dropout, generator, own)
            entered = (state[0][depth], state[1][depth], fed_back, starts)
            hidden, c = layer(below, recurrent_weight, *entered, table, precision)
            table = None
            last_h.append(hidden[-1])
            last_c.append(c)
            below = hidden
            if options.dropout_mode != "tutorial":
                shape = (1 if options.dropout_mode == "locked" else T, B, H)
                if (mask := self._mask(shape, options.dropout, generator, own)) is not None:
                    below = hidden * mask
        return below, (torch.stack(last_h), torch.stack(last_c))

    def loss(
        self,
        window: Window,
        state: State,
        generator: torch.Generator | None,
        precision: Products = "fp32",
        own: slice | None = None,
    ) -> tuple[Tensor, State]:
        """The training loss of a window: the mean over its T·B predictions, in nats, and the state after it.

        The state returned is cut off from this window's gradients (truncated back-propagation through time).

        Args:
            window: n-grams in, n-grams to foretell.
            state: before the first step.
            generator: draws the dropout masks; None is no dropout.
            precision: of the matrix products, here and in the backward pass.
            own: which rows of a whole batch these are; see `forward`.
        """
        return self.loss_of(*self._tensors(window), state, generator, precision, own)

    def loss_of(
        self,
        inputs: Tensor,
        targets: Tensor,
        starts: Tensor | None,
        state: State,
        generator: torch.Generator | None,
        precision: Products = "fp32",
        own: slice | None = None,
    ) -> tuple[Tensor, State]:
        """The same of a window that is where the weights are: ids [T, B] int64, starts [T, B] bool or None."""
        hidden, after = self(inputs, state, starts, generator, precision, own)
        loss = backends.cross_entropy(*self._output(hidden, precision), targets.reshape(-1), precision)
        return loss, tuple(part.detach() for part in after)

    @torch.no_grad()
    def losses(self, window: Window, state: State) -> tuple[NDArray[np.float64], State]:
        """The loss of each prediction of a window in nats, [T, B], zero where there is none.

        There is no dropout, and nothing is rounded to bfloat16, however the model was trained.
        """
        inputs, targets, starts = self._tensors(window)
        hidden, after = self(inputs, state, starts)
        losses = backends.negative_log_likelihood(*self._output(hidden), targets.reshape(-1))
        return losses.view(inputs.shape).double().cpu().numpy(), after

    def logits(self, hidden: Tensor) -> Tensor:
        """The logits of the next n-gram, [T, B, V], from the last layer's hidden states [T, B, H]."""
        rows, weight, bias = self._output(hidden)
        return (rows @ weight + bias).view(*hidden.shape[:2], -1)

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

    def _output(self, hidden: Tensor, precision: Products = "fp32") -> tuple[Tensor, Tensor, Tensor]:
        """What the softmax layer multiplies: rows [T·B, H], its weight [H, V], its bias [V]."""
        rows = hidden.reshape(-1, hidden.shape[2])
        if self.embedding is not None and self.configuration.tied:
            return (
                rows,
                backends.affine(self.output.projection, self.embedding.t(), None, precision),
                self.output.bias,
            )
        return rows, self.output.weight, self.output.bias

    def _mask(
        self,
        shape: tuple[int, ...],
        dropped: float,
        generator: torch.Generator | None,
        own: slice | None = None,
    ) -> Tensor | None:
        if generator is None:
            return None
        mask = backends.dropout_mask(shape, dropped, self.device, generator)
        return mask if mask is None or own is None else mask[:, own]

    def _tensors(self, window: Window) -> tuple[Tensor, Tensor, Tensor | None]:
        inputs = torch.from_numpy(window.inputs.astype(np.int64)).to(self.device)
        targets = torch.from_numpy(window.targets.astype(np.int64)).to(self.device)
        if not self.configuration.reset_state:
            return inputs, targets, None
        return inputs, targets, torch.from_numpy(window.starts).to(self.device)
