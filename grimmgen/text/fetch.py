"""Download the tales of the Brothers Grimm into the cache, several at once.

This module has the numbering of the tales, the checks of their content, and the manifest; HTTP is in
`grimmgen.io.http`.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, http, paths
from grimmgen.text.corpus import GRIMM, MANIFEST, matches_manifest, read_manifest

CMU = "https://www.cs.cmu.edu/~spok/grimmtmp/"
STORY_COUNT = 209
_SIZES = range(200, 1 << 20)  # bytes of a tale
# An error message in plain text names a status or its phrase near its beginning; the words occur in tales, but not
# so near to each other. In bytes; most tales are longer.
_LONGEST_ERROR = 4096
_ERROR = re.compile(
    rb"\b(error|status|http/\S+|code)\W{0,3}[45]\d\d\b|\b[45]\d\d\W{1,3}(not found|forbidden|unauthori[sz]ed|bad "
    rb"(request|gateway)|internal server|service|gateway|too many|gone|method|proxy|request|payment)|\baccess denied\b"
    rb"|<Error>|\b(service|server|page|file|resource)( is| was)?( temporarily)? (unavailable|not found)\b"
    rb"|\btoo many requests\b|\brate limit",
    re.IGNORECASE,
)
_LOCK_TIMEOUT = 600.0


@dataclass(frozen=True)
class FetchStarted:
    """The first event.

    Attributes:
        requested: number of documents.
        missing: number of those that are not in the cache yet.
        directory: of the cache.
    """

    requested: int
    missing: int
    directory: Path


@dataclass(frozen=True)
class DocumentFetched:
    """A document is in the cache now; `size` is in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class DocumentFailed:
    """A document could not be fetched; the others are not affected."""

    name: str
    error: GrimmgenError


FetchEvent = FetchStarted | DocumentFetched | DocumentFailed


def story_numbers(stories: str) -> list[int]:
    """Parse the value of `--stories`: how many from the first, `all`, or numbers and ranges.

    >>> story_numbers("3"), story_numbers("1-2,35")
    ([1, 2, 3], [1, 2, 35])

    Raises:
        UsageError: the value has another form, or a number that does not exist.
    """
    last = STORY_COUNT
    error = UsageError(f"--stories {stories!r} is not clear", f"give 1 to {last}, all, or a list like 1-20,35")
    if stories == "all":
        return list(range(1, last + 1))
    if re.fullmatch(r"\s*[0-9]{1,4}\s*", stories):
        stories = f"1-{stories.strip()}"
    numbers: set[int] = set()
    for item in stories.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", item)
        if not match:
            raise error
        first, final = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= final <= last:
            raise error
        numbers.update(range(first, final + 1))
    return sorted(numbers)


def fetch(
    numbers: Sequence[int],
    url: str | None = None,
    jobs: int = 8,
    force: bool = False,
    notify: Callable[[str], None] | None = None,
) -> Generator[FetchEvent, None, None]:
    """Download tales into the cache; a generator of events.

    A document is checked to be plain text of a plausible size before it is stored, and its URL, size, SHA-256 and
    time are written to the manifest. Documents that are in the cache already are not requested again.

    Args:
        numbers: of the tales, from 1.
        url: address of the directory with `001.txt` and so on, which may have `user:password@`; None is where the
            tales in the cache are from, else the CMU page. The cache never has tales of two addresses.
        jobs: number of concurrent downloads.
        force: fetch documents again that are in the cache; those from another address are removed as soon as
            there is one from this address.
        notify: called with a message if another process is fetching.

    Yields:
        FetchStarted, then an event for each missing document, in the order in which they arrive.

    Raises:
        UsageError: the URL or the number of jobs cannot be used, or the cache has tales from another address.
        GrimmgenError: the cache cannot be written.
    """
    directory = paths.corpus_directory(GRIMM)
    given, credentials = http.split_credentials(_cached_base(directory) or CMU if url is None else url)
    base = given if given.endswith("/") else given + "/"
    try:
        parsed = urlsplit(base)
        usable = parsed.scheme in {"http", "https"} and parsed.hostname and parsed.port != 0
    except ValueError:
        usable = False
    if "?" in given or "#" in given:
        # What follows may be a password, too.
        shown = re.split("[?#]", given)[0]
        raise UsageError(
            f"--url {shown!r} has a query, and the names of the tales would follow it", "leave it out"
        )
    if not usable or not base.isprintable():
        raise UsageError(f"--url {given!r} cannot be used", "give an http or https address")
    if not 1 <= jobs <= 64:
        raise UsageError(f"--jobs {jobs} is out of range", "give 1 to 64")
    names = [f"{number:03d}" for number in numbers]
    if not force:
        _check_base(directory, base)
    if not force and not (missing := _missing(directory, read_manifest(directory), names)):
        yield FetchStarted(len(names), 0, directory)
        return
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the cache of tales", _LOCK_TIMEOUT, notify):
        files.sweep(directory)
        manifest = read_manifest(directory)
        if not force:
            _check_base(directory, base)
        missing = names if force else _missing(directory, manifest, names)
        yield FetchStarted(len(names), len(missing), directory)
        yield from _fetch_missing(directory, manifest, missing, base, jobs, credentials)


