"""Encodings are recognised, or the error shows what they might be; no bad byte and no NUL passes (fault 48)."""

from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.errors import GrimmgenError
from grimmgen.reading import decoding
from grimmgen.reading.decoding import Decoded, decode, recognise

TALES = {
    "French": "Il était une fois une petite fille que tout le monde aimait bien, surtout sa grand-mère.",
    "German": "Es war einmal ein König, der hatte eine schöne Tochter. „Was ist“, fragte er – „hör auf!“",
    "Spanish": "Érase una vez un rey que tenía tres hijas. ¿Quién será mañana la más pequeña?",
    "English": "“Who’s there?” he didn’t ask — and nobody answered…",
    "Polish": "Był sobie raz król, który miał trzy córki. Najmłodsza zgubiła złotą kulę, a żaba ją znalazła.",
    "Czech": "Byl jednou jeden král a měl tři dcery. Nejmladší šla k lesu; příliš žluťoučký kůň úpěl.",
    "Turkish": "Bir varmış bir yokmuş, bir padişahın üç kızı varmış. En küçüğü çok güzelmiş.",
    "Russian": "Жил был царь, и было у него три дочери. Младшая была прекрасна, и солнце удивлялось.",
    "Ukrainian": "Жив собі король, і було в нього три доньки. Наймолодша загубила золотий м'ячик.",
    "Greek": "Μια φορά κι έναν καιρό ήταν ένας βασιλιάς που είχε τρεις κόρες.",
    "Hebrew": "היה היה פעם מלך אשר היו לו שלוש בנות. הצעירה הייתה כל כך יפה.",
    "Arabic": "كان يا ما كان في قديم الزمان ملك له ثلاث بنات. وكانت الصغرى جميلة جدا.",
    "Thai": "กาลครั้งหนึ่งนานมาแล้ว มีพระราชาองค์หนึ่งมีพระธิดาสามองค์",
    "Chinese": "从前有一个国王，他有三个女儿。最小的女儿非常美丽，连太阳都感到惊奇。",
    "traditional Chinese": "從前有一個國王，他有三個女兒。最小的女兒非常美麗，連太陽都感到驚奇。",
    "Japanese": "むかしむかし、あるところに王様がいました。王様には三人の娘がありました。",
    "Korean": "옛날 옛적에 한 임금님이 있었습니다. 임금님에게는 세 딸이 있었습니다.",
}
ENCODED = [
    ("French", "windows-1252"),
    ("German", "windows-1252"),
    ("Spanish", "windows-1252"),
    ("English", "windows-1252"),
    ("Polish", "windows-1250"),
    ("Polish", "iso8859-2"),
    ("Czech", "windows-1250"),
    ("Turkish", "windows-1254"),
    ("Russian", "windows-1251"),
    ("Russian", "koi8-r"),
    ("Russian", "cp866"),
    ("Russian", "iso8859-5"),
    ("Ukrainian", "windows-1251"),
    ("Ukrainian", "koi8-u"),
    ("Greek", "windows-1253"),
    ("Hebrew", "windows-1255"),
    ("Arabic", "windows-1256"),
    ("Thai", "cp874"),
    ("Chinese", "gb18030"),
    ("traditional Chinese", "big5"),
    ("Japanese", "cp932"),
    ("Japanese", "euc_jp"),
    ("Korean", "cp949"),
]


def recognised(content: bytes) -> Decoded:
    return recognise(lambda: io.BytesIO(content), "tale.txt")


