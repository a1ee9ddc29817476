"""What counts beside the network cost: whole commands with them and without, in turn.

    python benchmarks/counts.py RUN --corpus DIRECTORY

RUN has counts. `generate` writes one story with a fixed random seed, with the default options and with `--top-k 3`;
`eval` reads the run's validation set; `train` trains one epoch of `--preset quick` on DIRECTORY. Without counts is
`--mix 0`, and `--no-counts` for `train`. Prints medians of the processor's time, the median of the ratios, and the peak
memory. Unix only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field


@dataclass
class Cost:
    """The processor's time in seconds and the peak memory in MB of a command, of several rounds."""

    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)

    def run(self, arguments: list[str], home: str | None) -> None:
        """Run `grimmgen` with these arguments; a home of its own is where its runs are."""
        process = subprocess.Popen(
            [sys.executable, "-m", "grimmgen", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **({"GRIMMGEN_HOME": home} if home else {})},
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"grimmgen {' '.join(arguments)} failed")
        self.seconds.append(used.ru_utime + used.ru_stime)
        # In kilobytes; on macOS in bytes.
        self.megabytes.append(used.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10))


def main() -> None:
    """Run the commands, and print a row for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="of the registry, with counts")
    parser.add_argument("--corpus", help="for `train`: a directory of texts; left out without it")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--length", type=int, default=900, help="of the story, in characters")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    generate = ["generate", "--run", options.run, "--length", str(options.length), "--random-seed", "1", "--quiet"]
    commands = {
        "generate": (generate, ["--mix", "0"]),
        "generate --top-k 3": ([*generate, "--top-k", "3"], ["--mix", "0"]),
        "eval": (["eval", "--run", options.run, "--split", "valid", "--quiet"], ["--mix", "0"]),
    }
    if options.corpus:
        train = ["train", options.corpus, "--preset", "quick", "--epochs", "1", "--quiet"]
        commands["train"] = (train, ["--no-counts"])
    found = []
    for name, (arguments, without) in commands.items():
        with_counts, alone, ratios = Cost(), Cost(), list[float]()
        for _ in range(options.rounds if name != "train" else min(3, options.rounds)):
            with tempfile.TemporaryDirectory() as scratch:
                home = scratch if name == "train" else None
                with_counts.run(arguments, home)
                alone.run([*arguments, *without], home)
            ratios.append(with_counts.seconds[-1] / alone.seconds[-1])
        found.append(
            {
                "command": name,
                "seconds": statistics.median(with_counts.seconds),
                "seconds without": statistics.median(alone.seconds),
                "ratio": statistics.median(ratios),
                "MB": statistics.median(with_counts.megabytes),
                "MB without": statistics.median(alone.megabytes),
            }
        )
        if not options.json:
            row = found[-1]
            print(
                f"{name:20s} {row['seconds']:7.2f} s with counts, {row['seconds without']:7.2f} without, ratio"
                f" {row['ratio']:.2f}; {row['MB']:.0f} and {row['MB without']:.0f} MB",
                flush=True,
            )
    if options.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
