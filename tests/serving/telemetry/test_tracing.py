"""Spans: what the conventions ask for, below the caller's span, at the times that the engine took; and none unasked."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Coroutine, Sequence
from concurrent import futures
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from distaff.backends.errors import UsageError
from distaff.serving.front import Call, Chat
from distaff.serving.telemetry.tracing import Tracing, exporters_wanted, tracing_from_environment
from distaff.serving.types import Kind, SamplingParams

from ..served import serving

CONVENTIONS = {name for key, name in vars(gen_ai_attributes).items() if key.startswith("GEN_AI_")}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 20))


def collected(*calls: Call, failing: bool = False, sampled: bool = True) -> Sequence[ReadableSpan]:
    """The spans of these calls, one after the other."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)

    async def check() -> None:
        async with serving() as served:
            tracing.watch(served.front)
            served.programs.step_seconds = 0.005
            served.programs.failure = RuntimeError("broken") if failing else None
            for call in calls:
                stream = await served.front.open(call)
                await asyncio.gather(stream.result(), return_exceptions=True)
                await served.settle()

    run(check())
    tracing.close()
    return exporter.get_finished_spans()


def test_a_request_and_its_parts_stand_below_the_callers_span() -> None:
    call = Call("hello", SamplingParams(max_tokens=5, seed=3), id="mine", traceparent=f"00-{TRACE}-{PARENT}-01")
    queue, prefill, decode, request = collected(call)
    assert [span.name for span in (queue, prefill, decode, request)] == [
        *("queue", "prefill", "decode"),
        "text_completion fake",
    ]
    assert request.parent is not None and f"{request.parent.span_id:016x}" == PARENT
    assert request.context is not None and f"{request.context.trace_id:032x}" == TRACE
    assert request.kind.name == "SERVER"
    attributes: dict[str, Any] = dict(request.attributes or {})
    for name, value in {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "distaff",
        "gen_ai.request.model": "fake",
        "gen_ai.response.model": "fake",
        "gen_ai.response.id": "mine",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.seed": 3,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.response.finish_reasons": ("length",),
    }.items():
        assert attributes[name] == value, name
    assert {name for name in attributes if name.startswith("gen_ai.")} <= CONVENTIONS
    assert 0 < attributes["distaff.time_in_queue"] < attributes["distaff.time_to_first_token"]
    assert "hello" not in str(attributes), "no prompt"
    # Each part begins where the one before ends. The five steps took 5 ms each, none of which is waiting; a step begins
    # before the token of the one before is read, so of five the decode part has three or four.
    parts = [(span.start_time or 0, span.end_time or 0) for span in (queue, prefill, decode)]
    assert parts[0][0] == request.start_time and parts[0][1] == parts[1][0] and parts[1][1] == parts[2][0]
    assert parts[2][1] <= (request.end_time or 0)
    assert parts[2][1] - parts[1][0] >= 5 * 5e6 and parts[1][1] - parts[1][0] >= 5e6
    assert parts[2][1] - parts[2][0] >= 3 * 5e6
    assert parts[1][1] - parts[0][0] == pytest.approx(attributes["distaff.time_to_first_token"] * 1e9, abs=1e3)
    assert all(
        span.parent is not None and span.parent.span_id == request.context.span_id for span in (queue, prefill, decode)
    )


def test_each_answer_has_its_reason() -> None:
    *_, request = collected(Call("a", SamplingParams(max_tokens=2, n=2)))
    assert dict(request.attributes or {})["gen_ai.response.finish_reasons"] == ("length", "length")


def test_operations_have_their_names() -> None:
    chat = Chat(({"role": "user", "content": "hi"},))
    few = SamplingParams(max_tokens=1)
    spans = collected(Call(chat, few), Call("a b", kind=Kind.SCORE), Call("a b", kind=Kind.EMBED))
    assert [span.name for span in spans if span.parent is None] == ["chat fake", "score fake", "embeddings fake"]


def test_a_failure_has_its_type() -> None:
    spans = collected(Call("a"), failing=True)
    request = spans[-1]
    assert dict(request.attributes or {})["error.type"] == "DeviceError"
    assert request.status.status_code.name == "ERROR" and "broken" not in str(request.status.description)


def test_who_is_not_sampled_makes_no_span() -> None:
    assert collected(Call("a", SamplingParams(max_tokens=1), traceparent=f"00-{TRACE}-{PARENT}-00")) == ()


@pytest.mark.parametrize(
    ("environ", "names"),
    [
        ({}, []),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x:4317"}, ["otlp"]),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x:4317", "OTEL_TRACES_EXPORTER": "none"}, []),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, ["console", "otlp"]),
        ({"OTEL_TRACES_EXPORTER": "console", "OTEL_SDK_DISABLED": "true"}, []),
    ],
)
def test_the_environment_asks_for_exporters(environ: dict[str, str], names: list[str]) -> None:
    assert exporters_wanted(environ) == names
    if not names:
        assert tracing_from_environment(environ) is None


def test_an_exporter_that_is_not_installed_is_named() -> None:
    with pytest.raises(UsageError, match="zipkin.*OTEL_TRACES_EXPORTER"):
        tracing_from_environment({"OTEL_TRACES_EXPORTER": "zipkin"})


def test_spans_reach_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="needs the extra telemetry")
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages

    received: list[Any] = []

    class Collector(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda request, context: received.append(request) or messages.ExportTraceServiceResponse(),
                messages.ExportTraceServiceRequest.FromString,
                messages.ExportTraceServiceResponse.SerializeToString,
            )

    server = grpc.server(futures.ThreadPoolExecutor(1), handlers=[Collector()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_SERVICE_NAME": "mine"}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # the SDK reads them itself
    tracing = tracing_from_environment(environ)
    assert tracing is not None

    async def check() -> None:
        async with serving() as served:
            tracing.watch(served.front)
            await (await served.front.open(Call("a", SamplingParams(max_tokens=2)))).result()
            await served.settle()

    run(check())
    tracing.close()
    server.stop(None)
    (resource,) = [spans for request in received for spans in request.resource_spans]
    assert any(
        pair.key == "service.name" and pair.value.string_value == "mine" for pair in resource.resource.attributes
    )
    assert {span.name for scope in resource.scope_spans for span in scope.spans} >= {"text_completion fake", "prefill"}


@pytest.mark.slow
def test_nothing_of_opentelemetry_is_imported_unasked() -> None:
    program = (
        "import sys; import distaff.serving.http.app, distaff.serving.telemetry.logs;"
        "import distaff.serving.telemetry.tracing as t;"
        "assert t.tracing_from_environment({}) is None;"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
