"""Novelty: what the index says is what brute force says, and it is kept whole or made again."""

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

from grimmgen.errors import GrimmgenError
from grimmgen.evaluation import novelty
from grimmgen.evaluation.novelty import CopyIndex, index_of, measure, measure_together
from grimmgen.io import paths
from grimmgen.runs.registry import Run
from grimmgen.text.corpus import SAMPLER, Document, open_corpus
from grimmgen.text.split import PARTS, split_by_hash
from tests.program import Ran

# Few characters, so that there are copies of copies; of one to four bytes, with first or last bytes in common; one
# that C would end a text at, and half a surrogate pair.
ALPHABET = "ab\0\né😀😁中\udc80"
texts = st.text(ALPHABET, max_size=40)
stories_of = st.lists(texts, min_size=1, max_size=5)


def named(texts: list[str]) -> list[tuple[str, str]]:
    return [(f"story {number}", text) for number, text in enumerate(texts)]


def longest_suffix(stories: list[str], text: str) -> int:
    """By brute force."""
    return next(n for n in range(len(text), -1, -1) if any(text[len(text) - n :] in story for story in stories))


@settings(max_examples=300, deadline=None)
@given(stories_of, texts)
def test_the_longest_suffix_is_that_of_brute_force_and_stands_where_it_is_said_to(
    stories: list[str], text: str
) -> None:
    index = CopyIndex.build(named(stories))
    lengths, places = index.longest_at_each(text)
    assert lengths.tolist() == [longest_suffix(stories, text[:end]) for end in range(1, len(text) + 1)]
    for end, (length, place) in enumerate(zip(lengths.tolist(), places.tolist(), strict=True), 1):
        if length:
            copy = index.copy(text, end, length, place)
            story = dict(named(stories))[copy.story]
            assert (copy.text, copy.begin) == (text[end - length : end], end - length)
            assert story[copy.place : copy.place + length] == copy.text
            assert copy.line == story[: copy.place].count("\n") + 1


@settings(max_examples=200, deadline=None)
@given(stories_of, texts, st.lists(st.text(ALPHABET, max_size=3), max_size=4), st.integers(1, 12))
def test_each_candidate_is_asked_for_by_itself_within_reach(
    stories: list[str], told: str, candidates: list[str], reach: int
) -> None:
    found = CopyIndex.build(named(stories)).longest_suffixes(told, candidates, reach)
    assert found == [min(reach, longest_suffix(stories, told + candidate)) for candidate in candidates]


@settings(max_examples=200, deadline=None)
@given(stories_of, st.integers(1, 64))
def test_the_order_is_that_of_the_suffixes_whatever_is_sorted_at_a_time(stories: list[str], chunk: int) -> None:
    backwards, _, _ = novelty._join(named(stories))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "_CHUNK", chunk)
        order = np.empty(len(backwards), np.int32)
        novelty._sort(np.frombuffer(backwards, np.uint8), order, np.empty_like(order))
    assert order.tolist() == sorted(range(len(backwards)), key=lambda place: backwards[place:])


