"""Fetching from hostile servers, concurrently, and with a read-only cache (faults 1-14)."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from grimmgen.text import corpus
from tests.faults import rounds
from tests.faults.crash import Victim
from tests.program import PROGRAM, Ran, begin
from tests.server import Script, Server, answer, chunked, dripping, endless, reset, stalling

Program = Callable[..., Ran]

GOOD = b"There was once a king who had a good server. " * 9


def good(name: str) -> bytes:
    """A tale of its own: equal texts of different tales are refused."""
    return GOOD + name.encode()


PAGE = b"<!DOCTYPE html><html><body>The tale is gone.</body></html>" * 9
HEAD = answer(GOOD).removesuffix(GOOD)
MORE = b"x" * (1 << 16)
# A gigabyte, compressed to a megabyte.
BOMB = gzip.compress(bytes(1 << 16)) * (1 << 14)


def reset_in_the_body(connection: object, server: Server) -> None:
    connection.sendall(HEAD + GOOD[:200])  # type: ignore[attr-defined]
    reset(connection, server)  # type: ignore[arg-type]


def redirect(location: str, status: int = 302) -> bytes:
    return answer(b"", status, Location=location)


def busy(value: str, status: int = 503) -> bytes:
    return answer(b"Later!", status, Retry_After=value)


def raw(*lines: bytes, body: bytes = GOOD) -> bytes:
    return b"\r\n".join([*lines, b"", b""]) + body


OK = b"HTTP/1.1 200 OK"
# The response to a request for a tale, and the exit code of a fetch in which it is the only failure.
BEHAVIOURS: dict[str, tuple[Script, int]] = {
    "1 truncated": (HEAD + GOOD[:-1], 1),
    "1 length too large": (answer(GOOD, Content_Length="9999"), 1),
    "1 no length": (answer(GOOD, Content_Length=None), 1),
    "1 length not a number": (answer(GOOD, Content_Length="12 bytes"), 1),
    "1 negative length": (answer(GOOD, Content_Length="-5"), 1),
    "1 two lengths": (raw(OK, b"Content-Length: 5", b"Content-Length: 405"), 1),
    "1 length of zero": (answer(GOOD, Content_Length="0"), 3),
    "1 length far too small": (answer(GOOD, Content_Length="100"), 3),
    "1 truncated in a chunk": (chunked(GOOD)[:-9], 1),
    "1 no last chunk": (chunked(GOOD), 1),
    "1 invalid chunk size": (chunked() + b"zz\r\n" + GOOD, 1),
    "1 negative chunk size": (chunked() + b"-1\r\n" + GOOD, 1),
    "1 huge chunk size": (chunked() + b"f" * 15 + b"\r\n" + GOOD, 1),
    "1 chunked header without chunks": (answer(GOOD, Content_Length=None, Transfer_Encoding="chunked"), 1),
    "1 nothing": (b"", 1),
    "1 truncated in the headers": (HEAD[:20], 1),
    "1 not HTTP": (b"SSH-2.0-OpenSSH_9.7\r\n" + GOOD, 1),
    "1 status not a number": (raw(b"HTTP/1.1 two OK"), 1),
    "1 status of six digits": (raw(b"HTTP/1.1 200200 OK"), 1),
    "1 unknown HTTP version": (raw(b"HTTP/7.0 200 OK"), 1),
    "1 a thousand headers": (raw(OK, *[b"A: b"] * 1000), 1),
    "1 header of a megabyte": (raw(OK, b"A: " + b"b" * (1 << 20)), 1),
    "1 header without a name": (raw(OK, b": b"), 1),
    "2 stall before the headers": (stalling(), 1),
    "2 stall in the body": (stalling(HEAD + GOOD[:-1]), 1),
    "2 byte by byte": (dripping(b"", HEAD + GOOD, 0.05), 1),
    "2 body byte by byte": (dripping(HEAD, GOOD, 0.05), 1),
    "2 chunk size byte by byte": (dripping(chunked(), b"0" * 999, 0.05), 1),
    "2 endless 100 Continue": (endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), 1),
    "2 endless 103 Early Hints": (endless(b"", b"HTTP/1.1 103 So\r\nLink: </x>\r\n\r\n"), 1),
    "3 busy": (answer(b"Later!", 503), 1),
    "3 too many requests": (answer(b"Later!", 429), 1),
    **{
        f"3 Retry-After: {value[:20]}": (busy(value, 429), 1)
        for value in (
            "1",
            "0",
            "-1",
            "1000000000",
            "9" * 5000,
            "soon",
            "nan",
            "1e9",
            "",
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Wed, 99 Oct 2015 07:28:00 GMT",
            format_datetime(datetime.now(UTC) + timedelta(days=9), usegmt=True),
        )
    },
    "4 reset": (reset, 1),
    "4 reset in the body": (reset_in_the_body, 1),
    "5 web page": (answer(PAGE), 3),
    "5 web page in chunks": (chunked(PAGE) + b"0\r\n\r\n", 3),
    "5 image": (answer(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9), 3),
    "5 empty body": (answer(b""), 3),
    "5 few words": (answer(b"Not here.\n"), 3),
    "5 escape sequences": (answer(b"\x1b[2J\x1b]0;owned\x07" * 40), 3),
    "5 UTF-16": (answer(GOOD.decode().encode("utf-16")), 3),
    "5 megabyte": (answer(b"x" * (1 << 20)), 3),
    "5 not found": (answer(GOOD, 404), 1),
    "5 partial content": (answer(GOOD, 206), 1),
    "6 to a file": (redirect("file:///etc/passwd"), 1),
    "6 to another host": (redirect("http://127.0.0.2/001.txt"), 1),
    "6 to another port": (redirect("http://127.0.0.1:9/001.txt"), 1),
    "6 to no scheme": (redirect("//tales.invalid/001.txt"), 1),
    "6 to javascript": (redirect("javascript:alert(1)"), 1),
    "6 to a user": (redirect("http://127.0.0.1@tales.invalid/"), 1),
    "6 to escape sequences": (redirect("http://\x1b[2J/"), 1),
    "6 to an invalid URL": (redirect("http://[", 301), 1),
    "6 without a location": (answer(b"", 308), 1),
    "6 long location": (redirect("/" + "a" * 60_000, 307), 1),
    "6 cycle": (redirect("/loop"), 1),
    "7 endless body": (endless(answer(Content_Length="9" * 12), MORE), 3),
    "7 endless chunks": (endless(chunked(), b"10000\r\n%b\r\n" % MORE), 3),
    "7 endless small chunks": (endless(chunked(), b"1\r\nx\r\n" * 10_000), 1),
    "7 length of 5000 digits": (answer(Content_Length="9" * 5000), 3),
    "7 gzip bomb": (answer(BOMB, Content_Encoding="gzip"), 3),
    "7 gzip bomb in chunks": (
        answer(Content_Length=None, Transfer_Encoding="chunked", Content_Encoding="gzip")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BOMB), BOMB),
        3,
    ),
    "7 gzip bomb as a transfer encoding": (
        answer(Content_Length=None, Transfer_Encoding="gzip, chunked")
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BOMB), BOMB),
        3,
    ),
    "7 deflate": (answer(b"x\x9c" * 200, Content_Encoding="deflate"), 3),
    "7 unknown encoding": (answer(GOOD, Content_Encoding="\x1b[2J"), 3),
    "7 endless headers": (endless(OK + b"\r\n", b"A: " + b"b" * 60_000 + b"\r\n"), 1),
    "7 endless header": (endless(OK + b"\r\nA: ", MORE), 1),
    "7 endless trailers": (endless(chunked(GOOD) + b"0\r\n", b"A: b\r\n" * 10_000), 1),
    "7 endless chunk size": (endless(chunked(), b"0" * (1 << 16)), 1),
}


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    with Victim(tmp_path_factory.mktemp("victim"), "grimmgen.io.http", "grimmgen.text.corpus") as victim:
        yield victim


@pytest.fixture
def server() -> Iterator[Server]:
    """Serve all tales, and redirect /loop to itself."""
    with Server() as server:
        for number in range(1, 210):
            server.on(f"/{number:03d}.txt", answer(good(f"{number:03d}")))
        server.on("/loop", redirect("/loop"))
        yield server


@pytest.fixture
def cache(home: Path) -> Path:
    return home / "cache" / "corpora" / "grimm"


STORIES = 20


@pytest.mark.faults
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_faults_1_to_7_nothing_bad_is_cached(
    victim: Victim, server: Server, home: Path, cache: Path, name: str
) -> None:
    # All concurrently, so that the time of a stall passes only once.
    fetch = ["fetch", "--url", server.url, "--quiet", "--jobs", "25", "--stories"]
    baseline = victim.run(home, *fetch, "2")
    assert baseline.code == 0
    earlier = {path.name: path.read_bytes() for path in cache.glob("*.txt")}
    script, code = BEHAVIOURS[name]
    bad = [f"{number:03d}" for number in range(3, 3 + STORIES)]
    for name_of_bad in bad:
        server.on(f"/{name_of_bad}.txt", script)
    ended = victim.run(home, *fetch, f"1-{2 + STORIES + 3}")
    # One line, exit code, nothing on standard output.
    assert (ended.code, ended.out, ended.err.count("\n")) == (code, "", 1), ended.err
    assert ended.err.startswith(f"error: {STORIES} of {STORIES + 3} tales could not be fetched (003, 004, ")
    assert ended.err[:-1].isprintable()
    assert len(ended.err) < 1000
    # The other documents are in the cache, and nothing else is.
    expected = {"001", "002", "023", "024", "025"}
    assert {path.name for path in cache.iterdir()} == {*(f"{n}.txt" for n in expected), "manifest.json", ".lock"}
    assert set(json.loads((cache / "manifest.json").read_text())["stories"]) == expected
    assert {d.name: d.content() for d in corpus.open_corpus("grimm").documents} == {
        name: good(name) for name in expected
    }
    assert {name: (cache / name).read_bytes() for name in earlier} == earlier
    # Each job may hold a body of 4 MB, and a copy of it while the buffer grows.
    assert ended.peak < baseline.peak + 25 * (9 << 20), (ended.peak, baseline.peak)
    print(f"{name}: {(ended.peak - baseline.peak) / 1e6:.1f} MB more than a fetch without failures")  # noqa: T201


def test_fault_01_too_small_a_length_cannot_be_detected(server: Server, home: Path, run: Program) -> None:
    # HTTP cannot detect a truncated body if the Content-Length has the truncated size.
    server.on("/001.txt", answer(GOOD, Content_Length=str(len(GOOD) - 5)))
    assert run("fetch", "--url", server.url, "--stories", "1").code == 0
    assert (home / "cache/corpora/grimm/001.txt").read_bytes() == GOOD[:-5]


@pytest.mark.parametrize("start", [b"", HEAD + GOOD[:99]], ids=["no headers", "truncated body"])
def test_fault_02_interrupt_does_not_wait_for_a_stall(server: Server, cache: Path, start: bytes) -> None:
    server.on("/002.txt", stalling(start))
    with begin("fetch", "--url", server.url, "--stories", "2", "--jobs", "2") as process:
        while len(server.requests) < 2 or not (cache / "001.txt").exists():
            time.sleep(0.01)
        time.sleep(0.5)  # until the document is in the manifest
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert time.monotonic() - began < 12.0, "the read timeout would be 15 s"
        assert process.stderr
        assert process.stderr.read().startswith(b"stopped: 1 of 2 tales are in the cache")
    assert [document.name for document in corpus.open_corpus("grimm").documents] == ["001"]


@pytest.mark.parametrize("stories", ["../x", "/etc/passwd", "001.txt", "1\0", "1;2", "-1", "%2e%2e"])
def test_fault_09_path_as_a_story_number_is_refused(
    server: Server, home: Path, run: Program, stories: str
) -> None:
    ran = run("fetch", "--url", server.url, "--stories", stories)
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "is not clear: give 1 to 209, all, or a list like 1-20,35" in ran.err
    assert (server.requests, home.exists()) == ([], False)


@pytest.mark.faults
def test_fault_11_eight_concurrent_fetches_repeatedly(
    server: Server, home: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directories = [tmp_path_factory.mktemp("victim") for _ in range(8)]
    victims = [Victim(directory, "grimmgen.io.http", "grimmgen.text.corpus") for directory in directories]
    expected = {f"{number:03d}": good(f"{number:03d}") for number in range(1, 13)}
    for _ in range(count := rounds(5, 50)):
        server.requests.clear()
        for victim in victims:
            victim.begin(home, "fetch", "--url", server.url, "--stories", "12", "--quiet")
        for victim in victims:
            ended = victim.end()
            assert (ended.code, ended.err) == (0, "")
        assert sorted(server.requests) == [f"/{name}.txt" for name in expected], "each was requested once"
        assert {s.name: s.content() for s in corpus.open_corpus("grimm").documents} == expected
        for path in cache.iterdir():
            path.unlink()
    for victim in victims:
        victim.__exit__(None, None, None)
    print(f"8 fetches × {count} rounds")  # noqa: T201


@pytest.fixture
def make_read_only(home: Path) -> Iterator[Callable[[], None]]:
    """A function that mounts the home directory read-only over itself, which only root can."""
    mounted = []

    def mount() -> None:
        for options in (["--bind", str(home), str(home)], ["-o", "remount,bind,ro", str(home)]):
            if subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
                pytest.skip("mounting is not permitted")
            mounted.append(home)

    yield mount
    if mounted:
        subprocess.run(["umount", str(home)], check=True)


def test_fault_13_cache_on_a_read_only_mount_can_be_read(
    server: Server, run: Program, make_read_only: Callable[[], None]
) -> None:
    fetch = ["fetch", "--url", server.url, "--stories"]
    assert run(*fetch, "2").code == 0
    requested = len(server.requests)
    make_read_only()
    cached = run(*fetch, "2")
    assert (cached.code, len(server.requests)) == (0, requested)
    assert "all there already" in cached.out
    assert run("vocab", "--min-count", "1").code == 0
    missing = run(*fetch, "3")
    assert (missing.code, missing.out, missing.err.count("\n"), len(server.requests)) == (1, "", 1, requested)
    assert "(Read-only file system): the file system is read-only; set GRIMMGEN_HOME to a writable" in missing.err


def test_fault_14_complete_cache_needs_no_network(server: Server, home: Path, victim: Victim) -> None:
    fetch = ["fetch", "--url", server.url, "--stories", "3", "--quiet"]
    assert victim.run(home, *fetch).code == 0
    offline = subprocess.run(
        ["unshare", "--user", "--net", *PROGRAM, *fetch], capture_output=True, text=True, check=False
    )
    if "unshare: " in offline.stderr:
        pytest.skip("namespaces are not available")
    assert (offline.returncode, offline.stderr) == (0, "")
