"""Atomic writes, links, JSON, errors of the operating system, and locks (faults 10, 15, 16, 32)."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from grimmgen.errors import GrimmgenError, IntegrityError
from grimmgen.io import files

OLD, NEW = b"the old tale", b"the new tale"
FREE_SPACE = "free some space on the disk and run the command again"
SET_HOME = "or set GRIMMGEN_HOME to a directory of yours"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tales" / "tale.txt"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def failing(number: int, after: int = 0) -> Callable[..., Any]:
    """Return a function that raises OSError with this number, after `after` calls that succeed."""
    calls = iter(range(after))

    def fail(*_: object) -> None:
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))

    return fail


# --- writing -------------------------------------------------------------------------------------------------


def test_file_is_created_or_replaced(path: Path) -> None:
    files.write_atomically(path, NEW)
    files.write_atomically(path.with_name("other.txt"), b"")
    assert content(path.parent) == {"tale.txt": NEW, "other.txt": b""}


def test_order_is_flush_rename_flush_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, rename = os.fsync, os.replace

    def recording_fsync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        calls.append("flush directory" if stat.S_ISDIR(status.st_mode) else f"flush {status.st_size} bytes")
        fsync(descriptor)

    def recording_rename(source: Path, target: Path) -> None:
        calls.append(f"rename {Path(source).suffix} to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "replace", recording_rename)
    files.write_atomically(path, NEW)
    assert calls == ["flush 12 bytes", "rename .tmp to tale.txt", "flush directory"]  # fault 32


@pytest.mark.parametrize(
    ("call", "number", "remedy"),
    [
        ("fsync", errno.ENOSPC, FREE_SPACE),
        ("fsync", errno.EIO, "the disk reports an error; check it and run the command again"),
        ("replace", errno.EROFS, "the file system is read-only; set GRIMMGEN_HOME to a writable directory"),
        ("replace", errno.EDQUOT, "free some of your quota and run the command again"),
        ("replace", errno.EXDEV, "check the path"),
    ],
)
def test_failed_write_leaves_only_the_old_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, remedy: str
) -> None:
    monkeypatch.setattr(os, call, failing(number))
    with pytest.raises(GrimmgenError) as caught:
        files.write_atomically(path, NEW)  # fault 15
    assert str(caught.value) == f"cannot write {path} ({os.strerror(number)}): {remedy}"
    assert caught.value.exit_code == 1
    assert content(path.parent) == {"tale.txt": OLD}


def test_failed_directory_flush_leaves_the_new_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.EIO, after=1))
    with pytest.raises(GrimmgenError, match="Input/output error"):
        files.write_atomically(path, NEW)
    assert content(path.parent) == {"tale.txt": NEW}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_partial_write_leaves_only_the_old_file(path: Path) -> None:
    with pytest.raises(GrimmgenError) as caught, largest_file(1000):
        files.write_atomically(path, NEW * 1000)  # fault 15, with the real operating system
    remedy = "raise the file size limit (ulimit -f) and run the command again"
    assert str(caught.value) == f"cannot write {path} (File too large): {remedy}"
    assert content(path.parent) == {"tale.txt": OLD}


def test_cleanup_failure_does_not_mask_the_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC))
    monkeypatch.setattr(os, "unlink", failing(errno.EIO))
    with pytest.raises(GrimmgenError, match="No space left on device"):
        files.write_atomically(path, NEW)  # two faults at once
    assert path.read_bytes() == OLD


def test_interrupt_leaves_no_temporary_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, NEW)
    assert content(path.parent) == {"tale.txt": OLD}


KILLED = """
import os, signal, sys
from pathlib import Path
from grimmgen.io import files
call = getattr(os, sys.argv[1])
def die(*arguments):
    if sys.argv[2] == "after": call(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(os, sys.argv[1], die)
files.write_atomically(Path(sys.argv[3]), b"the new tale")
"""


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_killed_writer_leaves_old_or_new_file(path: Path, call: str, moment: str) -> None:
    ended = subprocess.run([sys.executable, "-c", KILLED, call, moment, path], check=False)  # fault 10
    assert ended.returncode == -signal.SIGKILL
    replaced = (call, moment) == ("replace", "after")
    assert path.read_bytes() == (NEW if replaced else OLD)
    assert files.sweep(path.parent) == (0 if replaced else 1)
    assert list(path.parent.iterdir()) == [path]


def test_sweep_removes_only_files_of_ended_processes(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    stale = [f".tale.txt.{ended.pid}.0123abcd.tmp", f".two\u2028words.{ended.pid}.ffffffff.tmp"]
    kept = [
        f".tale.txt.{os.getpid()}.0123abcd.tmp",
        f".tale.txt.{os.getppid()}.0123abcd.tmp",
        f"tale.txt.{ended.pid}.0123abcd.tmp",
        f".tale.txt.{ended.pid}.0123abc.tmp",
        ".tale.txt.tmp",
        f".tale.txt.{'9' * 40}.0123abcd.tmp",
    ]
    for name in stale + kept:
        (tmp_path / name).touch()
    (tmp_path / f".directory.{ended.pid}.0123abcd.tmp").mkdir()
    assert files.sweep(tmp_path) == 2
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} == set(kept)
    assert files.sweep(tmp_path / "gone") == 0


def test_windows_flushes_no_directory_and_kills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stale = tmp_path / f".tale.txt.{os.getppid()}.0123abcd.tmp"
    stale.touch()
    flushed: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "name", "nt")
        patch.setattr(os, "fsync", flushed.append)
        # On Windows os.kill would end the process, and an open file cannot be removed.
        patch.setattr(os, "kill", failing(errno.EPERM))
        files.write_atomically(tmp_path / "tale.txt", NEW)
        assert files.sweep(tmp_path) == 1
    assert len(flushed) == 1
    assert content(tmp_path) == {"tale.txt": NEW}


# --- linking and opening -------------------------------------------------------------------------------------


def test_link_keeps_the_old_content_after_a_write(path: Path) -> None:
    copy = path.with_name("copy.txt")
    for _ in range(2):
        # The second time, both names link to one file already.
        files.link_or_copy(path, copy)
        assert content(path.parent) == {"tale.txt": OLD, "copy.txt": OLD}
    files.write_atomically(path, NEW)
    assert content(path.parent) == {"tale.txt": NEW, "copy.txt": OLD}
    files.link_or_copy(path, copy)
    assert content(path.parent) == {"tale.txt": NEW, "copy.txt": NEW}


def test_copy_is_made_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", failing(errno.EPERM))
    files.link_or_copy(path, path.with_name("copy.txt"))
    assert content(path.parent) == {"tale.txt": OLD, "copy.txt": OLD}


@pytest.mark.parametrize("call", ["link", "replace"])
def test_failed_link_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path.with_name("copy.txt").write_bytes(NEW)
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(GrimmgenError, match=f"cannot write .*copy.txt .*: {FREE_SPACE}"):
        files.link_or_copy(path, path.with_name("copy.txt"))
    assert content(path.parent) == {"tale.txt": OLD, "copy.txt": NEW}


def test_only_regular_files_are_opened(path: Path) -> None:
    with files.open_regular(path) as file:
        assert file.read() == OLD
    os.mkfifo(path.with_name("pipe"))
    for name, reason in (("pipe", "Not a regular file"), ("gone", "No such file"), ("..", "Is a directory")):
        with pytest.raises(OSError, match=reason):
            files.open_regular(path.parent / name)
    with pytest.raises(OSError, match="Not a regular file"):
        files.open_regular(Path("/dev/zero"))


# --- JSON, directories, errors of the operating system -------------------------------------------------------


def test_json_is_indented_and_survives_a_round_trip(path: Path) -> None:
    value = {"b": ["Grüße", "\udcf6", 0.1], "a": None}
    files.write_json(path, value)
    assert files.read_json(path) == value
    assert path.read_bytes().startswith('{\n  "b": [\n    "Grüße",'.encode())
    assert path.read_bytes().endswith(b"\n}\n")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"", "is not JSON (JSONDecodeError)"),
        (b'{"a": 1', "is not JSON (JSONDecodeError)"),
        (b'"\xff"', "is not JSON (UnicodeDecodeError)"),
        (b"9" * 5000, "is not JSON (ValueError)"),
        (b"[" * 200_000, "is not JSON (RecursionError)"),
        (b" " * ((1 << 20) + 1), "is larger than 1 MB"),
    ],
    ids=["empty", "truncated", "not UTF-8", "5000 digits", "deep", "large"],
)
def test_invalid_json_is_an_integrity_error(path: Path, value: bytes, reason: str) -> None:
    path.write_bytes(value)
    with pytest.raises(IntegrityError) as caught:
        files.read_json(path, limit=1 << 20)
    assert str(caught.value) == f"{path} {reason}: remove it"


def test_json_may_be_as_large_as_the_limit(path: Path) -> None:
    path.write_bytes(b"7".rjust(1 << 20))
    assert files.read_json(path, limit=1 << 20) == 7


def test_only_a_missing_file_raises_os_error(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_json(path.with_name("gone.json"))
    with pytest.raises(GrimmgenError) as caught:
        files.read_json(path.parent)
    assert str(caught.value) == f"cannot read {path.parent} (Is a directory): check the path"


def test_directory_is_created_with_its_parents(path: Path) -> None:
    for _ in range(2):
        files.make_directory(path.parent / "more" / "tales")
    assert (path.parent / "more" / "tales").is_dir()
    with pytest.raises(GrimmgenError) as caught:
        files.make_directory(path / "below")
    assert str(caught.value) == f"cannot create the directory {path}/below (Not a directory): check the path"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "Full"), f"cannot do it (Full): {FREE_SPACE}"),
        (PermissionError(errno.EACCES, "No"), f"cannot do it (No): check the permissions, {SET_HOME}"),
        (PermissionError(errno.EPERM, "No"), f"cannot do it (No): check the permissions, {SET_HOME}"),
        (
            PermissionError(errno.EACCES, "No", "/a/story.txt"),
            "cannot do it (No): check the permissions, or give another path",
        ),
        (FileNotFoundError(errno.ENOENT, "Gone"), "cannot do it (Gone): check the path"),
        (OSError("no number"), "cannot do it (OSError): check the path"),
    ],
)
def test_os_error_becomes_one_line_with_a_remedy(error: OSError, line: str) -> None:
    with pytest.raises(GrimmgenError) as caught, files.wrap_os_errors("cannot do it"):
        raise error
    assert (str(caught.value), caught.value.__cause__) == (line, error)


def test_remedy_needs_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIMMGEN_HOME", "relative")
    with pytest.raises(GrimmgenError, match=r"give another path$"), files.wrap_os_errors("cannot do it"):
        raise PermissionError(errno.EACCES, "No", "/a/story.txt")


def test_lock_that_cannot_be_opened_has_no_holder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only")

    path.with_name(path.name + ".pid").write_text("1")
    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert files.lock_holder(path) is None


def test_other_exceptions_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), files.wrap_os_errors("cannot do it"):
        raise ZeroDivisionError
    with pytest.raises(IntegrityError, match="as it was"), files.wrap_os_errors("cannot do it"):
        raise IntegrityError("as it was")


# --- the lock ------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from grimmgen.io import files
with files.locked(Path(sys.argv[1]), "the run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which holds the lock until its standard input is closed."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path / "lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_lock_is_acquired_and_released(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    for _ in range(2):
        with files.locked(lock, "the run"):
            assert (tmp_path / "lock.pid").read_text() == str(os.getpid())
        assert not (tmp_path / "lock.pid").exists()
    with pytest.raises(ZeroDivisionError), files.locked(lock, "the run"):
        raise ZeroDivisionError
    with files.locked(lock, "the run"):
        pass


def test_held_lock_is_refused_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(GrimmgenError) as caught, files.locked(tmp_path / "lock", "the run"):
        pytest.fail("two processes hold the lock")
    assert str(caught.value) == f"the run is in use by process {holder.pid}: wait for it to end, or stop it"
    (tmp_path / "lock.pid").write_text("rubbish")
    with (
        pytest.raises(GrimmgenError, match="in use by another process"),
        files.locked(tmp_path / "lock", "the run"),
    ):
        pytest.fail("two processes hold the lock")


def test_held_lock_is_waited_for_until_the_timeout(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    messages: list[str] = []
    began = time.monotonic()
    with (
        pytest.raises(GrimmgenError, match="the run is in use"),
        files.locked(tmp_path / "lock", "the run", 0.2, messages.append),
    ):
        pytest.fail("two processes hold the lock")
    assert time.monotonic() - began >= 0.2
    assert messages == [f"waiting for process {holder.pid}"]  # fault 16


@pytest.mark.parametrize("end", ["kill", "leave"])
def test_lock_is_free_when_its_holder_ends(tmp_path: Path, holder: subprocess.Popen[str], end: str) -> None:
    assert holder.stdin
    stop = holder.kill if end == "kill" else holder.stdin.close
    messages: list[str] = []
    threading.Timer(0.1, stop).start()
    with files.locked(tmp_path / "lock", "the run", 30.0, messages.append):  # fault 16
        assert (tmp_path / "lock.pid").read_text() == str(os.getpid())
    assert messages == [f"waiting for process {holder.pid}"]


def test_lock_that_cannot_be_created_is_an_error(path: Path) -> None:
    with pytest.raises(GrimmgenError) as caught, files.locked(path.parent, "the run"):
        pytest.fail("the lock is held")
    assert str(caught.value) == f"cannot lock {path.parent} (Is a directory): check the path"
