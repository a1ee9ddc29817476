"""Programs of the compiled kernel's calls, and the threads that they are done by."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from grimmgen.network.backends.cpu import library, native, programs

INSTRUCTIONS = next(iter(library.instruction_sets()), "none")
pytestmark = pytest.mark.skipif(INSTRUCTIONS == "none", reason=f"there is no compiled kernel: {library.load()[1]}")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Chain:
    """A program whose steps each need what all threads did in the one before: the rows of a matrix go round.

    Args:
        rows: of the matrix; each thread moves some of them.
        steps: how often.
    """

    def __init__(self, rows: int, steps: int) -> None:
        self.first = torch.empty(rows, 3)
        with programs.recorded() as self.program:
            before = self.first
            for _ in range(steps):
                after = torch.empty_like(before)
                # One row up, each thread the rows that are its own: it takes one from its neighbour.
                calls = [
                    (3, before[1:], 3, 1, after, 3, begin, min(end, rows - 1))
                    for begin, end in programs.shares(rows)
                ]
                programs.run(f"copy_{INSTRUCTIONS}", calls)
                native.copy(INSTRUCTIONS, before[:1], after[-1:])
                before = after
        self.last, self.steps = before, steps

    def right(self) -> Tensor:
        return self.first.roll(-self.steps, 0)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_no_thread_begins_a_step_before_all_have_done_the_last(count: int) -> None:
    torch.set_num_threads(count)
    chain = Chain(29, 60)
    for number in range(200):
        chain.first.normal_()
        if number % 50 == 0:
            time.sleep(0.01)  # They sleep, and are to be woken.
        chain.program()
        assert torch.equal(chain.last, chain.right())


def test_programs_of_many_threads_and_of_few_go_in_turn() -> None:
    chains = []
    for count in (4, 1, 7, 2):
        torch.set_num_threads(count)
        chains.append(Chain(20, 9))
    for _ in range(300):
        for chain in chains:
            chain.first.normal_()
            chain.program()
            assert torch.equal(chain.last, chain.right())


def test_a_program_keeps_the_threads_that_it_began_with() -> None:
    torch.set_num_threads(2)
    a, b, c = torch.ones(300, 50), torch.empty(300, 50), torch.empty(300, 50)
    with programs.recorded() as program:
        torch.set_num_threads(3)
        native.add(INSTRUCTIONS, a, a, b)
        torch.set_num_threads(1)
        native.add(INSTRUCTIONS, a, b, c)
    program()
    assert program.threads == 2
    assert torch.equal(c, torch.full((300, 50), 3.0))


def test_what_is_taken_from_pytorch_is_each_threads_own() -> None:
    torch.set_num_threads(3)
    entered, leave, counts = threading.Event(), threading.Event(), []

    def work() -> None:
        with programs.one_thread_for_pytorch():
            entered.set()
            leave.wait(10)
            counts.append(programs.thread_count())

    worker = threading.Thread(target=work)
    worker.start()
    entered.wait(10)
    with programs.one_thread_for_pytorch():
        leave.set()
        worker.join()
        assert programs.thread_count() == 3
    assert programs.thread_count() == torch.get_num_threads() == 3
    assert len(counts) == 1


def test_the_time_of_each_step_is_noted() -> None:
    torch.set_num_threads(2)
    chain = Chain(10, 5)
    began = time.time_ns()
    chain.program()
    times = list(chain.program.times)
    assert len(times) == len(chain.program.names) == 10
    assert times == sorted(times)
    # The clock of the library is that of Python, which may be a little coarser.
    assert began - 10**8 < times[0] <= times[-1] < time.time_ns() + 10**8


def test_programs_begun_at_the_same_time_are_all_done_right() -> None:
    """By the threads of the first to come; whoever comes meanwhile does all of it alone."""
    torch.set_num_threads(3)
    wrong: list[int] = []

    def work(number: int) -> None:
        chain = Chain(25, 30)
        for _ in range(200):
            chain.first.uniform_(generator=torch.Generator().manual_seed(number))
            chain.program()
            if not torch.equal(chain.last, chain.right()):
                wrong.append(number)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(5)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


def test_what_one_thread_of_pythons_records_another_computes_as_ever() -> None:
    made = torch.empty(2, 3)
    with programs.recorded() as program:
        worker = threading.Thread(target=native.copy, args=(INSTRUCTIONS, torch.ones(2, 3), made))
        worker.start()
        worker.join()
    assert not program.names
    assert torch.equal(made, torch.ones(2, 3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own() -> None:
    torch.set_num_threads(3)
    chain = Chain(29, 60)
    chain.program()
    if not (child := os.fork()):
        chain.first.fill_(2.0)
        chain.program()
        os._exit(0 if torch.equal(chain.last, chain.first) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    chain.first.normal_()
    chain.program()
    assert torch.equal(chain.last, chain.right())


def test_threads_that_wait_hold_up_no_exit() -> None:
    code = """if True:
        import torch
        from grimmgen.network.backends.cpu import native
        torch.set_num_threads(4)
        for number in range(3):
            native.dropout_mask(INSTRUCTIONS, (4, 2**18), 0.5, torch.Generator())
        print("done")"""
    code = code.replace("INSTRUCTIONS", repr(INSTRUCTIONS))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_call_with_too_few_arguments_is_not_made() -> None:
    with pytest.raises(AssertionError):
        programs.run(f"add_{INSTRUCTIONS}", [(torch.ones(3), torch.ones(3), 0, 3)])
