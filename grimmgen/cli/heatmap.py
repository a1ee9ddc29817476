"""A text coloured by how surprising it was: on a terminal, as HTML, and as JSON, for `eval --heatmap`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from grimmgen.cli import console

if TYPE_CHECKING:
    from grimmgen.evaluation.surprisal import Surprise

# Where a level of surprise ends, in bits per character; the last has no end.
LEVELS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
_NAMED = [f"<{LEVELS[0]:g}", *(f"<{bits:g}" for bits in LEVELS[1:]), f"≥{LEVELS[-1]:g}"]
_UNIT = "bits per character"
# Paper and ink of each level. Both palettes go one way in lightness, which everyone can tell apart; the one for a
# dark background is of colours that terminals with 256 have, too.
LIGHT = (
    ("#ffffff", "#111111"),
    ("#fff7d6", "#111111"),
    ("#fee391", "#111111"),
    ("#fdbb57", "#111111"),
    ("#f08a1d", "#111111"),
    ("#b44e04", "#ffffff"),
    ("#662506", "#ffffff"),
)
DARK = (
    ("#262626", "#d0d0d0"),
    ("#5f0000", "#eeeeee"),
    ("#870000", "#eeeeee"),
    ("#af5f00", "#ffffff"),
    ("#d78700", "#000000"),
    ("#ffaf5f", "#000000"),
    ("#ffffaf", "#000000"),
)


def level(bits_per_character: float) -> int:
    """The level of surprise, 0 to 6."""
    return sum(bits_per_character >= end for end in LEVELS)


def visible(text: str) -> str:
    r"""One line in which all that is there can be seen and nothing acts.

    >>> visible("a\n\x1b")
    'a↵\\x1b'
    """
    return console.safe(text.replace("\n", "↵").replace("\t", "→"))


def show(title: str, found: Sequence[Surprise]) -> None:
    """The text and the legend, on standard output: coloured on a terminal that has colours, else with marks."""
    cells = [
        (visible(character), level(s.bits_per_character), character == "\n") for s in found for character in s.text
    ]
    cells.append(("■", level(found[-1].bits_per_character), True))
    console.heat(f"{title}: {_summary(found)}", cells, _NAMED, _UNIT, DARK)


def to_json(found: Sequence[Surprise]) -> dict[str, Any]:
    """The text's total, and each n-gram; the last one, which is empty, is the end."""
    return {
        "bits_per_character": _bits_per_character(found),
        "ngrams": [
            {
                "text": s.text,
                "bits": s.bits,
                "bits_per_character": s.bits_per_character,
                "expected": [{"text": text, "probability": p} for text, p in s.expected],
            }
            for s in found
        ],
    }


def page(run: str, texts: Sequence[tuple[str, Sequence[Surprise]]]) -> str:
    """A page of HTML that needs nothing else: (name, surprises) pairs, what was expected shown on hover."""
    name = _escaped(visible(run))
    legend = "".join(f'<span class="h{number}"> {_escaped(name)} </span>' for number, name in enumerate(_NAMED))
    sections = "\n".join(
        f"<h2>{_escaped(visible(title))}</h2>\n<p>{_summary(found)}</p>\n"
        f'<div class="text">{"".join(map(_span, found))}</div>'
        for title, found in texts
    )
    return _PAGE.format(
        name=name, light=_rules(LIGHT), dark=_rules(DARK), legend=legend, unit=_UNIT, text=sections
    )


def _span(s: Surprise) -> str:
    expected = " · ".join(f"{_named(text)} {p:.0%}" for text, p in s.expected)
    said = f"{_named(s.text or '<end>')} took {s.bits:.1f} bits; expected: {expected}"
    # What is seen is what is there, but for what would act; a line ends where the text has it end.
    shown = "■" if not s.text else "↵\n".join(console.safe(part) for part in s.text.split("\n"))
    kind = f"h{level(s.bits_per_character)}"
    return f'<span class="{kind}" data-said="{_escaped(said)}">{_escaped(shown)}</span>'


def _named(token: str) -> str:
    return token if token in {"<unk>", "<end>"} else f"“{visible(token.replace(' ', '␣'))}”"


def _summary(found: Sequence[Surprise]) -> str:
    return f"{_bits_per_character(found):.3f} {_UNIT}"


def _bits_per_character(found: Sequence[Surprise]) -> float:
    return sum(s.bits for s in found) / max(1, sum(len(s.text) for s in found))


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _rules(palette: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f".h{number} {{ background: {paper}; color: {ink} }}\n" for number, (paper, ink) in enumerate(palette)
    )


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>What surprised {name}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ background: #ffffff; color: #111111; max-width: 44rem; margin: 2rem auto 8rem; padding: 0 1rem;
  font: 1.1rem/1.75 Georgia, "DejaVu Serif", serif }}
h1 {{ font-size: 1.4rem }}
h2 {{ font-size: 1.1rem; overflow-wrap: anywhere }}
h1, h2, p, .legend, [data-said]:hover::after {{ font-family: system-ui, "DejaVu Sans", sans-serif;
  line-height: 1.4 }}
.legend span {{ padding: .1rem .4rem; white-space: pre }}
.text {{ white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }}
.text span {{ padding: .1rem 0 }}
[data-said]:hover {{ outline: 2px solid currentColor }}
[data-said]:hover::after {{ content: attr(data-said); position: fixed; inset: auto 0 0 0; padding: .8rem 1rem;
  background: #111111; color: #ffffff; font-size: 1rem; text-align: center; white-space: normal }}
{light}@media (prefers-color-scheme: dark) {{
body {{ background: #262626; color: #d0d0d0 }}
[data-said]:hover::after {{ background: #ffffff; color: #111111 }}
{dark}}}
</style>
</head>
<body>
<h1>What surprised {name}</h1>
<p>The stronger the colour, the less the model had expected what came; point at a piece of the text, or touch it,
to see what it had expected instead.</p>
<p class="legend">{legend} {unit}</p>
{text}
</body>
</html>
"""
