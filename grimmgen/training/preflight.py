"""What can be known before the first update: whether the checkpoints of a training can be written."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grimmgen.configuration import Configuration
from grimmgen.counts import storage
from grimmgen.counts.index import LARGEST
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files
from grimmgen.network.shapes import weight_shapes
from grimmgen.runs.checkpoint import Checkpoint, training_shapes
from grimmgen.runs.registry import Run
from grimmgen.text.vocabulary import Vocabulary

# Bytes of the log for each epoch, and of the longest log that is expected.
_LOG_OF_EPOCH, _LONGEST_LOG = 600, 1 << 20
# Bytes of a tensor's entry in the header of a checkpoint.
_ENTRY = 150


def check_checkpoints(
    configuration: Configuration,
    vocabulary: Vocabulary,
    provenance: Mapping[str, Any],
    directory: Path,
    run: Run | None = None,
    base: Checkpoint | None = None,
    tokens: int = 0,
) -> None:
    """Check that the largest files of a training can be written.

    Args:
        configuration: of the run.
        vocabulary: of the run.
        provenance: of its checkpoints.
        directory: of the run, or of all runs; it need not exist.
        run: the run that is resumed, whose checkpoints will be replaced.
        base: the model that a new run starts from, which is copied.
        tokens: of the training set, in all phases.

    Raises:
        GrimmgenError: the vocabulary is too large for a checkpoint, there is too little space on the disk, or the
            limit of a file's size is too low.
        IntegrityError: a directory has the name of a checkpoint.
    """
    size = len(vocabulary)
    # Without tensors it has the largest part of the header.
    header = len(Checkpoint(configuration, vocabulary, provenance, {}).to_bytes())
    weights, training = weight_shapes(configuration, size), training_shapes(configuration, size)
    best = header + sum(4 * math.prod(shape) + _ENTRY for shape in weights.values())
    last = best + sum(4 * math.prod(shape) + _ENTRY for shape in training.values())
    if configuration.counts:
        best += storage.BYTES_OF_TOKEN * min(tokens, LARGEST)
    # A file is replaced by a new one, which exists beside it for a moment; the previous last checkpoint is kept.
    needed = 2 * best + 2 * last + min(_LONGEST_LOG, _LOG_OF_EPOCH * configuration.epochs)
    if base is not None:
        needed += header + sum(weight.nbytes + _ENTRY for weight in base.weights.values())
    if run is not None:
        for path in (run.best_path, run.last_path, run.previous_path, run.log_path):
            if path.is_dir():
                raise IntegrityError(f"{path} is a directory", "remove it")
        # Two names of one file count once.
        own = {
            path.stat().st_ino: path.stat().st_size
            for path in run.path.glob("*.safetensors")
            if path != run.base_path
        }
        needed -= sum(own.values())
    if (free := files.free_space(directory)) < needed:
        raise GrimmgenError(
            f"{directory} has {_megabytes(free)} of free space, and the checkpoints of this training take"
            f" {_megabytes(needed)}",
            "free some, or set GRIMMGEN_HOME to a directory on another disk",
        )
    larger = max(best, last)
    if (largest := _largest_file()) < larger:
        raise GrimmgenError(
            f"a checkpoint of this training takes {_megabytes(larger)}, and a file may have {_megabytes(largest)}",
            "raise the file size limit (ulimit -f)",
        )


def _largest_file() -> float:
    """The limit of a file's size in bytes."""
    if sys.platform == "win32":
        return math.inf
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return math.inf if limit == resource.RLIM_INFINITY else limit


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.1f} MB"
