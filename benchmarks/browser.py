"""The exported page: what the bits of its weights cost, and how fast it generates in a browser.

    python benchmarks/browser.py --run tales

For each form of the weights: the bits per character on the test set of the run, and the size of the page. Forms that
the export does not offer are for comparison: bfloat16, and 8 bits with a scale for each column or for each matrix. The
speed is that of stories of 2,000 characters in headless Chromium, whose worker uses one core, and of the compiled
kernels with the same weights on one core; rounds alternate, and medians are printed.
"""

from __future__ import annotations

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from grimmgen.evaluation import static
from grimmgen.export.html import to_html
from grimmgen.network.model import LanguageModel
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import TrainedModel, load_model
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.options import SamplingOptions

ROOT = Path(__file__).parent.parent
_LENGTH = 2000

Floats = NDArray[np.float32]


def bfloat16(weight: Floats) -> Floats:
    """Round to 16 bits with the range of float32."""
    rounded: Floats = torch.from_numpy(weight).bfloat16().float().numpy()
    return rounded


def eight_bits(weight: Floats, axis: int | None) -> Floats:
    """Round to 255 equidistant values; those of a column (axis 0) or of all have one scale."""
    scale = np.abs(weight).max(axis=axis, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    rounded: Floats = np.round(weight / scale) * scale
    return rounded


FORMS: dict[str, tuple[int, Callable[[Floats], Floats]]] = {
    "float32 (`--bits 32`)": (4, lambda weight: weight),
    "float16 (the default)": (2, lambda weight: weight.astype(np.float16).astype(np.float32)),
    "bfloat16": (2, bfloat16),
    "8 bits, a scale for each column": (1, lambda weight: eight_bits(weight, 0)),
    "8 bits, a scale for each matrix": (1, lambda weight: eight_bits(weight, None)),
}


def bits_per_character(checkpoint: Checkpoint, texts: list[tuple[str, str]]) -> float:
    """The score of texts, given as (name, text)."""
    model = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    model.load_weights(checkpoint.weights)
    encoded = static.encode_for_evaluation(iter(texts), checkpoint.vocabulary)
    return static.evaluate(model, encoded).total.bits_per_character


def in_browser(model: TrainedModel, rounds: int) -> tuple[list[float], list[float]]:
    """Tokens per second in Chromium and on the compiled kernels, one of each per round."""
    sys.path.insert(0, str(ROOT))
    from tests.browser import browser

    generator = TextGenerator(model)
    browsers, kernels = [], []
    with tempfile.TemporaryDirectory() as directory, browser() as chromium:
        path = Path(directory) / "page.html"
        path.write_bytes(to_html(model.checkpoint))
        page = chromium.page()
        page.open(path)
        page.wait("!document.getElementById('write').disabled")
        page.evaluate(f"document.getElementById('length').value = {_LENGTH}")
        page.evaluate(
            "window.finished = []; worker.addEventListener('message', (event) => finished.push(event.data))"
        )
        for number in range(rounds + 1):
            page.evaluate("finished.length = 0")
            page.evaluate("document.getElementById('form').requestSubmit()")
            page.wait("finished.at(-1)?.type === 'done'")
            browsers.append(page.evaluate("finished.at(-1).count / finished.at(-1).seconds"))
            options = SamplingOptions(length=_LENGTH, random_seed=number)
            began = time.perf_counter()
            [story] = generator.generate_batch("", options, 1)
            kernels.append(len(story.ids) / (time.perf_counter() - began))
    # The first round compiles the page's code.
    return browsers[1:], kernels[1:]


def main() -> None:
    """Print a table, and the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="the latest one by default")
    parser.add_argument("--rounds", type=int, default=9, help="stories for the speed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = load_model(options.run)
    if model.run is None:
        parser.error("give the name of a run, whose test set is needed")
    checkpoint = model.checkpoint
    texts = [(document.name, document.read()) for document in model.run.split().parts["test"]]
    size = len(to_html(checkpoint.rounded())) - 4 / 3 * sum(
        2 * weight.size for weight in checkpoint.weights.values()
    )
    print("| weights | bits per character | page |\n|---|---|---|")
    for name, (width, convert) in FORMS.items():
        converted = replace(checkpoint, weights={n: convert(weight) for n, weight in checkpoint.weights.items()})
        page = size + 4 / 3 * sum(width * weight.size for weight in checkpoint.weights.values())
        print(f"| {name} | {bits_per_character(converted, texts):.5f} | {page / 1e6:.1f} MB |", flush=True)
    browsers, kernels = in_browser(replace(model, checkpoint=checkpoint.rounded()), options.rounds)
    print(f"\nChromium: {statistics.median(browsers):,.0f} tokens a second", end=" ")
    print(f"({min(browsers):,.0f} to {max(browsers):,.0f}); compiled kernels: {statistics.median(kernels):,.0f}")


if __name__ == "__main__":
    main()
