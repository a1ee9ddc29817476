"""A checkpoint: one safetensors file that can be copied, sent and loaded by itself.

Its metadata has the format version, the configuration, the vocabulary and the provenance, as JSON. Files are not
trusted: the header is checked against its own configuration before memory of its size is allocated, and nothing in
a file is executed. Knows NumPy arrays, and neither PyTorch nor the registry.

Formats: 1 has the training tensors `state.h` and `state.c` for every cell; 2 has one for each state of the cell, and
a hash of the vocabulary and the weights, since an id means nothing without the vocabulary it was trained with; 3 has
counts beside the weights, and is written only with these; 4 may have matrices in 8 bits, each with a scale for each
column as a tensor `scale.NAME`, and is written only with these. Counts are read into memory like the weights, not
mapped: their hash is verified, for which all of them are read; a mapped file could not be replaced on Windows, and
would end the process where it is truncated.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from grimmgen.configuration import Configuration
from grimmgen.counts import storage
from grimmgen.counts.mixture import Mixture
from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files
from grimmgen.network.cells import cells
from grimmgen.network.shapes import weight_shapes
from grimmgen.text.tokenizers import vocabulary_from_json
from grimmgen.text.vocabulary import Vocabulary

FORMAT = 4
_WITH_COUNTS = 3
_PLAIN = 2
# How an exported page (`grimmgen.export.html`) begins, and what stands around the checkpoint in it, in base64.
PAGE = b"<!doctype html>"
CHECKPOINT_OPENS = b'<script type="application/octet-stream" id="checkpoint">'
CHECKPOINT_CLOSES = b"</script>"
# In bytes; browsers hold no longer strings.
LARGEST_PAGE = 1 << 29
_KEY = "grimmgen"
_SCALE = "scale."
# The weights of a column in 8 bits are from -127 to 127 times its scale.
_LEVELS = 127
# In bytes. Parsed, JSON takes some thirty times as much memory.
_LARGEST_HEADER = 16 << 20
# No training reaches such weights. With them every logit is finite if the hidden state is bounded (in all cells but
# minGRU); the generator checks the logits.
_LARGEST_WEIGHT = 1e12
# Of the optimiser's moments, which include squares of gradients.
_LARGEST_MOMENT = 1e30
_VERSION = re.compile(r"[0-9][0-9A-Za-z.+-]{0,39}")
_REMEDY = "copy it again, or take another checkpoint"

Tensors = dict[str, NDArray[np.float32]]
Bits = Literal[8, 16, 32]


@dataclass(frozen=True)
class Checkpoint:
    """A trained model, and what a resume needs besides.

    Attributes:
        configuration: of the run.
        vocabulary: of the run.
        provenance: origin of the weights: run, corpus, versions, step, validation perplexity.
        weights: named and shaped as in `weight_shapes`.
        progress: position of the training, as JSON; None in a checkpoint of weights only.
        training_tensors: named and shaped as in `training_shapes`; empty in a checkpoint of weights only.
        sha256: hash of the file it was read from; else empty.
        mixture: counts of the training set and how to mix them with the network; None if there are none.
    """

    configuration: Configuration
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    weights: Tensors
    progress: Mapping[str, Any] | None = None
    training_tensors: Tensors = field(default_factory=dict)
    sha256: str = ""
    mixture: Mixture | None = None

    def write(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            GrimmgenError: the file cannot be written, or the vocabulary is too large; an existing file is
            unchanged.
        """
        try:
            content = self.to_bytes()
        except GrimmgenError as error:
            raise GrimmgenError(f"cannot write {path}: {error.what}", error.remedy) from None
        files.write_atomically(path, content)

    def to_bytes(self, bits: Bits = 32) -> bytes:
        """The contents of the file.

        Args:
            bits: store a weight in so few bits where that changes none of its numbers, as in a `rounded` checkpoint.

        Raises:
            GrimmgenError: the vocabulary is too large.
        """
        vocabulary = self.vocabulary.to_json()
        header: dict[str, Any] = {
            "format": _PLAIN if self.mixture is None else _WITH_COUNTS,
            "sha256": _hash(vocabulary, self.weights),
            "configuration": self.configuration.to_json(),
            "vocabulary": vocabulary,
            "provenance": dict(self.provenance),
            "progress": None if self.progress is None else dict(self.progress),
        }
        counts: dict[str, NDArray[Any]] = {}
        if self.mixture is not None:
            header["counts"] = storage.to_header(self.mixture)
            counts = storage.to_tensors(self.mixture)
        weights: dict[str, NDArray[Any]] = {**self.weights}
        if bits == 16:
            weights = {name: _halved(weight) for name, weight in weights.items()}
        elif bits == 8:
            for name, weight in _matrices(self.weights).items():
                levels, scale = _to_8_bits(weight)
                if np.array_equal(levels * scale, weight):
                    weights |= {name: levels, _SCALE + name: scale}
                    header["format"] = FORMAT
        # safetensors writes an array in memory order, whatever its strides.
        tensors = {n: np.ascontiguousarray(t) for n, t in {**weights, **self.training_tensors, **counts}.items()}
        # In ASCII: the name of a corpus may have bytes of a file name that are not Unicode.
        content = safetensors.numpy.save(tensors, metadata={_KEY: json.dumps(header)})
        if int.from_bytes(content[:8], "little") > _LARGEST_HEADER:
            raise GrimmgenError("its vocabulary is too large", "raise --min-count, or give smaller --tokens")
        return content

    def rounded(self, bits: Literal[8, 16] = 16) -> Checkpoint:
        """The model with rounded weights, and without counts and what only a resume needs.

        Args:
            bits: 16 (IEEE 754 binary16; a weight that is too large for it keeps all its numbers), or 8 (matrices
                become multiples of a scale for each column; other weights stay as they are).
        """
        rounded = dict(self.weights)
        if bits == 8:
            for name, weight in _matrices(self.weights).items():
                levels, scale = _to_8_bits(weight)
                rounded[name] = levels * scale
        else:
            for name, weight in self.weights.items():
                with np.errstate(over="ignore"):
                    half = weight.astype(np.float16)
                if np.isfinite(half).all():
                    rounded[name] = half.astype(np.float32)
        return Checkpoint(self.configuration, self.vocabulary, self.provenance, rounded)

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read a checkpoint of any format, or that of an exported page; nothing in it is trusted.

        Raises:
            GrimmgenError: the file cannot be read.
            IntegrityError: the file is not a checkpoint, incomplete, of a newer format, or inconsistent.
        """
        with files.wrap_os_errors(f"cannot read {path}"), files.open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            begin = file.read(8)
            if PAGE.startswith(begin) and begin:
                if size > LARGEST_PAGE:
                    raise IntegrityError(f"{path} is larger than {LARGEST_PAGE >> 20} MB", _REMEDY)
                embedded = _embedded(path, begin + file.read())
                file, size, begin = io.BytesIO(embedded), len(embedded), embedded[:8]
                file.seek(8)
            length = int.from_bytes(begin, "little")
            if not 2 <= length <= min(size, _LARGEST_HEADER):
                raise IntegrityError(f"{path} is not a grimmgen checkpoint", _REMEDY)
            raw = file.read(length)
            if len(raw) < length:
                raise IntegrityError(f"{path} is incomplete", _REMEDY)
            header = _Header.parse(path, raw)
            # Before memory is allocated: a header of two kilobytes may describe terabytes.
            if size != 8 + length + header.size:
                raise IntegrityError(f"{path} is incomplete", _REMEDY)
            body = file.read(header.size)
        content = length.to_bytes(8, "little") + raw + body
        try:
            tensors = safetensors.numpy.load(content)
        except safetensors.SafetensorError as error:
            raise IntegrityError(f"{path} is damaged ({_brief(str(error))})", _REMEDY) from None
        counts = {name: tensors.pop(name) for name in header.counts}
        tensors = {name: tensor.astype(np.float32, copy=False) for name, tensor in tensors.items()}
        for name in header.in_8_bits:
            with np.errstate(over="ignore", invalid="ignore"):
                tensors[name] *= tensors.pop(_SCALE + name)
        for name, tensor in tensors.items():
            # The comparison is false for nan. A mogrifier of no rounds has tensors of size 0.
            limit = _LARGEST_MOMENT if name.startswith("adam.") else _LARGEST_WEIGHT
            if tensor.size and not (tensor.min() >= -limit and tensor.max() <= limit):
                raise IntegrityError(f"{path} has numbers in {name} that are not finite or too large", _REMEDY)
        V = len(header.vocabulary)
        training = {} if header.progress is None else training_shapes(header.configuration, V)
        weights = {name: tensors[name] for name in weight_shapes(header.configuration, V)}
        if header.sha256 is not None and header.sha256 != _hash(header.stored_vocabulary, weights):
            raise IntegrityError(f"{path} has another vocabulary or other weights than were saved", _REMEDY)
        mixture = None
        if counts:
            try:
                mixture = storage.from_tensors(header.stored_counts, counts, V)
            except ValueError:
                raise IntegrityError(f"{path} has other counts than were saved", _REMEDY) from None
        return cls(
            header.configuration,
            header.vocabulary,
            header.provenance,
            weights,
            header.progress,
            {name: tensors[name] for name in training},
            files.sha256(content),
            mixture,
        )


def state_names(configuration: Configuration) -> tuple[str, ...]:
    """Return the names of the cell's states; the first one is h."""
    return cells()[configuration.cell].states


