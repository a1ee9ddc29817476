"""Compile the Triton kernels for a GPU that need not be there, and print what each needs, one JSON object a line.

    python -m tests.ahead 90

The environment variable TRITON_INTERPRET must not be set.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from grimmgen.network.backends.cuda import kernels, recurrence
from grimmgen.network.backends.cuda.backend import triton_cell
from grimmgen.network.cells import CellSpec, cells

# The types of arguments that are not float32 arrays. `u`, `h_in` and `d_a` are in the type of the products.
TYPES = {"resets": "*u8", "targets": "*i64", "numbers": "*fp64", "loss_and_norm": "*fp64", "seed": "*i64"}
TYPES |= {"scale": "fp32", "threshold": "u32"}
# Integers, and those of them that are multiples of 16 at the tutorial's sizes, for which Triton compiles.
MULTIPLES_OF_16 = {"B", "mask_stride", "V", "count"}
TYPES |= dict.fromkeys(("first", "last", "T", *MULTIPLES_OF_16), "i32")

LETTERS = {"ld.global": "L", "cp.async.c": "L", "st.global": "S", "bar.sync": "B"}


def window(cell: CellSpec, backward: bool, arithmetic: str | None, H: int) -> dict[str, Any]:
    """Compile the recurrence of a cell, with dropout and resets, for 64 rows and H units."""
    config = recurrence.launch_config(64, H, len(cell.gates), arithmetic)
    kernel = recurrence.recurrence_backward if backward else recurrence.recurrence_forward
    pointwise = triton_cell(cell.name)
    values = recurrence.constants(cell, pointwise, config, H, backward)
    absent = {"product"} if config.whole_window else set()
    if not cell.recurrent_product:
        absent |= {"u", "product", "h_in", "d_a"}
    if values["EXTRA"] == 0:
        absent |= {"extra", "d_extra"}
    if arithmetic != "bf16" and pointwise.SAME_GRADIENTS:
        absent |= {"d_a"}
    types = dict.fromkeys(("u", "h_in", "d_a"), "*bf16" if arithmetic == "bf16" else "*fp32")
    report = compiled(kernel, types, values, absent, config.warps)
    direction = "backward" if backward else "forward"
    whole = config.whole_window
    return {
        "kernel": f"{cell.name} {direction}",
        "arithmetic": arithmetic,
        "H": H,
        "whole window": whole,
        **report,
    }


def compiled(
    kernel: Any, types: dict[str, str], values: dict[str, Any], absent: set[str], warps: int
) -> dict[str, Any]:
    """Registers of a thread, bytes of a thread that are spilled, bytes of shared memory.

    And, in their order, a letter for each load from global memory, store there, and barrier: L, S, B.
    """
    capability = int(sys.argv[1])
    signature, constant, attributes = {}, {}, {}
    for place, argument in enumerate(kernel.arg_names):
        if argument in values or argument in absent:
            signature[argument] = "constexpr"
            constant[(place,)] = values.get(argument)
        else:
            signature[argument] = {**TYPES, **types}.get(argument, "*fp32")
            if signature[argument].startswith("*") or argument in MULTIPLES_OF_16:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constant, attributes)
    options = {"num_warps": warps, **recurrence.LAUNCH_OPTIONS}
    report = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    text = report.asm["ptx"]
    architecture = re.search(r"\.target (\w+)", text)
    assert architecture
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.ptx"
        path.write_text(text)
        command = [get_ptxas(capability).path, "-v", f"-arch={architecture[1]}", str(path), "-o", f"{path}.cubin"]
        log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    registers = re.search(r"Used (\d+) registers", log)
    assert registers
    return {
        "registers": int(registers[1]),
        "spilled": sum(map(int, re.findall(r"(\d+) bytes spill stores", log))),
        "shared": report.metadata.shared,
        "memory": "".join(LETTERS[what] for what in re.findall("|".join(LETTERS), text)),
    }


def main() -> None:
    """Compile and print."""
    lines = []
    for cell in cells().values():
        if find_spec(f"grimmgen.network.cells.{cell.name}_triton") is None:
            continue
        sizes: list[tuple[str | None, int]] = [(None, 128)]
        if cell.recurrent_product:
            sizes = [("ieee", 128), ("tf32", 128), ("bf16", 128), ("ieee", 512)]
        lines += [window(cell, backward, *size) for backward in (False, True) for size in sizes]
    for kind in ("*fp32", "*bf16"):
        for block in (1024, 4096):
            warps = 4 if block <= 2048 else 8
            report = compiled(kernels.softmax, {"gradient": kind}, {"BLOCK": block}, set(), warps)
            lines.append({"kernel": "softmax", "gradient": kind, "BLOCK": block, **report})
    lines.append({"kernel": "softmax", **compiled(kernels.softmax, {}, {"BLOCK": 1024}, {"gradient"}, 4)})
    lines.append({"kernel": "dropout_mask", **compiled(kernels.dropout_mask, {}, {"BLOCK": 1024}, set(), 4)})
    for absent in (set(), {"loss_and_norm"}):
        lines.append({"kernel": "adam", **compiled(kernels.adam, {}, {"BLOCK": 1024}, absent, 4)})
    for line in lines:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
