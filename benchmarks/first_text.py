"""The README's example of `grimmgen.fit`: the time it takes, and how many of the words that it generates are real.

    python benchmarks/first_text.py
    python benchmarks/first_text.py --processor-time     # on a busy machine: the budget is processor time of one thread

A word is real if it occurs in the corpus. The rivals are other presets with the same budget. Each generates 20 texts,
and has a process of its own; "seconds" are all of `fit`, PyTorch's import included.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_TEXTS = 20
_RIVALS = ("quick", "tutorial")
_README = Path(__file__).parent.parent / "README.md"


def example() -> tuple[str, dict[str, Any]]:
    """The corpus and the options of the first call of `grimmgen.fit` in the README."""
    block = re.findall(r"```python\n(.*?)```", _README.read_text(encoding="utf-8"), re.DOTALL)[0]
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "grimmgen.fit":
            options = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            return ast.literal_eval(node.args[0]), options
    raise SystemExit("the README has no call of grimmgen.fit")


def measure(corpus: str, options: dict[str, Any], processor_time: bool) -> dict[str, Any]:
    """Train and generate; returns the figures of a row."""
    if processor_time:
        os.environ["OMP_NUM_THREADS"] = "1"
        time.monotonic = time.process_time  # which training asks for the time
    began = time.monotonic()
    import grimmgen

    model = grimmgen.fit(corpus, **options)
    seconds = time.monotonic() - began
    texts = [document.read().lower() for document in grimmgen.open_corpus(corpus).documents]
    known = {word for text in texts for word in re.findall(r"[a-z]+", text)}
    stories = [model.generate("the king", random_seed=seed) for seed in range(_TEXTS)]
    words = [word for story in stories for word in re.findall(r"[a-z]+", story)]
    return {
        "options": " ".join(f"{name}={value!r}" for name, value in options.items()),
        "seconds": seconds,
        "bits": model.evaluate(split="test").total.bits_per_character,
        "real": sum(word in known for word in words) / len(words),
        "begins": " ".join(stories[0].split()[:16]),
    }


def main() -> None:
    """Print a row for the example, and for each of its rivals."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processor-time", action="store_true", help="count processor time of one thread")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    corpus, options = example()
    if arguments.row is not None:
        sys.stdout.write(json.dumps(measure(corpus, json.loads(arguments.row), arguments.processor_time)))
        return
    print("| options | seconds | bits/char, test | real words | a text begins |\n|---|--:|--:|--:|---|")
    rivals = ({**options, "preset": preset} for preset in _RIVALS)
    for row in (options, *rivals):
        command = [sys.executable, __file__, "--row", json.dumps(row)]
        command += ["--processor-time"] * arguments.processor_time
        with tempfile.TemporaryDirectory() as home:
            variables = {**os.environ, "GRIMMGEN_HOME": home}
            found = json.loads(subprocess.run(command, env=variables, check=True, stdout=subprocess.PIPE).stdout)
        print("| `{options}` | {seconds:.0f} | {bits:.2f} | {real:.0%} | {begins} |".format(**found), flush=True)


if __name__ == "__main__":
    main()
