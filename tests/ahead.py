"""Compiles Triton's kernels for a GPU that need not be there: a line of JSON for each, with what it needs.

    python -m tests.ahead 90

TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from grimmgen.network.backends.cuda import gpu

# The types of arrays that are not float32; `products` are those in the type of the products.
_BYTES, _PRODUCTS = {"starts"}, {"u", "entered", "rounded", "grad_a"}
# Of the numbers, those that Triton compiles for when they are multiples of 16, as at the tutorial's size they are.
_MULTIPLES = {"B", "mask_rows", "V", "count"}
_NUMBERS = {"first", "last", "T", *_MULTIPLES}

_LETTERS = {"ld.global": "L", "cp.async.c": "L", "st.global": "S", "bar.sync": "B"}


def window(name: str, gates: int, precision: str, H: int, peephole: bool) -> dict[str, Any]:
    """What a kernel of a window needs, with dropout and resets, at 64 rows and H units."""
    way = gpu.way(64, H, gates, precision)
    blocks = triton.cdiv(H, way.units)
    constants = {
        "H": H,
        "SPAN": way.units * blocks if way.whole else way.units,
        "ROWS": way.rows,
        "UNITS": way.units,
        "DEPTH": 2 * way.depth if "backward" in name and way.rows == 1 else way.depth,
    }
    absent = set() if peephole else {"peephole"}
    absent |= {"made"} if way.whole else set()
    kind = "*bf16" if precision == "bf16" else "*fp32"
    made = compiled(name, dict.fromkeys(_PRODUCTS, kind), constants, absent, way.warps)
    return {"kernel": name, "precision": precision, "H": H, "peephole": peephole, "one launch": way.whole, **made}


def compiled(
    name: str, types: dict[str, str], constants: dict[str, int], absent: set[str], warps: int
) -> dict[str, Any]:
    """Registers of a thread, bytes of a thread that are spilled, bytes of shared memory.

    And, in their order, a letter for each load from global memory, store there, and barrier: L, S, B.
    """
    kernel: Any = getattr(kernels, name)
    capability = int(sys.argv[1])
    types = {"starts": "*u8", "targets": "*i64", "norm": "*fp64", "scale": "fp32", **types}
    types |= dict.fromkeys(_NUMBERS, "i32")
    signature, values, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        constant = argument in constants or argument in absent
        signature[argument] = "constexpr" if constant else types.get(argument, "*fp32")
        if constant:
            values[(place,)] = constants.get(argument)
        elif signature[argument].startswith("*") or argument in _MULTIPLES:
            attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, values, attributes)
    options = {"num_warps": warps, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = made.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", text)
    assert architecture
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.ptx"
        path.write_text(text)
        command = [get_ptxas(capability).path, "-v", f"-arch={architecture[1]}", str(path), "-o", f"{path}.cubin"]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", told)
    assert registers
    return {
        "registers": int(registers[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill stores", told))),
        "shared": made.metadata.shared,
        "memory": "".join(_LETTERS[what] for what in re.findall("|".join(_LETTERS), text)),
    }


def main() -> None:
    """Compile and print."""
    lines = [
        window(f"{cell}_{direction}", 3 if cell == "gru" else 4, precision, H, peephole)
        for cell, peephole in (("lstm", False), ("lstm", True), ("gru", False))
        for direction in ("forward", "backward")
        for precision, H in (("ieee", 128), ("tf32", 128), ("bf16", 128), ("ieee", 512))
    ]
    for kind in ("*fp32", "*bf16"):
        given = {"gradient": kind}
        for block in (1024, 4096):
            made = compiled("softmax", given, {"BLOCK": block}, set(), 4 if block <= 2048 else 8)
            lines.append({"kernel": "softmax", "gradient": kind, "BLOCK": block, **made})
    lines.append({"kernel": "softmax", **compiled("softmax", {}, {"BLOCK": 1024}, {"gradient"}, 4)})
    lines.append({"kernel": "adamw", **compiled("adamw", {}, {"BLOCK": 1024}, set(), 4)})
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
