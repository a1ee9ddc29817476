"""Corpus checks: each problem is found with its remedy, and a sound corpus has no findings."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Configuration
from grimmgen.evaluation import corpus_checks
from grimmgen.evaluation.corpus_checks import check_corpus
from grimmgen.text import corpus
from grimmgen.text.corpus import Document
from grimmgen.text.split import Split
from tests.program import Ran

# A model small enough for the short texts of these tests.
CONFIGURATION = Configuration(hidden=2, batch_size=2, unroll=5, min_count=1)
WORDS = [a + b + c for a in "bcdfg" for b in "aeiou" for c in "klmn"]


def tale(random_seed: int, words: int = 200) -> str:
    return " ".join(np.random.default_rng(random_seed).choice(WORDS, words).tolist()) + "."


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., Split]:
    """Make a split of 30 sound documents; keyword arguments replace some of them, as in train3=b"x"."""

    def make(**changed: bytes | str) -> Split:
        parts: dict[str, list[Document]] = {"train": [], "valid": [], "test": []}
        for number, part in enumerate(["train"] * 18 + ["valid"] * 6 + ["test"] * 6):
            name = f"{part}{len(parts[part])}"
            content = changed.get(name, tale(number))
            path = tmp_path / f"{name}.txt"
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
            parts[part].append(Document(name, path))
        return Split(
            {"train": tuple(parts["train"]), "valid": tuple(parts["valid"]), "test": tuple(parts["test"])}
        )

    return make


def test_sound_corpus_has_no_findings(split: Callable[..., Split]) -> None:
    assert check_corpus(split(), CONFIGURATION) == []


CHANGED = tale(3).replace("a", "e", 30)


def test_unreadable_file_is_found_with_its_remedy(split: Callable[..., Split]) -> None:
    sound = split()
    Path(str(sound.parts["train"][0].path)).unlink()
    found = check_corpus(sound, CONFIGURATION)[0]
    assert (found.kind, found.remedy) == ("file", "restore it, or train again")


@pytest.mark.parametrize(
    ("changed", "kind", "what", "remedy", "documents"),
    [
        ({"train3": b"caf\xe9"}, "file", "train3.txt is not UTF-8 (byte 3)", "restore it", "train3"),
        ({"train3": " \n"}, "empty", "the story train3: no text", "remove", "train3"),
        (
            {"train3": tale(3) + "\x07"},
            "characters",
            "U+0007 a control character in the story",
            "--repair DIR removes it",
            "train3",
        ),
        ({"train3": "\u200b" + tale(3)}, "characters", "U+200B ZERO WIDTH SPACE", "removes it", "train3"),
        (
            {"train3": "\ue000" + tale(3)},
            "characters",
            "U+E000 a private-use character",
            "only the font",
            "train3",
        ),
        (
            {"train3": "\ufb01re" + tale(3)},
            "characters",
            "1 ligatures, as “\ufb01” for “fi”",
            "by letters",
            "train3",
        ),
        ({"train3": "hy-\nphen\n" * 5 + tale(3)}, "characters", "5 words that are split", "joins them", "train3"),
        ({"train3": "\ufffd" + tale(3)}, "characters", "U+FFFD REPLACEMENT CHARACTER", "lost", "train3"),
        ({"train3": "cafÃ© " + tale(3)}, "characters", "decoded as Windows-1252", "--repair", "train3"),
        ({"valid3": tale(21) + "Ж"}, "characters", "valid stories have characters that do not occur", "add", ""),
        ({"train3": tale(4)}, "duplicate", "train3 and train4 are the same (both train)", "one", "train3 train4"),
        ({"train3": "  " + tale(4).upper() + "\n"}, "duplicate", "are the same", "remove", "train3 train4"),
        ({"train5": CHANGED}, "duplicate", "of the smaller one (both train)", "remove", "train3 train5"),
        ({"train5": tale(5) + tale(3)}, "duplicate", "train3 and train5 share 99%", "remove", "train3 train5"),
        ({"valid5": tale(3)}, "leak", "the same, and one is in train, one in valid", "--split", "train3 valid5"),
        ({"test5": CHANGED}, "leak", "one is in train, one in test", "--split", "train3 test5"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_problem_of_a_document_is_found_with_its_remedy(
    split: Callable[..., Split],
    changed: dict[str, bytes | str],
    kind: str,
    what: str,
    remedy: str,
    documents: str,
) -> None:
    [found] = check_corpus(split(**changed), CONFIGURATION)
    assert found.kind == kind
    assert what in found.what
    assert remedy in found.remedy
    assert " ".join(found.documents) == documents


def test_boilerplate_is_found_once(split: Callable[..., Split]) -> None:
    header = "this tale is brought to you by the friends of tales, who ask nothing for it. " * 3
    parts = split().parts
    changed = {document.name: header + document.read() for part in parts.values() for document in part}
    found = check_corpus(split(**changed), CONFIGURATION)
    assert [finding.kind for finding in found if finding.kind not in {"duplicate", "leak"}] == ["boilerplate"]
    assert found[-1].what.startswith("“")
    assert found[-1].what[1:40] in header * 2
    assert found[-1].what.endswith(" occurs in 30 of 30 stories")


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"hidden": 999}, "parameters (--hidden 999)"),
        ({"unroll": 2000}, "1 updates per epoch (--batch-size 2, --unroll 2000)"),
        ({"min_count": 300}, "of the bigrams of the valid stories are <unk>"),
        ({"min_count": 10**6}, "no 2-gram occurs 1000000 times"),
    ],
    ids=str,
)
def test_too_little_text_for_the_model_is_found(
    split: Callable[..., Split], options: dict[str, Any], what: str
) -> None:
    found = check_corpus(
        split(), Configuration(**{"hidden": 2, "batch_size": 2, "unroll": 5, "min_count": 1, **options})
    )
    assert {finding.kind for finding in found} == {"size"}
    assert any(what in finding.what for finding in found)


def test_few_held_out_documents_are_found(split: Callable[..., Split]) -> None:
    parts = split().parts
    few = Split({**parts, "valid": parts["valid"][:5]})
    assert [(f.kind, f.what) for f in check_corpus(few, CONFIGURATION)] == [
        ("size", "5 valid stories: too few to compare runs")
    ]


def test_large_document_is_checked_in_pieces(split: Callable[..., Split], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "_LARGEST_FETCHED", 100)
    assert check_corpus(split(), CONFIGURATION) == []
    expected = check_corpus(split(train5=CHANGED), CONFIGURATION)
    monkeypatch.setattr(corpus_checks, "_PIECE", 31)
    assert check_corpus(split(train5=CHANGED), CONFIGURATION) == expected != []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 11), max_size=4), min_size=2, max_size=6))
def test_shared_shingles_match_brute_force(block_numbers: list[list[int]]) -> None:
    blocks = [tale(number, 12) for number in range(12)]
    texts = [" ".join(blocks[number] for number in numbers) for numbers in block_numbers]
    shingles = [{text[at : at + 24] for at in range(len(text) - 23)} for text in texts]
    expected = {}
    for a in range(len(texts)):
        for b in range(a + 1, len(texts)):
            smaller = min(len(shingles[a]), len(shingles[b]))
            if smaller >= 8 and (share := len(shingles[a] & shingles[b]) / smaller) >= corpus_checks.NEAR:
                expected[a, b] = min(0.99, share)
    near, _ = corpus_checks._near_duplicates(texts)
    assert {(a, b): share for a, b, share in near} == pytest.approx(expected)


def test_sampled_shingles_estimate_the_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [tale(1, 2000), tale(2, 1000) + tale(1, 2000)[:5000], tale(3, 2000)]
    [(_, _, exact)] = corpus_checks._near_duplicates(texts)[0]
    monkeypatch.setattr(corpus_checks, "_MAX_SHINGLES", 3000)
    [(a, b, sampled)] = corpus_checks._near_duplicates(texts)[0]
    assert (a, b) == (0, 1)
    assert sampled == pytest.approx(exact, abs=0.05)


# --- the command line ----------------------------------------------------------------------------------------


def test_vocab_check_prints_one_line_for_each_finding(tales: Path, run: Callable[..., Ran]) -> None:
    ran = run("vocab", "--corpus", str(tales), "--check")
    assert (ran.code, ran.err) == (0, "")
    *lines, last = ran.out.splitlines()
    assert last == f"{len(lines)} warnings in 30 documents of tales"
    found = json.loads(run("vocab", "--corpus", str(tales), "--check", "--json").out)
    assert (found["corpus"], found["stories"]) == (str(tales), 30)
    assert [f"{f['kind']:11} {f['what']}: {f['remedy']}" for f in found["findings"]] == lines
    assert {finding["kind"] for finding in found["findings"]} == {"size", "boilerplate"}


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        (b"don\x92t stop. " * 99, "windows-1252, recognised by its letters"),
        ("жил был царь\n".encode("koi8-r") * 99, "koi8-r, recognised by its most frequent characters"),
        ("жил был царь\n".encode("utf-16-be") * 99, "utf-16-be, recognised by its NULs"),
    ],
    ids=["Windows-1252", "KOI8-R", "UTF-16"],
)
def test_guessed_encoding_is_a_finding(
    tmp_path: Path, run: Callable[..., Ran], content: bytes, encoding: str
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    out = run("vocab", "--check", "--corpus", str(tmp_path / "a.txt")).out
    assert f"encoding    a.txt read as {encoding}: if that is wrong, give the --encoding\n" in out


def test_vocab_check_uses_the_split(tmp_path: Path, run: Callable[..., Ran]) -> None:
    for number in range(20):
        (tmp_path / f"{number:02d}.txt").write_text(tale(number % 19))
    names = [f"{number:02d}" for number in range(20)]
    kinds = []
    for order in (names, [*names[:13], "19", *names[13:19]]):
        parts = {"train": order[:14], "valid": order[14:17], "test": order[17:]}
        (tmp_path / "split.json").write_text(json.dumps(parts))
        options = ["--corpus", str(tmp_path), "--split", str(tmp_path / "split.json"), "--min-count", "1"]
        found = json.loads(run("vocab", "--check", "--json", *options).out)["findings"]
        kinds += [f["kind"] for f in found if f["stories"] == ["00", "19"]]
    assert kinds == ["leak", "duplicate"]


def test_vocab_check_escapes_control_characters(tmp_path: Path, run: Callable[..., Ran]) -> None:
    (tmp_path / "[red]x\x1b.txt").write_text(tale(1) + "\u202e")
    (tmp_path / "y.txt").write_text(tale(1) + "\u202e")
    out = run("vocab", "--check", "--corpus", str(tmp_path)).out
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert "U+202E RIGHT-TO-LEFT OVERRIDE in stories [red]x\\x1b, y" in out
