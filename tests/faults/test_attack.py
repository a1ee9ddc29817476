"""What an attacker found where the campaigns had not looked: outputs, caches, a stranger's run (faults 12-44)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.cli import console, eval
from grimmgen.configuration import Configuration
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.runs.registry import Run
from grimmgen.text import encoding
from grimmgen.text.corpus import Document, open_corpus
from grimmgen.text.split import split_by_hash
from grimmgen.training import distributed
from tests.program import Ran

Program = Callable[..., Ran]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of which the ids are kept in a file, as those of a large one."""
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    path = tmp_path / "large.txt"
    path.write_text("The king and the fox went to the forest. " * 400)
    return path


def encoded(text: Path) -> list[int]:
    made = encoding.encode_stories(split_by_hash(open_corpus(str(text))).parts["train"], Configuration())
    return [token for ways in made.documents for token in ways[0][:].tolist()]


# --- what is in the place of a story -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "directory"])
def test_fault_12_what_has_taken_a_cached_storys_place_is_not_read_for_ever(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "001.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    story = Document("001", path, "0" * 64, latin1=True)
    for read in story.digest, story.content, story.read:
        with pytest.raises(IntegrityError, match=r"is a link, not the story|is not a file"):
            read()


def test_fault_12_ids_that_have_changed_on_the_disk_are_never_learnt_from(text: Path) -> None:
    right = encoded(text)
    [path] = paths.tokens_directory().glob("*.ids")
    good = path.read_bytes()
    length = int.from_bytes(good[-16:-8], "little")
    about = json.loads(good[-20 - length : -20])

    def described(told: bytes) -> bytes:
        return good[: -20 - length] + told + good[-20:-16] + len(told).to_bytes(8, "little") + good[-8:]

    # Another id that there is; a byte of the vocabulary; lengths that are others, below zero, beyond all reason.
    told = json.dumps(about["vocabulary"]).encode()
    bad = [
        b"\3\0" + good[2:],
        good.replace(b'"min_count": 10', b'"min_count": 11'),
        *(
            described(json.dumps({**about, "lengths": lengths}).encode())
            for lengths in ([3], [10**9, 3 - 10**9], [10**30], [float("inf")], [-1, len(right) + 1], [])
        ),
        *(described(told) for told in (b"[" * 200_000, b"{}", told)),
    ]
    assert bad[0][:2] != good[:2]
    for content in bad:
        path.write_bytes(content)
        assert encoded(text) == right
        assert path.read_bytes() == good
    path.unlink()
    for make in os.mkfifo, Path.mkdir, lambda place: place.symlink_to("/dev/zero"):
        make(path)
        assert encoded(text) == right
        assert path.read_bytes() == good
        path.unlink()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a read-only mount needs the superuser")
def test_fault_13_ids_of_a_cache_on_a_read_only_mount_can_be_used(text: Path) -> None:
    right = encoded(text)
    cache = str(paths.cache_directory())
    if subprocess.run(["mount", "--bind", cache, cache], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        assert encoded(text) == right
    finally:
        subprocess.run(["umount", cache], check=True)


def test_fault_19_a_clock_that_was_wrong_never_removes_the_ids_in_use(text: Path) -> None:
    directory = paths.tokens_directory()
    directory.mkdir(parents=True)
    for number in range(5):
        (directory / f"{number}.ids").touch()
        os.utime(directory / f"{number}.ids", (4e9, 4e9))
    encoded(text)
    assert len(list(directory.glob("*.ids"))) == encoding.KEPT
    assert any(len(path.stem) == 32 for path in directory.glob("*.ids"))


# --- where the user wants something written ----------------------------------------------------------------


def test_fault_15_what_is_named_as_an_output_and_is_no_file_stays(
    trained: Run, tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tale.txt").write_text("the king")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    wanted = ["pipe", ".", "", "/", "..", "x" * 300, "loop"]
    for name in wanted:
        ran = run("eval", "tale.txt", "--heatmap", "--html", name, "--run", trained.name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1 if name in {"x" * 300, "loop"} else 2, "", 1), name
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert Path("loop").is_symlink()
    with pytest.raises(UsageError, match="'/dev/null' is not a file: give the name of a file, new or to be repl"):
        files.output(Path("/dev/null"))
    with pytest.raises(UsageError, match="is not a file"):
        files.output(Path("a\0b"))


def test_fault_15_an_output_that_is_a_link_stays_one(trained: Run, tmp_path: Path, run: Program) -> None:
    (tmp_path / "tale.txt").write_text("the king")
    (tmp_path / "link.html").symlink_to("real.html")
    for _ in range(2):
        command = [
            "eval",
            str(tmp_path / "tale.txt"),
            "--html",
            str(tmp_path / "link.html"),
            "--run",
            trained.name,
        ]
        assert run(*command).code == 0
        assert (tmp_path / "link.html").is_symlink()
        assert (tmp_path / "real.html").read_text().startswith("<!doctype html>")
        (tmp_path / "real.html").write_text("old")


# --- too much ----------------------------------------------------------------------------------------------


def test_fault_21_a_text_too_large_to_be_coloured_is_refused_at_once(
    trained: Run, tmp_path: Path, run: Program
) -> None:
    path = tmp_path / "tale.txt"
    path.touch()
    os.truncate(path, eval._LARGEST_HEATMAP + 1)
    line = f"error: {path} is larger than 1 MB: give a part of it\n"
    assert run("eval", "--heatmap", str(path), "--run", trained.name) == (2, "", line)


def test_fault_44_a_log_of_holes_from_a_stranger_hides_no_other_run(trained: Run, run: Program) -> None:
    os.truncate(trained.log_path, 1 << 40)
    told = run("runs", "list", "--json")
    assert (told.code, json.loads(told.out)[0]["state"]) == (0, "unreadable")
    line = f"error: {trained.log_path} is larger than 64 MB: remove it\n"
    assert run("runs", "show", trained.name) == (3, "", line)


# --- the processes of torchrun -----------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1" * 5000, "99999999999999999999999", "-1", "\u0663"])
def test_fault_44_a_variable_that_is_no_number_of_processes_is_one_line(
    number: str, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in distributed._VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(distributed, "_connecting", False)
    for name in "RANK", "WORLD_SIZE":
        with monkeypatch.context() as patch:
            patch.setenv(name, number)
            ran = run("train", "--corpus", "sampler")
        assert (ran.code, ran.out) == (2, "")
        assert ran.err == f"error: {name}={number[:20]!r} is no number: start with torchrun, or unset it\n"


def test_fault_44_a_rank_that_is_no_number_silences_no_error(
    run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in distributed._VARIABLES:
        monkeypatch.setenv(name, "rubbish")
    assert run("generate", "--run", "nobody") == (
        2,
        "",
        "error: there is no run nobody: the latest are: none\n",
    )


# --- names with line ends ----------------------------------------------------------------------------------


def test_fault_40_no_name_from_a_stranger_makes_a_line_of_its_own(trained: Run, run: Program) -> None:
    info = trained.info()
    info["command"] = "x\nplace  /elsewhere"
    info["corpus"]["name"] = "x\nanother-run"
    (trained.path / "run.json").write_text(json.dumps(info))
    for command in ["runs", "show"], ["runs", "list"]:
        assert not any(
            line.strip().startswith(("place  /else", "another")) for line in run(*command).out.split("\n")
        )
    assert console.one_line("a\n\tb") == "a\\n\\tb"
