"""A training step as a CUDA graph: forward, backward, clipping and Adam, launched together.

The step of a small network is some hundred kernels of a few microseconds each, and launching one takes as long.
The graph launches them together, on the same memory each time: what changes between two steps (the window, the
state, the learning rate, the seeds of dropout) is copied there before, and the loss is read at the end. The
operations are those of an eager step in the same order, so that both give the same bits.

    T  time steps    B  batch rows
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.network.backends.cuda.backend import CUDABackend
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Dropout, Inputs, LanguageModel, State, mask_count
from grimmgen.network.optimiser import AdamW
from grimmgen.text.batches import Window

if TYPE_CHECKING:
    from grimmgen.network.backends import Backend

# Eager steps before the capture: Triton compiles its kernels, libraries allocate their workspaces.
_WARM_UP = 3


def capture(
    model: LanguageModel, optimiser: AdamW, backend: Backend, shape: tuple[int, int]
) -> tuple[CUDAGraph | None, str]:
    """Capture the training step where that is possible.

    Args:
        model: on a GPU; its weights stay as they are.
        optimiser: of its weights; its state stays as it is.
        backend: that computes the step.
        shape: T and B of the windows.

    Returns:
        The graph, or None, and a note that completes the description of the backend.

    Raises:
        torch.OutOfMemoryError: the network and its windows do not fit.
    """
    if not isinstance(backend, CUDABackend):
        return None, ", no CUDA graph (PyTorch's recurrence waits for the GPU)"
    try:
        return CUDAGraph(model, optimiser, backend, shape), ", CUDA graph"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Triton's exceptions are not RuntimeErrors. The first eager step raises an error in the kernels again.
        return None, f", no CUDA graph ({str(error).partition(chr(10))[0]})"


class CUDAGraph:
    """One training step on the CUDA backend, captured for windows of one shape; see `capture` for the arguments.

    Raises:
        RuntimeError: something in it cannot be captured.
    """

    def __init__(
        self, model: LanguageModel, optimiser: AdamW, backend: CUDABackend, shape: tuple[int, int]
    ) -> None:
        self._model, self._optimiser, self._backend = model, optimiser, backend
        device = model.device
        # Ids, targets and resets. Copies from pinned memory do not wait for the GPU.
        self._host_window = torch.zeros((3, *shape), dtype=torch.int32).pin_memory()
        self._window = self._host_window.to(device)
        # The 8 numbers of Adam, float64, and the seeds. These numbers change neither weights nor moments.
        self._host_numbers = torch.zeros(8 + mask_count(model.configuration), dtype=torch.int64).pin_memory()
        unchanged = (model.configuration.clip, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0)
        self._host_numbers[:8].view(torch.float64).copy_(torch.tensor(unchanged, dtype=torch.float64))
        self._numbers = self._host_numbers.to(device)
        self._state = model.zero_state(shape[1])
        self._loss_and_norm = torch.zeros(2, dtype=torch.float64, device=device)
        current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP):
                self._step()
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # The outer context: where the end of a capture raises, PyTorch leaves the side stream the current one.
        with torch.cuda.stream(current), torch.cuda.graph(self._graph, stream=side):
            self._step()

    def fits(self, window: Window) -> bool:
        """Whether a window has the shape that was captured; the last one of a short text is shorter."""
        return bool(window.inputs.shape == self._window.shape[1:])

    def __call__(
        self, window: Window, state: State, learning_rate: float, seeds: NDArray[np.int64]
    ) -> tuple[float, float, State]:
        """Train on a window.

        Args:
            window: one that fits.
            state: before its first time step.
            learning_rate: of this step.
            seeds: of the dropout masks.

        Returns:
            The loss, the norm of the gradient before clipping, and the state after the window, which the next call
            overwrites. Unless the loss and the norm are finite, weights and optimiser are unchanged.
        """
        for target, part in zip(self._host_window, (window.inputs, window.targets, window.starts), strict=True):
            target.copy_(torch.from_numpy(part))
        numbers = (self._model.configuration.clip, *self._optimiser.advance(learning_rate))
        self._host_numbers[:8].view(torch.float64).copy_(torch.tensor(numbers, dtype=torch.float64))
        self._host_numbers[8:].copy_(torch.from_numpy(seeds))
        self._window.copy_(self._host_window, non_blocking=True)
        self._numbers.copy_(self._host_numbers, non_blocking=True)
        if state is not self._state:
            for place, source in zip(self._state, state, strict=True):
                place.copy_(source)
        self._graph.replay()
        loss, norm = self._loss_and_norm.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._optimiser.steps -= 1
        return loss, norm, self._state

    def _step(self) -> None:
        """The operations that are captured."""
        ids, targets, resets = self._window.unbind()
        reset_state = self._model.configuration.reset_state
        inputs = Inputs(ids.long(), targets.long(), resets.bool() if reset_state else None)
        dropout = Dropout(self._backend, self._numbers[8:], inputs.ids.shape[1])
        result = gradients(self._model, self._backend, inputs, self._state, dropout)
        self._loss_and_norm[0] = result.loss
        self._loss_and_norm[1] = self._backend.norm(result.gradients.values())
        numbers = self._numbers[:8].view(torch.float64)
        self._backend.adam(self._optimiser.tensors(result.gradients), numbers, self._loss_and_norm)
        for part, source in zip(self._state, result.state, strict=True):
            part.copy_(source)
