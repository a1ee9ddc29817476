"""Bits per character on held-out stories for a given training time: presets, variants of them, and other models.

    grimmgen fetch --stories all
    python benchmarks/quality.py --split split.json --budget 11m --seeds 0 1 2 --dynamic strong nn.LSTM PPMd
    python benchmarks/quality.py --split split.json --epochs 60 --part valid tutorial tutorial,phases=true

    python benchmarks/quality.py --corpus names.txt --documents line --newlines keep --budget 30s --clock cpu \
        --threads 1 quick,tokens=char quick,tokens=bigram quick,tokens=word quick,tokens=bpe:300

A contender is a preset, optionally followed by options of `grimmgen.configuration.Configuration`, separated by
commas (`distil=NAME+NAME`: towards the predictions of these runs); or one of the other models: `nn.LSTM`, a plain
script (512 hidden units, an embedding of 256 tied to the output, dropout 0.5, Adam with a cosine schedule) on the same
bigrams; `nn.LSTM-bf16`, the same under PyTorch's autocast; `PPMd` (`pip install pyppmd`), a classical compressor,
primed with the training set and applied to each story separately; `Kneser-Ney`, counts of up to eight characters.

All are trained on the same training set and evaluated on the same whole stories: those of the validation set
(`--part valid`) while options are being chosen, those of the test set afterwards. `--clock cpu` counts the processor's
time instead of the clock's, for a machine that has other work, too. `--out FILE` appends a line of
JSON for each run; `--table FILE…` prints the table of such files and runs nothing. The tables in
benchmarks/README.md come from this script.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from grimmgen.configuration import (
    UNLIMITED_EPOCHS,
    Configuration,
    Newlines,
    Normalisation,
    configure,
    duration,
)
from grimmgen.evaluation.baseline import KneserNey
from grimmgen.evaluation.comparison import evaluate_models
from grimmgen.evaluation.scores import Evaluation
from grimmgen.evaluation.static import encode_for_evaluation, evaluate
from grimmgen.network.model import LanguageModel, State
from grimmgen.runs.events import Finished, Started
from grimmgen.runs.registry import load_model
from grimmgen.text.batches import Window, epoch
from grimmgen.text.corpus import Corpus, open_corpus
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.normalisation import normalise
from grimmgen.text.split import Part, Split, split_by_file, split_by_hash
from grimmgen.training.auto import adapt
from grimmgen.training.distillation import with_teachers
from grimmgen.training.schedule import cosine
from grimmgen.training.session import Training


@dataclass(frozen=True)
class Task:
    """The task of all contenders; `seconds` and `epochs` limit the training, None is no limit."""

    corpus: Corpus
    split: Split
    part: Part
    newlines: Newlines
    documents: str
    seed: int
    seconds: float | None
    epochs: int | None
    dynamic: bool

    def texts(self) -> list[tuple[str, str]]:
        """The names and texts of the stories to evaluate on."""
        return [(document.name, document.read()) for document in self.split.parts[self.part]]


@dataclass(frozen=True)
class Result:
    """One line of the record.

    Attributes:
        contender: its name on the command line.
        part: of the split.
        limit: of the training, as in `660 s` or `60 epochs`.
        newlines: how line ends were read.
        seed: random seed.
        threads: of PyTorch and the kernels.
        bits_per_character: over all stories of the part.
        dynamic: bits per character under dynamic evaluation.
        perplexity: per bigram; None for models without bigrams.
        epochs: of training.
        updates: of training.
        seconds: of training.
        computed: description of the backend.
        corpus: what was trained on.
        mixture: bits per character of the network with counts; None without counts.
        dynamic_mixture: the same under dynamic evaluation.
        day: of the run; empty in earlier lines of the record.
    """

    contender: str
    part: str
    limit: str
    newlines: str
    seed: int
    threads: int
    bits_per_character: float
    dynamic: float | None = None
    perplexity: float | None = None
    epochs: int | None = None
    updates: int | None = None
    seconds: float | None = None
    computed: str = ""
    corpus: str = "grimm"
    mixture: float | None = None
    dynamic_mixture: float | None = None
    day: str = ""


Figures = dict[str, Any]


def ours(name: str, task: Task) -> Figures:
    """Train a preset with `grimmgen`, and evaluate its checkpoint as `grimmgen eval` does, with and without counts."""
    preset, *changes = name.split(",")
    options: dict[str, Any] = {}
    for change in changes:
        option, _, value = change.partition("=")
        try:
            options[option] = json.loads(value)
        except json.JSONDecodeError:
            options[option] = value
    teachers = [load_model(teacher) for teacher in options.pop("distil", "").split("+") if teacher]
    options |= {"random_seed": task.seed, "newlines": task.newlines, "documents": task.documents}
    if task.epochs is not None:
        options["epochs"] = task.epochs
    if task.seconds is not None:
        options["budget"] = task.seconds
    if task.seconds is not None and preset != "auto":
        options.setdefault("epochs", UNLIMITED_EPOCHS)
    began, configuration = time.monotonic(), configure(preset, options)
    if name.startswith("auto"):
        configuration, reason = adapt(options, task.split.parts["train"])
        print(reason, file=sys.stderr)
    if teachers:
        configuration = with_teachers(configuration, options)
    training = Training.begin(task.corpus, configuration, task.split, teachers=teachers)
    print(f"run {training.run.name}", file=sys.stderr)
    training.counted_from = began
    events = training.events()
    started = next(event for event in events if isinstance(event, Started))
    finished = next(event for event in events if isinstance(event, Finished))
    comparison = evaluate_models(
        [training.run.load()], task.split.parts[task.part], task.part, torch.device("cpu"), task.dynamic
    )
    found: dict[str, Any] = {result.kind: result for result in comparison.results}
    figures = _figures(found["network"].static)
    for kind, (static, dynamic) in {"network": ("", "dynamic"), "mixture": ("mixture", "dynamic_mixture")}.items():
        if (result := found.get(kind)) is not None:
            figures |= {static: result.static.total.bits_per_character} if static else {}
            figures |= {dynamic: result.dynamic.total.bits_per_character} if result.dynamic else {}
    return figures | {
        "epochs": finished.epoch,
        "updates": finished.step,
        "seconds": finished.seconds,
        "computed": started.kernel,
    }


def _figures(evaluation: Evaluation) -> Figures:
    total = evaluation.total
    return {"bits_per_character": total.bits_per_character, "perplexity": total.perplexity}


class Rival(nn.Module):
    """A minimal PyTorch language model: embedding, `nn.LSTM`, projection, tied output."""

    def __init__(self, vocabulary_size: int, bf16: bool, hidden: int = 512, embedding: int = 256) -> None:
        super().__init__()
        self.hidden = hidden
        self.bf16 = bf16
        self.embedding = nn.Embedding(vocabulary_size, embedding)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(embedding, hidden)
        self.projection = nn.Linear(hidden, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [T, B, V] and the state."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16 and self.training):
            hidden, after = self.lstm(self.embedding(inputs), tuple(state))
            logits = self.projection(self.dropout(hidden)) @ self.embedding.weight.T + self.bias
        return logits.float(), (after[0].float(), after[1].float())

    def zero_state(self, rows: int) -> State:
        """The initial state."""
        zeros = torch.zeros(1, rows, self.hidden)
        return (zeros, zeros)

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


def nn_lstm(name: str, task: Task) -> Figures:
    """Train and evaluate `Rival` on the same windows; `nn.LSTM` cannot reset the state inside a window."""
    torch.manual_seed(task.seed)
    texts = [document.read() for document in task.split.parts["train"]]
    vocabulary = NgramVocabulary.build(texts, normalisation=Normalisation(newlines=task.newlines))
    training = [[vocabulary.encode(text)] for text in texts]
    model = Rival(len(vocabulary), bf16=name.endswith("bf16"))
    optimiser = torch.optim.Adam(model.parameters())
    began, number, updates = time.monotonic(), 0, 0

    def progress() -> float:
        if task.seconds is not None:
            return (time.monotonic() - began) / task.seconds
        return updates / max(1, len(windows) * (task.epochs or 30))

    windows = list(epoch(training, 64, 50, task.seed, 0))
    while progress() < 1.0:
        state = model.zero_state(64)
        windows = list(epoch(training, 64, 50, task.seed, number))
        for window in windows:
            if (done := progress()) >= 1.0:
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
            state = tuple(part.detach() for part in after)
            updates += 1
        number += 1
    seconds = time.monotonic() - began
    figures = _figures(evaluate(cast(LanguageModel, model), encode_for_evaluation(task.texts(), vocabulary)))
    return figures | {"epochs": number, "updates": updates, "seconds": seconds, "computed": "PyTorch"}


def ppmd(_: str, task: Task) -> Figures:
    """The size that each story adds to the compressed training set, in bits per character."""
    import pyppmd

    order = 16

    def size(text: str) -> int:
        return len(pyppmd.compress(text.encode(), max_order=order, mem_size=1 << 28))

    train, evaluated = _normalised(task)
    prime = "".join(train)
    prime_size = size(prime)
    bits = 8 * sum(size(prime + text) - prime_size for _, text in evaluated)
    return {"bits_per_character": bits / sum(len(text) for _, text in evaluated), "computed": f"order {order}"}


def kneser_ney(_: str, task: Task) -> Figures:
    """Counts of up to 8 characters: the baseline of `grimmgen eval --baseline`."""
    train, evaluated = _normalised(task)
    total = KneserNey(train).evaluate(evaluated).total
    return {"bits_per_character": total.bits_per_character, "computed": "order 8"}


def _normalised(task: Task) -> tuple[list[str], list[tuple[str, str]]]:
    """The training set, and the names and texts of the stories to evaluate on."""
    normalisation = Normalisation(newlines=task.newlines)
    train = [normalise(document.read(), normalisation) for document in task.split.parts["train"]]
    return train, [(name, normalise(text, normalisation)) for name, text in task.texts()]


RIVALS: dict[str, Callable[[str, Task], Figures]] = {
    "nn.LSTM": nn_lstm,
    "nn.LSTM-bf16": nn_lstm,
    "PPMd": ppmd,
    "Kneser-Ney": kneser_ney,
}


def table(results: Sequence[Result]) -> str:
    """A Markdown table of the contenders, the best first: mean and standard deviation over the seeds."""
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        # A time limit depends on the number of threads.
        limit = result.limit + (
            f", {result.threads} thread{'s' * (result.threads > 1)}" if result.limit.endswith(" s") else ""
        )
        groups.setdefault((result.corpus, result.contender, limit, result.newlines, result.part), []).append(
            result
        )
    rows = sorted(groups.items(), key=lambda item: (item[0][0], item[0][2:], _mean(item[1], "bits_per_character")))
    figures = {"bits/character": ("bits_per_character", 4), "dynamic": ("dynamic", 4)}
    if any(result.mixture is not None for result in results):
        figures |= {"with counts": ("mixture", 4), "dynamic, with counts": ("dynamic_mixture", 4)}
    figures |= {"perplexity": ("perplexity", 2)}
    columns = ["corpus", "contender", "training", "newlines", "stories", *figures, "epochs", "seeds"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for (corpus, contender, limit, newlines, part), runs in rows:
        cells = [_spread(runs, figure, digits) for figure, digits in figures.values()]
        cells += [_spread(runs, "epochs", 0, deviation=False), str(len(runs))]
        lines.append(f"| {corpus} | `{contender}` | {limit} | {newlines} | {part} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _mean(runs: Sequence[Result], figure: str) -> float:
    return float(statistics.mean(getattr(run, figure) for run in runs))


def _spread(runs: Sequence[Result], figure: str, digits: int, deviation: bool = True) -> str:
    if any(getattr(run, figure) is None for run in runs):
        return ""
    spread = statistics.stdev(getattr(run, figure) for run in runs) if deviation and len(runs) > 1 else None
    return f"{_mean(runs, figure):.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")


def read_record(paths: Sequence[Path]) -> list[Result]:
    """Read the results that `--out` wrote."""
    return [Result(**json.loads(line)) for path in paths for line in path.read_text("utf-8").splitlines()]


def main() -> None:
    """Run the contenders and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", default=["tutorial", "strong", "nn.LSTM", "PPMd"])
    parser.add_argument("--corpus", default="grimm")
    parser.add_argument("--documents", default="file", help="where a document ends, as for `grimmgen train`")
    parser.add_argument("--split", type=Path)
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--budget", type=duration, help="time limit of training, as in 11m")
    limit.add_argument("--epochs", type=int, help="epochs of training; without either limit, those of the preset")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--part", choices=["valid", "test"], default="test")
    parser.add_argument("--newlines", choices=["keep", "space"], default="space")
    parser.add_argument("--dynamic", action="store_true", help="also evaluate the presets dynamically")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="what --budget counts")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each run to this file")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print the table of these files")
    options = parser.parse_args()
    if options.table:
        print(table(read_record(options.table)))
        return
    torch.set_num_threads(options.threads)
    if options.clock == "cpu":
        time.monotonic = time.process_time  # which training asks for the time
    corpus = open_corpus(options.corpus, Configuration(documents=options.documents))
    split = split_by_file(corpus, options.split) if options.split else split_by_hash(corpus)
    limit_text = "its own"
    if options.budget or options.epochs:
        unit = "s" if options.clock == "wall" else "CPU s"
        limit_text = f"{options.budget:g} {unit}" if options.budget else f"{options.epochs} epochs"
    results = []
    for seed in options.seeds:
        task = Task(
            corpus,
            split,
            options.part,
            options.newlines,
            options.documents,
            seed,
            options.budget,
            options.epochs,
            options.dynamic,
        )
        for name in options.contenders:
            if name in {"PPMd", "Kneser-Ney"} and seed != options.seeds[0]:
                continue  # they do not depend on the seed
            figures = RIVALS.get(name, ours)(name, task)
            result = Result(
                name,
                options.part,
                limit_text,
                options.newlines,
                seed,
                options.threads,
                corpus=corpus.name,
                day=dt.datetime.now(tz=dt.UTC).date().isoformat(),
                **figures,
            )
            results.append(result)
            print(json.dumps(asdict(result)), file=sys.stderr, flush=True)
            if options.out:
                with options.out.open("a", encoding="utf-8") as record:
                    record.write(json.dumps(asdict(result)) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
