"""Safetensors files, read lazily, with every header field checked against the file.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of length, a JSON header, then the tensors with
neither gaps nor overlaps.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final, TypeGuard

import ml_dtypes
import numpy as np

from ..errors import CheckpointError, CorruptCheckpointError, UnsupportedQuantizationError
from .base import TensorInfo
from .byte_files import ByteFile, Location, ReadCount, open_bytes
from .json_file import parse_object, read_object
from .runs import Box, Runs, runs_of, whole

MAX_HEADER: Final = 100_000_000  # bytes; the limit of the reference implementation
MAX_DIMENSIONS: Final = 16

FLOATS: Final = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_OTHERS: Final = {
    "BOOL": 8, "U8": 8, "I8": 8, "I16": 16, "U16": 16, "I32": 32, "U32": 32, "I64": 64, "U64": 64, "C64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip
_NUMBERS: Final = {
    "I8": np.dtype(np.int8),
    "I16": np.dtype("<i2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
}
"""What quantised weights are made of."""
_BITS: Final = {name: dtype.itemsize * 8 for name, dtype in FLOATS.items()} | _OTHERS


@dataclass(frozen=True)
class _Entry:
    info: TensorInfo
    start: int  # byte offset in the file
    stop: int


class SafetensorsFile:
    """One file: its tensors' names, types and shapes, and their bytes in ranges."""

    def __init__(self, path: Location, reads: ReadCount | None = None) -> None:
        self.path = path
        file = open_bytes(path, ReadCount())  # headers are not counted with the tensors
        size = file.size
        prefix = file.read(Runs(0, 8)).tobytes() if size >= 8 else b""
        length = struct.unpack("<Q", prefix)[0] if prefix else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise CorruptCheckpointError(
                f"{path}: found a header of {length} bytes in a file of {size}, expected 2 to "
                f"{max(0, min(MAX_HEADER, size - 8))}; the file is truncated or not safetensors, fetch it again"
            )
        header = parse_object(file.read(Runs(8, length)).tobytes(), source=f"{path}: header")
        header.pop("__metadata__", None)
        entries = [self._entry(name, fields, 8 + length, size) for name, fields in header.items()]
        self._check_layout(entries, 8 + length, size)
        self.entries = {entry.info.name: entry for entry in entries}
        self._reads = ReadCount() if reads is None else reads

    @cached_property
    def _file(self) -> ByteFile:
        return open_bytes(self.path, self._reads)

    def runs(self, name: str, start: int, stop: int, within: Box = ()) -> Runs:
        """Where rows of a tensor of whole bytes lie."""
        entry = self.entries[name]
        shape = entry.info.shape
        box = ((start, stop), *(within or whole(shape[1:])))
        return runs_of(shape, _BITS[entry.info.dtype] // 8, box, entry.start)

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        """Rows of a tensor; types of one byte that are no number here are given as bytes."""
        info = self.entries[name].info
        shape = (stop - start, *(b - a for a, b in within or whole(info.shape[1:])))
        raw = self._file.read(self.runs(name, start, stop, within))
        return raw.view(FLOATS.get(info.dtype) or _NUMBERS.get(info.dtype, np.dtype(np.uint8))).reshape(shape)

    def _entry(self, name: str, fields: object, data_start: int, size: int) -> _Entry:
        where = f"{self.path}: tensor {name[:100]!r}"
        if not isinstance(fields, dict):
            raise CorruptCheckpointError(
                f"{where}: found {str(fields)[:80]!r}, expected an object; fetch the file again"
            )
        dtype, shape, span = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise UnsupportedQuantizationError(
                f"{where}: dtype: found {str(dtype)[:40]!r}, expected one of {', '.join(FLOATS)}; fetch it in bf16"
            )
        if not _is_whole_list(shape) or len(shape) > MAX_DIMENSIONS:
            raise CorruptCheckpointError(
                f"{where}: shape: found {str(shape)[:80]}, expected whole numbers; fetch the file again"
            )
        if not _is_whole_list(span) or len(span) != 2 or not span[0] <= span[1] <= size - data_start:
            raise CorruptCheckpointError(
                f"{where}: data_offsets: found {str(span)[:80]}, expected two offsets within the {size - data_start} "
                "bytes of data; the file is truncated, fetch it again"
            )
        bits = prod(shape) * _BITS[dtype]
        if bits != 8 * (span[1] - span[0]):
            raise CorruptCheckpointError(
                f"{where}: found {span[1] - span[0]} bytes, expected {str(-(-bits // 8))[:40]} for {dtype} of shape "
                f"{str(shape)[:80]}; fetch the file again"
            )
        info = TensorInfo(name, tuple(shape), dtype, self.path, dtype in FLOATS)
        return _Entry(info, data_start + span[0], data_start + span[1])

    def _check_layout(self, entries: list[_Entry], data_start: int, size: int) -> None:
        at = data_start
        for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
            if entry.start != at:
                raise CorruptCheckpointError(
                    f"{self.path}: tensor {entry.info.name[:100]!r}: found its data at byte {entry.start}, expected "
                    f"{at}, where the tensor before ends; fetch the file again"
                )
            at = entry.stop
        if at != size:
            raise CorruptCheckpointError(
                f"{self.path}: found {size} bytes, expected {at} by the header; the file is truncated or padded, "
                "fetch it again"
            )


def _is_whole_list(found: object) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(
        isinstance(entry, int) and not isinstance(entry, bool) and 0 <= entry < 2**63 for entry in found
    )


class SafetensorsTensors:
    """The tensors of one or several files."""

    def __init__(self, files: list[SafetensorsFile]) -> None:
        self._files: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.entries:
                if name in self._files:
                    raise CorruptCheckpointError(
                        f"{file.path}: tensor {name[:100]!r}: found it in {self._files[name].path.name} too, "
                        "expected it once; fetch the folder again"
                    )
                self._files[name] = file
        self._local = all(isinstance(file.path, Path) for file in files)
        self._infos = {name: file.entries[name].info for name, file in self._files.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def local(self) -> bool:
        return self._local

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        return self._files[name].read_rows(name, start, stop, within)

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        return [self._files[name].runs(name, start, stop, within)]

    def nbytes(self, name: str) -> int:
        """Stored bytes of a tensor."""
        entry = self._files[name].entries[name]
        return entry.stop - entry.start


def open_folder(folder: Location, reads: ReadCount | None = None) -> SafetensorsTensors:
    """The tensors of a Hugging Face folder: model.safetensors, or the shards that an index lists.

    Args:
        folder: what holds the files.
        reads: counts what is read of tensors.

    Raises:
        CheckpointError: there are none, or a shard is missing.
        CorruptCheckpointError: a file or the index is damaged.
    """
    names = {path.name for path in folder.iterdir()}
    if "model.safetensors.index.json" in names:
        return _open_shards(folder, folder / "model.safetensors.index.json", names, reads)
    if "model.safetensors" in names:
        return SafetensorsTensors([SafetensorsFile(folder / "model.safetensors", reads)])
    others = sorted(name for name in names if name.endswith((".bin", ".pth", ".pt")))
    found = f"found {others[0]}, which is not read" if others else "found neither"
    raise CheckpointError(
        f"{folder}: {found}, expected model.safetensors or model.safetensors.index.json; fetch the safetensors files, "
        "or write them with save_pretrained()"
    )


def _open_shards(folder: Location, index: Location, there: set[str], reads: ReadCount | None) -> SafetensorsTensors:
    weight_map: Any = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(_is_plain_name(name) for name in weight_map.values()):
        raise CorruptCheckpointError(f"{index}: weight_map: expected tensor names with names of files in this folder")
    names = sorted(set(weight_map.values()))
    absent = [name for name in names if name not in there]
    if absent:
        raise CheckpointError(
            f"{index}: found no {absent[0]} in the folder, expected {len(names)} shards; fetch the rest"
        )
    files = {name: SafetensorsFile(folder / name, reads) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in files[name].entries:
            raise CorruptCheckpointError(
                f"{index}: weight_map: found {tensor[:100]!r} in {name}, expected a tensor that this file holds"
            )
    return SafetensorsTensors(list(files.values()))


def _is_plain_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
