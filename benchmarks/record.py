"""Run the benchmarks of speed and record them; generate the figures of the README and the docs.

    python benchmarks/record.py --corpus DIRECTORY      run all on this machine, replace its record, write the figures
    python benchmarks/record.py --only training.py      repeat the runs of one script
    python benchmarks/record.py --write                 run nothing, write the figures
    python benchmarks/record.py --check                 run nothing, fail unless the figures are those of the records

Takes half an hour on an otherwise idle machine, and budget.py, which runs with --only alone, as long again. There is
one record for each kind of machine, in `records/`: its first line describes the machine, each other one is a run of
one script with its arguments, the date and its report. On processors without bfloat16 instructions, runs in bfloat16
are skipped.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import quality
import stories
import torch
from growth import table as growth_table

from grimmgen.network.backends.cpu.library import instruction_sets

HERE = Path(__file__).parent
RECORDS = HERE / "records"
# The parts of an update outside the kernel: clipping, Adam, and the remaining Python.
OUTSIDE_KERNEL = "squares", "adam", "around"
_LARGER = ["--hidden", "512", "--vocabulary-size", "700"]
RUNS = [
    *(
        ["training.py", *size, "--precision", precision]
        for size in (
            ["--rounds", "40", "--compile"],
            ["--rounds", "10", *_LARGER],
            ["--rounds", "4", "--hidden", "1024", "--vocabulary-size", "700"],
            ["--rounds", "6", *_LARGER, "--layers", "2"],
        )
        for precision in ("fp32", "bf16")
    ),
    *(["training.py", "--rounds", "20", "--cell", cell] for cell in ("peephole", "gru")),
    ["precision.py"],
    ["growth.py"],
    ["command.py"],
    *(["generation.py", *size, "--stories", stories] for size in ([], _LARGER) for stories in ("1", "8", "64")),
    ["dynamic.py"],
    *(["nn.py", "--hidden", hidden] for hidden in ("128", "512")),
    ["startup.py"],
    ["text.py", "--size", "1GB", "--train", "10"],
    ["budget.py"],
]
# Scripts that need --corpus; and those that run with --only alone.
_OF_A_CORPUS = "command.py", "budget.py"
_LONG = ("budget.py",)
# Scripts whose main figures stand in the main README.
_HEADLINE = "training.py", "generation.py", "startup.py", "text.py"
Line = dict[str, Any]


class Record(NamedTuple):
    """The runs on one kind of machine.

    Attributes:
        path: of its file.
        machine: the processor, its cores and its instruction sets.
        pytorch: the version of PyTorch.
        lines: one for each run.
    """

    path: Path
    machine: str
    pytorch: str
    lines: list[Line]

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record; an absent one is of this machine, and empty."""
        if not path.exists():
            return cls(path, machine(), torch.__version__, [])
        head, *lines = (json.loads(line) for line in path.read_text("utf-8").splitlines())
        return cls(path, head["machine"], head["PyTorch"], lines)

    @property
    def last_day(self) -> str:
        """The date of its last run."""
        return str(max(line["day"] for line in self.lines))

    @property
    def scripts(self) -> set[str]:
        """The scripts that have run."""
        return {str(line["ran"][0]) for line in self.lines}

    def write(self) -> None:
        """Write the record, its lines in the order of the scripts."""
        order = list(SECTIONS)
        lines = sorted(self.lines, key=lambda line: order.index(line["ran"][0]))
        head = {"machine": self.machine, "PyTorch": self.pytorch}
        self.path.write_text("".join(f"{json.dumps(line)}\n" for line in (head, *lines)), "utf-8")


