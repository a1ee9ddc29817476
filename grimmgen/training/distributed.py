"""The processes that train one run together, as `torchrun` starts them.

Each process reads its rows of every batch and holds all weights. Gradients are averaged over the processes during
the backward pass, so that the weights stay equal everywhere. What depends on a clock, a signal or a file is
determined by one process and broadcast to the others. Only the first process writes files and reports. An error in
one process ends all of them and is reported once.

Gradients on GPUs go through NCCL, everything else through gloo. Knows tensors and processes, and nothing of
models, text or files. For a single process everything here is trivial and imports no PyTorch.

    B  batch rows of all processes    b  batch rows of this process
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar

from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.network.threads import processors

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# One host may have to encode a large text that another host finds in its cache.
_TIMEOUT = timedelta(hours=1)
# Whether this process has started to connect to the others.
_connecting = False

_Value = TypeVar("_Value")


class ProcessGroup:
    """Communication between the processes that train together; this base class is that of a single process.

    Attributes:
        rank: number of this process, from 0.
        size: number of processes.
        command: the command that starts as many processes again.
    """

    rank = 0
    size = 1
    command = "grimmgen"

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and reports."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Return the b of the B batch rows that this process reads; shares differ by one row at most.

        Raises:
            UsageError: there are fewer rows than processes.
        """
        if batch_size < self.size:
            raise UsageError(
                f"--batch-size {batch_size} is less than one row for each of {self.size} processes",
                "raise it, or start fewer processes with --nproc-per-node",
            )
        return self._shares(batch_size)[self.rank]

    def _shares(self, batch_size: int) -> list[slice]:
        bounds = [batch_size * rank // self.size for rank in range(self.size + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]

    def place(self, device: torch.device) -> torch.device:
        """Return the device of this kind that this process uses."""
        return device

    def broadcast(self, make: Callable[[], _Value]) -> _Value:
        """Call `make` in the first process only, and return its result, a JSON value, in all processes."""
        return make()

    def all_equal(self, make: Callable[[], object]) -> bool:  # noqa: ARG002 - not needed in a single process
        """Whether `make` returns the same JSON value in all processes; the answer is the same in all of them."""
        return True

    def agree(self, clocks: Sequence[float], stop: bool) -> tuple[Sequence[float], bool]:
        """Return the first process's clocks, and whether any process is to stop."""
        return clocks, stop

    def max(self, number: int) -> int:
        """Return the largest number of all processes, after all of them have called this."""
        return number

    def sum(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum over all processes, bit-equal in all of them."""
        return numbers

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite these tensors with those of the first process."""

    def gather(self, part: Tensor, batch_size: int) -> Tensor:
        """Concatenate the rows of all processes, each [n, L, b, H], to [n, L, B, H]."""
        assert part.shape[2] == batch_size
        return part

    def reducer(self, batch_size: int, device: torch.device) -> Self | None:  # noqa: ARG002 - see the other class
        """Return this object as the `Reducer` of a training step; None for a single process.

        Args:
            batch_size: B. What a process begins is weighted by its share of these rows.
            device: of the tensors.
        """
        return None

    def begin(self, tensor: Tensor) -> None:
        """Begin to average a tensor over all processes, in place, in the background."""

    def finish(self) -> None:
        """Wait for everything that has begun."""


SINGLE_PROCESS = ProcessGroup()


class _Torchrun(ProcessGroup):
    """One of the processes that `torchrun` has started, of which there may be only one."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        if missing := [name for name in _VARIABLES if not os.environ.get(name)]:
            present = [name for name in _VARIABLES[:2] if name not in missing]
            are = "are" if len(present) > 1 else "is"
            raise UsageError(
                f"{' and '.join(present)} {are} set, but not {', '.join(missing)}",
                "start with torchrun, or unset it",
            )
        self.rank, self.size, self._local, local_size = (_number(name) for name in _VARIABLES[:4])
        if not (self.rank < self.size and self._local < local_size <= self.size):
            raise UsageError("RANK and WORLD_SIZE contradict each other", "start with torchrun, or unset them")
        if not (dist.is_available() and dist.is_gloo_available()):
            raise UsageError(
                "this PyTorch has no gloo, which processes communicate by", "install another build of it"
            )
        # torchrun sets this variable to 1 on any machine, unless it is set already.
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":
            torch.set_num_threads(max(1, processors() // local_size))
        try:
            self._store, *_ = next(rendezvous("env://"))
            dist.init_process_group(
                "gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_TIMEOUT
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise GrimmgenError(
                f"process {self.rank} of {self.size} does not reach the others ({_brief(error)})",
                "check MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME, the network interface",
            ) from error
        per_node = f"--nproc-per-node {local_size}" if local_size == self.size else "…"
        self.command = f"torchrun {per_node} -m -- grimmgen"
        # The NCCL group of the gradients; None is the default group, which must not be kept beyond its end.
        self._gradients: dist.ProcessGroup | None = None
        self._share = 1.0
        self._pending: list[Any] = []

    def place(self, device: torch.device) -> torch.device:
        import torch

        if device.type != "cuda":
            return device
        if device.index is not None:
            raise UsageError(f"--device {device} is one GPU for several processes", "give --device cuda")
        if self._local >= (count := torch.cuda.device_count()):
            raise UsageError(
                f"--nproc-per-node is more than the {count} GPUs of this machine", "lower it, or give --device cpu"
            )
        torch.cuda.set_device(self._local)
        return torch.device("cuda", self._local)

    def broadcast(self, make: Callable[[], _Value]) -> _Value:
        import numpy as np
        import torch
        import torch.distributed as dist

        # JSON, since PyTorch would send an object as a pickle.
        content = json.dumps(make()).encode("ascii") if self.first else b""
        length = torch.tensor([len(content)])
        with _peer_errors():
            dist.broadcast(length, 0)
            buffer = torch.from_numpy(np.frombuffer(content.ljust(int(length)), np.uint8).copy())
            dist.broadcast(buffer, 0)
        value: _Value = json.loads(buffer.numpy().tobytes())
        return value

    def all_equal(self, make: Callable[[], object]) -> bool:
        own = json.dumps(make())
        return not self.max(own != self.broadcast(lambda: own))

    def agree(self, clocks: Sequence[float], stop: bool) -> tuple[Sequence[float], bool]:
        ignored = [float("-inf")] * len(clocks)
        *agreed, stopping = self._largest([*(clocks if self.first else ignored), float(stop)])
        return agreed, bool(stopping)

    def max(self, number: int) -> int:
        return int(self._largest([float(number)])[0])

    def _largest(self, numbers: Sequence[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.float64)
        with _peer_errors():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        largest: list[float] = shared.tolist()
        return largest

    def sum(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        import torch
        import torch.distributed as dist

        shared = torch.from_numpy(numbers.copy())
        with _peer_errors():
            dist.all_reduce(shared)
        total: NDArray[np.float64] = shared.numpy()
        return total

    def copy(self, tensors: Iterable[Tensor]) -> None:
        import torch.distributed as dist

        for tensor in tensors:
            with _peer_errors():
                dist.broadcast(shared := tensor.detach().cpu().contiguous(), 0)
            tensor.detach().copy_(shared)

    def gather(self, part: Tensor, batch_size: int) -> Tensor:
        import torch
        import torch.distributed as dist

        # All processes send as many rows as the one with the most rows.
        n, depth, b, width = part.shape
        padded = torch.zeros(n, depth, -(-batch_size // self.size), width)
        padded[:, :, :b] = part.cpu()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _peer_errors():
            dist.all_gather(parts, padded)
        received = zip(parts, self._shares(batch_size), strict=True)
        return torch.cat([rows[:, :, : own.stop - own.start] for rows, own in received], dim=2)

    def reducer(self, batch_size: int, device: torch.device) -> Self | None:
        import torch.distributed as dist

        if self.size == 1:
            return None
        own = self.rows(batch_size)
        self._share = (own.stop - own.start) / batch_size
        if device.type == "cuda" and self._gradients is None and dist.is_nccl_available():
            with _peer_errors():
                self._gradients = dist.new_group(backend="nccl")
        return self

    def begin(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        # All processes begin the same tensors in the same order: that of the backward pass.
        with _peer_errors():
            self._pending.append(dist.all_reduce(tensor.mul_(self._share), group=self._gradients, async_op=True))

    def finish(self) -> None:
        with _peer_errors():
            for work in self._pending:
                work.wait()
        self._pending.clear()

    def leave(self) -> None:
        """End the communication threads; they must not be running when the interpreter exits."""
        import torch.distributed as dist

        self._gradients = None
        dist.destroy_process_group()

    def reports_first(self) -> bool:
        """Whether this process is the first one to report an error."""
        try:
            return int(self._store.add("grimmgen/errors", 1)) == 1
        except RuntimeError:
            # The process that keeps the store has exited.
            return self.first


@contextlib.contextmanager
def process_group() -> Iterator[ProcessGroup]:
    """Connect to the processes that `torchrun` has started; `SINGLE_PROCESS` without it, and without PyTorch.

    No process leaves this context before all do. An error in one process ends all of them: of the processes with
    an error, the first one raises it, and the others exit silently with its exit code. A caller that catches the
    error in order to exit does so with `exit_process`.

    Raises:
        UsageError: the variables of torchrun are missing or invalid, or the processes have different arguments.
        GrimmgenError: the processes do not reach each other.
    """
    global _connecting
    if not os.environ.keys() & {"RANK", "WORLD_SIZE"}:
        yield SINGLE_PROCESS
        return
    _connecting = True
    group = _Torchrun()
    try:
        if not group.all_equal(lambda: sys.argv[1:]):
            raise UsageError("the processes have different arguments", "start all with the same")  # noqa: TRY301
        yield group
        group.max(0)
    except BaseException as error:
        if group.reports_first():
            raise
        default = 130 if isinstance(error, KeyboardInterrupt) else 1
        raise SystemExit(getattr(error, "exit_code", default)) from error
    group.leave()


def exit_process(code: int) -> NoReturn:
    """Exit this process; at once if it has loaded PyTorch, since to unload it takes half a second.

    The threads of gloo hold tensors, and with them Python objects. Releasing these while the interpreter exits
    would abort the process with another exit code, and waiting for the threads may take as long as another process
    runs.
    """
    if "torch" not in sys.modules:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def reports_errors() -> bool:
    """Whether this process reports its errors: before the processes are connected, only the first one does."""
    rank = os.environ.get("RANK", "")
    # With an invalid rank no other process would report.
    later = rank.isascii() and rank.isdigit() and rank.strip("0") != ""
    return _connecting or not later or not all(map(os.environ.get, _VARIABLES))


@contextlib.contextmanager
def _peer_errors() -> Iterator[None]:
    """Translate the errors that PyTorch raises when another process has exited."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GrimmgenError(
            f"another process has exited, or cannot be reached ({_brief(error)})",
            "see its own error; `grimmgen train --resume` continues from the last checkpoint",
        ) from error


def _number(name: str) -> int:
    value = os.environ[name]
    # Longer numbers would not fit the integers of PyTorch.
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{name}={value[:20]!r} is not a number", "start with torchrun, or unset it")
    return int(value)


def _brief(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120] or error.__class__.__name__
