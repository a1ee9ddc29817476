"""The processes that train one run together, as `torchrun` starts them; for one alone all of this is trivial.

Each of them, a rank, reads its rows of every batch and holds all of the weights. Gradients are averaged while the
backward pass goes on, and so the weights stay the same everywhere; what depends on a clock, a signal or a file is
decided by one rank and told to the others. The first rank alone writes files and speaks. What one rank cannot do
ends all of them, and is told once.

Gradients go through NCCL where they are on GPUs, all else through gloo. Knows tensors and processes, and nothing
of models, text or files.

    B  rows of a batch, all ranks together    b  rows of this rank
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from grimmgen.errors import GrimmgenError, UsageError

if TYPE_CHECKING:
    # Who asks only whether there are several ranks waits for neither.
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

_NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# One host may have to encode a large text that another one finds in its cache.
_PATIENCE = timedelta(hours=1)
# Whether this process has begun to look for the others.
_joining = False

_Told = TypeVar("_Told")


class Ranks:
    """The processes that train together, seen from one of them; of this class, one that is alone.

    Attributes:
        rank: which one this is, from 0.
        size: how many there are.
        command: what starts as many again.
    """

    rank = 0
    size = 1
    command = "grimmgen"

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """The b of the B rows of each batch that are this rank's; shares differ by one row at most.

        Raises:
            UsageError: there are fewer rows than ranks.
        """
        if batch_size < self.size:
            raise UsageError(
                f"--batch-size {batch_size} is less than a row for each of {self.size} processes",
                "give more rows, or start fewer with --nproc-per-node",
            )
        return self._shares(batch_size)[self.rank]

    def _shares(self, batch_size: int) -> list[slice]:
        bounds = [batch_size * rank // self.size for rank in range(self.size + 1)]
        return [slice(begin, end) for begin, end in itertools.pairwise(bounds)]

    def place(self, device: torch.device) -> torch.device:
        """The device of that kind that is this rank's."""
        return device

    def told(self, make: Callable[[], _Told]) -> _Told:
        """What `make`, a JSON value, is on the first rank, which alone makes it."""
        return make()

    def same(self, make: Callable[[], object]) -> bool:  # noqa: ARG002 - alone, it need not be made
        """Whether `make`, a JSON value, is the same on all ranks; every rank gets the same answer."""
        return True

    def agree(self, clocks: Sequence[float], asked: bool) -> tuple[Sequence[float], bool]:
        """The first rank's clocks, and whether any rank is asked to stop."""
        return clocks, asked

    def most(self, number: int) -> int:
        """The largest of all ranks' numbers; none goes on before all are here."""
        return number

    def sum(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """The sum over all ranks, the same to the bit everywhere."""
        return numbers

    def copy(self, tensors: Iterable[Tensor]) -> None:
        """Put what these tensors hold on the first rank into those of all others."""

    def gather(self, part: Tensor, batch_size: int) -> Tensor:
        """All ranks' rows [n, L, b, H] side by side, [n, L, B, H]."""
        assert part.shape[2] == batch_size
        return part

    def watch(self, weights: Iterable[Tensor], batch_size: int) -> None:
        """From now on average each weight's gradient over all ranks as soon as it is there, in the background.

        A rank's gradient weighs as much as it has rows.
        """

    def average(self, loss: Tensor) -> Tensor:
        """The loss averaged like the gradients; what `watch` has begun is done when this comes back."""
        return loss


ALONE = Ranks()


class _Torchrun(Ranks):
    """One of several, or one that is started like that."""

    def __init__(self) -> None:
        import torch
        import torch.distributed as dist
        from torch.distributed.rendezvous import rendezvous

        if missing := [name for name in _NEEDED if not os.environ.get(name)]:
            given = [name for name in _NEEDED[:2] if name not in missing]
            are = "are" if len(given) > 1 else "is"
            raise UsageError(
                f"{' and '.join(given)} {are} set, but not {', '.join(missing)}",
                "start with torchrun, or unset it",
            )
        self.rank, self.size, self._local, beside = (_number(name) for name in _NEEDED[:4])
        if not (self.rank < self.size and self._local < beside <= self.size):
            raise UsageError("RANK and WORLD_SIZE contradict each other", "start with torchrun, or unset them")
        if not (dist.is_available() and dist.is_gloo_available()):
            raise UsageError("this PyTorch has no gloo, by which processes speak", "install another build of it")
        # torchrun, where nobody has set it, sets it to 1, whatever there is.
        if os.environ.get("OMP_NUM_THREADS", "1") == "1":
            torch.set_num_threads(max(1, _cores() // beside))
        try:
            self._store, *_ = next(rendezvous("env://"))
            dist.init_process_group(
                "gloo", store=self._store, rank=self.rank, world_size=self.size, timeout=_PATIENCE
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise GrimmgenError(
                f"process {self.rank} of {self.size} does not reach the others ({_brief(error)})",
                "check MASTER_ADDR and MASTER_PORT, and GLOO_SOCKET_IFNAME, the network interface",
            ) from error
        self.command = f"torchrun {f'--nproc-per-node {beside}' if beside == self.size else '…'} -m -- grimmgen"
        # None is the group of all; to hold it would keep it beyond its end.
        self._gradients: dist.ProcessGroup | None = None
        self._share = 1.0
        self._pending: list[Any] = []

    def place(self, device: torch.device) -> torch.device:
        import torch

        if device.type != "cuda":
            return device
        if self._local >= (there := torch.cuda.device_count()):
            raise UsageError(
                f"--nproc-per-node is more than the GPUs here, {there}", "start as many, or give --device cpu"
            )
        torch.cuda.set_device(self._local)
        return torch.device("cuda", self._local)

    def told(self, make: Callable[[], _Told]) -> _Told:
        import numpy as np
        import torch
        import torch.distributed as dist

        # Not as PyTorch hands objects around, which is by pickle.
        said = json.dumps(make()).encode("ascii") if self.first else b""
        length = torch.tensor([len(said)])
        with _reached():
            dist.broadcast(length, 0)
            text = torch.from_numpy(np.frombuffer(said.ljust(int(length)), np.uint8).copy())
            dist.broadcast(text, 0)
        told: _Told = json.loads(text.numpy().tobytes())
        return told

    def same(self, make: Callable[[], object]) -> bool:
        ours = json.dumps(make())
        return not self.most(ours != self.told(lambda: ours))

    def agree(self, clocks: Sequence[float], asked: bool) -> tuple[Sequence[float], bool]:
        nothing = [float("-inf")] * len(clocks)
        *agreed, wish = self._largest([*(clocks if self.first else nothing), float(asked)])
        return agreed, bool(wish)

    def most(self, number: int) -> int:
        return int(self._largest([float(number)])[0])

    def _largest(self, numbers: Sequence[float]) -> list[float]:
        import torch
        import torch.distributed as dist

        shared = torch.tensor(numbers, dtype=torch.float64)
        with _reached():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        largest: list[float] = shared.tolist()
        return largest

    def sum(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        import torch
        import torch.distributed as dist

        shared = torch.from_numpy(numbers.copy())
        with _reached():
            dist.all_reduce(shared)
        total: NDArray[np.float64] = shared.numpy()
        return total

    def copy(self, tensors: Iterable[Tensor]) -> None:
        import torch.distributed as dist

        for tensor in tensors:
            with _reached():
                dist.broadcast(here := tensor.detach().cpu().contiguous(), 0)
            tensor.detach().copy_(here)

    def gather(self, part: Tensor, batch_size: int) -> Tensor:
        import torch
        import torch.distributed as dist

        # All send as much as the one with most rows.
        n, depth, b, width = part.shape
        padded = torch.zeros(n, depth, -(-batch_size // self.size), width)
        padded[:, :, :b] = part.cpu()
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        with _reached():
            dist.all_gather(parts, padded)
        sent = zip(parts, self._shares(batch_size), strict=True)
        return torch.cat([rows[:, :, : own.stop - own.start] for rows, own in sent], dim=2)

    def watch(self, weights: Iterable[Tensor], batch_size: int) -> None:
        import torch.distributed as dist

        own = self.rows(batch_size)
        self._share = (own.stop - own.start) / batch_size
        for weight in weights:
            if weight.device.type == "cuda" and self._gradients is None and dist.is_nccl_available():
                with _reached():
                    self._gradients = dist.new_group(backend="nccl")
            weight.register_post_accumulate_grad_hook(self._begin)  # type: ignore[no-untyped-call]

    def _begin(self, weight: Tensor) -> None:
        # Every rank's backward pass makes the gradients in the same order.
        assert weight.grad is not None
        self._reduce(weight.grad)

    def _reduce(self, tensor: Tensor) -> None:
        import torch.distributed as dist

        with _reached():
            self._pending.append(dist.all_reduce(tensor.mul_(self._share), group=self._gradients, async_op=True))

    def average(self, loss: Tensor) -> Tensor:
        mean = loss.detach().clone()
        self._reduce(mean)
        with _reached():
            for work in self._pending:
                work.wait()
        self._pending.clear()
        return mean

    def leave(self) -> None:
        """End the threads that speak to the others; they may not be at work when the interpreter ends."""
        import torch.distributed as dist

        self._gradients = None
        dist.destroy_process_group()

    def speak(self) -> bool:
        """Whether this rank is the first to say what has gone wrong."""
        try:
            return int(self._store.add("grimmgen/errors", 1)) == 1
        except RuntimeError:
            # Who keeps the store has left.
            return self.first


@contextlib.contextmanager
def joined() -> Iterator[Ranks]:
    """The ranks that `torchrun` has started; `ALONE` without it, and then PyTorch is not waited for.

    None leaves before all are through. An error on one ends all: of those that have one, the first raises it, and
    the others end in silence with its exit code. Who catches it to end the process does that by `end`.

    Raises:
        UsageError: the variables of torchrun are not as it sets them, or the ranks were given unlike commands.
        GrimmgenError: the ranks do not reach each other.
    """
    global _joining
    if not os.environ.keys() & {"RANK", "WORLD_SIZE"}:
        yield ALONE
        return
    _joining = True
    ranks = _Torchrun()
    try:
        if not ranks.same(lambda: sys.argv[1:]):
            raise UsageError("the processes were given unlike commands", "give all the same")  # noqa: TRY301
        yield ranks
        ranks.most(0)
    except BaseException as error:
        if ranks.speak():
            raise
        interrupted = 130 if isinstance(error, KeyboardInterrupt) else 1
        raise SystemExit(getattr(error, "exit_code", interrupted)) from error
    ranks.leave()


def end(code: int) -> NoReturn:
    """End this process. Of several, one that an error ends while it speaks to the others does so at once.

    The threads of gloo hold tensors, and with them Python's objects. To let go of these while the interpreter ends
    would abort the process, with another exit code; and to wait for them may take as long as another rank takes.
    """
    if not _joining:
        sys.exit(code)
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def speaks() -> bool:
    """Whether this process is to tell an error: one of the command line, which all were given, is the first's."""
    rank = os.environ.get("RANK", "")
    # A rank that is no number is nobody's, and nobody else would speak.
    later = rank.isascii() and rank.isdigit() and rank.strip("0") != ""
    return _joining or not later or not all(map(os.environ.get, _NEEDED))


@contextlib.contextmanager
def _reached() -> Iterator[None]:
    """Turn what PyTorch raises where another rank is gone into a line that says so."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise GrimmgenError(
            f"another of the processes has ended, or cannot be reached ({_brief(error)})",
            "see what it says; `grimmgen train --resume` goes on from what was saved last",
        ) from error


def _number(name: str) -> int:
    value = os.environ[name]
    # What has more digits than any number of processes would not fit where PyTorch puts it.
    if not value.isascii() or not value.isdigit() or len(value) > 9:
        raise UsageError(f"{name}={value[:20]!r} is no number", "start with torchrun, or unset it")
    return int(value)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _brief(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:120] or error.__class__.__name__
