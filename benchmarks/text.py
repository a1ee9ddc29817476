"""Speed of counting and encoding a text, beside `collections.Counter`; optionally of training on it.

    python benchmarks/text.py --size 1GB
    python benchmarks/text.py --size 1GB --train 10
    python benchmarks/text.py --size 1GB --kind jsonl

grimmgen reads, counts and encodes the whole text (bigrams, lower case) in one thread. The baseline is plain Python
on the first megabytes of the same text: lower case, slices of two characters, a Counter, and a dictionary from
bigrams to ids. They run alternately, each in a process of its own, whose peak memory is measured. The report has
the median, the range, and the speed relative to the baseline (median of the rounds' ratios); "own core" uses
processor time instead of wall time, so that other programs do not count.

`--train` adds `grimmgen train --budget` on the text: its peak memory, and the time to the first update, once with
the ids still to be encoded and once with the ids in the cache. Without `--text` the text consists of the words of
the bundled tales, shuffled with a fixed seed.

`--kind` writes that text as JSON Lines, as a compressed table or as many small files. There "open" is the extraction
of the text; the baseline reads the rows with Python's `json`, `gzip` and `csv`, or the files one by one. Speeds are
those of the text that is extracted, not of the compressed file.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from grimmgen.text import encoding
from grimmgen.text.corpus import open_corpus
from grimmgen.text.ngrams import NgramVocabulary

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}

# The kinds of corpora, and the bytes of text in one row or file of them.
_KINDS = {"txt": 0, "jsonl": 1000, "csv.gz": 1000, "files": 10_000}


def size(text: str) -> int:
    """Parse a size like 1GB or 100MB."""
    match = re.fullmatch(r"(\d+)(|KB|MB|GB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 1GB")
    return int(match[1]) * _UNITS[match[2]]


def make(path: Path, length: int) -> None:
    """Write a text of `length` bytes: the words of the bundled tales, shuffled repeatedly."""
    words = " ".join(document.read() for document in open_corpus("sampler").documents).split(" ")
    generator = np.random.default_rng(0)
    with path.open("wb") as file:
        while length:
            order = generator.permutation(len(words))
            length -= file.write(
                " ".join([words[i] for i in order]).encode("ascii", "replace")[: length - 1] + b"\n"
            )


def convert(path: Path, kind: str) -> Path:
    """Write a text again as a corpus of another kind beside it, and remove it; return where the corpus is."""
    result = path.with_suffix("" if kind == "files" else f".{kind}")
    with path.open(encoding="ascii") as file:
        rows = iter(lambda: file.read(_KINDS[kind]), "")
        if kind == "files":
            result.mkdir()
            for number, row in enumerate(rows):
                (result / f"{number:06}.txt").write_text(row, encoding="ascii")
        elif kind == "jsonl":
            with result.open("w", encoding="ascii") as output:
                output.writelines(
                    json.dumps({"id": number, "text": row}) + "\n" for number, row in enumerate(rows)
                )
        else:
            with gzip.open(result, "wt", 6, "ascii", newline="") as output:
                writer = csv.writer(output)
                writer.writerow(["id", "text"])
                writer.writerows(enumerate(rows))
    path.unlink()
    return result


def plain_rows(path: Path) -> Iterator[str]:
    """The texts of a corpus, as a script of a few lines would read them."""
    if path.is_dir():
        for one in sorted(path.iterdir()):
            yield one.read_text(encoding="utf-8")
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
    elif path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                yield row["text"]
    else:
        with path.open(encoding="utf-8", errors="ignore") as file:
            yield from iter(lambda: file.read(1 << 20), "")


# --- measurements ------------------------------------------------------------------------------------------


class Stopwatch:
    """Measures wall time and processor time, in seconds, since its previous call."""

    def __init__(self) -> None:
        self._last = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        """Return (wall time, processor time)."""
        before, self._last = self._last, (time.perf_counter(), time.process_time())
        return self._last[0] - before[0], self._last[1] - before[1]


def measure_grimmgen(path: Path) -> dict[str, Any]:
    """Time each stage on the whole text; counting and encoding read the extracted text again."""
    watch = Stopwatch()
    documents = open_corpus(str(path)).documents
    opened = watch()
    length = sum(map(len, encoding.joined(documents).pieces())) - len(documents)
    read = watch()
    vocabulary = NgramVocabulary.build([encoding.joined(documents)])
    counted = watch()
    for _ in encoding.encode_joined(documents, vocabulary):
        pass
    stages = {"open": opened, "read": read, "count": counted, "encode": watch()}
    return {"characters": length, "stages": stages}


def measure_counter(path: Path, length: int) -> dict[str, Any]:
    """Time each stage on the first `length` characters in plain Python."""
    watch = Stopwatch()
    rows = []
    for row in plain_rows(path):
        rows.append(row)
        length -= len(row)
        if length <= 0:
            break
    text = "".join(rows)
    opened = watch()
    text = text.lower()
    counts = Counter(text[i : i + 2] for i in range(0, len(text), 2))
    counted = watch()
    ids = {bigram: i for i, (bigram, count) in enumerate(counts.most_common(), 2) if count >= 10}
    np.array([ids.get(text[i : i + 2], 0) for i in range(0, len(text), 2)], np.uint16)
    return {"characters": len(text), "stages": {"open": opened, "count": counted, "encode": watch()}}


def run_measured(command: list[str], parse: Callable[[IO[bytes]], Any]) -> tuple[Any, float | None]:
    """Run a command; return its output as `parse` reads it, and its peak memory in MB (None on Windows)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        result = parse(process.stdout)
        if sys.platform == "win32":
            return result, None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    # In kilobytes on Linux, in bytes on macOS.
    return result, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def train(path: Path, seconds: int) -> list[dict[str, float | None]]:
    """Measure peak memory and seconds to the first update of `grimmgen train`, without and with cached ids."""

    def first_update(lines: IO[bytes]) -> float | None:
        found = None
        for line in lines:
            if found is None and json.loads(line)["event"] == "stepped":
                found = time.perf_counter() - began
        return found

    command = [
        sys.executable,
        "-m",
        "grimmgen",
        "train",
        "--preset",
        "tutorial",
        "--json",
        "--corpus",
        str(path),
        "--budget",
        f"{seconds}s",
    ]
    runs: list[dict[str, float | None]] = []
    for _ in range(2):
        began = time.perf_counter()
        first, peak = run_measured(command, first_update)
        runs.append({"first update, s": first, "peak, MB": peak})
    return runs


