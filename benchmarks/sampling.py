"""Compare sampling options by how much they copy from the training documents: the table of docs/generating.md.

    python benchmarks/sampling.py [--run NAME]

Every set of options generates texts with the same random seeds, 0 and up. The table has the share of the text that
occurs verbatim in the run's training documents, as `grimmgen generate --novelty` measures it, with held-out
documents as the control; the model's own bits per character; processor seconds; and below it the beginning of the
first text of each. The same run gives the same figures, except for the seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

from grimmgen.evaluation.novelty import Novelty, measure_together, training_index
from grimmgen.runs import registry
from grimmgen.sampling.generator import TextGenerator
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.normalisation import normalise

CONTENDERS: dict[str, dict[str, Any]] = {
    "`--top-k 3` (the tutorial's)": {},
    "`--top-p 0.9`": {"top_p": 0.9},
    "`--beam-width 5`": {"beam_width": 5},
    "`--top-k 3 --max-copy 40`": {"max_copy": 40},
    "`--beam-width 5 --max-copy 40`": {"beam_width": 5, "max_copy": 40},
    "`--beam-width 5 --max-copy 20`": {"beam_width": 5, "max_copy": 20},
}
_EXCERPT = 160


def row(name: str, novelty: Novelty, bits: float | None, seconds: float | None) -> str:
    """Format one row of the table."""
    longest = len(novelty.longest.text) if novelty.longest else 0
    copied = " | ".join(f"{share:.1%}" for share in novelty.copied.values())
    novel = novelty.novel[12]
    assert novel is not None
    bits_cell = "–" if bits is None else f"{bits:.2f}"
    seconds_cell = "–" if seconds is None else f"{seconds:.1f}"
    return f"| {name} | {longest} | {copied} | {novel:.0%} | {bits_cell} | {seconds_cell} |"


def main() -> None:
    """Generate, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="name of a run; the latest one by default")
    parser.add_argument("--stories", type=int, default=20, help="texts per set of options")
    parser.add_argument("--length", type=int, default=2000, help="maximum characters of each text")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    run = registry.find(arguments.run)
    generator = TextGenerator.load(run.name)
    index = training_index(generator.model)
    documents, rows, excerpts = [], [], []
    for name, options in CONTENDERS.items():
        started = time.process_time()
        generations = generator.generate_batch(
            "", SamplingOptions(length=arguments.length, **options), arguments.stories
        )
        seconds = time.process_time() - started
        novelty = measure_together(index, name, [generation.text for generation in generations])
        nats = sum(generator.log_probability(generation) for generation in generations)
        bits = -nats / math.log(2) / novelty.characters
        rows.append(row(name, novelty, bits, seconds))
        excerpts.append((name, generations[0].text[:_EXCERPT].rpartition(" ")[0]))
        documents.append(
            {
                "way": name.replace("`", ""),
                "characters": novelty.characters,
                "longest": len(novelty.longest.text) if novelty.longest else 0,
                "copied": novelty.copied,
                "novel": novelty.novel,
                "bits_per_character": bits,
                "seconds": seconds,
            }
        )
    configuration = run.configuration
    held_out = [normalise(document.read(), configuration.normalisation) for document in run.split().parts["valid"]]
    rows.append(row("held-out stories", measure_together(index, "valid", held_out), None, None))
    if arguments.json:
        print(json.dumps(documents))
        return
    print("| options | longest copy | in copies ≥ 20 | ≥ 40 | ≥ 80 | new 12-grams | bits/char | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(rows))
    for name, text in excerpts:
        print(f"\n{name.replace('`', '')}:\n  {text} …")


if __name__ == "__main__":
    main()
