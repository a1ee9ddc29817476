"""HTML pages of coloured texts: self-contained, light and dark, and inert whatever the texts have in them."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from grimmgen.cli import console

Palette = Sequence[tuple[str, str]]


class Scale(NamedTuple):
    """The levels in which a text is coloured.

    Attributes:
        name: one letter, for classes of the style sheet.
        bounds: upper bounds of the levels but the last.
        labels: of the levels.
        unit: of the labels.
        light: the background and the text colour of each level on a light page.
        dark: the same on a dark one, and on a terminal: only colours of 256-colour terminals.
        blank: the level that stands for nothing special.
    """

    name: str
    bounds: tuple[float, ...]
    labels: tuple[str, ...]
    unit: str
    light: Palette
    dark: Palette
    blank: int = 0

    def level(self, value: float) -> int:
        """The level of a value, from 0."""
        return sum(value >= bound for bound in self.bounds)


class Piece(NamedTuple):
    """A piece of a coloured text: its characters, its level, and what is shown on hover."""

    text: str
    level: int
    tooltip: str


def page(title: str, introduction: str, scales: Sequence[Scale], body: str, wide: bool = False) -> str:
    """A page.

    Args:
        title: as text.
        introduction: as text.
        scales: of the coloured texts in it.
        body: made by the functions below.
        wide: whether two texts stand side by side.
    """
    return _PAGE.format(
        title=escaped(title),
        introduction=escaped(introduction),
        width="90rem" if wide else "44rem",
        light="".join(_rules(scale.name, scale.light) for scale in scales),
        dark="".join(_rules(scale.name, scale.dark) for scale in scales),
        body=body,
    )


def legend(scale: Scale) -> str:
    """The legend of a scale."""
    levels = "".join(
        f'<span class="{scale.name}{k}"> {escaped(label)} </span>' for k, label in enumerate(scale.labels)
    )
    return f'<p class="legend">{levels} {escaped(scale.unit)}</p>'


def heading(text: str) -> str:
    """A heading, in one line."""
    return f"<h2>{escaped(visible(text))}</h2>"


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{escaped(console.safe(text))}</p>"


def coloured(scale: Scale, pieces: Iterable[Piece]) -> str:
    """A coloured text, with its line ends."""
    spans = (
        f'<span class="{scale.name}{piece.level}" data-tooltip="{escaped(piece.tooltip)}">{_shown(piece.text)}</span>'
        for piece in pieces
    )
    return f'<div class="text">{"".join(spans)}</div>'


def beside(*parts: str) -> str:
    """Parts side by side, where the page is wide enough."""
    return f'<div class="beside">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; all columns but the first are aligned to the right."""
    head = "".join(f"<th>{escaped(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{escaped(visible(cell))}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table>\n<tr>{head}</tr>\n{body}\n</table></div>'


def visible(text: str) -> str:
    r"""The text in one line, with line ends, tabs and control characters made visible.

    >>> visible("a\n\x1b")
    'a↵\\x1b'
    """
    return console.safe(text.replace("\n", "↵").replace("\t", "→"))


def quoted(token: str) -> str:
    """A token in quotation marks, with its spaces visible."""
    return token if token in {"<unk>", "<end>"} else f"“{visible(token.replace(' ', '␣'))}”"


def escaped(text: str) -> str:
    """The text as HTML, for an element or an attribute."""
    return html.escape(text, quote=True)


def _shown(text: str) -> str:
    # Keeps the line ends of the text; escapes control characters.
    return escaped("↵\n".join(console.safe(part) for part in text.split("\n")))


def _rules(name: str, palette: Palette) -> str:
    return "".join(
        f".{name}{k} {{ background: {background}; color: {colour} }}\n"
        for k, (background, colour) in enumerate(palette)
    )


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ background: #ffffff; color: #111111; max-width: {width}; margin: 2rem auto 8rem; padding: 0 1rem;
  font: 1.1rem/1.75 Georgia, "DejaVu Serif", serif }}
h1 {{ font-size: 1.4rem }}
h2 {{ font-size: 1.1rem; overflow-wrap: anywhere }}
h1, h2, p, table, .legend, [data-tooltip]:hover::after {{ font-family: system-ui, "DejaVu Sans", sans-serif;
  line-height: 1.4 }}
.wide {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-size: .95rem }}
th, td {{ padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top }}
th:first-child, td:first-child {{ text-align: left }}
th {{ border-bottom: 1px solid }}
.beside {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2.5rem }}
.legend span {{ display: inline-block; padding: .1rem .4rem; white-space: pre }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }}
.text span {{ padding: .1rem 0 }}
[data-tooltip]:hover {{ outline: 2px solid currentColor }}
[data-tooltip]:hover::after {{ content: attr(data-tooltip); position: fixed; inset: auto 0 0 0;
  padding: .8rem 1rem; background: #111111; color: #ffffff; font-size: 1rem; text-align: center;
  white-space: normal }}
{light}@media (prefers-color-scheme: dark) {{
body {{ background: #262626; color: #d0d0d0 }}
[data-tooltip]:hover::after {{ background: #ffffff; color: #111111 }}
{dark}}}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{introduction}</p>
{body}
</body>
</html>
"""
