"""Show a text coloured by surprisal, on a terminal, as HTML or as JSON: `eval --heatmap`."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grimmgen.cli import console

if TYPE_CHECKING:
    from grimmgen.evaluation.surprisal import TokenSurprisal
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.text.corpus import Document

# Largest file in bytes; a heat-map takes about 700 times its size in memory, and minutes.
LARGEST = 1 << 20
# Upper bounds of the levels but the last, in bits per character.
LEVELS = (0.5, 1.0, 2.0, 3.0, 4.0, 6.0)
_LABELS = [f"<{LEVELS[0]:g}", *(f"<{bits:g}" for bits in LEVELS[1:]), f"≥{LEVELS[-1]:g}"]
_UNIT = "bits per character"
# Background and text colour of each level. Lightness is monotonic in both palettes, so that they do not depend on
# colour vision; DARK uses only colours of 256-colour terminals.
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


def show_heatmap(
    model: TrainedModel, documents: Sequence[Document], target: Path | None, json: bool, quiet: bool
) -> None:
    """Print the heat-map of each document, or write all to an HTML file.

    Args:
        model: of a run or a checkpoint file.
        documents: at least one.
        target: the HTML file; None prints to standard output.
        json: print a JSON document in place of the heat-maps.
        quiet: do not report that the file was written.

    Raises:
        UsageError: a document is too large.
        GrimmgenError: the file cannot be written.
    """
    from grimmgen.errors import UsageError
    from grimmgen.evaluation.surprisal import surprisal
    from grimmgen.io import files

    output = None if target is None else files.output_path(target)
    for document in documents:
        if document.size > LARGEST:
            raise UsageError(f"{document.name} is larger than {LARGEST >> 20} MB", "give a part of it")
    texts = [(document.name, surprisal(model.checkpoint, document.read())) for document in documents]
    if output is not None:
        files.write_atomically(output, page(model.name, texts).encode("utf-8", "backslashreplace"))
    if json:
        value = [{"name": name, **_to_json(tokens)} for name, tokens in texts]
        console.document({"run": model.name, "texts": value})
    elif target is None:
        for name, tokens in texts:
            _print(name, tokens)
    elif not quiet:
        console.note(f"written to {target}")


def level(bits_per_character: float) -> int:
    """The level of a surprisal, 0 to 6."""
    return sum(bits_per_character >= end for end in LEVELS)


def visible(text: str) -> str:
    r"""The text in one line, with line ends, tabs and control characters made visible.

    >>> visible("a\n\x1b")
    'a↵\\x1b'
    """
    return console.safe(text.replace("\n", "↵").replace("\t", "→"))


def _print(title: str, tokens: Sequence[TokenSurprisal]) -> None:
    """Print the text and a legend on standard output, in colour if it is a colour terminal, else with digits."""
    cells = [
        (visible(character), level(token.bits_per_character), character == "\n")
        for token in tokens
        for character in token.text
    ]
    cells.append(("■", level(tokens[-1].bits_per_character), True))
    console.heat(f"{title}: {_summary(tokens)}", cells, _LABELS, _UNIT, DARK)


def _to_json(tokens: Sequence[TokenSurprisal]) -> dict[str, Any]:
    return {
        "bits_per_character": _bits_per_character(tokens),
        "ngrams": [
            {
                "text": token.text,
                "bits": token.bits,
                "bits_per_character": token.bits_per_character,
                "expected": [{"text": text, "probability": p} for text, p in token.expected],
            }
            for token in tokens
        ],
    }


def page(run: str, texts: Sequence[tuple[str, Sequence[TokenSurprisal]]]) -> str:
    """A self-contained HTML page of (name, tokens) pairs, with the expected tokens on hover."""
    legend = "".join(f'<span class="h{k}"> {_escaped(label)} </span>' for k, label in enumerate(_LABELS))
    sections = "\n".join(
        f"<h2>{_escaped(visible(title))}</h2>\n<p>{_summary(tokens)}</p>\n"
        f'<div class="text">{"".join(map(_span, tokens))}</div>'
        for title, tokens in texts
    )
    return _PAGE.format(
        name=_escaped(visible(run)),
        light=_rules(LIGHT),
        dark=_rules(DARK),
        legend=legend,
        unit=_UNIT,
        text=sections,
    )


def _span(token: TokenSurprisal) -> str:
    expected = " · ".join(f"{_quoted(text)} {p:.0%}" for text, p in token.expected)
    tooltip = f"{_quoted(token.text or '<end>')}: {token.bits:.1f} bits; expected: {expected}"
    # Keeps the line ends of the text; escapes control characters.
    shown = "■" if not token.text else "↵\n".join(console.safe(part) for part in token.text.split("\n"))
    css_class = f"h{level(token.bits_per_character)}"
    return f'<span class="{css_class}" data-tooltip="{_escaped(tooltip)}">{_escaped(shown)}</span>'


def _quoted(token: str) -> str:
    return token if token in {"<unk>", "<end>"} else f"“{visible(token.replace(' ', '␣'))}”"


def _summary(tokens: Sequence[TokenSurprisal]) -> str:
    return f"{_bits_per_character(tokens):.3f} {_UNIT}"


def _bits_per_character(tokens: Sequence[TokenSurprisal]) -> float:
    return sum(token.bits for token in tokens) / max(1, sum(len(token.text) for token in tokens))


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _rules(palette: Sequence[tuple[str, str]]) -> str:
    return "".join(
        f".h{k} {{ background: {background}; color: {colour} }}\n"
        for k, (background, colour) in enumerate(palette)
    )


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Surprisal under {name}</title>
<style>
:root {{ color-scheme: light dark }}
body {{ background: #ffffff; color: #111111; max-width: 44rem; margin: 2rem auto 8rem; padding: 0 1rem;
  font: 1.1rem/1.75 Georgia, "DejaVu Serif", serif }}
h1 {{ font-size: 1.4rem }}
h2 {{ font-size: 1.1rem; overflow-wrap: anywhere }}
h1, h2, p, .legend, [data-tooltip]:hover::after {{ font-family: system-ui, "DejaVu Sans", sans-serif;
  line-height: 1.4 }}
.legend span {{ padding: .1rem .4rem; white-space: pre }}
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
<h1>Surprisal under {name}</h1>
<p>The stronger the colour, the less the model expected the text. Hover over it, or touch it, to see what the model
expected.</p>
<p class="legend">{legend} {unit}</p>
{text}
</body>
</html>
"""
