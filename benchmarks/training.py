"""One update of training, against the vendor's fused LSTM or GRU in the same run.

    python benchmarks/training.py
    python benchmarks/training.py --cell gru
    python benchmarks/training.py --precision bf16 --hidden 512 --vocabulary-size 700 --layers 2 --rounds 6

An update is forward, backward, clipping and Adam. Ours is the tutorial's network with its dropout, as
`grimmgen train` runs it; the rival is `nn.Embedding` + `nn.LSTM` (for a GRU `nn.GRU`) + `nn.Linear` as one would
write it, without dropout, for bf16 under `torch.autocast`. Ours runs twice in fp32, on the compiled kernel and on
the plain path; with `--compile` the rival runs twice, too, the second time through `torch.compile`. All run in
turn, so that a busy machine slows each.

Printed are medians and quartiles; how many times as fast as the rival each is (the median, pair by pair); the
share of the floor, which is the time that the update's products would take at the rate of the fastest large
product that PyTorch does here; the peak memory of a process that does nothing else, above what it had before; and
where the time of our update goes, by the compiled kernel's functions.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from grimmgen.configuration import Configuration
from grimmgen.network.backends.cpu.program import Program
from grimmgen.network.cells import cells
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.network.precision import PrecisionChoice, choose_precision
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window

Update = Callable[[], float]


def ours(
    window: Window, vocabulary_size: int, configuration: Configuration, choice: PrecisionChoice | None = None
) -> Update:
    """A training step of grimmgen's, as `grimmgen train` does it, or with another choice of the precision."""
    model = LanguageModel(configuration, vocabulary_size)
    model.initialise()
    optimiser = AdamW(model.named_parameters())
    choice = choice or choose_precision(configuration, vocabulary_size, model.device)
    step = TrainStep(model, optimiser, choice.precision, kernels=choice.kernels)
    state, number = model.zero_state(window.inputs.shape[1]), 0

    def update() -> float:
        nonlocal state, number
        result = step(window, state, configuration.learning_rate, number)
        state, number = result.state, number + 1
        return result.loss

    return update


def with_kernel(name: str, make: Callable[[], Update]) -> Update:
    """An update on the path of that name (`grimmgen.network.backends`)."""
    os.environ["GRIMMGEN_KERNEL"] = name
    update = make()

    def forced() -> float:
        os.environ["GRIMMGEN_KERNEL"] = name
        return update()

    return forced


