"""An HTTP server whose responses are scripted for each path, for tests of misbehaving servers (faults 1-8)."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TypeAlias

# The response of a path: bytes are sent as they are, a function is called with the connection; then it is closed.
Script: TypeAlias = "bytes | Callable[[socket.socket, Server], None]"

# For 127.0.0.1, self-signed, valid until 2120; its key is used for nothing else.
CERTIFICATE = """\
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgNqr/JrFXyqwslWkj
xHxRzhoPx+4o1A8SU5qSqwKqyfyhRANCAATyDwGyywE/r0cYx0/2iMD7EGOMP0XH
hbsNOJysiKdAGybTqrV6Edo6g7A7QO3RXc5gx5kCknaij2ZKaqhPcFoC
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBdjCCARygAwIBAgIBATAKBggqhkjOPQQDAjAZMRcwFQYDVQQDDA5ncmltbWdl
bi10ZXN0czAgFw0yMDAxMDEwMDAwMDBaGA8yMTIwMDEwMTAwMDAwMFowGTEXMBUG
A1UEAwwOZ3JpbW1nZW4tdGVzdHMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATy
DwGyywE/r0cYx0/2iMD7EGOMP0XHhbsNOJysiKdAGybTqrV6Edo6g7A7QO3RXc5g
x5kCknaij2ZKaqhPcFoCo1MwUTAPBgNVHRMBAf8EBTADAQH/MA8GA1UdEQQIMAaH
BH8AAAEwHQYDVR0OBBYEFCagwaDMt6hn/BPTxAz599X4GiTQMA4GA1UdDwEB/wQE
AwIChDAKBggqhkjOPQQDAgNIADBFAiACn0J9iqR3TcmP/KgEXeuJjgObTfgmOXMh
2PEYtFutjQIhAMqscnINutXkoNFIYCsI8LSJAN6Mv514U8vawbIrErIh
-----END CERTIFICATE-----
"""


def answer(body: bytes = b"", status: int = 200, **headers: str | None) -> bytes:
    """Return an HTTP response; keywords are headers (`Content_Length="7"`), None leaves a header out."""
    fields = {"Content_Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items() if value is not None]
    return f"HTTP/1.1 {status} So\r\n{''.join(lines)}\r\n".encode("latin-1") + body


def chunked(*chunks: bytes) -> bytes:
    """Return a chunked response without the last chunk, which would end it."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return answer(Content_Length=None, Transfer_Encoding="chunked") + body


def reset(connection: socket.socket, _: Server) -> None:
    """Reset the connection, as a crashed server does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def dripping(start: bytes, rest: bytes, pause: float = 0.01) -> Script:
    """Send the start of a response, and the rest byte by byte, with a pause in seconds."""

    def drip(connection: socket.socket, server: Server) -> None:
        connection.sendall(start)
        for byte in rest:
            if server.closing.wait(pause):
                return
            connection.sendall(bytes([byte]))

    return drip


def stalling(start: bytes = b"") -> Script:
    """Send the start of a response, then nothing for a minute."""
    return dripping(start, b".", 60.0)


def endless(start: bytes, rest: bytes) -> Script:
    """Send the start of a response, then `rest` again and again."""

    def flood(connection: socket.socket, server: Server) -> None:
        connection.sendall(start)
        while not server.closing.is_set():
            connection.sendall(rest)
            server.sent += len(rest)

    return flood


class Server(socketserver.ThreadingTCPServer):
    """A context manager that serves on 127.0.0.1; with a TLS context over https.

    Attributes:
        url: of the server, with a trailing slash.
        requests: requested paths, in the order of arrival.
        heads: the requests with their headers.
        sent: number of bytes that `endless` has sent.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.context = context
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.server_address[1]}/"
        self.requests: list[str] = []
        self.heads: list[str] = []
        self.sent = 0
        self.closing = threading.Event()
        self._scripts: dict[str, list[Script]] = {}
        self._recording = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))

    def on(self, path: str, *scripts: Script) -> str:
        """Set the responses of a path, one for each request, the last one repeatedly; return its URL."""
        self._scripts[path] = list(scripts)
        return self.url + path.removeprefix("/")

    def script(self, head: str) -> Script:
        """Record a request; return its response."""
        path = head.split(" ")[1]
        with self._recording:
            self.requests.append(path)
            self.heads.append(head)
            scripts = self._scripts.get(path, [answer(status=404)])
            return scripts.pop(0) if len(scripts) > 1 else scripts[0]

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(socketserver.BaseRequestHandler):
    server: Server

    def handle(self) -> None:
        connection: socket.socket = self.request
        try:
            if self.server.context:
                connection = self.server.context.wrap_socket(connection, server_side=True)
            with connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += (piece := connection.recv(4096))
                    if not piece or head.startswith(b"\x16"):
                        return  # no request, or a TLS handshake without a context
                script = self.server.script(head.decode("latin-1"))
                connection.sendall(script) if isinstance(script, bytes) else script(connection, self.server)
        except OSError:
            pass  # the client closed the connection
