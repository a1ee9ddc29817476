"""How much slower `--precision auto` is than the best of what it chooses from, on three shapes.

    python benchmarks/precision.py
    GRIMMGEN_KERNEL=portable python benchmarks/precision.py --among fp32,PyTorch

For each shape `auto` chooses, as `grimmgen train` does at its start; then whole updates with each candidate are timed
in turn, and the median of the chosen one is compared with the smallest one. Where
the processor has no bfloat16 instructions there is nothing to choose: `--among` names the candidates, and
GRIMMGEN_KERNEL the kernels that `fp32` and `bf16` run on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
from training import interleaved, ours

from grimmgen.configuration import Configuration
from grimmgen.network.backends import candidates
from grimmgen.network.precision import PrecisionChoice, measure, measured_steps
from grimmgen.text.batches import Window

SHAPES = (128, 544), (512, 700), (1024, 700)  # H, V


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--among", help="candidates, separated by commas: fp32, bf16, PyTorch")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--processor-time", action="store_true", help="instead of wall-clock: with --threads 1, on a busy machine"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    cpu = torch.device("cpu")
    names = options.among.split(",") if options.among else candidates("lstm", cpu)
    if len(names) < 2:
        raise SystemExit("there is nothing to choose from on this processor: see --among")
    for H, V in SHAPES:
        configuration = Configuration(hidden=H)
        shape = configuration.unroll, configuration.batch_size
        ids, targets = np.random.default_rng(0).integers(0, V, (2, *shape)).astype(np.int32)
        window = Window(ids, targets, np.zeros(shape, np.bool_))
        began = time.perf_counter()
        short = measure(configuration, V, cpu, names, clock)
        seconds = time.perf_counter() - began
        chosen = min(short, key=short.__getitem__)
        updates = {name: ours(window, V, configuration, PrecisionChoice(name)) for name in names}
        times = interleaved(updates, options.rounds, clock, burst=2)
        whole = {name: statistics.median(values) for name, values in times.items()}
        ratio = whole[chosen] / min(whole.values())
        figures = {"H": H, "V": V, "chosen": chosen, "seconds": seconds, "short, ms": short, "whole, ms": whole}
        if options.json:
            print(json.dumps({**figures, "ratio": ratio}))
            continue
        T = measured_steps(configuration, V)
        print(f"H {H}, V {V}: {chosen}, chosen in {seconds:.2f} s; auto over the best {ratio:.3f}")
        for name in names:
            print(f"  {name:8s} {short[name]:8.2f} ms for {T} time steps {whole[name]:8.2f} ms for all")


if __name__ == "__main__":
    main()
