"""Recorded programs of kernel calls: their threads, their memory, and what they compute."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grimmgen.network.backends.cpu import library, program
from grimmgen.network.backends.cpu.backend import CPUBackend
from grimmgen.network.backends.cpu.program import Program, plan

AVAILABLE = {name: found for name, found in library.instruction_sets().items() if found.word == 1}
FIRST = next(iter(AVAILABLE), "none")
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=f"there is no compiled library: {library.load()[1]}")


@pytest.fixture(autouse=True)
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def backend_of(instructions: str = FIRST) -> CPUBackend:
    return CPUBackend(AVAILABLE[instructions])


class Chain:
    """A program whose steps each need what all threads did in the step before: the rows of a matrix rotate.

    Args:
        rows: of the matrix; each thread moves some of them.
        steps: rotations.
    """

    def __init__(self, rows: int, steps: int) -> None:
        backend, copy = backend_of(), AVAILABLE[FIRST].kernels["copy"]
        self.first, self.last, self.steps = torch.empty(rows, 3), torch.empty(rows, 3), steps
        with backend.recording() as self.program:
            before = self.first
            for step in range(steps):
                after = self.last if step == steps - 1 else self.program.empty(rows, 3)
                # One row up: each thread takes one row from its neighbour.
                ranges = [(begin, min(end, rows - 1)) for begin, end in program.ranges(rows, self.program.threads)]
                self.program.add(copy, [3, before[1:], 3, 1, after, 3], ranges)
                backend.copy(before[:1], after[-1:])
                before = after
        self.program.finish()

    def check(self) -> None:
        self.program()
        assert torch.equal(self.last, self.first.roll(-self.steps, 0))


# --- threads -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_no_thread_begins_a_step_before_all_end_the_last(threads: int) -> None:
    torch.set_num_threads(threads)
    chain = Chain(29, 60)
    for number in range(200):
        chain.first.normal_()
        if number % 50 == 0:
            time.sleep(0.01)  # The threads go to sleep, and have to be woken.
        chain.check()


def test_programs_of_different_thread_counts_alternate() -> None:
    chains = []
    for threads in (4, 1, 7, 2):
        torch.set_num_threads(threads)
        chains.append(Chain(20, 9))
    for _ in range(300):
        for chain in chains:
            chain.first.normal_()
            chain.check()


def test_program_keeps_its_number_of_threads() -> None:
    torch.set_num_threads(2)
    backend, a, c = backend_of(), torch.ones(300, 50), torch.empty(300, 50)
    with backend.recording() as recorded:
        torch.set_num_threads(3)
        b = backend.add(a, a)
        torch.set_num_threads(1)
        backend.copy(backend.add(a, b), c)
    recorded.finish()
    recorded()
    assert recorded.threads == 2
    assert torch.equal(c, torch.full((300, 50), 3.0))


def test_threads_taken_from_pytorch_are_counted_per_thread() -> None:
    torch.set_num_threads(3)
    entered, leave, counts = threading.Event(), threading.Event(), []

    def work() -> None:
        with program.one_thread_for_pytorch():
            entered.set()
            leave.wait(10)
            counts.append(program.thread_count())

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait(10)
    with program.one_thread_for_pytorch():
        leave.set()
        worker.join()
        assert program.thread_count() == 3
    assert program.thread_count() == torch.get_num_threads() == 3
    assert len(counts) == 1


def test_program_notes_when_each_step_ended() -> None:
    torch.set_num_threads(2)
    chain = Chain(10, 5)
    began = time.time_ns()
    chain.program()
    times = list(chain.program.times)
    assert len(times) == len(chain.program.names) == 10
    assert times == sorted(times)
    # Python's clock may be a little coarser than the library's.
    assert began - 10**8 < times[0] <= times[-1] < time.time_ns() + 10**8


def test_programs_run_at_the_same_time() -> None:
    """The first one has the worker threads; the others run on the threads that called them."""
    torch.set_num_threads(3)
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            chain = Chain(25, 30)
            for _ in range(200):
                chain.first.uniform_(generator=torch.Generator().manual_seed(number))
                chain.check()
        except AssertionError as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(3)
    chain = Chain(29, 60)
    chain.program()
    if not (child := os.fork()):
        chain.first.fill_(2.0)
        chain.program()
        os._exit(0 if torch.equal(chain.last, chain.first) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    chain.first.normal_()
    chain.check()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    prelude = f"""
import threading, torch
from grimmgen.errors import GrimmgenError
from grimmgen.network.backends.cpu import library, program
from grimmgen.network.backends.cpu.backend import CPUBackend
backend = CPUBackend(library.instruction_sets()[{FIRST!r}])
torch.set_num_threads(4)
"""
    return subprocess.run(
        [sys.executable, "-c", prelude + code], capture_output=True, text=True, timeout=60, check=True
    )


def test_thread_that_cannot_be_started_is_an_error() -> None:
    done = run_python("""
start = threading.Thread.start
def failing(self):
    raise RuntimeError("can't start new thread")
threading.Thread.start = failing
try:
    backend.dropout_mask((4, 2**18), 0.5, torch.tensor(1))
except GrimmgenError as error:
    print(error.what, program._workers)
