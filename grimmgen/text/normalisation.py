"""Normalisation: line ends, case and composed characters (NFC), for a whole text or piece by piece.

`normalise` defines the normal form. `normalised_codes` returns the same characters as integers, and is faster:
characters whose normal form does not depend on their neighbours are looked up in an array, and only a text with
others (combining marks, a sigma, emoji) takes the slow path. `normalised_pieces` does it for a text of any size.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from grimmgen.configuration import Normalisation

# Characters as integers, of any width that holds them.
CodePoints = NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]

# Characters after which a text is cut even without a boundary, as in a file that consists of dots. This bounds the
# memory; the cost is that a letter and its accent may stay two characters there.
_LONGEST_WITHOUT_BOUNDARY = 1 << 20
_SIGMA = "\u03a3"  # its lower case depends on whether it ends a word
_SPACES = (" ", "\n")
_NEEDS_CONTEXT = 0xFFFF


class PiecewiseText(Protocol):
    """A text that is read piece by piece, as often as needed."""

    def pieces(self) -> Iterable[str]:
        """Read the text from its beginning."""


Text: TypeAlias = str | PiecewiseText


def pieces_of(text: Text) -> Iterable[str]:
    """Return the pieces of a text; a string is one piece."""
    return [text] if isinstance(text, str) else text.pieces()


def normalise(text: str, options: Normalisation = Normalisation()) -> str:
    r"""Normalise a text: line ends become LF (or a space), characters are composed (NFC).

    Args:
        text: any Unicode text. At its end, a capital sigma becomes the final one, as at the end of a word.
        options: line ends, and lower case by Unicode's full rules (SpecialCasing.txt).

    >>> normalise("The\r\nKing"), normalise("The\r\nKing", Normalisation(newlines="space"))
    ('the\nking', 'the king')
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if options.newlines == "space":
        text = text.replace("\n", " ")
    if options.lower:
        if options.language is not None:
            # Turkish and Azeri; composed first, since I and U+0307 are U+0130.
            text = unicodedata.normalize("NFC", text).replace("I", "\u0131").replace("\u0130", "i")
        text = text.lower()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def normalised_codes(text: str, options: Normalisation) -> CodePoints:
    """Return the code points of `normalise(text, options)`, as uint8, uint16 or uint32."""
    if text.isascii() and (normalised_text := normalise(text, options)).isascii():
        return np.frombuffer(normalised_text.encode(), np.uint8)
    joined = text.replace("\r\n", "\n") if "\r" in text else text
    # Characters beyond U+FFFF are pairs of surrogates here, which the table marks as _NEEDS_CONTEXT.
    codes = np.frombuffer(joined.encode("utf-16-le", "surrogatepass"), "<u2")
    normalised = _table(options).take(codes)
    return code_points(normalise(text, options)) if (normalised == _NEEDS_CONTEXT).any() else normalised


def normalised_pieces(pieces: Iterable[str], options: Normalisation) -> Iterator[CodePoints]:
    """Normalise a text piece by piece; the pieces of the result are cut elsewhere.

    Args:
        pieces: of one text, cut anywhere.
        options: see `normalise`.
    """
    rest = ""
    for piece in pieces:
        text = rest + piece
        at = last_boundary(text, max(1, len(rest)))
        if not at and len(text) > _LONGEST_WITHOUT_BOUNDARY:
            at = len(text) - (2 if text.endswith("\r\n") else 1)
        rest = text[at:]
        if at:
            yield normalised_codes(text[:at], options)
    if rest:
        yield normalised_codes(rest, options)


def last_boundary(text: str, start: int = 1) -> int:
    """Return the last position from `start` on at which a text can be cut and both parts normalised by themselves.

    Nothing reaches across a boundary: no line end of two characters, no letter that is composed with its
    neighbour, and no sigma whose lower case depends on what follows. The end of the text is a boundary if its last
    character is a space. The result is 0 if there is no boundary.
    """
    for at in range(len(text), start - 1, -1):
        before, after = text[at - 1 : at], text[at : at + 1]
        if before in _SPACES or (after and _is_independent(before) and _is_independent(after)):
            return at
    return 0


def code_points(text: str) -> NDArray[np.uint32]:
    """Return the code points of a text, [characters]."""
    # surrogatepass: a lone surrogate (an undecodable byte of a command line) is an unseen character, not an error.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _is_independent(character: str) -> bool:
    # Such a character does not join the one before it, as Hangul's vowels and finals do, and is not skipped in the
    # search for the end of a word, as a few ASCII signs are.
    if character.isascii():
        return character not in "\r'.:^`"
    return (
        unicodedata.category(character) in {"Lu", "Ll", "Lo", "Nd"}
        and not "\u1100" <= character <= "\u11ff"
        and character != _SIGMA
    )


@functools.lru_cache(maxsize=8)
def _table(options: Normalisation) -> NDArray[np.uint16]:
    """Normal forms of the characters up to U+FFFF, [65536].

    _NEEDS_CONTEXT marks those whose normal form is not one character, or depends on the neighbours.
    """
    table = np.full(1 << 16, _NEEDS_CONTEXT, np.uint16)
    for code in range((1 << 16) - 1):
        character = chr(code)
        if unicodedata.category(character) in {"Mn", "Mc", "Me", "Cs"} or 0x1100 <= code <= 0x11FF:
            continue
        normalised = normalise(character, options)
        if len(normalised) == 1 and normalised < chr(_NEEDS_CONTEXT) and character != _SIGMA:
            table[code] = ord(normalised)
    return table
