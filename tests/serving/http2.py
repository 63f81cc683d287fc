"""HTTP/2 frames by hand (RFC 9113), for what no library sends, or reads so."""

import contextlib
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
INITIAL_WINDOW_SIZE = 4


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def settings(*, window: int) -> bytes:
    """`window` is what the peer may send of each stream."""
    return frame(SETTINGS, struct.pack(">HI", INITIAL_WINDOW_SIZE, window))


def literal(name: str, value: str) -> bytes:
    """A header, spelled out (RFC 7541, 6.2.2); names and values of up to 126 bytes."""
    assert max(len(name), len(value)) < 127
    return b"\x00" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()


def call_headers(path: str, **more: str) -> bytes:
    """The headers of a gRPC call."""
    pairs = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
        "te": "trailers",
        "content-type": "application/grpc",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }
    return b"".join(literal(name, value) for name, value in pairs.items())


def message(body: bytes, *, compressed: int = 0, length: int | None = None) -> bytes:
    """A gRPC message; `length` lies about how long it is."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def unary(path: str, body: bytes, *, stream: int = 1, compressed: int = 0, **headers: str) -> bytes:
    """A whole request; `compressed` is what it says of its message."""
    return frame(HEADERS, call_headers(path, **headers), flags=END_HEADERS, stream=stream) + frame(
        DATA, message(body, compressed=compressed), flags=END_STREAM, stream=stream
    )


class Connection:
    """A TCP connection that speaks just enough HTTP/2. Close it, or use it as a context manager."""

    def __init__(self, port: int, *, preface: bool = True) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)
        self._read = b""
        if preface:
            self.send(PREFACE + frame(SETTINGS))

    def send(self, data: bytes) -> bool:
        """Whether the server still took it."""
        try:
            self.socket.sendall(data)
        except OSError:
            return False
        return True

    def call(self, path: str, body: bytes, stream: int = 1) -> None:
        """Sends a whole unary request."""
        self.send(unary(path, body, stream=stream))

    def frames(self, seconds: float = 5.0) -> Iterator[Frame]:
        """What the server sends, until it closes the connection or `seconds` are over; settings are acknowledged."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            while len(self._read) >= 9:
                length = int.from_bytes(self._read[:3], "big")
                if len(self._read) < 9 + length:
                    break
                kind, flags = self._read[3], self._read[4]
                found = Frame(kind, flags, int.from_bytes(self._read[5:9], "big"), self._read[9 : 9 + length])
                self._read = self._read[9 + length :]
                if kind == SETTINGS and not flags & ACK:
                    self.send(frame(SETTINGS, flags=ACK))
                yield found
            try:
                self.socket.settimeout(left)
                more = self.socket.recv(65536)
            except TimeoutError:
                return
            except OSError:
                more = b""
            if not more:
                return
            self._read += more

    def answer(self, stream: int = 1, seconds: float = 5.0) -> list[Frame]:
        """The frames of a stream until it ends, the connection does, or `seconds` are over."""
        found: list[Frame] = []
        for each in self.frames(seconds):
            if each.stream == stream:
                found.append(each)
                if each.flags & END_STREAM:
                    break
        return found

    def is_closed(self, seconds: float = 5.0) -> bool:
        """Whether the server ends the connection within `seconds`."""
        end = time.monotonic() + seconds
        for _ in self.frames(seconds):
            pass
        return time.monotonic() < end

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, *, rudely: bool = False) -> None:
        """`rudely` resets the connection instead of ending it."""
        with contextlib.suppress(OSError):
            if rudely:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.socket.close()
