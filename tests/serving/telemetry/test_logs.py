"""Log lines: JSON, one for each call, without the prompt unless asked."""

import asyncio
import io
import json
import logging
from typing import Any

import pytest

from distaff.serving.front import Call, Chat
from distaff.serving.telemetry.logs import RequestLog, configure_logs, remove_logs
from distaff.serving.types import SamplingParams

from ..served import serving

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
CALLS = (
    Call("secret", SamplingParams(max_tokens=3), id="one", tenant="t", user="u", traceparent=TRACEPARENT),
    Call(Chat(({"role": "user", "content": "secret"},)), SamplingParams(max_tokens=1), id="two"),
    Call((1, 2, 3), id="three"),
)


def lines(prompts: bool, level: str = "info") -> list[dict[str, Any]]:
    """What is logged while these calls are served; the last one fails."""
    stream = io.StringIO()
    handler = configure_logs(level, stream)
    try:

        async def check() -> None:
            async with serving() as served:
                RequestLog(served.front, prompts=prompts)
                for call in CALLS:
                    served.programs.failure = RuntimeError("broken") if call.id == "three" else None
                    await asyncio.gather((await served.front.open(call)).result(), return_exceptions=True)
                    await served.settle()

        asyncio.run(asyncio.wait_for(check(), 20))
        logging.getLogger("distaff.elsewhere").warning("odd %s", "thing")
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("uvicorn.error").exception("broken")
        logging.getLogger("uvicorn.access").info("not told")
    finally:
        remove_logs(handler)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize("prompts", [False, True])
def test_each_call_has_a_line(prompts: bool) -> None:
    told = lines(prompts)
    requests = [line for line in told if line["message"] == "request"]
    assert [line["request_id"] for line in requests] == ["one", "two", "three"]
    one, two, three = requests
    assert (one["outcome"], one["prompt_tokens"], one["completion_tokens"]) == ("length", 6, 3)
    assert (one["tenant"], one["user"], one["trace_id"]) == ("t", "u", "4bf92f3577b34da6a3ce929d0e0e4736")
    assert one["operation"] == "text_completion" and two["operation"] == "chat"
    assert 0 < one["ttft_ms"] <= one["total_ms"] and one["level"] == "info" and one["time"].endswith("+00:00")
    assert three["outcome"] == "error" and three["error_type"] == "DeviceError"
    assert ("secret" in json.dumps(told)) is prompts
    if prompts:
        assert one["prompt"] == "secret" and two["prompt"][0]["content"] == "secret" and three["prompt"] == [1, 2, 3]
    assert {"level": "warning", "message": "odd thing"}.items() <= told[-2].items()
    assert told[-1]["logger"] == "uvicorn.error" and "ValueError: why" in told[-1]["error"]


def test_a_level_leaves_lines_out_and_is_undone() -> None:
    assert [line["message"] for line in lines(False, "error")] == ["broken"]
    assert logging.getLogger("distaff").handlers == [] and logging.getLogger("distaff").propagate
