"""TLS, and certificates of clients."""

from pathlib import Path

import grpc
import pytest

from distaff.serving.tls_files import TlsFiles

from ..certificates import make_certificates
from .compat import run
from .native import native, refusal, request

UNARY = "/distaff.v1.Inference/GenerateUnary"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificates(tmp_path_factory.mktemp("tls"))


def test_certificates_of_clients(certificates: Path) -> None:
    """No certificate, one that has expired, and no TLS at all come no farther than the handshake."""

    def shown(*names: str) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(*((certificates / name).read_bytes() for name in ("ca.pem", *names)))

    files = TlsFiles(certificates / "server.pem", certificates / "server.key", certificates / "ca.pem")

    async def check() -> None:
        named = [("grpc.ssl_target_name_override", "localhost")]
        known = shown("client.key", "client.pem")
        async with native(server=lambda served: {"tls": files}, credentials=known, channel_options=named) as reached:
            answer = await reached.inference.GenerateUnary(request(tokens=3))
            assert list(answer.choices[0].token_ids) == reached.served.answer("hello", 3)
            for credentials in (shown(), shown("expired.key", "expired.pem"), None):
                channel = (
                    grpc.aio.insecure_channel(reached.target)
                    if credentials is None
                    else grpc.aio.secure_channel(reached.target, credentials, options=named)
                )
                async with channel:
                    ended = await refusal(channel.unary_unary(UNARY)(b"", timeout=3))
                    assert ended.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
            await reached.inference.GenerateUnary(request(tokens=1))

    run(check())
