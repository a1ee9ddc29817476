"""Whether the Triton kernels compute on this GPU what the reference backend computes, before a run relies on them.

Each kernel that a model needs, compiled as for the model, runs on a window of a few time steps, with dropout and
resets. The verdict is cached for the GPU, the driver, the versions and the kernels' sources.

    T  time steps    B  batch rows    H  hidden units    V  vocabulary size
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from grimmgen.configuration import Configuration, Products
from grimmgen.errors import GrimmgenError
from grimmgen.io import files, paths
from grimmgen.network.backends.cuda.backend import CUDABackend, triton_cell
from grimmgen.network.backends.cuda.recurrence import launch_config
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import cells
from grimmgen.network.gradients import gradients
from grimmgen.network.model import Dropout, Inputs, LanguageModel, mask_count
from grimmgen.network.optimiser import AdamW

_TIME_STEPS = 3
# Rows: few, which evaluation may have; and as many as it takes to have a run's launch configuration.
_FEW_ROWS, _MANY_ROWS = 3, 16 * 129
# The largest norm of a difference, relative to the norm of the reference's result. Factors near the middle of two
# numbers of bfloat16 (or TF32) may be rounded to either.
_TOLERANCES = {"ieee": 1e-3, "tf32": 2e-2, "bf16": 2e-2}


@functools.cache
def failure(configuration: Configuration, vocabulary_size: int, device: torch.device, precision: Products) -> str:
    """Why the kernels are not to be used for a model on this device; empty if they are right.

    Args:
        configuration: of the model.
        vocabulary_size: V.
        device: of the model.
        precision: of the matrix products.

    Raises:
        GrimmgenError: a kernel has crashed the GPU's context, which ends this process; the next one uses PyTorch.
        torch.OutOfMemoryError: the check does not fit on the device.
    """
    backend = CUDABackend(precision)
    arithmetic = backend._arithmetic(cells()[configuration.cell])
    checked = {
        "cell": configuration.cell,
        "H": configuration.hidden,
        "V": vocabulary_size,
        "B": sorted(_row_counts(configuration, arithmetic)),
        "dropout": configuration.dropout_mode,
        "products": f"{precision} {arithmetic}",
    }
    key = {**_platform(device), "kernels": _sources_digest(configuration.cell), **checked}
    path = paths.cache_directory() / "self-checks" / f"{files.sha256(json.dumps(key).encode())[:32]}.json"
    if (verdict := _cached(path)) is not None:
        return verdict
    try:
        found = "".join(_wrong(configuration, vocabulary_size, device, backend, tuple(checked["B"]))[:1])
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        verdict = _message(f"{error.__class__.__name__}: {str(error).partition(chr(10))[0]}")
        if not _is_usable(device):
            _cache(path, key, verdict)
            raise GrimmgenError(
                f"a Triton kernel has crashed on {_name(device)}",
                "run the same command again: PyTorch will be used",
            ) from error
        # Not cached: the reason may be a missing header, or a full disk.
        return verdict
    verdict = _message(found) if found else ""
    _cache(path, key, verdict)
    return verdict


def _wrong(
    configuration: Configuration,
    vocabulary_size: int,
    device: torch.device,
    backend: CUDABackend,
    row_counts: tuple[int, ...],
) -> list[str]:
    """What the kernels compute otherwise than the reference backend, with both numbers of rows."""
    options = dataclasses.replace(configuration, unroll=_TIME_STEPS, dropout=0.3)
    model = LanguageModel(options, vocabulary_size).to(device)
    generator = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        # Large enough that saturated gates, which hide differences, are few, and that products matter.
        scale = 0.2 if weight.dim() == 1 or name == "embedding" else 1.5 / math.sqrt(weight.shape[-2])
        weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    tolerance = _TOLERANCES[backend._arithmetic(model.cell) or ("bf16" if backend.precision == "bf16" else "ieee")]
    wrong = []
    for rows in row_counts:
        shape = _TIME_STEPS, rows
        ids, targets = torch.randint(vocabulary_size, (2, *shape), generator=generator)
        targets[0, 0] = -1
        resets = torch.rand(shape, generator=generator) < 0.3
        resets[0, 0], resets[-1, -1] = True, True
        inputs = Inputs(ids.to(device), targets.to(device), resets.to(device))
        state = tuple(
            (0.5 * torch.randn(part.shape, generator=generator)).to(device) for part in model.zero_state(rows)
        )
        seeds = torch.arange(1, 1 + mask_count(options), device=device)
        # The reference's gradients are the input of Adam on both: its steps are as large for small ones.
        expected = dict(_results(model, ReferenceBackend(backend.precision), inputs, state, seeds, None))
        actual = dict(_results(model, backend, inputs, state, seeds, expected))
        for name, right in expected.items():
            difference, norm = (part.double().norm().item() for part in (actual[name].double() - right, right))
            # Not a number is no success.
            if not difference <= (0.0 if name == "a dropout mask" else tolerance) * norm:
                share = difference / norm if norm else math.inf
                wrong.append(f"{name} differs by {share:.1%}" if share < 10 else f"{name} is wrong")
    return wrong


def _results(
    model: LanguageModel,
    backend: ReferenceBackend,
    inputs: Inputs,
    state: tuple[Tensor, ...],
    seeds: Tensor,
    expected: Mapping[str, Tensor] | None,
) -> Iterator[tuple[str, Tensor]]:
    """What all kernels compute, by name."""
    options, rows = model.configuration, inputs.ids.shape[1]
    yield "a dropout mask", backend.dropout_mask((_TIME_STEPS, rows, options.hidden), options.dropout, seeds[0])
    dropout = Dropout(backend, seeds, rows)
    loss, by_name, after = gradients(model, backend, inputs, state, dropout)
    yield "the loss", loss
    yield "the state", torch.cat([part.flatten() for part in after])
    yield from ((f"the gradient of {name}", gradient) for name, gradient in by_name.items())
    done = model.forward(backend, inputs.ids, state, inputs.resets)
    targets, bias = inputs.targets.view(-1), model.weights_by_name["output.bias"]
    yield "the evaluation", backend.negative_log_likelihood(done.hidden, done.output_weight, bias, targets)
    used = {n: (expected or {}).get(f"the gradient of {n}", gradient) for n, gradient in by_name.items()}
    for clipped in (False, True):
        weights = {name: weight.clone() for name, weight in model.named_parameters()}
        optimiser = AdamW(weights.items(), 0.1)
        for _ in range(2):
            numbers = [1.0, *optimiser.advance(0.01)]
            if clipped and isinstance(backend, CUDABackend):
                # With a norm of 1 and none larger allowed, the scale is 1, too.
                on_device = torch.tensor(numbers, dtype=torch.float64, device=model.device)
                backend.adam(optimiser.tensors(used), on_device, torch.ones_like(on_device[:2]))
            else:
                backend.adam(optimiser.tensors(used), numbers)
        steps = {name: weights[name] - before for name, before in model.named_parameters()}
        kinds = {"moment": optimiser.exp_avg, "square": optimiser.exp_avg_sq, "step": steps}
        for kind, found in kinds.items():
            name = f"Adam's {kind}{' of a clipped gradient' if clipped else ''}"
            yield name, torch.cat([part.flatten() for part in found.values()])


def _row_counts(configuration: Configuration, arithmetic: str | None) -> set[int]:
    """B of the windows: one for each launch configuration that the model's training and evaluation have."""
    gates = len(cells()[configuration.cell].gates)
    counts = _FEW_ROWS, min(configuration.batch_size, _MANY_ROWS)
    return set({launch_config(B, configuration.hidden, gates, arithmetic): B for B in counts}.values())


