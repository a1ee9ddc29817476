"""Novelty: the index against brute force, its cache, and what the commands print."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Normalisation
from grimmgen.errors import GrimmgenError
from grimmgen.evaluation import novelty
from grimmgen.evaluation.novelty import CopyIndex, CopyLimit, copy_index, measure, measure_together
from grimmgen.io import paths
from grimmgen.runs.registry import Run
from grimmgen.text.corpus import SAMPLER, Document, open_corpus
from grimmgen.text.split import PARTS, split_by_hash
from tests.program import Ran

# Few characters, so that there are many copies: of one to four bytes, some with a common first or last byte; NUL,
# and a lone surrogate.
ALPHABET = "ab\0\né😀😁中\udc80"
texts = st.text(ALPHABET, max_size=40)
corpora = st.lists(texts, min_size=1, max_size=5)


def named(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"story {number}", text) for number, text in enumerate(texts)]


def longest_suffix(documents: list[str], text: str) -> int:
    """The length of the longest suffix of a text in the documents, by brute force."""
    return next(n for n in range(len(text), -1, -1) if any(text[len(text) - n :] in d for d in documents))


@settings(max_examples=300, deadline=None)
@given(corpora, texts)
def test_longest_copies_match_brute_force(documents: list[str], text: str) -> None:
    index = CopyIndex.build(named(documents))
    lengths, positions = index.longest_at_each(text)
    assert lengths.tolist() == [longest_suffix(documents, text[:end]) for end in range(1, len(text) + 1)]
    for end, (length, position) in enumerate(zip(lengths.tolist(), positions.tolist(), strict=True), 1):
        if length:
            copy = index.copy(text, end, length, position)
            source = dict(named(documents))[copy.document]
            assert (copy.text, copy.begin) == (text[end - length : end], end - length)
            assert source[copy.offset : copy.offset + length] == copy.text
            assert copy.line == source[: copy.offset].count("\n") + 1


@settings(max_examples=200, deadline=None)
@given(corpora, texts, st.lists(st.text(ALPHABET, max_size=3), max_size=4), st.integers(1, 12))
def test_longest_suffixes_match_brute_force(
    documents: list[str], text: str, candidates: list[str], limit: int
) -> None:
    found = CopyIndex.build(named(documents)).longest_suffixes(text, candidates, limit)
    assert found == [min(limit, longest_suffix(documents, text + candidate)) for candidate in candidates]


@settings(max_examples=200, deadline=None)
@given(corpora, texts, texts, st.integers(1, 6))
def test_copy_limit_matches_brute_force(documents: list[str], prompt: str, piece: str, limit: int) -> None:
    copies = CopyLimit(CopyIndex.build(named(documents)), limit, prompt, longest_token=3)

    def copied(piece: str) -> int:
        return max((longest_suffix(documents, prompt + piece[: n + 1]) for n in range(len(piece))), default=0)

    allowed = next(n for n in range(len(piece), -1, -1) if copied(piece[:n]) <= limit)
    assert copies.copied(piece) == copied(piece)
    assert copies.allows(piece) == (copied(piece) <= limit)
    assert copies.allowed_length(piece) == allowed
    # After appending, the result is that of the longer prompt.
    longer = copies.appended(piece[:allowed])
    prompt += piece[:allowed]
    assert longer.copied(piece) == copied(piece)
    assert (copies.longest, longer.longest) == (0, 0)
    longer.append(piece, copied(piece))
    assert longer.longest == copied(piece)


@settings(max_examples=200, deadline=None)
@given(corpora, st.integers(1, 64))
def test_suffix_array_is_sorted_for_any_chunk_size(documents: list[str], chunk: int) -> None:
    text, _, _ = novelty._join(named(documents))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "_CHUNK", chunk)
        order = np.empty(len(text), np.int32)
        novelty._sort(np.frombuffer(text, np.uint8), order, np.empty_like(order))
    assert order.tolist() == sorted(range(len(text)), key=lambda position: text[position:])


@settings(max_examples=200, deadline=None)
@given(corpora, st.lists(texts, max_size=3))
def test_shares_of_copies_match_brute_force(documents: list[str], measured_texts: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "COPY_LENGTHS", (2, 5))
        patch.setattr(novelty, "NGRAM_LENGTHS", (1, 3))
        measured = measure_together(CopyIndex.build(named(documents)), "all", measured_texts)
    characters = sum(map(len, measured_texts))
    assert (measured.name, measured.characters) == ("all", characters)
    for least in (2, 5):
        inside = 0
        for text in measured_texts:
            copied = [any(text[b : b + least] in d for d in documents) for b in range(len(text) - least + 1)]
            inside += sum(any(copied[max(0, at - least + 1) : at + 1]) for at in range(len(text)))
        assert measured.copied[least] == inside / max(1, characters)
    for n in (1, 3):
        grams = [text[b : b + n] for text in measured_texts for b in range(len(text) - n + 1)]
        new = sum(not any(gram in document for document in documents) for gram in grams)
        assert measured.novel[n] == (new / len(grams) if grams else None)
    prefixes = [text[:end] for text in measured_texts for end in range(len(text) + 1)]
    longest = max((longest_suffix(documents, prefix) for prefix in prefixes), default=0)
    assert (len(measured.longest.text) if measured.longest else 0) == longest


def test_training_text_and_pasted_sentences_are_found() -> None:
    parts = split_by_hash(open_corpus(SAMPLER)).parts
    index = copy_index(parts["train"], Normalisation())
    document = parts["train"][2]
    text = document.read().lower()
    whole = measure(index, "x", text)
    assert whole.longest is not None
    assert (whole.longest.text, whole.longest.document) == (text, document.name)
    assert (whole.longest.begin, whole.longest.offset) == (0, 0)
    assert set(whole.copied.values()) == {1.0}
    assert set(whole.novel.values()) == {0.0}
    sentence = text[1000:1090]
    pasted = measure(index, "x", "qqq " + sentence + " qqq")
    assert pasted.longest is not None
    assert sentence in pasted.longest.text
    offset = 1000 - pasted.longest.text.index(sentence)
    assert (pasted.longest.document, pasted.longest.offset) == (document.name, offset)
    assert pasted.longest.line == text[:offset].count("\n") + 1
    assert pasted.copied[80] == pytest.approx(len(pasted.longest.text) / pasted.characters, abs=0.01)
    unseen = measure(index, "x", "ЖЖЖЖЖ")
    assert (unseen.longest, unseen.copied[20], unseen.novel[4], unseen.novel[8]) == (None, 0.0, 1.0, None)


def test_novelty_of_a_held_out_story_matches_brute_force() -> None:
    parts = split_by_hash(open_corpus(SAMPLER)).parts
    training = [document.read().lower() for document in parts["train"]]
    text = parts["valid"][0].read().lower()
    expected, length = [], 0
    for end in range(1, len(text) + 1):
        # At most one character longer than at the previous position.
        candidates = range(length + 1, 0, -1)
        length = next((n for n in candidates if any(text[end - n : end] in t for t in training)), 0)
        expected.append(length)
    index = copy_index(parts["train"], Normalisation())
    assert index.longest_at_each(text)[0].tolist() == expected
    measured = measure(index, "held out", text)
    assert measured.longest is not None
    assert len(measured.longest.text) == max(expected)
    assert measured.novel[12] == sum(n < 12 for n in expected[11:]) / (len(text) - 11)
    assert 0 < measured.copied[20] < 1


# --- the cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def documents(tmp_path: Path) -> list[Document]:
    for name, text in ("a", "The king.\nThe queen."), ("b", "A fox, a fox."):
        (tmp_path / f"{name}.txt").write_text(text)
    return [Document(name, tmp_path / f"{name}.txt") for name in ("a", "b")]


def cached() -> list[Path]:
    return sorted(path for path in paths.index_directory("x").parent.rglob("*") if path.is_file())


def test_index_is_cached_by_content_and_normalisation(
    documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    write_index = novelty._write_index

    def recording_write_index(directory: Path, texts: Iterable[tuple[str, str]]) -> None:
        written.append(directory)
        write_index(directory, texts)

    monkeypatch.setattr(novelty, "_write_index", recording_write_index)
    for _ in range(2):
        assert copy_index(documents, Normalisation()).longest_suffixes("", ["the queen", "fox", "The"], 99) == [
            9,
            3,
            2,
        ]
    assert len(written) == 1
    assert [path.name for path in cached()] == ["index.json", "order", "text"]
    assert copy_index(documents, Normalisation(lower=False)).longest_suffixes("", ["The"], 99) == [3]
    assert copy_index(documents, Normalisation(newlines="space")).longest_suffixes("", ["king. the"], 99) == [9]
    assert copy_index(documents[:1], Normalisation()).longest_suffixes("", ["fox"], 99) == [0]
    documents[0].path.write_text("Another tale.")  # type: ignore[union-attr]
    assert copy_index(documents, Normalisation()).longest_suffixes("", ["another"], 99) == [7]
    assert len(written) == len(set(written)) == 5


@pytest.mark.parametrize("name", ["index.json", "order", "text"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "flipped", "another"])
def test_damaged_index_is_rebuilt(documents: list[Document], name: str, damage: str) -> None:
    copy_index(documents, Normalisation())
    [path] = [path for path in cached() if path.name == name]
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"cut": content[:-4], "empty": b"", "flipped": flipped, "another": b"[]"}[damage])
    assert copy_index(documents, Normalisation()).longest_suffixes("", ["the queen", "fox"], 99) == [9, 3]
    assert path.read_bytes() == content


def test_unwritable_cache_is_an_error_with_its_path(documents: list[Document], home: Path) -> None:
    home.write_text("not a directory")
    with pytest.raises(GrimmgenError, match="cannot read") as raised:
        copy_index(documents, Normalisation())
    assert str(home) in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve space on a disk")
def test_full_disk_is_an_error(documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> None:
    # Fault 15: on a full disk, writing to a mapped sparse file raises SIGBUS.
    def full(_: int, begin: int, size: int) -> None:
        assert (begin, size) == (0, 4 * len("\0the king.\nthe queen.\0a fox, a fox.\0"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(GrimmgenError, match="No space left"):
            copy_index(documents, Normalisation())
    assert not cached()
    assert copy_index(documents, Normalisation()).longest_suffixes("", ["fox"], 99) == [3]


# --- the command line ----------------------------------------------------------------------------------------


def test_eval_novelty_finds_a_pasted_sentence(trained: Run, run: Callable[..., Ran], tmp_path: Path) -> None:
    text = tmp_path / "pasted.txt"
    tale = trained.split().parts["train"][3]
    sentence = tale.read()[60:160]
    text.write_text(f"Ж! {sentence.upper()} Ж")
    [measured] = json.loads(run("eval", "--novelty", str(text), "--json").out)["texts"]
    copy = measured["longest_copy"]
    assert sentence.lower() in copy["text"]
    assert tale.read().lower()[copy["place"] :].startswith(copy["text"])
    assert (copy["story"], measured["characters"]) == (tale.name, 105)
    assert measured["copied"] == dict.fromkeys(("20", "40", "80"), copy["characters"] / 105)
    ran = run("eval", "--novelty", str(text))
    assert (ran.code, ran.err) == (0, "1 document, 107 bytes from 1 file\n")
    assert copy["line"] > 1
    source = f"the story {tale.name}, line {copy['line']}, character {copy['place']}: “"
    assert f"{copy['characters']} characters at {copy['begin']}, from {source}" in ran.out
    assert " ".join(copy["text"].split()) in ran.out
    assert re.search(rf"{text} +105 +{copy['characters']} ", ran.out)


def test_eval_novelty_without_files_measures_a_part(trained: Run, run: Callable[..., Ran]) -> None:
    shown = {part: json.loads(run("eval", "--novelty", "--split", part, "--json").out) for part in PARTS}
    for part, documents in trained.split().parts.items():
        assert [text["name"] for text in shown[part]["texts"]] == [document.name for document in documents]
        assert shown[part]["control"]["characters"] == sum(text["characters"] for text in shown[part]["texts"])
    assert all(
        text["longest_copy"]["characters"] == text["characters"] and set(text["novel"].values()) == {0.0}
        for text in shown["train"]["texts"]
    )
    assert shown["valid"]["control"]["novel"]["32"] > 0


@pytest.mark.usefixtures("trained")
def test_generate_novelty_is_printed_on_standard_error(run: Callable[..., Ran]) -> None:
    command = ["generate", "--seed", "the king", "--random-seed", "1", "--length", "60"]
    plain, ran = run(*command), run(*command, "--novelty")
    assert ran.out == plain.out
    assert [line.partition(":")[0] for line in ran.err.splitlines()] == [
        "longest copy", "characters", "new n-grams",
    ]  # fmt: skip
    document = json.loads(run(*command, "--novelty", "--json").out)
    assert document["novelty"]["characters"] == len(document["text"]) - len("the king")
    assert document["control"]["name"] == "valid stories"


@pytest.mark.usefixtures("trained")
def test_generate_novelty_reports_each_of_several_stories(run: Callable[..., Ran]) -> None:
    command = ["generate", "--seed", "The K", "--length", "60", "--random-seed"]
    alone = [run(*command, seed, "--novelty") for seed in ("3", "4")]
    both = run(*command, "3", "--stories", "2", "--novelty")
    assert both.out == "\n".join(ran.out for ran in alone)
    assert both.err == "".join(f"story {number}:\n{ran.err}" for number, ran in enumerate(alone, 1))
    documents = json.loads(run(*command, "3", "--stories", "2", "--novelty", "--json").out)
    assert documents == [json.loads(run(*command, seed, "--novelty", "--json").out) for seed in ("3", "4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --novelty --run sly-fox --run old-owl", "--novelty takes one run"),
        ("eval --novelty --dynamic", "--novelty takes one run"),
        ("eval --novelty --run ./x.safetensors", "./x.safetensors does not include its training stories"),
        ("generate --novelty --run ./x.safetensors", "./x.safetensors does not include its training stories"),
    ],
)
def test_novelty_refuses_what_it_cannot_measure(
    trained: Run, run: Callable[..., Ran], line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.best_path, "x.safetensors")
    ran = run(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}")
