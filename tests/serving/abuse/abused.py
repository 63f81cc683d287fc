"""The server that tests abuse, from outside; and the bystander whom nothing may harm."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from distaff.serving.rpc.protos.distaff.v1 import generation_pb2, inference_pb2_grpc

from ...fakes import continuation
from ..http2 import Connection
from ..served import VOCAB, small_tokenizer

ROOT = Path(__file__).resolve().parents[3]
GENERATE = "/distaff.v1.Inference/Generate"
_MEGABYTE = 2**20


def request(prompt: str, tokens: int, **fields: Any) -> generation_pb2.GenerateRequest:
    sampling = generation_pb2.SamplingParams(max_tokens=tokens, seed=0)
    return generation_pb2.GenerateRequest(text=prompt, sampling=sampling, **fields)


def answer(prompt: str, tokens: int) -> list[int]:
    """What the fake model must write."""
    ids = small_tokenizer().encode(prompt)
    return continuation(ids, len(ids) + tokens, 0, windows=(None,), vocab_size=VOCAB)[len(ids) :]


class Abused:
    """A server in another process."""

    def __init__(self, process: "subprocess.Popen[str]", port: int) -> None:
        self._process, self.port = process, port

    def counts(self) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def connect(self, **options: Any) -> Connection:
        return Connection(self.port, **options)

    @contextmanager
    def stub(self) -> Iterator[inference_pb2_grpc.InferenceStub]:
        """A client of its own connection."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.port}", options) as channel:
            yield inference_pb2_grpc.InferenceStub(channel)

    def settle(self, before: dict[str, Any], *, seconds: float = 10.0, megabytes: float = 64) -> dict[str, Any]:
        """Waits until nothing is held any more; then memory and file descriptors must be what they were."""
        end = time.monotonic() + seconds
        while True:
            now = self.counts()
            held = {name: now[name] for name in ("streams", "slots", "pages", "requests", "tokens_in_flight")}
            if not any(held.values()) and now["fds"] <= before["fds"] + 2:
                break
            assert time.monotonic() < end, f"still held: {held}, {now['fds']} file descriptors, before {before['fds']}"
            time.sleep(0.05)
        assert now["threads"] <= before["threads"] + 8
        grown = (now["memory"] - before["memory"]) / _MEGABYTE
        assert grown < megabytes, f"memory has grown by {grown:.0f} MB"
        with grpc.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            health = stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
        assert health.status == health_pb2.HealthCheckResponse.SERVING
        return now

    @contextmanager
    def unharmed(self, *, megabytes: float = 64, seconds: float = 10.0, gap: float = 3.0) -> Iterator[None]:
        """What happens inside must leave the server as it was, and harm nobody.

        Args:
            megabytes: that memory may grow by.
            seconds: in which everything must be given back.
            gap: longest time between two tokens of a bystander.
        """
        with self.stub() as stub:
            warm = list(stub.Generate(request("warm", 4), timeout=10))
            assert warm
        before = self.counts()
        with Bystander(self) as bystander:
            yield
        assert bystander.error is None, f"the bystander after {bystander.answers} answers: {bystander.error!r}"
        assert bystander.answers, "the bystander has had no answer"
        assert bystander.longest_gap < gap, f"the bystander waited {bystander.longest_gap:.2f} s for a token"
        self.settle(before, seconds=seconds, megabytes=megabytes)


class Bystander:
    """A client that asks one thing after the other, and checks every answer."""

    _PROMPT, _TOKENS = "bystander", 24

    def __init__(self, server: Abused) -> None:
        self._server = server
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.answers = 0
        self.longest_gap = 0.0
        self.error: BaseException | None = None

    def _run(self) -> None:
        expected = answer(self._PROMPT, self._TOKENS)
        try:
            with self._server.stub() as stub:
                while not self._stop.is_set() or not self.answers:
                    tokens: list[int] = []
                    last = time.monotonic()
                    for event in stub.Generate(request(self._PROMPT, self._TOKENS), timeout=30):
                        now = time.monotonic()
                        self.longest_gap, last = max(self.longest_gap, now - last), now
                        tokens += event.delta.token_ids
                    assert tokens == expected, f"wrong answer: {tokens}, expected {expected}"
                    self.answers += 1
        except BaseException as error:
            self.error = error

    def __enter__(self) -> "Bystander":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive(), "the bystander hangs"


@contextmanager
def abused(**options: Any) -> Iterator[Abused]:
    """Starts a server; see server.py for the options. It has to end well."""
    command = [sys.executable, "-m", "tests.serving.abuse.server", json.dumps(options)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdin
            line = process.stdout.readline()
            assert line, "the server did not start"
            yield Abused(process, json.loads(line)["port"])
            process.stdin.close()
            assert process.wait(20) == 0
        finally:
            process.kill()
