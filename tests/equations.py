"""The oracle: cells and model written once more in plain PyTorch, for autograd to differentiate.

Each cell has a function of its name: (x [B, inputs], weights, *state) → state. `Case.results` runs a layer, of the
equations or of a backend, and differentiates it, so that both are compared by name.

    T  time steps    B  batch rows    H  hidden units    E  input size    V  vocabulary size
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grimmgen.configuration import Configuration
from grimmgen.network.cells import CellSpec, Sizes, cells

Tensors = tuple[Tensor, ...]
Weights = Mapping[str, Tensor]
# (cell, weights, inputs, state, mask, resets) → hidden states, last states
Layer = Callable[[CellSpec, Weights, Tensor, Tensors, Tensor | None, Tensor | None], Tensors]

# --- the cells ---------------------------------------------------------------------------------------------------


def lstm(x: Tensor, w: Weights, h: Tensor, c: Tensor) -> Tensors:
    i, f, candidate, o = (x @ w["input_weight"] + h @ w["recurrent_weight"] + w["bias"]).chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
    return torch.sigmoid(o) * torch.tanh(c), c


def coupled(x: Tensor, w: Weights, h: Tensor, c: Tensor) -> Tensors:
    f, candidate, o = (x @ w["input_weight"] + h @ w["recurrent_weight"] + w["bias"]).chunk(3, dim=1)
    c = torch.sigmoid(f) * c + (1 - torch.sigmoid(f)) * torch.tanh(candidate)
    return torch.sigmoid(o) * torch.tanh(c), c


def peephole(x: Tensor, w: Weights, h: Tensor, c: Tensor) -> Tensors:
    i, f, candidate, o = (x @ w["input_weight"] + h @ w["recurrent_weight"] + w["bias"]).chunk(4, dim=1)
    p = w["peephole"]
    c = torch.sigmoid(f + p[1] * c) * c + torch.sigmoid(i + p[0] * c) * torch.tanh(candidate)
    return torch.sigmoid(o + p[2] * c) * torch.tanh(c), c


def gru(x: Tensor, w: Weights, h: Tensor) -> Tensors:
    x_r, x_z, x_n = (x @ w["input_weight"] + w["bias"]).chunk(3, dim=1)
    h_r, h_z, h_n = (h @ w["recurrent_weight"]).chunk(3, dim=1)
    n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * (h_n + w["recurrent_bias"]))
    z = torch.sigmoid(x_z + h_z)
    return ((1 - z) * n + z * h,)


def mingru(x: Tensor, w: Weights, h: Tensor) -> Tensors:
    z, candidate = (x @ w["input_weight"] + w["bias"]).chunk(2, dim=1)
    z = torch.sigmoid(z)
    return ((1 - z) * h + z * candidate,)


def mogrifier(x: Tensor, w: Weights, h: Tensor, c: Tensor) -> Tensors:
    for number in range(1, len(w["q"]) + len(w["r"]) + 1):
        if number % 2 == 1:
            x = 2 * torch.sigmoid(h @ w["q"][number // 2]) * x
        else:
            h = 2 * torch.sigmoid(x @ w["r"][number // 2 - 1]) * h
    return lstm(x, w, h, c)


# --- layers and models -------------------------------------------------------------------------------------------


def layer(
    cell: CellSpec, weights: Weights, inputs: Tensor, state: Tensors, mask: Tensor | None, resets: Tensor | None
) -> Tensors:
    """The hidden states [T, B, H] and the last states; arguments as of a backend's `layer`."""
    if inputs.dim() == 2:
        inputs = torch.nn.functional.one_hot(inputs, len(weights["input_weight"])).to(weights["bias"].dtype)
    outputs = []
    for t, x in enumerate(inputs):
        if resets is not None:
            state = tuple(torch.where(resets[t][:, None], 0.0, part) for part in state)
        state = globals()[cell.name](x, weights, *state)
        if mask is not None:
            state = (state[0] * mask[t if len(mask) > 1 else 0], *state[1:])
        outputs.append(state[0])
    return torch.stack(outputs), *state


def model_loss(
    options: Configuration,
    weights: Weights,
    ids: Tensor,
    targets: Tensor,
    resets: Tensor | None,
    state: Tensors,
    masks: Iterator[Tensor] | None = None,
) -> tuple[Tensor, Tensors]:
    """The loss of a window and the state after it; `masks` are the dropout masks in the order of the model."""

    def masked(weight: Tensor, dropout: float) -> Tensor:
        return weight * next(masks) if masks and dropout else weight

    cell, below, after = cells()[options.cell], ids, []
    if options.embedding:
        below = masked(weights["embedding"], options.input_dropout)[ids]
    for depth in range(options.layers):
        prefix = f"layers.{depth}."
        own = {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}
        if cell.recurrent_product:
            own["recurrent_weight"] = masked(own["recurrent_weight"], options.weight_drop)
        tutorial = options.dropout_mode == "tutorial"
        mask = next(masks) if masks and options.dropout and tutorial else None
        below, *last = layer(cell, own, below, tuple(part[depth] for part in state), mask, resets)
        if not tutorial:
            below = masked(below, options.dropout)
        after.append(last)
    output = weights["output.projection"] @ weights["embedding"].T if options.tied else weights["output.weight"]
    logits = (below @ output + weights["output.bias"]).flatten(0, 1)
    total = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-1, reduction="sum")
    return total / targets.numel(), tuple(map(torch.stack, zip(*after, strict=True)))


