"""Measure how much of the time of `grimmgen train` is spent in training steps.

    python benchmarks/command.py --corpus DIRECTORY

Trains on the first hundred texts of a directory for ten epochs with the defaults, on a pseudo-terminal where the
system has them, so that the progress bar is drawn. Measured is the time from the first update to the end of the
command, including validation, drawing, logging and saving. Prints medians over the rounds, and the range.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def measure(arguments: list[str], report: Path) -> None:
    """Run the command in this process and write the time in training steps to a file."""
    from grimmgen import cli
    from grimmgen.network.train_step import StepResult, TrainStep

    step, spans = TrainStep.__call__, []

    def timed(*arguments: Any) -> StepResult:
        began = time.perf_counter()
        result = step(*arguments)
        spans.append((began, time.perf_counter()))
        return result

    TrainStep.__call__ = timed  # type: ignore[method-assign, assignment]
    sys.argv[1:] = arguments
    with contextlib.suppress(SystemExit):
        cli.main()
    ended = time.perf_counter()
    inside = sum(end - began for began, end in spans)
    report.write_text(json.dumps({"updates": len(spans), "inside": inside, "whole": ended - spans[0][0]}))


def run_on_terminal(command: list[str]) -> None:
    """Run a command on a pseudo-terminal, if the system has them."""
    try:
        import pty
    except ImportError:
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        return
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    try:
        while os.read(leader, 65536):
            pass
    except OSError:
        pass  # Linux: the other end was closed
    process.wait()
    os.close(leader)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True, help="a directory of texts")
    parser.add_argument("--stories", type=int, default=100, help="number of texts")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)  # in the measured process
    options = parser.parse_args()
    if options.report:
        arguments = ["--preset", "tutorial", "--corpus", str(options.corpus), "--epochs", str(options.epochs)]
        measure(["train", *arguments], options.report)
        return
    runs = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["GRIMMGEN_HOME"] = str(Path(directory) / "home")
        texts = Path(directory) / "texts"
        texts.mkdir()
        for path in sorted(options.corpus.glob("*.txt"))[: options.stories]:
            shutil.copy(path, texts)
        arguments = ["--corpus", str(texts), "--epochs", str(options.epochs)]
        report = Path(directory) / "report.json"
        for _ in range(options.rounds):
            run_on_terminal([sys.executable, __file__, *arguments, "--report", str(report)])
            runs.append(json.loads(report.read_text()))
    shares = [run["inside"] / run["whole"] for run in runs]
    document = {
        "stories": options.stories,
        "epochs": options.epochs,
        "updates": runs[0]["updates"],
        "inside, s": statistics.median(run["inside"] for run in runs),
        "whole, s": statistics.median(run["whole"] for run in runs),
        "share": statistics.median(shares),
        "shares": shares,
    }
    if options.json:
        print(json.dumps(document))
        return
    print(
        f"grimmgen train, {options.stories} texts, {options.epochs} epochs, {document['updates']} updates:\n"
        f"{document['inside, s']:.2f} s of {document['whole, s']:.2f} s in training steps: "
        f"{document['share']:.0%} ({min(shares):.0%} – {max(shares):.0%}, {len(shares)} rounds)"
    )


if __name__ == "__main__":
    main()
