"""Programs: calls of the compiled kernels, run at once by several threads, or recorded and run again as one call.

A program is a list of steps; a step is a call of one kernel by each of the threads, with its share of the rows or
columns. The worker threads are started here and wait in the library for the next program (`program.c`).

A recorded program owns the memory of its intermediate results: its buffers are planned by their lifetimes, so that
two that are never needed at the same time share memory, as they would if each were freed after its last use.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from grimmgen.errors import GrimmgenError
from grimmgen.network.backends.cpu.library import WORDS_OF_CALL, Kernel, constants, load, loaded

# Below so many elements of an elementwise operation, waking a thread costs more than the work; within a program,
# where the threads are awake, below so many.
_FEW, _VERY_FEW = 2**19, 2**12
_ALIGNMENT = 64


class Pointers:
    """A table of the addresses of tensors, which it keeps alive."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        self.table = array("q", [tensor.data_ptr() for tensor in tensors])
        self.tensors = tensors


# Tables of a few numbers are arrays: to make a tensor takes several times as long.
Argument: TypeAlias = "int | Tensor | array[int] | array[float] | Pointers | None"


class Program:
    """Recorded calls, to be run again on the same memory as one call of the library.

    Attributes:
        threads: the number of threads that run it.
        names: of the kernel of each step.
        times: when each step was finished in the last run, in nanoseconds since 1970.
        scratch_bytes: the memory planned for intermediate results.
    """

    def __init__(self) -> None:
        self.threads = thread_count()
        self.names: list[str] = []
        self.times = array("q")
        self.scratch_bytes = 0
        self._calls = array("q")
        self._arguments: list[array[int]] = []
        self._kept: list[object] = []
        self._checks: list[tuple[str, Tensor, int, int]] = []
        # Intermediate results until `finish`: the storage, its first and last step, and where its address is used.
        self._planned: dict[int, _Buffer] = {}

    def empty(self, *shape: int) -> Tensor:
        """A float32 tensor for an intermediate result; its memory is this program's until its last recorded use."""
        made = torch.empty(shape)
        storage = made.untyped_storage()
        if storage.nbytes():
            self._planned[storage.data_ptr()] = _Buffer(storage)
        return made

    def add(self, kernel: Kernel, arguments: Sequence[Argument], ranges: Sequence[tuple[int, int]]) -> None:
        """Record a step: a kernel with these arguments, by as many threads as there are ranges."""
        step = len(self.names)
        self.names.append(kernel.name)
        self.times.append(0)
        packed = _pack(kernel, arguments)
        for place, argument in enumerate(arguments):
            if isinstance(argument, Pointers):
                for k, tensor in enumerate(argument.tensors):
                    self._use(tensor, step, argument.table, k)
            elif isinstance(argument, Tensor):
                self._use(argument, step, packed, place)
            elif argument is not None and not isinstance(argument, int):
                self._kept.append(argument)
            if isinstance(argument, Pointers):
                self._kept.append(argument.table)
        self._arguments.append(packed)
        self._calls.extend(_calls(kernel, packed, ranges))
        self._calls.extend([0] * (WORDS_OF_CALL * (self.threads - len(ranges))))

    def check(self, what: str, ids: Tensor, least: int, V: int) -> None:
        """Check ids before each run; see `check_ids`."""
        self._checks.append((what, ids, least, V))

    def finish(self, results: Iterable[Tensor] = ()) -> None:
        """Plan the memory of the intermediate results, and move them there.

        Args:
            results: intermediate results that are read after a run; their memory is not shared.
        """
        for tensor in results:
            self._planned.pop(tensor.untyped_storage().data_ptr(), None)
            self._kept.append(tensor.untyped_storage())
        buffers = [buffer for buffer in self._planned.values() if buffer.uses]
        offsets, self.scratch_bytes = plan([(b.storage.nbytes(), b.first, b.last) for b in buffers])
        arena = torch.empty(self.scratch_bytes + _ALIGNMENT, dtype=torch.uint8)
        base = -(-arena.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        for buffer, offset in zip(buffers, offsets, strict=True):
            moved = base + offset - buffer.storage.data_ptr()
            for table, place in buffer.uses:
                table[place] += moved
        self._kept.append(arena)
        self._planned.clear()

    def __call__(self) -> None:
        """Run it.

        Raises:
            IndexError: an id is not within the vocabulary.
        """
        for check in self._checks:
            check_ids(*check)
        _run(self._calls, len(self.names), self.threads, self.times)

    def _use(self, tensor: Tensor, step: int, table: array[int], place: int) -> None:
        storage = tensor.untyped_storage()
        if (buffer := self._planned.get(storage.data_ptr())) is None:
            self._kept.append(storage)
            return
        buffer.first, buffer.last = min(buffer.first, step), max(buffer.last, step)
        buffer.uses.append((table, place))


class _Buffer:
    """An intermediate result of a program that is being recorded."""

    def __init__(self, storage: torch.UntypedStorage) -> None:
        self.storage = storage
        self.first, self.last = 1 << 62, -1
        self.uses: list[tuple[array[int], int]] = []


def plan(buffers: Sequence[tuple[int, int, int]]) -> tuple[list[int], int]:
    """Offsets for buffers in one arena, and its size: buffers in use at the same step do not overlap.

    Largest first, each at the lowest offset where it fits (greedy by size, as in Pisarchyk and Lee 2020, arXiv
    2001.03288).

    Args:
        buffers: of each its bytes, and the first and the last step that uses it.

    >>> plan([(64, 0, 1), (128, 1, 2), (64, 2, 3)])
    ([128, 0, 128], 192)
    """
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for number in sorted(range(len(buffers)), key=lambda n: -buffers[n][0]):
        nbytes, first, last = buffers[number]
        nbytes = -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        offset = 0
        for begin, end, other_first, other_last in sorted(placed):
            if other_first <= last and first <= other_last and begin < offset + nbytes and end > offset:
                offset = end
        offsets[number] = offset
        placed.append((offset, offset + nbytes, first, last))
    return offsets, max((end for _, end, _, _ in placed), default=0)


def run(kernel: Kernel, arguments: Sequence[Argument], ranges: Sequence[tuple[int, int]]) -> None:
    """Call a kernel at once, by as many threads as there are ranges."""
    packed = _pack(kernel, arguments)
    _run(array("q", _calls(kernel, packed, ranges)), 1, len(ranges))


def _pack(kernel: Kernel, arguments: Sequence[Argument]) -> array[int]:
    # With too few arguments a kernel would read and write arbitrary memory.
    assert len(arguments) == len(kernel.fields), kernel
    return array("q", map(_number, arguments))


def _calls(kernel: Kernel, packed: array[int], ranges: Sequence[tuple[int, int]]) -> list[int]:
    where = packed.buffer_info()[0]
    return [word for begin, end in ranges for word in (kernel.address, where, begin, end)]


def _number(argument: Argument) -> int:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, Tensor):
        return argument.data_ptr()
    if argument is None:
        return 0
    return (argument.table if isinstance(argument, Pointers) else argument).buffer_info()[0]


