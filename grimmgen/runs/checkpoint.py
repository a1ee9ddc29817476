"""One checkpoint: one safetensors file that can be copied, sent and loaded alone.

Its metadata holds, as JSON, the format version, the configuration, the vocabulary and the provenance. Every
file is treated as a stranger's: its header is checked against its own configuration before anything of its
size is allocated, and nothing in it is ever run. Knows NumPy arrays, and neither PyTorch nor the registry.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from grimmgen.configuration import Configuration, weight_shapes
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files
from grimmgen.text.vocabulary import Vocabulary

FORMAT = 1
_KEY = "grimmgen"
# As JSON becomes some thirty times as large in memory.
_LARGEST_HEADER = 16 << 20
# No training leads there; and products of such weights, summed over the most units there can be, stay finite, so
# that every logit is a number.
_LARGEST_WEIGHT = 1e12
# Of the optimiser, which squares gradients.
_LARGEST_MOMENT = 1e30
_REMEDY = "copy it again, or take another checkpoint"

Tensors = dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, and what a resume needs beside it.

    Attributes:
        configuration: of the run.
        vocabulary: of the run.
        provenance: where the weights come from: run, corpus, versions, step, validation perplexity.
        weights: named and shaped as `weight_shapes` says.
        progress: where training stood (numbers); None in a file of weights only.
        training_tensors: the optimiser's moments and the carried state; empty in a file of weights only.
        sha256: of the file that it was read from; empty if it was not.
    """

    configuration: Configuration
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    weights: Tensors
    progress: Mapping[str, Any] | None = None
    training_tensors: Tensors = field(default_factory=dict)
    sha256: str = ""

    def write(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            GrimmgenError: the disk does not take it, or the vocabulary is too large; what was there stays.
        """
        header = {
            "format": FORMAT,
            "configuration": self.configuration.to_json(),
            "vocabulary": self.vocabulary.to_json(),
            "provenance": dict(self.provenance),
            "progress": None if self.progress is None else dict(self.progress),
        }
        # A view with its axes exchanged would be written in the order of its memory, not of its indices.
        tensors = {n: np.ascontiguousarray(t) for n, t in {**self.weights, **self.training_tensors}.items()}
        # In ASCII: the name of a corpus may have bytes of a file name that are no Unicode.
        content = safetensors.numpy.save(tensors, metadata={_KEY: json.dumps(header)})
        if int.from_bytes(content[:8], "little") > _LARGEST_HEADER:
            raise GrimmgenError(
                f"cannot write {path}: its vocabulary is too large", "raise --min-count, or lower --ngram"
            )
        files.write_atomically(path, content)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint, trusting nothing in it.

        Raises:
            GrimmgenError: the file cannot be read.
            IntegrityError: it is not a checkpoint, not whole, of a future format, or contradicts itself.
        """
        with files.wrap_os_errors(f"cannot read {path}"), files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size, _LARGEST_HEADER):
                raise IntegrityError(f"{path} is not a grimmgen checkpoint", _REMEDY)
            raw = file.read(length)
            header = _Header.parse(path, raw)
            # Before anything is read: a header of two kilobytes may ask for terabytes, and mean it.
            if size != 8 + length + header.size:
                raise IntegrityError(f"{path} is not whole", _REMEDY)
            body = file.read(header.size)
        content = length.to_bytes(8, "little") + raw + body
        try:
            tensors = safetensors.numpy.load(content)
        except safetensors.SafetensorError as error:
            raise IntegrityError(f"{path} is damaged ({_brief(str(error))})", _REMEDY) from None
        for name, tensor in tensors.items():
            # Written so that nan is outside, too. A mogrifier of no rounds has tensors without numbers.
            limit = _LARGEST_MOMENT if name.startswith("adam.") else _LARGEST_WEIGHT
            if tensor.size and not (tensor.min() >= -limit and tensor.max() <= limit):
                raise IntegrityError(f"{path} has numbers in {name} that are vast or not finite", _REMEDY)
        names = weight_shapes(header.configuration, len(header.vocabulary))
        return cls(
            header.configuration,
            header.vocabulary,
            header.provenance,
            {name: tensors[name] for name in names},
            header.progress,
            {name: tensor for name, tensor in tensors.items() if name not in names},
            files.sha256(content),
        )


def training_shapes(configuration: Configuration, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
    """The tensors beside the weights that a resume needs: Adam's moments, and the state [L, B, H]."""
    shapes = {
        f"adam.{moment}.{name}": shape
        for moment in ("exp_avg", "exp_avg_sq")
        for name, shape in weight_shapes(configuration, vocabulary_size).items()
    }
    state = (configuration.layers, configuration.batch_size, configuration.hidden)
    return {**shapes, "state.h": state, "state.c": state}


@dataclass(frozen=True)
class _Header:
    configuration: Configuration
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    progress: Mapping[str, Any] | None
    size: int  # bytes of all tensors

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> _Header:
        try:
            entries = json.loads(raw)
            ours = json.loads(entries.pop("__metadata__")[_KEY])
            version = ours["format"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise IntegrityError(f"{path} is not a grimmgen checkpoint", _REMEDY) from None
        if type(version) is not int or version < 1:
            raise IntegrityError(f"{path} has no format version", _REMEDY)
        if version > FORMAT:
            raise IntegrityError(
                f"{path} has the format {_brief(str(version))}, newer than this grimmgen", "upgrade grimmgen"
            )
        try:
            configuration = Configuration.from_json(ours.get("configuration"))
            vocabulary = Vocabulary.from_json(ours.get("vocabulary"))
        except GrimmgenError as error:
            raise IntegrityError(f"{path}: {error.what}", error.remedy) from None
        for name in ("ngram", "min_count", "lower", "newlines"):
            if getattr(configuration, name) != getattr(vocabulary, name):
                raise IntegrityError(f"{path}: the vocabulary has another {name} than the configuration", _REMEDY)
        provenance, progress = ours.get("provenance"), ours.get("progress")
        if not isinstance(provenance, dict) or not isinstance(progress, dict | None):
            raise IntegrityError(f"{path} lacks its provenance", _REMEDY)
        expected = weight_shapes(configuration, len(vocabulary))
        if progress is not None:
            expected |= training_shapes(configuration, len(vocabulary))
        for name, shape in expected.items():
            match entries.get(name):
                case {"dtype": "F32", "shape": list(found)} if found == list(shape):
                    continue
                case {"dtype": str(dtype), "shape": list(found)}:
                    raise IntegrityError(
                        f"{path}: {name} is {_brief(f'{dtype} {found}')} instead of F32 {list(shape)}", _REMEDY
                    )
                case _:
                    raise IntegrityError(f"{path} lacks the tensor {name}", _REMEDY)
        if surplus := sorted(set(entries) - set(expected)):
            raise IntegrityError(f"{path} has a tensor too many, {_brief(surplus[0])}", _REMEDY)
        return cls(
            configuration, vocabulary, provenance, progress, 4 * sum(math.prod(s) for s in expected.values())
        )


def _brief(found: str) -> str:
    """What a stranger's file says, fit for one line."""
    return found[:80].encode("unicode_escape").decode()[:80]
