"""What stands before the services: malformed messages, tokens, health, reflection, TLS, and what is refused how."""

import asyncio
import math
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from distaff.serving.front import FrontLimits, State
from distaff.serving.rpc.protos.distaff.v1 import admin_pb2, generation_pb2, models_pb2, tokenization_pb2
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2 as pb
from distaff.serving.rpc.settings import RpcSettings
from distaff.serving.rpc.tls import TlsFiles
from distaff.serving.rpc.tokens import TokenFile

from . import raw_http2
from .compat import run, until
from .native import EOF, Native, native, refusal, request

UNARY = "/distaff.v1.Inference/GenerateUnary"
INSIDES = ("Traceback", "/somewhere", ".py", "Error(", "jax", "distaff.serving")


def sampling(**fields: Any) -> generation_pb2.GenerateRequest:
    return request(sampling=fields)


BAD: dict[str, tuple[generation_pb2.GenerateRequest, str]] = {
    "no prompt": (generation_pb2.GenerateRequest(), "prompt"),
    "empty text": (request(""), "prompt"),
    "no tokens": (request(token_ids={"ids": []}), "prompt"),
    "too long a text": (request("x" * 200_000), "prompt"),
    "three million tokens": (request(token_ids={"ids": [5] * 3_000_000}), "prompt"),
    "a token beyond the vocabulary": (request(token_ids={"ids": [1, 100_000]}), "prompt"),
    "a negative token": (request(token_ids={"ids": [-1]}), "prompt"),
    "no messages": (request(chat={}), "prompt"),
    "a message of nobody": (request(chat={"messages": [{"content": "a"}]}), "chat.messages[0].role"),
    "tools that are no JSON": (request(chat={"messages": [{"role": "user"}], "tools_json": "[" * 10_000}),
                               "chat.tools_json"),
    "variables that are no object": (request(chat={"template_variables_json": "[1]"}), "chat.template_variables_json"),
    "a million choices": (sampling(n=10**6), "n"),
    "a hundred thousand stop texts": (sampling(stop=[str(number) for number in range(100_000)]), "stop"),
    "a stop text of a megabyte": (sampling(stop=["x" * 2**20]), "stop"),
    "an empty stop text": (sampling(stop=[""]), "stop"),
    "log-probabilities of everything": (sampling(logprobs=101), "logprobs"),
    "no token to draw": (sampling(allowed_token_ids=generation_pb2.TokenIds()), "allowed_token_ids"),
    "a bias without end": (sampling(logit_bias={1: math.inf}), "logit_bias"),
    "a priority beyond all": (request(priority=1000), "priority"),
    "a long id": (request(request_id="x" * 1000), "id"),
    "a negative chunk": (request(output={"chunk_tokens": -1}), "output.chunk_tokens"),
}  # fmt: skip
for _name in ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty"):
    for _value in (math.nan, math.inf, -math.inf, -1e30, 1e30):
        BAD[f"{_name} {_value}"] = (sampling(**{_name: _value}), _name)
for _name in ("max_tokens", "min_tokens", "top_k", "n", "logprobs", "prompt_logprobs"):
    BAD[f"{_name} -5"] = (sampling(**{_name: -5}), _name)
for _name in ("queue_timeout_seconds", "total_timeout_seconds"):
    for _value in (math.nan, math.inf, -1.0):
        _limit: dict[str, Any] = {_name: _value}
        BAD[f"{_name} {_value}"] = (request(**_limit), _name)


def test_bad_values_are_refused_by_name_quickly_and_nothing_stays() -> None:
    async def check() -> None:
        async with native() as reached:
            for name, (bad, field) in BAD.items():
                started = time.perf_counter()
                try:
                    ended = await refusal(reached.inference.GenerateUnary(bad))
                except AssertionError as error:
                    raise AssertionError(name) from error
                took = time.perf_counter() - started
                assert (ended.code, ended.field) == ("INVALID_ARGUMENT", field), f"{name}: {ended}"
                assert not any(word in ended.message for word in INSIDES), f"{name}: {ended.message}"
                assert len(ended.message) < 1100, name
                assert took < 2.0, f"{name} took {took:.2f} s"
            nul = await reached.inference.GenerateUnary(request("a\x00b", 2))
            assert list(nul.choices[0].token_ids) == reached.served.answer("a\x00b", 2)

    run(check())


