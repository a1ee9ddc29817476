"""Texts read piece by piece, held against the vocabulary's own plain way; and the file of a large text's ids."""

from __future__ import annotations

import os
import queue
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Configuration, Newlines
from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.text import encoding
from grimmgen.text.corpus import open_corpus
from grimmgen.text.split import split_by_hash
from grimmgen.text.vocabulary import Vocabulary, code_points, normalise

# What is folded, composed, looked at in its neighbourhood, joined or easily lost; letters of one to four bytes.
ODD = "ab AB.'\0\r\n\t\u2028\ufeffe\u0301\u0327\u0130\u03a3\u03a3\u1e9e\u212b\u1100\u1161\u11a8\U0001f469\u200d"
ODD += ":^`中文。é“"
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=40)
NEWLINES: st.SearchStrategy[Newlines] = st.sampled_from(["keep", "space"])
# A busy machine is no failure.
patiently = settings(deadline=None)
thoroughly = settings(deadline=None, max_examples=400)


@dataclass
class Pieces:
    """A text that comes in pieces of so many characters."""

    text: str
    size: int

    def pieces(self) -> Iterator[str]:
        for begin in range(0, len(self.text), self.size):
            yield self.text[begin : begin + self.size]


def outcome(make: Callable[[], Vocabulary]) -> Vocabulary | str:
    """What is made, or why nothing is."""
    try:
        return make()
    except UsageError as error:
        return str(error)


@patiently
@given(
    st.lists(TEXTS, max_size=4),
    TEXTS,
    st.integers(1, 7),
    st.integers(1, 8),
    st.integers(1, 3),
    st.booleans(),
    NEWLINES,
    st.booleans(),
)
@example(["ab\r\n\rc"], "\r\n" * 9, 1, 2, 1, True, "space", True)
@example(["a\u03a3", "a\u03a3b", "a\u03a3.b c\u03a3."], "\u03a3", 1, 2, 1, True, "keep", False)
@example(["e\u0327\u0301", "\u1100\u1161\u11a8"], "e\u0301", 1, 1, 1, False, "keep", False)
@example(["abc", "ab", "a", ""], "abcd", 1, 3, 1, True, "keep", True)
def test_what_comes_in_pieces_is_counted_and_encoded_as_the_whole(
    texts: list[str],
    probe: str,
    size: int,
    n: int,
    min_count: int,
    lower: bool,
    newlines: Newlines,
    phases: bool,
) -> None:
    options = n, min_count, lower, newlines, phases
    pieces = [Pieces(text, size) for text in texts]
    plain = outcome(lambda: Vocabulary.build(texts, *options))
    assert outcome(lambda: Vocabulary.build(pieces, *options)) == plain
    if isinstance(plain, str):
        return
    for text in [*texts, probe]:
        for phase, right in enumerate(plain.encode_phases(text)):
            parts = list(encoding.encode(Pieces(text, size), plain, phase))
            assert {part.dtype for part in parts} == {np.dtype(np.uint16)}
            assert np.concatenate(parts).tolist() == right.tolist()


@thoroughly
@given(TEXTS, st.booleans(), NEWLINES, st.data())
def test_a_text_may_be_cut_at_a_seam(text: str, lower: bool, newlines: Newlines, data: st.DataObject) -> None:
    start = data.draw(st.integers(1, max(1, len(text))))
    at = encoding.seam(text, start)
    assert at == 0 or start <= at <= len(text)
    sides = normalise(text[:at], lower, newlines) + normalise(text[at:], lower, newlines)
    assert sides == normalise(text, lower, newlines)


@thoroughly
@given(TEXTS, st.booleans(), NEWLINES)
@example("é\r\r\n", True, "keep")
@example("\u1100\r\r\n", True, "keep")
def test_folding_is_normalising(text: str, lower: bool, newlines: Newlines) -> None:
    assert encoding.fold(text, lower, newlines).tolist() == code_points(normalise(text, lower, newlines)).tolist()


def test_what_has_no_seam_is_cut_all_the_same_before_it_fills_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_LONGEST", 20)
    dots = ["." * 7] * 9 + ["\r\n"] * 30 + ["\0" * 50]
    folded = list(encoding._folded(dots, True, "keep"))
    assert max(map(len, folded)) <= 50
    assert "".join(map(chr, np.concatenate(folded))) == normalise("".join(dots), True)


def test_seams_are_found_in_every_script() -> None:
    for text in (
        "the king",
        "der König",
        "Жил-был царь",
        "从前有一个国王",
        "กาลครั้งหนึ่งนานมาแล้ว",
        "옛날 옛적에",
        "한국어",
    ):
        assert encoding.seam(text), text
    assert not encoding.seam("\u1100\u1161\u11a8")
    assert not encoding.seam("a\u03a3")
    assert all(encoding.seam(text) for text in ("1,2,3", "\0\0", "=====", "word \u0301"[:5]))


@pytest.mark.parametrize("lower", [True, False])
def test_every_character_that_is_said_to_fold_alone_does(lower: bool) -> None:
    table = encoding._folds(lower, "keep")
    alone = {chr(code) for code in np.flatnonzero(table != 0xFFFF)}
    assert {*"aZ\n\r “é中ж\u212b"} <= alone
    for character in alone:
        assert chr(table[ord(character)]) == normalise(character, lower)
    # What is composed with the character before it is none of them, nor begins behind a seam.
    seconds = {"".join(map(chr, range(0x1161, 0x1176))), "".join(map(chr, range(0x11A8, 0x11C3)))}
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    seconds |= {
        chr(int(parts[1], 16))
        for parts in (unicodedata.decomposition(character).split() for character in every)
        if len(parts) == 2 and not parts[0].startswith("<")
    }
    late = set().union(*seconds) | {character for character in every if unicodedata.combining(character)}
    assert len(late) > 900
    assert not late & alone
    assert not any(encoding._stands_alone(character) for character in late)


