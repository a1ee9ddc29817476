"""Print what the program shows on terminals of several widths: a training, a story, a run, errors, and all help.

Usage: python docs/screens.py [COLUMNS …] (40 80 140 without). Needs tmux, which draws the screens. The runs are in a
temporary directory.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WIDTHS = 40, 80, 140
_LINES = 400
_TIMEOUT = 300.0
GROUPS = "", "fetch", "vocab", "train", "eval", "generate", "export", "runs"
HELPS = [
    f"{name} --help" for name in (*GROUPS, *(f"runs {one}" for one in ("list", "show", "plot", "path", "rm")))
]
SCREENS = [
    "train --corpus sampler --run sly-fox --hidden 64 --lr 0.01 --epochs 5",
    "generate 'the king' --random-seed 1",
    "runs list",
    "runs show",
    "train --preset quik",
    "generate --run slyfox",
    "train --corpus letters/*.txt",
    *HELPS,
]


def screen(command: str, columns: int, home: Path) -> str:
    """What a terminal of this width shows after a command of grimmgen."""
    socket, done = str(home / f"tmux-{time.monotonic_ns()}"), home / "done"
    done.unlink(missing_ok=True)
    program = f"{shlex.quote(sys.executable)} -m grimmgen {command}; echo $? > {shlex.quote(str(done))}; sleep 999"
    tmux = ["tmux", "-S", socket, "-f", os.devnull]
    size = ["-x", str(columns), "-y", str(_LINES)]
    environment = {**os.environ, "GRIMMGEN_HOME": str(home), "TERM": "xterm-256color"}
    subprocess.run([*tmux, "new-session", "-d", *size, program], check=True, env=environment)
    try:
        began = time.monotonic()
        while not done.exists() or not done.read_text():
            if time.monotonic() - began > _TIMEOUT:
                raise TimeoutError(command)
            time.sleep(0.1)
        time.sleep(0.2)  # until it is drawn
        shown = subprocess.run([*tmux, "capture-pane", "-p"], check=True, capture_output=True, text=True).stdout
    finally:
        subprocess.run([*tmux, "kill-server"], check=False)
    return shown.rstrip()


def main() -> None:
    """Print the screens."""
    for columns in map(int, sys.argv[1:] or WIDTHS):
        with tempfile.TemporaryDirectory() as directory:
            for command in SCREENS:
                print(
                    f"{'=' * columns}\n$ grimmgen {command}\n{screen(command, columns, Path(directory))}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