def training_shapes(
    configuration: Configuration, vocabulary_size: int, version: int = _PLAIN
) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of each tensor besides the weights that a resume needs, in a format version.

    These are Adam's moments, shaped like the weights, and the cell's states, [L, B, H].
    """
    shapes = {
        f"adam.{moment}.{name}": shape
        for moment in ("exp_avg", "exp_avg_sq")
        for name, shape in weight_shapes(configuration, vocabulary_size).items()
    }
    state = (configuration.layers, configuration.batch_size, configuration.hidden)
    names = ("h", "c") if version == 1 else state_names(configuration)
    return {**shapes, **{f"state.{name}": state for name in names}}


def written_by(versions: object) -> str:
    """Name the program that wrote a file, from the untrusted versions in it; empty if they do not say.

    >>> written_by({"grimmgen": "0.2.0", "python": "3.11"})
    'grimmgen 0.2.0'
    """
    version = versions.get("grimmgen") if isinstance(versions, dict) else None
    return f"grimmgen {version}" if isinstance(version, str) and _VERSION.fullmatch(version) else ""


@dataclass(frozen=True)
class _Header:
    configuration: Configuration
    vocabulary: Vocabulary
    provenance: Mapping[str, Any]
    progress: Mapping[str, Any] | None
    size: int  # bytes of the tensors
    sha256: object  # None in files of earlier versions
    stored_vocabulary: object  # the JSON value that was hashed
    in_8_bits: Collection[str]  # weights with a scale
    stored_counts: Mapping[str, Any]  # empty without counts
    counts: Mapping[str, Any]  # type and shape of the arrays of the counts, by name

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> _Header:
        try:
            entries = json.loads(raw)
            own = json.loads(entries.pop("__metadata__")[_KEY])
            version = own["format"]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise IntegrityError(f"{path} is not a grimmgen checkpoint", _REMEDY) from None
        if type(version) is not int or version < 1:
            raise IntegrityError(f"{path} has no format version", _REMEDY)
        provenance, progress = own.get("provenance"), own.get("progress")
        writer = written_by(provenance.get("versions")) if isinstance(provenance, dict) else ""
        if version > FORMAT:
            source = f", written by {writer}," if writer else ""
            raise IntegrityError(
                f"{path}{source} has format {_brief(str(version))}, which is newer than this grimmgen",
                "upgrade grimmgen",
            )
        try:
            configuration = Configuration.from_json(own.get("configuration"), writer)
            vocabulary = vocabulary_from_json(own.get("vocabulary"))
        except GrimmgenError as error:
            raise IntegrityError(f"{path}: {error.what}", error.remedy) from None
        for name in ("tokens", "min_count", "lower", "newlines", "language"):
            parts = vocabulary if name in {"tokens", "min_count"} else vocabulary.normalisation
            if getattr(configuration, name) != getattr(parts, name):
                raise IntegrityError(f"{path}: the vocabulary and the configuration differ in {name}", _REMEDY)
        if not isinstance(provenance, dict) or not isinstance(progress, dict | None):
            raise IntegrityError(f"{path} has no valid provenance and progress", _REMEDY)
        expected = weight_shapes(configuration, len(vocabulary))
        in_8_bits = set()
        if version >= FORMAT:
            in_8_bits = {n for n, shape in expected.items() if len(shape) == 2 and _is_8_bits(entries.get(n))}
            expected |= {_SCALE + name: expected[name][1:] for name in in_8_bits}
        if progress is not None:
            expected |= training_shapes(configuration, len(vocabulary), version)
        size = 0
        for name, shape in expected.items():
            widths = {"I8": 1} if name in in_8_bits else {"F32": 4, "F16": 2}  # in bytes
            match entries.get(name):
                case {"dtype": str(dtype), "shape": list(found)} if dtype in widths and found == list(shape):
                    size += math.prod(shape) * widths[dtype]
                case {"dtype": str(dtype), "shape": list(found)}:
                    wanted = f"{next(iter(widths))} {list(shape)}"
                    raise IntegrityError(
                        f"{path}: {name} is {_brief(f'{dtype} {found}')} instead of {wanted}", _REMEDY
                    )
                case _:
                    raise IntegrityError(f"{path} has no tensor {name}", _REMEDY)
        stored_counts, counts = own.get("counts") or {}, {}
        if stored_counts:
            try:
                counts = storage.expected_tensors(stored_counts, len(vocabulary))
            except ValueError:
                raise IntegrityError(f"{path} has no valid description of its counts", _REMEDY) from None
            for name, (kind, shape) in counts.items():
                match entries.get(name):
                    case {"dtype": str(found_kind), "shape": list(found)} if (found_kind, found) == (
                        kind,
                        [*shape],
                    ):
                        pass
                    case _:
                        raise IntegrityError(f"{path} has no {name} of type {kind} and shape {[*shape]}", _REMEDY)
            size += storage.size_of(counts)
        if unexpected := sorted(set(entries) - set(expected) - set(counts)):
            raise IntegrityError(f"{path} has an unexpected tensor, {_brief(unexpected[0])}", _REMEDY)
        return cls(
            configuration,
            vocabulary,
            provenance,
            progress,
            size,
            own.get("sha256"),
            own.get("vocabulary"),
            in_8_bits,
            stored_counts,
            counts,
        )


def _hash(vocabulary: object, weights: Tensors) -> str:
    """Hash a vocabulary, as JSON, together with the weights that were trained with it."""
    digest = hashlib.sha256(json.dumps(vocabulary, sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def _halved(weight: NDArray[np.float32]) -> NDArray[Any]:
    """The same numbers in 16 bits, if these suffice."""
    with np.errstate(over="ignore"):
        half = weight.astype(np.float16)
    return half if np.array_equal(half, weight) else weight


def _matrices(weights: Tensors) -> Tensors:
    return {name: weight for name, weight in weights.items() if weight.ndim == 2}


def _to_8_bits(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """The nearest multiples of a scale for each column, and the scales; exact for numbers that are such multiples."""
    scale = np.abs(weight).max(axis=0, initial=0.0) / np.float32(_LEVELS)
    # Rounded up to 16 significant bits, a scale times a level is exact, and the scale of such numbers is found again.
    scale = ((scale.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)
    scale[scale == 0] = 1
    return np.rint(weight / scale).astype(np.int8), scale


def _is_8_bits(entry: object) -> bool:
    """Whether an entry of an untrusted header is that of a tensor in 8 bits."""
    return isinstance(entry, dict) and entry.get("dtype") == "I8"


def _embedded(path: Path, page: bytes) -> bytes:
    """The checkpoint in an exported page."""
    _, found, rest = page.partition(CHECKPOINT_OPENS)
    encoded, closed, _ = rest.partition(CHECKPOINT_CLOSES)
    if not (found and closed):
        raise IntegrityError(f"{path} is a page without a model, or incomplete", _REMEDY)
    try:
        return base64.b64decode(encoded.replace(b"\n", b""), validate=True)
    except ValueError:
        raise IntegrityError(f"the model in {path} is damaged", _REMEDY) from None


def _brief(found: str) -> str:
    """Shorten and escape a string from an untrusted file, for an error message."""
    return found[:80].encode("unicode_escape").decode()[:80]
