"""An update of training on a GPU as one CUDA graph: forward, backward, clipping and Adam, launched as one.

A small network's update is some hundred kernels of a few microseconds each, and to launch one takes as long.
Captured once, they are launched together, on the same memory each time: what changes between two updates (the
window, the state, the rate, the seed of dropout) is copied there before, and the loss is read when all is done.
The kernels are those of an update that is not captured, in the same order, so that weights are equal to the bit
either way.

Knows nothing of stories, epochs or files. Where there is no GPU nothing here is done.
"""

from __future__ import annotations

import torch

from grimmgen import kernels
from grimmgen.batches import Window
from grimmgen.configuration import Products
from grimmgen.model import LanguageModel, State
from grimmgen.optimiser import AdamW

# Updates before the capture: Triton compiles, libraries make their workspaces, and so on.
_WARM_UP = 3


def capture(
    model: LanguageModel, optimiser: AdamW, generator: torch.Generator, precision: Products
) -> tuple[CapturedUpdate | None, str]:
    """The update captured where that can be, and whether it is, in words to follow those on what computes.

    Raises:
        torch.OutOfMemoryError: the network and its windows do not fit.
    """
    if model.device.type != "cuda":
        return None, ""
    if not kernels.on_gpu(model.output.bias) or model.configuration.cell not in kernels.COMPILED:
        return None, ", no CUDA graph (PyTorch's steps look at where stories start)"
    try:
        return CapturedUpdate(model, optimiser, generator, precision), ", CUDA graph"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Triton's own errors are no RuntimeErrors. What is wrong with the kernels themselves is met at the first
        # update again, and ends the program there.
        return None, f", no CUDA graph ({str(error).partition(chr(10))[0]})"


class CapturedUpdate:
    """One update, captured; made without changing a weight or what the optimiser remembers.

    Args:
        model: on a GPU that Triton's kernels serve.
        optimiser: of its weights.
        generator: of dropout, on the same GPU. It is to be seeded before each update.
        precision: of the matrix products.

    Raises:
        RuntimeError: something in it cannot be captured.
    """

    def __init__(
        self, model: LanguageModel, optimiser: AdamW, generator: torch.Generator, precision: Products
    ) -> None:
        self._model, self._optimiser, self._generator, self._precision = model, optimiser, generator, precision
        options, device = model.configuration, model.device
        # Inputs, targets, starts. What is copied to the GPU from pinned memory waits for nothing.
        shape = (3, options.unroll, options.batch_size)
        self._next_window = torch.zeros(shape, dtype=torch.int32).pin_memory()
        self._window = self._next_window.to(device)
        # As in `AdamW.advance`, but so that nothing is learnt, and nothing forgotten.
        self._next_numbers = torch.tensor([options.clip, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0]).pin_memory()
        self._numbers = self._next_numbers.to(device)
        self._state = model.zero_state(options.batch_size)
        self._told = torch.zeros(2, dtype=torch.float64, device=device)
        here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UP):
                self._run()
        here.wait_stream(aside)
        # The graph has memory of its own, and its gradients there.
        optimiser.zero_gradient()
        self._graph = torch.cuda.CUDAGraph()
        self._graph.register_generator_state(generator)
        # The outer one: where the end of a capture raises, PyTorch leaves the other stream the current one.
        with torch.cuda.stream(here), torch.cuda.graph(self._graph, stream=aside):
            self._run()

    def fits(self, window: Window) -> bool:
        """Whether a window has the shape that was captured; of a text of less than B · T n-grams it is shorter."""
        return window.inputs.shape == self._window.shape[1:]

    def update(self, window: Window, state: State, rate: float) -> tuple[float, float, State]:
        """Learn from a window.

        Args:
            window: one that fits.
            state: before its first step.
            rate: the learning rate.

        Returns:
            The loss, the gradient's norm before it was clipped, and the state after the window, in memory that the
            next update overwrites. Where one of the first two is not finite the weights are of no more use.
        """
        for place, part in zip(self._next_window, (window.inputs, window.targets, window.starts), strict=True):
            place.copy_(torch.from_numpy(part))
        self._window.copy_(self._next_window, non_blocking=True)
        self._next_numbers.copy_(torch.tensor(self._optimiser.advance(rate, self._model.configuration.clip)))
        self._numbers.copy_(self._next_numbers, non_blocking=True)
        if state is not self._state:
            self._remember(state)
        self._graph.replay()
        loss, norm = self._told.tolist()
        return loss, norm, self._state

    def _run(self) -> None:
        """What is captured."""
        self._optimiser.zero_gradient()
        inputs, targets, starts = self._window.unbind()
        loss, after = self._model.loss_of(
            inputs.long(),
            targets.long(),
            starts.bool() if self._model.configuration.reset_state else None,
            self._state,
            self._generator,
            self._precision,
        )
        loss.backward()  # type: ignore[no-untyped-call]
        norm = self._optimiser.norm_there()
        self._optimiser.step_there(self._numbers, norm)
        self._remember(after)
        self._told[0], self._told[1] = loss.detach(), norm

    def _remember(self, state: State) -> None:
        self._state.h.copy_(state.h)
        self._state.c.copy_(state.c)
