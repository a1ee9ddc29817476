"""The crash harness: a command is killed, or the operating system fails it, at each of its writes in turn.

`strace -e inject` does both from outside; there is no hook in the product. Only the main thread is traced: it
alone writes, and so its system calls come in the same order in every run.
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

# What can leave a mark on a disk.
WRITES = "openat,write,fsync,fdatasync,ftruncate,rename,renameat,renameat2,link,linkat,unlink,unlinkat"
WRITES += ",mkdir,mkdirat,rmdir"
KILL, ENOSPC, EIO, FULL = "killed", "ENOSPC once", "EIO once", "ENOSPC from then on"
FAULTS = (KILL, ENOSPC, EIO, FULL)
_PATIENCE = 60.0

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace cannot be had here")


class Call(NamedTuple):
    """One system call that touches a disk."""

    name: str
    number: int  # among those of its name, from 1
    line: str  # as strace writes it


class Ended(NamedTuple):
    """What a child has left."""

    code: int
    out: str
    err: str
    peak: int  # bytes of memory
    trace: str


class Victim:
    """A process that runs commands, each in a child of its own; to be used in a `with`."""

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
        self._process.wait(_PATIENCE)
        self._process.stdout.close()

    def run(self, home: Path, *arguments: str, inject: Sequence[str] | None = None) -> Ended:
        """Run a command to its end; with `inject` (which may be empty) under strace."""
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
        """Let a command run beside the test."""
        assert self._process.stdin
        for name in ("out", "err"):
            # It may be killed before it opens them.
            (self._place / name).write_bytes(b"")
        order = {"arguments": arguments, "home": str(home), "place": str(self._place), "patient": patient}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        said: dict[str, Any] = {}
        for _ in range(1 + patient):
            said |= self._hear()
        self.pid = int(said["pid"])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command at work, if it is still."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, path: Path, times: int) -> None:
        """Wait until the command at work has put that many files there, one after the other, or has ended."""
        seen, last = 0, _written(path)
        while seen < times and self._works():
            time.sleep(0.0005)
            if (now := _written(path)) != last:
                seen, last = seen + 1, now

    def _works(self) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, 0)
            return True
        return False

    def end(self) -> Ended:
        """Wait for the command at work."""
        said = self._hear()
        out, err = ((self._place / name).read_text("utf-8") for name in ("out", "err"))
        return Ended(said["code"], out, err, said["peak"], "")

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout
        value: dict[str, Any] = json.loads(self._process.stdout.readline())
        return value


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def calls(trace: str, home: Path) -> list[Call]:
    """The system calls of a trace that write below `home`."""
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
    """What strace is to do at a call."""
    how = "signal=KILL" if fault == KILL else f"error={'EIO' if fault == EIO else 'ENOSPC'}"
    return f"{call.name}:{how}:when={call.number}{'+' if fault == FULL else ''}"


@dataclass(frozen=True)
class Scenario:
    """A command to be struck, and what has to hold afterwards.

    Attributes:
        template: the home directory before it.
        command: its arguments.
        recover: what its user does next: it raises where that fails.
        sound: checks that nothing partial stands under a final name.
        same: what has to be equal after an undisturbed command, and after a struck one and the recovery.
    """

    template: Path
    command: Sequence[str]
    recover: Callable[[Path], None]
    sound: Callable[[Path], None]
    same: Callable[[Path], object]


class Tally(NamedTuple):
    """What a campaign has gone through."""

    calls: int
    cases: int


def strike(victim: Victim, home: Path, scenario: Scenario, good: Sequence[str], every: int) -> Tally:
    """Strike a command at each of its writes, with each fault; or at every n-th of these cases.

    Args:
        victim: what runs the commands.
        home: where the template is copied to, each time anew.
        scenario: see there.
        good: files below the home, as glob patterns, that the command has no business with.
        every: n.
    """
    fresh(scenario.template, home)
    undisturbed = victim.run(home, *scenario.command, inject=[])
    assert undisturbed.code == 0, undisturbed.err
    wanted = scenario.same(home)
    points = calls(undisturbed.trace, home)
    cases = [(call, fault) for call in points for fault in FAULTS]
    # A stride that has no divisor in common with the faults takes each of them in turn.
    for call, fault in cases[::every]:
        fresh(scenario.template, home)
        before = contents(home, good)
        ended = victim.run(home, *scenario.command, inject=[injection(call, fault)])
        told = f"{call.line}: {fault}: exit {ended.code}: {ended.err}"
        if fault == KILL:
            assert ended.code == -signal.SIGKILL, told
            assert ended.trace.splitlines()[-1] == "+++ killed by SIGKILL +++", told
        else:
            assert "(INJECTED)" in ended.trace, told
            check_message(ended, told)
        assert contents(home, good) == before, told
        try:
            scenario.sound(home)
            scenario.recover(home)
        except Exception as error:
            raise AssertionError(told) from error
        assert contents(home, good) == before, told
        assert scenario.same(home) == wanted, told
        # What could not be removed goes with the next change.
        left = [] if call.name == "unlink" else list(home.rglob("*.tmp"))
        assert not left, (left, told)
    return Tally(len(points), len(cases[::every]))


def check_message(ended: Ended, told: str) -> None:
    """A fault that nobody needs to know of is survived in silence; any other is one line and exit code 1."""
    assert ended.code in {0, 1}, told
    # A disk that takes nothing more takes no message either, if that is a file on it.
    if ended.code == 1 and ended.err:
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, told
        assert re.search(r"\((No space left on device|Input/output error)\)", lines[0]), told
        assert "Traceback" not in ended.err, told


def fresh(template: Path, home: Path) -> None:
    """Put a home directory back to what it was."""
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(template, home, symlinks=True)


def contents(home: Path, patterns: Sequence[str]) -> dict[str, bytes]:
    """The files that match."""
    found = [path for pattern in patterns for path in home.glob(pattern) if path.is_file()]
    return {str(path.relative_to(home)): path.read_bytes() for path in found}
