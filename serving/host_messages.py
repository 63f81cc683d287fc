"""Messages between hosts: a name and a value of numbers, texts, lists, tuples, dictionaries and numpy arrays.

A message is two lengths, a JSON header, and the bytes of its arrays one behind the other. Nothing in it is code.
"""

import json
import struct
from typing import Any

import numpy as np

_LENGTHS = struct.Struct("<II")
_KINDS = "biuf"  # of numpy's types


def encode(name: str, value: Any = None) -> bytes:
    """The bytes of one message."""
    arrays: list[bytes] = []

    def plain(node: Any) -> Any:
        if isinstance(node, np.ndarray | np.generic):
            array = np.asarray(node)
            arrays.append(array.tobytes())
            return {"array": [array.dtype.str, array.shape]}
        if isinstance(node, tuple):
            return {"tuple": [plain(each) for each in node]}
        if isinstance(node, list):
            return [plain(each) for each in node]
        if isinstance(node, dict):
            return {"dict": {key: plain(each) for key, each in node.items()}}
        return node

    header = json.dumps([name, plain(value)], separators=(",", ":")).encode()
    return b"".join([_LENGTHS.pack(len(header), sum(map(len, arrays))), header, *arrays])


def decode(buffer: bytearray) -> tuple[str, Any] | None:
    """Takes the first message off the front of a buffer; None while it is not all there.

    Raises:
        ValueError: this is no message.
    """
    if len(buffer) < _LENGTHS.size:
        return None
    header_len, body_len = _LENGTHS.unpack_from(buffer)
    start = _LENGTHS.size + header_len
    if len(buffer) < start + body_len:
        return None
    header, body = bytes(buffer[_LENGTHS.size : start]), bytes(buffer[start : start + body_len])
    del buffer[: start + body_len]
    at = 0

    def whole(node: Any) -> Any:
        nonlocal at
        if isinstance(node, list):
            return [whole(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "tuple" in node:
            return tuple(whole(each) for each in node["tuple"])
        if "dict" in node:
            return {key: whole(each) for key, each in node["dict"].items()}
        dtype, shape = np.dtype(node["array"][0]), tuple(node["array"][1])
        if dtype.kind not in _KINDS:
            raise ValueError(f"an array of {dtype}")
        count = int(np.prod(shape, dtype=np.int64))
        made = np.frombuffer(body, dtype, count, at).reshape(shape)
        at += made.nbytes
        return made

    name, value = json.loads(header)
    return name, whole(value)
