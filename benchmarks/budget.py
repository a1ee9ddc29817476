"""How well `grimmgen train --budget` is kept: wall clock of the whole command, on texts of three sizes.

    python benchmarks/budget.py --corpus DIRECTORY
    python benchmarks/budget.py --corpus DIRECTORY --sizes 22MB --budgets 10s --options "--preset strong"

The texts are the tales in DIRECTORY as they are, and their lines, shuffled repeatedly, up to each size. "uncounted" is
the time that does not count as training time: what passed before the first update, less what the program has counted
by then (the interpreter's start, and reading more than 64 MB). "exit" is the time from the last event to the end of the
process, and "over" what the command took beyond its budget and the uncounted time. Budgets run one after the other; a
large text is encoded in the first one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from grimmgen.configuration import duration

_UNITS = {"MB": 10**6, "GB": 10**9}


def make(path: Path, tales: Path, size: int) -> None:
    """Write a text of `size` bytes: the lines of the tales, shuffled repeatedly with a fixed seed."""
    lines = [line for tale in sorted(tales.glob("*.txt")) for line in tale.read_bytes().splitlines(keepends=True)]
    shuffle = random.Random(0)  # noqa: S311 - not a secret
    with path.open("wb") as file:
        while size > 0:
            shuffle.shuffle(lines)
            # Some tales are not UTF-8.
            size -= file.write(b"".join(lines).decode("latin-1").encode()[:size])


def train(corpus: Path, budget: str, options: str) -> dict[str, Any]:
    """Train on a corpus within a budget; returns the figures of the row."""
    began = time.perf_counter()
    command = [
        "train",
        "--json",
        "--preset",
        "tutorial",
        "--corpus",
        str(corpus),
        "--budget",
        budget,
        "--patience",
        "0",
    ]
    command += shlex.split(options)
    first, last, ended, scores = None, {}, 0.0, 0
    with subprocess.Popen([sys.executable, "-m", "grimmgen", *command], stdout=subprocess.PIPE) as process:
        assert process.stdout
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "stepped" and first is None:
                first = time.perf_counter() - began - event["seconds"]
            scores += event["event"] == "evaluated"
            last, ended = event, time.perf_counter() - began
    wall = time.perf_counter() - began
    if process.returncode or first is None:
        raise SystemExit(f"{shlex.join(command)} has failed")
    return {
        "corpus": corpus.name,
        "budget": duration(budget),
        "wall": wall,
        "uncounted": first,
        "exit": wall - ended,
        "over": wall - first - duration(budget),
        "updates": last["step"],
        "evaluations": scores,
        "perplexity": last["best_perplexity"],
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--sizes", nargs="*", default=["22MB", "1GB"])
    parser.add_argument("--budgets", nargs="+", default=["10s", "60s", "300s"])
    parser.add_argument("--options", default="", help="further options of grimmgen train")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["GRIMMGEN_HOME"] = str(Path(directory) / "home")
        texts = [options.corpus]
        for size in options.sizes:
            texts.append(Path(directory) / f"{size}.txt")
            make(texts[-1], options.corpus, int(size[:-2]) * _UNITS[size[-2:]])
        if not options.json:
            print(
                "corpus        budget     wall  uncounted   exit    over  updates  evaluations  perplexity  load"
            )
        for text in texts:
            for budget in options.budgets:
                row = train(text, budget, options.options)
                if options.json:
                    print(json.dumps(row), flush=True)
                    continue
                perplexity = "none" if row["perplexity"] is None else f"{row['perplexity']:.2f}"
                print(
                    f"{row['corpus']:12s} {row['budget']:7.0f} {row['wall']:8.2f} {row['uncounted']:10.2f}"
                    f" {row['exit']:6.2f} {row['over']:+7.2f} {row['updates']:8d} {row['evaluations']:12d}"
                    f" {perplexity:>11s} {row['load'] or 0:5.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
