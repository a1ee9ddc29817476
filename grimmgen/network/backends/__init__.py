"""The cells' equations once more, made for speed; each held against the plain ones in `grimmgen.network.cells`.

Which path serves: the compiled kernel for float32 weights on a CPU, with the fastest instruction set that the
machine has; Triton's kernels for float32 weights on an NVIDIA GPU; PyTorch's operations for all else, where the
package was installed without a compiler, and for products of bfloat16 where the machine has no instructions for
them. For telling, which waits for no PyTorch, NumPy takes their place. The environment variable GRIMMGEN_KERNEL
forces one: `plain`, and on a CPU `native`, or an instruction set (`avx512`, `avx2`, `portable`, `scalar`).

    T  steps    B  rows    H  hidden units    V  vocabulary size    N  predictions, T·B
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import UsageError

if TYPE_CHECKING:
    # What tells a story needs no PyTorch, and imports this package.
    import torch
    from torch import Tensor

    from grimmgen.network.backends.numpy import Floats, Stepper

# The cells whose window the compiled kernel has.
COMPILED: frozenset[str] = frozenset({"lstm", "peephole", "gru"})

_NAMES = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "128-bit vectors", "scalar": "plain C"}


def resolve_precision(configuration: Configuration, device: torch.device) -> Products:
    """The precision of training's matrix products.

    `auto` is bf16 where the compiled kernel has the cell and instructions for it: that costs nothing in quality
    (benchmarks/README.md: three seeds each way of the LSTM, one of the others). On a GPU that has not been
    measured, and it is fp32.

    Args:
        configuration: of the model; its precision may be `auto`.
        device: of the weights.
    """
    if configuration.precision != "auto":
        return configuration.precision
    cpu = device.type == "cpu" and configuration.cell in COMPILED
    return "bf16" if cpu and _instructions("bf16") is not None else "fp32"


def serving(
    device: torch.device | None = None, dtype: torch.dtype | None = None, precision: Products = "fp32"
) -> str:
    """What computes here, in words: `native AVX-512, 2 threads`, `Triton`, or `PyTorch (…)` with the reason.

    Args:
        device: of the weights; None is the CPU.
        dtype: of the weights; None is float32.
        precision: of the matrix products.
    """
    import torch

    from grimmgen.network.backends.cpu import library, programs

    rounded = " bf16" if precision == "bf16" else ""
    if device is not None and device.type != "cpu":
        reason = _why_not_triton(device, dtype or torch.float32)
        return f"PyTorch{rounded} ({reason})" if reason else f"Triton{rounded}"
    if dtype is not None and dtype != torch.float32:
        return f"PyTorch (the native kernel is for float32, this is {str(dtype).removeprefix('torch.')})"
    instructions = _instructions(precision)
    if instructions is not None:
        threads = programs.thread_count()
        name = _NAMES[instructions.removesuffix("bf16")]
        return f"native {name}{rounded}, {threads} thread{'s' if threads != 1 else ''}"
    _, reason = library.load()
    if not reason and rounded and _instructions() is not None:
        reason = "there are no instructions for bfloat16 here: fp32 would be faster"
    return f"PyTorch{rounded} ({reason})" if reason else f"PyTorch{rounded}"


def alone(device: torch.device) -> AbstractContextManager[None]:
    """A context in which nothing large is left to PyTorch: the compiled kernel gets all threads."""
    if device.type == "cpu" and _instructions() is not None:
        from grimmgen.network.backends.cpu import programs

        return programs.one_thread_for_pytorch()
    return nullcontext()


def lstm_window(
    x: Tensor,
    recurrent_weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor]:
    """The hidden states [T, B, H] and the last cell state [B, H]; see `grimmgen.network.cells.lstm.forward`."""
    entered = (recurrent_weight, h0, c0, mask, starts)
    result: tuple[Tensor, Tensor]
    if (instructions := compiled(x, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result = native.LSTMWindow.apply(instructions, x, *entered)  # type: ignore[no-untyped-call]
    elif on_gpu(x):
        from grimmgen.network.backends.cuda import gpu

        result = gpu.LSTMWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    else:
        from grimmgen.network.cells import lstm

        result = lstm.LSTMWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    return result


def lstm_look_up_window(
    ids: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor]:
    """The same for one-hot input, of which the product with a matrix is a look-up of its rows.

    Args:
        ids: [T, B] int64.
        input_weight: [V, 4H].
        bias: [4H].
        recurrent_weight: [H, 4H].
        h0: [B, H].
        c0: [B, H].
        mask: [T, B, H] or None.
        starts: [T, B] bool or None.
        precision: of the matrix products.
    """
    if (instructions := compiled(input_weight, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result: tuple[Tensor, Tensor] = native.LookUpWindow.apply(  # type: ignore[no-untyped-call]
            instructions, ids, input_weight, bias, recurrent_weight, h0, c0, mask, starts
        )
        return result
    from torch.nn.functional import embedding

    x = embedding(ids, input_weight + bias)
    return lstm_window(x, recurrent_weight, h0, c0, mask, starts, precision)


def peephole_window(
    x: Tensor,
    recurrent_weight: Tensor,
    peephole: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor]:
    """The hidden states [T, B, H] and the last cell state [B, H]; see `grimmgen.network.cells.peephole.forward`."""
    entered = (recurrent_weight, peephole, h0, c0, mask, starts)
    result: tuple[Tensor, Tensor]
    if (instructions := compiled(x, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result = native.PeepholeWindow.apply(instructions, x, None, None, *entered)  # type: ignore[no-untyped-call]
    elif on_gpu(x):
        from grimmgen.network.backends.cuda import gpu

        result = gpu.PeepholeWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    else:
        from grimmgen.network.cells import peephole as plain

        result = plain.PeepholeWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    return result


def peephole_look_up_window(
    ids: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    peephole: Tensor,
    h0: Tensor,
    c0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> tuple[Tensor, Tensor]:
    """The same for one-hot input; ids, input weight and bias as in `lstm_look_up_window`."""
    entered = (recurrent_weight, peephole, h0, c0, mask, starts)
    if (instructions := compiled(input_weight, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result: tuple[Tensor, Tensor] = native.PeepholeWindow.apply(  # type: ignore[no-untyped-call]
            instructions, input_weight, ids, bias, *entered
        )
        return result
    from torch.nn.functional import embedding

    return peephole_window(embedding(ids, input_weight + bias), *entered, precision)


def gru_window(
    x: Tensor,
    recurrent_weight: Tensor,
    recurrent_bias: Tensor,
    h0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> Tensor:
    """The hidden states [T, B, H]; see `grimmgen.network.cells.gru.forward`."""
    entered = (recurrent_weight, recurrent_bias, h0, mask, starts)
    result: Tensor
    if (instructions := compiled(x, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result = native.GRUWindow.apply(instructions, x, None, None, *entered)  # type: ignore[no-untyped-call]
    elif on_gpu(x):
        from grimmgen.network.backends.cuda import gpu

        result = gpu.GRUWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    else:
        from grimmgen.network.cells import gru

        result = gru.GRUWindow.apply(x, *entered, precision)  # type: ignore[no-untyped-call]
    return result


def gru_look_up_window(
    ids: Tensor,
    input_weight: Tensor,
    bias: Tensor,
    recurrent_weight: Tensor,
    recurrent_bias: Tensor,
    h0: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    precision: Products = "fp32",
) -> Tensor:
    """The same for one-hot input; ids [T, B], input weight [V, 3H] and bias [3H]."""
    entered = (recurrent_weight, recurrent_bias, h0, mask, starts)
    if (instructions := compiled(input_weight, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result: Tensor = native.GRUWindow.apply(  # type: ignore[no-untyped-call]
            instructions, input_weight, ids, bias, *entered
        )
        return result
    from torch.nn.functional import embedding

    return gru_window(embedding(ids, input_weight + bias), *entered, precision)


def affine(x: Tensor, weight: Tensor, bias: Tensor | None, precision: Products = "fp32") -> Tensor:
    """The rows x [N, K] times the weight [K, M], plus the bias [M] if there is one: [N, M]."""
    if (instructions := compiled(x, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        result: Tensor = native.Affine.apply(instructions, x, weight, bias)  # type: ignore[no-untyped-call]
    else:
        from grimmgen.network import products

        result = products.Affine.apply(x, weight, bias, precision)  # type: ignore[no-untyped-call]
    return result


def stepper(configuration: Configuration, weights: Mapping[str, Floats], h: Floats, c: Floats) -> Stepper:
    """What tells, on the CPU; takes what `grimmgen.network.backends.numpy.Stepper` takes."""
    from grimmgen.network.backends.numpy import NativeStepper, Stepper

    instructions = _instructions()
    # The rounds of a mogrifier are small products one after the other, in which NumPy loses little.
    if instructions is None or configuration.cell == "mogrifier":
        return Stepper(configuration, weights, h, c)
    return NativeStepper(instructions, configuration, weights, h, c)


def dropout_mask(
    shape: tuple[int, ...], dropout: float, device: torch.device, generator: torch.Generator
) -> Tensor | None:
    """A float32 mask of zeros and of what makes its mean 1; None for no dropout.

    The same for the same generator, on the same path and kind of device.

    Args:
        shape: of the mask.
        dropout: the probability of a zero.
        device: where the mask is to be.
        generator: on that device.
    """
    import torch

    # Four decisions a random number, each on 16 bits: four times as fast as a uniform number for each.
    # The scale is that of the probability so rounded, so that the mask's mean is exactly 1.
    kept = round((1.0 - dropout) * 65536)
    if kept == 65536:
        return None
    if device.type == "cpu" and (instructions := _instructions()) is not None:
        from grimmgen.network.backends.cpu import native

        return native.dropout_mask(instructions, shape, dropout, generator)
    count = math.prod(shape)
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    bits = words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]
    return (bits < kept - 32768).to(torch.float32).mul_(65536 / kept).view(shape)


def cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, precision: Products = "fp32"
) -> Tensor:
    """The loss of a window, a scalar; see `grimmgen.network.loss.CrossEntropy`."""
    if (instructions := compiled(hidden, precision)) is not None:
        from grimmgen.network.backends.cpu import native

        loss: Tensor = native.CrossEntropy.apply(  # type: ignore[no-untyped-call]
            instructions, hidden, weight, bias, targets
        )
    elif on_gpu(hidden):
        from grimmgen.network.backends.cuda import gpu

        loss = gpu.CrossEntropy.apply(hidden, weight, bias, targets, precision)  # type: ignore[no-untyped-call]
    else:
        from grimmgen.network import loss as plain_loss

        loss = plain_loss.CrossEntropy.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, precision
        )
    return loss


def negative_log_likelihood(hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """The loss of each prediction in nats, [N]; see `grimmgen.network.loss.negative_log_likelihood`."""
    if (instructions := compiled(hidden)) is not None:
        from grimmgen.network.backends.cpu import native

        return native.negative_log_likelihood(instructions, hidden, weight, bias, targets)
    if on_gpu(hidden):
        from grimmgen.network.backends.cuda import gpu

        return gpu.negative_log_likelihood(hidden, weight, bias, targets)
    from grimmgen.network import loss as plain_loss

    return plain_loss.negative_log_likelihood(hidden, weight, bias, targets)


def compiled(tensor: Tensor, precision: Products = "fp32") -> str | None:
    """The instruction set of the compiled kernel if that serves such a tensor, else None.

    Args:
        tensor: a weight, or what is multiplied with one.
        precision: of the matrix products.
    """
    import torch

    if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
        return None
    return _instructions(precision)


def on_gpu(tensor: Tensor) -> bool:
    """Whether Triton's kernels serve such a tensor, which is a weight, or what is multiplied with one."""
    return tensor.device.type == "cuda" and not _why_not_triton(tensor.device, tensor.dtype)