def _platform(device: torch.device) -> dict[str, Any]:
    """What kernels are compiled for and with."""
    found: dict[str, Any] = {"GPU": _name(device), "driver": ""}
    if device.type == "cuda":
        found["capability"] = torch.cuda.get_device_capability(device)
        driver = Path("/sys/module/nvidia/version")  # Linux; elsewhere the CUDA version that the driver has
        with contextlib.suppress(OSError):
            found["driver"] = driver.read_text().strip()
        found["CUDA"] = torch._C._cuda_getDriverVersion(), torch.version.cuda
    return found | {"torch": torch.__version__, "triton": triton.__version__, "grimmgen": version("grimmgen")}


def _is_usable(device: torch.device) -> bool:
    """Whether the GPU still works: after a kernel's access to memory that is not there, it does not in this process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "Triton's interpreter"


def _sources_digest(cell: str) -> str:
    """Hash the sources of the kernels."""
    own = Path(triton_cell(cell).__file__)
    sources = *sorted(Path(__file__).parent.glob("*.py")), own, own.with_name("activations_triton.py")
    return files.sha256(b"".join(source.read_bytes() for source in sources))


def _message(found: str) -> str:
    return f"the Triton kernels failed their self-check on this GPU: {found}"


def _cached(path: Path) -> str | None:
    """The verdict in a file; None if there is none."""
    try:
        value = files.parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    verdict = value.get("failure") if isinstance(value, dict) else None
    return verdict if isinstance(verdict, str) else None


def _cache(path: Path, key: Mapping[str, Any], verdict: str) -> None:
    # A cache that cannot be written costs a check in each process.
    with contextlib.suppress(GrimmgenError):
        files.make_directory(path.parent)
        files.write_json(path, {**key, "failure": verdict})
