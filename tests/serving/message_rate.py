"""How many messages of one token each the server sends a second, over the fake model, with h2load as the client.

    python -m tests.serving.message_rate [STREAMS [TOKENS [ROUNDS]]]

needs h2load (Debian's nghttp2-client) and an idle machine. Prints a line of JSON: messages a second in each round, of
STREAMS connections with a stream of TOKENS tokens each; the bytes that h2load counts show that none were sent together.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from distaff.serving.rpc.protos.distaff.v1 import generation_pb2

from . import http2

ROOT = Path(__file__).resolve().parents[2]
PATH = "/distaff.v1.Inference/Generate"


def measure(streams: int = 64, tokens: int = 1000, rounds: int = 3) -> dict[str, object]:
    """Runs a server, and h2load against it."""
    command = [sys.executable, "-m", "tests.serving.serve_fake", json.dumps({"quick": True})]
    with (
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process,
        tempfile.NamedTemporaryFile() as body,
    ):
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split()[1]
            sampling = generation_pb2.SamplingParams(max_tokens=tokens, seed=0)
            request = generation_pb2.GenerateRequest(text="abc", sampling=sampling)
            body.write(http2.message(request.SerializeToString()))
            body.flush()
            rates = [_round(port, body.name, streams, tokens) for _ in range(rounds)]
        finally:
            process.kill()
    return {"streams": streams, "tokens": tokens, "messages_per_second": [round(rate) for rate in rates]}


def _round(port: str, body: str, streams: int, tokens: int) -> float:
    command = ["h2load", "-n", str(streams), "-c", str(streams), "-m", "1", "-w", "30", "-W", "30", "-d", body]
    command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{PATH}"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds = re.search(r"finished in ([\d.]+)(m?s)", told)
    data = re.search(r"\((\d+)\) data", told)
    assert seconds and data and f"{streams} succeeded" in told, told
    delta = generation_pb2.GenerateEvent(delta=generation_pb2.Delta(text="a", token_ids=[65]))
    least = streams * tokens * len(http2.message(delta.SerializeToString()))
    assert int(data[1]) >= least, f"{data[1]} bytes, expected {least} of messages alone: {told}"
    return streams * tokens / (float(seconds[1]) * (1e-3 if seconds[2] == "ms" else 1))


if __name__ == "__main__":
    print(json.dumps(measure(*map(int, sys.argv[1:]))))
