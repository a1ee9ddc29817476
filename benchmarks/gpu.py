"""One training step on a GPU, beside cuDNN through `nn.LSTM` in the same run; correctness is checked first.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --cell gru --sizes 128,64,50,544 --precisions fp32,bf16 --json
    python benchmarks/gpu.py --log benchmarks/gpu.jsonl

For each size (H, B, T, V) and precision two checks come first: the loss and the gradients of the CUDA backend
against the reference backend in float64, and a captured step against an eager one, bit for bit. Where one fails,
the reason is printed, nothing is timed, the next size follows, and the exit code is 1. Then four contenders run
in turn, a few steps at a time:

    grimmgen                    as `grimmgen train` runs it: one CUDA graph, the window copied there each time
    grimmgen, no graph          the same kernels, launched one after the other
    nn.LSTM, CUDA graph         `nn.Embedding` + `nn.LSTM` + `nn.Linear`, clipping and fused Adam, in a graph too
    nn.LSTM                     the same, as one would write it

For the GRU the rivals are `nn.GRU`. Ours has the tutorial's dropout, the rivals have none. Each waits for its
loss after each step, as training does. fp32 is IEEE's for all, tf32 is
`torch.set_float32_matmul_precision("high")`, and bf16 is `--precision bf16` of ours and `torch.autocast` of the
rivals.

Printed are medians and quartiles, steps per second, the speed relative to each rival (the median, pair by pair),
and the shares of two floors: the time of the step's products at the rate of the fastest large product of PyTorch
here, and the time of its arrays, each written once and read where it is needed, at the rate of a large copy.
With --log each measurement is also appended to a file, one JSON document a line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor, nn
from training import Rival, Update, interleaved

from grimmgen.configuration import Configuration, Products
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import cells
from grimmgen.network.gradients import gradients
from grimmgen.network.model import LanguageModel
from grimmgen.network.optimiser import AdamW
from grimmgen.network.train_step import TrainStep
from grimmgen.text.batches import Window

RIVALS = ("nn.LSTM, CUDA graph", "nn.LSTM")
# Largest difference of a gradient, relative to its norm.
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 6e-2}


class Size(NamedTuple):
    """Sizes of a network and of its windows."""

    H: int
    B: int
    T: int
    V: int

    def window(self, steps: int | None = None) -> Window:
        """Random n-grams; a document starts every 2,000, as in the tales."""
        draw = np.random.default_rng(0)
        ids = draw.integers(0, self.V, ((steps or self.T) + 1, self.B)).astype(np.int32)
        return Window(ids[:-1], ids[1:], draw.random((steps or self.T, self.B)) < 1 / 2000)


def use(precision: str) -> Products:
    """Set PyTorch's precision of float32 products, and return grimmgen's."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return "bf16" if precision == "bf16" else "fp32"


class Ours:
    """A model of grimmgen's with its optimiser, on the GPU."""

    def __init__(self, size: Size, cell: str, precision: Products, steps: int | None = None) -> None:
        options = Configuration(
            cell=cell, hidden=size.H, batch_size=size.B, unroll=steps or size.T, initialisation="xavier"
        )
        self.model = LanguageModel(options, size.V).to("cuda")
        self.model.initialise()
        self.optimiser = AdamW(self.model.named_parameters())
        self.precision = precision
        self.window = size.window(steps)

    def update(self, graph: bool) -> Update:
        """A training step as `grimmgen train` takes it."""
        step = TrainStep(self.model, self.optimiser, self.precision, record=graph)
        if graph != step.description.endswith(", CUDA graph"):
            raise RuntimeError(f"the training step runs on {step.description}")
        state = self.model.zero_state(self.window.inputs.shape[1])

        def update() -> float:
            nonlocal state
            result = step(self.window, state, 0.001, self.optimiser.steps)
            state = result.state
            return result.loss

        return update


