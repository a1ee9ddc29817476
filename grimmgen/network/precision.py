"""What `--precision auto` trains with: the fastest of what this machine offers, measured on the shapes at hand.

T  time steps    B  batch rows    V  vocabulary size
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from grimmgen.configuration import Configuration, Products
from grimmgen.network.backends import Candidate, candidates
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.network.shapes import parameter_count
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window

# The training steps that are measured have at most so many multiplications (T·B·parameters), and 8 time steps at least:
# in a window that is too short, what does not depend on T (packing, the optimiser) decides.
_LARGEST, _FEWEST_STEPS = 4e9, 8
# A training step with fewer takes about a millisecond, and is not measured, so that small networks, which gain
# nothing, give the same result in each run.
_SMALL = 1e7
_LEAST_ROUNDS, _MOST_ROUNDS, _SECONDS, _LONG = 3, 20, 0.1, 1.0


@dataclass(frozen=True)
class PrecisionChoice:
    """What a run trains with.

    Attributes:
        chosen: `fp32` or `bf16` on the fastest backend, or `PyTorch`, which is fp32 without kernels.
        milliseconds: of a training step with each candidate, shortened to `measured_steps`; empty if none was measured.
    """

    chosen: Candidate
    milliseconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def precision(self) -> Products:
        """The precision of the matrix products."""
        return "bf16" if self.chosen == "bf16" else "fp32"

    @property
    def kernels(self) -> bool:
        """Whether kernels compute, where there are any, rather than PyTorch's operations."""
        return self.chosen != "PyTorch"

    def to_json(self) -> dict[str, Any]:
        """The choice as a JSON object."""
        return dataclasses.asdict(self)


def choose_precision(configuration: Configuration, vocabulary_size: int, device: torch.device) -> PrecisionChoice:
    """Choose what to train with; under `auto` the fastest candidate, which is measured if there are several.

    Args:
        configuration: of the run; its batch size is that of this process.
        vocabulary_size: V.
        device: of the weights.
    """
    if configuration.precision != "auto":
        return PrecisionChoice(configuration.precision)
    names = candidates(configuration.cell, device)
    size = configuration.unroll * _multiplications(configuration, vocabulary_size)
    if len(names) == 1 or size < _SMALL:
        return PrecisionChoice("fp32")
    milliseconds = measure(configuration, vocabulary_size, device, names)
    return PrecisionChoice(min(names, key=milliseconds.__getitem__), milliseconds)


def restore_choice(kept: object, configuration: Configuration, device: torch.device) -> PrecisionChoice | None:
    """The choice that was kept with a run.

    Args:
        kept: what `PrecisionChoice.to_json` returned, or any other JSON value.
        configuration: of the run.
        device: of the weights.

    Returns:
        The choice; None if it is none, or this machine does not offer it.
    """
    if configuration.precision != "auto" or not isinstance(kept, dict):
        return None
    milliseconds = kept.get("milliseconds")
    if not isinstance(milliseconds, dict):
        milliseconds = {}
    for name in candidates(configuration.cell, device):
        if name == kept.get("chosen"):
            figures = {str(k): v for k, v in milliseconds.items() if isinstance(v, float) and math.isfinite(v)}
            return PrecisionChoice(name, figures)
    return None


def one_row_precision(model: LanguageModel, steps: int) -> Products:
    """The precision of products in training on windows of one row: bf16 where the CPU has instructions for it.

    There is nothing to measure: each time step reads the weights, and memory bounds its time, so that half the bytes
    take about half the time. A small network stays in fp32, as under `auto`.

    Args:
        model: on any device.
        steps: T.
    """
    configuration = dataclasses.replace(model.configuration, batch_size=1)
    if model.device.type != "cpu" or steps * _multiplications(configuration, model.vocabulary_size) < _SMALL:
        return "fp32"
    return "bf16" if "bf16" in candidates(configuration.cell, model.device) else "fp32"


def measure(
    configuration: Configuration,
    vocabulary_size: int,
    device: torch.device,
    names: Sequence[Candidate],
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """The milliseconds of a training step with each candidate: the least of some, taken in turn.

    Args:
        configuration: of the model.
        vocabulary_size: V.
        device: of the weights.
        names: of the candidates.
        clock: in seconds.
    """
    short = dataclasses.replace(configuration, unroll=measured_steps(configuration, vocabulary_size))
    model = LanguageModel(short, vocabulary_size).to(device)
    for weight in model.parameters():
        weight.zero_()  # arbitrary memory may hold subnormal numbers, which are slow
    optimiser, state = AdamW(model.named_parameters()), model.zero_state(short.batch_size)
    shape = short.unroll, short.batch_size
    ids, targets = np.random.default_rng(0).integers(0, vocabulary_size, (2, *shape)).astype(np.int32)
    window = Window(ids, targets, np.zeros(shape, np.bool_))
    steps = {}
    for name in names:
        choice = PrecisionChoice(name)
        steps[name] = TrainStep(model, optimiser, choice.precision, kernels=choice.kernels)
    least, start = dict.fromkeys(names, math.inf), clock()
    for number in range(_MOST_ROUNDS):
        for name, step in steps.items():
            began = clock()
            step(window, state, 0.0, number)
            if number > 0:  # the first one warms up
                least[name] = min(least[name], 1000.0 * (clock() - began))
        # A step that takes long is hardly disturbed, and once is enough.
        elapsed = clock() - start
        if number >= (1 if elapsed > _LONG else _LEAST_ROUNDS) and elapsed > _SECONDS:
            break
    return {name: round(milliseconds, 3) for name, milliseconds in least.items()}


def measured_steps(configuration: Configuration, vocabulary_size: int) -> int:
    """T of the training steps that are measured."""
    affordable = int(_LARGEST / _multiplications(configuration, vocabulary_size))
    return min(configuration.unroll, max(_FEWEST_STEPS, affordable))


def _multiplications(configuration: Configuration, vocabulary_size: int) -> int:
    """About how many a time step has in its forward pass."""
    return configuration.batch_size * parameter_count(configuration, vocabulary_size)
