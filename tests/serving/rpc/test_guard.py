"""What stands before the services: malformed messages, tokens, and limits on calls."""

import asyncio
import os
from pathlib import Path
from typing import Any

from grpc_health.v1 import health_pb2, health_pb2_grpc

from distaff.serving.rpc.protos.distaff.v1 import admin_pb2, generation_pb2, models_pb2
from distaff.serving.rpc.protos.distaff.v1 import inference_pb2 as pb
from distaff.serving.rpc.settings import RpcSettings
from distaff.serving.rpc.tokens import TokenFile

from .. import http2
from .compat import run, until
from .native import INSIDES, Native, native, refusal, request

UNARY = "/distaff.v1.Inference/GenerateUnary"


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
                http2.unary(UNARY, b"", content_type="text/plain"),
                http2.unary(UNARY, b"a" * 10)[:-4],
                http2.unary(UNARY, b"a" * 10, compressed=1),
                b"GET / HTTP/1.1\r\n\r\n",
            ):
                with http2.Connection(port) as connection:
                    connection.send(sent)
                    await asyncio.to_thread(list, connection.frames(0.1))
            await reached.inference.GenerateUnary(request("abc", 3))

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


def test_a_tenant_has_half_of_the_calls(tmp_path: Path) -> None:
    """Those that wait for readers who never read again are among them; another tenant's are not touched."""
    path = tmp_path / "tokens.yaml"
    path.write_text(TOKENS)
    settings = RpcSettings(port=0, max_rpcs=4)
    tokens = TokenFile(path)

    async def check() -> None:
        async with native(settings=settings, server=lambda _: {"authenticate": tokens.authenticate}) as reached:
            b, ops = bearer("the-secret-of-team-b"), bearer("the-secret-of-the-operator")
            reached.served.programs.gate.clear()
            calls = [reached.inference.Generate(request(tokens=2), metadata=b) for _ in range(2)]
            await until(lambda: reached.server.guard.running == 2)
            ended = await refusal(reached.models.ListModels(models_pb2.ListModelsRequest(), metadata=b))
            assert ended.code == "RESOURCE_EXHAUSTED" and "tenant" in ended.message and ended.retry_after
            await reached.models.ListModels(models_pb2.ListModelsRequest(), metadata=ops)
            reached.served.programs.gate.set()
            for call in calls:
                assert len([event async for event in call]) == 4
            await reached.models.ListModels(models_pb2.ListModelsRequest(), metadata=b)

    run(check())
