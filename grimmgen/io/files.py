"""Writing files so that a reader sees the old one or the new one, whole, whatever happens in between.

Knows nothing of what the files hold. Locks are advisory: they keep two processes from doing the same work
twice; correctness rests on the atomic rename.
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

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.tmp")
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
# What a file system says that has no hard links.
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK}


def write_atomically(path: Path, content: bytes) -> None:
    """Give `path` this content, or leave it as it was; see `replacing`."""
    with replacing(path) as file:
        file.write(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, or to map, which takes the place of `path` where the block ends well.

    The temporary file in the same directory is flushed to the disk, then renamed over `path`, then the directory
    is flushed, in this order: after a power cut the name leads to the old or the new content.

    Raises:
        GrimmgenError: the disk is full, read-only or failing; `path` is as it was, or new and whole if only
            the directory could not be flushed.
    """
    temporary = _temporary(path)
    with explained(f"cannot write {path}"):
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


def output(path: Path) -> Path:
    """The file that a name of the user's leads to, for `write_atomically`, which would put a file in its place.

    A link stays, and what it leads to is written; a device or a pipe (`/dev/null`, as the superuser) stays, too.

    Raises:
        UsageError: there is something else than a file.
        GrimmgenError: the path cannot be looked at.
    """
    refused = UsageError(f"{str(path)!r} is not a file", "give the name of a file, new or to be replaced")
    try:
        with explained(f"cannot write {path}", missing_ok=True):
            real = Path(os.path.realpath(path)) if path.is_symlink() else path
            regular = stat.S_ISREG(real.stat().st_mode)
    except FileNotFoundError:
        return real
    except ValueError:
        raise refused from None  # NUL
    if not regular:
        raise refused
    return real


def make_way(path: Path) -> None:
    """Remove a directory from where a file of the cache belongs: all that lies there can be had again.

    Raises:
        GrimmgenError: it cannot be removed.
    """
    if path.is_dir() and not path.is_symlink():
        with explained(f"cannot remove the directory {path}"):
            shutil.rmtree(path)


def keep(path: Path, copy: Path) -> None:
    """Let `copy` hold what `path` holds now, whatever is written to `path` later.

    Raises:
        GrimmgenError: it cannot be; `copy` is as it was.
    """
    temporary = _temporary(copy)
    with explained(f"cannot write {copy}"):
        try:
            os.link(path, temporary)
            temporary.replace(copy)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            write_atomically(copy, path.read_bytes())
        finally:
            # Where both names are of one file already, a rename does nothing and leaves the first.
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` atomically as indented JSON, keys in the order given."""
    # surrogatepass, as json.loads reads it: a story may be named after a file whose name is not UTF-8.
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, text.encode("utf-8", "surrogatepass"))


def opened(path: Path) -> BinaryIO:
    """Open a file to be read; a pipe would be waited for, and a device read for ever.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | _NO_WAIT))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "Not a regular file", str(path))
    return file


def read_json(path: Path, limit: int = 64 << 20) -> Any:
    """The JSON value that a file of ours holds.

    Raises:
        FileNotFoundError: there is no such file.
        IntegrityError: it is not JSON, or larger than `limit` bytes.
    """
    with explained(f"cannot read {path}", missing_ok=True), opened(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise IntegrityError(f"{path} is larger than {limit >> 20} MB", "remove it")
    try:
        return parse_json(content)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"{path} is not JSON ({error.__class__.__name__})", "remove it") from error


def parse_json(content: bytes) -> Any:
    """A JSON value, without the NaN and Infinity that Python reads, too, and no other program.

    Raises:
        ValueError: that is none, or has a number beyond all floats.
        RecursionError: it is too deep.
    """

    def refuse(name: str) -> NoReturn:
        raise ValueError(name)

    def number(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    return json.loads(content, parse_constant=refuse, parse_float=number)


def sha256(content: bytes) -> str:
    """The SHA-256 of `content`, as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def make_directory(path: Path) -> None:
    """Make a directory and its parents; it is well if it is there."""
    with explained(f"cannot make the directory {path}"):
        path.mkdir(parents=True, exist_ok=True)


def sweep(directory: Path) -> int:
    """Remove temporary files whose process is gone; returns how many.

    Those of living processes stay: they may be in the middle of a write.
    """
    removed = 0
    for path in directory.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


@contextlib.contextmanager
def locked(
    path: Path, what: str, timeout: float = 0.0, waiting: Callable[[str], None] | None = None
) -> Iterator[None]:
    """Hold the operating system's lock on `path`; it is free at once when its holder dies.

    Args:
        path: the lock file; it stays behind, empty, since removing it would race with the next taker.
        what: what is locked, for the error line.
        timeout: seconds to wait for another holder.
        waiting: told once, who holds the lock, if there is anything to wait for.

    Raises:
        GrimmgenError: still held by another process after `timeout` seconds.
    """
    # Here, since what only reads locks nothing, and need not wait for it.
    import filelock

    holder = path.with_name(path.name + ".pid")
    lock = filelock.FileLock(path, timeout=0)
    deadline = time.monotonic() + timeout
    told = False
    with explained(f"cannot lock {path}"):
        while True:
            try:
                lock.acquire(blocking=False)
                break
            except filelock.Timeout:
                who = _holder(holder)
                if time.monotonic() >= deadline:
                    raise GrimmgenError(f"{what} is in use by {who}", "wait for it to end, or stop it") from None
                if waiting and not told:
                    waiting(f"waiting for {who}")
                    told = True
                time.sleep(0.05)
    try:
        # The pid is a courtesy to whoever waits; the lock itself is the operating system's.
        with contextlib.suppress(OSError):
            holder.write_text(str(os.getpid()))
        yield
    finally:
        with contextlib.suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def explained(what: str, missing_ok: bool = False) -> Iterator[None]:
    """Turn an error of the operating system into one line that names the place and the remedy.

    Args:
        what: what was being done, with the path.
        missing_ok: let FileNotFoundError through, for callers to whom absence is an answer.
    """
    try:
        yield
    except OSError as error:
        if missing_ok and isinstance(error, FileNotFoundError):
            raise
        reason = error.strerror or error.__class__.__name__
        raise GrimmgenError(f"{what} ({reason})", _REMEDIES.get(error.errno or 0, "check the path")) from error


_REMEDIES = {
    errno.ENOSPC: "free some space on the disk and run the command again",
    errno.EDQUOT: "free some of your quota and run the command again",
    errno.EFBIG: "raise the file size limit (ulimit -f) and run the command again",
    errno.EROFS: "the file system is read-only; set GRIMMGEN_HOME to a place that can be written",
    errno.EACCES: "check the permissions, or set GRIMMGEN_HOME to a place of yours",
    errno.EPERM: "check the permissions, or set GRIMMGEN_HOME to a place of yours",
    errno.EIO: "the disk reports an error; check it and run the command again",
}


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def _flush_directory(path: Path) -> None:
    # Windows has no such call, and makes a rename durable by itself.
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


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return True
    if os.name == "nt":
        # os.kill would end the process on Windows; there, a file that is open cannot be removed anyway.
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
