"""An update of training captured: forward, backward, clipping and Adam, done again as one.

A small network's update is some hundred operations of a few microseconds each, and to begin one takes as long.
Captured once, they are done together, on the same memory each time: what changes between two updates (the window,
the state, the rate, the seed of dropout) is copied there before, and the loss is read when all is done. On a GPU
that is a CUDA graph; on a CPU, a program of the compiled kernel's (`grimmgen.network.backends.cpu.recording`). The operations
are those of an update that is not captured, in the same order, so that weights are equal to the bit either way.

Knows nothing of stories, epochs or files.
"""

from __future__ import annotations

import math
from array import array
from typing import Protocol

import torch

from grimmgen.configuration import Products
from grimmgen.network import backends
from grimmgen.network.backends.cpu import native
from grimmgen.network.backends.cpu.recording import recording
from grimmgen.network.model import LanguageModel, State
from grimmgen.network.optimiser import AdamW, clipping
from grimmgen.text.batches import Window

# Updates before the capture: Triton compiles, libraries make their workspaces, and so on.
_WARM_UP = 3


class CapturedUpdate(Protocol):
    """One update, captured."""

    def fits(self, window: Window) -> bool:
        """Whether a window has the shape that was captured; of a text of less than B · T n-grams it is shorter."""

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


def capture(
    model: LanguageModel, optimiser: AdamW, generator: torch.Generator, precision: Products
) -> tuple[CapturedUpdate | None, str]:
    """The update captured where that can be, and whether it is, in words to follow those on what computes.

    Args:
        model: what learns; not a weight of it is changed.
        optimiser: of its weights; nor is what it remembers.
        generator: of dropout, on the same device. It is to be seeded before each update.
        precision: of the matrix products.

    Raises:
        torch.OutOfMemoryError: the network and its windows do not fit.
    """
    if model.device.type != "cuda":
        served = backends.compiled(model.output.bias, precision) is not None
        if not served or model.configuration.cell not in backends.COMPILED:
            return None, ""
    elif not backends.on_gpu(model.output.bias) or model.configuration.cell not in backends.COMPILED:
        return None, ", no CUDA graph (PyTorch's steps look at where stories start)"
    try:
        if model.device.type != "cuda":
            return RecordedUpdate(model, optimiser, generator, precision), ""
        return GraphedUpdate(model, optimiser, generator, precision), ", CUDA graph"
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # Triton's own errors are no RuntimeErrors; another version of PyTorch may do in other operations what this
        # one does; what is captured keeps more memory than what is not. What is wrong with the kernels themselves
        # is met at the first update again, and ends the program there.
        optimiser.zero_gradient()
        without = "no CUDA graph" if model.device.type == "cuda" else "not recorded"
        return None, f", {without} ({str(error).partition(chr(10))[0]})"


class RecordedUpdate(CapturedUpdate):
    """One update on a CPU, as a program of the compiled kernel's; takes what `capture` takes.

    It is done by as many threads as there were when it was recorded. What it works on keeps its place in memory,
    like that of an update which frees nothing before its end.

    Raises:
        NotImplementedError: something in it cannot be recorded.
    """

    def __init__(
        self, model: LanguageModel, optimiser: AdamW, generator: torch.Generator, precision: Products
    ) -> None:
        self._model, self._optimiser = model, optimiser
        options, instructions = model.configuration, backends.compiled(model.output.bias)
        assert instructions is not None
        shape = options.unroll, options.batch_size
        inputs, targets = torch.zeros(2, *shape, dtype=torch.int64)
        starts = torch.zeros(shape, dtype=torch.bool)
        self._window = inputs.numpy(), targets.numpy(), starts.numpy()
        self._state = model.zero_state(options.batch_size)
        optimiser.zero_gradient()
        with model.left_alone():
            with recording(instructions) as self._gradient:
                loss, after = model.loss_of(
                    inputs, targets, starts if options.reset_state else None, self._state, generator, precision
                )
                loss.backward()  # type: ignore[no-untyped-call]
                _remember(after, self._state)
                learning = optimiser.learning()
                self._squares = native.squares(instructions, [gradient for _, gradient, _, _ in learning])
            # By itself: nothing is to be learnt from a gradient that is not finite.
            with recording(instructions) as self._step:
                self._numbers = array("f", bytes(32))
                native.adamw(instructions, learning, self._numbers)
        self._loss = loss.detach().numpy()

    def fits(self, window: Window) -> bool:  # noqa: D102 - see the protocol
        return bool(window.inputs.shape == self._window[0].shape)

    def update(self, window: Window, state: State, rate: float) -> tuple[float, float, State]:  # noqa: D102
        for place, part in zip(self._window, (window.inputs, window.targets, window.starts), strict=True):
            place[...] = part
        if state is not self._state:
            _remember(state, self._state)
        self._gradient()
        loss, norm = float(self._loss), native.root(self._squares)
        if math.isfinite(loss) and math.isfinite(norm):
            scale = clipping(self._model.configuration.clip, norm)
            self._numbers[:] = array("f", [scale, *self._optimiser.advance(rate)])
            self._step()
        return loss, norm, self._state


def _remember(state: State, place: State) -> None:
    for target, source in zip(place, state, strict=True):
        target.copy_(source)


class GraphedUpdate(CapturedUpdate):
    """One update on a GPU that Triton's kernels serve, as a CUDA graph; takes what `capture` takes.

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
        # As for `AdamW.step_there`, but so that nothing is learnt, and nothing forgotten.
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

    def fits(self, window: Window) -> bool:  # noqa: D102 - see the protocol
        return window.inputs.shape == self._window.shape[1:]

    def update(self, window: Window, state: State, rate: float) -> tuple[float, float, State]:  # noqa: D102
        for place, part in zip(self._next_window, (window.inputs, window.targets, window.starts), strict=True):
            place.copy_(torch.from_numpy(part))
        self._window.copy_(self._next_window, non_blocking=True)
        numbers = self._model.configuration.clip, *self._optimiser.advance(rate)
        self._next_numbers.copy_(torch.tensor(numbers))
        self._numbers.copy_(self._next_numbers, non_blocking=True)
        if state is not self._state:
            _remember(state, self._state)
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
        _remember(after, self._state)
        self._told[0], self._told[1] = loss.detach(), norm
