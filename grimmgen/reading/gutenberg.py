"""The licence of Project Gutenberg, which stands around each of its books and is no part of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

# Characters before the first marker, and behind the last, that may be a licence; the longest have some 25,000.
_LONGEST = 1 << 16
_NAME = r"(?:THE |THIS )?PROJECT GUTENBERG"
_START = re.compile(
    rf"^[ \t]*\*\*\*[ \t]*START OF {_NAME}[^\n]*(?:\n[^\n]+)?\*\*\*[ \t\r]*$"
    r"|^[ \t]*\*END[ *]*THE SMALL PRINT![^\n]*$",
    re.MULTILINE | re.IGNORECASE,
)
_END = re.compile(
    rf"^[ \t]*(?:\*\*\*[ \t]*END OF {_NAME}|End of (?:the |this )?Project Gutenberg(?:['\u2019]s| E-?(?:book|text)))",
    re.MULTILINE | re.IGNORECASE,
)
# Credits that follow the first marker, up to an empty line.
_CREDITS = re.compile(
    r"\s*(?:(?:E-text )?(?:Produced|Prepared) by|Transcribed (?:from|by))[^\n]*(?:\n(?![ \t\r]*\n)[^\n]+)*\n?",
    re.IGNORECASE,
)
# Characters at the end of what has been read, in which a marker may be incomplete.
_LONGEST_MARKER = 300


def without_licence(pieces: Iterable[str], notify: Callable[[int], None]) -> Iterator[str]:
    """Drop the header and the footer of each book in a text, as far as they are marked; a text without is unchanged.

    Args:
        pieces: of the text, cut anywhere.
        notify: called with the number of characters whenever some are dropped.
    """
    source = iter(pieces)
    text = ""
    while len(text) < _LONGEST and (piece := next(source, "")):
        text += piece
    found = _START.search(text, 0, _LONGEST)
    if not found:
        yield text
        yield from source
        return
    while found is not None:
        body = text[found.end() :]
        if credited := _CREDITS.match(body):
            body = body[credited.end() :]
        notify(len(text) - len(body))
        text = body
        # The book. A marker that a piece cuts in two is in the last lines, which are kept back.
        while not (end := _END.search(text)):
            if not (piece := next(source, "")):
                yield text
                return
            at = text.rfind("\n", 0, -_LONGEST_MARKER)
            if at < 0:
                at = max(0, len(text) - _LONGEST_MARKER)
            yield text[:at]
            text = text[at:] + piece
        yield text[: end.start()]
        text = text[end.start() :]
        # The licence, and perhaps another book behind it.
        while (
            not (found := _START.search(text, 0, _LONGEST))
            and len(text) < _LONGEST
            and (piece := next(source, ""))
        ):
            text += piece
        if not found and len(text) >= _LONGEST:
            # Too much for a licence.
            yield text
            yield from source
            return
    notify(len(text))
