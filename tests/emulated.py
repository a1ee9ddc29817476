"""Test the kernels for AVX-512 and bfloat16 where the processor has AVX2 alone; with GCC, on Linux.

    python -m tests.emulated

They are compiled with what emulated.h has in the place of their instructions, into a copy of the tree, and tested
there: what they compute, not how fast. Takes a minute or two; further arguments go to pytest.
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
TESTS = ["tests/test_kernels.py", "tests/test_captured.py", "tests/test_stepping.py"]


def build(tree: Path) -> None:
    """Compile a copy's kernels, the emulated ones with them."""
    kernels = tree / "grimmgen" / "network" / "backends" / "cpu"
    source = (kernels / "native.c").read_text(encoding="utf-8")
    source = source.replace("#include <immintrin.h>", f'#include "{ROOT / "tests" / "emulated.h"}"')
    source = re.sub(r'#pragma GCC target\("avx512.*\)', '#pragma GCC target("avx2,fma")', source)
    source = re.sub(r'__builtin_cpu_supports\("avx512\w*"\)', "1", source)
    (kernels / "emulated.c").write_text(source, encoding="utf-8")
    flags = ["-O2", "-w", "-mavx2", "-mfma", "-fvisibility=hidden", "-fPIC", "-shared", "-pthread"]
    command = ["gcc", *flags, "emulated.c", "-o", "_native.abi3.so", "-lm"]
    subprocess.run(command, cwd=kernels, check=True)


def main() -> int:
    """Build and test; pytest's exit code."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory) / "grimmgen"
        leave = shutil.ignore_patterns(".*", "build", "*.so", "__pycache__", "*.egg-info")
        shutil.copytree(ROOT, tree, ignore=leave)
        build(tree)
        chosen = ["-k", "avx512 or bf16 or bfloat or to_the_bit", *sys.argv[1:]]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS, *chosen]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        return subprocess.run(command, cwd=tree, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
