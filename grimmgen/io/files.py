"""Atomic file writes, locks, and errors of the operating system as one line.

A reader sees the old file or the new one, complete, even after a crash. Locks are advisory: they keep two
processes from doing the same work twice; correctness rests on the atomic rename. The module does not know what
the files contain.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import paths

# What a remedy says where the same command may succeed; a caller that knows a better one replaces it.
AGAIN = "run the command again"

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_NON_BLOCKING = getattr(os, "O_NONBLOCK", 0)
# Errors of file systems without hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of `path`, or leave the file unchanged; see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(content)


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """Open a file that replaces `path` when the block ends without an exception.

    A temporary file in the same directory is flushed to the disk, then renamed to `path`, then the directory is
    flushed, in this order: after a power failure `path` has the old or the new content.

    Raises:
        GrimmgenError: the disk is full, read-only or failing; `path` is unchanged, or new and complete if only
            the directory could not be flushed.
    """
    temporary = _temporary(path)
    with wrap_os_errors(f"cannot write {path}"):
        try:
            with temporary.open("x+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _flush_directory(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def output_path(path: Path) -> Path:
    """Resolve the path of an output file that the user named, for `write_atomically`.

    A symbolic link is followed, so that its target is replaced and not the link. A device or a pipe (`/dev/null`,
    when run as root) is refused, since the rename would replace it by a file.

    Raises:
        UsageError: the path exists and is not a regular file.
        GrimmgenError: the path cannot be read.
    """
    refused = UsageError(f"{str(path)!r} is not a file", "give the name of a file, new or to be replaced")
    try:
        with wrap_os_errors(f"cannot write {path}", missing_ok=True):
            real = Path(os.path.realpath(path)) if path.is_symlink() else path
            regular = stat.S_ISREG(real.stat().st_mode)
    except FileNotFoundError:
        return real
    except ValueError:
        raise refused from None  # a NUL character in the path
    if not regular:
        raise refused
    return real


def remove_directory(path: Path) -> None:
    """Remove a directory that occupies the path of a cached file; do nothing if there is none.

    Raises:
        GrimmgenError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        with wrap_os_errors(f"cannot remove the directory {path}"):
            shutil.rmtree(path)


