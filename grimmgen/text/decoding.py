"""Encodings: what a file's bytes are, and their text piece by piece.

Valid UTF-8 is UTF-8, and a byte order mark decides. A NUL means UTF-16 or UTF-32, or that the file is not text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from grimmgen.errors import GrimmgenError

# Bytes that are read at once: few enough to stay in the processor's cache while they are encoded.
_PIECE = 1 << 17
_MARKS = [
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
]
UTF8 = "utf-8"


@dataclass(frozen=True)
class Decoded:
    """How a file is decoded.

    Attributes:
        encoding: a name that Python knows.
        reason: why: "valid UTF-8", "byte order mark", "--encoding", …
    """

    encoding: str
    reason: str


def recognise(open_file: Callable[[], BinaryIO], name: str) -> Decoded:
    """Recognise the encoding of a file; UTF-8 is checked to the last byte.

    Args:
        open_file: opens the file at its beginning.
        name: for messages.

    Raises:
        GrimmgenError: the file is not text, or its encoding is not certain; the remedy shows what it might be.
    """
    with open_file() as file:
        head = file.read(_PIECE)
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return Decoded(encoding, "byte order mark")
        at, piece = 0, head
        decoder = codecs.getincrementaldecoder(UTF8)()
        while piece:
            if (nul := piece.find(0)) >= 0:
                raise GrimmgenError(f"{name} is not text: byte {at + nul} is NUL", "give a text file")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(piece)
            except UnicodeDecodeError as error:
                raise GrimmgenError(
                    f"{name} is not UTF-8 (byte {at - pending + error.start})", "give its --encoding"
                ) from None
            at += len(piece)
            piece = file.read(_PIECE)
    return Decoded(UTF8, "valid UTF-8")


def decode(file: BinaryIO, encoding: str, name: str) -> Iterator[str]:
    """Yield the text of a file piece by piece, without a byte order mark; it is not normalised.

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
            raise GrimmgenError(
                f"{name} is not {encoding} (byte {at - pending + error.start})", "give another --encoding"
            ) from None
        if first and text:
            first, text = False, text.removeprefix("\ufeff")
        if "\0" in text:
            raise GrimmgenError(f"{name} has a NUL (in the {_PIECE >> 10} KB from byte {at})", "remove it")
        if text:
            yield text
        if not piece:
            return
        at += len(piece)
