"""Counting and encoding a text, against `collections.Counter` over its bigrams in the same run; training on it.

    python benchmarks/text.py --size 1GB
    python benchmarks/text.py --size 1GB --train 10

grimmgen reads, counts and encodes the whole text (bigrams, lower case), in one thread. The rival is what one would
write in Python, on the first megabytes of the same text: lower case, slices of two characters, a Counter, and a
dictionary from bigrams to ids. They run in turn, each in a process of its own, whose peak memory is told; printed
are medians, the spread, how many times as fast as the rival grimmgen is (the median, round by round), and what it
would be on a core of its own (by the processor's time: other programs take their share of the clock's).

`--train` adds `grimmgen train --budget` on the text: its peak memory, and the time until the first update is done,
with the ids still to be encoded and with them in the cache. Without `--text` the text is made up, the same each
time: the words of the bundled tales, shuffled.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from grimmgen.text import encoding
from grimmgen.text.corpus import Document, open_corpus

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def size(text: str) -> int:
    """Bytes of a size as typed: 1GB, 100MB."""
    match = re.fullmatch(r"(\d+)(|KB|MB|GB)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size like 1GB")
    return int(match[1]) * _UNITS[match[2]]


def make(path: Path, length: int) -> None:
    """Write a text of this many bytes: the words of the bundled tales in an order drawn anew again and again."""
    words = " ".join(story.read() for story in open_corpus("sampler").documents).split(" ")
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        while length:
            order = draw.permutation(len(words))
            length -= file.write(
                " ".join([words[i] for i in order]).encode("ascii", "replace")[: length - 1] + b"\n"
            )


# --- the contenders ------------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds by the clock, and by the processor, since the last time it was asked."""

    def __init__(self) -> None:
        self._last = time.perf_counter(), time.process_time()

    def __call__(self) -> tuple[float, float]:
        """Both times, in this order."""
        before, self._last = self._last, (time.perf_counter(), time.process_time())
        return self._last[0] - before[0], self._last[1] - before[1]


def ours(path: Path) -> dict[str, tuple[float, float]]:
    """What each stage takes of the whole text; counting and encoding read it anew."""
    story = Document(path.stem, path)
    watch = Stopwatch()
    for _ in story.pieces():
        pass
    read = watch()
    vocabulary = Vocabulary.build([story])
    counted = watch()
    for _ in encoding.encode(story, vocabulary):
        pass
    return {"read": read, "count": counted, "encode": watch()}


def rivals(path: Path, length: int) -> dict[str, tuple[float, float]]:
    """What each stage takes of the first `length` bytes in plain Python."""
    watch = Stopwatch()
    with path.open("rb") as file:
        text = file.read(length).decode("utf-8", "ignore")
    read = watch()
    text = text.lower()
    counts = Counter(text[i : i + 2] for i in range(0, len(text), 2))
    counted = watch()
    ids = {bigram: i for i, (bigram, count) in enumerate(counts.most_common(), 2) if count >= 10}
    np.array([ids.get(text[i : i + 2], 0) for i in range(0, len(text), 2)], np.uint16)
    return {"read": read, "count": counted, "encode": watch()}


def measured(command: list[str], told: Callable[[IO[bytes]], Any]) -> tuple[Any, float | None]:
    """What `told` makes of a command's lines, and the peak of its memory in MB (None on Windows)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout
        result = told(process.stdout)
        if sys.platform == "win32":
            return result, None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    # In kilobytes on Linux, in bytes on macOS.
    return result, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def train(path: Path, seconds: int) -> list[dict[str, float | None]]:
    """Peak memory and seconds to the first update of `grimmgen train`: from the text, then from the cache."""

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
        "--json",
        "--corpus",
        str(path),
        "--budget",
        f"{seconds}s",
    ]
    runs: list[dict[str, float | None]] = []
    for _ in range(2):
        began = time.perf_counter()
        first, peak = measured(command, first_update)
        runs.append({"first update, s": first, "peak, MB": peak})
    return runs


# --- the table -----------------------------------------------------------------------------------------------


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=size, default=size("1GB"), help="of the text that is made up")
    parser.add_argument("--text", type=Path, help="a text of yours instead")
    parser.add_argument("--slice", type=size, default=size("16MB"), help="what the rival reads")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--train", type=int, metavar="SECONDS", help="train on it, too")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=["grimmgen", "Counter"], help=argparse.SUPPRESS)  # what is measured
    options = parser.parse_args()
    if options.only:
        print(
            json.dumps(ours(options.text) if options.only == "grimmgen" else rivals(options.text, options.slice))
        )
        return
    with tempfile.TemporaryDirectory() as directory:
        path = options.text or Path(directory) / "text.txt"
        if not options.text:
            make(path, options.size)
        # What is trained, and encoded for it, goes with the directory.
        os.environ["GRIMMGEN_HOME"] = directory
        report = measure(path, options.slice, options.rounds)
        if options.train:
            report["train"] = train(path, options.train)
    print(json.dumps(report) if options.json else table(report))


def measure(path: Path, part: int, rounds: int) -> dict[str, Any]:
    """Both contenders in turn: megabytes a second of each stage, peak memory, ratios."""
    whole = path.stat().st_size
    lengths = {"grimmgen": whole, "Counter": min(part, whole)}
    speeds: dict[str, dict[str, list[float]]] = {name: {} for name in lengths}
    peaks: dict[str, float | None] = {}
    for _ in range(rounds):
        for name, length in lengths.items():
            command = [sys.executable, __file__, "--only", name, "--text", str(path), "--slice", str(part)]
            stages, peaks[name] = measured(command, lambda lines: json.loads(next(lines)))
            both = [a + b for a, b in zip(stages["count"], stages["encode"], strict=True)]
            stages |= {"both": both, "both, own core": both[::-1]}
            for stage, (seconds, _) in stages.items():
                speeds[name].setdefault(stage, []).append(length / 1e6 / seconds)
    ratios = {
        stage: statistics.median(a / b for a, b in zip(mine, speeds["Counter"][stage], strict=True))
        for stage, mine in speeds["grimmgen"].items()
    }
    return {"bytes": lengths, "MB a second": speeds, "times as fast": ratios, "peak, MB": peaks}


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    lines = [f"{name}: {length / 1e6:,.0f} MB of text" for name, length in report["bytes"].items()]
    for name, stages in report["MB a second"].items():
        for stage, speeds in stages.items():
            ratio = (
                f", {report['times as fast'][stage]:.1f} times as fast as Counter" if name == "grimmgen" else ""
            )
            lines.append(
                f"{name:8s}  {stage:14s} {statistics.median(speeds):8.1f} MB/s"
                f"   ({min(speeds):.1f} – {max(speeds):.1f}, {len(speeds)} rounds){ratio}"
            )
        if report["peak, MB"][name] is not None:
            lines.append(f"{name:8s}  peak memory    {report['peak, MB'][name]:8.0f} MB")
    for what, run in zip(("from the text", "from the cache"), report.get("train", []), strict=False):
        peak = "" if run["peak, MB"] is None else f", peak memory {run['peak, MB']:.0f} MB"
        lines.append(f"train     {what:14s} {run['first update, s']:8.1f} s to the first update{peak}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
