"""Make docs/training.svg: what a terminal shows while `grimmgen train` is at work.

    python docs/picture.py

The real program runs in a tmux of 92 × 26; its screen is read as it stands after some seconds and drawn by Rich.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS, LINES, SECONDS = 92, 22, 16
COMMAND = ["grimmgen", "train", "--corpus", "sampler", "--batch-size", "16", "--lr", "0.003", "--budget", "40s"]


def screen() -> str:
    """The screen of a terminal in which the command has been at work for a while, with its colours."""
    with tempfile.TemporaryDirectory() as home:
        tmux = ["tmux", "-L", f"picture-{os.getpid()}"]
        program = shlex.join([str(Path(sys.executable).with_name("grimmgen")), *COMMAND[1:]])
        shell = f"printf '$ {shlex.join(COMMAND)}\\n'; {program}; sleep 60"
        environment = ["-e", f"GRIMMGEN_HOME={home}"]
        size = ["-x", str(COLUMNS), "-y", str(LINES)]
        subprocess.run([*tmux, "new-session", "-d", *size, *environment, shell], check=True)
        try:
            time.sleep(SECONDS)
            shown = subprocess.run([*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True)
        finally:
            subprocess.run([*tmux, "kill-server"], check=True)
    return shown.stdout.rstrip("\n")


def main() -> None:
    """Draw it."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=COLUMNS, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(screen()))
        Path(__file__).with_name("training.svg").write_text(console.export_svg(title="grimmgen"), encoding="utf-8")


if __name__ == "__main__":
    main()
