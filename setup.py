"""Build the compiled kernels, without which the package works too, on PyTorch and NumPy alone."""

from __future__ import annotations

import os
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CPU = Path("grimmgen/network/backends/cpu")
CELLS = Path("grimmgen/network/cells")


def list_cells() -> str:
    """The header `cells.h`: includes that of every cell that has one, and lists their names."""
    headers = sorted(CELLS.glob("*.h"))
    includes = "".join(f'#include "../../cells/{header.name}"\n' for header in headers)
    names = " ".join(f"DO({header.stem})" for header in headers)
    return f"/* Made by setup.py. */\n{includes}#define FOR_EACH_CELL(DO) {names}\n"


def hash_sources() -> str:
    """The header `sources.h`: the hash by which `library.py` recognises a library of other sources."""
    hash_of = runpy.run_path(str(CPU / "library.py"))["hash_sources"]
    return f'/* Made by setup.py. */\n#define SOURCES "{hash_of(CPU)}"\n'


class ParallelBuild(build_ext):
    """Compiles the files of an extension in parallel, since each takes seconds."""

    def build_extensions(self) -> None:
        """Compile and link."""
        compile_files = self.compiler.compile

        def compile_in_parallel(sources: list[str], *arguments: Any, **options: Any) -> list[str]:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                compiled = pool.map(lambda source: compile_files([source], *arguments, **options), sources)
                return [file for files in compiled for file in files]

        # The setup of Microsoft's compiler, at its first call, is not safe in threads.
        if sys.platform != "win32":
            self.compiler.compile = compile_in_parallel
        super().build_extensions()


(CPU / "cells.h").write_text(list_cells(), encoding="utf-8")
(CPU / "sources.h").write_text(hash_sources(), encoding="utf-8")
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
    cmdclass={"build_ext": ParallelBuild},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
