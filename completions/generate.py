"""Write grimmgen.bash, _grimmgen and grimmgen.fish beside this file, from what Typer makes of the program.

With --check nothing is written: exit 1 if one of them is stale.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = {"bash": "grimmgen.bash", "zsh": "_grimmgen", "fish": "grimmgen.fish"}

_REGISTER = "compdef _grimmgen_completion grimmgen"
# Typer's script registers itself when it is read. From a directory of $fpath zsh reads it when the first TAB
# is pressed, and would answer none but the next: within a completion, it has to answer at once.
_REGISTER_OR_ANSWER = f"""\
if (( $+compstate )); then
  _grimmgen_completion "$@"
else
  {_REGISTER}
fi"""


def script(shell: str) -> str:
    """What that shell has to read to complete grimmgen's command lines."""
    made = subprocess.run(
        [sys.executable, "-m", "grimmgen"],
        env={**os.environ, "_GRIMMGEN_COMPLETE": f"source_{shell}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if shell == "zsh":
        assert made.count(_REGISTER) == 1
        made = made.replace(_REGISTER, _REGISTER_OR_ANSWER)
    return made + "\n"


def main() -> int:
    """Write what is stale, or with --check only tell."""
    directory = Path(__file__).parent
    wanted = {directory / name: script(shell).encode() for shell, name in FILES.items()}
    stale = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    if "--check" in sys.argv[1:]:
        for path in stale:
            print(f"completions/{path.name} is stale: run `python completions/generate.py`", file=sys.stderr)
        return 1 if stale else 0
    for path in stale:
        path.write_bytes(wanted[path])
        print(f"wrote completions/{path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
