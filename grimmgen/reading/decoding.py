"""Encodings: what a file's bytes are, and their text piece by piece.

A byte order mark decides, and what is valid UTF-8 is UTF-8. NULs mean UTF-16 or UTF-32, or no text at all. Older
encodings are guessed (`charsets`); what is not certain is an error, which shows the candidates.
"""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from grimmgen.errors import GrimmgenError
from grimmgen.reading import charsets
from grimmgen.reading.charsets import PASSAGE

UTF8 = "utf-8"
# Control characters that no text has; ESC is used by ISO-2022, and ^Z ends old texts.
_CONTROLS = re.compile(rb"[\x01-\x06\x0e-\x19\x1c-\x1f\x7f]")
# Bytes that are read at once: few enough to stay in the processor's cache while they are encoded.
_PIECE = 1 << 17
_MARKS = [
    (codecs.BOM_UTF8, UTF8),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\f"
# Share of NULs in Latin letters, and of bytes that are neither NUL nor printable in other scripts, in UTF-16.
_WIDE_NULS, _WIDE_OTHERS = 0.2, 0.2
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_NUL_REMEDY = r"give a text file, or remove the NULs, as with tr -d '\0'"
# Number of passages, each with a character beyond ASCII, from which an encoding is guessed.
_PASSAGES = 32

_PREVIEW = 24


@dataclass(frozen=True)
class Decoded:
    """How a file is decoded.

    Attributes:
        encoding: a name that Python knows.
        reason: why: "valid UTF-8", "byte order mark", "declared", "--encoding", or what it was recognised by.
    """

    encoding: str
    reason: str


def recognise(
    open_file: Callable[[], BinaryIO],
    name: str,
    declared: str | None = None,
    nuls: bool = False,
    examined: int | None = None,
) -> Decoded:
    """Recognise the encoding of a file; UTF-8 is checked to the last byte that is examined.

    Args:
        open_file: opens the file at its beginning.
        name: for messages.
        declared: the encoding that the file itself names, if it is not UTF-8.
        nuls: whether NULs are no error, as in a table, of which only the rows with NULs are lost.
        examined: bytes after which valid UTF-8 is taken for UTF-8; None for all of them.

    Raises:
        GrimmgenError: the file is not text, or its encoding is not certain; the remedy shows what it might be.
    """
    passages: list[bytes] = []
    invalid: int | None = None
    with open_file() as file:
        piece = file.read(_PIECE)
        if marked := marked_encoding(piece):
            return Decoded(marked, "byte order mark")
        at, decoder = 0, codecs.getincrementaldecoder(UTF8)()
        while True:
            if (nul := piece.find(0)) >= 0:
                if wide := wide_encoding(piece[nul - min(nul, PASSAGE) & ~3 :][:PASSAGE]):
                    return Decoded(wide, "by its NULs")
                if not nuls:
                    raise GrimmgenError(f"{name} is not text (byte {at + nul} is NUL)", _NUL_REMEDY)
            if invalid is None:
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(piece, final=not piece)
                except UnicodeDecodeError as error:
                    invalid = at - pending + error.start
            if invalid is not None and len(passages) < _PASSAGES and (found := charsets.HIGH.search(piece)):
                passages.append(_passage(piece, found.start()))
            at += len(piece)
            if not piece or (examined is not None and at > examined and invalid is None):
                break
            piece = file.read(_PIECE)
    if invalid is None:
        return Decoded(UTF8, "valid UTF-8")
    if declared and (encoding := charsets.known(declared)) and charsets.decoded(passages, encoding) is not None:
        return Decoded(encoding, "declared in it")
    guess = charsets.guess(passages)
    if guess.certain:
        return Decoded(guess.encodings[0], guess.reason)
    tried = [f"{encoding} reads “{_preview(passages, encoding)}”" for encoding in guess.encodings]
    raise GrimmgenError(
        f"{name} is not UTF-8 (byte {invalid}), and its encoding is not certain",
        f"give its --encoding{': ' if tried else ''}{', '.join(tried)}",
    )


def decode(file: BinaryIO, encoding: str, name: str, nuls: bool = False) -> Iterator[str]:
    """Yield the text of a file piece by piece, without a byte order mark; it is not normalised.

    Args:
        file: at its beginning.
        encoding: a name that Python knows.
        name: for messages.
        nuls: whether a NUL is no error.

    Raises:
        GrimmgenError: the bytes are not valid in the encoding, or a character is NUL; the message has the place.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    at, first = 0, True
    while True:
        piece = file.read(_PIECE)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(piece, final=not piece)
        except UnicodeDecodeError as error:
            bad = max(0, error.start - pending)
            raise GrimmgenError(
                f"{name} is not {encoding} (byte {at - pending + error.start})",
                f"give another --encoding, as in --encoding {_other_encoding(_passage(piece, bad), encoding)}",
            ) from None
        if first and text:
            first, text = False, text.removeprefix("\ufeff")
        if "\0" in text and not nuls:
            raise GrimmgenError(
                f"{name} has a NUL in {encoding} (near byte {at + max(0, piece.find(0))})", _NUL_REMEDY
            )
        if text:
            yield text
        if not piece:
            return
        at += len(piece)


def _other_encoding(passage: bytes, encoding: str) -> str:
    """The likeliest encoding of a passage that is not valid in another one; Latin-1 reads any bytes."""
    likely = charsets.guess([passage]).encodings
    return next((other for other in likely if charsets.known(other) != charsets.known(encoding)), "latin-1")


def marked_encoding(head: bytes) -> str | None:
    """Return the encoding whose byte order mark a file begins with; None without a mark."""
    return next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)


def may_be_text(head: bytes, nuls: bool = False) -> bool:
    """Return whether a file that begins like this may be text: it has few control characters, and no NULs.

    Args:
        head: the first bytes of the file.
        nuls: whether NULs are allowed; else they are only in UTF-16 and UTF-32.
    """
    if marked_encoding(head):
        return True
    if 0 in head and not nuls:
        return wide_encoding(head) is not None
    return len(_CONTROLS.findall(head)) <= max(1, len(head) // 50)


def wide_encoding(sample: bytes) -> str | None:
    """Recognise UTF-16 and UTF-32 without a byte order mark by a passage with NULs; None if it is neither.

    Args:
        sample: from a place in the file whose offset is a multiple of 4.
    """
    others = len(sample.translate(None, _PRINTABLE + b"\0"))
    if sample.count(0) < _WIDE_NULS * len(sample) and others < _WIDE_OTHERS * len(sample):
        # ASCII with a NUL somewhere, whose letters would be pairs.
        return None
    best, most = None, 0
    for encoding in _WIDE:
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(sample)
        except UnicodeDecodeError:
            continue
        plausible = all(
            character in "\t\n\r\f" or unicodedata.category(character) not in {"Cc", "Cn", "Co", "Cs"}
            for character in set(text)
        )
        # In the wrong byte order, a space is U+2000, and letters are Chinese characters.
        common = sum(character.isascii() for character in text)
        if plausible and common > most:
            best, most = encoding, common
    return best


def _passage(piece: bytes, at: int) -> bytes:
    """The line in which a character beyond ASCII stands, or its beginning and the lines behind it."""
    start = max(piece.rfind(b"\n", 0, at), piece.rfind(b" ", max(0, at - PASSAGE // 4), at)) + 1
    end = start + PASSAGE
    return piece[
        start : max(piece.rfind(b"\n", start, end), piece.rfind(b" ", at, end)) if end < len(piece) else end
    ]


def _preview(passages: Sequence[bytes], encoding: str) -> str:
    text = " ".join((charsets.decoded(passages, encoding) or "").split())
    at = next((at for at, character in enumerate(text) if not character.isascii()), 0)
    start = max(0, at - _PREVIEW // 2)
    return "".join(c if c.isprintable() else "\ufffd" for c in text[start : start + _PREVIEW])
