"""What early stopping costs and saves: for runs that were trained to the end, where each patience would have stopped.

    grimmgen train names.txt --documents line --preset strong --epochs 150 --patience 0 --run names
    python benchmarks/patience.py names

The rival is the whole training, of the same run: "kept" is the perplexity of the best weights until the stop, "lost"
how much higher that is than the best of the whole run, and "saved" the share of the epochs that were left out.
"""

from __future__ import annotations

import argparse
import itertools

from grimmgen.runs import registry

PATIENCES = 5, 10, 15, 20


def stop(perplexities: list[float], patience: int) -> int:
    """The number of evaluations until there have been `patience` of them without a new minimum."""
    best, lowest = 0, float("inf")
    for number, perplexity in enumerate(perplexities):
        if perplexity < lowest:
            best, lowest = number, perplexity
        elif number - best >= patience:
            return number + 1
    return len(perplexities)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="trained with --patience 0")
    names: list[str] = parser.parse_args().runs
    print("| run | patience | stops at | kept | lost | saved |\n|---|--:|--:|--:|--:|--:|")
    for name, patience in itertools.product(names, PATIENCES):
        log = registry.find(name).log()
        perplexities = [float(event["perplexity"]) for event in log if event["event"] == "evaluated"]
        stopped, whole = stop(perplexities, patience), len(perplexities)
        kept = min(perplexities[:stopped])
        figures = (
            f"{stopped} of {whole} | {kept:.2f} | {kept / min(perplexities) - 1:.1%} | {1 - stopped / whole:.0%}"
        )
        print(f"| {name} | {patience} | {figures} |")


if __name__ == "__main__":
    main()
