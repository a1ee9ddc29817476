"""Opening a corpus, reading its documents, splitting it, and the numbers of the tales."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.text import corpus as corpora
from grimmgen.text.corpus import Corpus, Document, open_corpus
from grimmgen.text.fetch import story_numbers
from grimmgen.text.split import PARTS, Part, Split, split_by_file, split_by_hash

SOURCES = "give grimm, sampler, or the path of a text file or directory"
FORM = 'give a JSON file like {"train": ["001"], "valid": ["002"], "test": ["003"]}'


def write(path: Path, content: bytes = b"Once upon a time.\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def named(*names: str) -> Corpus:
    """Return a corpus whose documents are never read."""
    return Corpus("tales", "/tales", tuple(Document(name, Path("/nowhere")) for name in names))


def names(split: Split) -> dict[Part, list[str]]:
    return {part: [document.name for document in documents] for part, documents in split.parts.items()}


# --- opening -------------------------------------------------------------------------------------------------


def test_sampler_is_bundled() -> None:
    corpus = open_corpus("sampler")
    assert (corpus.name, corpus.source, len(corpus.documents)) == ("sampler", "sampler", 21)
    assert [document.name for document in corpus.documents] == sorted(d.name for d in corpus.documents)
    assert all(len(document.read()) > 1000 for document in corpus.documents)
    assert split_by_hash(corpus).by_story, "there are enough tales for each part to have some"


def test_file_is_corpus_of_one_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "alice.md")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source in str(path), "alice.md", "./alice.md", "~/alice.md":
        corpus = open_corpus(source)
        assert (corpus.name, corpus.source) == ("alice", str(path)), "the source is an absolute path"
        assert [(document.name, document.read()) for document in corpus.documents] == [
            ("alice", "Once upon a time.\n")
        ]


def test_directory_is_corpus_of_its_visible_texts(tmp_path: Path) -> None:
    for name in "b.txt", "a.txt", "more/c.txt", ".hidden.txt", ".git/d.txt", "e.md", "more/.txt":
        write(tmp_path / "tales" / name)
    (tmp_path / "tales" / "directory.txt").mkdir()
    corpus = open_corpus(str(tmp_path / "tales"))
    assert [document.name for document in corpus.documents] == ["a", "b", "e.md", "more/c"]
    assert (corpus.name, corpus.source) == ("tales", str(tmp_path / "tales"))


def test_error_if_nothing_was_fetched(home: Path) -> None:
    with pytest.raises(GrimmgenError) as caught:
        open_corpus("grimm")
    remedy = "run `grimmgen fetch`, or take the bundled ones with --corpus sampler"
    assert str(caught.value) == f"no tales have been fetched yet: {remedy}"
    assert caught.value.exit_code == 1
    assert not home.exists(), "opening creates no directory"


@pytest.mark.parametrize("source", ["gone.txt", "~no such user/tales", "a\0b", "file.txt/below"])
def test_missing_corpus_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    write(tmp_path / "file.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_corpus(source)
    assert str(caught.value) == f"there is no corpus {source!r}: {SOURCES}"


def test_empty_corpus_path_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=f"^--corpus is empty: {SOURCES}$"):
        open_corpus("")


def test_corpus_without_permission_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "resolve", refuse)
    with pytest.raises(
        GrimmgenError, match=r"^cannot read tales \(Permission denied\): give yourself the permission"
    ):
        open_corpus("tales")


def test_directory_without_texts_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "readme.doc")
    with pytest.raises(GrimmgenError) as caught:
        open_corpus(str(tmp_path))
    assert caught.value.what.startswith(f"{tmp_path} has no text file in it; 1 skipped: readme.doc (")
    assert caught.value.remedy == "give a directory with text files, or one file"


def test_cyclic_links_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(GrimmgenError, match=f"{tmp_path}/a"):
        open_corpus(str(tmp_path / "a"))
    (tmp_path / "loop").symlink_to(tmp_path)
    write(tmp_path / "tale.txt")
    assert [document.name for document in open_corpus(str(tmp_path)).documents] == ["tale"]


# --- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", ""),  # fault 21
        (b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe", "Grüße"),
        (b"a\xef\xbb\xbfb", "a\ufeffb"),
        (b"one\r\ntwo\0\xe2\x80\xa8three u\xcc\x88", "one\r\ntwo\0\u2028three u\u0308"),
    ],
    ids=["empty", "byte order mark", "mark inside", "not normalised"],
)
def test_document_is_read_as_utf8(tmp_path: Path, content: bytes, text: str) -> None:
    assert Document("tale", write(tmp_path / "tale.txt", content)).read() == text  # fault 20


@pytest.mark.parametrize(
    ("content", "offset"),
    [(b"Gr\xfc\xdfe", 2), (b"\xef\xbb\xbfGr\xfc\xdfe", 5), ("Grüße".encode("utf-16"), 0), (b"cut \xc3", 4)],
    ids=["Latin-1", "after a byte order mark", "UTF-16", "truncated character"],
)
def test_invalid_utf8_error_names_the_byte(tmp_path: Path, content: bytes, offset: int) -> None:
    path = write(tmp_path / "tale.txt", content)
    with pytest.raises(GrimmgenError) as caught:
        Document("tale", path).read()  # fault 20
    assert str(caught.value) == f"{path} is not UTF-8 (byte {offset}): restore it, or train again"
    assert caught.value.exit_code == 1


def test_fetched_document_may_be_latin1_or_utf8(tmp_path: Path) -> None:
    for encoding in "latin-1", "utf-8":
        path = write(tmp_path / "001.txt", "Rotkäppchen".encode(encoding))
        assert Document("001", path, latin1=True).read() == "Rotkäppchen"


def test_missing_document_or_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"tale\.txt is gone: restore it, or train again"):
        Document("tale", tmp_path / "tale.txt").read()
    with pytest.raises(GrimmgenError, match=r"cannot read .* \(Is a directory\)"):
        Document("tale", tmp_path).read()


def test_pieces_of_a_text_end_at_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_PIECE", 7)
    text = "\ufeffthe kïng, the old king und die böööööösen Geißlein\n"
    document = Document("tale", write(tmp_path / "tale.txt", text.encode()))
    assert "".join(document.pieces()) == document.read() == text[1:]
    assert list(document.pieces())[:2] == ["the ", "kïng, "]
    split = split_by_hash(open_corpus(str(document.path)))
    assert "".join(d.read() for part in PARTS for d in split.parts[part]) == text[1:]
    bad = Document("tale", write(tmp_path / "bad.txt", b"the king \xff"))
    with pytest.raises(GrimmgenError, match=r"is not UTF-8 \(byte 9\)"):
        list(bad.pieces())


def test_text_that_shrinks_while_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_PIECE", 7)
    # Larger than the buffer of the file object.
    path = write(tmp_path / "tale.txt", b"the king " * 100_000)
    pieces = Document("tale", path).pieces()
    next(pieces)
    os.truncate(path, 9)
    with pytest.raises(IntegrityError, match=r"tale\.txt has changed: restore it, or train again"):
        list(pieces)


def test_large_file_is_hashed_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[object] = []

    def digest(file: io.BufferedIOBase) -> str:
        hashed.append(file)
        return files.sha256(file.read())

    monkeypatch.setattr(corpora, "_digest", digest)
    path = write(tmp_path / "tale.txt", b"the king")
    document = Document("tale", path)
    assert [document.digest() for _ in range(2)] == [files.sha256(b"the king")] * 2
    assert len(hashed) == 2, "small files are hashed each time"
    monkeypatch.setattr(corpora, "_LARGE", 8)
    assert [document.digest() for _ in range(3)] == [files.sha256(b"the king")] * 3
    assert len(hashed) == 3
    write(path, b"the queen")
    assert document.digest() == files.sha256(b"the queen")


def test_fetched_document_over_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_LARGEST_FETCHED", 1 << 20)
    path = write(tmp_path / "001.txt", bytes(2 << 20))
    with pytest.raises(GrimmgenError, match=r"001\.txt is larger than 1 MB: cut it into several files"):
        Document("001", path, files.sha256(b""), latin1=True).read()


def test_size_of_a_document_is_that_of_its_span(tmp_path: Path) -> None:
    path = write(tmp_path / "tale.txt", bytes(1000))
    assert Document("tale", path, span=(0.8, 0.9)).size == 100
    assert Document("tale", tmp_path / "gone.txt").size == 0
    # A file of a package that is imported from a zip archive.
    with zipfile.ZipFile(tmp_path / "tales.zip", "w") as archive:
        archive.writestr("tale.txt", "the king")
    zipped = Document("tale", zipfile.Path(tmp_path / "tales.zip", "tale.txt"))
    assert (zipped.size, zipped.digest(), zipped.read()) == (8, files.sha256(b"the king"), "the king")


# --- splitting by a hash of the name -------------------------------------------------------------------------

GRIMM = [f"{number:03d}" for number in range(1, 210)]


def test_split_of_the_grimm_tales_is_frozen() -> None:
    split = names(split_by_hash(named(*GRIMM)))
    valid = (
        "011 013 016 025 048 049 071 081 086 089 094 099 101 106 107 113 124 128 129 132 136 143 157 158 164 169"
    )
    test = "003 006 043 055 063 069 077 090 098 104 105 123 127 130 139 141 155 159 161 175 188 197 205"
    assert split["valid"] == [*valid.split(), "171", "177", "190", "196"], (
        "a change makes all results incomparable"
    )
    assert split["test"] == test.split()
    assert sorted([*split["train"], *split["valid"], *split["test"]]) == GRIMM


def test_adding_documents_moves_none() -> None:
    few, many = (names(split_by_hash(named(*GRIMM[:count]))) for count in (60, 209))
    assert {part: [name for name in many[part] if name in GRIMM[:60]] for part in PARTS} == few


def test_split_of_many_documents_is_80_10_10() -> None:
    split = names(split_by_hash(named(*(f"story {number}" for number in range(5000)))))
    assert [round(len(split[part]) / 50) for part in PARTS] == [80, 10, 10]


# --- few documents: each is cut into the parts ---------------------------------------------------------------

TEXTS = {
    "one character": "x",
    "one word": "x" * 5000,
    "one line": "once upon a time " * 500,
    "one line with its end": "x" * 99 + "\n",
    "lines": "Once upon a time,\nthere was a king.\n" * 100,
    "lines with CR LF": "Once upon a time,\r\nthere was a king.\r\n" * 100,
    "long lines": ("word " * 500 + "\n") * 9,
    "a long line, then short ones": "x" * 900 + " " + "y" * 1500 + "\nz" * 80,
    "characters of several bytes": "Ein König 👑 u\u0308ber alles\n" * 100,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_spans_of_a_document_cover_it_exactly(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "tale.txt", b"\xef\xbb\xbf" + text.encode())
    split = split_by_hash(open_corpus(str(path)))
    assert not split.by_story
    pieces = [split.parts[part][0].read() for part in PARTS]
    assert "".join(pieces) == text
    if "\n" in text or " " in text:
        assert all(piece[-1] in "\n " for piece in pieces[:-1] if piece), "cuts are between lines, or words"


def test_spans_of_a_document_are_80_10_10(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", TEXTS["lines"].encode())
    write(tmp_path / "b.txt", TEXTS["one line"].encode())
    split = split_by_hash(open_corpus(str(tmp_path)))
    for whole, *pieces in zip(open_corpus(str(tmp_path)).documents, *split.parts.values(), strict=True):
        assert [round(100 * len(piece.read()) / len(whole.read())) for piece in pieces] == [80, 10, 10]


# --- splits of the user --------------------------------------------------------------------------------------


def split_of(tmp_path: Path, value: object) -> Split:
    path = tmp_path / "split.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return split_by_file(named("a", "b", "c", "d"), path)


def test_split_file_names_documents_of_each_part(tmp_path: Path) -> None:
    split = split_of(tmp_path, {"test": ["a"], "valid": ["b"], "train": ["d"]})
    assert names(split) == {"train": ["d"], "valid": ["b"], "test": ["a"]}, "c is left out"
    assert list(split.parts) == list(PARTS)
    assert split.by_story


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", f"{{path}} is not JSON (JSONDecodeError): {FORM}"),
        ([["a"], ["b"], ["c"]], f"the split file {{path}} names no train stories: {FORM}"),
        ({"train": ["a"], "valid": ["b"]}, f"the split file {{path}} names no test stories: {FORM}"),
        ({"train": ["a"], "valid": [], "test": ["c"]}, f"the split file {{path}} names no valid stories: {FORM}"),
        ({"train": "a", "valid": ["b"], "test": ["c"]}, f"the split file {{path}} names no train stories: {FORM}"),
        ({"train": ["x"], "valid": 5, "test": ["c"]}, f"the split file {{path}} names no valid stories: {FORM}"),
        (
            {"train": ["x"], "valid": [["b"]], "test": ["c"]},
            f"the split file {{path}} names no valid stories: {FORM}",
        ),
        ({"train": ["a", "a"], "valid": ["b"], "test": ["c"]}, "{path} names the story 'a' twice: name it once"),
        ({"train": ["a"], "valid": ["b"], "test": ["c", "a"]}, "{path} names the story 'a' twice: name it once"),
        (
            {"train": ["a"], "valid": ["x"], "test": ["c"]},
            "the corpus tales does not have the story 'x': check the names",
        ),
        (
            {"train": ["z", "a"], "valid": ["x"], "test": ["y"]},
            "the corpus tales does not have the story 'x' (and 2 more): check the names",
        ),
    ],
)
def test_invalid_split_file_is_a_usage_error(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_of(tmp_path, value)
    assert str(caught.value).endswith(message.replace("{path}", str(tmp_path / "split.json")))


def test_missing_split_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        split_by_file(named("a"), tmp_path / "split.json")
    assert str(caught.value) == f"there is no split file {tmp_path / 'split.json'}: {FORM}"


def test_split_file_may_name_a_tale_not_fetched_yet(tmp_path: Path) -> None:
    path = write(tmp_path / "split.json", b'{"train": ["001"], "valid": ["002"], "test": ["003"]}')
    with pytest.raises(UsageError, match=r"the corpus grimm does not have the story '003': fetch it first"):
        split_by_file(replace(named("001", "002"), name="grimm", source="grimm"), path)


# --- splits that are stored with a run -----------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    for name in "abc":
        write(tmp_path / "tales" / f"{name}.txt", f"The tale of {name}.\n".encode() * 20)
    return open_corpus(str(tmp_path / "tales"))


def by_document(corpus: Corpus) -> Split:
    return Split({part: (document,) for part, document in zip(PARTS, corpus.documents, strict=True)})


def stored(split: Split) -> Any:
    return json.loads(json.dumps(split.to_json()))


@pytest.mark.parametrize("split", [by_document, split_by_hash], ids=["by document", "by span"])
def test_split_survives_json(corpus: Corpus, split: Callable[[Corpus], Split]) -> None:
    before = split(corpus)
    after = Split.from_json(stored(before), corpus)
    assert (after.by_story, after.sha256, stored(after)) == (before.by_story, before.sha256, stored(before))
    for part in PARTS:
        assert [d.read() for d in after.parts[part]] == [d.read() for d in before.parts[part]]


def test_split_hash_depends_on_contents_and_parts(corpus: Corpus) -> None:
    a, b, c = corpus.documents
    splits = by_document(corpus), Split({"train": (b,), "valid": (a,), "test": (c,)}), split_by_hash(corpus)
    hashes = {split.sha256 for split in splits}
    write(Path(str(corpus.source)) / "a.txt", b"Another tale.")
    assert len(hashes | {by_document(open_corpus(corpus.source)).sha256}) == 4


def test_changed_document_is_noticed_when_read(corpus: Corpus) -> None:
    value = stored(by_document(corpus))
    path = Path(str(corpus.source)) / "a.txt"
    path.write_bytes(path.read_bytes() + b"\n")
    split = Split.from_json(value, open_corpus(corpus.source))
    with pytest.raises(IntegrityError) as caught:
        split.parts["train"][0].read()  # fault 12
    assert str(caught.value) == f"{path} has changed: restore it, or train again"
    assert caught.value.exit_code == 3
    assert split.parts["valid"][0].read().startswith("The tale of b.")


def test_stored_split_with_a_missing_document_is_an_error(corpus: Corpus) -> None:
    value = stored(by_document(corpus))
    with pytest.raises(IntegrityError) as caught:
        Split.from_json(value, replace(corpus, documents=corpus.documents[:1]))
    assert str(caught.value) == "the corpus tales no longer has the story 'b': restore it, or train again"


UNREADABLE = "the split stored with the run cannot be read: train again"


@pytest.mark.parametrize("entries", [None, 7, "a", [{}], [{"name": ["a"]}]])
def test_damaged_stored_split_is_an_error(corpus: Corpus, entries: object) -> None:
    for value in entries, {"parts": entries}, {"parts": dict.fromkeys(PARTS, entries)}:
        with pytest.raises(IntegrityError) as caught:
            Split.from_json(value, corpus)
        assert str(caught.value) == UNREADABLE


@pytest.mark.parametrize(
    "span", [[0], [0, 0.5, 1], [-0.1, 1], [0, 1.1], [0.9, 0.8], [0, float("nan")], [0, 10**400], "01x", 1]
)
def test_damaged_stored_span_is_an_error(corpus: Corpus, span: object) -> None:
    value = stored(by_document(corpus))
    value["parts"]["test"][0]["part"] = span
    with pytest.raises(IntegrityError) as caught:
        Split.from_json(value, corpus)
    assert str(caught.value) == UNREADABLE


@pytest.mark.skipif(sys.platform != "linux", reason="file names are Unicode there")
def test_split_with_a_latin1_file_name_survives_json(tmp_path: Path) -> None:
    write(tmp_path / "tales" / os.fsdecode(b"K\xf6nig.txt"))
    corpus = open_corpus(str(tmp_path / "tales"))
    split = split_by_hash(corpus)
    files.write_json(tmp_path / "split.json", split.to_json())
    assert Split.from_json(files.read_json(tmp_path / "split.json"), corpus).sha256 == split.sha256


# --- the numbers of the tales --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stories", "numbers"),
    [
        ("1", [1]),
        ("3", [1, 2, 3]),
        (" 3 ", [1, 2, 3]),
        ("209", range(1, 210)),
        ("all", range(1, 210)),
        ("7-7", [7]),
        ("35,1-3, 2 ", [1, 2, 3, 35]),
        ("209-209,001", [1, 209]),
    ],
)
def test_story_numbers_are_parsed(stories: str, numbers: Iterable[int]) -> None:
    assert story_numbers(stories) == list(numbers)


@pytest.mark.parametrize(
    "stories", ["", "7,", "0", "210", "1-210", "0-3", "3-1", "-3", "1-2-3", "1.5", "ALL", "٣", "99999"]
)
def test_invalid_story_numbers_are_a_usage_error(stories: str) -> None:
    with pytest.raises(UsageError) as caught:
        story_numbers(stories)
    assert str(caught.value) == f"--stories {stories!r} is not clear: give 1 to 209, all, or a list like 1-20,35"
