"""Draw docs/inside.svg from the JSON of `grimmgen eval --cells`, and print the tables of docs/inside.md.

    grimmgen eval --run tales --cells --split valid --json > valid.json
    grimmgen eval --run tales --cells --split test --json > test.json
    python docs/inside.py valid.json test.json

The left panel has a point for each unit and gate: the share of tokens at which it is open and closed, as figure 3 of
Karpathy, Johnson and Li (2015). The right panel is the loss by the length of the context.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Colours that differ in lightness, too.
_COLOURS = ("#1b4f8a", "#d97706", "#3f9b6d")


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the two panels as an SVG file."""
    mpl.rcParams["svg.hashsalt"] = "grimmgen"  # the same file for the same figures
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for gate, colour in zip(report["gates"], _COLOURS, strict=True):
        left.scatter(
            gate["open_by_unit"], gate["closed_by_unit"], 6, colour, label=gate["gate"], alpha=0.6, rasterized=True
        )
    left.set_xlabel("share of tokens with the gate above 0.9")
    left.set_ylabel("share of tokens with it below 0.1")
    left.legend(title="gate")
    contexts = report["context"]
    # A range of contexts stands at its geometric mean.
    places = [math.sqrt(one["first"] * one["last"]) for one in contexts]
    losses = [report["bits_per_character"] + one["excess"] for one in contexts]
    right.errorbar(
        places, losses, [1.96 * one["error"] for one in contexts], marker="o", color=_COLOURS[0], capsize=3
    )
    right.axhline(report["bits_per_character"], color="#777777", linestyle=":", label="with the whole text before")
    right.set_xscale("log", base=2)
    right.set_xlabel("tokens of context")
    right.set_ylabel("bits per character")
    right.legend()
    figure.savefig(path, dpi=150, metadata={"Date": None})


def tables(reports: list[dict[str, Any]]) -> str:
    """The tables of the page, of one report for each part of the split."""
    first = reports[0]
    lines = [
        "| feature | unit | "
        + " | ".join(f"{r['split']}: r | by chance | beyond the token" for r in reports)
        + " |"
    ]
    lines.append("|---|--:|" + "--:|--:|--:|" * len(reports))
    for feature in first["features"]:
        unit = feature["best"][0]["unit"] if feature["significant"] else "–"
        cells = []
        for report in reports:
            [same] = [one for one in report["features"] if one["name"] == feature["name"]] or [None]
            if same is None:
                cells += ["–"] * 3
                continue
            best = same["best"][0]
            other = "" if best["unit"] == feature["best"][0]["unit"] else f" (unit {best['unit']})"
            cells += [
                f"{best['correlation']:+.3f}{other}",
                f"{same['chance']:.3f}",
                f"{same['beyond_token']:+.3f}",
            ]
        lines.append(f"| {feature['name']} | {unit} | {' | '.join(cells)} |")
    lines += ["", "| gate | " + " | ".join(f"{r['split']}: below 0.1 | above 0.9" for r in reports) + " |"]
    lines.append("|---|" + "--:|--:|" * len(reports))
    for number, gate in enumerate(first["gates"]):
        cells = [
            f"{share:.1%}" for r in reports for share in (r["gates"][number]["closed"], r["gates"][number]["open"])
        ]
        lines.append(f"| {gate['gate']} | {' | '.join(cells)} |")
    lines += [
        "",
        "| tokens of context | " + " | ".join(f"{r['split']}: bits/char | more | ±" for r in reports) + " |",
    ]
    lines.append("|---|" + "--:|--:|--:|" * len(reports))
    for number, one in enumerate(first["context"]):
        found = [(report["bits_per_character"], report["context"][number]) for report in reports]
        name = f"{one['first']}–{one['last']}" if one["first"] != one["last"] else str(one["first"])
        cells = [f"{b + c['excess']:.3f} | {c['excess']:+.4f} | {1.96 * c['error']:.4f}" for b, c in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Draw the picture and print the tables."""
    reports = [json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:]]
    draw(reports[0], Path(__file__).with_suffix(".svg"))
    sys.stdout.write(tables(reports) + "\n")


if __name__ == "__main__":
    main()
