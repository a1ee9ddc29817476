"""Bits per character over the size of a text, trained from random weights and from the weights of another model.

    python benchmarks/base.py RUN_OR_FILE --sizes 10000 50000 100000 500000 --budget 15s

The text is that of `--text`, or Python's own reference (`pydoc_data.topics`), which every Python has: English prose and
code, far from the tales. Both trainings have the options of `--preset auto` and the same processor time with one
thread, and read line ends as the model does. From random weights, network and tokens are those that suit the text. The
last 60,000 characters are the test set, and as much as an eighth of the training set before them is the validation set.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from pydoc_data.topics import topics

import torch

from grimmgen.configuration import Configuration, duration
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.model import LanguageModel
from grimmgen.runs.events import Finished
from grimmgen.runs.registry import TrainedModel, load_model
from grimmgen.text.corpus import open_corpus
from grimmgen.text.split import split_by_file
from grimmgen.training.auto import adapt
from grimmgen.training.session import Training

_TESTED = 60_000


def train(directory: Path, budget: float, model: TrainedModel | None, options: dict[str, object]) -> str:
    """Train on the text in a directory; returns the bits per character and the epochs, as cells of a table."""
    options = {**options, "budget": budget}
    began = time.monotonic()
    corpus = open_corpus(str(directory / "texts"))
    split = split_by_file(corpus, directory / "split.json")
    configuration, _ = adapt(options, split.parts["train"], base=model)
    training = Training.begin(corpus, configuration, split, base=model)
    training.counted_from = began
    finished = list(training.events())[-1]
    assert isinstance(finished, Finished)
    checkpoint = training.run.checkpoint()
    network = LanguageModel(checkpoint.configuration, len(checkpoint.vocabulary))
    network.load_weights(checkpoint.weights)
    texts = [(document.name, document.read()) for document in split.parts["test"]]
    scores = evaluate(network, encode_for_evaluation(texts, checkpoint.vocabulary)).total
    training.run.remove()
    return f"{scores.bits_per_character:.3f} (epoch {finished.best_epoch} of {finished.epoch})"


def main() -> None:
    """Print a row for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="run or checkpoint to start from")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 50_000, 100_000, 500_000])
    parser.add_argument("--budget", type=duration, default=15.0, help="processor time, as in 15s")
    parser.add_argument(
        "--set", action="append", default=[], metavar="OPTION=VALUE", help="as in learning_rate=0.002"
    )
    parser.add_argument("--text", type=Path, help="a text in one file, instead of Python's reference")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # which training asks for the time
    model = load_model(arguments.model)
    base: Configuration = model.checkpoint.configuration
    options = {name: json.loads(value) for name, _, value in (pair.partition("=") for pair in arguments.set)}
    options.setdefault("newlines", base.newlines)
    text = "\n".join(topics[name] for name in sorted(topics))
    if arguments.text:
        text = arguments.text.read_text("utf-8")
    test, before = text[-_TESTED:], text[:-_TESTED]
    print("| characters | from random weights | from the model |\n|--:|--:|--:|")
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "texts").mkdir()
            parts = {"train": before[:size], "valid": before[-size // 8 :], "test": test}
            for part, content in parts.items():
                (directory / "texts" / f"{part}.txt").write_text(content, encoding="utf-8")
            (directory / "split.json").write_text(json.dumps({part: [part] for part in parts}))
            random = train(directory, arguments.budget, None, options)
            print(f"| {size:,} | {random} | {train(directory, arguments.budget, model, options)} |", flush=True)


if __name__ == "__main__":
    main()
