"""The site: `python -m sphinx -W docs site` builds it from the pages of this directory (`pip install '.[docs]'`)."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# Pages that are files of the repository; those of docs name them for whoever reads them there.
FILES = {
    "benchmarks": "benchmarks/README.md",
    "changes": "CHANGELOG.md",
    "completions": "completions/README.md",
    "contributing": "CONTRIBUTING.md",
    "faults": "tests/README.md",
    "security": "SECURITY.md",
}
_LINK = re.compile(r"(\]\()(?!https?:|#)([^)#\s]+)")
sys.path.insert(0, str(ROOT))

project = "grimmgen"
html_title = "grimmgen"
author = "The grimmgen authors"
copyright = author  # noqa: A001 - Sphinx's name
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 3
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
default_role = "literal"  # of the docstrings, which have code in single backquotes
html_math_renderer = "mathml"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = True


def setup(app: Any) -> None:
    """Register what Sphinx and MyST do not have: formulas without JavaScript, and pages that are files elsewhere."""
    app.add_html_math_renderer("mathml", (_inline, None), (_display, None))
    app.connect("source-read", _read)


def _read(app: Any, name: str, source: list[str]) -> None:
    """Read a page: the file that it stands for, and links to such files as links to their pages."""
    path = ROOT / FILES[name] if name in FILES else DOCS / f"{name}.md"
    app.env.note_dependency(str(path))  # another build reads the page again if the file has changed
    text = path.read_text(encoding="utf-8") if name in FILES else source[0]
    pages = {(ROOT / file).resolve(): f"{page}.md" for page, file in FILES.items()}

    def relink(link: re.Match[str]) -> str:
        target = (path.parent / link[2]).resolve()
        return link[1] + (pages.get(target) or Path(os.path.relpath(target, DOCS)).as_posix())

    source[0] = _LINK.sub(relink, text)


def _inline(translator: Any, node: Any) -> None:
    _write(translator, node, "inline")


def _display(translator: Any, node: Any) -> None:
    _write(translator, node, "block")


def _write(translator: Any, node: Any, display: str) -> None:
    """Write a formula as MathML, which every browser draws by itself."""
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    latex, number = node.astext(), ""
    if tag := re.search(r"\\tag\{(\w+)\}", latex):
        latex, number = latex.replace(tag[0], ""), f'<span class="eqno">({tag[1]})</span>'
    formula = convert(latex, display=display)
    translator.body.append(f'<div class="math">{number}{formula}</div>' if display == "block" else formula)
    raise SkipNode
