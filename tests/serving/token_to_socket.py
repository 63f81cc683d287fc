"""How long a token takes from the engine to the socket, over the fake model.

    python -m tests.serving.token_to_socket [STREAMS [STEP_SECONDS [SECONDS [IDLE_CONNECTIONS]]]]

A server in a process of its own notes when its engine has read the tokens of a step back; readers on a connection each
take the kernel's own time stamps of what arrives, so that their speed does not count. Prints a line of JSON:
milliseconds at the median and above, microseconds of the server's CPU for each token, and the memory that idle
connections took.
"""

import json
import mmap
import selectors
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distaff.models.step import StepBatch, StepOutput
from distaff.serving.plan import Bucket
from distaff.serving.rpc.protos.distaff.v1 import generation_pb2

from . import http2
from .served import QuickPrograms

ROOT = Path(__file__).resolve().parents[2]
MAX_STEPS = 2**16
NUM_IDS = 64
"""Token ids tell steps apart: a step's is its number, modulo this."""
_SO_TIMESTAMPNS = 35
_WARM_SECONDS = 1.0


class _Tokens:
    """Tokens that a device is still at work on: whoever reads them waits, and the moment they are there is noted."""

    def __init__(self, tokens: np.ndarray, due: float, stamps: np.ndarray, number: int) -> None:
        self._tokens, self._due, self._stamps, self._number = tokens, due, stamps, number

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        left = self._due - time.monotonic()
        if left > 0:
            time.sleep(left)
        self._stamps[self._number] = time.time_ns()
        return self._tokens


class TimedPrograms(QuickPrograms):
    """Steps run beside the host, one after the other, as on a device.

    Attributes:
        stamps: nanoseconds of the wall clock at which each step was read; 0: not yet.
    """

    stamps: np.ndarray = np.zeros(MAX_STEPS, np.int64)
    _number = 0
    _free = 0.0

    def step(self, bucket: Bucket, batch: StepBatch) -> StepOutput:
        self._free = max(self._free, time.monotonic()) + self.step_seconds
        tokens = np.full((bucket.num_rows, int(batch.num_steps)), self._number % NUM_IDS)
        made = _Tokens(tokens, self._free, self.stamps, self._number)
        self._number += 1
        return StepOutput(made, np.ones(bucket.num_rows, np.int32), None, None, None)  # pyright: ignore[reportArgumentType]


class _Reader:
    """A client with one request, which keeps what it reads with the times of its arrival."""

    def __init__(self, port: int, tokens: int) -> None:
        connection = http2.Connection(port, preface=False)
        self.socket = connection.socket
        self.socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._parts: list[tuple[int, bytes]] = []
        sampling = generation_pb2.SamplingParams(max_tokens=tokens, seed=0)
        request = generation_pb2.GenerateRequest(text="abc", sampling=sampling)
        call = http2.unary("/distaff.v1.Inference/Generate", request.SerializeToString())
        connection.send(http2.PREFACE + http2.settings(window=2**24) + call)

    def read(self) -> bool:
        """Takes what is there; whether the connection still stands."""
        data, more, _, _ = self.socket.recvmsg(65536, 64)
        if not data:
            return False
        # Settings that a quick server has sent before the option was set have no stamp; tokens come later.
        seconds, nanoseconds = struct.unpack("ll", more[0][2]) if more else (0, 0)
        self._parts.append((seconds * 10**9 + nanoseconds, data))
        return True

    @property
    def received(self) -> int:
        """Bytes."""
        return sum(len(part) for _, part in self._parts)

    def tokens(self) -> list[tuple[int, int]]:
        """Each token id, and when the message it came in had arrived."""
        data = b"".join(part for _, part in self._parts)
        ends = np.cumsum([len(part) for _, part in self._parts])
        found: list[tuple[int, int]] = []
        at, body = 0, b""
        while at + 9 <= len(data):
            size, kind, stream = int.from_bytes(data[at : at + 3]), data[at + 3], int.from_bytes(data[at + 5 : at + 9])
            at += 9 + size
            if kind != http2.DATA or stream != 1 or at > len(data):
                continue
            body += data[at - size : at]
            stamp = self._parts[int(np.searchsorted(ends, at))][0]
            while len(body) >= 5 and len(body) >= (end := 5 + int.from_bytes(body[1:5])):
                event = generation_pb2.GenerateEvent.FromString(body[5:end])
                found += [(token, stamp) for token in event.delta.token_ids]
                body = body[end:]
        return found


