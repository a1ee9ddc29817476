"""The forward and the backward pass of a training step, written once; no automatic differentiation.

`gradients` runs eagerly on every backend, is recorded as a program of the compiled kernels on a CPU
(`train_step.GradientStep`), and is captured as part of a CUDA graph on a GPU (`backends.cuda.graph`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch import Tensor

from grimmgen.network.model import Dropout, Inputs, LanguageModel, State

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend


class Reducer(Protocol):
    """Averages gradients over several processes (`grimmgen.training.distributed`)."""

    def begin(self, tensor: Tensor) -> None:
        """Begin to average a tensor over all processes, in place, in the background."""

    def finish(self) -> None:
        """Wait for all that has begun."""


class LossGradients(NamedTuple):
    """What a forward and a backward pass give.

    Attributes:
        loss: the mean over the window's T·B predictions, in nats, [].
        gradients: by the weights, by their names.
        state: after the window.
        hidden: what the softmax layer reads, [T·B, H], or projected, [T·B, E].
        output_weight: its weight, [H, V] or [E, V].
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    state: State
    hidden: Tensor
    output_weight: Tensor


def gradients(
    model: LanguageModel,
    backend: Backend,
    inputs: Inputs,
    state: State,
    dropout: Dropout | None = None,
    reducer: Reducer | None = None,
    short: bool = False,
) -> LossGradients:
    """The loss of a window, its gradients by all weights, and the state after the window.

    Args:
        model: the model.
        backend: computes.
        inputs: the window.
        state: before its first time step; no gradient flows into it (truncated back-propagation through time).
        dropout: the masks; None is no dropout.
        reducer: averages the loss and each gradient as soon as it is complete.
        short: whether the window has few tokens; see `LanguageModel.forward`.
    """
    done = model.forward(backend, inputs.ids, state, inputs.resets, dropout, short)
    bias = model.weights_by_name["output.bias"]
    loss, d_hidden, d_weight, d_bias = backend.cross_entropy(
        done.hidden, done.output_weight, bias, inputs.targets.view(-1)
    )
    ready = reducer.begin if reducer else lambda _: None
    found = model.backward(backend, done, inputs.ids, d_hidden, d_weight, d_bias, ready)
    if reducer:
        reducer.begin(loss)
        reducer.finish()
    return LossGradients(loss, found, done.state, done.hidden, done.output_weight)