def largest_difference(size: Size, cell: str, precision: str) -> float:
    """Of loss and gradients from those of the reference backend in float64; 8 time steps, without dropout."""
    ours = Ours(size, cell, use(precision), steps=8)
    reference = LanguageModel(ours.model.configuration, size.V).to("cuda").double()
    reference.load_weights(ours.model.weights())

    def results(model: LanguageModel, backend: ReferenceBackend) -> list[Tensor]:
        loss, by_name, *_ = gradients(model, backend, model.inputs(ours.window), model.zero_state(size.B))
        return [loss, *by_name.values()]

    backend = ours.model.backend(ours.precision)
    assert isinstance(backend, ReferenceBackend)
    pairs = zip(results(ours.model, backend), results(reference, ReferenceBackend()), strict=True)
    return max(float((a.double() - b).norm() / b.norm()) for a, b in pairs)


def captured_equals_eager(size: Size, cell: str, precision: str) -> bool:
    """Whether a few steps give the same bits with a graph and without."""
    ends = []
    for graph in (True, False):
        ours = Ours(size, cell, use(precision))
        update = ours.update(graph)
        losses = [update() for _ in range(3)]
        ends.append((losses, [weight.clone() for weight in ours.model.parameters()]))
    return ends[0][0] == ends[1][0] and all(map(torch.equal, ends[0][1], ends[1][1]))


def rival(size: Size, cell: str, precision: str, graph: bool) -> Update:
    """A training step of cuDNN's."""
    use(precision)
    model = Rival(size.V, Configuration(hidden=size.H, cell="gru" if cell == "gru" else "lstm")).to("cuda")
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001, fused=True, capturable=graph)
    window = size.window()
    inputs, targets = (torch.from_numpy(ids).long().to("cuda") for ids in (window.inputs, window.targets))
    state = tuple(torch.zeros(1, size.B, size.H, device="cuda") for _ in range(1 if cell == "gru" else 2))

    def cast() -> AbstractContextManager[None]:
        # A cache of rounded weights would outlive its capture.
        rounds = precision == "bf16"
        return torch.autocast("cuda", torch.bfloat16, cache_enabled=not graph) if rounds else nullcontext()

    def run() -> Tensor:
        optimiser.zero_grad(set_to_none=True)
        with cast():
            logits, after = model(inputs, state)
            loss = nn.functional.cross_entropy(logits.reshape(-1, size.V), targets.reshape(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        for kept, new in zip(state, after, strict=True):
            kept.copy_(new.detach())
        return loss.detach()

    if not graph:
        return lambda: float(run().item())
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(aside)
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
        loss = run()

    def update() -> float:
        captured.replay()
        return float(loss.item())

    return update


def rate_of(do: Callable[[], object], amount: float) -> float:
    """The best rate, in work per second."""
    rates = []
    for _ in range(20):
        torch.cuda.synchronize()
        began = time.perf_counter()
        do()
        torch.cuda.synchronize()
        rates.append(amount / (time.perf_counter() - began))
    return max(rates)


def floors(size: Size, cell: str, precision: str) -> tuple[float, float]:
    """Milliseconds of a step's products and of its arrays; see the top."""
    use(precision)
    H, B, T, V = size
    gates = len(cells()[cell].gates)
    recurrent = gates * H * H if cells()[cell].recurrent_product else 0
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=kind) for _ in range(2))
    arithmetic = 3 * 2 * T * B * (recurrent + H * V) / rate_of(lambda: torch.mm(a, b), 2 * 8192**3)
    # Forward x, gates, c, h; backward gates, c and two gradients; for the weights' gradients h and a gradient.
    # Logits are written, read, written as gradients, and read twice. Each weight has a gradient and Adam's arrays.
    numbers = T * B * ((5 * gates + 5) * H + 5 * V) + 8 * (V * gates * H + recurrent + H * V)
    source, target = (torch.empty(1 << 28, device="cuda", dtype=torch.uint8) for _ in range(2))
    return 1000 * arithmetic, 1000 * 4 * numbers / rate_of(lambda: target.copy_(source), 2 * (1 << 28))


