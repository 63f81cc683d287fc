"""Writes tensors as sharded safetensors, one tensor in memory at a time."""

import json
import struct
from pathlib import Path
from typing import Final

import jax.numpy as jnp
import numpy as np

from .base import OnBytes
from .export import OutgoingTensor
from .json_file import write_object

MAX_SHARD_BYTES: Final = 5_000_000_000  # as save_pretrained() cuts
_NAMES: Final = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int8": "I8", "int32": "I32", "int64": "I64", "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip


def write_safetensors(
    tensors: list[OutgoingTensor],
    folder: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: OnBytes | None = None,
) -> None:
    """Write model.safetensors, or shards with their index, into an existing folder.

    Args:
        tensors: in the order in which they are written.
        folder: where to.
        max_shard_bytes: of tensor data in one file; a larger tensor gets a file of its own.
        progress: called with bytes written and their sum.
    """
    shards: list[list[OutgoingTensor]] = [[]]
    for tensor in tensors:
        if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > max_shard_bytes:
            shards.append([])
        shards[-1].append(tensor)
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(_header(shard))
            for tensor in shard:
                file.write(np.ascontiguousarray(tensor.make()).reshape(-1).view(np.uint8).data)
                weight_map[tensor.name] = name
                done += tensor.nbytes
                if progress is not None:
                    progress(done, total)
    if len(shards) > 1:
        write_object(
            folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
        )


def _header(tensors: list[OutgoingTensor]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    at = 0
    for tensor in tensors:
        fields[tensor.name] = {
            "dtype": _NAMES[jnp.dtype(tensor.dtype).name],
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start aligned
    return struct.pack("<Q", len(text)) + text
