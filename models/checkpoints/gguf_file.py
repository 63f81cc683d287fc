"""Tensors of a GGUF file, or of the parts of a split one, under their own names."""

import re
from math import gcd
from pathlib import Path
from typing import Final

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind
from jaxtyping import UInt8

from ..errors import CheckpointError, CorruptCheckpointError
from .byte_files import ByteFile, Location, ReadCount, open_bytes
from .gguf_header import GGUFHeader, GGUFTensor, read_header
from .runs import Box, Runs, runs_of, whole

PLAIN: Final = {
    Kind.F32: np.dtype("<f4"),
    Kind.F16: np.dtype("<f2"),
    Kind.F64: np.dtype("<f8"),
    Kind.BF16: np.dtype(ml_dtypes.bfloat16),
}
_HELD: Final = 2
"""Reads of tensors that are held: a tensor may be made of two."""
_SPLIT: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def can_dequantize(kind: Kind) -> bool:
    """Whether a type converts to floating point."""
    if kind in PLAIN:
        return True
    try:
        _, nbytes = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


class GGUFFile:
    """Tensors of a GGUF file under their GGUF names."""

    def __init__(self, path: Location, reads: ReadCount | None = None) -> None:
        self.path = path
        self._reads = ReadCount() if reads is None else reads
        first = read_header(path)
        self.metadata = first.metadata
        self.tensors: dict[str, GGUFTensor] = dict(first.tensors)
        for part, header in _other_parts(path, first):
            repeated = self.tensors.keys() & header.tensors.keys()
            if repeated:
                raise CorruptCheckpointError(
                    f"{part}: tensor {min(repeated)!r}: found it in an earlier part too, expected it once"
                )
            self.tensors |= header.tensors
        self._files: dict[Location, ByteFile] = {}
        self._held: dict[str, tuple[Runs, np.ndarray]] = {}

    def read_rows(self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None) -> np.ndarray:
        """Rows start..stop of a tensor (or of one entry of it): stored floats as they are, others made float32.

        Of rows cut short, whole blocks of the quantisation are read.
        """
        tensor, raw = self.tensors[name], self.read_bytes(name, start, stop, within, expert=expert)
        box = self._box(name, start, stop, within, expert)
        shape = tuple(last - first for first, last in box)
        if tensor.type in PLAIN:
            return raw.view(PLAIN[tensor.type]).reshape(shape)
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
        first, last = box[-1]
        count = -(-last // block) - first // block
        with np.errstate(all="ignore"):  # whatever bytes there are decode to some float
            # Blocks are independent; longer rows cost the package fewer passes.
            rows = len(raw) // (count * block_bytes)
            values = gguf.dequantize(raw.reshape(-1, gcd(rows, 64) * count * block_bytes), tensor.type)
        cut = first % block
        return values.reshape(*shape[:-1], count * block)[..., cut : cut + last - first]

    def read_bytes(
        self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None, hold: bool = False
    ) -> UInt8[np.ndarray, "bytes"]:
        """What `read_rows` reads, as it is stored. `hold`: the same is asked for again at once, and not fetched twice
        from afar."""
        file, runs = self.tensors[name].file, self.runs(name, start, stop, within, expert=expert)
        if file not in self._files:
            self._files[file] = open_bytes(file, self._reads)
        if not hold or isinstance(file, Path):
            return self._files[file].read(runs)
        held = self._held.pop(name, None)
        if held is None or held[0] != runs:
            while len(self._held) >= _HELD:
                del self._held[next(iter(self._held))]
            held = runs, self._files[file].read(runs)
        self._held[name] = held
        return held[1]

    def let_go(self) -> None:
        """Of what is held."""
        self._held.clear()

    def runs(self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None) -> Runs:
        """Where the bytes for `read_rows` lie."""
        tensor = self.tensors[name]
        box, shape, first = self._box(name, start, stop, within, expert), tensor.shape, tensor.start
        if expert is not None:
            first += expert * (tensor.nbytes // shape[0])
            shape = shape[1:]
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
        low, high = box[-1]
        blocks = (*box[:-1], (low // block, -(-high // block)))
        return runs_of((*shape[:-1], shape[-1] // block), block_bytes, blocks, first)

    def _box(self, name: str, start: int, stop: int, within: Box, expert: int | None) -> Box:
        shape = self.tensors[name].shape[0 if expert is None else 1 :]
        return ((start, stop), *(within or whole(shape[1:])))


def _other_parts(path: Location, first: GGUFHeader) -> list[tuple[Location, GGUFHeader]]:
    count = first.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return []
    match = _SPLIT.fullmatch(path.name)
    if match is None or int(match[2]) != 1 or int(match[3]) != count:
        raise CheckpointError(f"{path}: split.count is {count}, so open the part named ...-00001-of-{count:05}.gguf")
    parts = [path.with_name(f"{match[1]}-{i:05}-of-{count:05}.gguf") for i in range(2, count + 1)]
    absent = [part.name for part in parts if not part.is_file()]
    if absent:
        raise CheckpointError(f"{path}: split.count is {count}, but {absent[0]} is missing beside it; fetch every part")
    return [(part, read_header(part)) for part in parts]
