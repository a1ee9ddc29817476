"""A grimmgen that is imported once and run many times: each command in a child of its own that can be killed.

    python -m tests.faults.victim grimmgen.training.session

Reads one JSON object a line, `{"arguments", "home", "place", "patient"}`; answers with `{"pid"}` and, when the
child has ended, with `{"code", "peak"}`: its exit code (or minus its signal) and its largest memory in bytes. What
it writes goes to `out` and `err` in the place. A patient child waits for SIGUSR1, so that strace can come before.
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
    for name in ("grimmgen.cli", *sys.argv[1:]):
        importlib.import_module(name)
    # Every update is saved, so that a run of few updates has many writes.
    if "grimmgen.training.session" in sys.modules:
        vars(sys.modules["grimmgen.training.session"])["SAVE_SECONDS"] = 0.0
    # A server that stalls is given up soon, and is not waited for.
    if downloads := sys.modules.get("grimmgen.io.http"):
        downloads.Downloader.__init__.__defaults__ = (8, 4 << 20, 1.0, 2.0, _no_wait)
        vars(downloads)["ATTEMPTS"] = rounds(2, 5)
    for line in sys.stdin:
        _one(json.loads(line))


def _one(order: dict[str, Any]) -> None:
    child = os.fork()
    if not child:
        _become(order)
    _say({"pid": child})
    _, status, usage = os.wait4(child, 0)
    _say({"code": os.waitstatus_to_exitcode(status), "peak": usage.ru_maxrss * 1024})


def _become(order: dict[str, Any]) -> None:
    place = Path(order["place"])
    os.environ["GRIMMGEN_HOME"] = order["home"]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if order["patient"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        _say({})
        signal.sigwait({signal.SIGUSR1})
    sys.argv = ["grimmgen", *order["arguments"]]
    code: Any = 70
    try:
        sys.modules["grimmgen.cli"].main()
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        # What the interpreter would do with what escapes.
        sys.excepthook(*sys.exc_info())
        code = 1
    finally:
        try:
            sys.stdout.flush()
        finally:
            os._exit(code)


def _no_wait(_: float) -> None:
    pass


def _say(value: dict[str, Any]) -> None:
    os.write(_VOICE, json.dumps(value).encode() + b"\n")


_VOICE = os.dup(1)

if __name__ == "__main__":
    main()
