"""How the time of an update grows with hidden units, batch rows and time steps, compared to `nn.LSTM`.

    python benchmarks/growth.py --out growth.svg

Starting from the tutorial's size (H = 128, B = 64, T = 50, V = 544, float32), one of H, B and T is varied. Updates
are measured as in `training.py`, interleaved. Prints the medians, and the exponent p in time ∝ size^p between
neighbours: 0 where overhead dominates; 2 for H, and 1 for B and T, where matrix products dominate. The plot needs
matplotlib: `pip install 'grimmgen[plot]'`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from training import interleaved, ours, rivals, with_kernel

from grimmgen.configuration import Configuration
from grimmgen.text.batches import Window

RANGES = {"H": [64, 128, 256, 512, 1024], "B": [1, 4, 16, 64, 256], "T": [10, 25, 50, 100, 200]}
_LABELS = {"H": "hidden units", "B": "batch rows", "T": "time steps"}
_V = 544
# Approximate seconds for each size.
_SECONDS = 6.0


def measure(T: int, B: int, H: int) -> dict[str, float]:
    """Median milliseconds per update of both."""
    draw = np.random.default_rng(0)
    ids = draw.integers(0, _V, (T + 1, B)).astype(np.int32)
    window = Window(ids[:-1], ids[1:], draw.random((T, B)) < 1 / 2000)
    configuration = Configuration(hidden=H, batch_size=B, unroll=T, precision="fp32")
    updates = {
        "grimmgen": with_kernel("native", lambda: ours(window, _V, configuration)),
        "nn.LSTM": rivals(window, _V, configuration),
    }
    began = time.perf_counter()
    for update in updates.values():
        update()
    rounds = int(_SECONDS / 5 / (time.perf_counter() - began))
    times = interleaved(updates, max(2, min(40, rounds)), time.perf_counter)
    return {name: statistics.median(values) for name, values in times.items()}


def draw(record: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Plot a panel for each of H, B and T, with logarithmic axes."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "grimmgen", "font.size": 9}):
        figure = Figure(figsize=(8.4, 3.0), layout="constrained")
        for axes, (letter, rows) in zip(figure.subplots(1, 3, sharey=True), record.items(), strict=True):
            sizes = [row["size"] for row in rows]
            for name, colour in (("nn.LSTM", "#D55E00"), ("grimmgen", "#0072B2")):
                axes.plot(sizes, [row[name] for row in rows], color=colour, marker="o", markersize=3, label=name)
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.minorticks_off()
            axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xlabel(f"{letter}, {_LABELS[letter]}")
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="y", linewidth=0.4, alpha=0.5)
        figure.axes[0].set_ylabel("milliseconds per update")
        figure.axes[0].legend(edgecolor="none", fontsize=8)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write a plot to this file; its suffix selects the format")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    default = {"T": 50, "B": 64, "H": 128}
    record = {
        letter: [{"size": size, **measure(**(default | {letter: size}))} for size in sizes]
        for letter, sizes in RANGES.items()
    }
    if options.out:
        draw(record, options.out)
    if options.json:
        print(json.dumps({"threads": options.threads, "usual": default, "milliseconds": record}))
        return
    print(table(record))


def table(record: dict[str, list[dict[str, float]]]) -> str:
    """The record as a Markdown table."""
    lines = [
        "| | | grimmgen, ms | exponent | `nn.LSTM`, ms | exponent | times as fast |",
        "|---|---|---|---|---|---|---|",
    ]
    for letter, rows in record.items():
        for before, row in zip([None, *rows], rows, strict=False):
            cells = [letter, f"{row['size']:g}"]
            for name in ("grimmgen", "nn.LSTM"):
                exponent = ""
                if before is not None:
                    exponent = f"{math.log(row[name] / before[name], row['size'] / before['size']):.2f}"
                cells += [f"{row[name]:.2f}", exponent]
            lines.append(f"| {' | '.join([*cells, format(row['nn.LSTM'] / row['grimmgen'], '.2f')])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
