"""Write grimmgen.bash, _grimmgen and grimmgen.fish beside this file: Typer's completion scripts of the program.

With --check nothing is written: exit 1 if one of them is stale.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FILES = {"bash": "grimmgen.bash", "zsh": "_grimmgen", "fish": "grimmgen.fish"}

_REGISTER = "compdef _grimmgen_completion grimmgen"
# Typer's script only registers its function. From a directory of $fpath, zsh loads the script during the first
# completion, where it has to complete as well.
_REGISTER_OR_ANSWER = f"""\
if (( $+compstate )); then
  _grimmgen_completion "$@"
else
  {_REGISTER}
fi"""


def script(shell: str) -> str:
    """The completion script for a shell."""
    source = subprocess.run(
        [sys.executable, "-m", "grimmgen"],
        env={**os.environ, "_GRIMMGEN_COMPLETE": f"source_{shell}"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if shell == "zsh":
        assert source.count(_REGISTER) == 1
        source = source.replace(_REGISTER, _REGISTER_OR_ANSWER)
    return source + "\n"


def main() -> int:
    """Write the stale scripts, or with --check only report them."""
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
