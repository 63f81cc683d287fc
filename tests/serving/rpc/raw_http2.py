"""HTTP/2 by hand, for clients that no library is: frames as they come, windows that stay shut."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_STREAM, END_HEADERS, ACK = 0x1, 0x4, 0x1
INITIAL_WINDOW_SIZE = 4


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """`window` is what the peer may send of each stream."""
    payload = b"".join(struct.pack(">HI", INITIAL_WINDOW_SIZE, value) for value in values.values())
    return frame(SETTINGS, 0, 0, payload)


def header_block(headers: dict[str, str]) -> bytes:
    """HPACK without a table: each header is written out."""
    block = b""
    for name, value in headers.items():
        block += b"\x00" + _length(name.encode()) + _length(value.encode())
    return block


def call(
    stream: int, method: str, message: bytes, *, compressed: int = 0, content_type: str = "application/grpc"
) -> bytes:
    """The frames of a unary request; `compressed` is what it says of its message."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": method,
        ":authority": "localhost",
        "content-type": content_type,
        "te": "trailers",
    }
    opened = frame(HEADERS, END_HEADERS, stream, header_block(headers))
    return opened + frame(DATA, END_STREAM, stream, struct.pack(">BI", compressed, len(message)) + message)


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=5)
    sock.sendall(PREFACE)
    return sock


def _length(text: bytes) -> bytes:
    """A string with its length in front, as HPACK writes it: seven bits, the rest in groups of seven."""
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, prefix = len(text) - 127, b"\x7f"
    while rest >= 128:
        prefix += bytes([rest % 128 + 128])
        rest //= 128
    return prefix + bytes([rest]) + text


def read_frames(sock: socket.socket, seconds: float) -> list[tuple[int, int, int, bytes]]:
    """Frames (kind, flags, stream, payload) until nothing comes for so long, or the peer hangs up."""
    sock.settimeout(seconds)
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except (TimeoutError, ConnectionError):
        pass
    frames: list[tuple[int, int, int, bytes]] = []
    while len(data) >= 9:
        size = int.from_bytes(data[:3])
        frames.append((data[3], data[4], int.from_bytes(data[5:9]), data[9 : 9 + size]))
        data = data[9 + size :]
    return frames
