"""The text of each format: pages, books, tables, JSON lines, compressed files and archives."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.configuration import Configuration
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.reading import markup, tables
from grimmgen.reading.formats import Reading, is_table, read_records, read_text
from grimmgen.reading.sources import Source, find_sources

TALE = "Once upon a time there was a king.\nHe had three daughters.\n"


def source(path: Path, content: bytes | str) -> Source:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    [found], _ = find_sources([str(path)])
    return found


def texts(one: Source, **options: str | bool) -> list[str]:
    configuration = Configuration(**options)  # type: ignore[arg-type]
    if is_table(one):
        return list(read_records(one, configuration, Reading()))
    return ["".join(read_text(one, configuration, Reading()))]


# --- text, compressed or in an archive -----------------------------------------------------------------------


def zstd(content: bytes) -> bytes:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        zstd = pytest.importorskip("backports.zstd")
    return bytes(zstd.compress(content))


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("gz", gzip.compress), ("bz2", bz2.compress), ("XZ", lzma.compress), ("zst", zstd)],
    ids=["gz", "bz2", "xz", "zst"],
)
def test_compressed_text_is_unpacked(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(TALE.encode())
    one = source(tmp_path / f"a.txt.{suffix}", whole)
    assert texts(one) == [TALE]
    # Several streams one after the other, and padding.
    assert texts(source(tmp_path / f"b.txt.{suffix}", whole + compress(b"more") + bytes(64))) == [TALE + "more"]
    with pytest.raises(IntegrityError, match="is damaged"):
        texts(source(tmp_path / f"c.txt.{suffix}", whole[:-9]))
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as archive:
        archive.writestr(f"in/a.txt.{suffix}", whole)
    [inside], _ = find_sources([str(tmp_path / "box.zip")])
    assert (inside.name, texts(inside)) == (f"box.zip/in/a.txt.{suffix}", [TALE])


def test_encoding_option_overrides_the_guess(tmp_path: Path) -> None:
    one = source(tmp_path / "a.txt", "жил был царь".encode("koi8-r"))
    reading = Reading()
    assert "".join(read_text(one, Configuration(encoding="koi8-r"), reading)) == "жил был царь"
    assert reading.decoded
    assert (reading.decoded.encoding, reading.decoded.reason) == ("koi8-r", "--encoding")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (TALE.encode(), [TALE]),
        (gzip.compress(TALE.encode(), mtime=0), [TALE]),
        (b"<!DOCTYPE html>\n<p>Once<p>upon", ["Once\n\nupon\n"]),
        (b'{"text": "Once"}\n{"text": "upon"}\n', ["Once", "upon"]),
        (b'{"text": "' + b"x" * 9999 + b'"}\n{"text": "upon"}\n', ["x" * 9999, "upon"]),
        (b'{"Once" he said: "}"\n', ['{"Once" he said: "}"\n']),
    ],
    ids=["text", "gzip", "page", "JSON lines", "long lines", "no JSON"],
)
def test_standard_input_is_recognised(
    monkeypatch: pytest.MonkeyPatch, content: bytes, expected: list[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    [one], _ = find_sources(["-"])
    assert one.name == one.place == "standard input"
    assert texts(one) == expected


# --- pages and books -----------------------------------------------------------------------------------------

PAGE = """<!DOCTYPE html><html><head><title>T</title><meta charset=utf-8><script>var x = "<p>no";</script></head>
<body><nav><a>menu</a></nav><h1>The  Fox</h1><p>Once
upon <b>a</b><i> time</i>, don&#146;t &amp; &rsquo;x&nbsp;y<br>new line<br/><br>gap</p>
<script src="a"/><ul><li>one<li>two</ul>
<table><tr><td>a<td>b<tr><td>c</table><pre>  keep
   this</pre><ruby>漢<rp>(</rp><rt>kan</rt></ruby>end
<div hidden>no<div>no</div></div><div>d1</div><div>d2</div></body></html>
"""
PAGE_TEXT = (
    "The Fox\n\nOnce upon a time, don’t & ’x\xa0y\nnew line\n\ngap\n\none\ntwo\n\na\tb\nc\n\n  keep\n   this\n\n"
    "漢end\nd1\nd2\n"
)


def test_page_is_read_as_paragraphs_and_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert texts(source(tmp_path / "a.html", PAGE)) == [PAGE_TEXT]
    assert texts(source(tmp_path / "a.HTM.gz", gzip.compress(PAGE.encode()))) == [PAGE_TEXT]
    assert "".join(markup.page_text(PAGE)) == PAGE_TEXT, "cut into characters"
    monkeypatch.setattr(markup, "_PIECE", 1)
    assert "".join(markup.page_text([PAGE])) == PAGE_TEXT


def test_declared_encoding_of_a_page_is_used(tmp_path: Path) -> None:
    head = "<meta http-equiv=Content-Type content='text/html; charset=shift_jis'>"
    assert texts(source(tmp_path / "a.html", f"{head}<p>王様".encode("cp932"))) == ["王様\n"]
    xml = "<?xml version='1.0' encoding='ISO-8859-1'?><p>caf\xe9 don\x92t"
    assert texts(source(tmp_path / "b.xhtml", xml.encode("latin-1"))) == ["café don’t\n"]


@pytest.mark.parametrize(
    "page",
    [
        "<div>" * 50_000 + "x",
        "<b x=1>" * 50_000 + "x",
        "<!--" * 50_000,
        "<!" * 50_000,
        "<a b='" * 50_000,
        "&" * 50_000,
    ],
    ids=lambda page: page[:6],
)
def test_hostile_page_takes_no_time(tmp_path: Path, page: str) -> None:
    assert len(texts(source(tmp_path / "a.html", page))[0]) < 60_000


CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>
<rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><manifest>
<item id="b" href="text/two%20.xhtml" media-type="application/xhtml+xml"/>
<item id="a" href="one.xhtml" media-type="application/xhtml+xml"/>
<item id="n" href="notes.xhtml" media-type="application/xhtml+xml"/>
<item id="i" href="i.png" media-type="image/png"/></manifest>
<spine><itemref idref="a"/><itemref idref="b"/><itemref idref="i"/><itemref idref="n" linear="no"/></spine></package>"""


def book(path: Path, **changed: str | None) -> Path:
    """Write an EPUB book; the keywords replace one of its files, or leave it out."""
    chapter = "<?xml version='1.0' encoding='utf-8'?><html><head><title/></head><body><p>{}</p></body></html>"
    members = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OEBPS/book.opf": PACKAGE,
        "OEBPS/one.xhtml": chapter.format("Once upon a time."),
        "OEBPS/text/two .xhtml": chapter.format("The end."),
        "OEBPS/notes.xhtml": chapter.format("A note."),
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | changed).items():
            if content is not None:
                archive.writestr(name, content)
    return path


