"""Products on tiles (AMX) and the permission to use them, compiled with emulated instructions (emulated.h).

`python -m tests.emulated` tests all kernels so; this is what can be compiled in a second.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from grimmgen.network.backends.cpu import library
from tests.emulated import KERNELS, ROOT, emulate

PRODUCTS = """
#include "grimmgen.h"
#define LANES 16
#define WORD 2
#define TILE 16
#include "vectors.h"
#include "packing.h"
#include "tiles.h"

EXPORT size packed_words(size M, size N, size K) { return LEFT_WORDS(M, K) + WORDS(K) * PADDED(N); }

EXPORT void product(int transposed, size M, size N, size K, const float *a, const uint8_t *skip, const float *b,
                    float *c, size c_row, int add, float *scratch)
{
    float *packed = scratch + LEFT_WORDS(M, K);
    size panels = (N + PANEL - 1) / PANEL;
    begin_products();
    pack_panels(K, N, b, N, 1, 0, 0, panels, packed);
    if (transposed) multiply_columns(M, N, K, a, packed, c, c_row, add, 0, panels, scratch);
    else multiply_rows(M, N, K, a, K, skip, packed, c, c_row, add, 0, panels, scratch);
    end_products();
}
"""
# The tables of kernels, for program.c alone: each is its name.
TABLES = "\n".join(
    f'const instruction_set instruction_set_{name} = {{"{name}"}};'
    for name in ("scalar", "portable", "avx2", "avx512", "avx512bf16", "amxbf16")
)

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "avx2" not in library.instruction_sets() or not shutil.which("gcc"),
    reason="compiles with GCC for x86-64 Linux",
)


def compiled(folder: Path, name: str, source: str) -> ctypes.CDLL:
    path = folder / f"{name}.so"
    command = ["gcc", "-O1", "-w", "-fPIC", "-shared", "-x", "c", "-", "-o", str(path), "-pthread", "-lm"]
    subprocess.run([*command, f"-I{folder}"], input=source.encode(), check=True)
    return ctypes.CDLL(str(path))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the kernels with emulated instructions."""
    folder = tmp_path_factory.mktemp("kernels") / "cpu"
    shutil.copytree(ROOT / KERNELS, folder, ignore=shutil.ignore_patterns("*.py", "*.so", "__pycache__"))
    emulate(folder)
    return folder


@pytest.fixture(scope="module")
def products(emulated: Path) -> ctypes.CDLL:
    found = compiled(emulated, "products", PRODUCTS)
    found.packed_words.restype = ctypes.c_int64
    found.packed_words.argtypes = [ctypes.c_int64] * 3
    pointer = ctypes.c_void_p
    sizes, strides = [ctypes.c_int, *[ctypes.c_int64] * 3], [ctypes.c_int64, ctypes.c_int]
    found.product.argtypes = [*sizes, *[pointer] * 4, *strides, pointer]
    found.product.restype = None
    return found


@pytest.fixture(scope="module")
def program(emulated: Path) -> ctypes.CDLL:
    return compiled(emulated, "program", f'#include "program.c"\n{TABLES}')


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
# Less than a tile, whole tiles, one row and column more, and several passes over the inner dimension.
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (16, 32, 32), (17, 33, 65), (48, 47, 31), (33, 70, 2083)])
def test_product(products: ctypes.CDLL, transposed: bool, add: bool, M: int, N: int, K: int) -> None:
    generator = torch.Generator().manual_seed(M + N + K)
    a, b = torch.randn(M, K, generator=generator), torch.randn(K, N, generator=generator)
    skip = torch.zeros(M, dtype=torch.uint8)
    skip[M // 2] = not transposed and M > 1
    around = torch.randn(M + 1, N + 5, generator=generator)
    made, scratch = around.clone(), torch.full((products.packed_words(M, N, K),), float("nan"))

    left = a.t().contiguous() if transposed else a
    addresses: list[Tensor] = [left, skip, b, made]
    pointers = [tensor.data_ptr() for tensor in addresses]
    products.product(transposed, M, N, K, *pointers, N + 5, add, scratch.data_ptr())

    def expected(left: Tensor, right: Tensor) -> Tensor:
        kept = (1 - skip.double())[:, None] * left.double()
        return kept @ right.double() + add * around[:M, :N].double()

    exact, rounded = expected(a, b), expected(a.bfloat16(), b.bfloat16())
    assert (made[:M, :N] - rounded).norm() <= 1e-6 * rounded.norm()
    assert (made[:M, :N] - exact).norm() <= 2**-7 * exact.norm()
    made[:M, :N] = around[:M, :N]
    assert torch.equal(made, around)


@pytest.mark.parametrize(
    ("answer", "first"), [("granted", "amxbf16"), ("refused", "avx512bf16"), ("ignored", "avx512bf16")]
)
def test_fault_53_refused_tiles_are_not_used(
    program: ctypes.CDLL, answer: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILES", answer)
    found = (ctypes.POINTER(library._InstructionSet) * 8)()
    count = program.instruction_sets(found)
    names = [found[number].contents.name.decode() for number in range(count)]
    assert names[:4] == ["avx512", "avx2", "portable", "scalar"]
    assert names[4] == first
    assert names[-1] == "avx512bf16"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the system does not list the processor's features")
def test_fault_53_tiles_need_a_processor_that_has_them() -> None:
    features = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    assert "amxbf16" not in library.instruction_sets() or features >= {"amx_tile", "amx_bf16"}
