"""Every remedy that `vocab --check` prints for a text is run on it, and the text is right afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.configuration import Configuration
from grimmgen.reading import repair
from grimmgen.reading.repair import compounds_of, find_defects, repaired
from grimmgen.text.corpus import open_corpus
from tests.program import Ran

Program = Callable[..., Ran]


def fixed(text: str) -> str:
    return "".join(repaired([text], find_defects([text]), compounds_of([text])))


def as_windows_1252(text: str) -> str:
    """UTF-8 decoded wrongly; five bytes are control characters, as in browsers."""
    return "".join(bytes([byte]).decode("cp1252", "ignore") or chr(byte) for byte in text.encode())


# Texts that are in order, with characters that look as if they were not.
SOUND = [
    "« Voilà\xa0», dit-il. Été… daß… “né\xa0!” ¿qué? í »so« Â, Ã.",
    "می\u200cخواهم کتاب\u200cها",
    "क्\u200dष कहानी",
    "👨\u200d👩\u200d👧 ❤\ufe0f 🏴\U000e0067\U000e0062\U000e007f",
    "a new emoji: \U0001faea, and one of a later Unicode: \U0001faff",
    "ภาษา\u200bไทย",
    "שלום\u200f, (hello)\u200e",
    "A well-known fact - or not.\nAnna-\nMaria came.\n",
    "IRMÃ… também não é maçã",
]
TALE = "Il était une fois un café: “don’t” – voilà «\xa0né\xa0» … été… 😀 €\n"
CASES = {
    "mojibake": (as_windows_1252(TALE), TALE),
    "mojibake of Latin-1": (TALE.encode().decode("latin-1"), TALE),
    "mojibake twice": (as_windows_1252(as_windows_1252("don’t, Rotkäppchen")), "don’t, Rotkäppchen"),
    "mojibake in part": (
        "naïve, déjà vu, Straße, über: cafÃ©, donâ€™t",
        "naïve, déjà vu, Straße, über: café, don’t",
    ),
    "mojibake of Cyrillic": (as_windows_1252("Жил был царь — «да»"), "Жил был царь — «да»"),
    "mojibake of Chinese": (as_windows_1252("从前有一个国王。"), "从前有一个国王。"),
    "mark inside": ("»x« \ufeff¿í? می\u200cخواهم", "»x« ¿í? می\u200cخواهم"),
    "soft hyphens": ("Rot\u00adkäpp\u00adchen «í»", "Rotkäppchen «í»"),
    "stray joiners": ("ab\u200dc\u200b d\u2060e", "abc de"),
    "control characters": ("bell\x07 don\x92t", "bell don’t"),
    "direction": ("abc\u202edef\u202c", "abcdef"),
    "ligatures": ("e\ufb03cient \ufb01re, o\ufb00", "efficient fire, off"),
    "hyphens": (
        "the well-\nknown and ex-\nample, of hy-\nphens; a well-known\nfact. Anna-\nMaria\n",
        "the well-known\nand example,\nof hyphens;\na well-known\nfact. Anna-\nMaria\n",
    ),
}


@pytest.mark.parametrize("text", SOUND, ids=lambda text: text[:8])
def test_what_belongs_to_the_writing_stays(text: str) -> None:
    assert not find_defects([text])
    assert fixed(text) == text
    assert fixed(text + "\ufeff") == text, "also where something else is repaired"


@pytest.mark.parametrize(("text", "right"), CASES.values(), ids=CASES)
def test_defects_are_repaired(text: str, right: str) -> None:
    assert fixed(text) == right
    assert not find_defects([right])
    for cut in range(1, len(text), 7):
        pieces = [text[at : at + cut] for at in range(0, len(text), cut)]
        assert "".join(repaired(pieces, find_defects(pieces), compounds_of(pieces))) == right


def test_unknown_characters_are_reported_and_kept() -> None:
    text = "lost \ufffd, and private \ue000"
    assert {*find_defects([text]).characters} == {"\ufffd", "\ue000"}
    assert fixed(text) == text


def test_long_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair, "_LONGEST_LINE", 10)
    pieces = ["soft\u00adhyphen " * 3] * 5
    assert "".join(repaired(pieces, find_defects(pieces))) == "softhyphen " * 15


@pytest.mark.parametrize(("text", "right"), CASES.values(), ids=CASES)
def test_printed_remedy_makes_the_text_right(tmp_path: Path, run: Program, text: str, right: str) -> None:
    path = tmp_path / "tales" / "a.txt"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8", newline="")
    remedies = [line.rpartition(": ")[2] for line in characters(run, path)]
    assert remedies
    for number, remedy in enumerate(remedies):
        command, option, _ = remedy.split()[:3]  # vocab --repair DIR …
        out = tmp_path / f"out{number}"
        assert run(command, option, str(out), "--corpus", str(path.parent)).code == 0
        assert (out / "a.txt").read_bytes().decode() == right
        assert characters(run, out) == []
    assert path.read_bytes().decode() == text, "the original stays"


def characters(run: Program, path: Path) -> list[str]:
    ran = run("vocab", "--check", "--corpus", str(path))
    assert ran.code == 0
    return [
        line for line in ran.out.splitlines() if line.startswith("characters") and " stories have " not in line
    ]


def test_repair_reads_every_format_and_overwrites_nothing(tmp_path: Path, run: Program) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.html").write_text("<p>cafÃ© <b>na\u00adïve</b>", encoding="utf-8")
    (tmp_path / "in" / "b.csv").write_text('id,text\n1,"one\ncafÃ©"\n2,two\n', encoding="utf-8")
    (tmp_path / "in" / "c.txt").write_bytes("kind\u00adly, caf\xe9, ".encode("cp1252") * 20)
    ran = run("vocab", "--repair", str(tmp_path / "out"), "--corpus", str(tmp_path / "in"))
    assert ran == (0, "", f"next: grimmgen train --corpus {tmp_path / 'out'}\n")
    read = open_corpus(str(tmp_path / "out"), Configuration())
    assert [document.read() for document in read.documents] == [
        "café naïve\n",
        "one\ncafé",
        "two",
        "kindly, café, " * 20,
    ]
    assert json.loads((tmp_path / "out" / "b.csv.jsonl").read_text("utf-8").splitlines()[0]) == {
        "text": "one\ncafé"
    }
    again = run("vocab", "--repair", str(tmp_path / "out"), "--corpus", str(tmp_path / "in"))
    assert (again.code, again.out) == (2, "")
    assert "is there already" in again.err
    assert run("vocab", "--repair", str(tmp_path / "x"), "--corpus", "sampler").code == 2
