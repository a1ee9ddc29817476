"""A server that does to a client what servers out there do: each path misbehaves as the test says (faults 1-8)."""

from __future__ import annotations

import re
import socket
import socketserver
import ssl
import struct
import threading
from collections.abc import Callable
from types import TracebackType

# What a path does: bytes are sent as they are, a function is given the connection. Then it is closed.
Script = bytes | Callable[[socket.socket], None]


def answer(body: bytes = b"", status: int = 200, **headers: str | None) -> bytes:
    """An answer of HTTP. `Content_Length="7"` lies about the length, None leaves a header out."""
    lines = {"Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items() if value is not None}
    for name in [name for name, value in headers.items() if value is None]:
        del lines[name.replace("_", "-")]
    head = [f"HTTP/1.1 {status} So", *(f"{name}: {value}" for name, value in lines.items())]
    return "\r\n".join(head).encode("latin-1") + b"\r\n\r\n" + body


def reset(connection: socket.socket) -> None:
    """Break off as a crashed server does: with RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Server(socketserver.ThreadingTCPServer):
    """To be used in a `with`; speaks TLS if it is given a context.

    Attributes:
        url: of the server, with a slash at the end.
        requests: the paths asked for, in the order of arrival.
        heads: the requests as they came.
        sent: how many bytes `endless` has got rid of.
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
        """Let `path` do these, one a request, the last one again and again; returns its URL."""
        self._scripts[path] = list(scripts)
        return self.url + path.removeprefix("/")

    def script(self, head: str) -> Script:
        """Record a request; what to do about it."""
        path = head.split(" ")[1]
        with self._recording:
            self.requests.append(path)
            self.heads.append(head)
            scripts = self._scripts.get(path, [answer(status=404)])
            return scripts.pop(0) if len(scripts) > 1 else scripts[0]

    def stalling(self, start: bytes = b"") -> Script:
        """Send the start of an answer, then nothing."""
        return self.dripping(start, b".", 60.0)

    def dripping(self, start: bytes, rest: bytes, pause: float) -> Script:
        """Send the start of an answer, and of the rest one byte at a time."""

        def drip(connection: socket.socket) -> None:
            connection.sendall(start)
            for byte in rest:
                if self.closing.wait(pause):
                    return
                connection.sendall(bytes([byte]))

        return drip

    def endless(self, start: bytes, rest: bytes) -> Script:
        """Send the start of an answer, and the rest for ever."""

        def flood(connection: socket.socket) -> None:
            connection.sendall(start)
            while not self.closing.is_set():
                connection.sendall(rest)
                self.sent += len(rest)

        return flood

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
                while not re.search(rb"\r\n\r\n", head):
                    head += (piece := connection.recv(4096))
                    if not piece:
                        return
                script = self.server.script(head.decode("latin-1"))
                connection.sendall(script) if isinstance(script, bytes) else script(connection)
        except OSError:
            pass  # The client has left, as it may.
