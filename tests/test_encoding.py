"""Normalising, counting and encoding piece by piece, compared with the plain reference; the cache of ids."""

from __future__ import annotations

import os
import queue
import sys
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Configuration, Newlines, Normalisation
from grimmgen.errors import GrimmgenError, UsageError
from grimmgen.io import files, paths
from grimmgen.text import encoding, id_cache, ngrams, normalisation
from grimmgen.text.corpus import open_corpus
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.normalisation import code_points, last_boundary, normalise, normalised_codes, normalised_pieces
from grimmgen.text.split import split_by_hash
from tests.reference_encoding import ReferenceVocabulary

# Characters that change their length, are composed, depend on their neighbours or are often lost; in UTF-8 they
# have one to four bytes.
ODD = "ab AB.'\0\r\n\t\u2028\ufeffe\u0301\u0327\u0130\u03a3\u03a3\u1e9e\u212b\u1100\u1161\u11a8\U0001f469\u200d"
ODD += ":^`中文。é“"
TEXTS = st.text(st.sampled_from(ODD) | st.characters(exclude_categories=["Cs"]), max_size=40)
NEWLINES: st.SearchStrategy[Newlines] = st.sampled_from(["keep", "space"])
NORMALISATIONS = st.builds(Normalisation, st.booleans(), NEWLINES, st.sampled_from([None, "tr"]))
# No deadline, so that a busy machine does not fail the test.
no_deadline = settings(deadline=None)
many_examples = settings(deadline=None, max_examples=400)


@dataclass
class Pieces:
    """A text in pieces of `size` characters."""

    text: str
    size: int

    def pieces(self) -> Iterator[str]:
        for begin in range(0, len(self.text), self.size):
            yield self.text[begin : begin + self.size]


@no_deadline
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
def test_pieces_are_counted_and_encoded_as_the_reference(
    texts: list[str],
    probe: str,
    size: int,
    n: int,
    min_count: int,
    lower: bool,
    newlines: Newlines,
    phases: bool,
) -> None:
    options = n, min_count, Normalisation(lower, newlines), phases
    pieces = [Pieces(text, size) for text in texts]
    reference = ReferenceVocabulary(texts, n, min_count, lower, newlines, phases)
    if not reference.kept:
        with pytest.raises(UsageError, match="give more text"):
            NgramVocabulary.build(pieces, *options)
        return
    vocabulary = NgramVocabulary.build(pieces, *options)
    assert list(zip(vocabulary.texts, vocabulary.counts, strict=True)) == list(reference.kept.items())
    assert list(vocabulary.alphabet) == reference.alphabet
    assert dict(vocabulary.unknown_characters) == reference.unknown_characters
    for text in [*texts, probe]:
        for phase in range(n):
            parts = list(encoding.encode(Pieces(text, size), vocabulary, phase))
            assert {part.dtype for part in parts} == {np.dtype(np.uint16)}
            assert np.concatenate(parts).tolist() == reference.encode(text, phase)


@many_examples
@given(TEXTS, NORMALISATIONS, st.data())
def test_parts_at_a_boundary_are_normalised_independently(
    text: str, options: Normalisation, data: st.DataObject
) -> None:
    start = data.draw(st.integers(1, max(1, len(text))))
    at = last_boundary(text, start)
    assert at == 0 or start <= at <= len(text)
    parts = normalise(text[:at], options) + normalise(text[at:], options)
    assert parts == normalise(text, options)


@many_examples
@given(TEXTS, NORMALISATIONS)
@example("é\r\r\n", Normalisation())
@example("\u1100\r\r\n", Normalisation())
@example("KING I\u0307", Normalisation(language="tr"))
def test_normalised_codes_equal_normalise(text: str, options: Normalisation) -> None:
    codes = normalised_codes(text, options)
    assert codes.tolist() == code_points(normalise(text, options)).tolist()


