"""Fetching the tales into the cache, and reading them from it (faults 5, 8-16)."""

from __future__ import annotations

import errno
import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io import files
from grimmgen.text import corpus, fetch
from grimmgen.text.fetch import DocumentFailed, DocumentFetched, FetchEvent, FetchStarted
from tests.program import Ran
from tests.server import Server, answer, dripping, endless, stalling

ALL = range(1, 210)


def tale(number: int) -> bytes:
    return f"The tale of the König who counted to {number}.\n".encode("latin-1") * 9


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve all tales."""
    with Server() as server:
        for number in ALL:
            server.on(f"/{number:03d}.txt", answer(tale(number)))
        yield server


@pytest.fixture
def cache(home: Path) -> Path:
    return home / "cache" / "corpora" / "grimm"


def fetch_all(server: Server, numbers: Iterable[int], **options: Any) -> list[FetchEvent]:
    return list(fetch.fetch(list(numbers), server.url, **options))


def failures(events: Iterable[FetchEvent]) -> dict[str, GrimmgenError]:
    return {event.name: event.error for event in events if isinstance(event, DocumentFailed)}


def paths(numbers: Iterable[int]) -> list[str]:
    return [f"/{number:03d}.txt" for number in numbers]


def read() -> dict[str, bytes]:
    return {document.name: document.content() for document in corpus.open_corpus("grimm").documents}


def tales(numbers: Iterable[int]) -> dict[str, bytes]:
    return {f"{number:03d}": tale(number) for number in numbers}


def manifest(cache: Path) -> dict[str, dict[str, Any]]:
    value = json.loads((cache / "manifest.json").read_bytes())
    assert value["format"] == 1
    entries: dict[str, dict[str, Any]] = value["stories"]
    return entries


def test_documents_are_fetched_and_read(server: Server, cache: Path) -> None:
    started, *fetched = fetch_all(server, [35, 1, 2])
    assert started == FetchStarted(3, 3, cache)
    assert set(fetched) == {DocumentFetched(name, len(content)) for name, content in tales([1, 2, 35]).items()}
    assert sorted(server.requests) == paths([1, 2, 35])
    assert read() == tales([1, 2, 35])
    opened = corpus.open_corpus("grimm")
    assert (opened.name, opened.source) == ("grimm", "grimm")
    assert opened.documents[0].read().startswith("The tale of the König"), "Latin-1 is decoded"
    assert {path.name for path in cache.iterdir()} <= {"001.txt", "002.txt", "035.txt", "manifest.json", ".lock"}


def test_manifest_has_url_size_hash_and_time(server: Server, cache: Path) -> None:
    fetch_all(server, [2, 1])
    entries = manifest(cache)
    assert list(entries) == ["001", "002"]
    when = entries["001"].pop("time")
    assert entries["001"] == {
        "url": f"{server.url}001.txt",
        "bytes": len(tale(1)),
        "sha256": files.sha256(tale(1)),
    }
    assert timedelta(0) <= datetime.now(UTC) - datetime.fromisoformat(when) < timedelta(minutes=1)


def test_url_needs_no_trailing_slash(server: Server) -> None:
    server.on("/tales/001.txt", answer(tale(1)))
    events = list(fetch.fetch([1], f"{server.url}tales"))
    assert (len(events), failures(events), server.requests) == (2, {}, ["/tales/001.txt"])


def test_cached_documents_are_not_requested_again(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_all(server, [1, 2, 3])

    def no_socket(*_: object, **__: object) -> None:
        pytest.fail("a socket was opened")

    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", no_socket)  # fault 14
        assert fetch_all(server, [1, 2, 3]) == [FetchStarted(3, 0, cache)]
        assert fetch_all(server, []) == [FetchStarted(0, 0, cache)]
    assert len(server.requests) == 3
    assert fetch_all(server, [1, 2, 3, 4])[0] == FetchStarted(4, 1, cache)
    assert server.requests[3:] == ["/004.txt"]


def test_force_fetches_cached_documents_again(server: Server) -> None:
    fetch_all(server, [1, 2])
    server.on("/001.txt", answer(tale(101)))
    assert fetch_all(server, [1, 2], force=True)[0].missing == 2  # type: ignore[union-attr]
    assert read() == {"001": tale(101), "002": tale(2)}


@pytest.mark.slow
def test_failed_documents_do_not_affect_the_others(server: Server, cache: Path) -> None:
    for path in paths([7, 70, 209]):
        server.on(path, answer(b"Gone fishing.", 404), answer(tale(int(path[1:4]))))
    events = fetch_all(server, ALL)
    assert {name: str(error) for name, error in failures(events).items()} == {
        name: f"{server.url}{name}.txt: the server answers 404: check the --url and the numbers"
        for name in ("007", "070", "209")
    }
    assert read() == tales(set(ALL) - {7, 70, 209})
    server.requests.clear()
    assert fetch_all(server, ALL)[0] == FetchStarted(209, 3, cache)
    assert sorted(server.requests) == paths([7, 70, 209])  # fault 8
    assert read() == tales(ALL)


def test_without_a_thread_nothing_is_fetched(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(GrimmgenError, match="cannot start a thread"):
        fetch_all(server, [1])
    assert not (cache / "001.txt").exists()


# --- checks of the content -----------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html><html><body>The tale is gone.</body></html>"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "0 bytes are not a story"),
        (b"Not found.\n", "11 bytes are not a story"),
        (b"x" * (1 << 20), "1048576 bytes are not a story"),
        (PAGE * 9, "that is a web page, not a story"),
        (b"\n" * 2000 + b"< Html lang='en'>" + b"\n" * 2000, "that is a web page, not a story"),
        (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "that is not plain text"),
        (tale(1) + b"\0", "that is not plain text"),
        (tale(1)[:300] + b"\x1b" * 10, "that is not plain text"),
        ("Es war einmal. ".encode("utf-16") * 20, "that is not plain text"),
    ],
    ids=["empty", "short", "long", "page", "page after blank lines", "image", "NUL", "controls", "UTF-16"],
)
def test_invalid_content_is_never_cached(server: Server, cache: Path, body: bytes, reason: str) -> None:
    server.on("/001.txt", answer(body))
    error = failures(fetch_all(server, [1, 2]))["001"]  # fault 5
    assert str(error) == f"{server.url}001.txt: {reason}: check the --url"
    assert (type(error), error.exit_code) == (IntegrityError, 3)
    assert server.requests.count("/001.txt") == 1
    assert read() == tales([2])
    assert {path.suffix for path in cache.iterdir()} <= {".txt", ".json", ""}
    assert not (cache / "001.txt").exists()


@pytest.mark.parametrize(
    "body",
    [tale(1)[:200], tale(1) + b"\f\x1a", b"a <b> c < d, <p>" * 20, b"[A tale] " * 30, b"\xff" * 200],
)
def test_unusual_but_plausible_content_is_cached(server: Server, body: bytes) -> None:
    server.on("/001.txt", answer(body))
    assert failures(fetch_all(server, [1])) == {}
    assert read() == {"001": body}


ERRORS = {
    "JSON": b'{"error": {"code": 404, "message": "no such tale"}}' + b" " * 200,
    "JSON list": b"[" + b"1, " * 99 + b"1]",
    "status": b"404 Not Found\n\nThe requested resource was not found on this server.\n" + b"-" * 200,
    "phrase": b"Error 503: the backend is down. Try again later.\n" + b"=" * 200,
    "XML": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>' + b" " * 200,
    "limit": b"Too many requests from your address. " * 9,
}


@pytest.mark.parametrize("kind", ERRORS)
def test_error_message_is_never_cached(server: Server, kind: str) -> None:  # fault 5
    server.on("/001.txt", answer(ERRORS[kind]))
    error = failures(fetch_all(server, [1, 2]))["001"]
    assert (type(error), ", not a story" in error.what) == (IntegrityError, True)
    assert read() == tales([2])


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/json", "application/problem+json"])
def test_page_of_another_type_is_never_cached(server: Server, kind: str) -> None:  # fault 5
    server.on("/001.txt", answer(tale(1), Content_Type=kind))
    server.on("/002.txt", answer(tale(2), Content_Type="text/plain"))
    assert "not text" in failures(fetch_all(server, [1, 2]))["001"].what
    assert read() == tales([2])


def test_equal_texts_of_different_tales_are_refused(server: Server) -> None:  # fault 5
    for path in paths([2, 3, 5]):
        server.on(path, answer(b"There is nothing to see here at the moment. " * 9))
    events = fetch_all(server, [1, 2, 3, 4])
    assert set(failures(events)) == {"002", "003"}
    assert "the same text as 00" in failures(events)["003"].what
    assert read() == tales([1, 4])
    # A single one cannot be told from a tale; a cached tale stays.
    server.on("/006.txt", answer(tale(1)))
    assert set(failures(fetch_all(server, [5, 6]))) == {"006"}
    assert set(read()) == {"001", "004", "005"}


def test_tales_of_two_addresses_are_never_mixed(server: Server, cache: Path) -> None:
    fetch_all(server, [1, 2])
    with Server() as other:
        for number in (1, 2, 3):
            other.on(f"/{number:03d}.txt", answer(tale(100 + number)))
        with pytest.raises(UsageError, match="give --force to replace all of them"):
            list(fetch.fetch([3], other.url))
        assert other.requests == []
        # A server without tales replaces none.
        other.on("/009.txt", answer(b"", 404))
        assert set(failures(fetch.fetch([9], other.url, force=True))) == {"009"}
        assert read() == tales([1, 2])
        list(fetch.fetch([2, 3], other.url, force=True))
        assert read() == {"002": tale(102), "003": tale(103)}
        assert not (cache / "001.txt").exists()
        # Without an address, that of the cached tales.
        assert failures(fetch.fetch([1])) == {}
        assert read() == {f"00{number}": tale(100 + number) for number in (1, 2, 3)}


def test_password_is_sent_and_never_shown(server: Server, cache: Path, run: Callable[..., Ran]) -> None:
    url = server.url.replace("//", "//me:s3cret@")
    server.on("/002.txt", answer(b"", 404))
    server.on("/003.txt", answer(b"", 302, Location="http://me:s3cret@elsewhere.example/003.txt"))
    for options in ["--json"], [], ["--force"]:
        ran = run("fetch", "--url", url, "--stories", "1-3", *options)
        assert ran.code == 1
        assert "s3cret" not in ran.out + ran.err
    assert b"s3cret" not in (cache / "manifest.json").read_bytes()
    # Nor is what an earlier version has kept.
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest["stories"]["001"]["url"] = f"{url}001.txt"
    (cache / "manifest.json").write_text(json.dumps(manifest))
    assert run("fetch", "--url", server.url, "--stories", "1,4").code == 0
    assert b"s3cret" not in (cache / "manifest.json").read_bytes()
    for bad in ("ftp://me:s3cret@a/", "http://me:s3cret@a:x/", "http://a/?token=s3cret", "http://me:s3cret@/"):
        refused = run("fetch", "--url", bad)
        assert (refused.code, "s3cret" in refused.err) == (2, False)


def test_endless_document_does_not_block_the_others(server: Server) -> None:
    server.on("/001.txt", endless(answer(Content_Length="9" * 12), b"x" * (1 << 16)))
    assert [*failures(fetch_all(server, [1, 2, 3]))] == ["001"]  # fault 7
    assert read() == tales([2, 3])


def test_failed_forced_fetch_keeps_the_old_document(server: Server) -> None:
    fetch_all(server, [1])
    server.on("/001.txt", answer(PAGE * 9))
    assert [*failures(fetch_all(server, [1], force=True))] == ["001"]
    assert read() == tales([1])


# --- damage to the cache, and failing disks ------------------------------------------------------------------


def corrupt(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"tale", b"TALE", 1))


def truncate(path: Path) -> None:
    os.truncate(path, 100)


def link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def directory(path: Path) -> None:
    path.unlink()
    (path / "within").mkdir(parents=True)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (corrupt, "has changed"),
        (truncate, "has changed"),
        (Path.unlink, "is gone"),
        (link, "is a link, not the story that was fetched"),
        (directory, "is not a file"),
        (pipe, "is not a file"),
    ],
)
def test_damaged_document_is_noticed_and_fetched_again(
    server: Server, cache: Path, harm: Callable[[Path], None], line: str
) -> None:
    fetch_all(server, [1, 2])
    harm(cache / "001.txt")
    damaged, other = corpus.open_corpus("grimm").documents
    for read_damaged in damaged.content, damaged.read:
        with pytest.raises(IntegrityError) as caught:
            read_damaged()  # fault 12
        assert str(caught.value) == f"{cache / '001.txt'} {line}: run `grimmgen fetch` to repair it"
        assert caught.value.exit_code == 3
    assert other.content() == tale(2)
    server.requests.clear()
    assert fetch_all(server, [1, 2]) == [FetchStarted(2, 1, cache), DocumentFetched("001", len(tale(1)))]
    assert server.requests == ["/001.txt"]
    assert read() == tales([1, 2])
    if harm is link:
        assert (cache / "001.elsewhere").read_bytes() == tale(1), "the target of the link is unchanged"


def test_unreadable_document_is_fetched_again(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_all(server, [1, 2])

    def fail(_: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "read_bytes", fail)
    assert fetch_all(server, [1, 2])[0] == FetchStarted(2, 2, cache)
    assert sorted(server.requests) == paths([1, 1, 2, 2])


def test_damaged_document_stays_if_fetching_fails(server: Server, cache: Path) -> None:
    fetch_all(server, [1, 2])
    corrupt(cache / "001.txt")
    server.on("/001.txt", answer(status=403))
    assert [*failures(fetch_all(server, [1, 2]))] == ["001"]
    with pytest.raises(IntegrityError, match="has changed"):
        read()  # fault 12
    assert (cache / "002.txt").read_bytes() == tale(2)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xff",
        b"[]",
        b'{"format": 1}',
        b'{"stories": {"001": {}}}',
        b'{"stories": {"001": 7}}',
        b'{"stories": {"001": {"url": "", "bytes": 1e999, "sha256": "", "time": ""}}}',
        b'{"stories": {"../../x": {"url": "", "bytes": 1, "sha256": "", "time": ""}}}',
    ],
)
def test_damaged_manifest_counts_as_missing(server: Server, cache: Path, value: bytes) -> None:
    fetch_all(server, [1, 2])
    (cache / "manifest.json").write_bytes(value)
    with pytest.raises(GrimmgenError, match="no tales have been fetched yet"):
        corpus.open_corpus("grimm")
    assert fetch_all(server, [1, 2])[0] == FetchStarted(2, 2, cache)
    assert read() == tales([1, 2])


def test_full_disk_ends_fetch_and_keeps_the_cache(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_all(server, [1, 2])
    before = (cache / "manifest.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(GrimmgenError, match="No space left on device"):
            fetch_all(server, [1, 2, 3, 4])  # fault 15
    assert (cache / "manifest.json").read_bytes() == before
    assert read() == tales([1, 2])
    assert list(cache.glob(".*.tmp")) == []
    fetch_all(server, [1, 2, 3, 4])
    assert read() == tales([1, 2, 3, 4])


def test_read_only_cache_can_be_read(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch_all(server, [1, 2])
    opened = os.open

    def read_only(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert fetch_all(server, [1, 2]) == [FetchStarted(2, 0, cache)]  # fault 13
    assert read() == tales([1, 2])
    with pytest.raises(GrimmgenError) as caught:
        fetch_all(server, [1, 2, 3])
    remedy = "the file system is read-only; set GRIMMGEN_HOME to a writable directory"
    assert str(caught.value) == f"cannot lock {cache / '.lock'} (Read-only file system): {remedy}"
    assert len(server.requests) == 2


# --- interruptions, and concurrent fetches -------------------------------------------------------------------


def test_interrupted_fetch_is_continued(server: Server, cache: Path) -> None:
    for path in paths(range(9, 31)):
        server.on(path, dripping(b"", answer(tale(1))))
    events = fetch.fetch(range(1, 31), server.url, jobs=2)
    assert isinstance(events, Generator)
    assert isinstance(next(events), FetchStarted)
    fetched = [event.name for event in itertools.islice(events, 5) if isinstance(event, DocumentFetched)]
    began = time.monotonic()
    events.close()
    assert time.monotonic() - began < 3.0, "downloads in progress, which take 5 s, are not waited for"
    assert set(manifest(cache)) == set(fetched), "every reported document is in the manifest"
    assert read() == tales(map(int, fetched))
    assert len(server.requests) <= 8 + 2, "no further download started"
    for number in range(9, 31):
        server.on(f"/{number:03d}.txt", answer(tale(number)))
    server.requests.clear()
    fetch_all(server, range(1, 31))
    missing = paths(sorted(set(range(1, 31)) - set(map(int, fetched))))
    assert sorted(set(server.requests)) == missing
    # On a busy machine the server may record the last requests of the two stopped jobs late.
    assert len(server.requests) <= len(missing) + 2
    assert read() == tales(range(1, 31))


KILLED = """
import sys
from grimmgen.text import fetch
for event in fetch.fetch([1, 2, 3, 4], sys.argv[1], jobs=1):
    print(type(event).__name__, flush=True)
