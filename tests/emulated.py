"""Test the kernels for AVX-512, bfloat16 and AMX on a processor with AVX2 alone; with GCC, on Linux.

    python -m tests.emulated

They are compiled in a copy of the tree with emulated.h in the place of their instructions, and tested there: what
they compute, not how fast. Takes some minutes; further arguments go to pytest.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
KERNELS = Path("grimmgen/network/backends/cpu")
EMULATED = ("avx512", "avx512bf16", "amx")
TESTS = [f"tests/test_{name}.py" for name in ("cpu_backend", "train_step", "stepper", "optimiser", "precision")]


def emulate(kernels: Path) -> None:
    """Replace the instructions that a processor with AVX2 lacks, and the questions whether it has them, in a copy."""
    header, instructions = kernels / "grimmgen.h", f'#include "{ROOT / "tests" / "emulated.h"}"'
    replacements = {
        header: (r"#include <immintrin.h>", instructions),
        kernels / "program.c": (r'__builtin_cpu_supports\("avx512\w*"\)|\bhas_tiles\(\)', "1"),
        **{kernels / f"isa_{name}.c": (r'target\("a[^"]*"\)', 'target("avx2,fma")') for name in EMULATED},
    }
    for path, (pattern, replacement) in replacements.items():
        text, count = re.subn(pattern, replacement, path.read_text(encoding="utf-8"))
        assert count, f"{path.name} has no {pattern}"
        path.write_text(text, encoding="utf-8")


def build(tree: Path) -> None:
    """Compile the kernels of a copy of the tree with emulated instructions."""
    emulate(tree / KERNELS)
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, env={**os.environ, "CFLAGS": "-w"}, check=True)


def main() -> int:
    """Build and test; returns pytest's exit code."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "grimmgen"
        ignored = shutil.ignore_patterns(".*", "build", "*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=ignored)
        build(tree)
        chosen = ["-k", "avx512 or bf16 or rounded or equals_eager", *sys.argv[1:]]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *chosen]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
