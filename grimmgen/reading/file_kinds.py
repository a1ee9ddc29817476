"""Kinds of files, recognised by their first bytes, so that a file that is not what its name says can be named."""

from __future__ import annotations

import re

_PAGE = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<(?:!doctype html|html)\b", re.IGNORECASE)
# The beginning of an object, which is not ended by the line, or another line follows that begins with one.
_JSON_LINE = re.compile(rb'(?:\xef\xbb\xbf)?\{ *"(?:[^"\\\n]|\\.)*" *:[^\n]*(?:\}\s*(?:\n\s*\{|$)|\Z)')
# Bytes of a file's beginning that are enough to recognise it.
HEAD = 4096

# (offset, signature, name) of files that are not text. The first that matches counts.
_SIGNATURES = [
    (0, b"\x1f\x8b", "a gzip file"),
    (0, b"BZh", "a bzip2 file"),
    (0, b"\xfd7zXZ\0", "an xz file"),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"Rar!\x1a\x07", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF-", "a PDF"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
    (60, b"BOOKMOBI", "a Kindle book"),
    (0, b"AT&TFORM", "a DjVu document"),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"II*\0", "a TIFF image"),
    (0, b"MM\0*", "a TIFF image"),
    (8, b"WEBP", "a WebP image"),
    (8, b"WAVE", "a WAV sound"),
    (8, b"AVI ", "an AVI video"),
    (4, b"ftyp", "an MP4 video"),
    (0, b"\x1aE\xdf\xa3", "a Matroska video"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"OggS", "an Ogg sound"),
    (0, b"fLaC", "a FLAC sound"),
    (0, b"SQLite format 3\0", "an SQLite database"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x7fELF", "a program"),
    (0, b"\xcf\xfa\xed\xfe", "a program"),
    (0, b"\xca\xfe\xba\xbe", "a program"),
    (0, b"MZ\x90\0", "a program"),
    (0, b"wOFF", "a font"),
    (0, b"wOF2", "a font"),
]
# Entries by which a zip archive is recognised as something else; they are usually among the first.
_ZIPPED = [
    (b"mimetypeapplication/epub+zip", "an EPUB book"),
    (b"mimetypeapplication/vnd.oasis.opendocument", "an OpenDocument file"),
    (b"word/", "a Word document"),
    (b"xl/", "an Excel workbook"),
    (b"ppt/", "a PowerPoint presentation"),
    (b"[Content_Types].xml", "a Microsoft Office document"),
]


def describe(head: bytes) -> str | None:
    """Name what a file is by its first bytes, as in "a PDF"; None if it may be text.

    Args:
        head: the first HEAD bytes of the file.
    """
    for offset, signature, name in _SIGNATURES:
        if head.startswith(signature, offset):
            return name
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return next((name for mark, name in _ZIPPED if mark in head), "a zip archive")
    return None


def suffix(head: bytes) -> str:
    """Return the suffix that belongs to a file of the standard input, which has no name; `.txt` if it is text.

    Args:
        head: its first bytes.
    """
    kind = describe(head)
    if kind in _PACKED:
        return f".txt{_PACKED[kind]}"
    known = {"a zip archive": ".zip", "an EPUB book": ".epub"}
    if kind in known:
        return known[kind]
    if _PAGE.match(head):
        return ".html"
    return ".jsonl" if _JSON_LINE.match(head) else ".txt"


def remedy(kind: str) -> str:
    """Return what to do about a file of this kind whose text is wanted; the kind is one of `describe`'s."""
    return _REMEDIES.get(kind, "give a text file")


_PACKED = {"a gzip file": ".gz", "a bzip2 file": ".bz2", "an xz file": ".xz", "a Zstandard file": ".zst"}
_REMEDIES = {
    **{kind: f"let its name end in {suffix}, and it is unpacked" for kind, suffix in _PACKED.items()},
    "a zip archive": "let its name end in .zip, and it is unpacked",
    "an EPUB book": "let its name end in .epub, and it is read",
    "a PDF": "convert it to text, as with pdftotext",
    "a Word document": "save it as plain text",
    "an RTF document": "save it as plain text",
    "an OpenDocument file": "save it as plain text",
    "an old Microsoft Office document": "save it as plain text",
    "an Excel workbook": "save it as CSV",
    "a tar archive": "unpack it, and give the directory",
    "a RAR archive": "unpack it, and give the directory",
    "a 7-Zip archive": "unpack it, and give the directory",
}
