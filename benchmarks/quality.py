"""Bits per character on held-out stories, for the minutes spent: presets of ours and rivals, under one budget.

    grimmgen fetch --stories all
    python benchmarks/quality.py --split split.json --budget 11m --seeds 0 1 2

Every contender learns from the same training stories and is judged on the same whole test stories
(`--part valid` while choosing). The rivals: a plain script around `nn.LSTM` (512 units, an embedding of 256 tied
to the output, dropout 0.5, Adam with a cosine) on the same bigrams, and PPMd (`pip install pyppmd`), a classical
compressor, primed with the training stories and given each test story alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grimmgen.batches import Window, epoch
from grimmgen.cli.options import duration
from grimmgen.configuration import PRESETS, Configuration, Newlines
from grimmgen.corpus import Corpus, Part, Split, open_corpus, split_by_file, split_by_hash
from grimmgen.evaluation import encode_stories, evaluate, evaluate_dynamically
from grimmgen.events import Finished
from grimmgen.model import LanguageModel
from grimmgen.training import Training, cosine
from grimmgen.vocabulary import Vocabulary, normalise

State = tuple[Tensor, Tensor]


def preset(
    name: str, corpus: Corpus, split: Split, part: Part, seconds: float, seed: int, newlines: Newlines
) -> dict[str, float]:
    """A preset of ours, trained by `grimmgen` itself: static and dynamic bits per character."""
    options = {**PRESETS[name], "budget": seconds, "random_seed": seed, "newlines": newlines, "epochs": 1 << 20}
    training = Training.begin(corpus, Configuration(**options), split)
    finished = next(event for event in training.events() if isinstance(event, Finished))
    checkpoint = training.run.checkpoint()
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    stories = encode_stories(((s.name, s.read()) for s in split.parts[part]), checkpoint.vocabulary)
    return {
        name: evaluate(model, stories).total.bits_per_character,
        f"{name}, dynamic": evaluate_dynamically(model, stories).total.bits_per_character,
        "epochs": finished.epoch,
    }


class Rival(nn.Module):
    """What one writes in an afternoon: embedding, `nn.LSTM`, projection, the embedding once more."""

    def __init__(self, vocabulary_size: int, hidden: int = 512, embedding: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(embedding, hidden)
        self.projection = nn.Linear(hidden, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [T, B, V] and the state."""
        hidden, state = self.lstm(self.embedding(inputs), state)
        return self.projection(self.dropout(hidden)) @ self.embedding.weight.T + self.bias, state

    def zero_state(self, rows: int) -> State:
        """The state before anything was read."""
        zeros = torch.zeros(1, rows, self.hidden)
        return zeros, zeros

    @torch.no_grad()
    def losses(self, window: Window, state: State) -> tuple[NDArray[np.float64], State]:
        """As `LanguageModel.losses`."""
        self.eval()
        logits, state = self(torch.from_numpy(window.inputs).long(), state)
        targets = torch.from_numpy(window.targets).long()
        losses = nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
        )
        return losses.view(targets.shape).double().numpy(), state


def nn_lstm(split: Split, part: Part, seconds: float, seed: int, newlines: Newlines) -> dict[str, float]:
    """The plain script: the same windows, no reset of the state, which `nn.LSTM` cannot do inside a window."""
    torch.manual_seed(seed)
    texts = [story.read() for story in split.parts["train"]]
    vocabulary = Vocabulary.build(texts, newlines=newlines)
    training = [[vocabulary.encode(text)] for text in texts]
    model = Rival(len(vocabulary))
    optimiser = torch.optim.Adam(model.parameters())
    began, number = time.monotonic(), 0
    while (done := (time.monotonic() - began) / seconds) < 1.0:
        state = model.zero_state(64)
        for window in epoch(training, 64, 50, seed, number):
            done = (time.monotonic() - began) / seconds
            if done >= 1.0:
                break
            model.train()
            for group in optimiser.param_groups:
                group["lr"] = 0.002 * cosine(done, 0.02)
            logits, after = model(torch.from_numpy(window.inputs).long(), state)
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.from_numpy(window.targets).long().flatten(), ignore_index=-1
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            state = (after[0].detach(), after[1].detach())
        number += 1
    stories = encode_stories(((s.name, s.read()) for s in split.parts[part]), vocabulary)
    return {
        "nn.LSTM script": evaluate(cast(LanguageModel, model), stories).total.bits_per_character,
        "epochs": number,
    }


def ppmd(split: Split, part: Part, newlines: Newlines, order: int = 16) -> dict[str, float]:
    """What each story adds to the compressed training stories, in bits per character."""
    import pyppmd

    def read(stories: Sequence[object]) -> list[str]:
        return [normalise(s.read(), True, newlines) for s in stories]  # type: ignore[attr-defined]

    def size(text: str) -> int:
        return len(pyppmd.compress(text.encode(), max_order=order, mem_size=1 << 28))

    prime = "".join(read(split.parts["train"]))
    alone = size(prime)
    stories = read(split.parts[part])
    bits = 8 * sum(size(prime + story) - alone for story in stories)
    return {f"PPMd, order {order}": bits / sum(map(len, stories))}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", default="grimm")
    parser.add_argument("--split", type=Path)
    parser.add_argument("--budget", type=duration, default=660.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--presets", nargs="*", default=["tutorial", "strong"])
    parser.add_argument("--rivals", nargs="*", default=["nn.LSTM", "PPMd"])
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    parser.add_argument("--newlines", choices=["keep", "space"], default="space")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    corpus = open_corpus(options.corpus)
    split = split_by_file(corpus, options.split) if options.split else split_by_hash(corpus)
    results: dict[str, list[float]] = {}
    epochs: dict[str, list[float]] = {}
    for seed in options.seeds:
        for name in options.presets:
            measured = preset(name, corpus, split, options.part, options.budget, seed, options.newlines)
            epochs.setdefault(name, []).append(measured.pop("epochs"))
            for contender, bits in measured.items():
                results.setdefault(contender, []).append(bits)
        if "nn.LSTM" in options.rivals:
            measured = nn_lstm(split, options.part, options.budget, seed, options.newlines)
            epochs.setdefault("nn.LSTM script", []).append(measured.pop("epochs"))
            for contender, bits in measured.items():
                results.setdefault(contender, []).append(bits)
    if "PPMd" in options.rivals:
        results |= {name: [bits] for name, bits in ppmd(split, options.part, options.newlines).items()}
    if options.json:
        print(json.dumps({"part": options.part, "budget": options.budget, "bits_per_character": results}))
        return
    print(
        f"bits per character, {options.part} stories, {options.budget:g} s of training, {options.threads} threads"
    )
    for name, runs in sorted(results.items(), key=lambda item: statistics.mean(item[1])):
        spread = f" ± {statistics.stdev(runs):.4f}" if len(runs) > 1 else ""
        done = epochs.get(name)
        note = f"   {statistics.mean(done):.0f} epochs" if done else ""
        print(f"{name:20s} {statistics.mean(runs):.4f}{spread}{note}")


if __name__ == "__main__":
    main()