# --- a layer of a backend, compared ------------------------------------------------------------------------------


class LayerFunction(torch.autograd.Function):
    """A backend's layer as a function that autograd can differentiate; `names` are those of the tensors."""

    @staticmethod
    def forward(ctx: Any, backend: Any, case: Case, names: list[str], *tensors: Tensor) -> Tensors:
        given = dict(zip(names, tensors, strict=True))
        weights = {name: given[name] for name in case.weights}
        state = tuple(given[f"state {name}"] for name in case.cell.states)
        done = backend.layer(case.cell, weights, given.get("inputs", case.inputs), state, case.mask, case.resets)
        ctx.backend, ctx.cell, ctx.names, ctx.saved = backend, case.cell, names, done.saved
        ctx.shape, ctx.dtype = done.h.shape, done.h.dtype
        ctx.set_materialize_grads(False)
        return done.h, *done.state

    @staticmethod
    def backward(ctx: Any, d_h: Tensor | None, *d_state: Tensor | None) -> tuple[Tensor | None, ...]:
        d_h = torch.zeros(ctx.shape, dtype=ctx.dtype) if d_h is None else d_h
        found = ctx.backend.layer_backward(ctx.cell, ctx.saved, d_h, d_state)
        states = {f"state {name}": part for name, part in zip(ctx.cell.states, found.state, strict=True)}
        made = {"inputs": found.inputs, **found.weights, **states}
        return None, None, None, *(made[name] for name in ctx.names)


class Case(NamedTuple):
    """Arguments of a layer, and a gradient by each of its outputs: `h` and the last states."""

    cell: CellSpec
    weights: dict[str, Tensor]
    inputs: Tensor
    state: Tensors
    mask: Tensor | None
    resets: Tensor | None
    upstream: Tensors

    @classmethod
    def draw(
        cls, cell: CellSpec, T: int, B: int, H: int, E: int, dropout: str, resets: bool, ids: bool, rounds: int = 0
    ) -> Case:
        """A case in float64 whose numbers float32 has, too; dropout is `none`, `fresh` or `locked`."""
        # With this seed no gradient is a sum that almost cancels: of such a sum float32 has no digits left.
        generator = torch.Generator().manual_seed(3_000_000 + 1000 * T + 100 * B + 10 * H + E)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(shape, generator=generator)).double()

        weights = {
            name: normal(*shape, scale=shape[-2] ** -0.5 if len(shape) > 1 and shape[-2] else 1.0)
            for name, shape in cell.shapes(Sizes(H, E, rounds)).items()
        }
        inputs = torch.randint(0, E, (T, B), generator=generator) if ids else normal(T, B, E)
        state = tuple(normal(B, H) for _ in cell.states)
        steps = {"none": 0, "fresh": T, "locked": 1}[dropout]
        mask = torch.rand(steps, B, H, generator=generator).lt(0.8).double() * 1.25 if steps else None
        where = torch.rand(T, B, generator=generator).lt(0.2) if resets else None
        upstream = (normal(T, B, H), *(normal(B, H) for _ in cell.states))
        return cls(cell, weights, inputs, state, mask, where, upstream)

    def float(self) -> Case:
        """The same in float32."""

        def single(tensor: Tensor | None) -> Any:
            return tensor.float() if tensor is not None and tensor.is_floating_point() else tensor

        weights = {name: single(weight) for name, weight in self.weights.items()}
        state, upstream = (tuple(map(single, tensors)) for tensors in (self.state, self.upstream))
        return Case(self.cell, weights, single(self.inputs), state, single(self.mask), self.resets, upstream)

    def results(self, backend: Any = None, present: tuple[int, ...] | None = None) -> dict[str, Tensor]:
        """Outputs and gradients by name, of a backend or, without one, of the equations.

        Args:
            backend: the backend.
            present: the outputs that have an upstream gradient; None is all.
        """
        given = {
            **self.weights,
            **{f"state {n}": part for n, part in zip(self.cell.states, self.state, strict=True)},
        }
        if self.inputs.is_floating_point():
            given["inputs"] = self.inputs
        given = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
        if backend is not None:
            outputs = LayerFunction.apply(backend, self, list(given), *given.values())  # type: ignore[no-untyped-call]
        else:
            weights = {name: given[name] for name in self.weights}
            state = tuple(given[f"state {name}"] for name in self.cell.states)
            outputs = layer(self.cell, weights, given.get("inputs", self.inputs), state, self.mask, self.resets)
        chosen = range(len(outputs)) if present is None else present
        gradients = torch.autograd.grad(
            [outputs[k] for k in chosen],
            list(given.values()),
            [self.upstream[k] for k in chosen],
            allow_unused=True,
            materialize_grads=True,
        )
        named = zip(("h", *(f"last {name}" for name in self.cell.states)), outputs, strict=True)
        return {**dict(named), **{f"d {name}": g for name, g in zip(given, gradients, strict=True)}}


def check_close(made: Mapping[str, Tensor], right: Mapping[str, Tensor], tolerance: float) -> None:
    """Compare results by name: the norm of the difference, relative to that of the right one; zeros are exact."""
    assert made.keys() == right.keys()
    for name, b in right.items():
        assert made[name].shape == b.shape, name
        assert (made[name].double() - b).norm() <= tolerance * b.norm(), name
