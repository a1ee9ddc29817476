"""Downloads from servers that misbehave (faults 1-7)."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError
from grimmgen.io.http import ATTEMPTS, LONGEST_WAIT, Downloader
from tests.server import CERTIFICATE, Script, Server, answer, chunked, dripping, endless, reset, stalling

TALE = b"Once upon a time there was a server that obeyed its protocol.\n" * 40
RETRY = "check the connection and run the command again"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def tls(tmp_path: Path) -> Iterator[Server]:
    """A server with a self-signed certificate."""
    certificate = tmp_path / "certificate.pem"
    certificate.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with Server(context) as server:
        yield server


@pytest.fixture
def trusted(tls: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same server, whose certificate the client trusts."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
    return tls


class Client:
    """A downloader that records its pauses and does not wait."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def get(
        self, url: str, size_limit: int = 1 << 20, read_timeout: float = 15.0, deadline: float = 60.0
    ) -> bytes:
        with Downloader(1, size_limit, read_timeout, deadline, self.waits.append) as downloader:
            return downloader.get(url)

    def fail(self, url: str, **limits: Any) -> GrimmgenError:
        with pytest.raises(GrimmgenError) as caught:
            self.get(url, **limits)
        return caught.value


@pytest.fixture
def client() -> Client:
    return Client()


def test_body_is_returned_and_requested_uncompressed(server: Server, client: Client) -> None:
    assert client.get(server.on("/plain", answer(TALE))) == TALE
    assert client.get(server.on("/chunked", chunked(TALE[:7], TALE[7:]) + b"0\r\n\r\n")) == TALE
    assert client.get(server.on("/empty", answer())) == b""
    assert server.requests == ["/plain", "/chunked", "/empty"]
    assert all("\r\naccept-encoding: identity\r\n" in head.lower() for head in server.heads)
    assert client.waits == []


# Transient failures: behaviour of the server, reason in the error message, limits of the client.
HEAD = answer(TALE).removesuffix(TALE)
TRUNCATED = "the body was cut off"
BROKEN = "the connection broke"
STALLED = "the server stalled"
LATE = "not complete after 0.06 s"
NO_LENGTH = "the server does not say how long the body is"
SHORT = {"read_timeout": 0.06}
SOON = {"deadline": 0.06}
TRANSIENT: dict[str, tuple[Script, str, dict[str, float]]] = {
    "1 truncated": (HEAD + TALE[:-1], TRUNCATED, {}),
    "1 too great a length": (answer(TALE, Content_Length="99999"), TRUNCATED, {}),
    "1 no length": (answer(TALE, Content_Length=None), NO_LENGTH, {}),
    "1 length is no number": (answer(TALE, Content_Length="²"), NO_LENGTH, {}),
    "1 two lengths": (answer(TALE, Content_Length="5, 7"), "InvalidHeader", {}),
    "1 cut in a chunk": (chunked(TALE)[:-9], TRUNCATED, {}),
    "1 no last chunk": (chunked(TALE), TRUNCATED, {}),
    "1 chunk size is no number": (chunked() + b"twelve\r\n", TRUNCATED, {}),
    "1 cut in the head": (HEAD[:20], NO_LENGTH, {}),
    "1 nothing": (b"", BROKEN, {}),
    "1 not HTTP": (b"SSH-2.0-OpenSSH_9.7\r\n", BROKEN, {}),
    "7 endless chunk size": (endless(chunked(), b"0" * (1 << 16)), BROKEN, {}),
    "1 a thousand headers": (b"HTTP/1.1 200 So\r\n" + b"A: b\r\n" * 1000, BROKEN, {}),
    "2 stall before the head": (stalling(), STALLED, SHORT),
    "2 stall in the body": (stalling(HEAD + TALE[:-1]), STALLED, SHORT),
    "2 dripping head": (dripping(b"", HEAD + TALE), LATE, SOON),
    "2 dripping body": (dripping(HEAD, TALE), LATE, SOON),
    "2 dripping chunk size": (dripping(chunked(TALE) + b"1;", b"." * 999), LATE, SOON),
    "2 endless 100 Continue": (endless(b"", b"HTTP/1.1 100 So\r\n\r\n"), LATE, SOON),
    "3 busy": (answer(b"Later!", 503), "the server answers 503", {}),
    "3 too many": (answer(b"Later!", 429), "the server answers 429", {}),
    "4 reset": (reset, BROKEN, {}),
}