def check_ids(what: str, ids: Tensor, least: int, V: int) -> None:
    """Check that ids are within the vocabulary: the kernels read memory at such places.

    Args:
        what: names one of them in the error.
        ids: int64, contiguous.
        least: the smallest allowed.
        V: above the largest allowed.

    Raises:
        IndexError: one is not.
    """
    if not loaded().within(ids.numel(), ids.data_ptr(), least, V):
        raise IndexError(f"{what} is not within the vocabulary of {V}")


def ranges(total: int, threads: int, elements: int | None = None, recorded: bool = False) -> list[tuple[int, int]]:
    """A range of `total` for each thread, as even as possible; none is empty.

    Args:
        total: rows, panels or elements to be shared out.
        threads: at most.
        elements: of an elementwise operation; where they are few, one thread does all of it.
        recorded: whether the call is a step of a program, in which the threads are awake.
    """
    if elements is not None and elements <= (_VERY_FEW if recorded else _FEW):
        threads = 1
    bounds = [total * i // threads for i in range(threads + 1)]
    return [(begin, end) for begin, end in itertools.pairwise(bounds) if begin < end]


class _Taken(threading.local):
    """How many threads `one_thread_for_pytorch` has taken from PyTorch in this thread; zero outside of it."""

    threads = 0


_taken = _Taken()


def thread_count() -> int:
    """The number of threads that the kernels use: PyTorch's (`torch.set_num_threads`)."""
    return min(_taken.threads or torch.get_num_threads(), constants().most_threads)


@contextlib.contextmanager
def one_thread_for_pytorch() -> Iterator[None]:
    """Within it PyTorch's own operations run on the calling thread, the kernels on as many as before.

    A thread of PyTorch's spins for some milliseconds after an operation and takes half a core from the kernels
    meanwhile; the operations beside the kernels are too small to be worth that.
    """
    before = _taken.threads, torch.get_num_threads()
    _taken.threads = _taken.threads or torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _taken.threads = before[0]
        torch.set_num_threads(before[1])


def _run(calls: array[int], steps: int, threads: int, times: array[int] | None = None) -> None:
    if threads - 1 > _workers:
        _start_workers(threads - 1)
    where = None if times is None else times.buffer_info()[0]
    loaded().run_program(calls.buffer_info()[0], steps, threads, where)


# How many threads serve the library, and the lock for starting more.
_workers, _starting = 0, threading.Lock()


def _start_workers(threads: int) -> None:
    """Have so many threads serve the library for good; they wait there, and never for Python's lock."""
    global _workers
    with _starting:
        while _workers < threads:
            number = _workers + 1
            thread = threading.Thread(target=loaded().work, args=(number,), name=f"grimmgen-{number}", daemon=True)
            # Before it starts: two threads of one number would do the same work side by side.
            _workers = number
            try:
                thread.start()
            except RuntimeError as error:
                _workers = number - 1
                raise GrimmgenError(
                    f"cannot start thread {number + 1} of {threads + 1}",
                    "set OMP_NUM_THREADS=1, or raise ulimit -u",
                ) from error


def _after_fork() -> None:
    """A forked process has none of the threads."""
    global _workers, _starting
    _workers, _starting = 0, threading.Lock()
    if load()[0] is not None:
        loaded().after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
