"""Run the program as users do: in a pipe, on a terminal, and with signals."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

PROGRAM = [sys.executable, "-m", "grimmgen"]
_PATIENCE = 60.0
# Runs the command that follows with its terminal as the controlling one, so that Ctrl-C is a signal.
_CONTROLLED = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Ran(NamedTuple):
    """The exit code and the outputs of a program."""

    code: int
    out: str
    err: str


def use_home(patch: pytest.MonkeyPatch, directory: Path) -> None:
    """Keep grimmgen's files in a directory, and train the tutorial's network where no preset is given."""
    patch.setenv("GRIMMGEN_HOME", str(directory))
    # What `auto` chooses depends on the speed of the machine.
    patch.setenv("GRIMMGEN_TRAIN_PRESET", "tutorial")


def grimmgen(*arguments: str, stdin: bytes = b"", variables: Mapping[str, str] | None = None) -> Ran:
    """Run it in a separate process, with its streams in pipes and these variables in its environment."""
    ran = subprocess.run(
        [*PROGRAM, *arguments],
        input=stdin,
        capture_output=True,
        env={**os.environ, **(variables or {})},
        timeout=_PATIENCE,
        check=False,
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def begin(*arguments: str) -> subprocess.Popen[bytes]:
    """Start it in a separate process, with its outputs in pipes."""
    return subprocess.Popen(
        [*PROGRAM, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def shell(command: str) -> Ran:
    """Run a line of bash, in which `grimmgen` is the program, with the option pipefail."""
    function = f'grimmgen() {{ "{PROGRAM[0]}" -m grimmgen "$@"; }}; set -o pipefail; '
    ran = subprocess.run(
        ["bash", "-c", function + command], capture_output=True, timeout=_PATIENCE, check=False, cwd=Path.cwd()
    )
    return Ran(ran.returncode, ran.stdout.decode(), ran.stderr.decode())


def on_terminal(
    *command: str, typed: Sequence[tuple[bytes, bytes]] = (), insists: bool = False, columns: int = 80
) -> Ran:
    """Run a command with all its streams on a terminal; `out` is what the terminal shows.

    Args:
        command: the program and its arguments.
        typed: pairs of a text to wait for, in the output since the last keys, and the keys to press then.
        insists: press the last keys again while there is no output: Python ignores a Ctrl-C just before it starts
            to read a line.
        columns: the terminal's width.
    """
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", _CONTROLLED, *command],
        stdin=its,
        stdout=its,
        stderr=its,
        env=environment,
        start_new_session=True,
    )
    os.close(its)
    began = time.monotonic()
    shown, seen, waiting, pressed = b"", 0, list(typed), b""
    try:
        while True:
            if waiting and waiting[0][0] in shown[seen:]:
                _, pressed = waiting.pop(0)
                os.write(ours, pressed)
                seen = len(shown)
            elif not select.select([ours], [], [], 2.0)[0]:
                assert time.monotonic() < began + _PATIENCE, shown
                if insists and not waiting:
                    os.write(ours, pressed)
            else:
                shown += os.read(ours, 1 << 16)
    except OSError:
        pass  # Linux: the last process has closed the terminal.
    finally:
        os.close(ours)
    return Ran(process.wait(_PATIENCE), shown.decode().replace("\r\n", "\n"), "")