# --- the report -----------------------------------------------------------------------------------------------


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=size("1GB"), help="of the generated text")
    parser.add_argument("--kind", choices=list(_KINDS), default="txt", help="of the corpus that is written")
    parser.add_argument("--text", type=Path, help="a corpus to use instead")
    parser.add_argument("--slice", type=size, default=size("16MB"), help="bytes that the baseline reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, metavar="SECONDS", help="also train on it for so long")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["grimmgen", "Counter"], help=argparse.SUPPRESS)  # one process
    options = parser.parse_args()
    if options.only:
        only_grimmgen = options.only == "grimmgen"
        print(
            json.dumps(
                measure_grimmgen(options.text) if only_grimmgen else measure_counter(options.text, options.slice)
            )
        )
        return
    with tempfile.TemporaryDirectory() as directory:
        path = options.text or Path(directory) / "text.txt"
        if not options.text:
            make(path, options.size)
            path = path if options.kind == "txt" else convert(path, options.kind)
        # The runs and the encoded text are removed with the directory.
        os.environ["GRIMMGEN_HOME"] = directory
        report = measure(path, options.slice, options.rounds)
        if options.train:
            report["train"] = train(path, options.train)
    print(json.dumps(report) if options.json else table(report))


def measure(path: Path, part: int, rounds: int) -> dict[str, Any]:
    """Run grimmgen and the baseline alternately; return MB/s of each stage, peak memory and ratios."""
    lengths: dict[str, int] = {}
    speeds: dict[str, dict[str, list[float]]] = {"grimmgen": {}, "Counter": {}}
    peaks: dict[str, float | None] = {}
    for _ in range(rounds):
        for name in speeds:
            command = [sys.executable, __file__, "--only", name, "--text", str(path), "--slice", str(part)]
            result, peaks[name] = run_measured(command, lambda lines: json.loads(next(lines)))
            lengths[name], stages = result["characters"], result["stages"]
            both = [a + b for a, b in zip(stages["count"], stages["encode"], strict=True)]
            whole = [a + b for a, b in zip(stages["open"], both, strict=True)]
            stages |= {"both": both, "both, own core": both[::-1]}
            stages |= {"with open": whole, "with open, own core": whole[::-1]}
            for stage, (seconds, _) in stages.items():
                speeds[name].setdefault(stage, []).append(lengths[name] / 1e6 / max(seconds, 1e-9))
    ratios = {
        stage: statistics.median(a / b for a, b in zip(speeds["grimmgen"][stage], theirs, strict=True))
        for stage, theirs in speeds["Counter"].items()
    }
    return {"bytes": lengths, "MB a second": speeds, "times as fast": ratios, "peak, MB": peaks}


def table(report: dict[str, Any]) -> str:
    """Format the report as a table."""
    lines = [f"{name}: {length / 1e6:,.0f} MB of text" for name, length in report["bytes"].items()]
    for name, stages in report["MB a second"].items():
        for stage, speeds in stages.items():
            known = name == "grimmgen" and stage in report["times as fast"]
            ratio = f", {report['times as fast'][stage]:.1f} times as fast as Counter" if known else ""
            lines.append(
                f"{name:8s}  {stage:19s} {statistics.median(speeds):8.1f} MB/s"
                f"   ({min(speeds):.1f} – {max(speeds):.1f}, {len(speeds)} rounds){ratio}"
            )
        if report["peak, MB"][name] is not None:
            lines.append(f"{name:8s}  peak memory         {report['peak, MB'][name]:8.0f} MB")
    for what, run in zip(("from the text", "from the cache"), report.get("train", []), strict=False):
        peak = "" if run["peak, MB"] is None else f", peak memory {run['peak, MB']:.0f} MB"
        lines.append(f"train     {what:14s} {run['first update, s']:8.1f} s to the first update{peak}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
