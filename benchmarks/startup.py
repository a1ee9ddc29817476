"""The time of whole commands, compared to `import torch` and to starting the Python interpreter.

    python benchmarks/startup.py

`generate` writes 200 characters with a model of the tutorial's size and random weights, or with that of `--run`.
The commands run in turn, each in a new process. Prints medians, quartiles, and the median ratio to `import torch`
in the same round. `--clock cpu` counts the processor's time instead of the clock's, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from grimmgen.configuration import Configuration
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.text.corpus import open_corpus
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import END


def make_checkpoint(path: Path) -> None:
    """Write a checkpoint of the tutorial's size, with random weights and the bigrams of the bundled tales."""
    texts = [document.read() for document in open_corpus("sampler").documents]
    vocabulary = NgramVocabulary.build(texts, min_count=1)
    configuration = Configuration(min_count=1)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        for name, shape in weight_shapes(configuration, len(vocabulary)).items()
    }
    weights["output.bias"][END] = -99.0
    Checkpoint(configuration, vocabulary, {}, weights).write(path)


def now(clock: str) -> float:
    """Seconds of the clock, or of processor time of the commands that have ended."""
    spent = os.times()
    return time.perf_counter() if clock == "wall" else spent.children_user + spent.children_system


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--run", help="a run, or the path of a checkpoint")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        run = options.run
        if run is None:
            run = str(Path(directory) / "random.safetensors")
            make_checkpoint(Path(run))
        program = ["-m", "grimmgen"]
        commands = {
            "python -c pass": ["-c", "pass"],
            "python -c 'import grimmgen'": ["-c", "import grimmgen"],
            "grimmgen --help": [*program, "--help"],
            "grimmgen generate --length 200": [*program, "generate", "--length", "200", "--run", run],
            "python -c 'import torch'": ["-c", "import torch"],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        # The first round warms the disk cache, and is not counted.
        for number in range(options.rounds + 1):
            for name, arguments in commands.items():
                began = now(options.clock)
                subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
                if number:
                    times[name].append(now(options.clock) - began)
    torch = times["python -c 'import torch'"]
    shares = {n: statistics.median(a / b for a, b in zip(t, torch, strict=True)) for n, t in times.items()}
    if options.json:
        medians = {name: statistics.median(values) for name, values in times.items()}
        print(json.dumps({"seconds": medians, "share of import torch": shares}))
        return
    for name, values in times.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{name:31s} {middle:6.3f} s   (quartiles {low:.3f} – {high:.3f}), {shares[name]:.2f} of import torch"
        )


if __name__ == "__main__":
    main()