def test_the_same_is_refused_of_the_other_methods() -> None:
    async def check() -> None:
        async with native(served_names=("fake",)) as reached:
            refusals = [
                (reached.inference.Score(pb.ScoreRequest(text="")), "INVALID_ARGUMENT", "prompt"),
                (reached.inference.Score(pb.ScoreRequest(text="a", num_top=10**6)),
                 "INVALID_ARGUMENT", "prompt_logprobs"),
                (reached.inference.Embed(pb.EmbedRequest(text="a", pooling=7)), "INVALID_ARGUMENT", "pooling"),  # pyright: ignore[reportArgumentType]
                (reached.inference.Generate(request(model="other")), "NOT_FOUND", "model"),
                (reached.models.GetModel(models_pb2.GetModelRequest(name="other")), "NOT_FOUND", "model"),
                (reached.tokenization.Tokenize(tokenization_pb2.TokenizeRequest(model="other")), "NOT_FOUND", "model"),
                (reached.tokenization.Detokenize(tokenization_pb2.DetokenizeRequest(token_ids=[10**6])),
                 "INVALID_ARGUMENT", "token_ids"),
                (reached.tokenization.ApplyChatTemplate(tokenization_pb2.ApplyChatTemplateRequest()),
                 "INVALID_ARGUMENT", "prompt"),
            ]  # fmt: skip
            for call, code, field in refusals:
                ended = await refusal(call)
                assert (ended.code, ended.field) == (code, field), ended

    run(check())


async def raw(reached: Native, method: str, message: bytes) -> Any:
    """A unary call whose message is these bytes."""
    return await reached.channel.unary_unary(method)(message)


def test_malformed_messages_are_invalid_arguments() -> None:
    async def check() -> None:
        async with native() as reached:
            not_utf8 = b"\x1a\x02\xff\xfe"  # text: two bytes that are no UTF-8
            for data in (b"\xff" * 20, not_utf8, b"\x08", b"\x0a\xff\xff\xff\xff\x0f"):
                others = ("/inference.GRPCInferenceService/ModelInfer", "/distaff.v1.Models/GetModel")
                for method in (UNARY,) if data == not_utf8 else (UNARY, *others):
                    ended = await refusal(raw(reached, method, data))
                    assert (ended.code, ended.field) == ("INVALID_ARGUMENT", "message"), (method, data, ended)
                    assert not any(word in ended.message for word in INSIDES), ended.message
            unknown_field = b"\xfa\x3e\x01a" + request("abc", 3).SerializeToString()
            answer = generation_pb2.GenerateResult.FromString(await raw(reached, UNARY, unknown_field))
            assert list(answer.choices[0].token_ids) == reached.served.answer("abc", 3)
            assert (await refusal(raw(reached, "/distaff.v1.Inference/Nothing", b""))).code == "UNIMPLEMENTED"
            port = reached.server.port
            for sent in (
                raw_http2.call(1, UNARY, b"", **{"content-type": "text/plain"}),
                raw_http2.call(1, UNARY, b"a" * 10)[:-4],
                b"GET / HTTP/1.1\r\n\r\n",
            ):
                with raw_http2.connect(port) as sock:
                    sock.sendall(raw_http2.settings() + sent)
                    await asyncio.to_thread(raw_http2.read_frames, sock, 0.1)
            await reached.inference.GenerateUnary(request("abc", 3))

    run(check())


def test_frames_and_metadata_beyond_their_limits_are_refused() -> None:
    async def check() -> None:
        settings = RpcSettings(port=0, max_message_bytes=100_000)
        async with native(settings=settings) as reached:
            assert (await refusal(reached.inference.GenerateUnary(request("x" * 200_000)))).code == "RESOURCE_EXHAUSTED"
            for size, code in ((8, None), (64, "RESOURCE_EXHAUSTED"), (1024, "RESOURCE_EXHAUSTED")):
                metadata = (("big", "x" * size * 1000),)
                call = reached.inference.GenerateUnary(request(tokens=1), metadata=metadata)
                if code is None:
                    await call
                else:
                    assert (await refusal(call)).code == code
            many = tuple((f"key-{number}", "x") for number in range(1000))
            assert (await refusal(reached.inference.GenerateUnary(request(), metadata=many))).code == (
                "RESOURCE_EXHAUSTED"
            )
            await reached.inference.GenerateUnary(request(tokens=1))

    run(check())


