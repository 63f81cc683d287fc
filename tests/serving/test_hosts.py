"""Hosts talk to each other, and notice when one is gone."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from distaff.serving.host_join import join
from distaff.serving.host_link import Link
from distaff.serving.host_messages import decode, encode
from distaff.sharding.multihost import Hosts, HostsError, LostHostError, MissingHostError, free_port

ADDRESSES = ["127.0.0.1:1", "10.0.0.2"]


def test_a_message_is_what_was_sent() -> None:
    sent = {"a": [1, 2.5, None, "é", True], "b": (np.arange(6, dtype=np.int32).reshape(2, 3), np.bool_(True)), "c": {}}
    buffer = bytearray(encode("step", sent) + encode("beat"))
    first = decode(buffer)
    assert first is not None
    name, got = first
    assert name == "step" and got["a"] == sent["a"] and got["c"] == {} and isinstance(got["b"], tuple)
    assert got["b"][0].dtype == np.int32 and got["b"][0].tolist() == [[0, 1, 2], [3, 4, 5]] and got["b"][1].shape == ()
    assert decode(buffer) == ("beat", None) and not buffer


def test_half_a_message_waits_for_the_rest() -> None:
    data, buffer = encode("x", [np.ones(3)]), bytearray()
    for byte in data[:-1]:
        buffer.append(byte)
        assert decode(buffer) is None
    buffer.append(data[-1])
    assert decode(buffer) is not None


class Pair:
    """Host 0 and host 1 of two in one process, with a time limit of 2 s; `ended` is who would have been ended."""

    def __init__(self) -> None:
        self.sockets = socket.socketpair(socket.AF_UNIX)
        self.ended: list[int] = []
        self.links = [
            Link(Hosts("127.0.0.1:1", 2, i, 2.0), {1 - i: (self.sockets[i], bytearray())}, ADDRESSES, self._end(i))
            for i in range(2)
        ]

    def _end(self, index: int) -> Callable[[], None]:
        return lambda: self.ended.append(index)


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    for each in made.links:
        each.end()
    for each in made.sockets:
        each.close()


def test_messages_arrive_in_order_and_hosts_agree(pair: Pair) -> None:
    leader, other = pair.links
    for number in range(100):
        leader.send("n", number)
    assert [other.receive() for _ in range(100)] == [("n", number) for number in range(100)]
    with ThreadPoolExecutor(max_workers=1) as pool:
        answer = pool.submit(other.smallest, (3, 9))
        assert leader.smallest((5, 7)) == (3, 7) == answer.result()
        pool.submit(other.agree, {"layout": "tensor=2"})
        leader.agree({"layout": "tensor=2"})
        refused = pool.submit(other.agree, {"layout": "tensor=4"})
        for call in (lambda: leader.agree({"layout": "tensor=2"}), refused.result):
            with pytest.raises(HostsError, match=r"host 1 of 2 \(10.0.0.2\): layout is 'tensor=4', and 'tensor=2'"):
                call()


def test_whichever_host_is_asked_to_stop_the_others_hear_of_it(pair: Pair) -> None:
    """Also one that was not ready to: a job may be asked while it begins."""
    leader, other = pair.links
    for one, another in ((leader, other), (other, leader)):
        heard, late = threading.Event(), threading.Event()
        another.when_asked_to_stop(heard.set)
        one.ask_to_stop()
        assert heard.wait(5)
        another.when_asked_to_stop(late.set)
        assert late.is_set()
    leader.send("n", 1)
    assert other.receive() == ("n", 1)  # no message that somebody waits for


def test_a_closed_connection_is_a_lost_host_and_ends_every_wait(pair: Pair) -> None:
    leader = pair.links[0]
    started = time.monotonic()
    never = threading.Event()
    threading.Timer(0.2, lambda: pair.sockets[1].shutdown(socket.SHUT_RDWR)).start()
    with pytest.raises(LostHostError, match=r"host 1 of 2 \(10.0.0.2\) was lost: it closed the connection"):
        leader.wait(never.wait)
    with pytest.raises(LostHostError):
        leader.send("n")
    with pytest.raises(LostHostError):
        leader.receive()
    assert time.monotonic() - started < 1
    while 0 not in pair.ended:
        time.sleep(0.02)
    assert time.monotonic() - started < 2
    never.set()


def test_a_host_that_fails_says_why(pair: Pair) -> None:
    leader, other = pair.links
    other.fail(ValueError("no\nmemory"))
    with pytest.raises(LostHostError, match="host 1 of 2 .* failed: no memory"):
        leader.receive()


def test_a_silent_host_is_lost() -> None:
    ours, silent = socket.socketpair(socket.AF_UNIX)
    ended = threading.Event()
    link = Link(Hosts("127.0.0.1:1", 2, 0, 0.6), {1: (ours, bytearray())}, ADDRESSES, ended.set)
    with pytest.raises(LostHostError, match=r"nothing was heard from it for 0\.[3-9] s"):
        link.receive()
    assert ended.wait(2)
    ours.close()
    silent.close()


def test_hosts_that_do_not_come_are_named_to_those_who_did() -> None:
    port = free_port()

    def started(index: int, count: int = 4) -> Any:
        return join(Hosts(f"127.0.0.1:{port}", count, index, 1.5))

    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(started, index) for index in (0, 1)]
        time.sleep(0.3)
        calls.append(pool.submit(started, 2, 3))
        told = [str(call.exception()) for call in calls]
        assert all(isinstance(call.exception(), MissingHostError) for call in calls[:2])
    assert told[0] == told[1]
    assert told[0].startswith("host 2 of 4, host 3 of 4 did not come within 1.5 s; sent away: host 2 (127.0.0.1): ")
    assert "number of hosts is 3, and 4 on host 0" in told[0] and "number of hosts is 3, and 4" in told[2]


def test_host_0_that_does_not_come_is_named() -> None:
    with pytest.raises(MissingHostError, match=r"host 0 of 2 \(127.0.0.1:\d+\) did not answer within 0.3 s"):
        join(Hosts(f"127.0.0.1:{free_port()}", 2, 1, 0.3))