def read(content: bytes) -> str:
    return "".join(decode(io.BytesIO(content), recognised(content).encoding, "tale.txt"))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in pieces that cut characters in two."""
    monkeypatch.setattr(decoding, "_PIECE", 16)


@pytest.mark.parametrize(("tale", "encoding"), ENCODED, ids=lambda value: value)
def test_older_encoding_is_recognised_by_its_text(tale: str, encoding: str) -> None:
    content = TALES[tale].encode(encoding)
    assert read(content) == TALES[tale]
    assert recognised(content).encoding == encoding
    assert recognised(b"In English, for a long while. " * 3000 + b"\n" + content).encoding == encoding


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
)
@pytest.mark.parametrize("tale", ["Russian", "English", "Chinese", "Arabic", "Greek"])
def test_unicode_is_read_with_and_without_a_mark(tale: str, encoding: str) -> None:
    text = TALES[tale] + "\n😀\n"
    assert read(text.encode(encoding)) == text


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_is_the_same_however_it_is_cut(encoding: str) -> None:
    text = "the kïng, 王様 and the 🐸 frog. " * 9
    assert read(text.encode(encoding)) == text


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60))
def test_valid_utf8_is_utf8(text: str) -> None:
    assert recognised(text.encode()).encoding == "utf-8"
    assert read(text.encode()) == text.removeprefix("\ufeff")


@pytest.mark.parametrize(
    ("content", "encoding", "text"),
    [
        (b"don\x92t\n", "windows-1252", "don’t\n"),
        (b"caf\xe9\n", "windows-1252", "café\n"),
        (b"1\n2\ncaf\xe9\n", "windows-1252", "1\n2\ncafé\n"),
        ("从前有一个国王\n".encode("gbk"), "gb18030", "从前有一个国王\n"),
        ("從前有一個國王\n".encode("big5"), "big5", "從前有一個國王\n"),
        ("むかしむかし、王様が\n".encode("shift_jis"), "cp932", "むかしむかし、王様が\n"),
        ("жил был старый царь\n".encode("koi8-r"), "koi8-r", "жил был старый царь\n"),
        ("жил был старый царь\n".encode("cp1251"), "windows-1251", "жил был старый царь\n"),
        ("жил был царь\n".encode("utf-16-le"), "utf-16-le", "жил был царь\n"),
    ],
    ids=str,
)
def test_one_line_is_enough(content: bytes, encoding: str, text: str) -> None:
    assert (recognised(content).encoding, read(content)) == (encoding, text)


@pytest.mark.parametrize(
    "content", [b"\0", b"the king\0", b"\0" * 99, b"the king\0and the frog", b"x" * 200_000 + b"\0"], ids=len
)
def test_nul_is_refused_with_its_place(content: bytes) -> None:
    with pytest.raises(GrimmgenError, match=rf"tale\.txt is not text \(byte {content.index(0)} is NUL\)"):
        recognised(content)


def test_nul_inside_utf16_is_refused() -> None:
    content = "the king\0 and\n".encode("utf-16")
    with pytest.raises(GrimmgenError, match="has a NUL in utf-16-le"):
        read(content)


@pytest.mark.parametrize("content", [b"\x8d\x81\xfe", b"\xcf\xd0\xc8", "Жу".encode("cp1251")], ids=str)
def test_what_is_not_certain_is_an_error(content: bytes) -> None:
    with pytest.raises(
        GrimmgenError, match=r"tale.txt is not UTF-8 \(byte 0\), and its encoding is not certain"
    ) as caught:
        recognised(content)
    # Each encoding that the remedy names reads what the remedy shows.
    for encoding, shown in re.findall(r"(\S+) reads “([^”]*)”", caught.value.remedy):
        assert shown in "".join(c if c.isprintable() else "\ufffd" for c in content.decode(encoding))


def test_remedy_names_the_right_encoding() -> None:
    with pytest.raises(GrimmgenError) as caught:
        recognised("фея".encode("cp1251"))
    assert "windows-1251 reads “фея”" in caught.value.remedy


@pytest.mark.parametrize(
    ("declared", "content", "text"),
    [
        ("iso-8859-1", b"don\x92t", "don’t"),
        ("GB2312", "囍".encode("gbk"), "囍"),
        ("no such", b"caf\xe9", "café"),
        ("big5", "жил был старый царь".encode("cp1251"), "жил был старый царь"),
        ("utf-16", "Grüße".encode(), "Grüße"),
    ],
)
def test_declared_encoding_is_used_if_it_can_be(declared: str, content: bytes, text: str) -> None:
    found = recognise(lambda: io.BytesIO(content), "page.html", declared)
    assert "".join(decode(io.BytesIO(content), found.encoding, "page.html")) == text


@pytest.mark.parametrize(
    ("encoding", "content", "place"),
    [
        ("utf-8", b"Gr\xc3\xbc\xdf", 4),
        ("cp1252", b"abc\x81", 3),
        ("utf-16-le", b"a\0b", 2),
        ("gb18030", b"ab\xff", 2),
    ],
)
def test_bad_byte_is_an_error_with_its_place(encoding: str, content: bytes, place: int) -> None:
    with pytest.raises(GrimmgenError, match=rf"tale\.txt is not {encoding} \(byte {place}\)"):
        list(decode(io.BytesIO(content), encoding, "tale.txt"))


@settings(deadline=None, max_examples=200)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        text = read(content)
    except GrimmgenError as error:
        text = str(error)
    assert "\0" not in text


def test_remedy_for_a_bad_byte_far_in_a_file_works() -> None:
    content = b"In English, for a long while. " * 20_000 + "Rotk\xe4ppchen".encode("latin-1")
    found = recognise(lambda: io.BytesIO(content), "tale.txt", examined=100_000)
    assert found.encoding == "utf-8"
    with pytest.raises(GrimmgenError, match=r"is not utf-8 \(byte 600004\)") as caught:
        list(decode(io.BytesIO(content), found.encoding, "tale.txt"))
    encoding = caught.value.remedy.rpartition("--encoding ")[2]
    assert "".join(decode(io.BytesIO(content), encoding, "tale.txt")).endswith("Rotkäppchen")


def test_remedy_for_nuls_works(tmp_path: Path) -> None:
    path = tmp_path / "tale.txt"
    path.write_bytes("Grüße\0 an die »Füchse«\n".encode())
    with pytest.raises(GrimmgenError) as caught:
        recognised(path.read_bytes())
    command = caught.value.remedy.rpartition("as with ")[2]
    ran = subprocess.run(command, shell=True, input=path.read_bytes(), capture_output=True, check=True)  # noqa: S602
    assert read(ran.stdout) == "Grüße an die »Füchse«\n"
