"""How hosts find each other: host 0 listens until all are there, or until the time is over."""

import queue
import socket
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from ..backends.errors import UsageError
from ..sharding.multihost import Hosts, HostsError, LostHostError, MissingHostError, free_port, start_jax
from .host_link import Link
from .host_messages import decode, encode
from .host_tunnel import KINDS, connect_to_service, open_tunnel

_GREETING_SECONDS = 5.0
_links: dict[Hosts, Link] = {}


def join(hosts: Hosts) -> Link:
    """Connects this process with those of the other hosts, and JAX on all of them. Joining again gives the same link.

    Raises:
        MissingHostError: a host did not come within the time limit; the message says which.
        UsageError: JAX has been used before, this process belongs to another group, or the port is taken.
        HostsError: host 0 refused this one.
    """
    if hosts in _links:
        return _links[hosts]
    if _links:
        raise UsageError("hosts: this process has joined others already, and JAX lets it do so once")
    link, port = _lead(hosts) if hosts.leads else _follow(hosts)
    _links[hosts] = link
    try:
        link.wait(lambda: start_jax(hosts, port))
    except BaseException as error:
        link.fail(error)
        raise
    return link


# Host 0


def _lead(hosts: Hosts) -> tuple[Link, int]:
    try:
        listener = socket.create_server(("", hosts.address[1]))
    except OSError as error:
        raise UsageError(
            f"--coordinator {hosts.coordinator}: cannot listen there ({error.strerror}); give another port"
        ) from error
    service = free_port()
    arrivals: queue.SimpleQueue[tuple[socket.socket, bytearray, Any]] = queue.SimpleQueue()

    def greet(connection: socket.socket) -> None:
        try:
            connection.settimeout(_GREETING_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            kind = _exactly(connection, len(KINDS["link"]))
            if kind == KINDS["tunnel"]:
                connect_to_service(connection, service, hosts.timeout)
            elif kind == KINDS["link"]:
                buffer = bytearray()
                arrivals.put((connection, buffer, _message(connection, buffer)[1]))
            else:
                connection.close()  # somebody who wanted something else
        except (OSError, ValueError):
            connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # nobody listens any more
            threading.Thread(target=greet, args=(connection,), name="distaff-hosts", daemon=True).start()

    threading.Thread(target=accept, name="distaff-hosts", daemon=True).start()
    here, refused = _arrived(hosts, arrivals)
    missing = [index for index in range(1, hosts.count) if index not in here]
    if missing:
        message = _missing(hosts, missing, refused)
        for connection, _ in here.values():
            _refuse(connection, message)
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        raise MissingHostError(message)
    addresses = [hosts.coordinator] + [here[i][0].getpeername()[0] for i in range(1, hosts.count)]
    for connection, _ in here.values():
        _tell(connection, encode("welcome", addresses))
    return Link(hosts, here, addresses), service


def _arrived(
    hosts: Hosts, arrivals: "queue.SimpleQueue[tuple[socket.socket, bytearray, Any]]"
) -> tuple[dict[int, tuple[socket.socket, bytearray]], list[str]]:
    """Connections of those who came in time, and why others were sent away."""
    deadline = time.monotonic() + hosts.timeout
    here: dict[int, tuple[socket.socket, bytearray]] = {}
    refused: list[str] = []
    while len(here) < hosts.count - 1:
        try:
            connection, buffer, hello = arrivals.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        index, wrong = hello.get("host"), None
        for key, ours in _hello(hosts).items():
            if key != "host" and hello.get(key) != ours:
                wrong = f"{key} is {hello.get(key)!r}, and {ours!r} on host 0"
        if wrong is None and index not in range(1, hosts.count):
            wrong = f"expected 1 to {hosts.count - 1}"
        if wrong is None and index in here:
            wrong = f"another one, at {here[index][0].getpeername()[0]}, has this number"
        if wrong is None:
            here[index] = connection, buffer
        else:
            refused.append(f"host {index} ({connection.getpeername()[0]}): {wrong}")
            _refuse(connection, refused[-1])
    return here, refused


def _missing(hosts: Hosts, missing: list[int], refused: list[str]) -> str:
    names = [hosts.title(index) for index in missing]
    text = f"{', '.join(names)} did not come within {hosts.timeout:g} s"
    if refused:
        text += f"; sent away: {'; '.join(refused)}"
    return f"{text}; start it with --coordinator {hosts.coordinator} --host {missing[0]}, or look at what it printed"


# The others


def _follow(hosts: Hosts) -> tuple[Link, int]:
    deadline = time.monotonic() + hosts.timeout
    while True:
        try:
            connection = socket.create_connection(hosts.address, timeout=max(0.1, deadline - time.monotonic()))
            break
        except OSError as error:
            if time.monotonic() + 0.1 > deadline:
                raise MissingHostError(
                    f"{hosts.title(0)} did not answer within {hosts.timeout:g} s ({error}); start it with --host 0, or "
                    "see whether its port can be reached"
                ) from error
            time.sleep(0.1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(KINDS["link"] + encode("hello", _hello(hosts)))
    connection.settimeout(hosts.timeout + _GREETING_SECONDS)  # it may have started later than this one
    buffer = bytearray()
    try:
        name, value = _message(connection, buffer)
    except OSError as error:
        connection.close()
        raise LostHostError(f"{hosts.title(0)} was lost before all hosts had come ({error})") from error
    if name != "welcome":
        connection.close()
        raise (MissingHostError if "did not come" in str(value) else HostsError)(str(value))
    return Link(hosts, {0: (connection, buffer)}, value), open_tunnel(hosts.address, hosts.timeout)


def _hello(hosts: Hosts) -> dict[str, Any]:
    return {
        "host": hosts.index,
        "number of hosts": hosts.count,
        "version of Distaff": version("distaff"),
        "version of JAX": version("jax"),
    }


def _message(connection: socket.socket, buffer: bytearray) -> tuple[str, Any]:
    while (message := decode(buffer)) is None:
        data = connection.recv(65536)
        if not data:
            raise ConnectionResetError("the connection was closed")
        buffer += data
    return message


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            break
        data += more
    return data


def _refuse(connection: socket.socket, why: str) -> None:
    _tell(connection, encode("refused", why))
    connection.close()


def _tell(connection: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # gone: the link will say so
        connection.sendall(data)