@pytest.mark.parametrize(("script", "reason", "limits"), TRANSIENT.values(), ids=TRANSIENT.keys())
def test_transient_failure_has_five_attempts(
    server: Server, client: Client, script: Script, reason: str, limits: dict[str, float]
) -> None:
    url = server.on("/001.txt", script)
    error = client.fail(url, **limits)
    assert (str(error), error.exit_code) == (f"{url}: {reason} (5 attempts): {RETRY}", 1)
    assert server.requests == ["/001.txt"] * ATTEMPTS
    # The pauses double, up to the jitter; there is none after the last attempt.
    assert client.waits == [pytest.approx(0.5 * 2**k, rel=0.21) for k in range(4)]


@pytest.mark.parametrize("name", ["1 truncated", "2 stall in the body", "3 busy", "4 reset"])
def test_download_succeeds_after_transient_failures(server: Server, client: Client, name: str) -> None:
    script, _, _ = TRANSIENT[name]
    assert client.get(server.on("/001.txt", script, script, answer(TALE)), read_timeout=0.3) == TALE
    assert len(server.requests) == 3


def test_refused_connection_has_five_attempts(client: Client) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    assert str(client.fail(url)) == f"{url}: the connection was refused (5 attempts): {RETRY}"  # fault 4
    assert len(client.waits) == 4


def test_unreachable_server_has_one_attempt_per_further_file(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    waits: list[float] = []
    with Downloader(1, wait=waits.append) as downloader:
        for name, attempts in ("001", "5 attempts"), ("002", "1 attempt"), ("003", "1 attempt"):
            with pytest.raises(GrimmgenError, match=rf"/{name}\.txt: the connection was refused \({attempts}\)"):
                downloader.get(f"{url}{name}.txt")
        assert len(waits) == 4
        # Other servers are not affected, and a reachable server that fails has all attempts each time.
        url = server.on("/001.txt", answer(status=503))
        for _ in range(2):
            with pytest.raises(GrimmgenError, match="5 attempts"):
                downloader.get(url)


def test_unknown_host_has_five_attempts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    error = client.fail("http://tales.invalid/001.txt")  # fault 4
    assert str(error) == f"http://tales.invalid/001.txt: no such host, or no network (5 attempts): {RETRY}"


def test_silent_host_has_five_attempts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(*_: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(socket.socket, "connect", no_answer)
    error = client.fail("http://127.0.0.1:9/001.txt")  # fault 4
    assert str(error) == f"http://127.0.0.1:9/001.txt: no answer (5 attempts): {RETRY}"


def test_untrusted_certificate_is_not_retried(tls: Server, client: Client) -> None:
    url = tls.on("/001.txt", answer(TALE))
    error = client.fail(url)  # fault 4
    assert str(error).startswith(f"{url}: the server's certificate is not trusted (")
    assert str(error).endswith("): check the --url")
    assert (error.exit_code, tls.requests, client.waits) == (1, [], [])


def test_trusted_certificate_is_accepted(trusted: Server, client: Client) -> None:
    assert client.get(trusted.on("/001.txt", answer(TALE))) == TALE


def test_server_without_tls_is_not_a_certificate_error(server: Server, client: Client) -> None:
    url = server.url.replace("http:", "https:")
    assert str(client.fail(url)) == f"{url}: the TLS connection failed (5 attempts): {RETRY}"


def test_deadline_applies_to_slow_tls(trusted: Server, client: Client) -> None:
    url = trusted.on("/001.txt", dripping(b"", HEAD + TALE))
    assert str(client.fail(url, **SOON)) == f"{url}: {LATE} (5 attempts): {RETRY}"  # fault 2


def in_seconds(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


# Fault 3. With an invalid header, the pause is the usual 0.5 s with its jitter.
@pytest.mark.parametrize(
    ("header", "least", "most"),
    [
        ("0", 0, 0),
        ("1", 1, 1),
        (" 7 ", 7, 7),
        ("1000000000", LONGEST_WAIT, LONGEST_WAIT),
        ("9" * 5000, LONGEST_WAIT, LONGEST_WAIT),
        pytest.param(in_seconds(3600), LONGEST_WAIT, LONGEST_WAIT, id="in an hour"),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_WAIT, LONGEST_WAIT),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 21 Oct 2015 07:28:00", 0, 0),
        ("soon", 0.4, 0.6),
        ("-5", 0.4, 0.6),
        ("²", 0.4, 0.6),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0.4, 0.6),
        ("", 0.4, 0.6),
    ],
)
def test_retry_after_is_honoured_up_to_a_minute(
    server: Server, client: Client, header: str, least: float, most: float
) -> None:
    url = server.on("/001.txt", answer(b"", 429, Retry_After=header), answer(TALE))
    assert client.get(url) == TALE
    assert [least <= wait <= most for wait in client.waits] == [True]


def test_retry_after_may_be_a_date(server: Server, client: Client) -> None:
    assert client.get(server.on("/001.txt", answer(b"", 503, Retry_After=in_seconds(30)), answer(TALE))) == TALE
    assert 20 < client.waits[0] <= 30


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 403, 404, 410, 501])
def test_final_status_is_not_retried(server: Server, client: Client, status: int) -> None:
    url = server.on("/001.txt", answer(TALE, status))
    error = client.fail(url)
    assert str(error) == f"{url}: the server answers {status}: check the --url and the numbers"
    assert (error.exit_code, server.requests, client.waits) == (1, ["/001.txt"], [])