def _fetch_missing(
    directory: Path,
    manifest: dict[str, dict[str, Any]],
    missing: Sequence[str],
    base: str,
    jobs: int,
    credentials: str | None,
) -> Iterator[FetchEvent]:
    # The tales by their hashes: an error page is the same for several.
    names = {entry["sha256"]: name for name, entry in manifest.items() if name not in missing}
    fetched = set[str]()
    manifest_written = time.monotonic()
    pending, done = queue.SimpleQueue[str](), queue.SimpleQueue[tuple[str, bytes | Exception]]()
    for name in missing:
        pending.put(name)
    with http.Downloader(jobs, credentials=credentials) as downloader:

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not downloader.stopped:
                    name = pending.get_nowait()
                    try:
                        done.put((name, downloader.get(f"{base}{name}.txt")))
                    except Exception as error:
                        done.put((name, error))

        # Daemon threads, so that an interrupted program need not wait for a host that does not answer.
        for number in range(min(jobs, len(missing))):
            try:
                threading.Thread(target=work, name="fetch", daemon=True).start()
            except RuntimeError as error:
                # Fewer do.
                if number == 0:
                    raise GrimmgenError("cannot start a thread", "raise ulimit -u") from error
                break
        try:
            for _ in missing:
                name, content = done.get()
                try:
                    if isinstance(content, Exception):
                        raise content
                    _check_content(f"{base}{name}.txt", content)
                except GrimmgenError as error:
                    yield DocumentFailed(name, error)
                    continue
                if (other := names.setdefault(files.sha256(content), name)) != name:
                    yield DocumentFailed(name, _same(base, name, other))
                    if other in fetched:
                        # It came from the same page, so that it is none either.
                        fetched.discard(other)
                        _remove(directory, manifest, [other])
                        yield DocumentFailed(other, _same(base, other, name))
                    continue
                # Tales from another address, of which there are some only with `force`.
                _remove(directory, manifest, [n for n, e in manifest.items() if _base(e["url"]) != _base(base)])
                fetched.add(name)
                path = directory / f"{name}.txt"
                entry = {
                    "url": f"{base}{name}.txt",
                    "bytes": len(content),
                    "sha256": files.sha256(content),
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                files.remove_directory(path)
                try:
                    files.write_atomically(path, content)
                finally:
                    # In `finally`, since an interrupt may arrive just after the rename.
                    if matches_manifest(path, entry):
                        manifest[name] = entry
                if time.monotonic() - manifest_written > 1.0:
                    _write_manifest(directory, manifest)
                    manifest_written = time.monotonic()
                yield DocumentFetched(name, len(content))
        finally:
            # In `finally`, so that the manifest is complete after an interrupt, and no further download starts.
            downloader.stop()
            if missing:
                _write_manifest(directory, manifest)


def _check_content(url: str, content: bytes) -> None:
    """Refuse an error page, a binary file, and a body of an implausible size."""
    remedy = "check the --url"
    if len(content) not in _SIZES:
        raise IntegrityError(f"{url}: {len(content)} bytes are not a story", remedy)
    if re.search(rb"<\s*(!doctype|html|head|body|script)\b|^\s*<\?xml\b", content[:4096], re.IGNORECASE):
        raise IntegrityError(f"{url}: that is a web page, not a story", remedy)
    controls = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in content)
    if b"\0" in content or controls > len(content) // 100:
        raise IntegrityError(f"{url}: that is not plain text", remedy)
    if content.lstrip()[:1] in {b"{", b"["} and _is_json(content):
        raise IntegrityError(f"{url}: that is JSON, not a story", remedy)
    if len(content) < _LONGEST_ERROR and _ERROR.search(content[:400]):
        raise IntegrityError(f"{url}: that is an error message, not a story", remedy)


def _is_json(content: bytes) -> bool:
    try:
        files.parse_json(content)
    except (ValueError, RecursionError):
        return False
    return True


def _same(base: str, name: str, other: str) -> IntegrityError:
    return IntegrityError(f"{base}{name}.txt: the same text as {other}.txt, not a story", "check the --url")


def _base(url: str) -> str:
    """The address of the directory of a URL, without credentials, to be compared."""
    address, _ = http.split_credentials(url)
    parsed = urlsplit(address.rpartition("/")[0] + "/")
    return parsed._replace(netloc=parsed.netloc.lower()).geturl()


def _cached_base(directory: Path) -> str | None:
    """The address that the tales in the cache are from; None if there are none."""
    return next((_base(entry["url"]) for entry in read_manifest(directory).values()), None)


def _check_base(directory: Path, base: str) -> None:
    """Refuse to mix the tales of two addresses."""
    cached = _cached_base(directory)
    if cached is not None and cached != _base(base):
        raise UsageError(
            f"the tales in the cache are from {cached}, not from {base}",
            "leave out --url, or give --force to replace all of them",
        )


def _remove(directory: Path, manifest: dict[str, dict[str, Any]], names: Sequence[str]) -> None:
    """Remove tales from the cache."""
    for name in names:
        del manifest[name]
    if names:
        # The files go last: without an entry they count as missing.
        _write_manifest(directory, manifest)
    for name in names:
        with files.wrap_os_errors(f"cannot remove {directory / name}.txt"):
            (directory / f"{name}.txt").unlink(missing_ok=True)


def _missing(directory: Path, manifest: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Names whose file is missing, or differs from its entry in the manifest."""
    return [name for name in names if not matches_manifest(directory / f"{name}.txt", manifest.get(name))]


def _write_manifest(directory: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    # Earlier versions kept the password of a URL.
    stories = {
        n: {**entry, "url": http.split_credentials(entry["url"])[0]} for n, entry in sorted(manifest.items())
    }
    files.write_json(directory / MANIFEST, {"format": 1, "stories": stories})