def test_book_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    path = book(tmp_path / "a.epub")
    [one], _ = find_sources([str(path)])
    assert texts(one) == ["Once upon a time.\n\nThe end.\n"]
    with zipfile.ZipFile(tmp_path / "box.zip", "w") as archive:
        archive.write(path, "in/a.epub")
    [inside], _ = find_sources([str(tmp_path / "box.zip")])
    assert texts(inside) == texts(one)


@pytest.mark.parametrize(
    ("changed", "kind", "message"),
    [
        ({"META-INF/container.xml": None}, IntegrityError, "has no file 'META-INF/container.xml'"),
        ({"OEBPS/book.opf": "<package>"}, IntegrityError, "book.opf is not XML"),
        ({"OEBPS/book.opf": "<package/>"}, IntegrityError, "has no chapters"),
        ({"OEBPS/one.xhtml": None}, IntegrityError, "has no file 'OEBPS/one.xhtml'"),
        (
            {"META-INF/encryption.xml": "<a><CipherReference URI='OEBPS/one.xhtml'/></a>"},
            GrimmgenError,
            "is protected by encryption",
        ),
    ],
    ids=str,
)
def test_damaged_or_protected_book_is_an_error(
    tmp_path: Path, changed: dict[str, str | None], kind: type[GrimmgenError], message: str
) -> None:
    [one], _ = find_sources([str(book(tmp_path / "a.epub", **changed))])
    with pytest.raises(kind, match=message):
        texts(one)


def test_entities_of_a_book_are_not_expanded(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    declared = f'<!DOCTYPE p [<!ENTITY x SYSTEM "file://{secret}">]>'
    [one], _ = find_sources(
        [str(book(tmp_path / "a.epub", **{"OEBPS/book.opf": declared + PACKAGE.replace("one", "&x;")}))]
    )
    with pytest.raises(GrimmgenError) as caught:
        texts(one)
    assert "secret" not in caught.value.what.replace(str(secret), "")
    bomb = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 30))
    hostile = f'<!DOCTYPE p [<!ENTITY a0 "ha">{bomb}]>' + PACKAGE.replace("<spine>", "<spine>&a29;")
    [one], _ = find_sources([str(book(tmp_path / "b.epub", **{"OEBPS/book.opf": hostile}))])
    with pytest.raises(IntegrityError, match="is not XML"):
        texts(one)


# --- the licence of Project Gutenberg ------------------------------------------------------------------------

HEADER = """The Project Gutenberg eBook of Tales

This ebook is for the use of anyone anywhere.

*** START OF THE PROJECT GUTENBERG EBOOK TALES ***

Produced by A. Reader and
the Distributed Team

"""
FOOTER = """
*** END OF THE PROJECT GUTENBERG EBOOK TALES ***

Updated editions will replace the previous one.
"""
BOOK = HEADER + TALE + FOOTER


