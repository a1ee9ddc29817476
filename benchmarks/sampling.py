"""What ways of telling copy from the training stories, side by side: the table of the README.

    python benchmarks/telling.py [--run NAME]

The same random seeds, 0 and up, are told in each way by a run of yours; printed are how much of that stands
verbatim in its training stories, as `grimmgen generate --novelty` measures it, with held-out stories as the
control, what the model itself thinks of it in bits per character, processor seconds, and the beginning of the
first story of each. The same run gives the same figures, but for the seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from typing import Any

from grimmgen.evaluation.novelty import Novelty, measure_together
from grimmgen.runs import registry
from grimmgen.sampling.generator import TextGenerator, training_index
from grimmgen.sampling.options import SamplingOptions
from grimmgen.text.vocabulary import normalise

WAYS: dict[str, dict[str, Any]] = {
    "--top-k 3 (the tutorial's)": {},
    "--top-p 0.9": {"top_p": 0.9},
    "--beam-width 5": {"beam_width": 5},
    "--top-k 3 --max-copy 40": {"max_copy": 40},
    "--beam-width 5 --max-copy 40": {"beam_width": 5, "max_copy": 40},
    "--beam-width 5 --max-copy 20": {"beam_width": 5, "max_copy": 20},
}
_EXCERPT = 160


def row(name: str, novelty: Novelty, bits: float | None, seconds: float | None) -> str:
    """One of the table."""
    longest = len(novelty.longest.text) if novelty.longest else 0
    shares = " | ".join(f"{share:.1%}" for share in novelty.copied.values())
    new = novelty.novel[12]
    assert new is not None
    told = "–" if bits is None else f"{bits:.2f}"
    took = "–" if seconds is None else f"{seconds:.1f}"
    return f"| {name} | {longest} | {shares} | {new:.0%} | {told} | {took} |"


def main() -> None:
    """Tell, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", help="a run's name; the latest one if it is not given")
    parser.add_argument("--stories", type=int, default=20)
    parser.add_argument("--length", type=int, default=2000, help="characters of each, at most")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    run = registry.find(options.run)
    teller, index = TextGenerator.load(options.run), training_index(options.run)
    documents = []
    rows, excerpts = [], []
    for name, way in WAYS.items():
        began = time.process_time()
        told = teller.tell_several("", SamplingOptions(length=options.length, **way), options.stories)
        seconds = time.process_time() - began
        novelty = measure_together(index, name, [story.text for story in told])
        nats = sum(teller.log_probability(story) for story in told)
        bits = -nats / math.log(2) / novelty.characters
        rows.append(row(f"`{name}`" if "(" not in name else f"`{name[:9]}`{name[9:]}", novelty, bits, seconds))
        excerpts.append((name, told[0].text[:_EXCERPT].rpartition(" ")[0]))
        documents.append(
            {
                "way": name,
                "characters": novelty.characters,
                "longest": len(novelty.longest.text) if novelty.longest else 0,
                "copied": novelty.copied,
                "novel": novelty.novel,
                "bits_per_character": bits,
                "seconds": seconds,
            }
        )
    configuration = run.configuration
    texts = [
        normalise(story.read(), configuration.lower, configuration.newlines)
        for story in run.split().parts["valid"]
    ]
    rows.append(row("held-out stories", measure_together(index, "valid", texts), None, None))
    if options.json:
        print(json.dumps(documents))
        return
    print("| told with | longest copy | in copies ≥ 20 | ≥ 40 | ≥ 80 | new 12-grams | bits/char | s |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    print("\n".join(rows))
    for name, text in excerpts:
        print(f"\n{name}:\n  {text} …")


if __name__ == "__main__":
    main()
