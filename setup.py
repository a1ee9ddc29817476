"""What pyproject.toml cannot say: the compiled kernel, without which the package works too, on PyTorch alone."""

from __future__ import annotations

import sys

from setuptools import Extension, setup

CPU = "grimmgen/network/backends/cpu"
# No -march: native.c chooses the instruction set at run time. optional: no compiler is no error.
flags = ["/O2", "/utf-8"] if sys.platform == "win32" else ["-O3", "-g0", "-fvisibility=hidden", "-pthread"]
setup(
    ext_modules=[
        Extension(
            "grimmgen.network.backends.cpu._native",
            [f"{CPU}/native.c"],
            depends=[f"{CPU}/native_kernels.h", f"{CPU}/native_steps.h"],
            extra_compile_args=flags,
            extra_link_args=[] if sys.platform == "win32" else ["-pthread"],
            libraries=[] if sys.platform == "win32" else ["m"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
