"""One training step: forward, backward, clipping and Adam, called explicitly; no automatic differentiation.

`gradients` is the forward and the backward pass, written once. It runs eagerly on every backend, is recorded as a
program of the compiled kernels on a CPU (`GradientStep`), and is captured as part of a CUDA graph on a GPU. `TrainStep`
adds clipping and Adam.

    T  time steps    B  batch rows
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.model import Dropout, Inputs, LanguageModel, State, mask_count
from grimmgen.network.optimiser import AdamW, clip_scale
from grimmgen.text.batches import Window

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend
    from grimmgen.network.backends.cpu.backend import CPUBackend


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
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    state: State


def gradients(
    model: LanguageModel,
    backend: Backend,
    inputs: Inputs,
    state: State,
    dropout: Dropout | None = None,
    reducer: Reducer | None = None,
) -> LossGradients:
    """The loss of a window, its gradients by all weights, and the state after the window.

    Args:
        model: the model.
        backend: computes.
        inputs: the window.
        state: before its first time step; no gradient flows into it (truncated back-propagation through time).
        dropout: the masks; None is no dropout.
        reducer: averages the loss and each gradient as soon as it is complete.
    """
    done = model.forward(backend, inputs.ids, state, inputs.resets, dropout)
    bias = model.weights_by_name["output.bias"]
    loss, d_hidden, d_weight, d_bias = backend.cross_entropy(
        done.hidden, done.output_weight, bias, inputs.targets.view(-1)
    )
    ready = reducer.begin if reducer else lambda _: None
    found = model.backward(backend, done, inputs.ids, d_hidden, d_weight, d_bias, ready)
    if reducer:
        reducer.begin(loss)
        reducer.finish()
    return LossGradients(loss, found, done.state)


class GradientStep:
    """`gradients` for windows of one shape, without dropout or with it, recorded where the backend can do that.

    Args:
        model: whose weights may change between calls, in place.
        backend: computes.
        shape: T and B of the windows that are recorded; others are computed eagerly.
        dropout: whether to draw dropout masks.
        rows: the batch rows of this process; None is all.
        reducer: averages the gradients over several processes; with one nothing is recorded.

    Attributes:
        program: the recorded program; None if there is none.
        note: why nothing is recorded where it could be.
    """

    def __init__(
        self,
        model: LanguageModel,
        backend: Backend,
        shape: tuple[int, int] | None,
        dropout: bool = True,
        rows: slice | None = None,
        reducer: Reducer | None = None,
    ) -> None:
        self._model, self._backend, self._dropout = model, backend, dropout
        self._rows, self._reducer = rows, reducer
        self._seeds = torch.zeros(mask_count(model.configuration), dtype=torch.int64, device=model.device)
        self.program: Any = None
        self.squares: array[float] | None = None
        self.note = ""
        if (
            shape is None
            or reducer is not None
            or isinstance(backend, ReferenceBackend)
            or model.device.type != "cpu"
        ):
            return
        try:
            self._record(backend, shape)
        except RuntimeError as error:  # PyTorch's, where the memory does not suffice
            self.give_up(error)

    def give_up(self, error: RuntimeError) -> None:
        """Compute eagerly from now on, and note why."""
        self.program, self.note = None, f", not recorded ({str(error).partition(chr(10))[0]})"

    def _record(self, backend: CPUBackend, shape: tuple[int, int]) -> None:
        ids, targets = torch.zeros(2, *shape, dtype=torch.int64)
        resets = torch.zeros(shape, dtype=torch.bool)
        self._window = ids.numpy(), targets.numpy(), resets.numpy()
        self._state = self._model.zero_state(shape[1])
        inputs = Inputs(ids, targets, resets if self._model.configuration.reset_state else None)
        with backend.recording() as program:
            made = gradients(self._model, backend, inputs, self._state, self._masks(shape[1]))
            for source, target in zip(made.state, self._state, strict=True):
                backend.copy(source, target)
            self.squares = backend.squares(made.gradients.values())
        program.finish([made.loss, *made.gradients.values()])
        self._made = LossGradients(made.loss, made.gradients, self._state)
        self.program = program

    def fits(self, window: Window) -> bool:
        """Whether a window has the shape that was recorded."""
        return self.program is not None and window.inputs.shape == self._window[0].shape

    def __call__(self, window: Window, state: State, seeds: np.ndarray[Any, Any] | None = None) -> LossGradients:
        """The gradients of a window; the next call may overwrite what is returned.

        Args:
            window: of the rows of this process.
            state: before its first time step.
            seeds: of the dropout masks, int64; None without dropout.
        """
        if seeds is not None:
            self._seeds.copy_(torch.from_numpy(seeds))
        if not self.fits(window):
            masks = self._masks(self._model.configuration.batch_size)
            return gradients(self._model, self._backend, self._model.inputs(window), state, masks, self._reducer)
        for place, part in zip(self._window, (window.inputs, window.targets, window.starts), strict=True):
            place[...] = part
        if state is not self._state:
            for target, source in zip(self._state, state, strict=True):
                target.copy_(source)
        self.program()
        return self._made

    def _masks(self, batch_size: int) -> Dropout | None:
        return Dropout(self._backend, self._seeds, batch_size, self._rows) if self._dropout else None


class StepResult(NamedTuple):
    """What one training step gives.

    Attributes:
        loss: the mean over the window's T·B predictions, in nats.
        gradient_norm: before clipping.
        state: after the window; the next step may overwrite it.
    """

    loss: float
    gradient_norm: float
    state: State

    @property
    def finite(self) -> bool:
        """Whether the loss and the norm are finite; if not, no weight was changed on a CPU."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class TrainStep:
    """One training step of a model, recorded or captured where the backend can do that.

    Args:
        model: on any device.
        optimiser: of its weights.
        precision: of the matrix products.
        rows: the batch rows of this process; None is all.
        reducer: averages the loss and the gradients over several processes; None if there is one.
        record: record or capture the step for windows of the configuration's shape, where that is possible.

    Attributes:
        description: what computes the step, in words: `native AVX2, 2 threads`, `Triton, CUDA graph`.

    Raises:
        torch.OutOfMemoryError: the network and its windows do not fit on the device.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimiser: AdamW,
        precision: Products,
        rows: slice | None = None,
        reducer: Reducer | None = None,
        record: bool = True,
    ) -> None:
        self._model, self._optimiser = model, optimiser
        self._backend = model.backend(precision)
        options = model.configuration
        shape = (options.unroll, options.batch_size) if record and reducer is None else None
        self._gradients = GradientStep(model, self._backend, shape, True, rows, reducer)
        self._update: Any = None
        self._graph: Any = None
        if self._gradients.program is not None:
            try:
                self._record_update(self._backend)  # type: ignore[arg-type]
            except RuntimeError as error:  # PyTorch's, where the memory does not suffice
                self._gradients.give_up(error)
        note = self._gradients.note
        if shape is not None and model.device.type == "cuda":
            from grimmgen.network.backends.cuda.graph import capture

            self._graph, note = capture(model, optimiser, self._backend, shape)
        self.description = self._backend.description + note

    def __call__(self, window: Window, state: State, learning_rate: float, random_seed: int) -> StepResult:
        """Learn from a window.

        Args:
            window: of the rows of this process.
            state: before its first time step, of the same rows.
            learning_rate: of this step.
            random_seed: all dropout masks follow from it.
        """
        masks = mask_count(self._model.configuration)
        seeds = np.random.SeedSequence(random_seed).generate_state(masks, np.uint64).astype(np.int64)
        if self._graph is not None and self._graph.fits(window):
            return StepResult(*self._graph(window, state, learning_rate, seeds))
        with _threads_for(self._backend):
            loss, found, state = self._gradients(window, state, seeds)
            recorded = self._gradients.fits(window)
            norm = self._norm(found, recorded)
            result = StepResult(loss.item(), norm, state)
            if result.finite:
                scale = clip_scale(self._model.configuration.clip, norm)
                numbers = [scale, *self._optimiser.advance(learning_rate)]
                if recorded and self._update is not None:
                    self._numbers[:] = array("f", numbers)
                    self._update()
                else:
                    self._backend.adam(self._optimiser.tensors(found), numbers)
        return result

    def _norm(self, found: dict[str, Tensor], recorded: bool) -> float:
        if recorded and self._gradients.squares is not None:
            from grimmgen.network.backends.cpu.backend import norm_of

            return norm_of(self._gradients.squares)
        return float(self._backend.norm(found.values()))

    def _record_update(self, backend: CPUBackend) -> None:
        """A program by itself: nothing is to be learnt from a gradient that is not finite."""
        self._numbers = array("f", bytes(32))
        with backend.recording() as program:
            backend.adam(self._optimiser.tensors(self._gradients._made.gradients), self._numbers)
        program.finish()
        self._update = program


def _threads_for(backend: Backend) -> Any:
    """A context in which the compiled kernels get all threads."""
    return backend.threads()
