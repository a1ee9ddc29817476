"""Whether the Triton kernels compute on this GPU what the reference backend computes, before a run relies on them.

Each kernel that a model needs, compiled as for the model, runs on a few time steps, with dropout and resets. The
verdict is cached for the GPU, the driver, the versions and the kernels' sources.

    T  time steps    B  batch rows    H  hidden units    V  vocabulary size    N  predictions
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from grimmgen.configuration import Products
from grimmgen.errors import GrimmgenError
from grimmgen.io import files, paths
from grimmgen.network.backends.cuda.backend import CUDABackend, triton_cell
from grimmgen.network.backends.cuda.recurrence import launch_config
from grimmgen.network.backends.reference import ReferenceBackend
from grimmgen.network.cells import CellSpec, Sizes, cells
from grimmgen.network.optimiser import AdamW

_TIME_STEPS = 3
# Rows: few, which evaluation may have; and as many as it takes to have a training's launch configuration.
_FEW_ROWS, _MANY_ROWS = 3, 16 * 129
# The largest norm of a difference, relative to the norm of the reference's result. Factors near the middle of two
# numbers of bfloat16 (or TF32) may be rounded to either.
_TOLERANCES = {"ieee": 1e-3, "tf32": 2e-2, "bf16": 2e-2}


class Shape(NamedTuple):
    """What the kernels of a model are compiled for.

    Attributes:
        hidden: H.
        vocabulary_size: V.
        batch_size: B of training; evaluation may have fewer rows.
    """

    hidden: int
    vocabulary_size: int
    batch_size: int


@functools.cache
def failure(cell: str, shape: Shape, device: torch.device, precision: Products) -> str:
    """Why the kernels are not to be used for a model on this device; empty if they are right.

    Args:
        cell: name of the cell.
        shape: of the model.
        device: of the model.
        precision: of the matrix products.

    Raises:
        GrimmgenError: a kernel has crashed, after which this process cannot use the GPU; the next one uses PyTorch.
        torch.OutOfMemoryError: the check does not fit on the device.
    """
    spec, backend = cells()[cell], CUDABackend(precision)
    arithmetic = backend._arithmetic(spec)
    rows = _row_counts(spec, shape, arithmetic)
    key = {**_platform(device), "kernels": _sources_digest(cell), "cell": cell, **shape._asdict()}
    key |= {"batch_size": rows, "products": f"{precision} {arithmetic}"}
    path = paths.cache_directory() / "self-checks" / f"{files.sha256(json.dumps(key).encode())[:32]}.json"
    if (verdict := _cached(path)) is not None:
        return verdict
    try:
        found = _wrong(spec, shape, rows, device, backend)
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


def _wrong(cell: CellSpec, shape: Shape, row_counts: list[int], device: torch.device, backend: CUDABackend) -> str:
    """The first thing that the kernels compute otherwise than the reference backend; empty if there is none."""
    tolerance = _TOLERANCES["bf16" if backend.precision == "bf16" else backend._arithmetic(cell) or "ieee"]
    for rows in row_counts:
        case = _Case.draw(cell, shape, rows, device)
        pairs = zip(case.results(ReferenceBackend(backend.precision)), case.results(backend), strict=True)
        for (name, right), (_, actual) in pairs:
            difference, norm = ((part.double()).norm().item() for part in (actual.double() - right, right))
            # Not a number is no success.
            if not difference <= (0.0 if name == "a dropout mask" else tolerance) * norm:
                share = difference / norm if norm else math.inf
                return f"{name} differs by {share:.1%}" if share < 10 else f"{name} is wrong"
    return ""


class _Case(NamedTuple):
    """The arguments of all kernels, float32.

    Attributes:
        cell: the cell.
        weights: of a layer, by name.
        output: weight [H, V] and bias [V] of the softmax layer.
        ids: [T, B].
        targets: [N].
        resets: [T, B].
        state: each [B, H].
        d_h: gradient by the hidden states, [T, B, H].
    """

    cell: CellSpec
    weights: dict[str, Tensor]
    output: tuple[Tensor, Tensor]
    ids: Tensor
    targets: Tensor
    resets: Tensor
    state: tuple[Tensor, ...]
    d_h: Tensor

    @classmethod
    def draw(cls, cell: CellSpec, shape: Shape, rows: int, device: torch.device) -> _Case:
        """Draw all numbers, the same ones each time."""
        H, V, _ = shape
        window = _TIME_STEPS, rows
        generator = torch.Generator().manual_seed(0)

        def draw(*size: int) -> Tensor:
            # Small enough that few gates are saturated, which would hide differences.
            scale = 1.5 / math.sqrt(H) if len(size) == 2 and size[0] == H else 0.5
            return (scale * torch.randn(size, generator=generator)).to(device)

        resets = torch.rand(window, generator=generator) < 0.3
        resets[0, 0], resets[-1, -1] = True, True
        ids, targets = torch.randint(V, (2, *window), generator=generator)
        targets[0, 0] = -1  # no target
        return cls(
            cell,
            {name: draw(*size) for name, size in cell.shapes(Sizes(H, V, 0)).items()},
            (draw(H, V), draw(V)),
            ids.to(device),
            targets.flatten().to(device),
            resets.to(device),
            tuple(draw(rows, H) for _ in cell.states),
            draw(*window, H),
        )

    def results(self, backend: ReferenceBackend) -> Iterator[tuple[str, Tensor]]:
        """What a backend computes with each of its kernels, by name."""
        size, seed = self.d_h.shape, torch.tensor(7, device=self.ids.device)
        mask = backend.dropout_mask(size, 0.3, seed)
        yield "a dropout mask", mask
        for kind, some in (("", mask), (" without dropout", None)):
            layer = backend.layer(self.cell, self.weights, self.ids, self.state, some, self.resets)
            yield (
                f"the hidden state{kind}",
                torch.cat([layer.h.flatten(), *(part.flatten() for part in layer.state)]),
            )
            found = backend.layer_backward(self.cell, layer.saved, self.d_h)
            by_name = dict(zip(self.cell.states, found.state, strict=True)) | found.weights
            for name in (*self.cell.states, *self.weights):
                yield f"the gradient by {name}{kind}", by_name[name]
        # Not the layer's h, whose differences would count twice.
        hidden = self.d_h.flatten(0, 1)
        loss, *gradients = backend.cross_entropy(hidden, *self.output, self.targets)
        yield "the loss", loss
        for name, gradient in zip(("h", "weight", "bias"), gradients, strict=True):
            yield f"the loss's gradient by {name}", gradient
        yield "the evaluation", backend.negative_log_likelihood(hidden, *self.output, self.targets)
        yield from self._adam(backend)

    def _adam(self, backend: ReferenceBackend) -> Iterator[tuple[str, Tensor]]:
        """Two steps of Adam, with the scale of the gradient known, and with a clipped one."""
        gradient = {"weight": self.output[0]}
        for clipped in (False, True):
            weights = {"weight": torch.zeros_like(gradient["weight"])}
            optimiser = AdamW(weights.items(), 0.1)
            for _ in range(2):
                numbers = [1.0, *optimiser.advance(0.01)]
                if clipped and isinstance(backend, CUDABackend):
                    # With a norm of 1 and none larger allowed, the scale is 1, too.
                    on_device = torch.tensor(numbers, dtype=torch.float64, device=self.ids.device)
                    backend.adam(optimiser.tensors(gradient), on_device, torch.ones_like(on_device[:2]))
                else:
                    backend.adam(optimiser.tensors(gradient), numbers)
            for name, values in (("step", weights), ("mean", optimiser.exp_avg), ("square", optimiser.exp_avg_sq)):
                yield f"Adam's {name}{' of a clipped gradient' if clipped else ''}", values["weight"]


def _row_counts(cell: CellSpec, shape: Shape, arithmetic: str | None) -> list[int]:
    """B of the windows: one for each launch configuration that training and evaluation have."""
    counts = _FEW_ROWS, min(shape.batch_size, _MANY_ROWS)
    return sorted({launch_config(B, shape.hidden, len(cell.gates), arithmetic): B for B in counts}.values())


def _platform(device: torch.device) -> dict[str, Any]:
    """What kernels are compiled for and with."""
    versions = {"torch": torch.__version__, "triton": triton.__version__, "grimmgen": version("grimmgen")}
    driver = ""
    with contextlib.suppress(OSError):
        driver = Path("/sys/module/nvidia/version").read_text().strip()
    # Where there is no such file (WSL): the version of CUDA that the driver has.
    cuda = getattr(torch._C, "_cuda_getDriverVersion", int)()
    return {"GPU": _name(device), "driver": driver, "CUDA": [cuda, torch.version.cuda], **versions}


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
