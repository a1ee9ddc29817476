"""Test the kernels for AVX-512 and bfloat16 on a processor with AVX2 alone; with GCC, on Linux.

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
TESTS = [f"tests/test_{name}.py" for name in ("cpu_backend", "train_step", "stepper", "optimiser", "precision")]


def build(tree: Path) -> None:
    """Compile the kernels of a copy, with emulated instructions where the processor has none."""
    kernels = tree / "grimmgen" / "network" / "backends" / "cpu"
    header, instructions = kernels / "grimmgen.h", f'#include "{ROOT / "tests" / "emulated.h"}"'
    replacements = {
        header: [("#include <immintrin.h>", instructions)],
        kernels / "program.c": [(r'__builtin_cpu_supports\("avx512\w*"\)', "1")],
        **{path: [(r'target\("avx512[^"]*"\)', 'target("avx2,fma")')] for path in kernels.glob("isa_avx512*.c")},
    }
    for path, pairs in replacements.items():
        text = path.read_text(encoding="utf-8")
        for pattern, replacement in pairs:
            text, count = re.subn(pattern, replacement, text)
            assert count, f"{path.name} has no {pattern}"
        path.write_text(text, encoding="utf-8")
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