def test_text_without_a_boundary_is_cut_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "_LONGEST_WITHOUT_BOUNDARY", 20)
    dots = ["." * 7] * 9 + ["\r\n"] * 30 + ["\0" * 50]
    pieces = list(normalised_pieces(dots, Normalisation()))
    assert max(map(len, pieces)) <= 50
    assert "".join(map(chr, np.concatenate(pieces))) == normalise("".join(dots))


def test_boundaries_are_found_in_every_script() -> None:
    for text in (
        "the king",
        "der König",
        "Жил-был царь",
        "从前有一个国王",
        "กาลครั้งหนึ่งนานมาแล้ว",
        "옛날 옛적에",
        "한국어",
    ):
        assert last_boundary(text), text
    assert not last_boundary("\u1100\u1161\u11a8")
    assert not last_boundary("a\u03a3")
    assert all(last_boundary(text) for text in ("1,2,3", "\0\0", "=====", "word \u0301"[:5]))


@pytest.mark.parametrize("lower", [True, False])
def test_table_has_only_context_free_characters(lower: bool) -> None:
    table = normalisation._table(Normalisation(lower))
    context_free = {chr(code) for code in np.flatnonzero(table != 0xFFFF)}
    assert {*"aZ\n\r “é中ж\u212b"} <= context_free
    for character in context_free:
        assert chr(table[ord(character)]) == normalise(character, Normalisation(lower))
    # Characters that are composed with the one before them are not in the table, nor do they follow a boundary.
    seconds = {"".join(map(chr, range(0x1161, 0x1176))), "".join(map(chr, range(0x11A8, 0x11C3)))}
    every = [chr(code) for code in range(sys.maxunicode + 1)]
    seconds |= {
        chr(int(parts[1], 16))
        for parts in (unicodedata.decomposition(character).split() for character in every)
        if len(parts) == 2 and not parts[0].startswith("<")
    }
    composed = set().union(*seconds) | {character for character in every if unicodedata.combining(character)}
    assert len(composed) > 900
    assert not composed & context_free
    assert not any(normalisation._is_independent(character) for character in composed)


def test_counts_are_equal_with_and_without_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice([*"abcdefgh \u4e2d"], 2000)) for _ in range(3)]
    expected = ReferenceVocabulary(texts, 4, 2, phases=True).kept
    for table, batch in (1 << 22, 50), (1 << 22, 1 << 17), (64, 1 << 17):
        monkeypatch.setattr(ngrams, "LARGEST_TABLE", table)
        monkeypatch.setattr(ngrams, "_BATCH", batch)
        vocabulary = NgramVocabulary.build([Pieces(text, 100) for text in texts], 4, 2, phases=True)
        assert list(zip(vocabulary.texts, vocabulary.counts, strict=True)) == list(expected.items())


# --- the cache of ids of large texts -------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "tale.txt"
    path.write_text("The king said “no”.\r\nÉtait-ce Σοφίας? 👑\n" * 300, encoding="utf-8")
    return path


def encoded(text: Path, configuration: Configuration) -> encoding.EncodedDocuments:
    return encoding.encode_documents(split_by_hash(open_corpus(str(text))).parts["train"], configuration)


