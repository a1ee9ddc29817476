"""The compiled library: where it is, why it is missing, and the kernels of each instruction set. Needs no PyTorch.

The library (`*.c`) is part of the package where a C compiler was there to build it. It is loaded by ctypes, which
releases the interpreter's lock during a call. The names of the kernels' arguments are read from the library itself
(`grimmgen.h` declares them once).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

# Words of a call in a program: function, arguments, begin, end.
WORDS_OF_CALL = 4
_SIZES = ("gates", "states", "width", "input_column", "recurrent_rotation", "extra")
_EXPORTS = ("instruction_sets", "constants", "sources", "within", "run_program", "work", "after_fork")
# Headers that setup.py makes.
_MADE = ("cells.h", "sources.h")
_FUNCTIONS = ("forward", "backward", "read", "sample")


class _KernelEntry(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("fields", ctypes.c_char_p), ("function", ctypes.c_void_p))


class _CellEntry(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_void_p) for name in _FUNCTIONS),
    )


class _InstructionSet(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("lanes", ctypes.c_int64),
        ("word", ctypes.c_int64),
        ("tile", ctypes.c_int64),
        ("chunk", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("kernels", ctypes.POINTER(_KernelEntry)),
        ("cells", ctypes.POINTER(_CellEntry)),
    )


@dataclass(frozen=True)
class Kernel:
    """A function of the library.

    Attributes:
        name: name in messages.
        fields: the names of its arguments, in their order.
        address: where it is in memory.
    """

    name: str
    fields: tuple[str, ...]
    address: int


@dataclass(frozen=True)
class CompiledCell:
    """The kernels of a cell, and how it uses what is saved (`shape` in grimmgen.h)."""

    gates: int
    states: int
    width: int
    input_column: int
    recurrent_rotation: int
    extra: int
    forward: Kernel
    backward: Kernel
    read: Kernel
    sample: Kernel


@dataclass(frozen=True)
class InstructionSet:
    """The kernels for one instruction set.

    Attributes:
        name: `avx512`, `avx2`, `portable` or `scalar`; `amxbf16` or `avx512bf16` where products are of bfloat16.
        lanes: floats of a vector.
        word: elements of a product's inner dimension in a word of 32 bits: 2 for bfloat16.
        tile: rows, and words of a row, of a tile; 1 without tiles.
        chunk: rows of a window added to a weight gradient per pass.
        block: rows of logits made at a time.
        kernels: by name.
        cells: the cells that have kernels, by name.
        network_fields: of the structure that inference reads.
    """

    name: str
    lanes: int
    word: int
    tile: int
    chunk: int
    block: int
    kernels: Mapping[str, Kernel]
    cells: Mapping[str, CompiledCell]
    network_fields: tuple[str, ...]

    def words(self, K: int) -> int:
        """Words of an inner dimension K of a product; `WORDS` in packing.h."""
        return _rounded_up(-(-K // self.word), self.tile)

    def left_words(self, M: int, K: int) -> int:
        """Words of a packed left factor [M, K]; `LEFT_WORDS` in packing.h."""
        return _rounded_up(M, self.tile) * self.words(K)


def _rounded_up(count: int, unit: int) -> int:
    return -(-count // unit) * unit


@dataclass(frozen=True)
class Constants:
    """Elements of a slice of a gradient, and the most threads of a program; see grimmgen.h and program.c."""

    slice: int
    most_threads: int


def hash_sources(folder: Path) -> str:
    """The hash of the C sources of the kernels and the cells, but for the headers that setup.py makes.

    Args:
        folder: of the kernels.
    """
    found = hashlib.sha256()
    for path in sorted([*folder.glob("*.[ch]"), *(folder / "../../cells").glob("*.h")]):
        if path.name not in _MADE:
            found.update(path.read_bytes())
    return found.hexdigest()


@functools.cache
def load(folder: Path = Path(__file__).parent) -> tuple[ctypes.CDLL | None, str]:
    """The compiled library and an empty reason; or None, and why it is missing."""
    if ctypes.sizeof(ctypes.c_void_p) != 8:
        return None, "the compiled kernels are for 64-bit processors"
    paths = [path for suffix in EXTENSION_SUFFIXES if (path := folder / f"_kernels{suffix}").exists()]
    if not paths:
        return None, "the package was installed without a C compiler"
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        return None, f"cannot load {paths[0]}: {error}"
    if missing := [name for name in _EXPORTS if not hasattr(library, name)]:
        return None, f"{paths[0]} is of another build of grimmgen: it has no {missing[0]}"
    mirrored = [*map(ctypes.sizeof, (_KernelEntry, _CellEntry, _InstructionSet)), 8 * WORDS_OF_CALL]
    if _constants(library)[2:] != mirrored:
        return None, f"{paths[0]} is of another build of grimmgen: its structures have other sizes"
    library.sources.restype = ctypes.c_char_p
    # An installation from a wheel has no sources; beside a checkout's, the library may be an old one.
    if (folder / "program.c").exists() and library.sources().decode() != hash_sources(folder):
        return None, f"{paths[0]} was not built from the sources beside it: python setup.py build_ext --inplace"
    library.instruction_sets.restype = library.within.restype = ctypes.c_int64
    library.within.argtypes = [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    library.run_program.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    library.run_program.restype = library.after_fork.restype = library.work.restype = None
    library.work.argtypes = [ctypes.c_int64]
    return library, ""


@functools.cache
def constants() -> Constants:
    """The constants of the library, which must be loaded."""
    return Constants(*_constants(loaded())[:2])


def _constants(library: ctypes.CDLL) -> list[int]:
    values = (ctypes.c_int64 * 6)()
    library.constants(values)
    return list(values)


def loaded() -> ctypes.CDLL:
    """The library, which must be available."""
    library, reason = load()
    assert library is not None, reason
    return library


@functools.cache
def instruction_sets() -> dict[str, InstructionSet]:
    """Those that this process can use, by name, the fastest first; those for bfloat16 products are last."""
    library, _ = load()
    if library is None:
        return {}
    found = (ctypes.POINTER(_InstructionSet) * 8)()
    count = library.instruction_sets(found)
    return {made.name: made for made in (_instruction_set(found[n].contents) for n in range(count))}


def _instruction_set(raw: Any) -> InstructionSet:
    kernels = {
        entry.name.decode(): Kernel(entry.name.decode(), tuple(entry.fields.decode().split()), entry.function or 0)
        for entry in _entries(raw.kernels)
    }
    cells = {}
    for entry in _entries(raw.cells):
        name = entry.name.decode()
        sizes = (getattr(entry, size) for size in _SIZES)
        functions = (
            Kernel(f"{name}_{function}", kernels[function].fields, getattr(entry, function) or 0)
            for function in _FUNCTIONS
        )
        cells[name] = CompiledCell(*sizes, *functions)
    network = kernels["network"].fields
    callable_kernels = {name: kernel for name, kernel in kernels.items() if kernel.address}
    products = raw.lanes, raw.word, raw.tile, raw.chunk, raw.block
    return InstructionSet(raw.name.decode(), *products, callable_kernels, cells, network)


def _entries(pointer: Any) -> Iterator[Any]:
    """The entries of an array that ends with one without a name."""
    number = 0
    while pointer[number].name:
        yield pointer[number]
        number += 1
