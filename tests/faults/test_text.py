"""Text of any kind and size: no character is lost, and the memory is bounded (faults 20-23)."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grimmgen.configuration import Normalisation
from grimmgen.errors import GrimmgenError
from grimmgen.text.corpus import Document, open_corpus
from grimmgen.text.ngrams import NgramVocabulary
from grimmgen.text.vocabulary import UNKNOWN
from tests.faults.crash import Victim
from tests.program import Ran, grimmgen

Program = Callable[..., Ran]

# No deadline, so that a busy machine does not fail the test.
no_deadline = settings(deadline=None)


@pytest.fixture(scope="module")
def tale(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tales") / "tale.txt"


@no_deadline
@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), ngram=st.integers(1, 3))
def test_fault_20_any_text_survives_file_and_vocabulary(tale: Path, text: str, ngram: int) -> None:
    tale.write_bytes(text.encode())
    read = Document("tale", tale).read()
    assert read == text.removeprefix("\ufeff")
    if not read:
        return
    vocabulary = NgramVocabulary.build([read], ngram, 1)
    assert vocabulary.decode(vocabulary.encode(read)) == vocabulary.normalise(read)
    assert vocabulary.unseen(read) == []
    assert NgramVocabulary.from_json(vocabulary.to_json()) == vocabulary


@no_deadline
@given(content=st.binary(max_size=80))
def test_fault_20_any_bytes_are_read_or_located_in_an_error(tale: Path, content: bytes) -> None:
    tale.write_bytes(content)
    try:
        assert Document("tale", tale).read().encode() == content.removeprefix("\ufeff".encode())
    except GrimmgenError as error:
        place = int(str(error).partition("(byte ")[2].partition(")")[0])
        content[:place].decode()
        with pytest.raises(UnicodeDecodeError):
            content.decode()
    assert isinstance(Document("tale", tale, latin1=True).read(), str)


def test_fault_20_every_code_point_has_its_own_id() -> None:
    # All that Unicode has assigned, and a sample of the rest: planes without characters, and for private use.
    codes = [*range(0xD800), *range(0xE000, 0x34000), *range(0x34000, 0x110000, 97), *range(0xE0000, 0xE0200)]
    alphabet = list(map(chr, dict.fromkeys(codes)))
    text = "".join(alphabet)
    vocabulary = NgramVocabulary.build([text], 1, 1, Normalisation(lower=False))
    ids = vocabulary.encode(text)
    assert UNKNOWN not in ids
    assert vocabulary.decode(ids) == vocabulary.normalise(text)


# --- too little text, and too much ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", 2, "has no text"),
        (b"\n", 2, "has no text"),
        (b"the king", 2, "no 2-gram occurs 10 times"),
        (b"ab" * 40, 2, "--batch-size 64 is more than the 33 tokens of the training set"),
    ],
    ids=["empty", "line end", "two words", "less than a batch"],
)
def test_fault_21_too_little_text_is_an_error_before_the_run(
    tmp_path: Path, home: Path, run: Program, content: bytes, code: int, message: str
) -> None:
    (tmp_path / "tale.txt").write_bytes(content)
    ran = run("train", "--corpus", str(tmp_path / "tale.txt"))
    assert (ran.code, ran.out, ran.err.count("\n")) == (code, "", 1)
    assert message in ran.err
    assert not (home / "data" / "runs").exists()


def test_fault_21_text_shorter_than_one_window_is_trained_on(tmp_path: Path, run: Program) -> None:
    (tmp_path / "tale.txt").write_text("the king. " * 40)
    options = "--batch-size 64 --unroll 1000 --epochs 2 --hidden 3 --quiet".split()
    assert run("train", "--corpus", str(tmp_path / "tale.txt"), *options).code == 0


def test_fault_21_directory_without_texts_is_an_error(tmp_path: Path, run: Program) -> None:
    ran = run("vocab", "--corpus", str(tmp_path))
    assert ran == (
        1,
        "",
        f"error: {tmp_path} has no text file in it: give a directory with text files, or one file\n",
    )


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim(tmp_path_factory.mktemp("victim"), "grimmgen.text.vocabulary") as victim:
        yield victim


def test_fault_21_line_without_spaces_takes_bounded_memory(tmp_path: Path, home: Path, victim: Victim) -> None:
    with (tmp_path / "tale.txt").open("wb") as file:
        file.writelines(itertools.repeat(b"a" * (1 << 20), 1 << 7))
    baseline = victim.run(home, "vocab", "--corpus", "sampler")
    ended = victim.run(home, "vocab", "--corpus", str(tmp_path / "tale.txt"))
    assert (ended.code, ended.err.count("error")) == (0, 0)
    assert ended.peak < baseline.peak + (100 << 20)


def test_fault_21_out_of_memory_is_one_line(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> str:
        raise MemoryError

    monkeypatch.setattr(Document, "pieces", full)
    line = "error: out of memory: give less text, or a smaller network\n"
    assert run("vocab", "--corpus", "sampler") == (1, "", line)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_fault_21_pipe_or_device_is_refused(tmp_path: Path, run: Program, kind: str) -> None:
    path = tmp_path / "tale.txt"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path = Path("/dev/zero")
    line = f"error: {path} is not a file: copy what it holds into a text file, and give that\n"
    assert run("vocab", "--corpus", str(path)) == (2, "", line)
    # In a directory it is skipped.
    (tmp_path / "other.txt").write_text("the king. " * 40)
    assert run("vocab", "--corpus", str(tmp_path)).code == 0


# --- reproducibility -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes there")
def test_fault_23_vocabulary_ignores_the_environment(
    tales: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directories = []
    for number, order in enumerate((1, -1)):
        directory = tmp_path / str(number) / "tales"
        directory.mkdir(parents=True)
        for path in sorted(tales.iterdir())[::order]:
            (directory / path.name).write_bytes(path.read_bytes())
        (directory / "Ärger.txt").write_text("ärger " * 30)
        directories.append(directory)
    environments = [
        {"PYTHONHASHSEED": "0", "LC_ALL": "C", "OMP_NUM_THREADS": "1"},
        {"PYTHONHASHSEED": "1", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "2"},
        {"PYTHONHASHSEED": "4242", "LC_ALL": "POSIX", "PYTHONUTF8": "0"},
    ]
    outputs = {
        grimmgen("vocab", "--json", "--corpus", str(path), variables=variables).out.replace(str(path), "")
        for path, variables in zip([*directories, directories[0]], environments, strict=True)
    }
    assert len(outputs) == 1
    assert "ä" in outputs.pop()
    # The order in which the operating system lists a directory has no effect.
    expected = [document.name for document in open_corpus(str(directories[0])).documents]
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Iterator[os.DirEntry[str]]:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert [document.name for document in open_corpus(str(directories[0])).documents] == expected
