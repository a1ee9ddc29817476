"""Build the compiled kernels, without which the package works too, on PyTorch and NumPy alone."""

from __future__ import annotations

import sys
from pathlib import Path

from setuptools import Extension, setup

CPU = Path("grimmgen/network/backends/cpu")
CELLS = Path("grimmgen/network/cells")


def list_cells() -> str:
    """The header `cells.h`: includes that of every cell that has one, and lists their names."""
    headers = sorted(CELLS.glob("*.h"))
    includes = "".join(f'#include "../../cells/{header.name}"\n' for header in headers)
    names = " ".join(f"DO({header.stem})" for header in headers)
    return f"/* Made by setup.py. */\n{includes}#define FOR_EACH_CELL(DO) {names}\n"


(CPU / "cells.h").write_text(list_cells(), encoding="utf-8")
# No -march: each isa_*.c sets its instruction set, and program.c chooses at run time. Optional: without a compiler the
# installation succeeds, too.
flags = ["/O2", "/utf-8"] if sys.platform == "win32" else ["-O3", "-g0", "-fvisibility=hidden", "-pthread"]
setup(
    ext_modules=[
        Extension(
            "grimmgen.network.backends.cpu._kernels",
            [str(path) for path in sorted(CPU.glob("*.c"))],
            depends=[str(path) for path in sorted([*CPU.glob("*.h"), *CELLS.glob("*.h")])],
            extra_compile_args=flags,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            libraries=[] if sys.platform == "win32" else ["m"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
