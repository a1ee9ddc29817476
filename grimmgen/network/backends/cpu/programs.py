"""Calls of the compiled kernel: made at once by several threads, or recorded, to be made again later.

A program is a list of steps, one after the other; a step is a call of one function for each of the threads, with
its share of the rows or columns. The threads are Python's, lent to the library, where they wait for the next
program (`native.c`).
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

from grimmgen.network.backends.cpu.library import address, function, load

# How many arguments the functions of native_kernels.h take before `begin` and `end`.
_TAKES = {
    "pack": 6,
    "lstm_forward": 14,
    "lstm_backward": 14,
    "gru_forward": 13,
    "gru_backward": 11,
    "affine": 8,
    "weights": 13,
    "dropout_mask": 4,
    "copy": 6,
    "add": 3,
    "multiply_rowwise": 5,
    "sum": 5,
    "squares": 4,
    "adamw": 4,
    "cross_entropy": 13,
}
# As in native.c: what a call has room for, and the pool.
_ARGUMENTS, _MOST_THREADS = 16, 256
# To wake another thread takes as long as to do something simple with so many numbers; to meet one that is awake,
# as in a program of many steps, with so many.
_FEW, _VERY_FEW = 2**19, 2**12

# Tables of a few numbers come as arrays: to make a tensor takes several times as long.
_Argument: TypeAlias = "int | Tensor | array[int] | array[float] | Pointers | None"


class Pointers:
    """A table of where tensors are, and what keeps them there."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        tensors = list(tensors)
        self.table = array("q", [tensor.data_ptr() for tensor in tensors])
        # Not the tensors: to PyTorch a gradient that someone else has, too, is one to be copied.
        self.kept = [tensor.untyped_storage() for tensor in tensors]


def run(name: str, calls: Sequence[tuple[_Argument, ...]]) -> None:
    """Call a function of the library, in several threads at the same time; where calls are recorded, note it down.

    Args:
        name: of the function, the instruction set's included.
        calls: the arguments of each thread.
    """
    if _own.program is not None:
        _own.program.add(name, calls)
    else:
        step = array("q")
        for arguments in calls:
            step.extend(_call(name, arguments))
        _replay(step, 1, len(calls))


def share_out(name: str, given: tuple[_Argument, ...], total: int, simple: int | None = None) -> None:
    """Call a function with the same arguments in each thread, and its share of `total`; see `shares`."""
    run(name, [(*given, *share) for share in shares(total, simple)])


def _call(name: str, arguments: tuple[_Argument, ...]) -> list[int]:
    """A call as native.c has it."""
    # A function that is given too little would read, and write, anywhere.
    assert len(arguments) == _TAKES[name.rpartition("_")[0]] + 2
    rest = [0] * (_ARGUMENTS - len(arguments))
    return [address(name), *map(_number, arguments), *rest]


def _number(given: _Argument) -> int:
    if isinstance(given, int):
        return given
    if isinstance(given, Tensor):
        return given.data_ptr()
    if given is None:
        return 0
    return (given.table if isinstance(given, Pointers) else given).buffer_info()[0]


