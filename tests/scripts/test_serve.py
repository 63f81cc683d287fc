"""`distaff serve`: what its command line refuses, and its one line over a real model."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "smollm2_instruct.json"
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
@pytest.mark.any_backend
def test_a_real_model_is_served_and_drained(smollm2: Path, backend_option: tuple[str, ...]) -> None:
    """Tokens through the server are the oracle's; SIGTERM ends it with 0. Its programs are those of the servers that
    other tests start, so that one compiles for all."""
    from distaff.models.checkpoints import open_checkpoint
    from distaff.serving.rpc.protos.distaff.v1 import generation_pb2, inference_pb2_grpc

    row = next(row for row in json.loads(GOLDEN.read_text())["rows"] if "prompt" in row)
    expected = row["token_ids"][:16]
    assert min(row["gaps"][:16]) > 0.02

    async def check() -> None:
        command = [sys.executable, "-c", PROGRAM, "serve", "-m", str(smollm2), "--port", "0", "--http-port", "0"]
        command += backend_option
        environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}  # one device
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, env=environment)
        try:
            assert process.stdout is not None
            line = (await process.stdout.readline()).decode()
            assert line.startswith("distaff serve: grpc 127.0.0.1:") and "http 127.0.0.1:" in line, line
            async with grpc.aio.insecure_channel(line.split()[3].rstrip(",")) as channel:
                stub: Any = inference_pb2_grpc.InferenceStub(channel)
                asked = generation_pb2.GenerateRequest(
                    text=row["prompt"], sampling={"max_tokens": 16, "temperature": 0.0}
                )
                events = [event async for event in stub.Generate(asked)]
            tokens = [token for event in events for token in event.delta.token_ids]
            assert tokens == expected
            text = open_checkpoint(smollm2).tokenizer().decode(expected)
            assert "".join(event.delta.text for event in events) == text
            process.send_signal(signal.SIGTERM)
            assert await asyncio.wait_for(process.wait(), 60) == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    asyncio.run(asyncio.wait_for(check(), 240))
