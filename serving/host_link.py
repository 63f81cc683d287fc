"""What connects the hosts of a job: messages in order, signs of life, and an end for everybody when one is lost.

Host 0 has a connection to each of the others; they have one to host 0. A message takes one hop, where JAX's
key-value store and a broadcast by the devices take several (docs/multihost.md has their times), and a connection that
breaks is noticed at once.
"""

import atexit
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import jax

from ..sharding.multihost import Hosts, HostsError, LostHostError
from .host_messages import decode, encode

_BEATS, _SILENCE, _GRACE = 1 / 20, 1 / 2, 1 / 4
"""Shares of the time limit: between signs of life, until a silent host is lost, and for a process to end by itself."""
_BEAT = encode("beat")


class _Peer:
    """The connection to one host."""

    def __init__(self, index: int, connection: socket.socket, address: str, buffer: bytearray) -> None:
        self.index, self.connection, self.address = index, connection, address
        self.buffer = buffer
        self.lock = threading.Lock()
        self.heard = time.monotonic()


class _Call:
    """A wait for the device that somebody may break off."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None


class Link:
    """The other hosts, as one of them sees them.

    When a host is lost every call raises LostHostError, and a process that has not ended by itself within a quarter of
    the time limit is ended with the message and exit code 1: a device that waits for a lost host never comes back.

    Attributes:
        exit_code: what this process is ended with where a host is lost.

    Args:
        hosts: who takes part.
        connections: with each host that this one talks to, and what was read from it beyond the greeting.
        addresses: of all hosts.
        end_process: called when a host is lost and this process does not end by itself.
    """

    def __init__(
        self,
        hosts: Hosts,
        connections: Mapping[int, tuple[socket.socket, bytearray]],
        addresses: list[str],
        end_process: "Callable[[], None] | None" = None,
    ) -> None:
        self.hosts = hosts
        self.error: HostsError | None = None
        self.exit_code = 1
        self._addresses = addresses
        self._end_process = end_process or self._exit
        self._peers = {i: _Peer(i, sock, addresses[i], buffer) for i, (sock, buffer) in connections.items()}
        self._inbox: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._waiting: set[_Call] = set()
        self._lost = threading.Event()
        self._lock = threading.Lock()
        self._stop_asked = False
        self._on_stop: Callable[[], None] = lambda: None
        self._ending = self._ended = False
        self._last_moment = 0.0
        for peer in self._peers.values():
            peer.connection.settimeout(hosts.timeout * _SILENCE)
        for target in (self._watch, self._work):
            threading.Thread(target=target, name="distaff-hosts", daemon=True).start()
        atexit.register(self._at_exit)

    # Messages

    def send(self, name: str, value: Any = None) -> None:
        """To every host that this one talks to: from host 0 all, from the others host 0.

        Raises:
            HostsError: a host is lost.
        """
        self.check()
        data = encode(name, value)
        for peer in self._peers.values():
            try:
                with peer.lock:
                    peer.connection.sendall(data)
            except OSError as error:
                self._lose(peer, f"nothing can be sent to it ({error})")
        self.check()

    def receive(self) -> tuple[str, Any]:
        """The next message of any host.

        Raises:
            HostsError: a host is lost, or host 0 has ended.
        """
        return self._next()[1:]

    def gather(self, name: str) -> dict[int, Any]:
        """On host 0: the message of this name that each of the others sends; there is nothing else under way."""
        found: dict[int, Any] = {}
        while len(found) < len(self._peers):
            index, given, value = self._next()
            if given != name:
                raise HostsError(f"{self._title(index)}: sent {given!r}, expected {name!r}")
            found[index] = value
        return found

    def agree(self, options: dict[str, Any]) -> None:
        """Makes sure that every host was started in the same way.

        Raises:
            HostsError: the message names a host and what differs.
        """
        if self.hosts.leads:
            for index, other in sorted(self.gather("options").items()):
                for key, value in options.items():
                    if other.get(key) != value:
                        message = (
                            f"{self._title(index)}: {key} is {other.get(key)!r}, and {value!r} on host 0; start every "
                            "host with the same options"
                        )
                        self.send("refused", message)
                        raise HostsError(message)
            self.send("agreed")
        else:
            self.send("options", options)
            self._answer("agreed")

    def smallest(self, numbers: tuple[int, ...]) -> tuple[int, ...]:
        """The least of what the hosts can do, number by number."""
        if not self.hosts.leads:
            self.send("numbers", numbers)
            return self._answer("smallest")
        least = tuple(map(min, zip(numbers, *self.gather("numbers").values(), strict=True)))
        self.send("smallest", least)
        return least

    def told[T](self, name: str, value: T | None) -> T:
        """What host 0 says, on every host; only there `value` counts."""
        if not self.hosts.leads:
            return self._answer(name)
        assert value is not None
        self.send(name, value)
        return value

    # Stopping

    def ask_to_stop(self) -> None:
        """Says that the job is to stop: from host 0 to all, from the others to host 0."""
        with suppress(HostsError):  # it ends anyhow
            self.send("stop")

    def when_asked_to_stop(self, call: Callable[[], None]) -> None:
        """Calls this when another host says so, or now if one has."""
        with self._lock:
            self._on_stop, asked = call, self._stop_asked
        if asked:
            call()

    # Loss

    def check(self) -> None:
        """
        Raises:
            HostsError: a host is lost.
        """
        if self.error is not None:
            raise self.error

    def wait(self, function: Callable[[], Any]) -> Any:
        """Calls what waits for the devices; returns early where a host is lost.

        Raises:
            HostsError: a host is lost.
        """
        call = _Call(function)
        with self._lock:
            self.check()
            self._waiting.add(call)
        self._calls.put(call)
        call.done.wait()
        self._waiting.discard(call)
        if call.error is not None:
            raise self.reason(call.error) from call.error
        return call.result

    def reason(self, error: Exception) -> Exception:
        """The lost host that made something else fail, if there is one: a connection may break a moment later."""
        self._lost.wait(min(2.0, self.hosts.timeout * _GRACE / 2))
        return self.error or error

    def fail(self, error: BaseException) -> None:
        """Tells the others why this host goes."""
        with suppress(HostsError):  # they know of another reason
            self.send("failed", " ".join(f"{error}".split()))

    def end(self) -> None:
        """The job has come to its end. Called again, or where a host is lost, it does nothing."""
        if self._ended or self.error is not None:
            return
        if self.hosts.leads:
            self._ending = True
            try:
                self.send("end")
            except HostsError:
                return
        with suppress(RuntimeError):  # the others have gone without waiting
            jax.distributed.shutdown()
        self._ended = True

    # Inside

    def _next(self) -> tuple[int, str, Any]:
        message = self._inbox.get()
        if message is None:
            self._inbox.put(None)  # for whoever asks next
            self.check()
        assert message is not None
        return message

    def _answer(self, name: str) -> Any:
        given, value = self.receive()
        if given == "end":
            raise HostsError(f"{self._title(0)}: has ended; what it printed says why")
        if given != name:
            raise HostsError(str(value))
        return value

    def _title(self, index: int) -> str:
        return self.hosts.title(index, self._addresses[index])

    def _watch(self) -> None:
        beat = self.hosts.timeout * _BEATS
        selector = selectors.DefaultSelector()
        for peer in self._peers.values():
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        next_beat = 0.0
        while not self._ended:
            for key, _ in selector.select(min(beat, 0.5)):
                peer: _Peer = key.data
                if not self._read(peer):
                    selector.unregister(peer.connection)
            now = time.monotonic()
            if now >= next_beat:
                next_beat = now + beat
                for peer in self._peers.values():
                    self._beat(peer)
            for peer in self._peers.values():
                if now - peer.heard > self.hosts.timeout * _SILENCE:
                    self._lose(peer, f"nothing was heard from it for {now - peer.heard:.1f} s")
            if self.error is not None and now > self._last_moment:
                sys.stderr.write(f"error: {self.error}\n")
                self._end_process()
                return

    def _read(self, peer: _Peer) -> bool:
        """Whether the connection is still there."""
        try:
            data = peer.connection.recv(1 << 20)
        except OSError as error:
            self._lose(peer, f"the connection broke ({error.strerror or error})")
            return False
        if not data:
            self._lose(peer, "it closed the connection")
            return False
        peer.heard = time.monotonic()
        peer.buffer += data
        while (message := decode(peer.buffer)) is not None:
            name, value = message
            if name == "failed":
                self._lose(peer, str(value), "failed")
            elif name == "lost":
                self._break(LostHostError(str(value)))
            elif name == "stop":
                with self._lock:
                    self._stop_asked, call = True, self._on_stop
                call()
            elif name != "beat":
                self._ending = self._ending or name == "end"
                self._inbox.put((peer.index, name, value))
        return True

    def _beat(self, peer: _Peer) -> None:
        if peer.lock.acquire(blocking=False):  # whoever sends is a sign of life
            try:
                peer.connection.setblocking(False)
                sent = peer.connection.send(_BEAT)
                peer.connection.settimeout(self.hosts.timeout * _SILENCE)
                peer.connection.sendall(_BEAT[sent:])
            except OSError:
                pass  # full or closed: reading tells
            finally:
                with suppress(OSError):  # closed
                    peer.connection.settimeout(self.hosts.timeout * _SILENCE)
                peer.lock.release()

    def _lose(self, peer: _Peer, why: str, how: str = "was lost") -> None:
        if not self._ending:
            self._break(LostHostError(f"{self._title(peer.index)} {how}: {why}"))

    def _break(self, error: HostsError) -> None:
        with self._lock:
            if self.error is not None:
                return
            self.error = error
            self._last_moment = time.monotonic() + self.hosts.timeout * _GRACE
            waiting = tuple(self._waiting)
        if self.hosts.leads:
            data = encode("lost", str(error))
            for peer in self._peers.values():
                try:
                    with peer.lock:
                        peer.connection.sendall(data)
                except OSError:
                    pass  # the lost one, or another
        self._lost.set()
        self._inbox.put(None)
        for call in waiting:
            call.error = error
            call.done.set()

    def _work(self) -> None:
        while True:
            call = self._calls.get()
            try:
                call.result = call.function()
            except Exception as error:
                call.error = call.error or error
            call.done.set()

    def _at_exit(self) -> None:
        with suppress(HostsError):
            while self.error is None and not self.hosts.leads and not (self._ending or self._ended):
                self._next()  # host 0 is about to end, or to fail
        self.end()
        if self.error is not None:
            self._end_process()

    def _exit(self) -> None:
        """Without JAX's own end, which would wait for the lost host."""
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # closed
                stream.flush()
        os._exit(self.exit_code)