"""


@pytest.mark.usefixtures("cache")
def test_interrupt_after_rename_keeps_the_document(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    write = files.write_atomically

    def write_and_interrupt(path: Path, content: bytes) -> None:
        write(path, content)
        if path.suffix == ".txt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", write_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch_all(server, [1])
    assert read() == tales([1])


def test_manifest_is_written_every_second(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0.0, 2.0)
    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    events = fetch.fetch([1, 2, 3], server.url, jobs=1)
    assert next(events) == FetchStarted(3, 3, cache)
    assert next(events) == DocumentFetched("001", len(tale(1)))
    # The first document is in the manifest before the fetch ends.
    assert [*manifest(cache)] == ["001"]
    assert len(list(events)) == 2


def test_killed_fetch_is_completed_by_the_next(server: Server, cache: Path) -> None:
    server.on("/003.txt", stalling(), answer(tale(3)))
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, server.url], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(3)] == ["FetchStarted\n", *["DocumentFetched\n"] * 2]
        process.kill()  # fault 10
    assert process.returncode == -signal.SIGKILL
    stale = cache / f".004.txt.{process.pid}.0123abcd.tmp"
    stale.write_bytes(b"half a ta")
    assert failures(fetch_all(server, [1, 2, 3, 4])) == {}
    assert read() == tales([1, 2, 3, 4])
    assert not stale.exists()


@pytest.mark.parametrize("count", [2, 8])
def test_concurrent_fetches_share_the_work(server: Server, cache: Path, count: int) -> None:
    started = threading.Barrier(count)

    def run(_: int) -> list[FetchEvent]:
        started.wait()
        return fetch_all(server, range(1, 13))

    with ThreadPoolExecutor(count) as pool:
        events = [event for all_events in pool.map(run, range(count)) for event in all_events]
    assert failures(events) == {}  # fault 11
    assert sorted(server.requests) == paths(range(1, 13))
    assert read() == tales(range(1, 13))
    assert list(cache.glob(".*.tmp")) == []


def test_waiting_for_another_fetch_is_notified(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    messages: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        with files.locked(cache / ".lock", "the cache"):
            events = pool.submit(fetch_all, server, [1], notify=messages.put)
            assert messages.get(timeout=10) == f"waiting for process {os.getpid()}"  # fault 16
            assert server.requests == []
        assert failures(events.result()) == {}
    assert messages.empty()
    assert read() == tales([1])


# --- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "",
        "tales.example",
        "file:///etc/",
        "ftp://tales/",
        "http://",
        "http://[",
        "http://a:99999",
        "http://a\x1b[2J",
    ],
)
def test_invalid_url_is_refused_before_any_write(home: Path, url: str) -> None:
    with pytest.raises(UsageError) as caught:
        list(fetch.fetch([1], url))
    assert str(caught.value) == f"--url {url!r} cannot be used: give an http or https address"
    assert not home.exists()


@pytest.mark.parametrize("jobs", [-1, 0, 65])
def test_jobs_out_of_range_are_refused(home: Path, jobs: int) -> None:
    with pytest.raises(UsageError) as caught:
        list(fetch.fetch([1], "http://tales", jobs=jobs))
    assert str(caught.value) == f"--jobs {jobs} is out of range: give 1 to 64"
    assert not home.exists()


@pytest.mark.parametrize("jobs", [1, 64])
def test_result_does_not_depend_on_the_number_of_jobs(server: Server, jobs: int) -> None:
    assert failures(fetch_all(server, range(1, 9), jobs=jobs)) == {}
    assert read() == tales(range(1, 9))


# --- the report of failures ----------------------------------------------------------------------------------


def test_one_reason_of_failures_is_said_once(server: Server, run: Callable[..., Ran]) -> None:
    address = f"{server.url}gone/"
    assert run("fetch", "--stories", "30-45", "--url", address) == (
        1,
        "",
        f"error: 16 of 16 tales could not be fetched, {address}030.txt: the server answers 404: check the --url and the"
        " numbers; `grimmgen train --corpus sampler` needs none of them\n",
    )


def test_failed_documents_are_listed_by_reason(server: Server, run: Callable[..., Ran]) -> None:
    for number in (2, *range(5, 20)):
        server.on(f"/{number:03d}.txt", answer(b"<html>no</html>" * 20 if number == 2 else b"", 200 + number // 5))
    ran = run("fetch", "--stories", "1-20", "--url", server.url, "--jobs", "1")
    assert (ran.code, ran.out) == (1, "")
    page, *status, error = ran.err.splitlines()
    assert page == "002: that is a web page, not a story"
    assert status[0] == "005, 006, 007, 008, 009: the server answers 201"
    assert len(status) == 3
    assert error.startswith(
        "error: 16 of 20 tales could not be fetched (002, 005, 006, 007, 008, 009, 010, 011, 012, "
    )
    assert "sampler" not in error


def test_ctrl_c_says_what_came(run: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> Iterator[FetchEvent]:
        yield FetchStarted(100, 60, Path("tales"))
        yield DocumentFetched("041", 1000)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "fetch", interrupted)
    ran = run("fetch")
    assert (ran.code, ran.out) == (130, "")
    assert ran.err.startswith("stopped: 41 of 100 tales are in the cache; ")


def test_part_of_the_tales_is_reported(server: Server, run: Callable[..., Ran]) -> None:
    assert run("fetch", "--stories", "24", "--url", server.url).code == 0
    said = "24 of the tutorial's 100 tales are in the cache: `grimmgen fetch` downloads the others\n"
    assert said in run("vocab").err
    fetch_all(server, range(1, 101))
    assert "tutorial" not in run("vocab").err
