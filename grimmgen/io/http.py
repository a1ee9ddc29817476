"""Download files over HTTP from servers that are not trusted. The only importer of the HTTP library.

A body is returned if it is complete, uncompressed and of bounded size. Transient failures are retried with
exponential backoff. A body counts as complete if it has the length that the server announced: a Content-Length
that is too small truncates it, which cannot be detected.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import random
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3

from grimmgen.errors import GrimmgenError, IntegrityError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ATTEMPTS = 5
LONGEST_WAIT = 60.0  # seconds
_REDIRECTS = 5
_CHUNK = 1 << 16
_LONGEST_URL = 500
# Bytes of headers, chunk sizes and trailers that are accepted beside the body.
_OVERHEAD = 1 << 20
_TRANSIENT_STATUSES = {408, 425, 429, 500, 502, 503, 504}
# Types of error pages; a text may have any other one, or none.
_NO_TEXT = re.compile(r"text/(html|xml|css|javascript)|application/(.*\+)?(json|xml|xhtml)|(image|audio|video)/.*")
_REMEDY = "check the connection and run the command again"


class Downloader:
    """A pool of connections, which are reused from file to file; a context manager that closes them.

    Args:
        jobs: number of concurrent downloads.
        size_limit: largest accepted body, in bytes.
        read_timeout: seconds without a received byte after which an attempt fails.
        deadline: seconds for one attempt at one file, from the first byte sent to the last received. It is checked
            whenever bytes arrive, so that a stall may add one `read_timeout`.
        wait: sleeps for a number of seconds; by default it returns early when the downloader is stopped.
        credentials: `user:password`, sent with each request (HTTP basic authentication).
    """

    def __init__(
        self,
        jobs: int = 8,
        size_limit: int = 4 << 20,
        read_timeout: float = 15.0,
        deadline: float = 60.0,
        wait: Callable[[float], object] | None = None,
        credentials: str | None = None,
    ) -> None:
        self._limit = size_limit
        self._deadline = deadline
        self._stopped = threading.Event()
        # Servers that could not be connected to in all attempts at one file: they get one attempt at the others.
        self._unreachable = set[str]()
        self._wait = wait or self._stopped.wait
        headers = {"Accept-Encoding": "identity", "User-Agent": "grimmgen (folk tales for a language model)"}
        if credentials is not None:
            # A redirect to another server is refused, so that no other one receives them.
            headers["Authorization"] = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self._pool = urllib3.PoolManager(
            maxsize=jobs,
            block=True,
            retries=False,
            timeout=urllib3.Timeout(connect=10.0, read=read_timeout),
            headers=headers,
        )
        self._pool.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}

    def get(self, url: str) -> bytes:
        """Download the file at `url`.

        A refused or broken connection, a stall, a truncated body and a busy server are retried, with 5 attempts in
        all, after a pause that doubles or that the server specifies (Retry-After, at most 60 s). After 5 failed
        attempts to connect to a server, each further file gets a single attempt, until a connection succeeds.

        Raises:
            GrimmgenError: all attempts failed; the message has the last reason.
            IntegrityError: the body is compressed or larger than the limit.
            UsageError: `url` is not a URL.
        """
        reason = ""
        server = url.rpartition("/")[0]
        attempts = 1 if server in self._unreachable else ATTEMPTS
        unreachable = True
        for attempt in range(attempts):
            if self.stopped:
                raise GrimmgenError(f"{url}: stopped", "run the command again to continue")
            try:
                body = self._attempt(url)
            except _TransientError as error:
                reason = error.reason
                pause = error.pause
                unreachable = unreachable and error.unreachable
            else:
                self._unreachable.discard(server)
                return body
            if attempt + 1 < attempts:
                # The jitter keeps concurrent jobs from retrying at the same moment.
                backoff = 0.5 * 2.0**attempt * random.uniform(0.8, 1.2)  # noqa: S311 - not for cryptography
                self._wait(min(LONGEST_WAIT, backoff if pause is None else pause))
        if unreachable:
            self._unreachable.add(server)
        else:
            self._unreachable.discard(server)
        tried = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        raise GrimmgenError(f"{url}: {reason} ({tried})", _REMEDY)

    def stop(self) -> None:
        """End all pauses, fail the attempts in progress and start no further ones; safe from any thread."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    def __enter__(self) -> Downloader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._pool.clear()

    def _attempt(self, url: str) -> bytes:
        deadline = time.monotonic() + self._deadline
        # Bytes of the whole response: headers, chunk sizes and trailers could be endless, too.
        left = 2 * self._limit + _OVERHEAD

        def check(received: int) -> None:
            nonlocal left
            left -= received
            if left < 0:
                raise self._too_long(url)
            if time.monotonic() > deadline or self.stopped:
                raise _TransientError(f"not complete after {self._deadline:g} s")

        _check_received.set(check)
        for _ in range(_REDIRECTS + 1):
            response = self._open(url)
            try:
                if response.status in {301, 302, 303, 307, 308}:
                    url = _redirected(url, response.headers.get("Location", ""))
                    continue
                return self._body(url, response)
            finally:
                # The rest of the body is not read, so that the connection cannot be reused.
                response.close()
                response.release_conn()
        raise GrimmgenError(f"{url}: redirected more than {_REDIRECTS} times", "check the --url")

    def _open(self, url: str) -> urllib3.BaseHTTPResponse:
        try:
            return self._pool.request("GET", url, preload_content=False, redirect=False, decode_content=False)
        except urllib3.exceptions.SSLError as error:
            if not isinstance(error.args[0], ssl.CertificateError):
                raise _TransientError(_describe(error)) from error
            raise GrimmgenError(
                f"{url}: the server's certificate is not trusted ({error})", "check the --url"
            ) from error
        except urllib3.exceptions.LocationValueError as error:
            raise UsageError(f"{url!r} is not a URL ({error})", "give an http or https address") from error
        except (urllib3.exceptions.HTTPError, OSError) as error:
            unreachable = isinstance(
                error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError
            )
            raise _TransientError(_describe(error), unreachable=unreachable) from error

    def _body(self, url: str, response: urllib3.BaseHTTPResponse) -> bytes:
        if response.status in _TRANSIENT_STATUSES:
            raise _TransientError(
                f"the server answers {response.status}", _retry_after(response.headers.get("Retry-After"))
            )
        if response.status != 200:
            raise GrimmgenError(f"{url}: the server answers {response.status}", "check the --url and the numbers")
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if _NO_TEXT.fullmatch(kind):
            raise IntegrityError(f"{url}: the server sends {kind}, not text", "check the --url")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise IntegrityError(
                f"{url}: the server sends a compressed body that was not requested", "check the --url"
            )
        if not response.chunked:
            length = response.headers.get("Content-Length", "")
            if not length.isdecimal():
                # The end of such a body looks like a broken connection; truncated headers have no length either.
                raise _TransientError("the server does not say how long the body is")
            # int() refuses more than 4300 digits.
            if float(length) > self._limit:
                raise self._too_long(url)
        body = bytearray()
        try:
            while chunk := response.read1(_CHUNK):
                body += chunk
                if len(body) > self._limit:
                    raise self._too_long(url)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _TransientError(_describe(error)) from error
        return bytes(body)

    def _too_long(self, url: str) -> IntegrityError:
        return IntegrityError(f"{url}: the body is over {self._limit >> 20} MB", "check the --url")


