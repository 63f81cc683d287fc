"""JAX's connections to its coordination service, through the port of host 0.

A process whose connection to that service breaks is aborted by JAX at once, before anything could say why. So JAX
talks to a port of its own machine, and that connection stays open when host 0 is gone.
"""

import socket
import threading
import time
from contextlib import suppress

KINDS = {"link": b"distaffL", "tunnel": b"distaffJ"}
"""What a connection to host 0 begins with."""


def connect_to_service(outside: socket.socket, port: int, timeout: float) -> None:
    """On host 0: brings a connection to the service, which may not have started yet."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            inside = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        except OSError:
            if time.monotonic() > deadline:
                outside.close()
                return
            time.sleep(0.05)
        else:
            _join(outside, inside, keep=())
            return


def open_tunnel(leader: tuple[str, int], timeout: float) -> int:
    """On another host: a port of this machine that leads to the service on host 0, as long as the process lives."""
    listener = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        while True:
            inside, _ = listener.accept()
            try:
                outside = socket.create_connection(leader, timeout=timeout)
                outside.sendall(KINDS["tunnel"])
            except OSError:
                continue  # host 0 is gone, which the link says
            _join(inside, outside, keep=(inside,))

    threading.Thread(target=accept, name="distaff-tunnel", daemon=True).start()
    return listener.getsockname()[1]


def _join(a: socket.socket, b: socket.socket, keep: tuple[socket.socket, ...]) -> None:
    """Moves bytes both ways; sockets of `keep` are not told of the other's end."""

    def move(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        if target not in keep:
            with suppress(OSError):  # closed already
                target.shutdown(socket.SHUT_WR)

    for source, target in ((a, b), (b, a)):
        source.settimeout(None)
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=move, args=(source, target), name="distaff-tunnel", daemon=True).start()
