"""Backends: what computes the network. One recurrence each, which takes a cell's pointwise functions as parameters.

- `reference`: plain PyTorch, on any device and in any float type; the readable truth.
- `cpu`: kernels in C, for float32 on a CPU, with the fastest instruction set of the machine.
- `cuda`: kernels in Triton, for float32 on an NVIDIA GPU.
- `numpy`: inference without PyTorch, where there is no compiled library.

The environment variable GRIMMGEN_KERNEL overrides the choice: `plain` is `reference` (`numpy` for inference), `native`
is `cpu`, and `avx512`, `avx2`, `portable` or `scalar` is `cpu` with that instruction set (`avx512` without AMX).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, TypeAlias

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    # Inference needs no PyTorch and imports this package.
    import torch

    from grimmgen.network.backends.cpu.backend import CPUBackend
    from grimmgen.network.backends.cpu.library import InstructionSet
    from grimmgen.network.backends.cuda.backend import CUDABackend
    from grimmgen.network.backends.numpy import Floats, Stepper
    from grimmgen.network.backends.reference import ReferenceBackend

    Backend: TypeAlias = ReferenceBackend | CPUBackend | CUDABackend

# What a training may compute with: a precision on the fastest backend, or PyTorch in fp32 in spite of kernels.
Candidate = Literal["fp32", "bf16", "PyTorch"]


def choose_backend(
    cell: str,
    device: torch.device,
    dtype: torch.dtype,
    precision: Products = "fp32",
    overwrite: bool = True,
    kernels: bool = True,
) -> Backend:
    """The backend for a cell and its weights: the one with kernels, where there is one.

    Args:
        cell: name of the cell.
        device: of the weights.
        dtype: of the weights.
        precision: of the matrix products.
        overwrite: whether a backward pass is run once at most; see `CPUBackend`.
        kernels: False if PyTorch was measured to be faster.
    """
    import torch

    from grimmgen.network.backends.reference import ReferenceBackend

    if not kernels:
        return ReferenceBackend(precision, "measured to be faster than the kernels")
    if device.type == "cpu":
        if dtype != torch.float32:
            reason = f"the native kernels are for float32, this is {str(dtype).removeprefix('torch.')}"
            return ReferenceBackend(precision, reason)
        instructions = _instructions(precision)
        if instructions is not None and cell in instructions.cells:
            from grimmgen.network.backends.cpu.backend import CPUBackend

            return CPUBackend(instructions, overwrite)
        return ReferenceBackend(precision, _why_not_native(precision))
    if reason := _why_not_triton(cell, device, dtype):
        return ReferenceBackend(precision, reason)
    from grimmgen.network.backends.cuda.backend import CUDABackend

    return CUDABackend(precision)


def candidates(cell: str, device: torch.device) -> tuple[Candidate, ...]:
    """What can train a cell in float32, for `--precision auto` to choose from; `fp32` is the first.

    bf16 costs nothing in quality (`benchmarks/README.md`), and is offered where kernels have instructions for it.
    PyTorch is offered beside kernels that may be slower: those without instructions of their own, in place of which
    PyTorch may have a library for the processor, and those for GPUs.

    Args:
        cell: name of the cell.
        device: of the weights.
    """
    import torch

    if device.type != "cpu":
        return ("fp32",) if _why_not_triton(cell, device, torch.float32) else ("fp32", "bf16", "PyTorch")
    fp32, bf16 = _instructions(), _instructions("bf16")
    if fp32 is None or cell not in fp32.cells:
        return ("fp32",)
    if bf16 is not None and cell in bf16.cells:
        return "fp32", "bf16"
    generic = fp32.name in {"portable", "scalar"} and not os.environ.get("GRIMMGEN_KERNEL")
    return ("fp32", "PyTorch") if generic else ("fp32",)


def stepper(configuration: Configuration, weights: Mapping[str, Floats], state: Floats) -> Stepper:
    """The fastest stepper for a model on the CPU; arguments as of `grimmgen.network.backends.numpy.Stepper`."""
    instructions = _stepper_instructions(configuration.cell)
    if instructions is None:
        from grimmgen.network.backends.numpy import Stepper

        return Stepper(configuration, weights, state)
    from grimmgen.network.backends.cpu.stepper import CompiledStepper

    return CompiledStepper(instructions, configuration, weights, state)


def stepper_kernel(cell: str) -> str:
    """What `stepper` computes a cell with, as GRIMMGEN_KERNEL names it: `plain`, `avx2`, ..."""
    instructions = _stepper_instructions(cell)
    return "plain" if instructions is None else instructions.name


def _stepper_instructions(cell: str) -> InstructionSet | None:
    instructions = _instructions()
    return instructions if instructions is not None and cell in instructions.cells else None


def _instructions(precision: Products = "fp32") -> InstructionSet | None:
    """The instruction set to use; None if the compiled kernels are not to be used, or not there.

    Raises:
        UsageError: GRIMMGEN_KERNEL names one that is not available here.
    """
    from grimmgen.network.backends.cpu import library

    available = library.instruction_sets()
    if precision == "bf16":
        base = _instructions()
        if base is None:
            return None
        if os.environ.get("GRIMMGEN_KERNEL", "") in {"", "native"}:
            return next((found for found in available.values() if found.word == 2), None)
        return available.get(f"{base.name}bf16")
    for_fp32 = [name for name, found in available.items() if found.word == 1]
    forced = os.environ.get("GRIMMGEN_KERNEL", "")
    if forced == "plain":
        return None
    if forced in {"", "native"} or forced in for_fp32:
        if forced and not for_fp32:
            raise UsageError(f"GRIMMGEN_KERNEL={forced}: {library.load()[1]}", "set it to plain, or unset it")
        name = forced if forced in for_fp32 else next(iter(for_fp32), None)
        return None if name is None else available[name]
    names = "".join(f", {name}" for name in for_fp32)
    raise UsageError(f"GRIMMGEN_KERNEL={forced} is not available here", f"set it to plain{names}")


def _why_not_native(precision: Products) -> str:
    from grimmgen.network.backends.cpu import library

    _, reason = library.load()
    if not reason and precision == "bf16" and _instructions() is not None:
        return "this processor has no bfloat16 instructions: fp32 would be faster"
    return reason


def _why_not_triton(cell: str, device: torch.device, dtype: torch.dtype) -> str:
    """Why the Triton kernels are not used on that device; empty where they are."""
    import torch

    if device.type != "cuda" or torch.version.cuda is None:
        return "the Triton kernels are for NVIDIA GPUs"
    if os.environ.get("GRIMMGEN_KERNEL") == "plain":
        return "GRIMMGEN_KERNEL=plain"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not _has_compiler():
        return "Triton needs a C compiler"
    if dtype != torch.float32:
        return f"the Triton kernels are for float32, this is {str(dtype).removeprefix('torch.')}"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        version = ".".join(map(str, capability))
        return f"the Triton kernels are for compute capability 8.0 and up, this is {version}"
    if importlib.util.find_spec(f"grimmgen.network.cells.{cell}_triton") is None:
        return f"there is no Triton kernel for the cell {cell}"
    return ""


@functools.cache
def _has_compiler() -> bool:
    """Whether there is a C compiler for Triton's launchers; on Windows Triton includes one."""
    return os.name == "nt" or bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
