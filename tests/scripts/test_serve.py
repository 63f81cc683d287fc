"""`distaff serve`: what its command line refuses, and its one line over a real model."""

import asyncio
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

PROGRAM = "from distaff.scripts.main import main; main()"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--tls-cert", "a.pem"), "--tls-cert and --tls-key belong together"),
        (("--tls-client-ca", "a.pem"), "--tls-client-ca needs --tls-cert"),
        (("--http-tls",), "--http-tls needs --tls-cert and --tls-key"),
        (("--admin", "--token-file", "t.yaml"), "--admin is for servers without --token-file"),
        (("--log-level", "loud"), "--log-level is 'loud', expected debug, info, warning or error"),
        (("--port", "70000"), "65535"),
    ],
)
def test_wrong_use_is_explained(
    distaff: Callable[..., int], capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    assert distaff("serve", "-m", "m", *options) == 2
    assert says in capsys.readouterr().err


def test_help_has_sections(distaff: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert distaff("serve", "--help") == 0
    shown = capsys.readouterr().out
    titles = [line[:-1] for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles == ["Options", "Where it listens", "Who may call", "How much it takes", "Its life", "How it runs"]


@pytest.mark.slow
def test_a_real_model_is_served_and_drained(smollm2: Path) -> None:
    """Tokens through the server are the engine's; SIGTERM ends it with 0."""
    from distaff.serving import LLM, SamplingParams
    from distaff.serving.rpc.protos.distaff.v1 import generation_pb2, inference_pb2_grpc

    greedy = SamplingParams(max_tokens=16, temperature=0)
    llm = LLM(smollm2, max_batch=4, context=512)
    expected = llm.generate("The capital of France is", greedy)
    llm.close()

    async def check() -> None:
        command = [sys.executable, "-c", PROGRAM, "serve", "-m", str(smollm2), "--port", "0", "--http-port", "0"]
        command += ["--max-batch", "4", "--context", "512"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert line.startswith("distaff serve: grpc 127.0.0.1:") and "http 127.0.0.1:" in line, line
            async with grpc.aio.insecure_channel(line.split()[3].rstrip(",")) as channel:
                stub: Any = inference_pb2_grpc.InferenceStub(channel)
                asked = generation_pb2.GenerateRequest(
                    text="The capital of France is", sampling={"max_tokens": 16, "temperature": 0.0}
                )
                events = [event async for event in stub.Generate(asked)]
            tokens = [token for event in events for token in event.delta.token_ids]
            assert tokens == list(expected.token_ids)
            assert "".join(event.delta.text for event in events) == expected.text
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    asyncio.run(asyncio.wait_for(check(), 240))