threading.Thread.start = start
mask = backend.dropout_mask((4, 2**18), 0.5, torch.tensor(1))
print(mask.unique().tolist(), program._workers)""")
    # Nor do the threads, which wait for the next program by now, delay the exit.
    assert (done.stdout, done.stderr) == ("cannot start thread 2 of 4 0\n[0.0, 2.0] 3\n", "")


# --- recording ---------------------------------------------------------------------------------------------------

OPERATIONS: dict[str, Callable[[CPUBackend, Tensor, Tensor], Tensor]] = {
    "add": lambda backend, a, b: backend.add(a, b),
    "add transposed": lambda backend, a, _: backend.add(a[0, :, :3], a[0, :, :3].t()),
    "multiply": lambda backend, a, b: backend.multiply(a, b),
    "multiply by one row": lambda backend, a, b: backend.multiply(a, b[:1]),
    "stack": lambda backend, a, b: backend.stack([a, b]),
    "linear": lambda backend, a, b: backend.linear(a[0], b[1].t(), b[0, 0, :3]),
    "linear backward": lambda backend, a, b: backend.stack(
        backend.linear_backward(a[0], b[1].t(), a[1, :, :3])[:1]
    ),
    "lookup": lambda backend, a, _: backend.lookup(a[0], torch.tensor([2, 0, 2])),
    "lookup backward": lambda backend, a, _: backend.lookup_backward(torch.tensor([[1, 0, 1]] * 2), a, 4),
    "chain": lambda backend, a, b: backend.multiply(backend.add(a, b), backend.add(b, b)),
    "part": lambda backend, a, b: backend.add(a[1:, 2:], b[1:, 2:]),
    "mask": lambda backend, a, _: backend.multiply(a, backend.dropout_mask((2, 3, 5), 0.3, torch.tensor(4))),
    "loss": lambda backend, a, b: backend.cross_entropy(a[0], b[0].t(), b[1, 0, :3], torch.tensor([2, -1, 0]))[0],
}


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("instructions", AVAILABLE)
@pytest.mark.parametrize("name", OPERATIONS)
def test_recorded_operation_computes_what_it_would(name: str, instructions: str, threads: int) -> None:
    torch.set_num_threads(threads)
    backend, (a, b) = backend_of(instructions), torch.randn(2, 2, 3, 5, generator=torch.Generator().manual_seed(0))
    with backend.recording() as recorded:
        made = OPERATIONS[name](backend, a, b)
    recorded.finish([made])
    for _ in range(2):
        made.fill_(float("nan"))
        recorded()
        assert torch.equal(made, OPERATIONS[name](backend, a, b))
        a.add_(1.0)


def test_recording_computes_nothing() -> None:
    backend, a, b = backend_of(), torch.ones(3, 4), torch.full((3, 4), 7.0)
    with backend.recording() as recorded:
        backend.copy(backend.multiply(a, a), b)
    recorded.finish()
    assert recorded.names == ["multiply", "copy"]
    assert torch.equal(b, torch.full((3, 4), 7.0))
    for value in (1.0, 3.0):
        a.fill_(value)
        recorded()
        assert torch.equal(b, torch.full((3, 4), value**2))


def test_recording_ends_with_an_error_inside_it() -> None:
    backend = backend_of()
    with pytest.raises(AssertionError), backend.recording():
        backend.add(torch.ones(2), torch.ones(3))
    assert torch.equal(backend.add(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))


def test_program_keeps_its_tensors_alive() -> None:
    backend, target = backend_of(), torch.empty(1000)
    with backend.recording() as recorded:
        backend.copy(backend.add(torch.full((1000,), 2.0), torch.full((1000,), 3.0)), target)
    recorded.finish()
    others = [torch.full((1000,), -1.0) for _ in range(100)]
    recorded()
    assert torch.equal(target, torch.full((1000,), 5.0))
    assert all((other == -1).all() for other in others)


def test_ids_are_checked_before_each_run() -> None:
    ids, target = torch.zeros(3, dtype=torch.int64), torch.zeros(2)
    recorded = Program()
    recorded.check("an id", ids, 0, 5)
    recorded.add(AVAILABLE[FIRST].kernels["copy"], [2, torch.ones(2), 2, 1, target, 2], [(0, 1)])
    recorded.finish()
    for wrong in (-1, 5, 2**40):
        ids[1] = wrong
        with pytest.raises(IndexError, match="an id is not within the vocabulary of 5"):
            recorded()
        assert not target.any()
    ids[1] = 4
    recorded()
    assert target.all()


# --- the memory plan ---------------------------------------------------------------------------------------------

LIFETIMES = st.tuples(st.integers(0, 2000), st.integers(0, 20), st.integers(0, 8)).map(
    lambda b: (b[0], b[1], b[1] + b[2])
)


@given(st.lists(LIFETIMES, max_size=30))
def test_planned_buffers_in_use_do_not_overlap(buffers: list[tuple[int, int, int]]) -> None:
    offsets, size = plan(buffers)
    placed = [(o, o + b[0], *b[1:]) for o, b in zip(offsets, buffers, strict=True)]
    assert all(offset >= 0 and offset % 64 == 0 and end <= size for offset, end, _, _ in placed)
    for k, (begin, end, first, last) in enumerate(placed):
        for other_begin, other_end, other_first, other_last in placed[:k]:
            together = first <= other_last and other_first <= last
            assert not together or end <= other_begin or other_end <= begin
    # Never more than all side by side, never less than the most that is in use at one step.
    rounded = [(-(-nbytes // 64) * 64, first, last) for nbytes, first, last in buffers]
    in_use = [sum(n for n, first, last in rounded if first <= step <= last) for step in range(30)]
    assert max(in_use) <= size <= sum(nbytes for nbytes, _, _ in rounded)


def test_results_share_memory_with_nothing() -> None:
    backend, a = backend_of(), torch.ones(100)
    with backend.recording() as recorded:
        result = backend.add(a, a)
        last = result
        for _ in range(5):
            last = backend.add(last, a)
    recorded.finish([result, last])
    recorded()
    assert torch.equal(result, torch.full((100,), 2.0))
    assert torch.equal(last, torch.full((100,), 7.0))
    # Of the four between them two are in use at the same time.
    assert recorded.scratch_bytes == 2 * 448