def split_credentials(url: str) -> tuple[str, str | None]:
    """Separate `user:password` from a URL, so that it never appears in a message or a file.

    >>> split_credentials("https://me:secret@example.org/tales/")
    ('https://example.org/tales/', 'me:secret')
    >>> split_credentials("https://example.org/tales/")
    ('https://example.org/tales/', None)
    """
    scheme, separator, rest = url.partition("//")
    # The part up to the path; an @ in the path is none of it.
    authority = re.split(r"[/?#\\]", rest, maxsplit=1)[0]
    credentials, at, _ = authority.rpartition("@")
    if not at:
        return url, None
    return f"{scheme}{separator}{rest[len(credentials) + 1 :]}", unquote(credentials)


class _TransientError(Exception):
    """A failure that is worth another attempt; it does not leave this module.

    Attributes:
        reason: for the error message.
        pause: seconds to wait, as the server asked for; None for the backoff.
        unreachable: whether no connection to the server could be made.
    """

    def __init__(self, reason: str, pause: float | None = None, unreachable: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause = pause
        self.unreachable = unreachable


# Called with the number of received bytes by the connection of this thread's attempt; raises beyond the limits.
_check_received: ContextVar[Callable[[int], None]] = ContextVar("_check_received")


class _Bounded(io.RawIOBase):
    """The bytes of a connection, bounded in time and size: headers, chunk sizes, body and trailers alike."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._check = _check_received.get()

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


class _BoundedResponse(http.client.HTTPResponse):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fp = io.BufferedReader(_Bounded(self.fp.detach()))


class _Connection(urllib3.connection.HTTPConnection):
    response_class = _BoundedResponse


class _SecureConnection(urllib3.connection.HTTPSConnection):
    response_class = _BoundedResponse


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def _redirected(url: str, location: str) -> str:
    """Resolve a redirect; refuse another host or port, and any scheme but the same or https."""
    if len(location) > _LONGEST_URL:
        raise GrimmgenError(f"{url}: redirected to an address of {len(location)} characters", "check the --url")
    try:
        target = urljoin(url, location)
        old, new = urlsplit(url), urlsplit(target)
        upgraded = (old.scheme, new.scheme) == ("http", "https") and new.port is None
        same = (old.scheme, old.port) == (new.scheme, new.port) or upgraded
    except ValueError:
        raise GrimmgenError(f"{url}: redirected to {location!r}, which is not a URL", "check the --url") from None
    if not same or old.hostname != new.hostname or not location:
        shown, credentials = split_credentials(target)
        # The server may send a password back; a host's name in this place is worth seeing.
        shown = shown if credentials and ":" in credentials else target
        raise GrimmgenError(f"{url}: redirected to {shown!r}, another server", "give it as --url if you trust it")
    return target


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, a number or a date; None if it is neither."""
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


def _describe(error: BaseException) -> str:
    """Describe a network error in a few words, without the object addresses in urllib3's messages."""
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
