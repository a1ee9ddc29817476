"""One training step: forward, backward, clipping and Adam, called explicitly.

(The contract; what is behind it is being rewritten.)
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.network.captured import capture
from grimmgen.network.model import LanguageModel, State
from grimmgen.network.optimiser import AdamW
from grimmgen.text.batches import Window


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
        """Whether the loss and the norm are finite; if not, no weight was changed."""
        return math.isfinite(self.loss) and math.isfinite(self.gradient_norm)


class Reducer(Protocol):
    """Averages gradients over several processes (`grimmgen.training.distributed`)."""

    def begin(self, tensor: Tensor) -> None:
        """Begin to average a tensor over all processes, in place, in the background."""

    def finish(self) -> None:
        """Wait for all that has begun."""


class TrainStep:
    """One training step of a model, recorded or captured where the backend can do that.

    Args:
        model: on any device.
        optimiser: of its weights.
        precision: of the matrix products.
        rows: the batch rows of this process; None is all.
        reducer: averages the loss and the gradients over several processes; None if there is one.
        capture: record the step to be replayed, where that is possible.

    Attributes:
        description: what computes the step, in words: `native AVX2, 2 threads`, `Triton, CUDA graph`.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimiser: AdamW,
        precision: Products,
        rows: slice | None = None,
        reducer: Reducer | None = None,
        capture: bool = True,
    ) -> None:
        self._model, self._optimiser, self._precision = model, optimiser, precision
        self._rows, self._reducer = rows, reducer
        self._generator = torch.Generator(model.device)
        self._captured, note = None, ""
        if capture and reducer is None:
            self._captured, note = _capture(model, optimiser, self._generator, precision)
        if reducer is not None:
            for weight in model.parameters():
                weight.register_post_accumulate_grad_hook(lambda w: reducer.begin(w.grad))
        self.description = model.kernel(precision) + note

    def __call__(self, window: Window, state: State, learning_rate: float, random_seed: int) -> StepResult:
        """Learn from a window.

        Args:
            window: of the rows of this process.
            state: before its first time step, of the same rows.
            learning_rate: of this step.
            random_seed: all dropout masks follow from it.
        """
        self._generator.manual_seed(random_seed)
        if self._captured is not None and self._captured.fits(window):
            return StepResult(*self._captured.update(window, state, learning_rate))
        self._optimiser.zero_gradient()
        with self._model.left_alone():
            loss, state = self._model.loss(window, state, self._generator, self._precision, self._rows)
            loss.backward()
            loss = loss.detach()
            if self._reducer is not None:
                loss = loss.clone()
                self._reducer.begin(loss)
                self._reducer.finish()
            norm = self._optimiser.norm()
        result = StepResult(loss.item(), norm, state)
        if result.finite:
            self._optimiser.step(learning_rate, self._model.configuration.clip, norm)
        return result


_capture = capture
