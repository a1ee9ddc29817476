"""A small model with its training step, on any device."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from grimmgen.configuration import Configuration, Products
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window

V = 21


class Learner:
    """A model of a vocabulary of 21.

    Args:
        configuration: of the model.
        precision: of its matrix products.
        record: record or capture its training step.
        device: of its weights.
    """

    def __init__(
        self, configuration: Configuration, precision: Products = "fp32", record: bool = True, device: str = "cpu"
    ) -> None:
        self.model = LanguageModel(configuration, V).to(device)
        self.model.initialise()
        self.optimiser = AdamW(self.model.named_parameters(), configuration.weight_decay)
        self.state = self.model.zero_state(configuration.batch_size)
        self.step = TrainStep(self.model, self.optimiser, precision, record=record)

    def train(self, steps: int, first: int = 0) -> list[tuple[float, float]]:
        """Take training steps; returns the loss and the gradient norm of each."""
        results = []
        for number in range(first, first + steps):
            loss, norm, self.state = self.step(self.window(number), self.state, 0.01 / (number + 1), number)
            results.append((loss, norm))
        return results

    def window(self, number: int) -> Window:
        """The window of a step, some of its targets missing."""
        shape = self.model.configuration.unroll, self.model.configuration.batch_size
        generator = np.random.default_rng(number)
        inputs, targets = generator.integers(0, V, (2, *shape)).astype(np.int32)
        targets[generator.random(shape) < 0.1] = -1
        return Window(inputs, targets, generator.random(shape) < 0.1)

    def tensors(self) -> list[Tensor]:
        """Copies of all that a training step changes."""
        optimiser = self.optimiser
        changed = (
            *self.model.parameters(),
            *optimiser.exp_avg.values(),
            *optimiser.exp_avg_sq.values(),
            *self.state,
        )
        return [tensor.clone() for tensor in changed]
