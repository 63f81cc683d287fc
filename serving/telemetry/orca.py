"""ORCA load reports: a server tells whoever asks with a request how loaded it is, in the answer to that request.

HTTP: a request with the header `endpoint-load-metrics-format: text` (or `json`) gets `endpoint-load-metrics`. gRPC: the
same metadata on a call, or nothing at all, and the trailing metadata `endpoint-load-metrics-bin` with an
xds.data.orca.v3.OrcaLoadReport. The names of Triton and vLLM are used where they have one.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from ..front import Front

REQUEST_HEADER = "endpoint-load-metrics-format"
RESPONSE_HEADER = "endpoint-load-metrics"
TRAILER = "endpoint-load-metrics-bin"


@dataclass(frozen=True)
class LoadReport:
    """
    Attributes:
        application_utilization: sequences that run or wait, of the rows that fit a batch: above 1 where some wait.
        named: figures of this kind of server.
    """

    application_utilization: float
    named: Mapping[str, float]

    @classmethod
    def of(cls, front: Front) -> "LoadReport":
        """How loaded a Front is now."""
        load, metrics = front.load(), front.metrics
        named = {
            "kv_cache_utilization": load.page_usage,
            "max_token_capacity": float(load.pages_total * metrics.page_size),
            "num_requests_running": float(load.running),
            "num_requests_waiting": float(load.waiting),
        }
        return cls((load.running + load.waiting) / max(1, load.max_batch), named)

    def header(self, format: str) -> str | None:
        """The value of RESPONSE_HEADER; None for a format that nobody defined."""
        if format.lower() == "json":
            values = {"application_utilization": self.application_utilization, "named_metrics": dict(self.named)}
            return "JSON " + json.dumps(values)
        if format.lower() == "text":
            named = (f"named_metrics.{name}={value:.6g}" for name, value in self.named.items())
            return "TEXT " + ", ".join((f"application_utilization={self.application_utilization:.6g}", *named))
        return None

    def to_bytes(self) -> bytes:
        """As xds.data.orca.v3.OrcaLoadReport: field 8 is the map of named metrics, field 9 a double."""
        entries = b"".join(_field(8, _text(1, name) + _double(2, value)) for name, value in self.named.items())
        return entries + _double(9, self.application_utilization)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _text(number: int, text: str) -> bytes:
    return _field(number, text.encode())


def _double(number: int, value: float) -> bytes:
    return _varint(number << 3 | 1) + struct.pack("<d", value)
