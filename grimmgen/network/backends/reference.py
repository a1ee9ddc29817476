"""The reference backend: every operation of a training step in plain PyTorch, on any device and in any float type.

Each operation has its backward pass beside it, written by hand; there is no automatic differentiation. The other
backends have the same operations under the same names (`grimmgen.network.backends.Backend`) and are tested against
these, as these are tested against autograd.

    T  time steps    B  batch rows    H  hidden units    G  gates    V  vocabulary size    N  predictions, T·B
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.cells import CellSpec, Gradients

# Rows of logits made at a time: large enough for a fast matrix product, small enough for the second-level cache.
_BLOCK = 640


class Layer(NamedTuple):
    """The forward pass of a layer of cells over a window.

    Attributes:
        h: hidden states, [T, B, H].
        state: each state after the window, [B, H].
        saved: what the backward pass needs; of no other use.
    """

    h: Tensor
    state: tuple[Tensor, ...]
    saved: Any


class LayerGradients(NamedTuple):
    """The backward pass of a layer of cells.

    Attributes:
        inputs: by a dense input, [T, B, inputs]; None for ids.
        weights: by each weight of the layer, by its name.
        state: by each state before the window, [B, H].
    """

    inputs: Tensor | None
    weights: dict[str, Tensor]
    state: tuple[Tensor, ...]


class _Saved(NamedTuple):
    inputs: Tensor  # ids [T, B] or dense [T, B, inputs]
    weights: Mapping[str, Tensor]
    states: list[tuple[Tensor, ...]]  # that entered each time step, after resets
    steps: list[Any]  # what the pointwise function and the pre-step hook saved at each time step
    mask: Tensor | None  # [T, B, H]
    keep: list[Tensor | None]  # [B, 1] of each time step: 0 where the state was reset, else 1


class ReferenceBackend:
    """Operations on tensors where they are.

    Args:
        precision: of the matrix products: in `bf16` both factors are rounded to bfloat16 and sums are float32.

    Attributes:
        name: what computes.
        description: the same with the precision, and why no kernels do.
    """

    name = "PyTorch"

    def __init__(self, precision: Products = "fp32", reason: str = "") -> None:
        self.precision = precision
        rounded = " bf16" if precision == "bf16" else ""
        self.description = f"PyTorch{rounded} ({reason})" if reason else f"PyTorch{rounded}"

    # --- what the pointwise functions of a cell need (`grimmgen.network.cells.Ops`) --------------------------

    sigmoid = staticmethod(torch.sigmoid)
    tanh = staticmethod(torch.tanh)
    stack = staticmethod(torch.stack)

    @staticmethod
    def split(x: Tensor, parts: int) -> Sequence[Tensor]:
        """The parts of a tensor side by side in its columns."""
        return x.chunk(parts, dim=-1)

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """The product of two matrices, [N, K] and [K, M]: [N, M]."""
        if self.precision == "bf16":
            if a.device.type == "cuda":
                return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
            # The product of two bfloat16 numbers is exact in float32.
            a, b = a.bfloat16().to(a.dtype), b.bfloat16().to(b.dtype)
        return torch.mm(a, b)

    def threads(self) -> AbstractContextManager[None]:
        """A context for training steps; PyTorch keeps its threads."""
        return nullcontext()

    # --- a layer of cells ------------------------------------------------------------------------------------

    def layer(
        self,
        cell: CellSpec,
        weights: Mapping[str, Tensor],
        inputs: Tensor,
        state: Sequence[Tensor],
        mask: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> Layer:
        """Run a layer of cells through a window.

        Args:
            cell: the cell.
            weights: of the layer, named and shaped as `CellSpec.shapes` says.
            inputs: ids [T, B] int64 of rows of the input weight (a one-hot input), or a dense input [T, B, inputs].
            state: each state before the window, [B, H].
            mask: dropout mask of the hidden state, applied at each time step before the next one receives it,
                [T, B, H] or, one for all time steps, [1, B, H]; None is no dropout.
            resets: where the state is reset to zero before the time step, [T, B] bool; None is nowhere.
        """
        T, B = inputs.shape[:2]
        x = None if cell.pre_step else self._project(inputs, weights).view(T, B, -1)
        mask = None if mask is None else mask.expand(T, -1, -1)
        saved = _Saved(inputs, weights, [], [], mask, [])
        states, outputs = tuple(state), []
        for t in range(T):
            keep = None if resets is None or not resets[t].any() else (~resets[t]).to(states[0].dtype)[:, None]
            if keep is not None:
                states = tuple(part * keep for part in states)
            saved.states.append(states)
            saved.keep.append(keep)
            h, hook = states[0], None
            if cell.pre_step:
                x_in, h, hook = cell.pre_step.forward(self, inputs[t], h, weights)
                x_t = self.linear(x_in, weights["input_weight"], weights["bias"])
                hook = (hook, x_in, h)
            else:
                assert x is not None
                x_t = x[t]
            a_t = self.matmul(h, weights["recurrent_weight"]) if cell.recurrent_product else None
            states, pointwise = cell.pointwise_forward(self, x_t, a_t, (h, *states[1:]), weights)
            if mask is not None:
                states = (states[0] * mask[t], *states[1:])
            saved.steps.append((pointwise, hook))
            outputs.append(states[0])
        return Layer(torch.stack(outputs), states, saved)

    def layer_backward(
        self, cell: CellSpec, saved: _Saved, d_h: Tensor, d_state: Sequence[Tensor | None] | None = None
    ) -> LayerGradients:
        """Back-propagate through the window of a layer.

        Args:
            cell: the cell.
            saved: of the forward pass.
            d_h: the gradient by the hidden states, [T, B, H].
            d_state: by each state after the window, [B, H]; None is zero.
        """
        weights, T = saved.weights, len(saved.steps)
        zeros = torch.zeros_like(d_h[0])
        d_states = tuple(zeros if part is None else part for part in d_state or [None] * len(cell.states))
        d_weights = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        d_x = d_h.new_empty(*d_h.shape[:2], weights["input_weight"].shape[1])
        d_a = d_x  # one tensor, unless the cell has a gradient of its own by the recurrent product
        d_hooked: list[Tensor] = [zeros] * T
        for t in reversed(range(T)):
            d_out = d_states[0] + d_h[t]
            if saved.mask is not None:
                d_out = d_out * saved.mask[t]
            pointwise, hook = saved.steps[t]
            entered = saved.states[t] if hook is None else (hook[2], *saved.states[t][1:])
            found: Gradients = cell.pointwise_backward(self, pointwise, entered, weights, (d_out, *d_states[1:]))
            torch.cat(found.x, dim=1, out=d_x[t])
            d_states = found.state
            if found.recurrent is not None:
                if found.recurrent is not found.x:
                    d_a = torch.empty_like(d_x) if d_a is d_x else d_a
                    torch.cat(found.recurrent, dim=1, out=d_a[t])
                d_states = (d_states[0] + self.matmul(d_a[t], weights["recurrent_weight"].t()), *d_states[1:])
            for name, gradient in found.weights.items():
                d_weights[name] += gradient.sum(dim=-2)
            if cell.pre_step:
                hook_saved, x_in, h = hook
                d_x_in, d_input, d_bias = self.linear_backward(x_in, weights["input_weight"], d_x[t])
                d_weights["input_weight"] += d_input
                d_weights["bias"] += d_bias
                d_weights["recurrent_weight"] += self.matmul(h.t(), d_a[t])
                d_hooked[t], d_hidden, d_hook = cell.pre_step.backward(
                    self, hook_saved, weights, d_x_in, d_states[0]
                )
                d_states = (d_hidden, *d_states[1:])
                for name, gradient in d_hook.items():
                    d_weights[name] += gradient
            if (keep := saved.keep[t]) is not None:
                d_states = tuple(part * keep for part in d_states)
        if cell.pre_step:
            return LayerGradients(torch.stack(d_hooked), d_weights, d_states)
        if cell.recurrent_product:
            h_in = torch.stack([states[0] for states in saved.states])
            d_weights["recurrent_weight"] = self.matmul(h_in.flatten(0, 1).t(), d_a.flatten(0, 1))
        rows = d_x.flatten(0, 1)
        if saved.inputs.dim() == 2:
            d_weights["input_weight"] = self.lookup_backward(saved.inputs, d_x, len(weights["input_weight"]))
            d_weights["bias"] = rows.sum(dim=0)
            return LayerGradients(None, d_weights, d_states)
        d_inputs, d_weights["input_weight"], d_weights["bias"] = self.linear_backward(
            saved.inputs.flatten(0, 1), weights["input_weight"], rows
        )
        return LayerGradients(d_inputs.view(saved.inputs.shape), d_weights, d_states)

    def _project(self, inputs: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
        """What the input and the bias add to each gate, [T·B, GH]."""
        if inputs.dim() == 2:
            # The product of a one-hot input with a matrix is a look-up of the matrix's rows.
            return self.lookup(weights["input_weight"], inputs.flatten()).add_(weights["bias"])
        return self.linear(inputs.flatten(0, 1), weights["input_weight"], weights["bias"])

    # --- layers without cells --------------------------------------------------------------------------------

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """X W + b: rows [N, K] times a weight [K, M], plus a bias [M] if there is one, [N, M]."""
        y = self.matmul(x, weight)
        return y if bias is None else y.add_(bias)

    def linear_backward(self, x: Tensor, weight: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of `linear` by x, by the weight and by the bias."""
        return self.matmul(d_y, weight.t()), self.matmul(x.t(), d_y), d_y.sum(dim=0)

    def lookup(self, table: Tensor, ids: Tensor) -> Tensor:
        """The rows [V, E] of a table at ids […], […, E]."""
        return torch.nn.functional.embedding(ids, table)

    def lookup_backward(self, ids: Tensor, d_rows: Tensor, V: int) -> Tensor:
        """The gradient of `lookup` by the table, [V, E]: the sum of d_rows […, E] at each id."""
        return d_rows.new_zeros(V, d_rows.shape[-1]).index_add_(0, ids.flatten(), d_rows.flatten(0, -2))

    def cross_entropy(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The loss of the softmax layer, and its gradients by hidden, weight and bias.

        With logits y = h W + b, p = softmax(y) and the target k of each of the N predictions (tutorial, "Softmax
        Classifier weights and biases"):

            (1)  nll     = -ln p_k
            (2)  ∂nll/∂y = p - onehot(k)

        The loss is the sum of nll over N, the number of rows with a target or without. The logits of a window are
        its largest array and are needed only for a moment: they are made a block at a time.

        Args:
            hidden: h, [N, H].
            weight: W, [H, V].
            bias: b, [V].
            targets: k, [N] int64; a row with a negative one has no loss.
        """
        N = len(hidden)
        total = hidden.new_zeros(())
        d_hidden, d_weight, d_bias = torch.empty_like(hidden), torch.zeros_like(weight), torch.zeros_like(bias)
        for block in _blocks(N):
            h, k = hidden[block], targets[block]
            losses, d_y = self._losses(h, weight, bias, k)  # (1)
            total += losses.sum()
            d_y.scatter_add_(1, k.clamp(min=0).unsqueeze(1), d_y.new_full((len(k), 1), -1.0))  # (2)
            d_y.masked_fill_((k < 0).unsqueeze(1), 0.0).div_(N)
            d_hidden[block] = self.matmul(d_y, weight.t())
            d_weight += self.matmul(h.t(), d_y)
            d_bias += d_y.sum(dim=0)
        return total / N, d_hidden, d_weight, d_bias

    def negative_log_likelihood(self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """The loss of each prediction in nats, [N]; arguments as in `cross_entropy`."""
        losses = [self._losses(hidden[b], weight, bias, targets[b])[0] for b in _blocks(len(hidden))]
        return torch.cat(losses)

    def _losses(self, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses [n] of a block of rows, and its probabilities [n, V]."""
        # The logarithm first: it stays finite where a probability underflows.
        log_p = torch.log_softmax(self.linear(hidden, weight, bias), dim=1)
        losses = -log_p.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
        return losses.masked_fill(targets < 0, 0.0), log_p.exp_()

    # --- elementwise operations ------------------------------------------------------------------------------

    def multiply(self, a: Tensor, b: Tensor) -> Tensor:
        """A b, where b [R, …] or [1, …] has the shape of a or is one row for all."""
        return a * b

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        """A + b, of one shape."""
        return a + b

    def copy(self, source: Tensor, target: Tensor) -> None:
        """Write the source over the target, of one shape."""
        target.copy_(source)

    def dropout_mask(self, shape: Sequence[int], dropout: float, seed: Tensor) -> Tensor:
        """A dropout mask of zeros and of 1 / (1 - dropout), float32.

        Whether an element is kept is decided by a hash of its index and the seed (Wellons' lowbias32), so that every
        backend draws the same mask.

        Args:
            shape: of the mask; fewer than 2³² elements.
            dropout: the probability of a zero, to within 2⁻³².
            seed: int64, [].
        """
        threshold, scale = dropout_threshold(dropout)
        count = torch.Size(shape).numel()
        first, second = 0x7FEB352D, 0x846CA68B - 2**32  # the factors as int32, whose products wrap
        x = torch.arange(count, device=seed.device).to(torch.int32).bitwise_xor_(seed.to(torch.int32))
        _xor_shifted(x, 16).mul_(first)
        _xor_shifted(x, 15).bitwise_xor_((seed >> 32).to(torch.int32)).mul_(second)
        _xor_shifted(x, 16).mul_(first)
        _xor_shifted(x, 15).mul_(second)
        _xor_shifted(x, 16)
        # Flipping the sign bit turns the order of unsigned numbers into that of signed ones.
        return (x.bitwise_xor_(-(2**31)) < threshold - 2**31).to(torch.float32).mul_(scale).view(*shape)

    # --- the optimiser ---------------------------------------------------------------------------------------

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """The norm of all gradients together, float64 []."""
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return norm

    def adam(self, tensors: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], numbers: Sequence[float]) -> None:
        """One step of Adam in place; the equations are those of `grimmgen.network.optimiser`.

        Args:
            tensors: weight, gradient, m and v, for each weight.
            numbers: the scale of the gradient, then the seven numbers of `AdamW.advance`.
        """
        scale, share, beta2, share2, kept, pace, root, epsilon = numbers
        for weight, gradient, m, v in tensors:
            g = gradient * scale  # (1)
            m.lerp_(g, share)  # (2)
            v.mul_(beta2).addcmul_(g, g, value=share2)
            weight.mul_(kept)  # (3)
            weight.addcdiv_(m, (v.sqrt() * root).add_(epsilon), value=-pace)  # (4)


def dropout_threshold(dropout: float) -> tuple[int, float]:
    """What a 32-bit hash has to be below for an element to be kept, and the scale that makes the mask's mean 1."""
    threshold = max(1, min(round((1.0 - dropout) * 2**32), 2**32 - 1))
    return threshold, 2**32 / threshold


def _xor_shifted(x: Tensor, shift: int) -> Tensor:
    """X ^ x >> shift of unsigned 32-bit numbers, held in int32, in place."""
    return x.bitwise_xor_((x >> shift) & (0xFFFFFFFF >> shift))


def _blocks(rows: int) -> list[slice]:
    return [slice(begin, min(begin + _BLOCK, rows)) for begin in range(0, rows, _BLOCK)]