@settings(max_examples=200, deadline=None)
@given(stories_of, st.lists(texts, max_size=3))
def test_the_shares_are_those_of_brute_force(stories: list[str], judged: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(novelty, "COPY_LENGTHS", (2, 5))
        patch.setattr(novelty, "NGRAM_LENGTHS", (1, 3))
        measured = measure_together(CopyIndex.build(named(stories)), "all", judged)
    characters = sum(map(len, judged))
    assert (measured.name, measured.characters) == ("all", characters)
    for least in (2, 5):
        inside = 0
        for text in judged:
            copied = [any(text[b : b + least] in s for s in stories) for b in range(len(text) - least + 1)]
            inside += sum(any(copied[max(0, at - least + 1) : at + 1]) for at in range(len(text)))
        assert measured.copied[least] == inside / max(1, characters)
    for n in (1, 3):
        grams = [text[b : b + n] for text in judged for b in range(len(text) - n + 1)]
        new = sum(not any(gram in story for story in stories) for gram in grams)
        assert measured.novel[n] == (new / len(grams) if grams else None)
    most = max((longest_suffix(stories, t[:end]) for t in judged for end in range(len(t) + 1)), default=0)
    assert (len(measured.longest.text) if measured.longest else 0) == most


def test_a_training_story_is_copied_whole_and_a_pasted_sentence_is_found_and_named() -> None:
    corpus = open_corpus(SAMPLER)
    parts = split_by_hash(corpus).parts
    index = index_of(parts["train"], True, "keep")
    story = parts["train"][2]
    text = story.read().lower()
    whole = measure(index, "x", text)
    assert whole.longest is not None
    assert (whole.longest.text, whole.longest.story, whole.longest.begin, whole.longest.place) == (
        text, story.name, 0, 0,
    )  # fmt: skip
    assert set(whole.copied.values()) == {1.0}
    assert set(whole.novel.values()) == {0.0}
    sentence = text[1000:1090]
    pasted = measure(index, "x", "qqq " + sentence + " qqq")
    assert pasted.longest is not None
    assert sentence in pasted.longest.text
    assert (pasted.longest.story, pasted.longest.place) == (story.name, 1000 - pasted.longest.text.index(sentence))
    assert pasted.longest.line == text[: pasted.longest.place].count("\n") + 1
    assert pasted.copied[80] == pytest.approx(len(pasted.longest.text) / pasted.characters, abs=0.01)
    # What no story has.
    strange = measure(index, "x", "ЖЖЖЖЖ")
    assert (strange.longest, strange.copied[20], strange.novel[4], strange.novel[8]) == (None, 0.0, 1.0, None)


def test_a_held_out_story_is_what_brute_force_says() -> None:
    parts = split_by_hash(open_corpus(SAMPLER)).parts
    learnt = [story.read().lower() for story in parts["train"]]
    text = parts["valid"][0].read().lower()
    expected, length = [], 0
    for end in range(1, len(text) + 1):
        # At most one character longer than the one before.
        tried = range(length + 1, 0, -1)
        length = next((n for n in tried if any(text[end - n : end] in story for story in learnt)), 0)
        expected.append(length)
    index = index_of(parts["train"], True, "keep")
    assert index.longest_at_each(text)[0].tolist() == expected
    measured = measure(index, "held out", text)
    assert measured.longest is not None
    assert len(measured.longest.text) == max(expected)
    assert measured.novel[12] == sum(n < 12 for n in expected[11:]) / (len(text) - 11)
    assert 0 < measured.copied[20] < 1


# --- the cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def stories(tmp_path: Path) -> list[Document]:
    for name, text in ("a", "The king.\nThe queen."), ("b", "A fox, a fox."):
        (tmp_path / f"{name}.txt").write_text(text)
    return [Document(name, tmp_path / f"{name}.txt") for name in ("a", "b")]


def kept() -> list[Path]:
    return sorted(path for path in paths.index_directory("x").parent.rglob("*") if path.is_file())


def test_the_index_is_made_once_for_the_same_stories_and_kept_without_leftovers(
    stories: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    write = novelty._write

    def noting_write(directory: Path, stories: Iterable[tuple[str, str]]) -> None:
        made.append(directory)
        write(directory, stories)

    monkeypatch.setattr(novelty, "_write", noting_write)
    for _ in range(2):
        assert index_of(stories, True, "keep").longest_suffixes("", ["the queen", "fox", "The"], 99) == [9, 3, 2]
    assert len(made) == 1
    assert [path.name for path in kept()] == ["index.json", "order", "text"]
    assert index_of(stories, False, "keep").longest_suffixes("", ["The"], 99) == [3]
    assert index_of(stories, True, "space").longest_suffixes("", ["king. the"], 99) == [9]
    assert index_of(stories[:1], True, "keep").longest_suffixes("", ["fox"], 99) == [0]
    stories[0].path.write_text("Another tale.")  # type: ignore[union-attr]
    assert index_of(stories, True, "keep").longest_suffixes("", ["another"], 99) == [7]
    assert len(made) == len(set(made)) == 5


@pytest.mark.parametrize("name", ["index.json", "order", "text"])
@pytest.mark.parametrize("damage", ["gone", "cut", "empty", "flipped", "another"])
def test_a_damaged_index_is_made_again(stories: list[Document], name: str, damage: str) -> None:
    index_of(stories, True, "keep")
    [path] = [path for path in kept() if path.name == name]
    content = path.read_bytes()
    path.unlink()
    if damage != "gone":
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        path.write_bytes({"cut": content[:-4], "empty": b"", "flipped": flipped, "another": b"[]"}[damage])
    assert index_of(stories, True, "keep").longest_suffixes("", ["the queen", "fox"], 99) == [9, 3]
    assert path.read_bytes() == content


def test_where_nothing_can_be_written_the_error_names_the_place(stories: list[Document], home: Path) -> None:
    home.write_text("not a directory")
    with pytest.raises(GrimmgenError, match="cannot read") as raised:
        index_of(stories, True, "keep")
    assert str(home) in str(raised.value)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system cannot reserve room on a disk")
def test_a_full_disk_is_an_error_and_not_the_end_of_the_program(
    stories: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fault 15: what is written to a mapped file with holes has no error to return.
    def full(_: int, begin: int, size: int) -> None:
        assert (begin, size) == (0, 4 * len("\0the king.\nthe queen.\0a fox, a fox.\0"))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(GrimmgenError, match="No space left"):
            index_of(stories, True, "keep")
    assert not kept()
    assert index_of(stories, True, "keep").longest_suffixes("", ["fox"], 99) == [3]


# --- the command line ----------------------------------------------------------------------------------------


def test_eval_novelty_names_what_was_pasted(trained: Run, run: Callable[..., Ran], tmp_path: Path) -> None:
    text = tmp_path / "pasted.txt"
    tale = trained.split().parts["train"][3]
    sentence = tale.read()[60:160]
    text.write_text(f"Ж! {sentence.upper()} Ж")
    [judged] = json.loads(run("eval", "--novelty", str(text), "--json").out)["texts"]
    copy = judged["longest_copy"]
    assert sentence.lower() in copy["text"]
    assert tale.read().lower()[copy["place"] :].startswith(copy["text"])
    assert (copy["story"], judged["characters"]) == (tale.name, 105)
    assert judged["copied"] == dict.fromkeys(("20", "40", "80"), copy["characters"] / 105)
    ran = run("eval", "--novelty", str(text))
    assert (ran.code, ran.err) == (0, "")
    assert copy["line"] > 1
    place = f"the story {tale.name}, line {copy['line']}, character {copy['place']}: “"
    assert f"{copy['characters']} characters at {copy['begin']}, from {place}" in ran.out
    assert " ".join(copy["text"].split()) in ran.out
    assert re.search(rf"{text} +105 +{copy['characters']} ", ran.out)


def test_eval_novelty_without_a_file_is_of_a_part_and_of_training_stories_total(
    trained: Run, run: Callable[..., Ran]
) -> None:
    shown = {part: json.loads(run("eval", "--novelty", "--split", part, "--json").out) for part in PARTS}
    for part, stories in trained.split().parts.items():
        assert [text["name"] for text in shown[part]["texts"]] == [story.name for story in stories]
        assert shown[part]["control"]["characters"] == sum(text["characters"] for text in shown[part]["texts"])
    assert all(
        text["longest_copy"]["characters"] == text["characters"] and set(text["novel"].values()) == {0.0}
        for text in shown["train"]["texts"]
    )
    assert shown["valid"]["control"]["novel"]["32"] > 0


@pytest.mark.usefixtures("trained")
def test_generate_novelty_goes_to_standard_error_and_judges_what_was_told(run: Callable[..., Ran]) -> None:
    told = ["generate", "--seed", "the king", "--random-seed", "1", "--length", "60"]
    plain, judged = run(*told), run(*told, "--novelty")
    assert judged.out == plain.out
    assert [line.partition(":")[0] for line in judged.err.splitlines()] == [
        "longest copy", "characters", "new n-grams",
    ]  # fmt: skip
    document = json.loads(run(*told, "--novelty", "--json").out)
    assert document["novelty"]["characters"] == len(document["text"]) - len("the king")
    assert document["control"]["name"] == "valid stories"


@pytest.mark.usefixtures("trained")
def test_each_of_several_stories_is_judged(run: Callable[..., Ran]) -> None:
    told = ["generate", "--seed", "The K", "--length", "60", "--random-seed"]
    alone = [run(*told, seed, "--novelty") for seed in ("3", "4")]
    judged = run(*told, "3", "--stories", "2", "--novelty")
    assert judged.out == "\n".join(ran.out for ran in alone)
    assert judged.err == "".join(f"story {number}:\n{ran.err}" for number, ran in enumerate(alone, 1))
    documents = json.loads(run(*told, "3", "--stories", "2", "--novelty", "--json").out)
    assert documents == [json.loads(run(*told, seed, "--novelty", "--json").out) for seed in ("3", "4")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval --novelty --run sly-fox --run old-owl", "--novelty is shown of one run"),
        ("eval --novelty --dynamic", "--novelty is shown of one run"),
        ("eval --novelty --run ./x.safetensors", "./x.safetensors does not bring the stories it has learnt from"),
        ("generate --novelty --run ./x.safetensors", "./x.safetensors does not bring the stories"),
    ],
)
def test_what_novelty_cannot_be_told_of(
    trained: Run, run: Callable[..., Ran], line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.best_path, "x.safetensors")
    ran = run(*line.split())
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {message}")