def link_or_copy(path: Path, copy: Path) -> None:
    """Make `copy` a hard link to `path`, or a copy where the file system has no hard links.

    A later `write_atomically` to `path` does not change `copy`.

    Raises:
        GrimmgenError: it failed; `copy` is unchanged.
    """
    temporary = _temporary(copy)
    with wrap_os_errors(f"cannot write {copy}"):
        try:
            os.link(path, temporary)
            temporary.replace(copy)
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            write_atomically(copy, path.read_bytes())
        finally:
            # If both names link to the same file already, a rename does nothing and leaves the temporary one.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON; keys keep their order."""
    # surrogatepass: a document is named after its file, whose name need not be UTF-8.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "surrogatepass"))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading; refuse a pipe, which would block, and a device, which need not end.

    Raises:
        OSError: it cannot be opened, or is not a regular file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NON_BLOCKING))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """Read the JSON value of a file that grimmgen wrote.

    Args:
        path: of the file.
        limit: largest accepted size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not JSON, or larger than `limit`.
    """
    with wrap_os_errors(f"cannot read {path}", missing_ok=True), open_regular(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise IntegrityError(f"{path} is larger than {limit >> 20} MB", "remove it")
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON ({error.__class__.__name__})", "remove it") from error


def parse_json(content: bytes) -> Any:
    """Parse JSON strictly: NaN and Infinity, which Python's parser accepts, are refused.

    Raises:
        ValueError: it is not JSON, or has a number too large for a float.
        RecursionError: it is nested too deeply.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    return json.loads(content, parse_constant=refuse, parse_float=number)


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def make_directory(path: Path) -> None:
    """Create a directory and its parents; do nothing if it exists."""
    with wrap_os_errors(f"cannot create the directory {path}"):
        path.mkdir(parents=True, exist_ok=True)


def free_space(path: Path) -> int:
    """Return the bytes that are free for this user on the disk of a path, which need not exist.

    Raises:
        GrimmgenError: the path cannot be read.
    """
    with wrap_os_errors(f"cannot read {path}"):
        while not path.exists() and path.parent != path:
            path = path.parent
        return shutil.disk_usage(path).free


def sweep(directory: Path) -> int:
    """Remove temporary files whose process has ended, and return their number.

    Those of running processes stay, since a write may be in progress.
    """
    removed = 0
    for path in directory.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def locked(
    path: Path, what: str, timeout: float = 0.0, notify: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the operating system's lock on `path`, which is released when the process ends, however it ends.

    Args:
        path: the lock file; it is not removed, since another process may be acquiring it.
        what: the locked resource, for the error message.
        timeout: seconds to wait for the lock.
        notify: called once, with the process that holds the lock, if there is one to wait for.

    Raises:
        GrimmgenError: another process still holds the lock after `timeout` seconds.
    """
    # Imported here, since commands that only read need no lock.
    import filelock

    holder = path.with_name(path.name + ".pid")
    # Whoever holds it may hand it to another thread.
    lock = filelock.FileLock(path, timeout=0, thread_local=False)
    deadline = time.monotonic() + timeout
    notified = False
    with wrap_os_errors(f"cannot lock {path}"):
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                who = _holder(holder)
                if time.monotonic() >= deadline:
                    raise GrimmgenError(f"{what} is in use by {who}", "wait for it to end, or stop it") from None
                if notify and not notified:
                    notify(f"waiting for {who}")
                    notified = True
                time.sleep(0.05)
    try:
        # The process id only informs those who wait; the lock does not depend on it.
        with contextlib.suppress(OSError):
            holder.write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def lock_holder(path: Path) -> str | None:
    """Return the process that holds the lock on `path`, as in `process 123`; None if it is free."""
    holder = path.with_name(path.name + ".pid")
    # Where nobody has left a process id, no lock is taken just to look.
    if not holder.exists():
        return None
    import filelock

    try:
        with filelock.FileLock(path, timeout=0):
            return None
    except filelock.Timeout:
        return _holder(holder)
    except OSError:
        return None


@contextlib.contextmanager
def wrap_os_errors(what: str, missing_ok: bool = False) -> Iterator[None]:
    """Turn an OSError into a GrimmgenError of one line, with the path and the remedy.

    Args:
        what: the operation that failed, with its path.
        missing_ok: let FileNotFoundError through, for callers that handle a missing file.
    """
    try:
        yield
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            raise
        reason = error.strerror or error.__class__.__name__
        raise GrimmgenError(f"{what} ({reason})", _remedy(error)) from error


def _remedy(error: OSError) -> str:
    """What to do about a failure; another GRIMMGEN_HOME helps only where the file is one of grimmgen's own."""
    if error.errno in {errno.EROFS, errno.EACCES, errno.EPERM} and isinstance(error.filename, str | os.PathLike):
        path = Path(error.filename).absolute()
        try:
            own = any(map(path.is_relative_to, (paths.cache_directory(), paths.data_directory())))
        except UsageError:
            own = False
        if not own:
            return "check the permissions, or give another path"
    return _REMEDIES.get(error.errno or 0, "check the path")


_REMEDIES = {
    errno.ENOSPC: f"free some space on the disk and {AGAIN}",
    errno.EDQUOT: f"free some of your quota and {AGAIN}",
    errno.EFBIG: f"raise the file size limit (ulimit -f) and {AGAIN}",
    errno.EROFS: "the file system is read-only; set GRIMMGEN_HOME to a writable directory",
    errno.EACCES: "check the permissions, or set GRIMMGEN_HOME to a directory of yours",
    errno.EPERM: "check the permissions, or set GRIMMGEN_HOME to a directory of yours",
    errno.EIO: f"the disk reports an error; check it and {AGAIN}",
}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _flush_directory(path: Path) -> None:
    # Windows cannot flush a directory, and makes a rename durable by itself.
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return True
    if os.name == "nt":
        # On Windows os.kill would end the process, and a file that is open cannot be removed.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
