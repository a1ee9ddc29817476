"""The runs behind `--preset auto`: bits per character by size of text, processor time, and options.

    python benchmarks/auto.py --corpus DIRECTORY --split split.json --characters 100000 --budget 20s \
        auto,hidden=128 auto,hidden=192,dropout=0.5,epochs=20
    python benchmarks/auto.py --table

Contenders are those of `benchmarks/quality.py`. They are trained with one thread, on the first `--characters` of the
training stories in a random order that is always the same, and the budget counts the processor's time. The first
half of the validation stories, cut to an eighth of the training set, is their validation set, and the bits per
character are those of the other half. Each run appends a line to `auto.jsonl`; `--table` prints all of them, the best
of each size and budget first: what `RECOMMENDED` in `grimmgen/training/auto.py` is read off.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch
from quality import Result, Task, ours, read_record, table

from grimmgen.configuration import Configuration, duration
from grimmgen.text.corpus import Document, open_corpus
from grimmgen.text.split import split_by_file, split_by_hash

RECORD = Path(__file__).with_name("auto.jsonl")
_EVALUATED = 60_000


def write_texts(documents: Iterable[Document], characters: int, directory: Path, prefix: str) -> list[str]:
    """Write the first characters of documents into files, and return the names of these."""
    names = []
    for number, document in enumerate(documents):
        if characters <= 0:
            break
        text = document.read()[:characters]
        characters -= len(text)
        names.append(f"{prefix}{number:04d}")
        (directory / f"{names[-1]}.txt").write_text(text, encoding="utf-8")
    return names


def cut(options: argparse.Namespace, directory: Path) -> Path:
    """Write the cut texts into `texts` in a directory, and their split into a file, whose path is returned."""
    corpus = open_corpus(options.corpus)
    parts = (split_by_file(corpus, options.split) if options.split else split_by_hash(corpus)).parts
    draw = random.Random(1)  # noqa: S311 - the same order each time
    train, valid = (sorted(parts[part], key=lambda document: document.name) for part in ("train", "valid"))
    draw.shuffle(train)
    draw.shuffle(valid)
    half = len(valid) // 2
    wanted = {
        "train": (train, options.characters),
        "valid": (valid[:half], min(options.characters // 8 + 500, _EVALUATED)),
        "test": (valid[half:], _EVALUATED),
    }
    texts = directory / "texts"
    texts.mkdir()
    names = {part: write_texts(documents, most, texts, part) for part, (documents, most) in wanted.items()}
    path = directory / "split.json"
    path.write_text(json.dumps(names))
    return path


def main() -> None:
    """Run the contenders, or print the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contenders", nargs="*", default=["auto"])
    parser.add_argument("--corpus", default="grimm")
    parser.add_argument("--split", type=Path)
    parser.add_argument("--characters", type=int, default=100_000, help="of the training set")
    parser.add_argument("--budget", type=duration, default=20.0, help="processor time, as in 20s")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=RECORD)
    parser.add_argument("--table", action="store_true", help="print the record, and run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read_record([options.out])))
        return
    torch.set_num_threads(1)
    time.monotonic = time.process_time  # which training asks for the time
    with tempfile.TemporaryDirectory() as name:
        split = cut(options, Path(name))
        corpus = open_corpus(str(split.with_name("texts")), Configuration())
        for seed in options.seeds:
            for contender in options.contenders:
                task = Task(
                    corpus,
                    split_by_file(corpus, split),
                    "test",
                    "space",
                    "file",
                    seed,
                    options.budget,
                    None,
                    dynamic=False,
                )
                size = f"{Path(options.corpus).name}, {options.characters:,} characters"
                limit = f"{options.budget:g} CPU s"
                result = Result(contender, "valid", limit, "space", seed, 1, corpus=size, **ours(contender, task))
                print(json.dumps(asdict(result)), flush=True)
                with options.out.open("a", encoding="utf-8") as record:
                    record.write(json.dumps(asdict(result)) + "\n")


if __name__ == "__main__":
    main()
