"""The cells of the network: what a cell is (`CellSpec`), and the registry of all cells (`cells`).

Each module of this package is one cell: its equations, its specification, and its pointwise functions, forward and
backward. They work on PyTorch tensors and NumPy arrays alike and need neither of the two to be imported. A C header
(`lstm.h`) and a Triton module (`lstm_triton.py`) of the same name beside it are optional, and make the cell fast.
Everything else iterates over the registry: to add a cell is to add these files.

    T  time steps    B  batch rows    H  hidden units    G  gates
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple, Protocol

# A PyTorch tensor or a NumPy array.
Array = Any
Arrays = tuple[Array, ...]


class Ops(Protocol):
    """The operations that the pointwise functions take beside arithmetic, of PyTorch or of NumPy."""

    def sigmoid(self, x: Array, /) -> Array:
        """The logistic function."""

    def tanh(self, x: Array, /) -> Array:
        """The hyperbolic tangent."""

    def split(self, x: Array, parts: int, /) -> Sequence[Array]:
        """The parts [B, H] of an array [B, parts · H], side by side in its columns."""

    def stack(self, arrays: Sequence[Array], /) -> Array:
        """The arrays along a new first axis."""

    def matmul(self, a: Array, b: Array, /) -> Array:
        """The matrix product, in the backend's precision."""


class Sizes(NamedTuple):
    """What the shapes of a cell's extra weights depend on: H, the size of its input, and a mogrifier's rounds."""

    hidden: int
    inputs: int
    rounds: int


class Gradients(NamedTuple):
    """What `pointwise_backward` returns; each array is [B, H].

    Attributes:
        x: by each gate's input, in the order of the gates.
        recurrent: by each gate's recurrent product, likewise; None where the cell has no recurrent product.
        state: by each state that entered the time step, without what reaches h through the recurrent product.
        weights: by the extra weights, one for each row: [B, H] for a weight [H], [k, B, H] for a weight [k, H].
    """

    x: Arrays
    recurrent: Arrays | None
    state: Arrays
    weights: Mapping[str, Array] = {}


class PreStep(NamedTuple):
    """A hook that changes a cell's input and hidden state before each time step's products.

    Attributes:
        forward: (ops, x [B, inputs], h [B, H], weights) → x, h, and what `backward` needs.
        backward: (ops, saved, weights, d_x, d_h) → d_x, d_h, and the gradients by the extra weights.
    """

    forward: Callable[..., tuple[Array, Array, Any]]
    backward: Callable[..., tuple[Array, Array, Mapping[str, Array]]]


@dataclass(frozen=True)
class CellSpec:
    """A cell.

    Attributes:
        name: as in `--cell`, in configurations, and in the names of its C header and Triton functions.
        title: name in messages.
        gates: names of its gates, in the order in which they stand side by side in the columns of its weights.
        states: names of what it carries from one time step to the next; the first, h, is its output.
        pointwise_forward: (ops, x, a, state, weights) → new state, saved. `x` is what the input and the bias add to
            the gates, [B, GH], `a` the recurrent product h U (None without one), [B, GH]; `weights` the extra
            weights by name. `saved` is what `pointwise_backward` needs, a tuple of arrays [B, H]; it begins with the
            values of the gates in their order.
        pointwise_backward: (ops, saved, state, weights, d_state) → `Gradients`. `state` is the one that entered the
            time step, `d_state` has the gradient by each new state.
        candidate: the one among `gates` that is no gate, but the candidate for the new state; the others are σ(…).
        recurrent_product: whether h is multiplied with a recurrent weight U [H, GH] at each time step.
        extra_weights: the shapes of weights beside the input weight, U and the bias.
        pre_step: a hook before each time step's products; None in most cells.
    """

    name: str
    title: str
    gates: tuple[str, ...]
    states: tuple[str, ...]
    pointwise_forward: Callable[..., tuple[Arrays, Arrays]]
    pointwise_backward: Callable[..., Gradients]
    candidate: str = "c"
    recurrent_product: bool = True
    extra_weights: Callable[[Sizes], dict[str, tuple[int, ...]]] = lambda _: {}
    pre_step: PreStep | None = None

    def shapes(self, sizes: Sizes) -> dict[str, tuple[int, ...]]:
        """The name and the shape of every weight of one layer.

        With G gates side by side in the columns: the input weight [inputs, GH], the recurrent weight [H, GH] if the
        cell has one, the bias [GH], and the extra weights.
        """
        columns = len(self.gates) * sizes.hidden
        shapes: dict[str, tuple[int, ...]] = {"input_weight": (sizes.inputs, columns)}
        if self.recurrent_product:
            shapes["recurrent_weight"] = (sizes.hidden, columns)
        return {**shapes, "bias": (columns,), **self.extra_weights(sizes)}


@cache
def cells() -> dict[str, CellSpec]:
    """The specification of every cell, by its name; the tutorial's LSTM first."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.endswith("_triton"))
    names.sort(key=lambda name: name != "lstm")
    return {name: import_module(f"{__name__}.{name}").CELL for name in names}
