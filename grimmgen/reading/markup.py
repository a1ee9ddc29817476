"""The text of web pages and of EPUB books. lxml parses them, as a stream of events: no page is held in memory."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from lxml import etree

from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.reading.archives import Archive

# Elements whose content is not read as part of the text.
_HIDDEN = frozenset(
    "audio button canvas head iframe math nav noscript object rp rt script select style svg template textarea title"
    " video".split()
)
# Elements that are separated from the text around them by an empty line, or by a line end.
_PARAGRAPHS = frozenset(
    "address article aside blockquote body dl figure footer form h1 h2 h3 h4 h5 h6 header hr main ol p pre section"
    " table ul".split()
)
_LINES = frozenset("br caption dd div dt figcaption legend li option summary tr".split())
_SPACE, _TAB, _LINE, _PARAGRAPH = range(1, 5)
_SEPARATORS = {0: "", _SPACE: " ", _TAB: "\t", _LINE: "\n", _PARAGRAPH: "\n\n"}
# What HTML calls white space; a no-break space is none.
_WHITE = re.compile(r"[ \t\n\r\f]+")
# XML may close any element at once, which HTML ignores: the rest of a page would be hidden.
_CLOSED = re.compile(rf"<({'|'.join(_HIDDEN)})\b([^<>]*)/>", re.IGNORECASE)
_LONGEST_TAG = 4096
# &#146; is Windows-1252 in HTML. U+FFFD stands for the five bytes that it does not use.
_CONTROLS = {code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)}
_C1 = re.compile("[\x80-\x9f]")
_PIECE = 1 << 16
# Bytes of a book's table of contents, and of a chapter.
_LARGEST_CONTENTS = 16 << 20
_LARGEST_CHAPTER = 64 << 20
_CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
_DECLARED = re.compile(
    rb"""<meta[^>]{1,200}?charset\s*=\s*["']?\s*([\w-]{1,40})|<\?xml[^>]{1,100}?encoding\s*=\s*["']([\w-]{1,40})""",
    re.IGNORECASE,
)


def declared_encoding(head: bytes) -> str | None:
    """Return the encoding that the beginning of a page declares, as in `<meta charset="utf-8">`; None without."""
    match = _DECLARED.search(head)
    return (match[1] or match[2]).decode("ascii") if match else None


def page_text(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the text of a web page piece by piece.

    Paragraphs are separated by an empty line, lines and the rows of a table by a line end, its cells by a tab; other
    white space is one space. Scripts, styles, forms and menus are left out.

    Args:
        pieces: of the page, cut anywhere.
    """
    extractor = _Extractor()
    parser = etree.HTMLParser(target=extractor, huge_tree=True, no_network=True)
    for piece in _with_end_tags(pieces):
        parser.feed(piece)
        if extractor.length > _PIECE:
            yield extractor.take()
    if extractor.fed:
        parser.close()
    if extractor.started:
        yield extractor.take() + "\n"


def book_chapters(archive: Archive) -> Iterator[tuple[str, bytes]]:
    """Yield the pages of an EPUB book in the order in which they are read: name and content.

    Raises:
        IntegrityError: it is not a book, or a chapter is missing.
        GrimmgenError: it is protected by encryption, or too large.
    """
    container = _parse(archive, _CONTAINER)
    package = next((str(path) for path in container.xpath("//*[local-name()='rootfile']/@full-path")), "")
    contents = _parse(archive, package)
    pages = {
        item.get("id"): item.get("href", "")
        for item in contents.xpath("//*[local-name()='manifest']/*[local-name()='item']")
        if "html" in item.get("media-type", "html")
    }
    chapters = [
        posixpath.normpath(posixpath.join(posixpath.dirname(package), unquote(urlsplit(pages[number]).path)))
        for reference in contents.xpath("//*[local-name()='spine']/*[local-name()='itemref']")
        if (number := reference.get("idref")) in pages and reference.get("linear") != "no"
    ]
    if not chapters:
        raise IntegrityError(f"{archive.name} has no chapters", "copy or download it again")
    if _ENCRYPTION in archive.members:
        encrypted = _parse(archive, _ENCRYPTION).xpath("//*[local-name()='CipherReference']/@URI")
        if {unquote(str(name)) for name in encrypted} & set(chapters):
            raise GrimmgenError(f"{archive.name} is protected by encryption", "give a book without protection")
    for name in chapters:
        yield name, _read(archive, name, _LARGEST_CHAPTER)


def _parse(archive: Archive, name: str) -> Any:
    content = _read(archive, name, _LARGEST_CONTENTS)
    try:
        return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True, recover=False))
    except etree.XMLSyntaxError as error:
        raise IntegrityError(
            f"{archive.name}/{name} is not XML ({error.msg})", "copy or download it again"
        ) from None


def _read(archive: Archive, name: str, limit: int) -> bytes:
    with archive.open(name) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise GrimmgenError(f"{archive.name}/{name} is larger than {limit >> 20} MB", "give its text as a file")
    return content


def _with_end_tags(pieces: Iterable[str]) -> Iterator[str]:
    """Replace `<script/>` by `<script></script>`, in whichever pieces it stands."""
    rest = ""
    for piece in pieces:
        text = rest + piece
        at = text.rfind("<")
        if at < 0 or len(text) - at > _LONGEST_TAG:
            at = len(text)
        rest = text[at:]
        yield _CLOSED.sub(r"<\1\2></\1>", text[:at])
    yield _CLOSED.sub(r"<\1\2></\1>", rest)


class _Extractor:
    """The target of lxml's parser: collects the text of a page."""

    def __init__(self) -> None:
        # Whether the parser has seen anything, and whether there is any text.
        self.fed = False
        self.started = False
        self.length = 0
        self._text: list[str] = []
        # What separates the text so far from the next.
        self._separator = 0
        # Numbers of open elements: from a hidden one on, and of <pre>.
        self._hidden = 0
        self._preformatted = 0

    def take(self) -> str:
        """Return the text since the last call."""
        text = "".join(self._text)
        self._text, self.length = [], 0
        return text

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.fed = True
        if self._hidden or tag in _HIDDEN or "hidden" in attributes:
            # Elements without an end have one in the parser's events.
            self._hidden += 1
            return
        self._separate(tag)
        if tag == "pre":
            self._preformatted += 1

    def end(self, tag: str) -> None:
        if self._hidden:
            self._hidden -= 1
            return
        if tag != "br":
            self._separate(tag)
        if tag == "pre":
            self._preformatted = max(0, self._preformatted - 1)

    def data(self, text: str) -> None:
        self.fed = True
        if self._hidden or not text:
            return
        text = _C1.sub(lambda match: _CONTROLS[ord(match[0])], text)
        if self._preformatted:
            self._add(text)
            return
        text = _WHITE.sub(" ", text)
        if text[0] == " ":
            self._separator = max(self._separator, _SPACE)
        if stripped := text.strip(" "):
            self._add(stripped)
            if text[-1] == " ":
                self._separator = _SPACE

    def close(self) -> None:
        pass

    def _separate(self, tag: str) -> None:
        if tag in _PARAGRAPHS or (tag == "br" and self._separator == _LINE):
            self._separator = _PARAGRAPH
        elif tag in _LINES:
            self._separator = max(self._separator, _LINE)
        elif tag in {"td", "th"}:
            self._separator = max(self._separator, _TAB)

    def _add(self, text: str) -> None:
        if self.started:
            self._text.append(_SEPARATORS[self._separator])
        self._text.append(text)
        self._separator, self.started = 0, True
        self.length += len(text)
