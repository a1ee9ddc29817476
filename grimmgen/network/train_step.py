"""One training step: forward, backward, clipping and Adam, called explicitly; no automatic differentiation.

`GradientStep` computes `gradients` for windows of one shape, recorded as a program of the compiled kernels where the
backend can do that; `TrainStep` adds clipping and Adam. On a GPU all of a training step is one CUDA graph.

    T  time steps    B  batch rows
"""

from __future__ import annotations

import math
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.gradients import LossGradients, Reducer, gradients
from grimmgen.network.model import Dropout, Inputs, LanguageModel, State, mask_count
from grimmgen.network.optimiser import AdamW, clip_scale
from grimmgen.text.batches import Window

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend
    from grimmgen.network.backends.cpu.backend import CPUBackend
    from grimmgen.network.backends.cpu.program import Program


class GradientStep:
    """`gradients` for windows of one shape, recorded where the backend can do that.

    Args:
        model: its weights may change between calls, in place.
        backend: computes.
        shape: T and B of the windows that are recorded; others are computed eagerly. None records nothing.
        dropout: whether to draw dropout masks.
        rows: the batch rows of this process; None is all.
        reducer: averages the gradients over several processes; with one nothing is recorded.
        scored: whether `hidden` and `output_weight` of the results are read, too, in place of the norm; windows of
            few tokens are then computed as such (`short` in `LanguageModel.forward`).

    Attributes:
        program: the recorded program; None if windows are computed eagerly.
        results: the tensors that the program fills in.
        note: suffix of the backend's description: why recording failed; empty if it did not.
    """

    def __init__(
        self,
        model: LanguageModel,
        backend: Backend,
        shape: tuple[int, int] | None,
        dropout: bool = True,
        rows: slice | None = None,
        reducer: Reducer | None = None,
        scored: bool = False,
    ) -> None:
        self._model, self._backend, self._dropout = model, backend, dropout
        self._rows, self._reducer, self._scored = rows, reducer, scored
        self._short = scored and shape is not None and math.prod(shape) < model.vocabulary_size
        self._seeds = torch.zeros(mask_count(model.configuration), dtype=torch.int64, device=model.device)
        self.program: Program | None = None
        self.results: LossGradients | None = None
        self.note = ""
        if shape is not None and reducer is None and not isinstance(backend, ReferenceBackend):
            try:
                self._record(backend, shape)
            except RuntimeError as error:  # PyTorch's, where the memory does not suffice
                self.forget(error)

    def forget(self, error: RuntimeError) -> None:
        """Compute eagerly from now on, and note why."""
        self.program = self.results = None
        self.note = f", not recorded ({str(error).partition(chr(10))[0]})"

    def _record(self, backend: CPUBackend, shape: tuple[int, int]) -> None:
        ids, targets = torch.zeros(2, *shape, dtype=torch.int64)
        resets = torch.zeros(shape, dtype=torch.bool)
        self._window = ids.numpy(), targets.numpy(), resets.numpy()
        state = self._model.zero_state(shape[1])
        inputs = Inputs(ids, targets, resets if self._model.configuration.reset_state else None)
        with backend.recording() as program:
            masks = self._masks(shape[1])
            computed = gradients(self._model, backend, inputs, state, masks, short=self._short)
            for source, target in zip(computed.state, state, strict=True):
                backend.copy(source, target)
            if not self._scored:
                self._squares = backend.squares(computed.gradients.values())
        kept = [computed.hidden, computed.output_weight] if self._scored else []
        program.finish([computed.loss, *computed.gradients.values(), *kept])
        self.program, self.results = program, computed._replace(state=state)

    def __call__(self, window: Window, state: State, seeds: NDArray[np.int64] | None = None) -> LossGradients:
        """The gradients of a window; the next call may overwrite them.

        Args:
            window: of the rows of this process.
            state: before its first time step.
            seeds: of the dropout masks; None without dropout.
        """
        if seeds is not None:
            self._seeds.copy_(torch.from_numpy(seeds))
        if self.program is None or self.results is None or window.inputs.shape != self._window[0].shape:
            masks, inputs = self._masks(self._model.configuration.batch_size), self._model.inputs(window)
            with self._backend.threads():
                return gradients(self._model, self._backend, inputs, state, masks, self._reducer, self._short)
        for place, part in zip(self._window, (window.inputs, window.targets, window.starts), strict=True):
            place[...] = part
        if state is not self.results.state:
            for target, source in zip(self.results.state, state, strict=True):
                target.copy_(source)
        self.program()
        return self.results

    def norm(self, computed: LossGradients) -> float:
        """The norm of all gradients that the last call returned."""
        if computed is self.results:
            from grimmgen.network.backends.cpu.backend import norm_of

            return norm_of(self._squares)
        return float(self._backend.norm(computed.gradients.values()))

    def _masks(self, batch_size: int) -> Dropout | None:
        return Dropout(self._backend, self._seeds, batch_size, self._rows) if self._dropout else None


class StepResult(NamedTuple):
    """What one training step returns.

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
        """Whether the loss and the norm are finite; if not, no weight was changed."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class TrainStep:
    """One training step of a model, recorded or captured where the backend can do that.

    Args:
        model: on any device.
        optimiser: of its weights.
        precision: of the matrix products.
        rows: the batch rows of this process; None is all.
        reducer: averages the loss and the gradients over several processes; None for a single process.
        record: record or capture the step for windows of the configuration's shape, where that is possible.
        kernels: False computes with PyTorch's operations in spite of kernels.

    Attributes:
        backend: what computes the step: `native AVX2`, `Triton`, `PyTorch`.
        precision: of the matrix products.
        description: both in words, with the number of threads: `native AVX2, 2 threads`, `Triton, CUDA graph`.

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
        kernels: bool = True,
    ) -> None:
        self._model, self._optimiser = model, optimiser
        self._backend = model.backend(precision, kernels)
        options = model.configuration
        shape = (options.unroll, options.batch_size) if record and reducer is None else None
        self._gradients = GradientStep(model, self._backend, shape, True, rows, reducer)
        self._update: Program | None = None
        self._graph: Any = None
        if self._gradients.results is not None:
            try:
                self._record_update(self._backend, self._gradients.results.gradients)
            except RuntimeError as error:  # PyTorch's, where the memory does not suffice
                self._gradients.forget(error)
        note = self._gradients.note
        if shape is not None and model.device.type == "cuda":
            from grimmgen.network.backends.cuda.graph import capture

            self._graph, note = capture(model, optimiser, self._backend, shape)
        self.backend, self.precision = self._backend.name, precision
        self.description = self._backend.description + note

    def __call__(self, window: Window, state: State, learning_rate: float, random_seed: int) -> StepResult:
        """Update the weights on a window.

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
        computed = self._gradients(window, state, seeds)
        norm = self._gradients.norm(computed)
        result = StepResult(computed.loss.item(), norm, computed.state)
        if result.finite:
            scale = clip_scale(self._model.configuration.clip, norm)
            numbers = [scale, *self._optimiser.advance(learning_rate)]
            if computed is self._gradients.results and self._update is not None:
                self._numbers[:] = array("f", numbers)
                self._update()
            else:
                self._backend.adam(self._optimiser.tensors(computed.gradients), numbers)
        return result

    def _record_update(self, backend: Any, found: dict[str, Tensor]) -> None:
        """Record the update as a program of its own, which is not run if the gradient is not finite."""
        self._numbers = array("f", bytes(32))
        with backend.recording() as program:
            backend.adam(self._optimiser.tensors(found), self._numbers)
        program.finish()
        self._update = program
