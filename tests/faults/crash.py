"""The crash harness: kill a command, or let a system call fail, at each of its writes in turn.

`strace -e inject` does both from outside, without hooks in the product. Only the main thread is traced: no other
thread writes, so that the system calls come in the same order in every run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import pytest

# System calls that change a disk.
WRITES = "openat,write,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
WRITES += ",mkdir,mkdirat,rmdir"
KILL, ENOSPC, EIO, FULL = "killed", "ENOSPC once", "EIO once", "ENOSPC from then on"
FAULTS = (KILL, ENOSPC, EIO, FULL)
_TIMEOUT = 60.0

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


class Call(NamedTuple):
    """A system call that changes a disk."""

    name: str
    number: int  # among the calls of this name, from 1
    line: str  # as strace writes it


class Ended(NamedTuple):
    """The result of a command."""

    code: int
    out: str
    err: str
    peak: int  # memory, in bytes
    trace: str


class Victim:
    """A process that runs each command in a child process; a context manager."""

    def __init__(self, place: Path, *modules: str) -> None:
        self._place = place
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.victim", *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Victim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(_TIMEOUT)
        self._process.stdout.close()

    def run(self, home: Path, *arguments: str, inject: Sequence[str] | None = None) -> Ended:
        """Run a command; with `inject`, which may be empty, under strace."""
        self.begin(home, *arguments, patient=inject is not None)
        trace = self._place / "trace"
        if inject is not None:
            options = [f"--trace={WRITES}", *(f"--inject={fault}" for fault in inject)]
            with subprocess.Popen(
                ["strace", "-y", "-s", "0", *options, "-o", trace, "-p", str(self.pid)],
                stderr=subprocess.PIPE,
                text=True,
            ) as strace:
                assert strace.stderr
                attached = strace.stderr.readline()
                self.signal(signal.SIGUSR1)
                assert "attached" in attached, attached
                ended = self.end()
        else:
            ended = self.end()
        return ended._replace(trace=trace.read_text()) if inject is not None else ended

    def begin(self, home: Path, *arguments: str, patient: bool = False) -> None:
        """Start a command."""
        assert self._process.stdin
        for name in ("out", "err"):
            # The command may be killed before it opens these files.
            (self._place / name).write_bytes(b"")
        order = {"arguments": arguments, "home": str(home), "place": str(self._place), "patient": patient}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = {}
        for _ in range(1 + patient):
            answer |= self._answer()
        self.pid = int(answer["pid"])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command, if it still runs."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, path: Path, times: int) -> None:
        """Wait until the command has replaced a file so many times, or has ended."""
        seen, last = 0, _written(path)
        while seen < times and self._running():
            time.sleep(0.0005)
            if (now := _written(path)) != last:
                seen, last = seen + 1, now

    def _running(self) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def end(self) -> Ended:
        """Wait for the command to end."""
        answer = self._answer()
        out, err = ((self._place / name).read_text("utf-8") for name in ("out", "err"))
        return Ended(answer["code"], out, err, answer["peak"], "")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        value: dict[str, Any] = json.loads(self._process.stdout.readline())
        return value


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def calls(trace: str, home: Path) -> list[Call]:
    """Return the system calls of a trace that write below `home`."""
    found, numbers = [], Counter[str]()
    for line in trace.splitlines():
        if match := re.match(r"(\w+)\(", line):
            name = match[1]
            numbers[name] += 1
            reading = name == "openat" and not re.search("O_WRONLY|O_RDWR|O_CREAT", line)
            if str(home) in line and not reading:
                found.append(Call(name, numbers[name], line))
    return found


def injection(call: Call, fault: str) -> str:
    """Return strace's description of a fault at a call."""
    action = "signal=KILL" if fault == KILL else f"error={'EIO' if fault == EIO else 'ENOSPC'}"
    return f"{call.name}:{action}:when={call.number}{'+' if fault == FULL else ''}"


@dataclass(frozen=True)
class Scenario:
    """A command that is made to fail, and what has to hold afterwards.

    Attributes:
        template: the home directory before the command.
        command: arguments of the command.
        recover: does what a user would do next; raises an error if that fails.
        check: raises an error if an incomplete file has a final name.
        result: has to be equal after an undisturbed command, and after a failed one and the recovery.
    """

    template: Path
    command: Sequence[str]
    recover: Callable[[Path], None]
    check: Callable[[Path], None]
    result: Callable[[Path], object]


class Tally(NamedTuple):
    """The figures of a campaign."""

    calls: int
    cases: int


def fail_at_each_write(victim: Victim, home: Path, scenario: Scenario, good: Sequence[str], every: int) -> Tally:
    """Run a scenario with each fault at each write of the command, or every n-th of these cases.

    Args:
        victim: runs the commands.
        home: directory that the template is copied to for each case.
        scenario: the command.
        good: glob patterns of files below the home that must not change.
        every: n.
    """
    fresh(scenario.template, home)
    undisturbed = victim.run(home, *scenario.command, inject=[])
    assert undisturbed.code == 0, undisturbed.err
    expected = scenario.result(home)
    points = calls(undisturbed.trace, home)
    cases = [(call, fault) for call in points for fault in FAULTS]
    # A stride coprime to the number of faults takes each fault in turn.
    for call, fault in cases[::every]:
        fresh(scenario.template, home)
        before = contents(home, good)
        ended = victim.run(home, *scenario.command, inject=[injection(call, fault)])
        case = f"{call.line}: {fault}: exit {ended.code}: {ended.err}"
        if fault == KILL:
            assert ended.code == -signal.SIGKILL, case
            assert ended.trace.splitlines()[-1] == "+++ killed by SIGKILL +++", case
        else:
            assert "(INJECTED)" in ended.trace, case
            check_message(ended, case)
        assert contents(home, good) == before, case
        try:
            scenario.check(home)
            scenario.recover(home)
        except Exception as error:
            raise AssertionError(case) from error
        assert contents(home, good) == before, case
        assert scenario.result(home) == expected, case
        # A file that could not be removed is removed by the next change.
        left = [] if call.name == "unlink" else list(home.rglob("*.tmp"))
        assert not left, (left, case)
    return Tally(len(points), len(cases[::every]))


def check_message(ended: Ended, case: str) -> None:
    """Check that a fault had no effect, or was reported in one line with exit code 1."""
    assert ended.code in {0, 1}, case
    # On a full disk the file of standard error may be empty.
    if ended.code == 1 and ended.err:
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, case
        assert re.search(r"\((No space left on device|Input/output error)\)", lines[0]), case
        assert "Traceback" not in ended.err, case


def fresh(template: Path, home: Path) -> None:
    """Reset a home directory to a template."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(template, home, symlinks=True)


def contents(home: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """Return the contents of the files that match."""
    found = [path for pattern in patterns for path in home.glob(pattern) if path.is_file()]
    return {str(path.relative_to(home)): path.read_bytes() for path in found}
