"""Bigrams told a second on one core, against eager PyTorch in the same run.

    python benchmarks/generation.py

Ours is what `grimmgen.load(…).generate(…)` does, text and all: an LSTM of the tutorial's size, the best three
drawn in proportion; it runs twice, on the compiled kernel and on NumPy. The rival is the loop as one would write
it, without gradients: `nn.Embedding`, one step, `nn.Linear`, `topk`, `multinomial`. Its step is that of
`nn.LSTMCell`, which for one story is several times as fast as `nn.LSTM`, shown too. All run in turn,
so that a busy machine slows each; printed are medians, quartiles, and how many times as fast as `nn.LSTMCell` each
is (the median, round by round).

The floor, for one story, is the time in which as many bytes as the weights that a step needs are moved by a copy.
"""

from __future__ import annotations

import os

from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.options import SamplingOptions

# One core for NumPy, too, which reads this when it is imported.
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
from grimmgen.text.vocabulary import END, Vocabulary

# Seconds that a contender takes in a round, about.
_TURN = 0.05


def ours(kernel: str, vocabulary_size: int, hidden: int, stories: int) -> Callable[[int], None]:
    """Telling so many bigrams a story, on the path of that name (`grimmgen.network.backends`)."""
    letters = [chr(ord("a") + number) for number in range(40)]
    text = "".join(a + b for a in letters for b in letters)[: 2 * (vocabulary_size - 2)]
    vocabulary = Vocabulary.build([text], min_count=1)
    configuration = Configuration(hidden=hidden)
    draw = np.random.default_rng(0)
    weights = {
        name: draw.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        for name, shape in weight_shapes(configuration, vocabulary_size).items()
    }
    weights["output.bias"][END] = -99.0
    teller = TextGenerator("benchmark", Checkpoint(configuration, vocabulary, {}, weights))

    def tell(bigrams: int) -> None:
        os.environ["GRIMMGEN_KERNEL"] = kernel
        decoding = SamplingOptions(length=2 * bigrams)
        told = (
            [story.text for story in teller.tell_several("", decoding, stories)]
            if stories > 1
            else ["".join(teller.tell("", decoding))]
        )
        assert all(len(text) == 2 * bigrams for text in told)

    return tell


def rivals(vocabulary_size: int, hidden: int, stories: int, module: type[nn.Module]) -> Callable[[int], None]:
    """The same by eager PyTorch, with `nn.LSTMCell` or `nn.LSTM`."""
    embedding, recurrent = nn.Embedding(vocabulary_size, hidden), module(hidden, hidden)
    linear = nn.Linear(hidden, vocabulary_size)
    window = module is nn.LSTM

    @torch.no_grad()
    def tell(bigrams: int) -> None:
        ids = torch.full((stories,), END)
        shape = (1, stories, hidden) if window else (stories, hidden)
        state = (torch.zeros(shape), torch.zeros(shape))
        told = []
        for _ in range(bigrams):
            if window:
                out, state = recurrent(embedding(ids)[None], state)
                hidden_state = out[0]
            else:
                state = recurrent(embedding(ids), state)
                hidden_state = state[0]
            best, places = torch.topk(linear(hidden_state), 3)
            ids = places.gather(1, torch.multinomial(torch.softmax(best, 1), 1))[:, 0]
            told.append(ids.tolist())

    return tell


def moving(numbers: int) -> Callable[[int], None]:
    """Moving so many numbers so many times: half of them are read, half are written."""
    source, target = np.ones((2, numbers // 2), np.float32)

    def copy(times: int) -> None:
        for _ in range(times):
            np.copyto(target, source)

    return copy


def interleaved(contenders: dict[str, Callable[[int], None]], rounds: int) -> dict[str, list[float]]:
    """Steps a second of each contender, in turn; each takes as many steps as fit into its turn."""
    steps = {}
    for name, tell in contenders.items():
        tell(64)
        began = time.perf_counter()
        tell(64)
        steps[name] = max(16, int(64 * _TURN / (time.perf_counter() - began)))
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, tell in contenders.items():
            began = time.perf_counter()
            tell(steps[name])
            rates[name].append(steps[name] / (time.perf_counter() - began))
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--vocabulary-size", type=int, default=544)
    parser.add_argument("--stories", type=int, default=1, help="told side by side")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    H, V, B = options.hidden, options.vocabulary_size, options.stories
    contenders = {
        "grimmgen": ours("native", V, H, B),
        "NumPy": ours("plain", V, H, B),
        "nn.LSTMCell": rivals(V, H, B, nn.LSTMCell),
        "nn.LSTM": rivals(V, H, B, nn.LSTM),
    }
    if B == 1:
        # The recurrent weight, the softmax layer's, and one row of the input's.
        contenders["floor"] = moving(4 * H * H + H * V + 4 * H)
    rates = {
        name: [B * rate for rate in values] for name, values in interleaved(contenders, options.rounds).items()
    }
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, rates["nn.LSTMCell"], strict=True))
        for name, values in rates.items()
    }
    medians = {name: statistics.median(values) for name, values in rates.items()}
    share = medians["grimmgen"] / medians["floor"] if "floor" in medians else None
    if options.json:
        document = {"B": B, "H": H, "V": V, "bigrams a second": medians, "times as fast": ratios}
        print(json.dumps(document | ({} if share is None else {"share of the floor": share})))
        return
    stories = "one story" if B == 1 else f"{B} stories side by side"
    print(f"{stories}, H = {H}, V = {V}, the best 3, one core, torch {torch.__version__}")
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
