"""JetStream's own stubs against a server, as its benchmark calls it. Prints what it saw as JSON.

python decode.py TARGET MAX_TOKENS TOKEN_ID...
"""

import json
import sys

import grpc
from jetstream.core.proto import jetstream_pb2, jetstream_pb2_grpc


def main() -> None:
    target, max_tokens, token_ids = sys.argv[1], int(sys.argv[2]), [int(token) for token in sys.argv[3:]]
    stub = jetstream_pb2_grpc.OrchestratorStub(grpc.insecure_channel(target))
    request = jetstream_pb2.DecodeRequest(
        session_cache="",
        token_content=jetstream_pb2.DecodeRequest.TokenContent(token_ids=token_ids),
        priority=0,
        max_tokens=max_tokens,
    )
    samples = [message.stream_content.samples[0] for message in stub.Decode(request)]
    live = stub.HealthCheck(jetstream_pb2.HealthCheckRequest()).is_live
    print(json.dumps({"live": live, "messages": [list(sample.token_ids) for sample in samples]}))


main()