def measure(streams: int = 32, step_seconds: float = 0.03, seconds: float = 10.0, idle: int = 0) -> dict[str, float]:
    """Runs a server and its readers, and takes the times."""
    with tempfile.NamedTemporaryFile() as shared:
        shared.truncate(MAX_STEPS * 8)
        command = [sys.executable, "-m", __spec__.name, "serve", shared.name, str(streams), str(step_seconds)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                port = int(process.stdout.readline().split()[1])
                usage = psutil.Process(process.pid)
                memory = usage.memory_info().rss
                idlers = [_idle(port) for _ in range(idle)]
                time.sleep(1.0 if idle else 0.0)  # it has taken all of them
                memory = usage.memory_info().rss - memory
                readers = [_Reader(port, 4000) for _ in range(streams)]
                _read(readers, _WARM_SECONDS)
                before, began = sum(usage.cpu_times()[:2]), time.time_ns()
                _read(readers, seconds)
                cpu = sum(usage.cpu_times()[:2]) - before
                for sock in (*idlers, *(reader.socket for reader in readers)):
                    sock.close()
            finally:
                process.kill()
        stamps = np.memmap(shared.name, np.int64, "r", shape=(MAX_STEPS,))
        read = stamps[stamps > 0]
        delays = [
            (arrived - _stamp_of(read, token, arrived)) / 1e6
            for reader in readers
            for token, arrived in reader.tokens()
            if arrived > began
        ]
    cuts = statistics.quantiles(delays, n=100)
    return {
        "streams": streams,
        "step_ms": step_seconds * 1e3,
        "tokens": len(delays),
        **{f"p{share}_ms": round(cuts[share - 1], 3) for share in (50, 90, 99)},
        "max_ms": round(max(delays), 3),
        "cpu_us_per_token": round(cpu / len(delays) * 1e6, 1),
        "idle_connections": idle,
        "idle_mb": round(memory / 2**20, 1),
    }


def _idle(port: int) -> socket.socket:
    return http2.Connection(port).socket


def _read(readers: list[_Reader], seconds: float) -> None:
    with selectors.DefaultSelector() as selector:
        for reader in readers:
            selector.register(reader.socket, selectors.EVENT_READ, reader)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if not key.data.read():
                    raise AssertionError(f"the server hung up after {key.data.received} bytes")


def _stamp_of(stamps: np.ndarray, token: int, arrived: int) -> int:
    """When the engine had read this token: in the last step of this number before it arrived."""
    last = int(np.searchsorted(stamps, arrived)) - 1
    return int(stamps[last - (last - token) % NUM_IDS])


def _serve(path: str, streams: int, step_seconds: float) -> int:
    from distaff.serving.rpc.settings import RpcSettings
    from distaff.serving.serve import ServeSettings, run_server

    from .served import make_served

    with Path(path).open("r+b") as shared:
        TimedPrograms.stamps = np.frombuffer(mmap.mmap(shared.fileno(), 0), np.int64)
    served = make_served(slots=streams, pages=65_536, max_len=4096, programs=TimedPrograms)
    served.programs.step_seconds = step_seconds
    # Readers and idle connections answer no ping: they must be let live for longer than this takes.
    settings = ServeSettings(rpc=RpcSettings(port=0, keepalive_timeout_seconds=3600.0), http_port=0)
    return run_server(lambda: served.front, settings, lambda ports: print(f"ready {ports.grpc}", flush=True))


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        sys.exit(_serve(sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
    given = [float(value) for value in sys.argv[1:]]
    streams, step_seconds, seconds, idle = given + [32, 0.03, 10.0, 0][len(given) :]
    print(json.dumps(measure(int(streams), step_seconds, seconds, int(idle))))
