"""Run the speed benchmarks one after the other and record their reports, from which the README's tables are made.

    python benchmarks/record.py --corpus DIRECTORY
    python benchmarks/record.py --only training.py
    python benchmarks/record.py --table

Takes a quarter of an hour on an otherwise idle machine. Each line of `record.jsonl` is a run of one script: its
arguments, the date, and its report. `--only` repeats the runs of one script; `--record` selects another file, for
another kind of machine. On processors without bfloat16 instructions, runs in bfloat16 are skipped.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grimmgen.network.backends.cpu.library import instruction_sets

HERE = Path(__file__).parent
# The parts of an update outside the kernel: clipping, Adam, and the remaining Python.
OUTSIDE_KERNEL = "squares", "adamw", "around"
_LARGER = ["--hidden", "512", "--vocabulary-size", "700"]
RUNS = [
    *(
        ["training.py", *size, "--precision", precision]
        for size in (
            ["--rounds", "40", "--compile"],
            ["--rounds", "10", *_LARGER],
            ["--rounds", "6", *_LARGER, "--layers", "2"],
        )
        for precision in ("fp32", "bf16")
    ),
    *(["training.py", "--rounds", "20", "--cell", cell] for cell in ("peephole", "gru")),
    *(["generation.py", *size, "--stories", stories] for size in ([], _LARGER) for stories in ("1", "8", "64")),
    ["startup.py"],
    ["text.py", "--size", "1GB", "--train", "10"],
    ["command.py"],
    ["growth.py"],
]
Line = dict[str, Any]


def measure(arguments: list[str], corpus: Path | None, picture: Path) -> Line:
    """Run a script, and return its line of the record."""
    script, *options = arguments
    extra: list[str] = []
    if script == "command.py":
        if corpus is None:
            raise SystemExit("command.py needs a directory of texts: give --corpus")
        extra = ["--corpus", str(corpus)]
    if script == "growth.py":
        extra = ["--out", str(picture)]
    print(" ".join(arguments), file=sys.stderr)
    command = [sys.executable, str(HERE / script), *options, *extra, "--json"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    return {"ran": arguments, "day": day, "figures": json.loads(ran.stdout)}


# --- the tables ----------------------------------------------------------------------------------------------


def rows(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])


def training(lines: list[Line]) -> str:
    """Training updates: time, speed-up and memory; and a profile of grimmgen's."""
    body = []
    for line in lines:
        figures = line["figures"]
        size = f"{figures['H']}, {figures['V']}, {figures['L']}"
        for name in ("grimmgen", "plain", "compiled", "nn.LSTM", "nn.GRU"):
            if name in figures:
                own = figures[name]
                quartiles = f"{own['lower quartile']:.1f} – {own['upper quartile']:.1f}"
                body.append(
                    [
                        figures.get("cell", "lstm"),
                        size,
                        figures["precision"],
                        name,
                        f"{own['milliseconds']:.1f} ({quartiles})",
                        f"{own['times as fast']:.2f}",
                        f"{own['share of the floor']:.0%}",
                        f"{own['peak MiB']:.0f}",
                    ]
                )
    head = ["cell", "H, V, layers", "products", "", "ms", "times as fast", "of the floor", "peak MiB"]
    parts = [line["figures"] for line in lines if line["figures"].get("cell") == "lstm"]
    names = list(parts[0]["profile"])
    spent = [
        [
            f"{figures['H']}, {figures['V']}, {figures['L']}",
            figures["precision"],
            *(f"{figures['profile'][n]:.2f}" for n in names),
            f"{sum(figures['profile'][n] for n in OUTSIDE_KERNEL) / sum(figures['profile'].values()):.0%}",
        ]
        for figures in parts
    ]
    return f"{rows(head, body)}\n\n{rows(['H, V, layers', 'products', *names, 'beside'], spent)}"


def generation(lines: list[Line]) -> str:
    """Bigrams per second."""
    body = []
    for line in lines:
        figures = line["figures"]
        rates, ratio = figures["bigrams a second"], figures["times as fast"]["grimmgen"]
        floor = f" ({figures['share of the floor']:.0%} of the floor)" if "share of the floor" in figures else ""
        body.append(
            [
                f"{figures['B']}",
                f"{figures['H']}, {figures['V']}",
                f"{rates['grimmgen']:,.0f}{floor}",
                *(f"{rates[name]:,.0f}" for name in ("NumPy", "nn.LSTMCell", "nn.LSTM")),
                f"{ratio:.1f}",
            ]
        )
    head = ["streams", "H, V", "grimmgen, bigrams/s", "NumPy", "`nn.LSTMCell`", "`nn.LSTM`"]
    return rows([*head, "times as fast as `nn.LSTMCell`"], body)


def startup(lines: list[Line]) -> str:
    """The time of whole commands."""
    figures = lines[-1]["figures"]
    body = [
        [f"`{name}`", f"{seconds:.3f}", f"{figures['share of import torch'][name]:.2f}"]
        for name, seconds in figures["seconds"].items()
    ]
    return rows(["command", "seconds", "of `import torch`"], body)


