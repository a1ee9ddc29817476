"""Make the bundled model from a trained one: 8-bit weights, no trace of the machine, a model card.

    python benchmarks/pretrained.py RUN
    python benchmarks/pretrained.py best.safetensors --corpus DIRECTORY --split split.json

Rounds the matrices to 8 bits, writes the file, reads it again, and evaluates it and the original on their validation
and test stories. Where it needs more than 0.002 bits per character more than the original, nothing is changed; else it
becomes `grimmgen/data/pretrained/grimm.safetensors`, and `docs/pretrained.md` describes it. `--counts` keeps the
counts, which hold the training text itself.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from grimmgen.cli.options import as_typed
from grimmgen.evaluation.comparison import evaluate_models
from grimmgen.evaluation.scores import Score
from grimmgen.io import files
from grimmgen.network.shapes import parameter_count
from grimmgen.runs.checkpoint import Checkpoint
from grimmgen.runs.registry import PRETRAINED, PRETRAINED_PATH, TrainedModel, load_model
from grimmgen.text.corpus import open_corpus
from grimmgen.text.split import Part, Split, split_by_file
from grimmgen.training.text import DECODING

ROOT = Path(__file__).parent.parent
CARD = ROOT / "docs" / "pretrained.md"
SPLIT = ROOT / "docs" / "pretrained-split.json"
# In bits per character.
_LARGEST_LOSS = 0.002
# In bytes.
_LARGEST_FILE = 5_500_000
_HELD_OUT: tuple[Part, ...] = ("valid", "test")
# What the package says of the training; names and hashes of the run, and the machine, are left out.
_KEPT = "beginnings lengths lexicon decoding versions step epoch perplexity bits_per_character".split()


@dataclass(frozen=True)
class Quality:
    """The scores of the original and of the bundled model on a part, without or with counts."""

    part: Part
    kind: str
    before: Score
    after: Score


def main() -> None:
    """Make the file and the card, or say what prevents it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="RUN|CHECKPOINT")
    parser.add_argument("--corpus", help="where the tales are, if not where the run read them")
    parser.add_argument("--split", type=Path, help="of a checkpoint file: names of the documents of each part")
    parser.add_argument("--counts", action="store_true", help="keep the counts, which hold the training text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trained = load_model(options.model, [options.corpus] if options.corpus else None)
    checkpoint = trained.checkpoint
    if "base" in checkpoint.provenance:
        parser.error("the model was trained from another one, so that no one command reproduces it")
    if trained.has_split:
        split = trained.split()
    elif options.corpus and options.split:
        split = split_by_file(open_corpus(options.corpus, checkpoint.configuration), options.split)
    else:
        parser.error("of a checkpoint file, give --corpus and --split")
    if not options.counts:
        checkpoint = replace(checkpoint, mixture=None)
    provenance = {name: checkpoint.provenance[name] for name in _KEPT}
    provenance |= {"corpus": "grimm", "split": _names_only(split)}
    provenance["decoding"] = {**DECODING, "lexicon": bool(provenance["lexicon"])}  # today's
    rounded = replace(checkpoint.rounded(8), provenance=provenance, mixture=checkpoint.mixture)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / PRETRAINED_PATH.name
        content = rounded.to_bytes(8)
        path.write_bytes(content)
        written = Checkpoint.read(path)
    scores = [score for part in _HELD_OUT for score in _compare(checkpoint, written, split, part)]
    for score in scores:
        before, after = score.before.bits_per_character, score.after.bits_per_character
        print(f"{score.part:5}  {score.kind:7}  {before:.5f} with float32, {after:.5f} with 8 bits")
    print(f"{len(content):,} bytes")
    if any(s.after.bits_per_character > s.before.bits_per_character + _LARGEST_LOSS for s in scores):
        sys.exit(f"8 bits cost more than {_LARGEST_LOSS} bits per character: nothing was written")
    if len(content) > _LARGEST_FILE:
        sys.exit(f"the file would be larger than {_LARGEST_FILE:,} bytes: nothing was written")
    files.make_directory(PRETRAINED_PATH.parent)
    files.write_atomically(PRETRAINED_PATH, content)
    names = {part: [document.name for document in documents] for part, documents in split.parts.items()}
    files.write_atomically(SPLIT, (json.dumps(names) + "\n").encode())
    files.write_atomically(CARD, _card(trained, written, names, len(content), scores).encode())
    print(f"wrote {PRETRAINED_PATH}, {CARD} and {SPLIT}")


def _names_only(split: Split) -> dict[str, Any]:
    """The split without hashes: fetched tales may have other line ends than those of the training."""
    stored = split.to_json()
    for entry in (entry for entries in stored["parts"].values() for entry in entries):
        entry["sha256"] = None
    return stored


def _compare(before: Checkpoint, after: Checkpoint, split: Split, part: Part) -> list[Quality]:
    cpu = torch.device("cpu")
    models = [TrainedModel(PRETRAINED, checkpoint) for checkpoint in (before, after)]
    # One at a time: together they would be an ensemble as well.
    results = [evaluate_models([model], split.parts[part], part, cpu).results for model in models]
    scores = [{result.kind: result.static.total for result in of_model} for of_model in results]
    return [Quality(part, kind, scores[0][kind], scores[1][kind]) for kind in sorted(scores[0], reverse=True)]


def _card(
    trained: TrainedModel,
    written: Checkpoint,
    names: dict[Part, list[str]],
    size: int,
    scores: Sequence[Quality],
) -> str:
    """The model card, in Markdown."""
    configuration, provenance = written.configuration, written.provenance
    parameters = parameter_count(configuration, len(written.vocabulary))
    train, valid, test = (len(names[part]) for part in ("train", "valid", "test"))
    rows = "\n".join(
        f"| {score.part} | {score.kind} | {score.before.bits_per_character:.4f} |"
        f" {score.after.bits_per_character:.4f} | {score.after.perplexity:.2f} |"
        for score in scores
    )
    command = f"grimmgen train --run tales --split docs/pretrained-split.json {as_typed(configuration)}"
    command = " \\\n    ".join(textwrap.wrap(command, 110, break_long_words=False, break_on_hyphens=False))
    counts = " --counts" if written.mixture else ""
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return f"""\
# The bundled model

Made by `python benchmarks/pretrained.py`; do not edit. `grimmgen generate` uses this model as long as there is no run;
`--run {PRETRAINED}` names it.

- **Architecture:** {configuration.cell}, {configuration.layers} × {configuration.hidden} units, {parameters:,}
  parameters, a vocabulary of {len(written.vocabulary):,} tokens (`{configuration.tokens}`).
- **File:** {size:,} bytes. Matrices have 8 bits, with a float32 scale for each column; vectors are float32.
  {"It has counts of the training set." if written.mixture else "It has no counts."}
  SHA-256 `{written.sha256}`.
- **Text:** {train} of the 209 tales of the Brothers Grimm that `grimmgen fetch --stories all` downloads, in English.
  {valid} validation and {test} test tales were held out, by the split of the tutorial's second edition
  ([`pretrained-split.json`](pretrained-split.json)). The weights are those with the lowest perplexity on the
  validation tales; no training read the test tales.
- **Training:** {provenance["step"]:,} updates, {provenance["epoch"]} epochs{_duration(trained)}{_machine(trained)};
  {versions}.
- **Use:** tales in the manner of the Grimms. It knows nothing else; like its text, it has the violence and the
  prejudices of its time.

## Quality

Bits per character, and perplexity per token, on whole held-out tales, computed by the script on a CPU (PyTorch
{torch.__version__}, {platform.machine()}).

| tales | | float32, bits per character | 8 bits, bits per character | 8 bits, perplexity |
|---|---|--:|--:|--:|
{rows}

With the tales fetched, `grimmgen eval --run {PRETRAINED} --split test` evaluates it again.

## Reproduce it

```sh
grimmgen fetch --stories all
{command}
python benchmarks/pretrained.py tales{counts}
```

Within the same time (`--budget`), another machine makes more or fewer updates.

## Licence

The weights are under the licence of grimmgen (MIT). The tales are those of the Carnegie Mellon page that the tutorial
uses. It names no edition; by its wording the text is the translation by Margaret Hunt (1884), which is in the public
domain, but in a revised version of unknown date and status: the first tale begins with "in olden times", where Hunt has
"in old times". The tales themselves are not in the package{_text_note(written)}.
"""


def _duration(trained: TrainedModel) -> str:
    step = trained.checkpoint.provenance["step"]
    log = [] if trained.run is None else trained.run.log()
    seconds = [e["seconds"] for e in log if e.get("event") == "evaluated" and e["step"] == step]
    return f", {seconds[-1] / 60:.1f} minutes" if seconds else ""


def _machine(trained: TrainedModel) -> str:
    used = trained.checkpoint.provenance.get("platform")
    return f" on {used['processor']} (threads: {used['threads']}, {used['precision']})" if used else ""


def _text_note(written: Checkpoint) -> str:
    return ", but its counts hold the tokens of the training tales in order" if written.mixture else ""


if __name__ == "__main__":
    main()