def measured(size: Size, cell: str, precision: str, rounds: int) -> dict[str, dict[str, float]]:
    """Figures of each contender."""
    updates: dict[str, Update] = {
        "grimmgen": Ours(size, cell, use(precision)).update(graph=True),
        "grimmgen, no graph": Ours(size, cell, use(precision)).update(graph=False),
        "nn.LSTM, CUDA graph": rival(size, cell, precision, graph=True),
        "nn.LSTM": rival(size, cell, precision, graph=False),
    }
    times = interleaved(updates, rounds, time.perf_counter)
    arithmetic, bandwidth = floors(size, cell, precision)
    figures = {}
    for name, values in times.items():
        quartiles = statistics.quantiles(values, n=4)
        median = statistics.median(values)
        figures[name] = {
            "milliseconds": median,
            "lower quartile": quartiles[0],
            "upper quartile": quartiles[2],
            "updates a second": 1000 / median,
            "of the arithmetic": arithmetic / median,
            "of the bandwidth": bandwidth / median,
        }
        for other in RIVALS:
            ratios = [b / a for a, b in zip(values, times[other], strict=True)]
            figures[name][f"times as fast as {other}"] = statistics.median(ratios)
    return figures


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes",
        default="128,64,50,544 512,128,128,700 1024,256,128,700",
        help="H,B,T,V, with blanks between sizes",
    )
    parser.add_argument("--precisions", default="fp32,tf32,bf16")
    parser.add_argument("--cell", choices=list(cells()), default="lstm")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("gpu.py: PyTorch finds no NVIDIA GPU here, without which nothing is measured", file=sys.stderr)
        raise SystemExit(2)
    where = (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, Triton {triton.__version__},"
        f" CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"  # type: ignore[no-untyped-call]
    )
    failed = False
    if not options.json:
        print(f"one training step, {options.cell}; {where}")
    for size in (Size(*map(int, sizes.split(","))) for sizes in options.sizes.split()):
        for precision in options.precisions.split(","):
            setting = {**size._asdict(), "cell": options.cell, "precision": precision, "on": where}
            difference = figures = wrong = None
            try:
                difference = largest_difference(size, options.cell, precision)
                if not difference < TOLERANCE[precision]:
                    wrong = f"the gradients differ by {difference:.1e}"
                elif not captured_equals_eager(size, options.cell, precision):
                    wrong = "a captured step gives other weights"
                else:
                    figures = measured(size, options.cell, precision, options.rounds)
            except Exception as error:
                wrong = str(error).partition("\n")[0]
            line = json.dumps(
                {
                    "day": time.strftime("%F"),
                    **setting,
                    "difference": difference,
                    "wrong": wrong,
                    **(figures or {}),
                }
            )
            if options.log is not None:
                with options.log.open("a", encoding="utf-8") as log:
                    log.write(line + "\n")
            if options.json:
                print(line, flush=True)
            if figures is None:
                failed = True
                print(f"{size}, {precision}: {wrong}", file=sys.stderr)
                continue
            if options.json:
                continue
            print(f"\n{size}, {precision}; gradients differ by at most {difference:.1e}")
            print(
                f"{'':20s}{'ms':>9s}{'quartiles':>20s}{'steps/s':>11s}"
                f"{'x graph':>9s}{'x eager':>9s}{'arithmetic':>12s}{'bandwidth':>11s}"
            )
            for name, figure in figures.items():
                print(
                    f"{name:20s}{figure['milliseconds']:9.3f}"
                    f"{figure['lower quartile']:11.3f} –{figure['upper quartile']:7.3f}"
                    f"{figure['updates a second']:11.0f}"
                    f"{figure[f'times as fast as {RIVALS[0]}']:9.2f}{figure[f'times as fast as {RIVALS[1]}']:9.2f}"
                    f"{figure['of the arithmetic']:12.0%}{figure['of the bandwidth']:11.0%}",
                    flush=True,
                )
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
