"""Write tutorial.ipynb beside this file: the page tutorial.md as a notebook, with the code that the page includes.

With --check nothing is written: exit 1 if the notebook is stale.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
_INCLUDED = re.compile(r"```\{literalinclude\} (\S+)\n:pyobject: (\S+)\n(?::dedent:\n)?```")
_CELL = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def source_of(path: Path, name: str) -> str:
    """The lines of a function or a method of a module.

    Args:
        path: of the module.
        name: as in `forward` or `LanguageModel.initialise`.

    Raises:
        LookupError: the module has no such function.
    """
    source = path.read_text(encoding="utf-8")
    nodes: list[ast.stmt] = ast.parse(source).body
    for part in name.split("."):
        found = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == part]
        if not found:
            raise LookupError(f"{path} has no {name}")
        nodes = found[0].body
    lines = source.splitlines()[found[0].lineno - 1 : found[0].end_lineno]
    indentation = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line[indentation:] for line in lines)


def render() -> str:
    """The contents of tutorial.ipynb."""
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    parts = _CELL.split(page)  # text, code, text, …
    cells: list[dict[str, Any]] = []
    for number, part in enumerate(parts):
        code = bool(number % 2)
        text = part if code else _INCLUDED.sub(_included, part)
        cell: dict[str, Any] = {
            "cell_type": "code" if code else "markdown",
            "id": f"cell-{number}",
            "metadata": {},
            "source": text.strip().splitlines(keepends=True),
        }
        if code:
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(notebook, ensure_ascii=False, indent=1, sort_keys=True) + "\n"


def _included(found: re.Match[str]) -> str:
    return f"```python\n{source_of(DOCS / found[1], found[2])}\n```"


def main() -> int:
    """Write tutorial.ipynb if it is stale, or with --check only report that."""
    path, wanted = DOCS / "tutorial.ipynb", render()
    if path.exists() and path.read_text(encoding="utf-8") == wanted:
        return 0
    if "--check" in sys.argv[1:]:
        sys.stderr.write("docs/tutorial.ipynb is stale: run `python docs/notebook.py`\n")
        return 1
    path.write_text(wanted, encoding="utf-8")
    sys.stdout.write("wrote docs/tutorial.ipynb\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