TOKENS = """
- token: the-secret-of-team-a
  tenant: a
  max_streams: 1
- token: the-secret-of-team-b
  tenant: b
- token: the-secret-of-the-operator
  tenant: ops
  admin: true
"""


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


def test_tokens_say_who_calls(tmp_path: Path) -> None:
    path = tmp_path / "tokens.yaml"
    path.write_text(TOKENS)

    async def check() -> None:
        files: list[TokenFile] = []

        def server(served: Any) -> dict[str, Any]:
            files.append(TokenFile(path, on_limits=served.front.limit_tenants))
            return {"authenticate": files[0].authenticate}

        async with native(server=server) as reached:
            served, generate = reached.served, reached.inference.GenerateUnary
            a, b, ops = (bearer(f"the-secret-of-{who}") for who in ("team-a", "team-b", "the-operator"))
            for wrong in (None, bearer("x"), bearer(""), (("authorization", "Basic abc"),), a + b):
                ended = await refusal(generate(request(), metadata=wrong))
                assert ended.code == "UNAUTHENTICATED" and "secret" not in ended.message
            assert reached.server.guard.refused == 5
            served.programs.gate.clear()
            first = reached.inference.Generate(request(request_id="one"), metadata=a)
            await until(lambda: served.front.load().streams == 1)
            ended = await refusal(generate(request(), metadata=a))
            assert ended.code == "RESOURCE_EXHAUSTED" and ended.retry_after is not None and ended.retry_after > 0
            same = reached.inference.Generate(
                request(request_id="one"), metadata=b
            )  # another's name is no business of a
            await until(lambda: served.front.load().streams == 2)
            cancelled = await reached.inference.Cancel(pb.CancelRequest(request_ids=["one"]), metadata=ops)
            assert cancelled.states[0] == pb.CANCEL_STATE_UNKNOWN
            served.programs.gate.set()
            for call in (first, same):
                assert len([event async for event in call]) == 10
            info = admin_pb2.GetServerInfoRequest()
            assert (await refusal(reached.admin.GetServerInfo(info, metadata=a))).code == "PERMISSION_DENIED"
            assert (await reached.admin.GetServerInfo(info, metadata=ops)).state == admin_pb2.SERVER_STATE_READY
            health: Any = health_pb2_grpc.HealthStub(reached.channel)
            await health.Check(health_pb2.HealthCheckRequest())  # probes have no token
            path.write_text(TOKENS.replace("the-secret-of-team-a", "another-secret-of-team-a"))
            os.utime(path, (1, 1))
            files[0]._looked -= 10
            assert (await refusal(generate(request(), metadata=a))).code == "UNAUTHENTICATED"
            await generate(request(tokens=1), metadata=bearer("another-secret-of-team-a"))

    run(check())


def test_the_admin_service_is_closed_unless_opened() -> None:
    async def check() -> None:
        async with native() as reached:
            ended = await refusal(reached.admin.GetLoad(admin_pb2.GetLoadRequest()))
            assert ended.code == "PERMISSION_DENIED" and "--admin" in ended.message
        drained: list[float | None] = []
        async with native(server=lambda served: {"open_admin": True, "drain": drained.append}) as reached:
            await reached.inference.GenerateUnary(request("x" * 40))
            load = await reached.admin.GetLoad(admin_pb2.GetLoadRequest())
            assert load.running == 0 and load.max_batch == 8 and load.pages_total == 256
            assert (await reached.admin.FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest())).pages_freed >= 10
            assert (await reached.admin.FlushPrefixCache(admin_pb2.FlushPrefixCacheRequest())).pages_freed == 0
            assert (await refusal(reached.admin.StartProfile(admin_pb2.StartProfileRequest()))).code == (
                "FAILED_PRECONDITION"
            )
            await reached.admin.Drain(admin_pb2.DrainRequest())
            await reached.admin.Drain(admin_pb2.DrainRequest(grace_seconds=3))
            assert drained == [None, 3.0]

    run(check())