def processor() -> str:
    """The processor's name."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text("utf-8"), re.MULTILINE)
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return re.sub(r"\(R\)|\(TM\)| CPU| Processor| @.*", "", name).strip()


def machine() -> str:
    """This machine, as a record describes it."""
    names = list(instruction_sets())
    titles = [{"avx2": "AVX2", "avx512": "AVX-512"}.get(names[0], names[0]) if names else "no kernels"]
    titles += [title for name, title in (("avx512bf16", "bfloat16"), ("amxbf16", "AMX")) if name in names]
    first, rest = titles[0], f" with {' and '.join(titles[1:])}" if titles[1:] else ""
    return f"{processor()}, {os.cpu_count()} cores, {first}{rest}"


def default_path() -> Path:
    """The record of this machine."""
    fastest = next(iter(instruction_sets()), "plain")
    return RECORDS / f"{re.sub(r'[^a-z0-9]+', '-', processor().lower()).strip('-')}-{fastest}.jsonl"


def measure(arguments: list[str], corpus: Path | None, picture: Path) -> Line:
    """Run a script, and return its line of the record."""
    script, *options = arguments
    extra: list[str] = []
    if script in _OF_A_CORPUS:
        if corpus is None:
            raise SystemExit(f"{script} needs a directory of texts: give --corpus")
        extra = ["--corpus", str(corpus)]
    if script == "growth.py":
        extra = ["--out", str(picture)]
    print(" ".join(arguments), file=sys.stderr)
    command = [sys.executable, str(HERE / script), *options, *extra, "--json"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    day = dt.datetime.now(dt.UTC).date().isoformat()
    reports = [json.loads(line) for line in ran.stdout.splitlines()]
    return {"ran": arguments, "day": day, "figures": reports[0] if len(reports) == 1 else reports}


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
    names = list(dict.fromkeys(name for figures in parts for name in figures["profile"]))
    spent = [
        [
            f"{figures['H']}, {figures['V']}, {figures['L']}",
            figures["precision"],
            *(f"{figures['profile'][n]:.2f}" if n in figures["profile"] else "" for n in names),
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
        [
            stage,
            *(f"{statistics.median(own[stage]):.0f}" if stage in own else "" for own in speeds.values()),
            f"{ratios[stage]:.1f}" if stage in ratios else "",
        ]
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
    return growth_table(lines[-1]["figures"]["milliseconds"])


def precision(lines: list[Line]) -> str:
    """What `--precision auto` chose, and how far it is from the best."""
    body = [
        [
            f"{figures['H']}, {figures['V']}",
            figures["chosen"],
            f"{figures['seconds']:.2f}",
            ", ".join(f"{name} {value:.2f}" for name, value in figures["whole, ms"].items()),
            f"{figures['ratio']:.3f}",
        ]
        for figures in lines[-1]["figures"]
    ]
    return rows(["H, V", "`auto` chose", "in s", "an update, ms", "over the best"], body)


def dynamic(lines: list[Line]) -> str:
    """Dynamic evaluation, in tokens per second."""
    figures = lines[-1]["figures"]
    body = [
        [name, f"{median:,.0f} ({lower:,.0f} – {upper:,.0f})"]
        for name, (lower, median, upper) in figures["tokens a second"].items()
    ]
    head = [f"H {figures['H']}, V {figures['V']}, {figures['threads']} threads", "tokens/s"]
    return f"{rows(head, body)}\n\n{figures['times as fast']:.1f} times as fast."


def modules(lines: list[Line]) -> str:
    """A layer of `grimmgen.nn` and of `torch.nn`."""
    body = [
        [
            figures["cell"],
            f"{figures['H']}",
            figures["what"],
            *(f"{figures[name]:.1f}" for name in ("grimmgen", "torch", "times as fast")),
        ]
        for line in lines
        for figures in line["figures"]
    ]
    return rows(["cell", "H", "", "`grimmgen.nn`, ms", "`torch.nn`, ms", "times as fast"], body)


def budget(lines: list[Line]) -> str:
    """Wall clock over `--budget`."""
    body = [
        [
            figures["corpus"],
            f"{figures['budget']:g}",
            *(f"{figures[name]:.2f}" for name in ("wall", "uncounted", "over")),
            f"{figures['updates']}",
            f"{figures['evaluations']}",
        ]
        for figures in lines[-1]["figures"]
    ]
    return rows(["text", "budget, s", "wall, s", "uncounted, s", "over, s", "updates", "evaluations"], body)


# Title and table of each script, in the order of the page.
SECTIONS: dict[str, tuple[str, Callable[[list[Line]], str]]] = {
    "training.py": ("An update of training", training),
    "precision.py": ("`--precision auto`", precision),
    "growth.py": ("How the cost of an update grows", growth),
    "command.py": ("The whole command", command),
    "generation.py": ("Generation", generation),
    "dynamic.py": ("Dynamic evaluation", dynamic),
    "nn.py": ("Modules", modules),
    "startup.py": ("From the shell", startup),
    "text.py": ("Text", text),
    "budget.py": ("Budgets", budget),
}


def sections(record: Record) -> str:
    """The figures of one machine for benchmarks/README.md."""
    parts = [f"### {record.machine}", f"PyTorch {record.pytorch}."]
    for script, (title, table) in SECTIONS.items():
        if own := [line for line in record.lines if line["ran"][0] == script]:
            days = sorted({line["day"] for line in own})
            parts += [f"#### {title}", f"`{script}`, {' to '.join({days[0]: 1, days[-1]: 1})}.", table(own)]
            picture = record.path.with_suffix(".svg")
            if script == "growth.py" and picture.exists():
                place = picture.relative_to(HERE).as_posix()
                parts.append(f"![Milliseconds of an update over hidden units, rows and time steps]({place})")
    return "\n\n".join(parts)


def main_figures(record: Record) -> list[list[str]]:
    """What, figure and script, for each of the main figures of speed that the record has."""
    reports: dict[str, list[Any]] = {}
    for line in record.lines:
        reports.setdefault(line["ran"][0], []).append(line["figures"])
    body: list[list[str]] = []

    def add(what: str, figure: str, script: str) -> None:
        body.append([what, figure, f"`benchmarks/{script}`"])

    def ratios(hidden: int, layers: int) -> str:
        """The speed-up in each measured precision."""
        found = [t for t in reports["training.py"] if (t["cell"], t["H"], t["L"]) == ("lstm", hidden, layers)]
        ours = ((figures["grimmgen"]["times as fast"], figures["precision"]) for figures in found)
        return ", ".join(f"{times:.1f} times as fast as `nn.LSTM` in {precision}" for times, precision in ours)

    if "training.py" in reports:
        for what, hidden, layers in (
            ("one update at the tutorial's size", 128, 1),
            ("one update, 512 units", 512, 1),
            ("the same, two layers", 512, 2),
        ):
            add(what, ratios(hidden, layers), "training.py")
    for figures in reports.get("generation.py", [])[:1]:
        add(
            "generation, one story, one core, tutorial's size",
            f"{figures['bigrams a second']['grimmgen']:,.0f} bigrams per second,"
            f" {figures['times as fast']['grimmgen']:.0f} times as fast as a loop in eager PyTorch",
            "generation.py",
        )
    for figures in reports.get("startup.py", []):
        seconds, shares = figures["seconds"], figures["share of import torch"]
        both = " and ".join(
            f"{seconds[name]:.2f} s ({shares[name]:.2f} of `import torch`)"
            for name in ("grimmgen generate --length 200", "grimmgen --help")
        )
        add("from the shell to the end of 200 characters; `--help`", both, "startup.py")
    for figures in reports.get("text.py", []):
        speed = statistics.median(figures["MB a second"]["grimmgen"]["both"])
        add(
            "1 GB of text counted and encoded",
            f"{speed:.0f} MB a second, {figures['times as fast']['both']:.0f} times as fast as `collections.Counter`;"
            f" peak memory {figures['peak, MB']['grimmgen']:.0f} MB",
            "text.py",
        )
        add(
            "training on 1 GB of text",
            f"peak memory {figures['train'][0]['peak, MB']:.0f} MB",
            "text.py --train 10",
        )
    for figures in reports.get("command.py", []):
        add("`grimmgen train`, after its start", f"{figures['share']:.0%} is inside the updates", "command.py")
    return body


def summary(record: Record) -> str:
    """The main figures of speed for docs/figures.md, after a sentence that says where and when they were measured."""
    body = main_figures(record)
    return f"Speed, one run each on {_measured(record, body)}:\n\n{rows(['what', 'figure', 'from'], body)}"


def headline(record: Record, results: Sequence[quality.Result]) -> str:
    """The five figures of the main README: quality of a short training, and speed."""
    # The newest run of the preset on the tales.
    tales = [r for r in results if r.corpus == "grimm" and r.part == "test"]
    best = max((r for r in tales if r.contender == "strong"), key=lambda r: r.day)
    compressor = next(r for r in tales if r.contender == "PPMd")
    found = best.bits_per_character if best.mixture is None else best.mixture
    adapted = best.dynamic if best.dynamic_mixture is None else best.dynamic_mixture
    counted = "" if best.mixture is None else " and counts"
    cores = "one core" if best.threads == 1 else f"{best.threads} cores"
    limit = f"{best.epochs} epochs, {(best.seconds or 0) / 60:.0f} minutes of {cores}"
    first = [
        f"bits per character on held-out tales, a network of 512 units{counted} after {limit}",
        f"{found:.2f}{'' if adapted is None else f', {adapted:.2f} with dynamic evaluation'};"
        f" the compressor PPMd needs {compressor.bits_per_character:.2f}",
        "`benchmarks/quality.py`",
    ]
    speed = main_figures(record)
    body = [next(row for row in speed if row[-1] == f"`benchmarks/{script}`") for script in _HEADLINE]
    sentence = (
        f"Speed, one run each, on {_measured(record, body)}. Quality is that of one run with"
        f" {best.computed.removeprefix('native ')}, {best.day}."
    )
    return f"{rows(['what', 'figure', 'from'], [first, *body])}\n\n{sentence}"


def _measured(record: Record, body: Sequence[Sequence[str]]) -> str:
    """Where and when the figures of these rows were measured."""
    used = " ".join(row[-1] for row in body)
    days = sorted({line["day"] for line in record.lines if line["ran"][0] in used})
    return f"{record.machine} ({' to '.join({days[0]: 1, days[-1]: 1})}, PyTorch {record.pytorch})"


# --- the pages -----------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """The pages with the figures of all records, by their paths."""
    records = sorted(map(Record.read, RECORDS.glob("*.jsonl")), key=lambda record: record.last_day)
    # Of the main pages: a record may have some of the scripts only.
    newest = next(record for record in reversed(records) if {*_HEADLINE} <= record.scripts)
    results = quality.read_record([HERE / "quality.jsonl"])
    generated = {
        HERE / "README.md": {
            "speed": "\n\n".join(sections(record) for record in reversed(records)),
            "quality": quality.table(results),
            "stories": stories.table(stories.read_record(HERE / "stories.jsonl")),
        },
        HERE.parent / "README.md": {"figures": headline(newest, results)},
        HERE.parent / "docs" / "figures.md": {"speed": summary(newest)},
    }
    return {path: _replaced(path, parts) for path, parts in generated.items()}


def _replaced(path: Path, generated: dict[str, str]) -> str:
    """A page with what stands between its markers replaced."""
    content = path.read_text("utf-8")
    for name, part in generated.items():
        begin, end = (f"<!-- {name} by record.py: {edge} -->" for edge in ("begin", "end"))
        if content.count(begin) != 1 or content.count(end) != 1:
            raise SystemExit(f"{path} needs the lines {begin} and {end}, once each")
        head, rest = content.split(begin)
        content = f"{head}{begin}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return content


def stale() -> list[str]:
    """The pages whose figures are not those of the records."""
    return [str(path) for path, content in pages().items() if path.read_text("utf-8") != content]


def main() -> None:
    """Run the benchmarks, and write the pages; or check them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="for command.py and budget.py: a directory of texts")
    parser.add_argument("--record", type=Path, default=default_path(), help="the file of the record")
    parser.add_argument("--only", choices=list(SECTIONS), help="run this script only")
    parser.add_argument("--write", action="store_true", help="run nothing, write the figures")
    parser.add_argument("--check", action="store_true", help="run nothing, check the figures")
    options = parser.parse_args()
    if options.check:
        for path in stale():
            print(f"{path} is not what the records say: run python benchmarks/record.py --write", file=sys.stderr)
        raise SystemExit(bool(stale()))
    if not options.write:
        record = Record.read(options.record)
        chosen = [run for run in RUNS if run[0] == options.only or (options.only is None and run[0] not in _LONG)]
        if not any(name.endswith("bf16") for name in instruction_sets()):
            chosen = [run for run in chosen if "bf16" not in run and run[0] != "precision.py"]
        measured = [measure(run, options.corpus, options.record.with_suffix(".svg")) for run in chosen]
        replaced = {line["ran"][0] for line in measured}
        kept = [line for line in record.lines if line["ran"][0] not in replaced]
        Record(record.path, machine(), torch.__version__, kept + measured).write()
    for page, content in pages().items():
        page.write_text(content, "utf-8")


if __name__ == "__main__":
    main()