@pytest.mark.parametrize(
    ("header", "footer"),
    [
        (HEADER, FOOTER),
        ("\ufeff" + HEADER.replace("THE PROJECT", "THIS PROJECT"), FOOTER.replace("*** END", "***END")),
        (
            "Header\n*END*THE SMALL PRINT! FOR PUBLIC DOMAIN ETEXTS*Ver.04.29.93*END*\n",
            "End of Project Gutenberg's Tales",
        ),
        (HEADER.replace("\n", "\r\n"), FOOTER.replace("\n", "\r\n")),
        (HEADER, ""),
        ("", ""),
    ],
)
def test_licence_around_a_book_is_dropped(tmp_path: Path, header: str, footer: str) -> None:
    whole = header + TALE + footer
    reading = Reading()
    one = source(tmp_path / "a.txt", whole)
    read = "".join(read_text(one, Configuration(), reading))
    assert read.strip() == TALE.strip()
    assert reading.boilerplate == len(whole.removeprefix("\ufeff")) - len(read)
    assert texts(one, keep_boilerplate=True) == [whole.removeprefix("\ufeff")]


def test_books_one_after_the_other_lose_each_licence(tmp_path: Path) -> None:
    assert texts(source(tmp_path / "a.txt", BOOK + BOOK))[0].split() == (TALE + TALE).split()


def test_text_behind_a_licence_is_kept(tmp_path: Path) -> None:
    mine = "My own story. " * 8000
    read = texts(source(tmp_path / "a.txt", HEADER + TALE * 5000 + FOOTER + mine))[0]
    assert mine in read
    assert read.count(TALE) == 5000


# --- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        ("name\nAnna\nBert\n", {}, ["Anna", "Bert"]),
        ('id,text,year\n1,Once,1812\n2,"Two, ""b""\nlines",1815\n', {}, ["Once", 'Two, "b"\nlines']),
        ("id;title\r\n1;Der König\r\n2;Die Gans, klein\r\n", {}, ["Der König", "Die Gans, klein"]),
        ("sentence\nHello, world\nGoodbye\n", {}, ["Hello, world", "Goodbye"]),
        ("a\tb\n1\tx y\n2\tz\n", {"column": "a"}, ["1", "2"]),
        ('title,body\nA fox,"' + "b " * 99 + '"\nA hen,"' + "c " * 99 + '"\n', {}, ["b " * 99, "c " * 99]),
        ("text,sex\n\nAnna,f\n\nBert,m\n", {}, ["Anna", "Bert"]),
        ("\ufefftext,n\nAnna,1\n", {}, ["Anna"]),
        ("text,n\rAnna,1\rBert,2\r", {}, ["Anna", "Bert"]),
    ],
    ids=lambda value: str(value)[:12],
)
def test_text_of_a_table_is_one_column(
    tmp_path: Path, content: str, options: dict[str, str], expected: list[str]
) -> None:
    assert texts(source(tmp_path / "a.csv", content), **options) == expected
    assert texts(source(tmp_path / "a.tsv.gz", gzip.compress(content.encode())), **options) == expected
    assert (
        list(tables.csv_texts(content.removeprefix("\ufeff"), options.get("column"), False, tables.Rows("a")))
        == expected
    )


def rows(one: Source, **options: str) -> tuple[list[str], int, str]:
    reading = Reading()
    read = list(read_records(one, Configuration(**options), reading))  # type: ignore[arg-type]
    assert reading.rows
    return read, reading.rows.bad, reading.rows.first_bad


def test_json_lines_are_read_by_field(tmp_path: Path) -> None:
    lines = [{"id": str(n), "text": f"tale {n}", "title": f"title of {n}"} for n in range(3)]
    one = source(tmp_path / "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert texts(one) == ["tale 0", "tale 1", "tale 2"]
    assert texts(one, field="title") == ["title of 0", "title of 1", "title of 2"]
    assert texts(source(tmp_path / "b.ndjson", '"one"\n"two"\n')) == ["one", "two"]
    assert texts(source(tmp_path / "c.jsonl", '{"story": "Once ☃"}'.encode("utf-16"))) == ["Once ☃"]


@pytest.mark.parametrize(
    ("name", "content", "what", "remedy"),
    [
        (
            "a.csv",
            "title,name\nThe fox,Anna\nThe hen,Bert\n",
            "has several columns with text: title, name",
            "--column title",
        ),
        ("a.csv", "a,b\n1,2\n", "has no column with text", "a, b"),
        ("a.jsonl", '{"title": "The fox", "name": "Anna K."}\n', "has several fields with text", "--field"),
        ("a.jsonl", '{"n": 1, "m": 2}\n', "has no field with text", "m, n"),
    ],
)
def test_several_columns_with_text_are_an_error(
    tmp_path: Path, name: str, content: str, what: str, remedy: str
) -> None:
    one = source(tmp_path / name, content)
    with pytest.raises(UsageError) as caught:
        texts(one)
    assert what in caught.value.what
    assert remedy in caught.value.remedy


def test_remedy_for_several_columns_works(tmp_path: Path) -> None:
    one = source(tmp_path / "a.csv", "title,name\nThe fox,Anna\n")
    with pytest.raises(UsageError, match=r"choose one, as in --column title"):
        texts(one)
    assert texts(one, column="title") == ["The fox"]
    with pytest.raises(UsageError, match=r"has no column 'year': give one of title, name"):
        texts(one, column="year")