HUGE = "the body is over 1 MB"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        pytest.param(endless(chunked(), b"10000\r\n%b\r\n" % bytes(1 << 16)), HUGE, id="7 endless"),
        pytest.param(endless(answer(Content_Length="9" * 12), bytes(1 << 16)), HUGE, id="7 endless with a length"),
        pytest.param(answer(Content_Length="9" * 5000), HUGE, id="7 length of 5000 digits"),
        pytest.param(endless(chunked() + b"0\r\n", b"A: b\r\n" * 10_000), HUGE, id="7 endless trailers"),
        pytest.param(
            endless(answer(Content_Encoding="gzip", Content_Length="4096"), bytes(1 << 16)),
            "the server sends a compressed body that was not requested",
            id="7 gzip bomb",
        ),
    ],
)
def test_unbounded_body_is_refused_at_once(server: Server, client: Client, script: Script, reason: str) -> None:
    url = server.on("/001.txt", script)
    error = client.fail(url)
    assert isinstance(error, IntegrityError)
    assert (str(error), error.exit_code) == (f"{url}: {reason}: check the --url", 3)
    assert (server.requests, client.waits) == (["/001.txt"], [])
    # The limit, and the buffers of the operating system.
    assert server.sent < 16 << 20


def test_body_may_be_as_long_as_the_limit(server: Server, client: Client) -> None:
    url = server.on("/001.txt", answer(TALE))
    assert client.get(url, size_limit=len(TALE)) == TALE
    assert isinstance(client.fail(url, size_limit=len(TALE) - 1), IntegrityError)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirect_within_the_server_is_followed(server: Server, client: Client, status: int) -> None:
    server.on("/new/001.txt", answer(TALE))
    assert client.get(server.on("/old", answer(b"Over there", status, Location="new/001.txt"))) == TALE
    assert client.get(server.on("/far", answer(b"", status, Location=f"{server.url}new/001.txt"))) == TALE
    assert server.requests == ["/old", "/new/001.txt", "/far", "/new/001.txt"]