class Rival(nn.Module):
    """The same network from ready-made layers, its input a dense embedding of H."""

    def __init__(self, vocabulary_size: int, configuration: Configuration) -> None:
        super().__init__()
        H = configuration.hidden
        self.embedding = nn.Embedding(vocabulary_size, H)
        self.cells = (nn.GRU if configuration.cell == "gru" else nn.LSTM)(H, H, configuration.layers)
        self.linear = nn.Linear(H, vocabulary_size)

    def forward(self, inputs: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits [T, B, V] and the state: h and c, of a GRU h alone."""
        if isinstance(self.cells, nn.GRU):
            hidden, *after = self.cells(self.embedding(inputs), *state)
        else:
            hidden, after = self.cells(self.embedding(inputs), state)
        return self.linear(hidden), tuple(after)


def rivals(window: Window, vocabulary_size: int, configuration: Configuration, compiled: bool = False) -> Update:
    """An update of `nn.LSTM`'s or `nn.GRU`'s, as it is or through `torch.compile`, which needs a C++ compiler."""
    model: nn.Module = Rival(vocabulary_size, configuration)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001)
    if compiled:
        model = torch.compile(model)  # type: ignore[assignment]
    inputs, targets = torch.from_numpy(window.inputs).long(), torch.from_numpy(window.targets).long()
    zeros = torch.zeros(configuration.layers, window.inputs.shape[1], configuration.hidden)
    state = (zeros,) if configuration.cell == "gru" else (zeros, zeros)

    def cast() -> AbstractContextManager[None]:
        rounds = configuration.precision == "bf16"
        return torch.autocast("cpu", torch.bfloat16) if rounds else nullcontext()

    def update() -> float:
        nonlocal state
        optimiser.zero_grad(set_to_none=True)
        with cast():
            logits, after = model(inputs, state)
            loss = nn.functional.cross_entropy(logits.reshape(-1, vocabulary_size), targets.reshape(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        state = tuple(carried.detach() for carried in after)
        return loss.item()

    return update


def interleaved(
    updates: dict[str, Update], rounds: int, clock: Callable[[], float], burst: int = 5
) -> dict[str, list[float]]:
    """Milliseconds an update: each contender in turn, a few updates at a time, the first of them not counted.

    The first update after a change of contender finds the other's data in the caches; training does not.
    """
    times: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(rounds + 2):
        for name, update in updates.items():
            for repeat in range(burst):
                began = clock()
                update()
                if number >= 2 and repeat:
                    times[name].append(1000 * (clock() - began))
    return times


def profile(update: Update, rounds: int) -> dict[str, float]:
    """Where an update's milliseconds go: into each of the compiled kernel's functions, and all around them.

    The library notes when each of its calls is done by all threads; what a call takes is what has passed since the
    one before it, on the clock on the wall.
    """
    replay = Program.__call__
    spent: dict[str, float] = defaultdict(float)
    rows: list[dict[str, float]] = []

    def noted(program: Program) -> None:
        before = time.time_ns()
        replay(program)
        for name, done in zip(program.names, program.times, strict=True):
            spent[name] += (done - before) / 1e6
            before = done

    Program.__call__ = noted  # type: ignore[assignment, method-assign]
    try:
        for _ in range(rounds):
            spent.clear()
            began = time.perf_counter()
            update()
            total = 1000 * (time.perf_counter() - began)
            rows.append({**spent, "around": total - sum(spent.values())})
    finally:
        Program.__call__ = replay  # type: ignore[method-assign]
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def floor(T: int, B: int, V: int, configuration: Configuration, clock: Callable[[], float]) -> float:
    """Milliseconds that the products of an update take at the rate of the fastest large product to be had."""
    H = configuration.hidden
    # The recurrent products, and the input products of all layers but the first, which looks rows up; each once
    # forward, and twice backward.
    recurrent = (2 * configuration.layers - 1) * H * len(cells()[configuration.cell].gates) * H
    operations = 3 * 2 * T * B * (recurrent + H * V)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    rates = []
    if configuration.precision == "bf16":
        a, b = a.bfloat16(), b.bfloat16()
    for _ in range(20):
        began = clock()
        torch.mm(a, b)
        rates.append(2 * 1024**3 / (clock() - began))
    return 1000 * operations / max(rates)


def peak_memory(name: str, arguments: list[str]) -> float:
    """Mebibytes that this contender adds to a process of its own."""
    command = [sys.executable, __file__, *arguments, "--memory-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--unroll", type=int, default=50)
    parser.add_argument("--cell", choices=list(cells()), default="lstm")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--vocabulary-size", type=int, default=544)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="the rival through torch.compile, too")
    parser.add_argument(
        "--processor-time", action="store_true", help="instead of wall-clock: with --threads 1, on a busy machine"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    T, B, H, V = options.unroll, options.batch_size, options.hidden, options.vocabulary_size
    shape = {"hidden": H, "layers": options.layers, "batch_size": B, "unroll": T}
    configuration = Configuration(cell=options.cell, precision=options.precision, **shape)
    rival = "nn.GRU" if options.cell == "gru" else "nn.LSTM"
    clock = time.process_time if options.processor_time else time.perf_counter
    ids = draw.integers(0, V, (T + 1, B)).astype(np.int32)
    # As on the real tales: every 40th window or so of a row has the start of a story in it.
    window = Window(ids[:-1], ids[1:], draw.random((T, B)) < 1 / 2000)
    contenders: dict[str, Callable[[], Update]] = {
        "grimmgen": lambda: with_kernel("native", lambda: ours(window, V, configuration)),
        "plain": lambda: with_kernel("plain", lambda: ours(window, V, configuration)),
        rival: lambda: rivals(window, V, configuration),
    }
    if options.precision == "bf16":
        del contenders["plain"]
    if options.compile:
        contenders["compiled"] = lambda: rivals(window, V, configuration, compiled=True)
    if options.memory_of:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        update = contenders[options.memory_of]()
        for _ in range(5):
            update()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
        return
    # First, as a process begins with the peak of the one that starts it.
    memory = {name: peak_memory(name, sys.argv[1:]) for name in contenders}
    updates = {name: make() for name, make in contenders.items()}
    times = interleaved(updates, options.rounds, clock)
    least = floor(T, B, V, configuration, clock)
    figures = {
        name: {
            "milliseconds": statistics.median(values),
            "lower quartile": statistics.quantiles(values, n=4)[0],
            "upper quartile": statistics.quantiles(values, n=4)[2],
            "times as fast": statistics.median(b / a for a, b in zip(values, times[rival], strict=True)),
            "share of the floor": least / statistics.median(values),
            "peak MiB": memory[name],
        }
        for name, values in times.items()
    }
    spent = profile(updates["grimmgen"], 2 * options.rounds)
    if options.json:
        network = {"cell": options.cell, "H": H, "V": V, "L": options.layers}
        setting = {"T": T, "B": B, **network, "precision": options.precision}
        print(json.dumps({**setting, "threads": options.threads, "floor": least, **figures, "profile": spent}))
        return
    print(
        f"one update, {options.cell}, T = {T}, B = {B}, H = {H}, V = {V}, {options.layers} layer(s), "
        f"{options.precision}, {options.threads} thread(s), torch {torch.__version__}; floor {least:.2f} ms"
    )
    print(f"{'':10s}{'ms':>8s}{'quartiles':>18s}{'times as fast':>15s}{'of the floor':>14s}{'peak MiB':>10s}")
    for name, row in figures.items():
        print(
            f"{name:10s}{row['milliseconds']:8.2f}"
            f"{row['lower quartile']:10.2f} – {row['upper quartile']:5.2f}{row['times as fast']:15.2f}"
            f"{row['share of the floor']:14.0%}{row['peak MiB']:10.0f}"
        )
    parts = sorted(spent.items(), key=lambda item: -item[1])
    print("of grimmgen's: " + ", ".join(f"{name} {milliseconds:.2f} ms" for name, milliseconds in parts))


if __name__ == "__main__":
    main()
