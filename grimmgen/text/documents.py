"""Documents: where one ends and the next begins in a text that arrives in pieces.

A NUL marks the end of each document, since no text has one. Whole pieces are handled at once, never single lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

END = "\0"
# The longest separator of a regular expression that is recognised wherever the text is cut, in characters.
_LONGEST_SEPARATOR = 1 << 16
# Characters before the place of a match that a regular expression can look back at.
_CONTEXT = 1 << 10
# Characters that are searched at once; more than the longest separator.
_SEARCHED = 1 << 18
# Blank characters that are held back at most: a longer run of them is text.
_LONGEST_BLANK = 1 << 20

_BLANKS = END + "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
_PARAGRAPH = r"\n(?:[^\S\n]*\n)+"
_BLANK_DOCUMENTS = re.compile(r"\0(?=[\s\0])[\s\0]*\0")


@dataclass(frozen=True)
class JoinedText:
    """The text of documents one after the other, with a NUL after each; it is read piece by piece, as often as needed.

    Attributes:
        pieces: reads it from its beginning.
    """

    pieces: Callable[[], Iterator[str]]


def end_documents(pieces: Iterable[str], where: str) -> Iterator[str]:
    r"""Yield a text with a NUL after each document; blank documents are left out.

    Args:
        pieces: of one text, cut anywhere.
        where: `Configuration.documents`: file, line, paragraph or a regular expression that separates documents; line
            ends are \n for it, whatever they are in the text.

    >>> "".join(end_documents(["Anna\r\n", "\r\nB", "ea"], "line"))
    'Anna\x00Bea\x00'
    """
    if where == "file":
        return _dropping_blanks(pieces, lambda text: text)
    if where == "line":
        marked = (piece.replace("\n", END) for piece in _with_line_feeds(pieces))
        return _dropping_blanks(marked, _without_blank_documents)
    pattern = re.compile(_PARAGRAPH if where == "paragraph" else where, re.MULTILINE)
    separated = _separated(_with_line_feeds(pieces), pattern)
    return _dropping_blanks(separated, _without_borders, "\n")


def end_records(records: Iterable[str]) -> Iterator[str]:
    """Yield texts, each a document, with a NUL after each; blank ones are left out."""
    return _dropping_blanks(_joined(records), _without_blank_documents)


def looks_like_a_list(text: str) -> bool:
    r"""Whether each line of a text seems to be a document of its own, as in a list of names or titles.

    >>> looks_like_a_list("".join(f"name {number}\n" for number in range(99)))
    True
    """
    lines = text.splitlines()[:-1]
    if len(lines) < _FEWEST_ENTRIES:
        return False
    lengths = sorted(map(len, lines))
    blank = sum(not line.strip() for line in lines)
    indented = sum(line[:1].isspace() for line in lines)
    # Prose that is wrapped has lines that are nearly as long as the longest ones.
    widest = lengths[len(lengths) * 19 // 20]
    full = sum(length > widest * 3 // 4 for length in lengths)
    wrapped = widest > _NARROW and full > len(lines) // 2
    return not wrapped and max(blank, indented) <= len(lines) // 50 and sum(lengths) <= _WIDE * len(lines)


# Of a list: the fewest lines, the width up to which lines are not wrapped, and the mean length of the longest entries.
_FEWEST_ENTRIES = 20
_NARROW, _WIDE = 45, 120


def _with_line_feeds(pieces: Iterable[str]) -> Iterator[str]:
    r"""The text with \n for each line end."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""  # the piece that follows may begin with \n
        if "\r" in text:
            text = text[: len(text) - len(held)].replace("\r\n", "\n").replace("\r", "\n")
        yield text
    if held:
        yield "\n"


def _joined(records: Iterable[str]) -> Iterator[str]:
    """The records with a NUL after each, in pieces of some length."""
    waiting, size = [], 0
    for record in records:
        waiting.append(record.replace(END, "") if END in record else record)
        size += len(record)
        if size >= _SEARCHED:
            yield END.join([*waiting, ""])
            waiting, size = [], 0
    yield END.join([*waiting, ""])


def _separated(pieces: Iterable[str], pattern: re.Pattern[str]) -> Iterator[str]:
    """The text with a NUL in place of each separator."""
    text, at, more = "", 0, iter(pieces)  # text[:at] is done, and kept for looking back
    last = False
    while not last:
        size = len(text)
        waiting = []
        while size < 2 * _SEARCHED and not last:
            piece = next(more, None)
            last = piece is None
            waiting.append(piece or "")
            size += len(piece or "")
        text += "".join(waiting)
        limit = len(text) if last else len(text) - _LONGEST_SEPARATOR
        done = list[str]()
        for match in pattern.finditer(text, at):
            if not last and match.end() > limit:
                limit = max(at, min(limit, match.start()))
                break
            done += text[at : match.start()], END
            at = match.end()
        limit = max(at, limit)
        done.append(text[at:limit])
        yield "".join(done)
        kept = max(0, limit - _CONTEXT)
        text, at = text[kept:], limit - kept


def _without_blank_documents(text: str) -> str:
    return _BLANK_DOCUMENTS.sub(END, text)


def _without_borders(text: str) -> str:
    """A text without blank documents and without line ends around the others."""
    text = _without_blank_documents(text)
    for border in "\n" + END, END + "\n":
        while border in text:
            text = text.replace(border, END)
    return text


def _dropping_blanks(pieces: Iterable[str], clean: Callable[[str], str], trimmed: str = "") -> Iterator[str]:
    """A text with a NUL after each document, the last one too, in pieces that never end within a run of blanks.

    Args:
        pieces: with a NUL between documents.
        clean: removes the blank documents in a piece that begins with a NUL.
        trimmed: characters that are removed from the end of the last document, as `clean` does from the others.
    """
    held, within = "", False  # blanks that are held back, and whether a document has begun
    for piece in pieces:
        text = held + piece
        end = len(text.rstrip(_BLANKS))
        if len(text) - end > _LONGEST_BLANK:
            end = len(text)
        text, held = text[:end], text[end:]
        if text:
            # What follows the last NUL of the blanks before the first document belongs to it.
            yield clean(text) if within else clean(END + text)[1:]
            within = True
    if within:
        yield held.partition(END)[0].rstrip(trimmed or END) + END
