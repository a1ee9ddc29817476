"""`grimmgen.nn` against `torch.nn` in the same run: forward and backward of a layer, and forward alone.

    python benchmarks/nn.py
    python benchmarks/nn.py --hidden 512 --layers 2 --rounds 10

Both modules have the same weights and read the same dense input [T, B, H], whose gradient is computed, too; on a CPU,
in float32. They run in turn; printed are medians and quartiles in milliseconds, and how many times as fast as PyTorch
grimmgen is (the median, pair by pair).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

import grimmgen.nn

PAIRS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "lstm": (grimmgen.nn.LSTM, nn.LSTM),
    "gru": (grimmgen.nn.GRU, nn.GRU),
}


def forward(module: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """One forward pass without gradients."""

    def run() -> None:
        with torch.no_grad():
            module(x)

    return run


def step(module: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> Callable[[], None]:
    """One forward and backward pass."""

    def run() -> None:
        module.zero_grad(set_to_none=True)
        x.grad = None
        output, _ = module(x)
        output.backward(upstream)

    return run


def interleaved(contenders: dict[str, Callable[[], None]], rounds: int, burst: int = 5) -> dict[str, list[float]]:
    """Milliseconds a call: each in turn, a few calls at a time, the first of them not counted."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, run in contenders.items():
            for repeat in range(burst):
                began = time.perf_counter()
                run()
                if number >= 2 and repeat:
                    times[name].append(1000 * (time.perf_counter() - began))
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--unroll", type=int, default=50)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    T, B, H, L = options.unroll, options.batch_size, options.hidden, options.layers
    rows = []
    for cell, (ours, theirs) in PAIRS.items():
        rival, module = theirs(H, H, L), ours(H, H, L)
        module.load_state_dict(rival.state_dict())
        x, upstream = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
        modules = {"grimmgen": module, "torch": rival}
        passes = {
            "forward": {name: forward(m, x) for name, m in modules.items()},
            "forward + backward": {name: step(m, x, upstream) for name, m in modules.items()},
        }
        for what, contenders in passes.items():
            times = interleaved(contenders, options.rounds)
            row: dict[str, object] = {"cell": cell, "what": what, "T": T, "B": B, "H": H, "L": L}
            for name, values in times.items():
                row[name] = statistics.median(values)
                row[f"{name} quartiles"] = statistics.quantiles(values, n=4)[::2]
            row["times as fast"] = statistics.median(
                b / a for a, b in zip(times["grimmgen"], times["torch"], strict=True)
            )
            rows.append(row)
    if options.json:
        print(json.dumps(rows))
        return
    print(f"T = {T}, B = {B}, H = {H}, {L} layer(s), {options.threads} thread(s), torch {torch.__version__}")
    for row in rows:
        print(
            f"{row['cell']:6s}{row['what']:20s} grimmgen {row['grimmgen']:8.2f} ms"
            f"   torch.nn {row['torch']:8.2f} ms   {row['times as fast']:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
