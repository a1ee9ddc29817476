"""Runs the benchmarks of speed one after the other, and keeps what they print: the README's tables come from here.

    python benchmarks/record.py --corpus DIRECTORY
    python benchmarks/record.py --only training.py
    python benchmarks/record.py --table

Takes a quarter of an hour, on a machine that does nothing else. Each line of `record.jsonl` is a run of one
script: its arguments, the day, and its report. `--only` measures anew what one script says, and leaves the rest;
`--record` names another file, for another kind of machine. Where a processor has no instructions for bfloat16,
nothing is measured with it.
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
# Of an update: clipping, Adam, and what is around the kernel.
BESIDE = "squares", "adamw", "around"
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
    """Run a script; its report."""
    script, *options = arguments
    given: list[str] = []
    if script == "command.py":
        if corpus is None:
            raise SystemExit("command.py trains on a directory of texts: give --corpus")
        given = ["--corpus", str(corpus)]
    if script == "growth.py":
        given = ["--out", str(picture)]
    print(" ".join(arguments), file=sys.stderr)
    command = [sys.executable, str(HERE / script), *options, *given, "--json"]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    return {"ran": arguments, "day": day, "figures": json.loads(made.stdout)}


# --- the tables ----------------------------------------------------------------------------------------------


def rows(head: list[str], body: list[list[str]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *body])


def training(lines: list[Line]) -> str:
    """Updates: milliseconds, ratios and memory; and where those of ours go."""
    body = []
    for line in lines:
        told = line["figures"]
        size = f"{told['H']}, {told['V']}, {told['L']}"
        for name in ("grimmgen", "plain", "compiled", "nn.LSTM", "nn.GRU"):
            if name in told:
                own = told[name]
                quartiles = f"{own['lower quartile']:.1f} – {own['upper quartile']:.1f}"
                body.append(
                    [
                        told.get("cell", "lstm"),
                        size,
                        told["precision"],
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
            f"{told['H']}, {told['V']}, {told['L']}",
            told["precision"],
            *(f"{told['profile'][n]:.2f}" for n in names),
            f"{sum(told['profile'][n] for n in BESIDE) / sum(told['profile'].values()):.0%}",
        ]
        for told in parts
    ]
    return f"{rows(head, body)}\n\n{rows(['H, V, layers', 'products', *names, 'beside'], spent)}"


def generation(lines: list[Line]) -> str:
    """Bigrams a second."""
    body = []
    for line in lines:
        told = line["figures"]
        rates, ratio = told["bigrams a second"], told["times as fast"]["grimmgen"]
        floor = f" ({told['share of the floor']:.0%} of the floor)" if "share of the floor" in told else ""
        body.append(
            [
                f"{told['B']}",
                f"{told['H']}, {told['V']}",
                f"{rates['grimmgen']:,.0f}{floor}",
                *(f"{rates[name]:,.0f}" for name in ("NumPy", "nn.LSTMCell", "nn.LSTM")),
                f"{ratio:.1f}",
            ]
        )
    head = ["told side by side", "H, V", "grimmgen, bigrams/s", "NumPy", "`nn.LSTMCell`", "`nn.LSTM`"]
    return rows([*head, "times as fast as `nn.LSTMCell`"], body)


def startup(lines: list[Line]) -> str:
    """Seconds of commands."""
    told = lines[-1]["figures"]
    body = [
        [f"`{name}`", f"{seconds:.3f}", f"{told['share of import torch'][name]:.2f}"]
        for name, seconds in told["seconds"].items()
    ]
    return rows(["command", "seconds", "of `import torch`"], body)


def text(lines: list[Line]) -> str:
    """Megabytes a second, and memory."""
    told = lines[-1]["figures"]
    speeds, ratios, peaks = told["MB a second"], told["times as fast"], told["peak, MB"]
    body = [
        [stage, *(f"{statistics.median(speeds[name][stage]):.0f}" for name in speeds), f"{ratios[stage]:.1f}"]
        for stage in speeds["grimmgen"]
    ]
    body.append(["peak memory, MB", *(f"{peaks[name]:.0f}" for name in speeds), ""])
    for what, run in zip(("from the text", "from the cache"), told["train"], strict=True):
        body.append([f"`train` {what}: s to the first update", f"{run['first update, s']:.1f}", "", ""])
        body.append([f"`train` {what}: peak memory, MB", f"{run['peak, MB']:.0f}", "", ""])
    return rows(["1 GB of text, MB/s", *(f"{name}" for name in speeds), "times as fast"], body)


def command(lines: list[Line]) -> str:
    """The share of the updates."""
    told = lines[-1]["figures"]
    return (
        f"{told['stories']} tales, {told['epochs']} epochs, {told['updates']} updates: {told['inside, s']:.1f} of"
        f" {told['whole, s']:.1f} s are inside the updates, {told['share']:.0%}"
        f" ({min(told['shares']):.0%} – {max(told['shares']):.0%})."
    )


def growth(lines: list[Line]) -> str:
    """The table of growth.py."""
    from growth import table

    made: str = table(lines[-1]["figures"]["milliseconds"])
    return made


TABLES: dict[str, Callable[[list[Line]], str]] = {
    "training.py": training,
    "generation.py": generation,
    "startup.py": startup,
    "text.py": text,
    "command.py": command,
    "growth.py": growth,
}


def tables(lines: list[Line]) -> dict[str, str]:
    """What each script has said, for people, by its name."""
    of = {script: [line for line in lines if line["ran"][0] == script] for script in TABLES}
    return {script: TABLES[script](own) for script, own in of.items() if own}


def summary(lines: list[Line]) -> list[str]:
    """The rows of the README's table that tell of speed."""
    said: dict[str, list[Line]] = {}
    for line in lines:
        said.setdefault(line["ran"][0], []).append(line["figures"])
    body = []

    def tell(what: str, figure: str, script: str) -> None:
        body.append(f"| {what} | {figure} | `benchmarks/{script}` |")

    def ratios(hidden: int, layers: int) -> str:
        """In both precisions, where both were measured."""
        found = [t for t in said["training.py"] if (t["cell"], t["H"], t["L"]) == ("lstm", hidden, layers)]
        ours = ((told["grimmgen"]["times as fast"], told["precision"]) for told in found)
        return ", ".join(f"{times:.1f} times as fast as `nn.LSTM` in {precision}" for times, precision in ours)

    for what, hidden, layers in (
        ("one update at the tutorial's size", 128, 1),
        ("one update, 512 units", 512, 1),
        ("the same, two layers", 512, 2),
    ):
        tell(what, ratios(hidden, layers), "training.py")
    told = said["generation.py"][0]
    tell(
        "telling, one story, one core, tutorial's size",
        f"{told['bigrams a second']['grimmgen']:,.0f} bigrams a second,"
        f" {told['times as fast']['grimmgen']:.0f} times as fast as a loop in eager PyTorch",
        "generation.py",
    )
    told = said["startup.py"][0]
    seconds, shares = told["seconds"], told["share of import torch"]
    both = " and ".join(
        f"{seconds[name]:.2f} s ({shares[name]:.2f} of `import torch`)"
        for name in ("grimmgen generate --length 200", "grimmgen --help")
    )
    tell("from the shell to the end of 200 characters; `--help`", both, "startup.py")
    told = said["text.py"][0]
    speed = statistics.median(told["MB a second"]["grimmgen"]["both"])
    tell(
        "1 GB of text counted and encoded",
        f"{speed:.0f} MB a second, {told['times as fast']['both']:.0f} times as fast as `collections.Counter`;"
        f" peak memory {told['peak, MB']['grimmgen']:.0f} MB",
        "text.py",
    )
    tell("training on 1 GB of text", f"peak memory {told['train'][0]['peak, MB']:.0f} MB", "text.py --train 10")
    told = said["command.py"][0]
    tell("`grimmgen train`, after its start", f"{told['share']:.0%} is inside the updates", "command.py")
    return body


def main() -> None:
    """Measure what was asked for, or print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="for command.py: a directory of texts")
    parser.add_argument("--record", type=Path, default=HERE / "record.jsonl", help="the file that is kept")
    parser.add_argument("--only", choices=list(TABLES), help="measure with this script alone")
    parser.add_argument("--table", action="store_true", help="measure nothing, print")
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
    made = [measure(run, options.corpus, picture) for run in chosen]
    kept = [line for line in lines if options.only not in (None, line["ran"][0])]
    order = list(TABLES)
    lines = sorted(kept + made, key=lambda line: order.index(line["ran"][0]))
    record.write_text("".join(f"{json.dumps(line)}\n" for line in lines))


if __name__ == "__main__":
    main()
