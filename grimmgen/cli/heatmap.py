"""Show a text coloured by surprisal, on a terminal, as HTML or as JSON: `eval --heatmap`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grimmgen.cli import console, page
from grimmgen.cli.page import Piece, Scale

if TYPE_CHECKING:
    from grimmgen.evaluation.surprisal import TokenSurprisal
    from grimmgen.runs.registry import TrainedModel
    from grimmgen.text.corpus import Document

# Largest file in bytes; a heat-map takes about 700 times its size in memory, and minutes.
LARGEST = 1 << 20
_UNIT = "bits per character"
# Lightness is monotonic in both palettes, so that they do not depend on colour vision.
SCALE = Scale(
    "h",
    (0.5, 1.0, 2.0, 3.0, 4.0, 6.0),
    ("<0.5", "<1", "<2", "<3", "<4", "<6", "≥6"),
    _UNIT,
    light=(
        ("#ffffff", "#111111"),
        ("#fff7d6", "#111111"),
        ("#fee391", "#111111"),
        ("#fdbb57", "#111111"),
        ("#f08a1d", "#111111"),
        ("#b44e04", "#ffffff"),
        ("#662506", "#ffffff"),
    ),
    dark=(
        ("#262626", "#d0d0d0"),
        ("#5f0000", "#eeeeee"),
        ("#870000", "#eeeeee"),
        ("#af5f00", "#ffffff"),
        ("#d78700", "#000000"),
        ("#ffaf5f", "#000000"),
        ("#ffffaf", "#000000"),
    ),
)


def show_heatmap(
    model: TrainedModel,
    documents: Sequence[Document],
    target: Path | None,
    json: bool,
    quiet: bool,
    mix: float | None = None,
) -> None:
    """Print the heat-map of each document, or write all to an HTML file.

    Args:
        model: of a run or a checkpoint file.
        documents: at least one.
        target: the HTML file; None prints to standard output.
        json: print a JSON document in place of the heat-maps.
        quiet: do not report that the file was written.
        mix: weight of the counts, as for `surprisal`.

    Raises:
        UsageError: a document is too large.
        GrimmgenError: the file cannot be written.
    """
    from grimmgen.evaluation.surprisal import surprisal
    from grimmgen.io import files

    output = None if target is None else files.output_path(target)
    check_sizes(documents)
    texts = [(document.name, surprisal(model.checkpoint, document.read(), mix=mix)) for document in documents]
    if output is not None:
        files.write_atomically(output, _page(model.name, texts).encode("utf-8", "backslashreplace"))
    if json:
        value = [{"name": name, **_to_json(tokens)} for name, tokens in texts]
        console.document({"run": model.name, "texts": value})
    elif target is None:
        for name, tokens in texts:
            _print(name, tokens)
    elif not quiet:
        console.note(f"written to {target}")


def check_sizes(documents: Sequence[Document]) -> None:
    """Refuse documents that are too large to be coloured.

    Raises:
        UsageError: one is.
    """
    from grimmgen.errors import UsageError

    for document in documents:
        if document.size > LARGEST:
            raise UsageError(f"{document.name} is larger than {LARGEST >> 20} MB", "give a part of it")


def pieces(tokens: Sequence[TokenSurprisal]) -> list[Piece]:
    """The text as pieces of a page, with the expected tokens on hover."""
    return [Piece(token.text or "■", SCALE.level(token.bits_per_character), _tooltip(token)) for token in tokens]


def summary(tokens: Sequence[TokenSurprisal]) -> str:
    """Bits per character of the whole text, in words."""
    return f"{console.figure(_bits_per_character(tokens), 3)} {_UNIT}"


def _print(title: str, tokens: Sequence[TokenSurprisal]) -> None:
    """Print the text and a legend on standard output, in colour if it is a colour terminal, else with digits."""
    cells = [
        (page.visible(character), SCALE.level(token.bits_per_character), character == "\n")
        for token in tokens
        for character in token.text
    ]
    cells.append(("■", SCALE.level(tokens[-1].bits_per_character), True))
    console.heat(f"{title}: {summary(tokens)}", cells, SCALE.labels, SCALE.unit, SCALE.dark)


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


def _page(run: str, texts: Sequence[tuple[str, Sequence[TokenSurprisal]]]) -> str:
    """A self-contained HTML page of (name, tokens) pairs."""
    sections = [
        f"{page.heading(title)}\n{page.paragraph(summary(tokens))}\n{page.coloured(SCALE, pieces(tokens))}"
        for title, tokens in texts
    ]
    return page.page(
        f"Surprisal under {page.visible(run)}",
        "The stronger the colour, the less the model expected the text. Hover over it, or touch it, to see what the"
        " model expected.",
        [SCALE],
        "\n".join([page.legend(SCALE), *sections]),
    )


def _tooltip(token: TokenSurprisal) -> str:
    expected = " · ".join(f"{page.quoted(text)} {p:.0%}" for text, p in token.expected)
    return f"{page.quoted(token.text or '<end>')}: {console.figure(token.bits, 1)} bits; expected: {expected}"


def _bits_per_character(tokens: Sequence[TokenSurprisal]) -> float:
    return sum(token.bits for token in tokens) / max(1, sum(len(token.text) for token in tokens))
