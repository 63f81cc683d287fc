"""How the gRPC server listens, and what its transport puts up with."""

from dataclasses import dataclass

_MAX_PENDING = 32_768

type Arguments = list[tuple[str, int]]


@dataclass(frozen=True)
class RpcSettings:
    """
    Attributes:
        host, port: where; port 0 takes a free one.
        reflection: whether clients may ask for the protocol.
        channelz: whether they may ask about connections.
        max_message_bytes: of a request.
        max_metadata_bytes: of the headers of a request, all together.
        max_streams_per_connection: at once.
        max_rpcs: at once, of all connections, health apart; those that wait for their readers included.
        keepalive_seconds: after so long without a sign of life a client is asked for one.
        keepalive_timeout_seconds: in which it must give it; otherwise it is gone, and so are its requests.
        client_ping_seconds: clients may ping this often, quiet ones too.
        idle_seconds: after which a connection without a request is closed.
        handshake_seconds: for a new connection to become one.
    """

    host: str = "127.0.0.1"
    port: int = 50051
    reflection: bool = True
    channelz: bool = False
    max_message_bytes: int = 32 * 2**20
    max_metadata_bytes: int = 16 * 2**10
    max_streams_per_connection: int = 2048
    max_rpcs: int = 8192
    keepalive_seconds: float = 30.0
    keepalive_timeout_seconds: float = 10.0
    client_ping_seconds: float = 5.0
    idle_seconds: float = 1800.0
    handshake_seconds: float = 20.0

    @property
    def address(self) -> str:
        """For gRPC; an IPv6 address needs its brackets."""
        host = f"[{self.host}]" if ":" in self.host and not self.host.startswith("[") else self.host
        return f"{host}:{self.port}"

    def arguments(self) -> Arguments:
        """Channel arguments, by the names that gRPC really looks at.

        The pings that a server bears are limited by `min_ping_interval_without_data_ms`; the similar key with
        `recv` in it, which is copied widely, does nothing. The soft limit on metadata, between which and the hard one
        requests are refused at random, is made the same as the hard one.
        """
        return [
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", self.max_metadata_bytes),
            ("grpc.absolute_max_metadata_size", self.max_metadata_bytes),
            ("grpc.max_concurrent_streams", self.max_streams_per_connection),
            # Of RPCs that Python has not looked at yet. Beyond, anybody's are ended as CANCELLED, and by default one
            # connection that opens and resets streams is enough for that.
            ("grpc.server.max_pending_requests", _MAX_PENDING // 2),
            ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING),
            ("grpc.keepalive_time_ms", _milliseconds(self.keepalive_seconds)),
            ("grpc.keepalive_timeout_ms", _milliseconds(self.keepalive_timeout_seconds)),
            # The timeout of keepalive counts for nothing while another ping, such as the one that measures the
            # connection at its start, is out: then this one's does, a minute by default.
            ("grpc.http2.ping_timeout_ms", _milliseconds(self.keepalive_timeout_seconds)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(self.client_ping_seconds)),
            ("grpc.max_connection_idle_ms", _milliseconds(self.idle_seconds)),
            ("grpc.server_handshake_timeout_ms", _milliseconds(self.handshake_seconds)),
            ("grpc.so_reuseport", 0),  # two servers on one port would share its clients at random
            ("grpc.enable_channelz", int(self.channelz)),
        ]


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
