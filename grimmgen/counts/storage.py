"""Counts and gates as the tensors and the JSON header of a checkpoint, and back. Neither is trusted.

The arrays of a damaged or hostile file have to be such that every look-up stays within them; the probabilities
may be anything, but are probabilities.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from grimmgen.counts.gate import UNITS, Gate
from grimmgen.counts.index import LARGEST, ContextIndex
from grimmgen.counts.kneser_ney import CountModel
from grimmgen.counts.mixture import Mixture

PREFIX = "counts."
# At most: an id, its place in the order, and the length of the context that it shares.
BYTES_OF_TOKEN = 4 + 4 + 1
_GATES = ("gate", "dynamic_gate")
_PARTS = ("feature_weight", "feature_bias", "expert_weight", "expert_bias")
_LONGEST = 64
_DTYPES = {"U8": np.uint8, "U16": np.uint16, "I32": np.int32, "F32": np.float32}

Tensors = Mapping[str, NDArray[Any]]


def to_tensors(mixture: Mixture) -> dict[str, NDArray[Any]]:
    """The arrays of a mixture by their names in a checkpoint."""
    index = mixture.counts.index
    arrays = {"ids": index.ids, "order": index.order, "shared": index.shared}
    for name in _GATES:
        gate = getattr(mixture, name)
        arrays |= {f"{name}.{part}": getattr(gate, part) for part in _PARTS}
    return {PREFIX + name: array for name, array in arrays.items()}


def to_header(mixture: Mixture) -> dict[str, Any]:
    """What the arrays alone do not say, as JSON."""
    return {
        "longest": mixture.counts.index.longest,
        "size": len(mixture.counts.index.ids),
        "discounts": [[*of_length] for of_length in mixture.counts.discounts],
        "sha256": _hash(to_tensors(mixture)),
    }


def expected_tensors(header: object, vocabulary_size: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The type and shape of each array, in the terms of safetensors.

    Raises:
        ValueError: the header is none of `to_header`.
    """
    match header:
        case {"longest": int(K), "size": int(M), "discounts": list(discounts), "sha256": str()}:
            pass
        case _:
            raise ValueError
    if bool in {type(K), type(M)} or not (0 < K <= _LONGEST and K < M <= 2 * LARGEST and len(discounts) == K + 1):
        raise ValueError
    for of_length in discounts:
        if not (
            isinstance(of_length, list) and len(of_length) == 3 and all(map(_is_discount, of_length, (1, 2, 3)))
        ):
            raise ValueError
    features = 2 * K + 3
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "ids": ("U16" if vocabulary_size <= 1 << 16 else "I32", (M,)),
        "order": ("I32", (M - K,)),
        "shared": ("U8", (M - K,)),
    }
    for name, F, E in (("gate", features, 2), ("dynamic_gate", features + K, 3)):
        for part, shape in zip(_PARTS, ((F, UNITS), (UNITS,), (UNITS, E), (E,)), strict=True):
            shapes[f"{name}.{part}"] = ("F32", shape)
    return {PREFIX + name: expected for name, expected in shapes.items()}


def size_of(expected: Mapping[str, tuple[str, tuple[int, ...]]]) -> int:
    """The bytes of such arrays."""
    return sum(math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize for kind, shape in expected.values())


def from_tensors(header: Mapping[str, Any], tensors: Tensors, vocabulary_size: int) -> Mixture:
    """Restore a mixture from arrays of the expected types and shapes.

    Raises:
        ValueError: the arrays are not those of the header, or would be read out of bounds.
    """
    arrays = {name.removeprefix(PREFIX): array for name, array in tensors.items()}
    K, M = header["longest"], header["size"]
    ids, order = arrays["ids"], arrays["order"]
    if header["sha256"] != _hash(tensors) or ids.max() >= vocabulary_size or ids.min() < 0:
        raise ValueError
    if order.min() < K or order.max() >= M:
        raise ValueError
    gates = [Gate(*(arrays[f"{name}.{part}"] for part in _PARTS)) for name in _GATES]
    if not all(np.isfinite(getattr(gate, part)).all() for gate in gates for part in _PARTS):
        raise ValueError
    index = ContextIndex(ids, order, arrays["shared"], K, vocabulary_size)
    return Mixture(CountModel(index, tuple(map(tuple, header["discounts"]))), *gates)


def _is_discount(value: object, count: int) -> bool:
    return type(value) in (int, float) and 0 < float(value) <= count  # type: ignore[arg-type]


def _hash(tensors: Tensors) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()
