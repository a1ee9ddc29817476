"""The compiled library: where it is, why it is not, and its functions by name. Needs no PyTorch.

The library (`native.c`) is part of the package where a C compiler was there to build it; where it is not, `load`
says why, and the plain paths serve. It is called through ctypes, which releases the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# As in native.c: of the functions' signatures.
_VERSION = 8
# The floats of a vector, by instruction set.
WIDTH = {"avx512bf16": 16, "avx512": 16, "avx2": 8, "portable": 4, "scalar": 1}


@functools.cache
def load(folder: Path = Path(__file__).parent) -> tuple[ctypes.CDLL | None, str]:
    """The compiled library, and an empty reason; or None, and why there is none."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return None, "the compiled kernel is for processors of 64 bits"
    paths = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_native{suffix}").exists()]
    if not paths:
        return None, "the package was installed without a C compiler"
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        return None, f"{paths[0]} cannot be loaded: {error}"
    if not hasattr(library, "version") or library.version() != _VERSION:
        return None, "the compiled kernel is of another version: install the package again"
    return library, ""


def instruction_sets(precision: str = "fp32") -> list[str]:
    """Those that the library and this machine have, the fastest first; none where there is no library.

    Args:
        precision: of their products. A set for bfloat16 is called as the one it adds to, with `bf16` at the end.
    """
    library, _ = load()
    return [] if library is None else _instruction_sets(library)[precision == "bf16"]


@functools.cache
def _instruction_sets(library: ctypes.CDLL) -> tuple[list[str], list[str]]:
    library.instruction_sets.restype = ctypes.c_char_p
    names = library.instruction_sets().decode().split()
    rounding = [name for name in names if name.endswith("bf16")]
    return [name for name in names if name not in rounding], rounding


@functools.cache
def function(name: str, takes: str, gives: bool = False) -> Callable[..., Any]:
    """A function of the library, which must be there.

    Args:
        name: its name, that of the instruction set included.
        takes: its parameters, a letter each: `n` a number (int64), `p` a pointer.
        gives: whether it returns a number.
    """
    library, _ = load()
    found: Any = getattr(library, name)
    found.argtypes = [ctypes.c_int64 if kind == "n" else ctypes.c_void_p for kind in takes]
    found.restype = ctypes.c_int64 if gives else None
    return found  # type: ignore[no-any-return]


@functools.cache
def address(name: str) -> int:
    """Where a function of the library is, which must be there."""
    library, _ = load()
    found = ctypes.cast(getattr(library, name), ctypes.c_void_p).value
    assert found is not None
    return found
