"""Documents that are lines, paragraphs, rows or what lies between separators, from reading to resuming a run."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Configuration
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import paths
from grimmgen.runs import registry
from grimmgen.text import corpus as corpora
from grimmgen.text import extraction
from grimmgen.text.corpus import ExtractedDocuments, open_corpus
from grimmgen.text.documents import JoinedText, end_documents, end_records, looks_like_a_list
from grimmgen.text.id_cache import DocumentLengths
from grimmgen.text.normalisation import normalised_pieces
from grimmgen.text.split import PARTS, Split, reopen, split_by_hash
from grimmgen.text.tokenizers import build_vocabulary
from tests.program import Ran

Program = Callable[..., Ran]

TRAIN = "train --hidden 4 --batch-size 4 --unroll 8 --min-count 1 --epochs 1 --quiet".split()


def names(count: int) -> list[str]:
    """Different words of a few letters."""
    generator = random.Random(count)  # noqa: S311 - they are names
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(generator.choices("abdeiklmnorst", k=generator.randint(3, 7)))] = None
    return list(found)


def texts(path: Path | str, **options: Any) -> list[str]:
    return [document.read() for document in open_corpus(str(path), Configuration(**options)).documents]


# --- where documents end -----------------------------------------------------------------------------------

SEPARATED = {
    "file": ["\n\n Anna\r\nBea \n\n \nCara\n\n\tDora\r\rEva\n\n"],
    "line": [" Anna", "Bea ", "Cara", "\tDora", "Eva"],
    "paragraph": [" Anna\nBea ", "Cara", "\tDora", "Eva"],
    "^C": [" Anna\nBea \n\n ", "ara\n\n\tDora\n\nEva"],
    "(?=^C)": [" Anna\nBea \n\n ", "Cara\n\n\tDora\n\nEva"],
    r"(?<=\n)\n|\s*B": [" Anna", "ea ", " \nCara", "\tDora", "Eva"],
    "-{3}": [" Anna\nBea \n\n \nCara\n\n\tDora\n\nEva"],
}


@pytest.mark.parametrize("where", SEPARATED)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_documents_end_in_the_same_places_however_it_is_cut(where: str, size: int) -> None:
    [text] = SEPARATED["file"]
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    assert "".join(end_documents(pieces, where)).split("\0") == [*SEPARATED[where], ""]


@given(st.text("a \n\r", max_size=40), st.lists(st.integers(0, 40)))
def test_lines_are_those_of_python_without_blank_ones(text: str, cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(bounds)]
    lines = [line for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    assert "".join(end_documents(pieces, "line")) == "".join(f"{line}\0" for line in lines)


def test_long_texts_are_separated_as_short_ones() -> None:
    pieces = ["word " * 30_000 + "\n---\n"] * 5
    documents = "".join(end_documents(pieces, "^---$")).split("\0")
    assert documents == ["word " * 30_000] * 5 + [""]


def test_records_are_documents_without_nul_and_blank_ones() -> None:
    assert "".join(end_records(["a\nb", " ", "", "c\0d"])) == "a\nb\0cd\0"


def test_lists_are_told_from_prose_verse_and_code() -> None:
    prose = "Es war einmal ein alter König, der hatte drei Söhne und eine Tochter,\n" * 50
    verse = "Mirror, mirror, on the wall,\nwho is fairest of them all?\n\n" * 20
    assert looks_like_a_list("".join(f"{name}\n" for name in names(60)))
    assert looks_like_a_list("".join(f"{number}\n" for number in range(9999)))
    for text in prose, verse, Path(__file__).read_text("utf-8"), "Anna\nBea\n":
        assert not looks_like_a_list(text)


# --- the corpus --------------------------------------------------------------------------------------------


def test_lines_of_several_files_are_documents_named_by_number(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Anna\n\nBea\n")
    (tmp_path / "b.txt").write_text("Cara")
    opened = open_corpus(str(tmp_path), Configuration(documents="line"))
    assert [(d.name, d.read()) for d in opened.documents] == [("a:1", "Anna"), ("a:2", "Bea"), ("b:1", "Cara")]
    assert str(opened.report) == "3 documents, 11 bytes from 2 files"


def test_rows_are_documents_beside_whole_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("name,age\nAnna,3\nBea,4\n")
    (tmp_path / "b.jsonl").write_text('{"text": "Cara"}\n{"text": "Dora\\nEva"}\n')
    (tmp_path / "c.txt").write_text("Fay\nGus\n")
    opened = open_corpus(str(tmp_path), Configuration(column="name"))
    assert [d.read() for d in opened.documents] == ["Anna", "Bea", "Cara", "Dora\nEva", "Fay\nGus\n"]
    assert [d.name for d in opened.documents][-1] == "c"
    assert split_by_hash(opened).to_json().keys() == {"by_story", "by_content"}


def test_equal_lines_are_in_one_part_and_more_move_none(tmp_path: Path) -> None:
    def parts(lines: list[str]) -> dict[str, str]:
        (tmp_path / "names.txt").write_text("\n".join(lines))
        split = split_by_hash(open_corpus(str(tmp_path / "names.txt"), Configuration(documents="line")))
        assert split.by_story
        found: dict[str, str] = {}
        for part in PARTS:
            for document in split.parts[part]:
                assert found.setdefault(document.read(), part) == part
        return found

    lines = names(600)
    few, many = parts(lines[:300] * 2), parts([*lines[300:], *lines[:300]])
    assert few.items() <= many.items()
    shares = [sum(part == one for one in many.values()) / len(many) for part in PARTS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.04)


def test_parts_are_read_at_once_as_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_PIECE", 64)
    lines = [*names(200), "a long line " * 20, "König 👑"]
    (tmp_path / "names.txt").write_text("\n".join(lines), encoding="utf-8")
    opened = open_corpus(str(tmp_path / "names.txt"), Configuration(documents="line"))
    for documents in [opened.documents, *split_by_hash(opened).parts.values()]:
        assert list(corpora.texts_of(documents)) == [document.read() for document in documents]
        assert "".join(corpora.marked_pieces(documents)) == "".join(d.read() + "\0" for d in documents)
        assert isinstance(documents, ExtractedDocuments)
        assert documents.size == sum(document.size for document in documents)


def test_large_texts_are_extracted_once_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "IN_MEMORY", 16)
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names(50)))
    first = texts(path, documents="line")
    assert first == names(50)
    [cached] = paths.text_cache_directory().glob("*.text")
    before = cached.stat().st_mtime_ns, cached.read_bytes()

    def refuse(*_: object) -> None:
        raise AssertionError("it was extracted again")

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_extract", refuse)
        assert texts(path, documents="line") == first
    cached.write_bytes(before[1].replace(b"\0", b"!", 1))  # a damaged file is written again
    assert texts(path, documents="line") == first
    path.write_text("another list\nof names")
    assert texts(path, documents="line") == ["another list", "of names"]
    assert len(list(paths.text_cache_directory().glob("*.text"))) == 2


def test_empty_files_are_reported_and_do_not_count(tmp_path: Path) -> None:  # issue 16, fault 8
    for name in "xyz":
        (tmp_path / f"{name}.txt").write_text(f"The tale of {name}.\n" * 50)
    (tmp_path / "d.txt").write_text("")
    (tmp_path / "e.txt").write_text(" \n\n")
    opened = open_corpus(str(tmp_path))
    assert str(opened.report).endswith("from 3 files; 2 skipped: d.txt (empty), e.txt (empty)")
    split = split_by_hash(opened)
    assert not split.by_story
    assert all(document.read() for part in PARTS for document in split.parts[part])


TALE = "".join(f"Tale {number} of the old king, who had {number} sons and no gold.\n" for number in range(40))


@pytest.mark.parametrize(
    "other", [TALE, f"Before it.\n{TALE}And after it there is more to be told of them all.\n"]
)
def test_leaks_between_cut_documents_are_reported(tmp_path: Path, run: Program, other: str) -> None:  # fault 6
    (tmp_path / "a.txt").write_text(TALE)
    (tmp_path / "b.txt").write_text(other)
    checked = run("vocab", "--check", "--corpus", str(tmp_path))
    [line] = [line for line in checked.out.splitlines() if line.startswith("leak")]
    assert "a and b" in line
    assert "cut into all parts" in line
    ran = run(*TRAIN[:-1], "--corpus", str(tmp_path))
    assert ran.code == 0
    assert ran.err.count("cut into all parts: remove one") == 1


def test_leaks_between_whole_documents_are_one_line(tmp_path: Path, run: Program) -> None:  # fault 6
    for number in range(30):
        (tmp_path / f"{number}.txt").write_text(TALE)
    ran = run(*TRAIN[:-1], "--json", "--corpus", str(tmp_path))
    assert ran.code == 0
    [leak] = json.loads(ran.out.splitlines()[0])["leaks"]
    assert leak["kind"] == "leak"
    assert len(leak["stories"]) == 30


# --- ids ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["char", "bigram", "ngram:3", "word", "bpe:40"])
@given(data=st.data())
@settings(deadline=None, max_examples=30)
def test_joined_documents_are_encoded_as_each_by_itself(tokens: str, data: st.DataObject) -> None:
    some = st.text("ab .\u0308é👑Σ", min_size=1, max_size=9)
    documents = data.draw(st.lists(some.filter(str.strip), min_size=1, max_size=8))
    text = "".join(document + "\0" for document in documents)
    size = data.draw(st.integers(1, 20))
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    options = Configuration(tokens=tokens, min_count=data.draw(st.integers(1, 2)))
    try:
        vocabulary = build_vocabulary(documents, options)
    except UsageError:
        return
    assert build_vocabulary([JoinedText(lambda: iter(pieces))], options) == vocabulary
    for phase in range(options.tokenization.size if options.tokenization.kind == "ngram" else 1):
        codes = list(normalised_pieces(pieces, vocabulary.normalisation))
        blocks = list(vocabulary.encode_joined(codes, phase, with_costs=True))
        ids, costs = (np.concatenate(parts) for parts in zip(*((b.ids, b.costs) for b in blocks), strict=True))
        lengths, characters = DocumentLengths(), DocumentLengths()
        for block in blocks:
            lengths.add(len(block.ids), block.ends)
            characters.add(block.size, block.characters)
        encoded = [vocabulary.encode(document, phase) for document in documents]
        assert ids.tolist() == np.concatenate(encoded).tolist()
        assert lengths.all().tolist() == [len(one) for one in encoded]
        if not phase:
            alone = [vocabulary.encode_with_costs(document) for document in documents]
            assert costs.tolist() == pytest.approx(np.concatenate([one[1] for one in alone]).tolist())
            assert characters.all().tolist() == [one[2] for one in alone]


# --- runs --------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names(300)))
    return path


def test_run_on_lines_resumes_and_its_description_is_small(listed: Path, run: Program) -> None:
    assert run(*TRAIN, "--documents", "line", "--corpus", str(listed)).code == 0
    found = registry.find()
    assert len((found.path / "run.json").read_bytes()) < 5000
    assert run("train", "--resume", "--epochs", "2", "--quiet").code == 0
    assert run("eval", "--split", "test", "--quiet").code == 0
    listed.write_text("\n".join(names(301)))
    ran = run("train", "--resume", "--epochs", "3", "--quiet")  # fault 49
    assert (ran.code, ran.err.count("\n")) == (3, 1)
    assert "'names.txt' of the corpus names has changed" in ran.err


def test_moved_corpus_is_taken_where_the_hashes_agree(listed: Path, tmp_path: Path, run: Program) -> None:
    assert run(*TRAIN, "--corpus", str(listed)).code == 0
    moved = tmp_path / "elsewhere" / "list.txt"
    moved.parent.mkdir()
    listed.rename(moved)
    ran = run("eval", "--quiet")
    assert ran.code == 1
    assert "give its new place with --corpus" in ran.err
    place = ["--corpus", str(moved)]
    assert run("eval", "--quiet", *place).code == 0
    assert run("eval", "--quiet", "--novelty", *place).code == 0
    assert run("generate", "--quiet", "--length", "9", "--max-copy", "5", *place).code == 0
    other = tmp_path / "other.txt"
    other.write_text("\n".join(names(301)))
    before = (registry.find().path / "run.json").read_bytes()
    ran = run("train", "--resume", "--epochs", "2", "--quiet", "--corpus", str(other))
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert f"--corpus {other} is not the text of the run" in ran.err
    assert (registry.find().path / "run.json").read_bytes() == before
    assert run("train", "--resume", "--epochs", "2", "--quiet", *place).code == 0
    assert run("train", "--resume", "--epochs", "3", "--quiet").code == 0, "the new place is kept with the run"


def test_converted_file_can_be_evaluated_and_trained_on(tmp_path: Path, run: Program) -> None:  # fault 49
    path = tmp_path / "tale.txt"
    text = "Ein König, schön und groß.\n" * 40
    path.write_bytes(text.encode("utf-16"))
    assert run(*TRAIN, "--corpus", str(path)).code == 0
    path.write_text(text, encoding="utf-8")
    assert run("eval", "--split", "test", "--quiet").code == 0
    assert run("train", "--resume", "--epochs", "2", "--quiet").code == 0


@pytest.mark.parametrize("damage", [{"by_content": 3}, {"by_content": [["a"]]}, {"by_content": []}])
def test_damaged_split_of_lines_is_an_integrity_error(listed: Path, damage: dict[str, Any]) -> None:
    opened = open_corpus(str(listed), Configuration(documents="line"))
    value = split_by_hash(opened).to_json()
    assert Split.from_json(json.loads(json.dumps(value)), opened).sha256 == split_by_hash(opened).sha256
    with pytest.raises(IntegrityError):
        Split.from_json(value | damage, opened)


def test_named_corpora_are_not_combined_with_others(listed: Path) -> None:
    with pytest.raises(UsageError, match="sampler cannot be combined"):
        open_corpus([str(listed), "sampler"])


def test_damaged_split_of_a_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n".join(names(60)), encoding="utf-8")
    options = Configuration(documents="line")
    corpus = open_corpus(str(tmp_path / "list.txt"), options)
    stored: dict[str, Any] = {"source": corpus.source, "split": split_by_hash(corpus).to_json()}
    assert reopen(stored, options)[1].to_json() == stored["split"]
    for damage in ({"source": 7}, {"source": [7]}, {"split": None}, {"split": {"by_content": 7}}):
        with pytest.raises(IntegrityError):
            reopen(stored | damage, options)
    turned = stored["split"] | {"by_story": not stored["split"]["by_story"]}
    with pytest.raises(IntegrityError):
        reopen(stored | {"split": turned}, options)
    with pytest.raises(UsageError):
        reopen(stored, options, [str(tmp_path / "nowhere.txt")])


def test_missing_file_of_a_run_is_named(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("\n".join(names(40 + number)), encoding="utf-8")
    options = Configuration(documents="line")
    corpus = open_corpus(str(tmp_path), options)
    stored = {"source": corpus.source, "split": split_by_hash(corpus).to_json()}
    # Renamed: its content is there, under another name.
    (tmp_path / "1.txt").rename(tmp_path / "4.txt")
    with pytest.raises(IntegrityError, match=r"no longer has the file '1\.txt'"):
        reopen(stored, options)


def test_what_was_guessed_or_left_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Ein König, schön und groß, für die Königin.\n".encode("latin-1") * 20)
    (tmp_path / "b.csv").write_text("id,text\n" + "".join(f"{k},once upon a time\n" for k in range(9)), "utf-8")
    (tmp_path / "c.jsonl").write_text('{"text": "there was a king"}\n' * 9 + "no json\n", "utf-8")
    book = (
        "*** START OF THE PROJECT GUTENBERG EBOOK TALES ***\n{}*** END OF THE PROJECT GUTENBERG EBOOK TALES ***\n"
    )
    (tmp_path / "d.txt").write_text(book.format("There was once a king.\n" * 20), "utf-8")
    said = str(open_corpus(str(tmp_path)).report)
    for what in (
        "decoded: a.txt",
        "text from ",
        "of b.csv",
        "rows left out: c.jsonl (1",
        "licence left out: d.txt",
    ):
        assert what in said


def test_documents_of_alike_names_keep_their_endings(tmp_path: Path) -> None:
    places = [tmp_path / "tale", tmp_path / "tale.txt"]
    for place in places:
        place.write_text(f"There was once a king of {place.name}.\n" * 20, "utf-8")
    documents = open_corpus([str(place) for place in places]).documents
    assert {document.name for document in documents} == {"tale", "tale.txt"}


def test_text_from_a_pipe_is_kept_for_the_run(run: Program) -> None:
    text = "\n".join(names(300)).encode()
    assert run(*TRAIN, "--corpus", "-", "--documents", "line", stdin=text).code == 0
    assert run("eval", "--quiet").code == 0, "after the pipe is gone"
