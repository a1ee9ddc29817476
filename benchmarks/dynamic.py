"""Dynamic evaluation against the same in plain PyTorch, in the same run: tokens per second.

    python benchmarks/dynamic.py
    python benchmarks/dynamic.py --hidden 192 --threads 1

The network is that of `--preset strong`, untrained, and the documents are random tokens, which take as long as any
others. The rival is `nn.Embedding`, `nn.LSTM` and `nn.Linear`, untied, with automatic differentiation: one document
after the other, segments of the same length, the same update of the weights. Both run in turn; printed are medians and
quartiles, and how many times as fast as PyTorch grimmgen is (the median, pair by pair). The statistics of the
gradients, a fixed number of tokens before the first document, are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import torch
from torch import Tensor, nn

from grimmgen.configuration import configure
from grimmgen.evaluation import dynamic
from grimmgen.evaluation.static import EncodedDocument
from grimmgen.network.model import LanguageModel

SEGMENT, RATE, DECAY = 64, 0.0015, 0.009


class Plain(nn.Module):
    """The rival's network."""

    def __init__(self, V: int, E: int, H: int) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(V, E), nn.LSTM(E, H)
        self.project, self.output = nn.Linear(H, E, bias=False), nn.Linear(E, V)

    def evaluate(self, documents: list[Tensor]) -> float:
        """The nats of documents, each a tensor [N] of ids."""
        weights, total = list(self.parameters()), 0.0
        trained = [weight.detach().clone() for weight in weights]
        rates = [torch.full_like(weight, RATE) for weight in trained]
        for document in documents:
            state = None
            for begin in range(0, len(document) - 1, SEGMENT):
                read, targets = document[begin : begin + SEGMENT], document[begin + 1 : begin + 1 + SEGMENT]
                hidden, state = self.lstm(self.embedding(read[: len(targets)])[:, None], state)
                logits = self.output(self.project(hidden[:, 0]))
                loss = nn.functional.cross_entropy(logits, targets)
                gradients = torch.autograd.grad(loss, weights)
                state = tuple(part.detach() for part in state)
                total += loss.item() * len(targets)
                with torch.no_grad():
                    for weight, gradient, rate, before in zip(weights, gradients, rates, trained, strict=True):
                        weight.addcmul_(gradient, rate, value=-1.0).lerp_(before, DECAY)
            with torch.no_grad():
                for weight, before in zip(weights, trained, strict=True):
                    weight.copy_(before)
        return total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--vocabulary-size", type=int, default=1000)
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    V, N = options.vocabulary_size, 30 * SEGMENT
    configuration = configure("strong", {"hidden": options.hidden})
    model = LanguageModel(configuration, V)
    model.initialise()
    assert configuration.embedding is not None
    rival = Plain(V, configuration.embedding, options.hidden)
    ids = np.random.default_rng(0).integers(5, V, (options.documents, N)).astype(np.int32)
    documents = [EncodedDocument(str(k), row, 0.0, N) for k, row in enumerate(ids)]
    flat = [torch.from_numpy(row.astype(np.int64)) for row in ids]
    rms = dynamic.gradient_rms(model, SEGMENT)
    dynamic.gradient_rms = lambda *_: rms
    rates: dict[str, list[float]] = {"grimmgen": [], "PyTorch": []}
    for number in range(options.rounds + 1):
        for name, run in (
            ("grimmgen", lambda: dynamic.evaluate_dynamically(model, documents, RATE, DECAY, segment=SEGMENT)),
            ("PyTorch", lambda: rival.evaluate(flat)),
        ):
            began = time.perf_counter()
            run()
            if number:
                rates[name].append(options.documents * N / (time.perf_counter() - began))
    ratio = statistics.median(a / b for a, b in zip(*rates.values(), strict=True))
    figures = {
        "H": options.hidden,
        "V": V,
        "threads": options.threads,
        "documents": options.documents,
        "tokens a second": {name: statistics.quantiles(own, n=4) for name, own in rates.items()},
        "times as fast": ratio,
    }
    if options.json:
        print(json.dumps(figures))
        return
    print(
        f"dynamic evaluation, H = {options.hidden}, V = {V}, {options.threads} thread(s), torch {torch.__version__}"
    )
    for name, own in rates.items():
        lower, median, upper = statistics.quantiles(own, n=4)
        print(f"{name:10s} {median:7,.0f} tokens/s ({lower:,.0f} – {upper:,.0f})")
    print(f"{ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
