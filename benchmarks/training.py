"""One update of training, against the vendor's fused LSTM in the same run.

    python benchmarks/training.py

An update is forward, backward, clipping and Adam. Ours is the tutorial's network with its dropout, as
`grimmgen train` runs it; the rival is `nn.Embedding` + `nn.LSTM` + `nn.Linear` as one would write it, without
dropout. Ours runs twice, on the compiled kernel and on the plain path. All run in turn, so that a busy machine
slows each; printed are medians, quartiles, and how many times as fast as the rival each is (the median, pair by
pair).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from grimmgen import kernels
from grimmgen.batches import Window
from grimmgen.configuration import Configuration
from grimmgen.model import LanguageModel


def ours(window: Window, vocabulary_size: int, hidden: int) -> Callable[[], float]:
    """An update of grimmgen's."""
    configuration = Configuration(hidden=hidden)
    model = LanguageModel(configuration, vocabulary_size)
    model.initialise()
    optimiser = torch.optim.Adam(model.parameters(), lr=configuration.learning_rate, fused=True)
    generator = torch.Generator().manual_seed(0)
    state = model.zero_state(window.inputs.shape[1])

    def update() -> float:
        nonlocal state
        optimiser.zero_grad(set_to_none=True)
        with kernels.alone(model.device):
            loss, state = model.loss(window, state, generator)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), configuration.clip)
            optimiser.step()
            return loss.item()

    return update


def with_kernel(name: str, update: Callable[[], float]) -> Callable[[], float]:
    """The same update on the path of that name (`grimmgen.kernels`)."""

    def forced() -> float:
        os.environ["GRIMMGEN_KERNEL"] = name
        return update()

    return forced


class Rival(nn.Module):
    """The same network from ready-made layers, its input a dense embedding of H."""

    def __init__(self, vocabulary_size: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, hidden)
        self.lstm = nn.LSTM(hidden, hidden)
        self.linear = nn.Linear(hidden, vocabulary_size)

    def forward(self, inputs: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Logits [T, B, V] and the state."""
        hidden, state = self.lstm(self.embedding(inputs), state)
        return self.linear(hidden), state


def rivals(window: Window, vocabulary_size: int, hidden: int) -> Callable[[], float]:
    """An update of `nn.LSTM`'s."""
    model = Rival(vocabulary_size, hidden)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001)
    inputs, targets = torch.from_numpy(window.inputs).long(), torch.from_numpy(window.targets).long()
    zeros = torch.zeros(1, window.inputs.shape[1], hidden)
    state = (zeros, zeros)

    def update() -> float:
        nonlocal state
        optimiser.zero_grad(set_to_none=True)
        logits, after = model(inputs, state)
        loss = nn.functional.cross_entropy(logits.reshape(-1, vocabulary_size), targets.reshape(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        state = (after[0].detach(), after[1].detach())
        return loss.item()

    return update


def interleaved(updates: dict[str, Callable[[], float]], rounds: int, burst: int = 5) -> dict[str, list[float]]:
    """Milliseconds an update: each contender in turn, a few updates at a time, the first of them not counted.

    The first update after a change of contender finds the other's data in the caches; training does not.
    """
    times: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(rounds + 2):
        for name, update in updates.items():
            for repeat in range(burst):
                began = time.perf_counter()
                update()
                if number >= 2 and repeat:
                    times[name].append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--unroll", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary-size", type=int, default=544)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    T, B, H, V = options.unroll, options.batch_size, options.hidden, options.vocabulary_size
    ids = draw.integers(0, V, (T + 1, B)).astype(np.int32)
    # As on the real tales: every 40th window or so of a row has the start of a story in it.
    window = Window(ids[:-1], ids[1:], draw.random((T, B)) < 1 / 2000)
    contenders = {
        "grimmgen": with_kernel("native", ours(window, V, H)),
        "plain": with_kernel("plain", ours(window, V, H)),
        "nn.LSTM": rivals(window, V, H),
    }
    times = interleaved(contenders, options.rounds)
    ratios = {
        name: statistics.median(b / a for a, b in zip(values, times["nn.LSTM"], strict=True))
        for name, values in times.items()
    }
    if options.json:
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(json.dumps({"T": T, "B": B, "H": H, "V": V, "milliseconds": medians, "times as fast": ratios}))
        return
    print(
        f"one update, T = {T}, B = {B}, H = {H}, V = {V}, float32, {options.threads} threads, "
        f"torch {torch.__version__}"
    )
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{name:10s} {middle:7.2f} ms   (quartiles {low:.2f} – {high:.2f}, {len(values)} updates), "
            f"{ratios[name]:.2f} times as fast as nn.LSTM"
        )


if __name__ == "__main__":
    main()
