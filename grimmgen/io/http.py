"""Fetching one file over HTTP from a server that is not trusted. The sole importer of the HTTP library.

A body is taken whole, plain and of a bounded size, or not at all; what can pass is tried again, politely.
Whole is what the server says is whole: a Content-Length that is too small cuts a body off, and nobody can tell.
Knows URLs and bytes, and nothing of stories.
"""

from __future__ import annotations

import email.utils
import http.client
import io
import random
import ssl
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

import urllib3

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ATTEMPTS = 5
LONGEST_WAIT = 60.0
_REDIRECTS = 5
_CHUNK = 1 << 16
_LONGEST_URL = 500
_OVERHEAD = 1 << 20
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_REMEDY = "check the connection and run the command again"


class Downloader:
    """Connections to servers, kept open from file to file; to be closed, or used in a `with`.

    Args:
        jobs: how many files are fetched at once.
        size_limit: bytes; a longer body is refused.
        read_timeout: seconds without a byte.
        deadline: seconds for one try at one file, from the first byte sent to the last received; looked at
            whenever bytes come, so a stall may add one read_timeout.
        wait: waits that many seconds, or less if the downloader is stopped.
    """

    def __init__(
        self,
        jobs: int = 8,
        size_limit: int = 4 << 20,
        read_timeout: float = 15.0,
        deadline: float = 60.0,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._limit = size_limit
        self._deadline = deadline
        self._stopped = threading.Event()
        # Servers that did not answer in all the tries at one file; for each other file they get one.
        self._absent = set[str]()
        self._wait = wait or self._stopped.wait
        self._pool = urllib3.PoolManager(
            maxsize=jobs,
            block=True,
            retries=False,
            timeout=urllib3.Timeout(connect=10.0, read=read_timeout),
            headers={"Accept-Encoding": "identity", "User-Agent": "grimmgen (folk tales for a language model)"},
        )
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def get(self, url: str) -> bytes:
        """The body that `url` leads to.

        A refused or broken connection, a stall, a truncated body and a busy server are tried again, up to 5
        times in all, after a pause that doubles or that the server names (Retry-After, at most 60 s). Once a
        server could not be connected to 5 times in a row, one try a file is enough, until it can.

        Raises:
            GrimmgenError: it could not be had; the last reason is told.
            IntegrityError: the server answers with something that is not a plain file of sane size.
        """
        reason = ""
        server = url.rpartition("/")[0]
        attempts = 1 if server in self._absent else ATTEMPTS
        absent = True
        for attempt in range(attempts):
            if self.stopped:
                raise GrimmgenError(f"{url}: stopped", "run the command again to go on")
            try:
                body = self._try(url)
            except _Passing as error:
                reason = error.reason
                pause = error.pause
                absent = absent and error.absent
            else:
                self._absent.discard(server)
                return body
            if attempt + 1 < attempts:
                # The jitter keeps eight jobs from knocking together.
                backoff = 0.5 * 2.0**attempt * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
                self._wait(min(LONGEST_WAIT, backoff if pause is None else pause))
        if absent:
            self._absent.add(server)
        else:
            self._absent.discard(server)
        tries = "1 try" if attempts == 1 else f"{attempts} tries"
        raise GrimmgenError(f"{url}: {reason} ({tries})", _REMEDY)

    def stop(self) -> None:
        """End all waiting: tries in progress run out, none begins."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stopped.is_set()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.clear()

    def _try(self, url: str) -> bytes:
        deadline = time.monotonic() + self._deadline
        # Also of what is no body: heads, chunk sizes and trailers have no end of their own.
        left = 2 * self._limit + _OVERHEAD

        def check(received: int) -> None:
            nonlocal left
            left -= received
            if left < 0:
                raise self._too_long(url)
            if time.monotonic() > deadline or self.stopped:
                raise _Passing(f"not done after {self._deadline:g} s")

        _check.set(check)
        for _ in range(_REDIRECTS + 1):
            response = self._open(url)
            try:
                if response.status in {301, 302, 303, 307, 308}:
                    url = _redirected(url, response.headers.get("Location", ""))
                    continue
                return self._body(url, response)
            finally:
                # What is left of the body is not read: the connection is of no more use.
                response.close()
                response.release_conn()
        raise GrimmgenError(f"{url}: redirected more than {_REDIRECTS} times", "check the --url")

    def _open(self, url: str) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request("GET", url, preload_content=False, redirect=False, decode_content=False)
        except urllib3.exceptions.SSLError as error:
            if not isinstance(error.args[0], ssl.CertificateError):
                raise _Passing(_short(error)) from error
            raise GrimmgenError(
                f"{url}: the server's certificate is not trusted ({error})", "check the --url"
            ) from error
        except urllib3.exceptions.LocationValueError as error:
            raise UsageError(f"{url!r} is not a URL ({error})", "give an http or https address") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            absent = isinstance(
                error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
            )
            raise _Passing(_short(error), absent=absent) from error

    def _body(self, url: str, response: urllib3.BaseHTTPResponse) -> bytes:
        if response.status in _RETRIED:
            raise _Passing(
                f"the server answers {response.status}", _retry_after(response.headers.get("Retry-After"))
            )
        if response.status != 200:
            raise GrimmgenError(f"{url}: the server answers {response.status}", "check the --url and the numbers")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise IntegrityError(f"{url}: the server sends a compressed body unasked", "check the --url")
        if not response.chunked:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                # The end of such a body and a broken connection look the same; so does a head that was cut off.
                raise _Passing("the server does not say how long the body is")
            # Not int(), which refuses 5000 digits.
            if float(length) > self._limit:
                raise self._too_long(url)
        body = bytearray()
        try:
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > self._limit:
                    raise self._too_long(url)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Passing(_short(error)) from error
        return bytes(body)

    def _too_long(self, url: str) -> IntegrityError:
        return IntegrityError(f"{url}: the body is over {self._limit >> 20} MB", "check the --url")


class _Passing(Exception):  # noqa: N818 - never leaves this module
    """A failure that another try may not meet; `absent` where there was no server to talk to."""

    def __init__(self, reason: str, pause: float | None = None, absent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.absent = absent


# Of the try that this thread is at: told how many bytes have come, it raises when they are too many or too late.
_check: ContextVar[Callable[[int], None]] = ContextVar("_check")


class _Bounded(io.RawIOBase):
    """What a connection brings, bounded in time and size: head, chunk sizes, body and trailers alike."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._check = _check.get()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._check(0)
        count = self._raw.readinto(buffer)
        self._check(count or 0)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach()))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _Answer


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _Answer


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _redirected(url: str, location: str) -> str:
    """Where a redirect leads: to the same host, and never from https to something less."""
    if len(location) > _LONGEST_URL:
        raise GrimmgenError(f"{url}: redirected to an address of {len(location)} characters", "check the --url")
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        upgraded = (old.scheme, new.scheme) == ("http", "https") and new.port is None
        same = (old.scheme, old.port) == (new.scheme, new.port) or upgraded
    except ValueError:
        raise GrimmgenError(f"{url}: redirected to {location!r}, which is no URL", "check the --url") from None
    if not same or old.hostname != new.hostname or not location:
        raise GrimmgenError(
            f"{url}: redirected to {target!r}, another place", "give that as --url if you trust it"
        )
    return target


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None if it says nothing clear."""
    if value is None:
        return None
    if value.strip().isascii() and value.strip().isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


def _short(error: BaseException) -> str:
    """The reason of a network error, without the objects that urllib3 prints with it."""
    match error:
        case urllib3.exceptions.NameResolutionError():
            return "no such host, or no network"
        case urllib3.exceptions.NewConnectionError():
            return "the connection was refused"
        case urllib3.exceptions.ConnectTimeoutError():
            return "no answer"
        case urllib3.exceptions.ReadTimeoutError():
            return "the server stalled"
        case urllib3.exceptions.ProtocolError(args=(_, http.client.IncompleteRead())):
            return "the body was cut off"
        case urllib3.exceptions.ProtocolError():
            return "the connection broke"
        case urllib3.exceptions.SSLError():
            return "the TLS connection failed"
        case _:
            return error.__class__.__name__