@pytest.mark.parametrize(
    "location",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/001.txt",
        "http://127.0.0.2/001.txt",
        "http://127.0.0.2:{port}/001.txt",
        "//tales.invalid/001.txt",
        "http://127.0.0.1:9/001.txt",
        "https://127.0.0.1:9/001.txt",
        "http://127.0.0.1@tales.invalid/001.txt",
    ],
)
def test_redirect_to_another_server_is_refused(server: Server, client: Client, location: str) -> None:
    location = location.replace("{port}", str(server.server_address[1]))
    url = server.on("/001.txt", answer(b"", 302, Location=location))
    error = client.fail(url)  # fault 6
    target = location if ":" in location else f"http:{location}"
    remedy = "give it as --url if you trust it"
    assert str(error) == f"{url}: redirected to {target!r}, another server: {remedy}"
    assert (error.exit_code, server.requests, client.waits) == (1, ["/001.txt"], [])


@pytest.mark.parametrize("location", ["http://[", "http://127.0.0.1:99999/", "http://127.0.0.1:x/"])
def test_redirect_to_an_invalid_url_is_refused(server: Server, client: Client, location: str) -> None:
    url = server.on("/001.txt", answer(b"", 302, Location=location))
    assert str(client.fail(url)) == f"{url}: redirected to {location!r}, which is not a URL: check the --url"


def test_long_redirect_is_not_printed_in_full(server: Server, client: Client) -> None:
    url = server.on("/001.txt", answer(b"", 302, Location="/" + "a" * 60_000))
    assert str(client.fail(url)) == f"{url}: redirected to an address of 60001 characters: check the --url"


def test_redirect_without_a_location_is_refused(server: Server, client: Client) -> None:
    assert client.fail(server.on("/001.txt", answer(b"", 302))).exit_code == 1
    assert server.requests == ["/001.txt"]


def test_redirect_from_https_to_http_is_refused(trusted: Server, server: Server, client: Client) -> None:
    target = server.on("/001.txt", answer(TALE))
    assert "another server" in str(client.fail(trusted.on("/001.txt", answer(b"", 301, Location=target))))
    same_port = trusted.url.replace("https:", "http:")  # fault 6
    assert "another server" in str(client.fail(trusted.on("/002.txt", answer(b"", 301, Location=same_port))))
    assert (trusted.requests, server.requests) == (["/001.txt", "/002.txt"], [])


def test_redirect_cycle_is_refused(server: Server, client: Client) -> None:
    url = server.on("/001.txt", answer(b"", 301, Location="/001.txt"))
    assert str(client.fail(url)) == f"{url}: redirected more than 5 times: check the --url"  # fault 6
    assert server.requests == ["/001.txt"] * 6


@pytest.mark.parametrize("url", ["http://[/", "http:///001.txt", "gopher://tales/", f"http://{'a' * 64}.invalid/"])
def test_invalid_url_is_a_usage_error(client: Client, url: str) -> None:
    error = client.fail(url)
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"{url!r} is not a URL (")


def test_no_attempt_starts_after_stop(server: Server) -> None:
    url = server.on("/001.txt", answer(b"", 503))
    with Downloader(wait=lambda _: downloader.stop()) as downloader:
        with pytest.raises(GrimmgenError, match="stopped: run the command again to continue"):
            downloader.get(url)
        with pytest.raises(GrimmgenError, match="stopped"):
            downloader.get(url)
    assert server.requests == ["/001.txt"]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(answer(b"", 503, Retry_After="60"), id="waiting"),
        pytest.param(dripping(HEAD, TALE), id="reading"),
        pytest.param(dripping(b"", HEAD + TALE * 9), id="reading the head"),
    ],
)
def test_stop_ends_an_attempt_in_progress(server: Server, script: Script) -> None:
    url = server.on("/001.txt", script)
    with Downloader() as downloader:
        threading.Timer(0.1, downloader.stop).start()
        with pytest.raises(GrimmgenError, match="stopped"):
            downloader.get(url)
    assert server.requests == ["/001.txt"]