def _why_not_triton(device: torch.device, dtype: torch.dtype) -> str:
    """Why Triton's kernels do not serve there; empty where they do."""
    import torch

    if device.type != "cuda" or torch.version.cuda is None:
        return "Triton's kernels are for NVIDIA's GPUs"
    if os.environ.get("GRIMMGEN_KERNEL") == "plain":
        return "GRIMMGEN_KERNEL=plain"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not _has_compiler():
        return "Triton needs a C compiler"
    if dtype != torch.float32:
        return f"Triton's kernels are for float32, this is {str(dtype).removeprefix('torch.')}"
    if (capability := torch.cuda.get_device_capability(device)) < (8, 0):
        return f"Triton's kernels are for compute capability 8.0 and up, this is {'.'.join(map(str, capability))}"
    return ""


@functools.cache
def _has_compiler() -> bool:
    """Whether there is what Triton builds its launchers with; on Windows it brings that along."""
    return os.name == "nt" or bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def _instructions(precision: Products = "fp32") -> str | None:
    from grimmgen.network.backends.cpu import library

    if precision == "bf16":
        rounding = f"{_instructions()}bf16"
        return rounding if rounding in library.instruction_sets("bf16") else None
    forced = os.environ.get("GRIMMGEN_KERNEL", "")
    if forced == "plain":
        return None
    had = library.instruction_sets()
    if forced in {"", "native"} or forced in had:
        if forced and not had:
            raise UsageError(f"GRIMMGEN_KERNEL={forced}: {library.load()[1]}", "set it to plain, or not at all")
        return forced if forced in had else next(iter(had), None)
    raise UsageError(
        f"GRIMMGEN_KERNEL={forced} is not to be had here", f"set it to plain{''.join(f', {name}' for name in had)}"
    )