def ids(encoded: encoding.EncodedDocuments) -> list[list[list[int]]]:
    return [[cut[:].tolist() for cut in cuts] for cuts in encoded.documents]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the ids of every text in the cache."""
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)


def cached_files() -> set[str]:
    return {path.name for path in paths.id_cache_directory().glob("*.ids")}


@pytest.mark.parametrize("options", [{}, {"phases": True, "ngram": 3}, {"lower": False, "min_count": 1}])
def test_cached_ids_equal_those_in_memory(
    text: Path, options: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = Configuration(**options)  # type: ignore[arg-type]
    expected = encoded(text, configuration)
    assert not paths.id_cache_directory().exists()
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    for _ in range(2):
        cached = encoded(text, configuration)
        assert (cached.vocabulary, ids(cached)) == (expected.vocabulary, ids(expected))
        cut = cached.documents[0][-1]
        assert cut[3:9].tolist() == expected.documents[0][-1][3:9].tolist()
        assert cut[5:2].tolist() == cut[10**9 :].tolist() == []


@pytest.mark.usefixtures("large")
def test_cache_key_depends_on_text_and_options(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded(text, Configuration())
    first = cached_files()
    with monkeypatch.context() as patch:
        patch.setattr(id_cache, "write", None)  # not called, since the file is there
        encoded(text, Configuration(hidden=3))
    encoded(text, Configuration(min_count=2))
    assert len(first) == 1
    assert len(first | cached_files()) == 2
    text.write_text("Another tale. " * 100, encoding="utf-8")
    assert "an" in encoded(text, Configuration()).vocabulary.texts
    assert len(cached_files()) == 3


@pytest.mark.usefixtures("large")
def test_old_files_of_ids_are_removed(text: Path) -> None:
    for count in range(1, 7):
        encoded(text, Configuration(min_count=count))
    assert len(cached_files()) == id_cache.KEPT
    # The temporary file of a process that was killed while writing is removed by the next one.
    (paths.id_cache_directory() / ".x.ids.999999999.0123abcd.tmp").write_bytes(b"half")
    encoded(text, Configuration(min_count=9))
    assert not list(paths.id_cache_directory().glob("*.tmp"))


@pytest.mark.usefixtures("large")
def test_damaged_file_of_ids_is_written_again(text: Path) -> None:
    expected = ids(encoded(text, Configuration()))
    [path] = paths.id_cache_directory().glob("*.ids")
    good = path.read_bytes()
    for bad in b"", good[:-1], good[2:], b"\xff\xff" + good[2:], good[:-9] + b"\xff" * 9, good[-40:], b"x" * 99:
        path.unlink()
        path.write_bytes(bad)
        assert ids(encoded(text, Configuration())) == expected
        assert path.read_bytes() == good


@pytest.mark.usefixtures("large")
def test_of_two_processes_one_encodes_and_one_waits(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = id_cache.write, []

    def write_slowly(*arguments: Any) -> None:
        time.sleep(0.2)
        written.append(arguments[0])
        write(*arguments)

    monkeypatch.setattr(id_cache, "write", write_slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: ids(encoded(text, Configuration())), range(2))
    assert first == second
    assert len(written) == 1


@pytest.mark.usefixtures("large")
def test_waiting_for_another_encoder_is_notified(text: Path) -> None:  # fault 16
    directory = paths.id_cache_directory()
    directory.mkdir(parents=True)
    messages: queue.Queue[str] = queue.Queue()
    documents = split_by_hash(open_corpus(str(text))).parts["train"]
    with ThreadPoolExecutor(1) as pool:
        with files.locked(directory / ".lock", "the cache"):
            result = pool.submit(encoding.encode_documents, documents, Configuration(), messages.put)
            assert messages.get(timeout=10) == f"waiting for process {os.getpid()}"
        assert ids(result.result()) == ids(encoded(text, Configuration()))
    assert messages.empty()


@pytest.mark.usefixtures("large")
def test_text_that_changes_once_opened_is_encoded_as_it_was(text: Path) -> None:  # fault 49
    documents = split_by_hash(open_corpus(str(text))).parts["train"]
    before = [document.read() for document in documents]
    text.write_text("Another tale. " * 100, encoding="utf-8")
    result = encoding.encode_documents(documents, Configuration())
    assert result.vocabulary == NgramVocabulary.build(before)


@pytest.mark.usefixtures("large")
def test_full_disk_leaves_no_file_of_ids(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fault 15
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GrimmgenError, match=r"cannot write .*\.ids \(No space left on device\): free some space"):
        encoded(text, Configuration())
    assert [path.name for path in paths.id_cache_directory().iterdir()] == [".lock"]
