"""Import grimmgen once and run many commands, each in a child process that can be killed.

    python -m tests.faults.victim grimmgen.training.session

Reads one JSON object per line, `{"arguments", "home", "place", "patient"}`; answers with `{"pid"}` and, when the
child has ended, with `{"code", "peak"}`: its exit code (or minus its signal) and its peak memory in bytes. Its
output goes to the files `out` and `err` in the directory `place`. A patient child waits for SIGUSR1, so that
strace can be attached before.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.faults import rounds


def main() -> None:
    sys.dont_write_bytecode = True
    # A child that is the first to load an extension has one more system call than the others.
    for name in ("resource", "grimmgen.cli", *sys.argv[1:]):
        importlib.import_module(name)
    # Save after every update, so that a short run has many writes.
    if "grimmgen.training.session" in sys.modules:
        vars(sys.modules["grimmgen.training.session"])["SAVE_SECONDS"] = 0.0
    # Short timeouts for servers that stall.
    if downloads := sys.modules.get("grimmgen.io.http"):
        downloads.Downloader.__init__.__defaults__ = (8, 4 << 20, 1.0, 2.0, _no_wait, None)
        vars(downloads)["ATTEMPTS"] = rounds(2, 5)
    for line in sys.stdin:
        _run(json.loads(line))


def _run(order: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        _run_in_child(order)
    _write({"pid": child})
    _, status, usage = os.wait4(child, 0)
    _write({"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024})


def _run_in_child(order: dict[str, Any]) -> None:
    place = Path(order["place"])
    os.environ["GRIMMGEN_HOME"] = order["home"]
    # The options that `auto` chooses follow from a measured speed: two trainings would not be equal.
    os.environ["GRIMMGEN_TRAIN_PRESET"] = "tutorial"
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if order["patient"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        _write({})
        signal.sigwait({signal.SIGUSR1})
    sys.argv = ["grimmgen", *order["arguments"]]
    code: Any = 70
    try:
        sys.modules["grimmgen.cli"].main()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        # As the interpreter would.
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def _no_wait(_: float) -> None:
    pass


def _write(value: dict[str, Any]) -> None:
    os.write(_OUTPUT, json.dumps(value).encode() + b"\n")


_OUTPUT = os.dup(1)

if __name__ == "__main__":
    main()
