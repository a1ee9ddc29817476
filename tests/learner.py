"""A network with what trains it, captured or not, on any device."""

from __future__ import annotations

import numpy as np
import torch
from grimmgen.network.captured import CapturedUpdate, capture

from grimmgen.configuration import Configuration, Products
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.text.batches import Window

V = 21


class Learner:
    """A network of twenty-one n-grams; with `captured` its updates are."""

    def __init__(
        self, configuration: Configuration, precision: Products, captured: bool, device: str = "cpu"
    ) -> None:
        self.model = LanguageModel(configuration, V).to(device)
        self.model.initialise()
        self.optimiser = AdamW(self.model.parameters(), configuration.weight_decay)
        self.generator = torch.Generator(device)
        self.state = self.model.zero_state(configuration.batch_size)
        self.precision = precision
        self.captured: CapturedUpdate | None = None
        self.told = ""
        if captured:
            self.captured, self.told = self.capture()

    def capture(self) -> tuple[CapturedUpdate | None, str]:
        return capture(self.model, self.optimiser, self.generator, self.precision)

    def learn(self, updates: int, first: int = 0) -> list[tuple[float, float]]:
        """Losses and norms."""
        told = []
        for step in range(first, first + updates):
            window, rate = self.window(step), 0.01 / (step + 1)
            self.generator.manual_seed(step)
            if self.captured is not None:
                loss, norm, self.state = self.captured.update(window, self.state, rate)
            else:
                self.optimiser.zero_gradient()
                with self.model.left_alone():
                    value, self.state = self.model.loss(window, self.state, self.generator, self.precision)
                    value.backward()  # type: ignore[no-untyped-call]
                loss, norm = value.item(), self.optimiser.norm()
                self.optimiser.step(rate, self.model.configuration.clip, norm)
            told.append((loss, norm))
        return told

    def window(self, step: int) -> Window:
        shape = self.model.configuration.unroll, self.model.configuration.batch_size
        draw = np.random.default_rng(step)
        inputs, targets = draw.integers(0, V, (2, *shape)).astype(np.int32)
        targets[draw.random(shape) < 0.1] = -1
        return Window(inputs, targets, draw.random(shape) < 0.1)

    def numbers(self) -> list[torch.Tensor]:
        learnt = (*self.model.parameters(), *self.optimiser.exp_avg, *self.optimiser.exp_avg_sq, *self.state)
        return [number.detach().clone() for number in learnt]
