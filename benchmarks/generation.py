"""Bigrams generated per second on one core, compared with eager PyTorch in the same run.

    python benchmarks/generation.py

The figure of grimmgen includes everything that `grimmgen.load(…).generate(…)` does, text included: an LSTM of the
tutorial's size with top-k 3, on the compiled kernels and on NumPy. The PyTorch loop is the usual one, without
gradients: `nn.Embedding`, one step, `nn.Linear`, `topk`, `multinomial`. Its step is that of `nn.LSTMCell`, which
for one text is several times as fast as `nn.LSTM`, also shown. All contenders take turns, so that a busy machine
slows each equally. Printed are medians, quartiles, and the ratio to `nn.LSTMCell` (the median over rounds).

The floor, for one text, is the time to copy as many bytes as the weights that a step reads.
"""

from __future__ import annotations

import os

# One core for NumPy too, which reads this when it is imported.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from grimmgen.configuration import Configuration
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import TrainedModel
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import END

# Approximate seconds of a contender in one round.
_TURN = 0.05


def grimmgen(kernel: str, vocabulary_size: int, hidden: int, count: int) -> Callable[[int], None]:
    """Generate `count` texts of a number of bigrams, with `GRIMMGEN_KERNEL` set to `kernel`."""
    letters = [chr(ord("a") + number) for number in range(40)]
    text = "".join(a + b for a in letters for b in letters)[: 2 * (vocabulary_size - 2)]
    vocabulary = NgramVocabulary.build([text], min_count=1)
    configuration = Configuration(hidden=hidden)
    random = np.random.default_rng(0)
    weights = {
        name: random.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        for name, shape in weight_shapes(configuration, vocabulary_size).items()
    }
    weights["output.bias"][END] = -99.0
    generator = TextGenerator(TrainedModel("benchmark", Checkpoint(configuration, vocabulary, {}, weights)))

    def generate(bigrams: int) -> None:
        os.environ["GRIMMGEN_KERNEL"] = kernel
        options = SamplingOptions(length=2 * bigrams)
        texts = (
            [generation.text for generation in generator.generate_batch("", options, count)]
            if count > 1
            else ["".join(generator.stream("", options))]
        )
        assert all(len(text) == 2 * bigrams for text in texts)

    return generate


def pytorch(vocabulary_size: int, hidden: int, count: int, module: type[nn.Module]) -> Callable[[int], None]:
    """The same in eager PyTorch, with `nn.LSTMCell` or `nn.LSTM`."""
    embedding, recurrent = nn.Embedding(vocabulary_size, hidden), module(hidden, hidden)
    linear = nn.Linear(hidden, vocabulary_size)
    window = module is nn.LSTM

    @torch.no_grad()
    def generate(bigrams: int) -> None:
        ids = torch.full((count,), END)
        shape = (1, count, hidden) if window else (count, hidden)
        state = (torch.zeros(shape), torch.zeros(shape))
        generated = []
        for _ in range(bigrams):
            if window:
                out, state = recurrent(embedding(ids)[None], state)
                hidden_state = out[0]
            else:
                state = recurrent(embedding(ids), state)
                hidden_state = state[0]
            best, candidates = torch.topk(linear(hidden_state), 3)
            ids = candidates.gather(1, torch.multinomial(torch.softmax(best, 1), 1))[:, 0]
            generated.append(ids.tolist())

    return generate


def copy_floats(count: int) -> Callable[[int], None]:
    """Move so many floats per step: half of them are read, half are written."""
    source, target = np.ones((2, count // 2), np.float32)

    def copy(times: int) -> None:
        for _ in range(times):
            np.copyto(target, source)

    return copy


def measure(contenders: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Measure the steps per second of each contender, in turn, with as many steps as fit into its time."""
    steps = {}
    for name, run in contenders.items():
        run(64)
        started = time.perf_counter()
        run(64)
        steps[name] = max(16, int(64 * _TURN / (time.perf_counter() - started)))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            started = time.perf_counter()
            run(steps[name])
            rates[name].append(steps[name] / (time.perf_counter() - started))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary-size", type=int, default=544)
    parser.add_argument("--stories", type=int, default=1, help="texts generated side by side")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    H, V, B = arguments.hidden, arguments.vocabulary_size, arguments.stories
    contenders = {
        "grimmgen": grimmgen("native", V, H, B),
        "NumPy": grimmgen("plain", V, H, B),
        "nn.LSTMCell": pytorch(V, H, B, nn.LSTMCell),
        "nn.LSTM": pytorch(V, H, B, nn.LSTM),
    }
    if B == 1:
        # The recurrent weight, the softmax weight, and one row of the input weight.
        contenders["floor"] = copy_floats(4 * H * H + H * V + 4 * H)
    rates = {name: [B * rate for rate in values] for name, values in measure(contenders, arguments.rounds).items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, rates["nn.LSTMCell"], strict=True))
        for name, values in rates.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = medians["grimmgen"] / medians["floor"] if "floor" in medians else None
    if arguments.json:
        document = {"B": B, "H": H, "V": V, "bigrams a second": medians, "times as fast": ratios}
        print(json.dumps(document | ({} if share is None else {"share of the floor": share})))
        return
    batch = "one text" if B == 1 else f"{B} texts side by side"
    print(f"{batch}, H = {H}, V = {V}, top-k 3, one core, torch {torch.__version__}")
    for name, values in rates.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(
            f"{name:11s} {middle:9,.0f} bigrams/s   (quartiles {low:,.0f} – {high:,.0f}), "
            f"{ratios[name]:.2f} times as fast as nn.LSTMCell"
        )
    if share is not None:
        print(f"grimmgen reaches {share:.0%} of the floor")


if __name__ == "__main__":
    main()