def test_health_follows_the_state_of_the_front() -> None:
    async def check() -> None:
        async with native() as reached:
            health: Any = health_pb2_grpc.HealthStub(reached.channel)
            serving, not_serving, unknown = 1, 2, 3
            names = ["", "distaff.v1.Inference", "vllm.grpc.engine.VllmEngine", "inference.GRPCInferenceService"]
            for name in names:
                assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == serving
            assert (await refusal(health.Check(health_pb2.HealthCheckRequest(service="nothing")))).code == "NOT_FOUND"
            watches = [health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in names]
            strange = health.Watch(health_pb2.HealthCheckRequest(service="nothing"))
            assert [(await watch.read()).status for watch in watches] == [serving] * 4
            assert (await strange.read()).status == unknown
            reached.served.front._enter(State.FAILED)
            assert [(await watch.read()).status for watch in watches] == [not_serving] * 4
            reached.served.front._enter(State.READY)
            assert [(await watch.read()).status for watch in watches] == [serving] * 4
            watches[0].cancel()
            reached.server.health.leave()
            assert [(await watch.read()).status for watch in watches[1:]] == [not_serving] * 3
            assert [await watch.read() for watch in watches[1:]] == [EOF] * 3

    run(check())


def test_draining_refuses_with_a_time_to_come_back() -> None:
    async def check() -> None:
        async with native() as reached:
            reached.served.programs.step_seconds = 0.005
            call = reached.inference.Generate(request(tokens=120))
            await until(lambda: reached.served.front.load().running == 1)
            draining = asyncio.create_task(reached.served.front.drain(0.1))
            await asyncio.sleep(0)
            ended = await refusal(reached.inference.GenerateUnary(request()))
            assert ended.code == "UNAVAILABLE" and ended.retry_after is not None and ended.retry_after > 0
            await draining
            events: list[Any] = []
            while not events or events[-1].WhichOneof("event") != "finished":
                events.append(await call.read())
            assert events[-1].finished.reason == generation_pb2.FINISH_REASON_DRAINED
            assert events[-1].finished.usage.completion_tokens > 0
            assert (await refusal(call)).code == "ABORTED"

    run(check())


def test_reflection_tells_every_service() -> None:
    asked = reflection_pb2.ServerReflectionRequest(list_services="")

    async def check() -> None:
        async with native() as reached:
            channel: Any = reached.channel
            stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([asked]))
            answers = [answer async for answer in call]
            names = {service.name for answer in answers for service in answer.list_services_response.service}
            assert {"distaff.v1.Inference", "distaff.v1.Admin", "jetstream_proto.Orchestrator"} <= names
        async with native(settings=RpcSettings(port=0, reflection=False)) as reached:
            channel = reached.channel
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            call = stub.ServerReflectionInfo(iter([asked]))
            assert (await refusal(call)).code == "UNIMPLEMENTED"

    run(check())


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root, a server's certificate for localhost, and a client's, by openssl."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
        except FileNotFoundError:
            pytest.skip("openssl is not installed")

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=test root")  # fmt: skip
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj",
                f"/CN={name}")  # fmt: skip
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
                f"{name}.pem", "-days", "2", "-extfile", "names")  # fmt: skip
    return folder


def test_tls_and_certificates_of_clients(certificates: Path) -> None:
    def read(name: str) -> bytes:
        return (certificates / name).read_bytes()

    files = TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")
    known = grpc.ssl_channel_credentials(read("ca.pem"), read("client.key"), read("client.pem"))
    unknown = grpc.ssl_channel_credentials(read("ca.pem"))

    async def check() -> None:
        named = [("grpc.ssl_target_name_override", "localhost")]
        async with native(server=lambda served: {"tls": files}, credentials=known, channel_options=named) as reached:
            answer = await reached.inference.GenerateUnary(request(tokens=3))
            assert list(answer.choices[0].token_ids) == reached.served.answer("hello", 3)
            for credentials in (unknown, None):
                channel = (
                    grpc.aio.insecure_channel(reached.target)
                    if credentials is None
                    else grpc.aio.secure_channel(reached.target, credentials, options=named)
                )
                async with channel:
                    ended = await refusal(channel.unary_unary(UNARY)(b"", timeout=3))
                    assert ended.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")

    run(check())


