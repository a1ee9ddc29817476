"""Attacks that the campaigns do not cover: outputs, caches, and runs from untrusted sources (faults 12-44)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from grimmgen.cli import console, heatmap
from grimmgen.configuration import Configuration
from grimmgen.errors import IntegrityError, UsageError
from grimmgen.io import files, paths
from grimmgen.runs.registry import Run
from grimmgen.text import encoding, id_cache
from grimmgen.text.corpus import Document, open_corpus
from grimmgen.text.split import split_by_hash
from grimmgen.training import distributed
from tests.program import Ran

Program = Callable[..., Ran]


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text whose ids are cached in a file, as those of a large text are."""
    monkeypatch.setattr(encoding, "IN_MEMORY", 1)
    path = tmp_path / "large.txt"
    path.write_text("The king and the fox went to the forest. " * 400)
    return path


def encoded(text: Path) -> list[int]:
    result = encoding.encode_documents(split_by_hash(open_corpus(str(text))).parts["train"], Configuration())
    return [token for ways in result.documents for token in ways[0][:].tolist()]


# --- cached documents and ids ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "directory"])
def test_fault_12_special_file_in_the_cache_is_an_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "001.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    document = Document("001", path, "0" * 64, latin1=True)
    for read in document.digest, document.content, document.read:
        with pytest.raises(IntegrityError, match=r"is a link|is not a file"):
            read()


def test_fault_12_damaged_cached_ids_are_never_used(text: Path) -> None:
    expected = encoded(text)
    [path] = paths.id_cache_directory().glob("*.ids")
    good = path.read_bytes()
    length = int.from_bytes(good[-16:-8], "little")
    header = json.loads(good[-20 - length : -20])

    def with_header(content: bytes) -> bytes:
        return good[: -20 - length] + content + good[-20:-16] + len(content).to_bytes(8, "little") + good[-8:]

    # Another valid id; another byte in the vocabulary; wrong, negative and huge lengths; invalid headers.
    vocabulary = json.dumps(header["vocabulary"]).encode()
    bad = [
        b"\3\0" + good[2:],
        good.replace(b'"min_count": 10', b'"min_count": 11'),
        *(
            with_header(json.dumps({**header, "lengths": lengths}).encode())
            for lengths in ([3], [10**9, 3 - 10**9], [10**30], [float("inf")], [-1, len(expected) + 1], [])
        ),
        *(with_header(content) for content in (b"[" * 200_000, b"{}", vocabulary)),
    ]
    assert bad[0][:2] != good[:2]
    for content in bad:
        path.write_bytes(content)
        assert encoded(text) == expected
        assert path.read_bytes() == good
    path.unlink()
    for make in os.mkfifo, Path.mkdir, lambda link: link.symlink_to("/dev/zero"):
        make(path)
        assert encoded(text) == expected
        assert path.read_bytes() == good
        path.unlink()


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a read-only mount needs the superuser")
def test_fault_13_cached_ids_are_used_from_a_read_only_mount(text: Path) -> None:
    expected = encoded(text)
    cache = str(paths.cache_directory())
    if subprocess.run(["mount", "--bind", cache, cache], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", cache], check=True)
        assert encoded(text) == expected
    finally:
        subprocess.run(["umount", cache], check=True)


def test_fault_19_wrong_clock_never_removes_ids_in_use(text: Path) -> None:
    directory = paths.id_cache_directory()
    directory.mkdir(parents=True)
    for number in range(5):
        (directory / f"{number}.ids").touch()
        os.utime(directory / f"{number}.ids", (4e9, 4e9))
    encoded(text)
    assert len(list(directory.glob("*.ids"))) == id_cache.KEPT
    assert any(len(path.stem) == 32 for path in directory.glob("*.ids"))


# --- output paths ------------------------------------------------------------------------------------------


def test_fault_15_output_that_is_not_a_file_is_kept(
    trained: Run, tmp_path: Path, run: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tale.txt").write_text("the king")
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("loop")
    for name in ["pipe", ".", "", "/", "..", "x" * 300, "loop"]:
        ran = run("eval", "tale.txt", "--heatmap", "--html", name, "--run", trained.name)
        assert (ran.code, ran.out, ran.err.count("\n")) == (1 if name in {"x" * 300, "loop"} else 2, "", 1), name
    assert stat.S_ISFIFO(Path("pipe").stat().st_mode)
    assert Path("loop").is_symlink()
    with pytest.raises(UsageError, match="'/dev/null' is not a file"):
        files.output_path(Path("/dev/null"))
    with pytest.raises(UsageError, match="is not a file"):
        files.output_path(Path("a\0b"))


def test_fault_15_output_link_is_kept(trained: Run, tmp_path: Path, run: Program) -> None:
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


# --- sizes -------------------------------------------------------------------------------------------------


def test_fault_21_too_large_text_for_a_heatmap_is_refused(trained: Run, tmp_path: Path, run: Program) -> None:
    path = tmp_path / "tale.txt"
    path.write_bytes(b"a " * (heatmap.LARGEST // 2 + 1))
    ran = run("eval", "--heatmap", str(path), "--run", trained.name)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {path} is larger than 1 MB")


def test_fault_44_sparse_log_hides_no_other_run(trained: Run, run: Program) -> None:
    os.truncate(trained.log_path, 1 << 40)
    listed = run("runs", "list", "--json")
    assert (listed.code, json.loads(listed.out)[0]["state"]) == (0, "unreadable")
    shown = run("runs", "show", trained.name)
    assert (shown.code, shown.out) == (3, "")
    assert shown.err.startswith(f"error: {trained.log_path} is larger than 64 MB")


# --- variables of torchrun ---------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["1" * 5000, "99999999999999999999999", "-1", "\u0663"])
def test_fault_44_invalid_process_number_is_a_one_line_error(
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
        assert ran.err.startswith(f"error: {name}={number[:20]!r}")
        assert ran.err.count("\n") == 1


def test_fault_44_invalid_rank_hides_no_other_error(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in distributed._VARIABLES:
        monkeypatch.setenv(name, "rubbish")
    ran = run("generate", "--run", "nobody")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: there is no run nobody")


# --- names with line ends ----------------------------------------------------------------------------------


def test_fault_40_line_end_in_a_name_makes_no_line(trained: Run, run: Program) -> None:
    info = trained.info()
    info["command"] = "x\nplace  /elsewhere"
    info["corpus"]["name"] = "x\nanother-run"
    (trained.path / "run.json").write_text(json.dumps(info))
    for command in ["runs", "show"], ["runs", "list"]:
        assert not any(
            line.strip().startswith(("place  /else", "another")) for line in run(*command).out.split("\n")
        )
    assert console.one_line("a\n\tb") == "a\\n\\tb"
