"""What several test modules build: a model of a few numbers that looks trained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from grimmgen.configuration import Configuration
from grimmgen.network.cells import cells
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint, Tensors, training_shapes
from grimmgen.runs.registry import Run, run_sha256
from grimmgen.text.tokenizers import build_vocabulary
from grimmgen.text.vocabulary import Vocabulary

# With bigrams that are kept, and others that are hidden, when two occurrences are asked for.
TEXT = "the king and the thin hen; the king is the end.\n"
# Documents for `grimmgen.fit`, and options with which it takes a moment.
TEXTS = [
    f"The {who} went to the forest and found {n} geese.\n" for n in range(12) for who in ("king", "fox", "hen")
]
TINY: dict[str, Any] = {"preset": "tutorial", "hidden": 8, "batch_size": 4, "unroll": 10, "min_count": 2}
TINY |= {"epochs": 1, "lr": 0.01}


# Every cell in one and in two layers, over one-hot n-grams (unless a hook changes its input), over an embedding,
# and over one tied to the output layer; a hook with every number of rounds of which it has a case of its own.
NETWORKS: dict[str, dict[str, Any]] = {
    f"{cell.name}{layers}{suffix}": {"cell": cell.name, "layers": layers, **options}
    for cell in cells().values()
    for layers in (1, 2)
    for suffix, options in {
        "": {},
        "-embedded": {"embedding": 4},
        "-tied": {"embedding": 4, "tied": True},
        "-tied-0-rounds": {"embedding": 4, "tied": True, "rounds": 0},
        "-1-round": {"embedding": 4, "rounds": 1},
        "-2-rounds": {"embedding": 4, "rounds": 2},
    }.items()
    if (suffix if cell.pre_step else "round" not in suffix)
}


def weights_of(run: Run) -> dict[str, bytes]:
    """The weights and the training tensors of a run's last checkpoint, to compare bit by bit."""
    checkpoint = Checkpoint.read(run.last_path)
    return {n: t.tobytes() for n, t in {**checkpoint.weights, **checkpoint.training_tensors}.items()}


def tiny_configuration(**options: Any) -> Configuration:
    return Configuration(**{"hidden": 3, "batch_size": 2, "unroll": 4, "min_count": 2, **options})


def tiny_vocabulary(configuration: Configuration) -> Vocabulary:
    return build_vocabulary([TEXT], configuration)


def random_tensors(shapes: Mapping[str, tuple[int, ...]], random_seed: int = 0) -> Tensors:
    draw = np.random.default_rng(random_seed)
    return {n: draw.normal(0.0, 1 / math.sqrt(s[0] or 1), s).astype(np.float32) for n, s in shapes.items()}


def adopt_checkpoints(run: Run) -> None:
    """Make the checkpoints in a run's directory, which may be those of another run, its own."""
    for path in run.path.glob("*.safetensors"):
        checkpoint = Checkpoint.read(path)
        own = {"run": run.name, "run_sha256": run_sha256(run.info())}
        dataclasses.replace(checkpoint, provenance={**checkpoint.provenance, **own}).write(path)


def tiny_checkpoint(training: bool = False, run: str = "quiet-fox", **options: Any) -> Checkpoint:
    """Three units over the bigrams of TEXT, of a run; with `training` what a resume needs, too."""
    configuration = tiny_configuration(**options)
    vocabulary = tiny_vocabulary(configuration)
    return Checkpoint(
        configuration,
        vocabulary,
        {"run": run, "corpus": "tales", "step": 7},
        random_tensors(weight_shapes(configuration, len(vocabulary))),
        {"step": 7} if training else None,
        random_tensors(training_shapes(configuration, len(vocabulary)), 1) if training else {},
    )