def test_quiet_clients_may_ping_and_floods_end_their_connection() -> None:
    """The argument that limits pings really does, and bears those of quiet clients."""
    ping = raw_http2.frame(raw_http2.PING, 0, 0, b"12345678")

    def pinged(port: int, count: int, pause: float) -> list[int]:
        with raw_http2.connect(port) as sock:
            sock.sendall(raw_http2.settings())
            for _ in range(count):
                try:
                    sock.sendall(ping)
                except ConnectionError:
                    break
                time.sleep(pause)
            return [kind for kind, *_ in raw_http2.read_frames(sock, 0.1)]

    async def check() -> None:
        settings = RpcSettings(port=0, client_ping_seconds=0.05)
        async with native(settings=settings) as reached:
            patient = await asyncio.to_thread(pinged, reached.server.port, 12, 0.08)
            assert raw_http2.GOAWAY not in patient and patient.count(raw_http2.PING) >= 12
            assert raw_http2.GOAWAY in await asyncio.to_thread(pinged, reached.server.port, 200, 0.001)
            await reached.inference.GenerateUnary(request(tokens=2))

    run(check())


def test_connections_that_never_become_one_are_closed() -> None:
    def closed(port: int, sent: bytes) -> bool:
        with socket.create_connection(("127.0.0.1", port), timeout=4) as sock:
            sock.sendall(sent)
            try:
                while sock.recv(4096):
                    pass
            except ConnectionError:
                pass
            except TimeoutError:
                return False
            return True

    async def check() -> None:
        async with native(settings=RpcSettings(port=0, handshake_seconds=0.3, idle_seconds=1.0)) as reached:
            port = reached.server.port
            sent = (b"", raw_http2.PREFACE, raw_http2.PREFACE + raw_http2.settings(), b"\x16\x03\x01garbage")
            assert await asyncio.gather(*(asyncio.to_thread(closed, port, each) for each in sent)) == [True] * 4
            await reached.inference.GenerateUnary(request(tokens=2))

    run(check())


def test_calls_beyond_the_limit_are_refused_and_probes_are_not() -> None:
    async def check() -> None:
        async with native(settings=RpcSettings(port=0, max_rpcs=2)) as reached:
            reached.served.programs.gate.clear()
            calls = [reached.inference.Generate(request(tokens=2)) for _ in range(2)]
            await until(lambda: reached.server.guard.running == 2)
            ended = await refusal(reached.models.ListModels(models_pb2.ListModelsRequest()))
            assert ended.code == "RESOURCE_EXHAUSTED" and ended.retry_after is not None and ended.retry_after > 0
            health: Any = health_pb2_grpc.HealthStub(reached.channel)
            assert (await health.Check(health_pb2.HealthCheckRequest())).status == 1
            reached.served.programs.gate.set()
            for call in calls:
                assert len([event async for event in call]) == 4
            assert reached.server.guard.running == 0

    run(check())


def test_a_full_queue_says_when_to_come_back() -> None:
    async def check() -> None:
        async with native(limits=FrontLimits(max_queued=1), slots=1) as reached:
            reached.served.programs.step_seconds = 0.005
            running = reached.inference.Generate(request(tokens=100))
            await until(lambda: reached.served.front.load().running == 1)
            waiting = reached.inference.Generate(request(tokens=2))
            await until(lambda: reached.served.front.load().waiting == 1)
            ended = await refusal(reached.inference.GenerateUnary(request()))
            assert ended.code == "RESOURCE_EXHAUSTED" and "waiting calls" in ended.message
            assert ended.retry_after is not None and ended.retry_after > 0
            running.cancel()
            assert len([event async for event in waiting]) == 4

    run(check())