class Program:
    """Calls of the library that were recorded, to be done again on the same memory: all of them as one call.

    Attributes:
        threads: that it is done by.
        names: of the function that each step calls.
        times: when each step was done the last time, in nanoseconds since 1970.
        checks: ids that are looked at before each time; what `check` takes.
        draws: numbers that are drawn anew before each time, and where from.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.times = array("q")
        self.checks: list[tuple[str, Tensor, int, int]] = []
        self.draws: list[tuple[Tensor, torch.Generator]] = []
        self.threads = thread_count()
        self._calls = array("q")
        self._kept: list[object] = []

    def add(self, name: str, calls: Sequence[tuple[_Argument, ...]]) -> None:
        """Add a step; takes what `run` takes."""
        self.names.append(name)
        self.times.append(0)
        for arguments in calls:
            self._calls.extend(_call(name, arguments))
            given = [a.untyped_storage() if isinstance(a, Tensor) else a for a in arguments]
            self._kept.extend(a for a in given if a is not None and not isinstance(a, int))
        idle = self.threads - len(calls)
        self._calls.extend([0] * ((1 + _ARGUMENTS) * idle))

    def __call__(self) -> None:
        """Do it again.

        Raises:
            IndexError: an id is not within the vocabulary.
        """
        for given in self.checks:
            check(*given)
        for numbers, generator in self.draws:
            numbers.random_(generator=generator)
        _replay(self._calls, len(self.names), self.threads, self.times)


class _Own(threading.local):
    """What each of Python's threads has of its own, as it has PyTorch's number of threads.

    Attributes:
        program: where its calls go, if there is such a place, instead of being made.
        taken: how many threads `one_thread_for_pytorch` has taken from PyTorch; zero outside of it.
    """

    program: Program | None = None
    taken = 0


_own = _Own()


@contextlib.contextmanager
def recorded() -> Iterator[Program]:
    """A program of the calls that this thread makes within.

    They are not made yet, and what they would make is not there.
    """
    assert _own.program is None
    _own.program = program = Program()
    try:
        yield program
    finally:
        _own.program = None


def check(what: str, ids: Tensor, least: int, V: int) -> None:
    """See that ids are within the vocabulary: the kernel reads memory at these places, and trusts that it may.

    Where calls are recorded, they are looked at before each time that those are made again, too.

    Args:
        what: to call one of them.
        ids: int64, without gaps.
        least: that they may be.
        V: what they are to be below.

    Raises:
        IndexError: one is not.
    """
    if not function("within", "npnn", gives=True)(ids.numel(), ids.data_ptr(), least, V):
        raise IndexError(f"{what} is not within the vocabulary of {V}")
    if _own.program is not None:
        _own.program.checks.append((what, ids, least, V))


def shares(total: int, simple: int | None = None) -> list[tuple[int, int]]:
    """The range of `total` cut into one for each thread, as evenly as can be; none is empty.

    Args:
        total: how many rows, or what else there is to do.
        simple: how many numbers there are to do something simple with; where they are few, one thread does it all.
    """
    program = _own.program
    threads, few = (thread_count(), _FEW) if program is None else (program.threads, _VERY_FEW)
    threads = threads if simple is None or simple > few else 1
    bounds = [total * i // threads for i in range(threads + 1)]
    return [(begin, end) for begin, end in itertools.pairwise(bounds) if begin < end]


def thread_count() -> int:
    """How many threads the kernel uses: as many as PyTorch was told to."""
    return min(_own.taken or torch.get_num_threads(), _MOST_THREADS)


@contextlib.contextmanager
def one_thread_for_pytorch() -> Iterator[None]:
    """Within it PyTorch's own operations run on the calling thread, the kernel on as many as before.

    A thread of PyTorch's that has done its part of an operation turns in circles for some milliseconds, to
    be there for the next one; meanwhile it takes half a core from the kernel. The operations beside the kernel are
    too small to be worth that.
    """
    before = _own.taken, torch.get_num_threads()
    _own.taken = _own.taken or torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        _own.taken = before[0]
        torch.set_num_threads(before[1])


def _replay(calls: array[int], steps: int, threads: int, times: array[int] | None = None) -> None:
    if threads - 1 > _lent:
        _lend(threads - 1)
    there = None if times is None else times.buffer_info()[0]
    function("replay", "pnnp")(calls.buffer_info()[0], steps, threads, there)


# How many threads the library has been lent, and who may lend it more.
_lent, _lending = 0, threading.Lock()


def _lend(threads: int) -> None:
    """Lend the library so many, for good; they wait in it, and wait for no lock of Python's."""
    global _lent
    with _lending:
        while _lent < threads:
            serve, number = function("serve", "n"), _lent + 1
            thread = threading.Thread(target=serve, args=(number,), name=f"grimmgen-{number}", daemon=True)
            # Before it starts, as two threads of one number would do the same work side by side.
            _lent = number
            try:
                thread.start()
            except RuntimeError:
                _lent = number - 1
                raise


def _forked() -> None:
    """A forked process has none of the threads."""
    global _lent, _lending
    _lent, _lending = 0, threading.Lock()
    if load()[0] is not None:
        function("forked", "")()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