def text(lines: list[Line]) -> str:
    """Throughput of text processing, and memory."""
    figures = lines[-1]["figures"]
    speeds, ratios, peaks = figures["MB a second"], figures["times as fast"], figures["peak, MB"]
    body = [
        [stage, *(f"{statistics.median(speeds[name][stage]):.0f}" for name in speeds), f"{ratios[stage]:.1f}"]
        for stage in speeds["grimmgen"]
    ]
    body.append(["peak memory, MB", *(f"{peaks[name]:.0f}" for name in speeds), ""])
    for what, run in zip(("from the text", "from the cache"), figures["train"], strict=True):
        body.append([f"`train` {what}: s to the first update", f"{run['first update, s']:.1f}", "", ""])
        body.append([f"`train` {what}: peak memory, MB", f"{run['peak, MB']:.0f}", "", ""])
    return rows(["1 GB of text, MB/s", *(f"{name}" for name in speeds), "times as fast"], body)


def command(lines: list[Line]) -> str:
    """The share of a command's time that is spent in updates."""
    figures = lines[-1]["figures"]
    return (
        f"{figures['stories']} tales, {figures['epochs']} epochs, {figures['updates']} updates:"
        f" {figures['inside, s']:.1f} of {figures['whole, s']:.1f} s are inside the updates,"
        f" {figures['share']:.0%} ({min(figures['shares']):.0%} – {max(figures['shares']):.0%})."
    )


def growth(lines: list[Line]) -> str:
    """The table of growth.py."""
    from growth import table

    result: str = table(lines[-1]["figures"]["milliseconds"])
    return result


TABLES: dict[str, Callable[[list[Line]], str]] = {
    "training.py": training,
    "generation.py": generation,
    "startup.py": startup,
    "text.py": text,
    "command.py": command,
    "growth.py": growth,
}


def tables(lines: list[Line]) -> dict[str, str]:
    """The Markdown table of each script, by its name."""
    by_script = {script: [line for line in lines if line["ran"][0] == script] for script in TABLES}
    return {script: TABLES[script](own) for script, own in by_script.items() if own}


def summary(lines: list[Line]) -> list[str]:
    """The rows of the README's table about speed."""
    reports: dict[str, list[Line]] = {}
    for line in lines:
        reports.setdefault(line["ran"][0], []).append(line["figures"])
    body = []

    def add(what: str, figure: str, script: str) -> None:
        body.append(f"| {what} | {figure} | `benchmarks/{script}` |")

    def ratios(hidden: int, layers: int) -> str:
        """The speed-up in each measured precision."""
        found = [t for t in reports["training.py"] if (t["cell"], t["H"], t["L"]) == ("lstm", hidden, layers)]
        ours = ((figures["grimmgen"]["times as fast"], figures["precision"]) for figures in found)
        return ", ".join(f"{times:.1f} times as fast as `nn.LSTM` in {precision}" for times, precision in ours)

    for what, hidden, layers in (
        ("one update at the tutorial's size", 128, 1),
        ("one update, 512 units", 512, 1),
        ("the same, two layers", 512, 2),
    ):
        add(what, ratios(hidden, layers), "training.py")
    figures = reports["generation.py"][0]
    add(
        "generation, one story, one core, tutorial's size",
        f"{figures['bigrams a second']['grimmgen']:,.0f} bigrams per second,"
        f" {figures['times as fast']['grimmgen']:.0f} times as fast as a loop in eager PyTorch",
        "generation.py",
    )
    figures = reports["startup.py"][0]
    seconds, shares = figures["seconds"], figures["share of import torch"]
    both = " and ".join(
        f"{seconds[name]:.2f} s ({shares[name]:.2f} of `import torch`)"
        for name in ("grimmgen generate --length 200", "grimmgen --help")
    )
    add("from the shell to the end of 200 characters; `--help`", both, "startup.py")
    figures = reports["text.py"][0]
    speed = statistics.median(figures["MB a second"]["grimmgen"]["both"])
    add(
        "1 GB of text counted and encoded",
        f"{speed:.0f} MB a second, {figures['times as fast']['both']:.0f} times as fast as `collections.Counter`;"
        f" peak memory {figures['peak, MB']['grimmgen']:.0f} MB",
        "text.py",
    )
    add("training on 1 GB of text", f"peak memory {figures['train'][0]['peak, MB']:.0f} MB", "text.py --train 10")
    figures = reports["command.py"][0]
    add("`grimmgen train`, after its start", f"{figures['share']:.0%} is inside the updates", "command.py")
    return body


def main() -> None:
    """Run the benchmarks, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="for command.py: a directory of texts")
    parser.add_argument("--record", type=Path, default=HERE / "record.jsonl", help="the file of the record")
    parser.add_argument("--only", choices=list(TABLES), help="run this script only")
    parser.add_argument("--table", action="store_true", help="print the tables of the record and run nothing")
    options = parser.parse_args()
    record: Path = options.record
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.exists() else []
    if options.table:
        for script, table in tables(lines).items():
            print(f"{script}\n\n{table}\n")
        if all(script in tables(lines) for script in TABLES):
            print("\n".join(summary(lines)))
        return
    chosen = [run for run in RUNS if options.only in (None, run[0])]
    if not instruction_sets("bf16"):
        chosen = [run for run in chosen if "bf16" not in run]
    picture = record.with_name(record.stem.replace("record", "growth") + ".svg")
    measured = [measure(run, options.corpus, picture) for run in chosen]
    kept = [line for line in lines if options.only not in (None, line["ran"][0])]
    order = list(TABLES)
    lines = sorted(kept + measured, key=lambda line: order.index(line["ran"][0]))
    record.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


if __name__ == "__main__":
    main()
