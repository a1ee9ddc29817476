"""Fetching the tales of the Brothers Grimm into the cache, several at once.

Knows the page and the cache; HTTP is in `grimmgen.io.http`.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files, http, paths
from grimmgen.text.corpus import GRIMM, MANIFEST, is_sound, read_manifest

CMU = "https://www.cs.cmu.edu/~spok/grimmtmp/"
STORIES_ON_THE_PAGE = 209
_SIZES = range(200, 1 << 20)
_LOCK_TIMEOUT = 600.0


@dataclass(frozen=True)
class FetchStarted:
    """What there is to do: stories asked for, and how many of them are not there yet."""

    asked: int
    missing: int
    directory: Path


@dataclass(frozen=True)
class StoryFetched:
    """One story has taken its place."""

    name: str
    size: int


@dataclass(frozen=True)
class StoryFailed:
    """One story could not be had; the others go on."""

    name: str
    error: GrimmgenError


FetchEvent = FetchStarted | StoryFetched | StoryFailed


def story_numbers(asked: str) -> list[int]:
    """The numbers that `--stories` names: how many from the first, `all`, or numbers and ranges.

    >>> story_numbers("3"), story_numbers("1-2,35")
    ([1, 2, 3], [1, 2, 35])

    Raises:
        UsageError: it names none, or one that the page does not have.
    """
    last = STORIES_ON_THE_PAGE
    error = UsageError(f"--stories {asked!r} is not clear", f"give 1 to {last}, all, or a list like 1-20,35")
    if asked == "all":
        return list(range(1, last + 1))
    if re.fullmatch(r"\s*[0-9]{1,4}\s*", asked):
        asked = f"1-{asked.strip()}"
    numbers: set[int] = set()
    for item in asked.split(","):
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
    url: str = CMU,
    jobs: int = 8,
    force: bool = False,
    waiting: Callable[[str], None] | None = None,
) -> Iterator[FetchEvent]:
    """Bring stories of the page into the cache, several at once; a generator of what happens.

    Each story is checked to be plain text of a sane size before it takes its name, and its URL, size, SHA-256
    and time are written to the manifest. What is there already is not asked for again.

    Args:
        numbers: of the stories, from 1.
        url: the place that serves `001.txt` and so on.
        jobs: how many at once.
        force: fetch again what is there.
        waiting: told if another process is fetching.

    Raises:
        UsageError: the URL cannot be used.
        GrimmgenError: the cache cannot be written.
    """
    base = url if url.endswith("/") else url + "/"
    try:
        parsed = urlsplit(base)
        usable = parsed.scheme in {"http", "https"} and parsed.hostname and parsed.port != 0
    except ValueError:
        usable = False
    if not usable or not base.isprintable():
        raise UsageError(f"--url {url!r} cannot be used", "give an http or https address")
    if not 1 <= jobs <= 64:
        raise UsageError(f"--jobs {jobs} is out of range", "give 1 to 64")
    directory = paths.corpus_directory(GRIMM)
    names = [f"{number:03d}" for number in numbers]
    if not force and not (missing := _missing(directory, read_manifest(directory), names)):
        yield FetchStarted(len(names), 0, directory)
        return
    files.make_directory(directory)
    with files.locked(directory / ".lock", "the cache of tales", _LOCK_TIMEOUT, waiting):
        files.sweep(directory)
        manifest = read_manifest(directory)
        missing = names if force else _missing(directory, manifest, names)
        yield FetchStarted(len(names), len(missing), directory)
        yield from _fetch_missing(directory, manifest, missing, base, jobs)


def _fetch_missing(
    directory: Path, manifest: dict[str, dict[str, Any]], missing: Sequence[str], base: str, jobs: int
) -> Iterator[FetchEvent]:
    written = time.monotonic()
    waiting, done = queue.SimpleQueue[str](), queue.SimpleQueue[tuple[str, bytes | Exception]]()
    for name in missing:
        waiting.put(name)
    with http.Downloader(jobs) as downloader:

        def work() -> None:
            with contextlib.suppress(queue.Empty):
                while not downloader.stopped:
                    name = waiting.get_nowait()
                    try:
                        done.put((name, downloader.get(f"{base}{name}.txt")))
                    except Exception as error:
                        done.put((name, error))

        # Daemons, since who is stopped does not wait for a host that does not answer.
        for _ in range(min(jobs, len(missing))):
            threading.Thread(target=work, name="fetch", daemon=True).start()
        try:
            for _ in missing:
                name, content = done.get()
                try:
                    if isinstance(content, Exception):
                        raise content
                    _check_story(f"{base}{name}.txt", content)
                except GrimmgenError as error:
                    yield StoryFailed(name, error)
                    continue
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
                    # Also when the user stops just as it has taken its place.
                    if is_sound(path, entry):
                        manifest[name] = entry
                if time.monotonic() - written > 1.0:
                    _write_manifest(directory, manifest)
                    written = time.monotonic()
                yield StoryFetched(name, len(content))
        finally:
            # Also when the user stops: what has its place is remembered, what waits is not begun.
            downloader.stop()
            if missing:
                _write_manifest(directory, manifest)


def _check_story(url: str, content: bytes) -> None:
    """Refuse what is not plain text of a sane size: an error page, a binary, an empty body."""
    remedy = "check the --url"
    if len(content) not in _SIZES:
        raise IntegrityError(f"{url}: {len(content)} bytes are not a story", remedy)
    if re.search(rb"<\s*(!doctype|html|head|body|script)\b", content[:4096], re.IGNORECASE):
        raise IntegrityError(f"{url}: that is a web page, not a story", remedy)
    controls = sum(byte < 32 and byte not in b"\t\n\r\f" for byte in content)
    if b"\0" in content or controls > len(content) // 100:
        raise IntegrityError(f"{url}: that is not plain text", remedy)


def _missing(directory: Path, manifest: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """The names whose file is not there as the manifest has it."""
    return [name for name in names if not is_sound(directory / f"{name}.txt", manifest.get(name))]


def _write_manifest(directory: Path, manifest: Mapping[str, Mapping[str, Any]]) -> None:
    files.write_json(directory / MANIFEST, {"format": 1, "stories": dict(sorted(manifest.items()))})
