"""Make the screenshots of docs: a terminal during training and evaluation, and texts by a unit's state.

    python docs/picture.py training
    python docs/picture.py evaluation --run quiet-donkey --text story.txt
    python docs/picture.py evaluation --run quiet-donkey --text story.txt --columns 40
    python docs/picture.py unit --run tales --unit 130 --text story.txt

Runs the program in tmux, captures the screen after some seconds, and renders it with Rich.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

GENERATE = ["grimmgen", "generate", "the king", "--length", "430", "--random-seed", "3"]
TRAIN = ["grimmgen", "train", "--corpus", "sampler", "--preset", "auto", "--budget", "90s"]


def screen(commands: Sequence[Sequence[str]], columns: int, lines: int, seconds: float, home: str) -> str:
    """Run commands in a terminal, and return its screen after some seconds, with colour codes."""
    tmux = ["tmux", "-L", f"picture-{os.getpid()}"]
    program = shlex.quote(str(Path(sys.executable).with_name("grimmgen")))
    prompts = [f"printf '$ %s\\n' {shlex.quote(shlex.join(command))}" for command in commands]
    runs = [f"{program} {shlex.join(command[1:])}" for command in commands]
    shell = "; ".join(f"{prompt}; {run}" for prompt, run in zip(prompts, runs, strict=True))
    environment = ["-e", f"GRIMMGEN_HOME={home}", "-e", "COLORTERM=truecolor"]
    size = ["-x", str(columns), "-y", str(lines)]
    subprocess.run([*tmux, "new-session", "-d", *size, *environment, f"{shell}; sleep 60"], check=True)
    try:
        time.sleep(seconds)
        captured = subprocess.run([*tmux, "capture-pane", "-p", "-e"], check=True, capture_output=True, text=True)
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
    return captured.stdout.rstrip("\n")


def draw(shown: str, columns: int, name: str) -> None:
    """Write a screen as an SVG file beside this file."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=columns, force_terminal=True, color_system="truecolor")
        console.print(Text.from_ansi(shown))
        Path(__file__).with_name(name).write_text(console.export_svg(title="grimmgen"), encoding="utf-8")


def main() -> None:
    """Make one screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["training", "evaluation", "unit"])
    parser.add_argument("--run", help="for evaluation and unit: the run")
    parser.add_argument(
        "--text", type=Path, help="for evaluation and unit: the text that is coloured, a few lines"
    )
    parser.add_argument("--unit", help="for unit: the unit")
    parser.add_argument("--columns", type=int, default=80)
    options = parser.parse_args()
    if options.which == "training":
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:  # the run is still being saved
            draw(screen([GENERATE, TRAIN], 92, 36, 11, home), 92, "training.svg")
        return
    if options.run is None or options.text is None:
        parser.error(f"{options.which} needs --run and --text")
    os.chdir(options.text.parent)
    home = os.environ.get("GRIMMGEN_HOME", "")
    if options.which == "unit":
        command = ["grimmgen", "eval", "--run", options.run, "--unit", options.unit, options.text.name]
        draw(screen([command], options.columns, 18, 10, home), options.columns, f"unit-{options.unit}.svg")
        return
    commands = [
        ["grimmgen", "runs", "show", options.run],
        ["grimmgen", "eval", "--run", options.run, "--heatmap", options.text.name],
    ]
    shown = screen(commands, options.columns, 36, 10, home)
    suffix = "" if options.columns == 80 else f"-{options.columns}"
    draw(shown, options.columns, f"evaluation{suffix}.svg")


if __name__ == "__main__":
    main()