def test_a_key_space_too_large_for_a_table_is_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    texts = ["".join(draw.choice([*"abcdefgh \u4e2d"], 2000)) for _ in range(3)]
    right = Vocabulary.build(texts, 4, 2, phases=True)
    for table, at_once in (1 << 22, 50), (1 << 22, 1 << 17), (64, 1 << 17):
        monkeypatch.setattr(encoding, "LARGEST_TABLE", table)
        monkeypatch.setattr(encoding, "_AT_ONCE", at_once)
        assert Vocabulary.build([Pieces(text, 100) for text in texts], 4, 2, phases=True) == right


# --- the file of a large text's ids --------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "tale.txt"
    path.write_text("The king said “no”.\r\nÉtait-ce Σοφίας? 👑\n" * 300, encoding="utf-8")
    return path


def encoded(text: Path, configuration: Configuration) -> encoding.Encoded:
    return encoding.encode_documents(split_by_hash(open_corpus(str(text))).parts["train"], configuration)


def ids(encoded: encoding.Encoded) -> list[list[list[int]]]:
    return [[way[:].tolist() for way in ways] for ways in encoded.documents]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has more than a byte is a large text."""
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)


def kept() -> set[str]:
    return {path.name for path in paths.id_cache_directory().glob("*.ids")}


@pytest.mark.parametrize("options", [{}, {"phases": True, "ngram": 3}, {"lower": False, "min_count": 1}])
def test_ids_in_a_file_are_those_in_memory(
    text: Path, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(**options)  # type: ignore[arg-type]
    right = encoded(text, configuration)
    assert not paths.id_cache_directory().exists()
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    for _ in range(2):
        made = encoded(text, configuration)
        assert (made.vocabulary, ids(made)) == (right.vocabulary, ids(right))
        way = made.documents[0][-1]
        assert way[3:9].tolist() == right.documents[0][-1][3:9].tolist()
        assert way[5:2].tolist() == way[10**9 :].tolist() == []


@pytest.mark.usefixtures("large")
def test_a_file_of_ids_is_found_again_and_what_they_depend_on_makes_another(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(text, Configuration())
    first = kept()
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "_write", None)
        encoded(text, Configuration(hidden=3))
    encoded(text, Configuration(min_count=2))
    assert len(first) == 1
    assert len(first | kept()) == 2
    text.write_text("Another tale. " * 100, encoding="utf-8")
    assert "an" in encoded(text, Configuration()).vocabulary.ngrams
    assert len(kept()) == 3


@pytest.mark.usefixtures("large")
def test_files_of_ids_do_not_pile_up(text: Path) -> None:
    for count in range(1, 7):
        encoded(text, Configuration(min_count=count))
    assert len(kept()) == id_cache.KEPT
    # A process that was killed in the middle of a write leaves nothing for long.
    (paths.id_cache_directory() / ".x.ids.999999999.0123abcd.tmp").write_bytes(b"half")
    encoded(text, Configuration(min_count=9))
    assert not list(paths.id_cache_directory().glob("*.tmp"))


@pytest.mark.usefixtures("large")
def test_a_damaged_file_of_ids_is_made_anew(text: Path) -> None:
    right = ids(encoded(text, Configuration()))
    [path] = paths.id_cache_directory().glob("*.ids")
    good = path.read_bytes()
    for bad in b"", good[:-1], good[2:], b"\xff\xff" + good[2:], good[:-9] + b"\xff" * 9, good[-40:], b"x" * 99:
        path.unlink()
        path.write_bytes(bad)
        assert ids(encoded(text, Configuration())) == right
        assert path.read_bytes() == good


@pytest.mark.usefixtures("large")
def test_of_two_at_once_one_writes_and_the_other_waits(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = encoding._write, []

    def slowly(*arguments: Any) -> None:
        time.sleep(0.2)
        written.append(arguments[0])
        write(*arguments)

    monkeypatch.setattr(encoding, "_write", slowly)
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda _: ids(encoded(text, Configuration())), range(2))
    assert one == other
    assert len(written) == 1


@pytest.mark.usefixtures("large")
def test_who_waits_for_another_is_told(text: Path) -> None:  # fault 16
    directory = paths.id_cache_directory()
    directory.mkdir(parents=True)
    told: queue.Queue[str] = queue.Queue()
    stories = split_by_hash(open_corpus(str(text))).parts["train"]
    with ThreadPoolExecutor(1) as pool:
        with files.locked(directory / ".lock", "the cache"):
            made = pool.submit(encoding.encode_documents, stories, Configuration(), told.put)
            assert told.get(timeout=10) == f"waiting for process {os.getpid()}"
        assert ids(made.result()) == ids(encoded(text, Configuration()))
    assert told.empty()


@pytest.mark.usefixtures("large")
def test_a_text_that_changes_while_it_is_read_is_noticed(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = encoding._write

    def disturbed(*arguments: Any) -> None:
        write(*arguments)
        text.write_text("Another tale. " * 100, encoding="utf-8")

    monkeypatch.setattr(encoding, "_write", disturbed)
    with pytest.raises(IntegrityError, match="the text has changed while it was read: run the command again"):
        encoded(text, Configuration())
    assert not kept()


@pytest.mark.usefixtures("large")
def test_a_full_disk_leaves_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fault 15
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GrimmgenError, match=r"cannot write .*\.ids \(No space left on device\): free some space"):
        encoded(text, Configuration())
    assert [path.name for path in paths.id_cache_directory().iterdir()] == [".lock"]
