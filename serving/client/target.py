"""Where a server is, and how to reach it: addresses, TLS, tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from ...backends.errors import InvalidParameterError, UsageError

MAX_MESSAGE_BYTES = 256 * 2**20  # of an answer: log-probabilities of a long prompt are large
_LOOPBACK = ("127.", "localhost", "[::1]", "unix:")


@dataclass(frozen=True)
class Target:
    """A server's address and what it asks of those who call.

    Attributes:
        address: HOST:PORT or unix:PATH; in front of it grpcs:// asks for TLS, grpc:// for none.
        token: sent with every call, as "authorization: Bearer TOKEN".
        ca: a file of the certificates to trust (PEM) instead of the system's; asks for TLS.
        certificate, key: files with this client's own certificate and key (PEM), for mutual TLS.
        server_name: the name that the server's certificate bears, where it is not the host's.

    Raises:
        InvalidParameterError, UsageError: no address, or files that cannot be read or used together.
    """

    address: str
    token: str | None = field(default=None, repr=False)
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = field(default=None, repr=False)
    server_name: str | None = None

    def __post_init__(self) -> None:
        host, _, port = self.place.rpartition(":")
        if not self.place.startswith("unix:") and not (host and port.isdigit() and int(port) < 2**16):
            raise InvalidParameterError("target", self.address, "HOST:PORT, such as 127.0.0.1:50051, or unix:PATH")
        if (self.certificate is None) != (self.key is None):
            raise UsageError("a client certificate and its key go together: give both or none")
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token):
            raise UsageError("the token is empty or holds characters that no header can; expected printable ASCII")

    @property
    def place(self) -> str:
        """The address alone."""
        scheme, separator, rest = self.address.partition("://")
        if not separator:
            return self.address
        if scheme not in ("grpc", "grpcs"):
            raise InvalidParameterError("target", self.address, "grpc://HOST:PORT or grpcs://HOST:PORT")
        return rest

    @property
    def secure(self) -> bool:
        """Whether TLS is asked for."""
        return self.address.startswith("grpcs://") or self.ca is not None or self.certificate is not None

    @property
    def options(self) -> list[tuple[str, Any]]:
        """What channels to it are made with. Pings keep a connection alive that carries a call, and none that is idle:
        servers count those as abuse."""
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        if self.place.startswith(_LOOPBACK):
            options.append(("grpc.enable_http_proxy", 0))
        if self.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self.server_name))
        return options

    @property
    def metadata(self) -> Sequence[tuple[str, str]]:
        """What is sent with every call."""
        return () if self.token is None else (("authorization", f"Bearer {self.token}"),)

    def credentials(self) -> grpc.ChannelCredentials:
        """For a secure channel."""
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.certificate))

    def channel(self) -> grpc.Channel:
        """A channel that blocks."""
        if self.secure:
            return grpc.secure_channel(self.place, self.credentials(), self.options)
        return grpc.insecure_channel(self.place, self.options)

    def aio_channel(self, *more: tuple[str, Any]) -> grpc.aio.Channel:
        """A channel for the running event loop, with further options."""
        options = [*self.options, *more]
        if self.secure:
            return grpc.aio.secure_channel(self.place, self.credentials(), options)
        return grpc.aio.insecure_channel(self.place, options)


def _read(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a PEM file") from error
