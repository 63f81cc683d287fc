"""GGUF files: one file, or the parts of a split one."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import Any, Final

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind
from jax.typing import DTypeLike

from ..config import ModelConfig
from ..decoder import Weights
from ..errors import CheckpointError, CorruptCheckpointError, ShapeMismatchError
from ..tokenizer import Tokenizer
from .assemble import load_named
from .base import Made, OnBytes, Place, TensorInfo
from .byte_files import ByteFile, Location, ReadCount, open_bytes
from .gguf_config import config_from_gguf
from .gguf_header import GGUFHeader, GGUFTensor, read_header
from .gguf_names import CONFIG_TENSORS, Rule, architecture_named
from .runs import Box, Runs, runs_of, whole

_PLAIN: Final = {
    Kind.F32: np.dtype("<f4"),
    Kind.F16: np.dtype("<f2"),
    Kind.F64: np.dtype("<f8"),
    Kind.BF16: np.dtype(ml_dtypes.bfloat16),
}
_SPLIT: Final = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


def can_dequantize(kind: Kind) -> bool:
    """Whether a type converts to floating point."""
    if kind in _PLAIN:
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

    def read_rows(self, name: str, start: int, stop: int, within: Box = (), *, expert: int | None = None) -> np.ndarray:
        """Rows start..stop of a tensor (or of one entry of it): stored floats as they are, others made float32.

        Of rows cut short, whole blocks of the quantisation are read.
        """
        tensor = self.tensors[name]
        if tensor.file not in self._files:
            self._files[tensor.file] = open_bytes(tensor.file, self._reads)
        raw = self._files[tensor.file].read(self.runs(name, start, stop, within, expert=expert))
        box = self._box(name, start, stop, within, expert)
        shape = tuple(last - first for first, last in box)
        if tensor.type in _PLAIN:
            return raw.view(_PLAIN[tensor.type]).reshape(shape)
        block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
        first, last = box[-1]
        count = -(-last // block) - first // block
        with np.errstate(all="ignore"):  # whatever bytes there are decode to some float
            # Blocks are independent; longer rows cost the package fewer passes.
            rows = len(raw) // (count * block_bytes)
            values = gguf.dequantize(raw.reshape(-1, gcd(rows, 64) * count * block_bytes), tensor.type)
        cut = first % block
        return values.reshape(*shape[:-1], count * block)[..., cut : cut + last - first]

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


@dataclass(frozen=True)
class _Mapped:
    """A tensor under its Hugging Face name. Both functions take a first and a last row and the bounds within them."""

    info: TensorInfo
    read: Callable[[int, int, Box], np.ndarray]
    planned: Callable[[int, int, Box], list[Runs]]


class GGUFTensors:
    """Tensors of a GGUF file under their Hugging Face names, with llama.cpp's changes undone."""

    def __init__(self, file: GGUFFile, hf_config: Mapping[str, Any]) -> None:
        self._file = file
        self._heads = {"attn_q": hf_config["num_attention_heads"], "attn_k": hf_config["num_key_value_heads"]}
        self._mapped = self._map(
            architecture_named(file.metadata.get("general.architecture"), source=str(file.path)).rules
        )

        self._infos = {name: mapped.info for name, mapped in self._mapped.items()}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        return self._infos

    @property
    def local(self) -> bool:
        return isinstance(self._file.path, Path)

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        return self._mapped[name].read(start, stop, within or whole(self._infos[name].shape[1:]))

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        return self._mapped[name].planned(start, stop, within or whole(self._infos[name].shape[1:]))

    def _map(self, rules: tuple[Rule, ...]) -> dict[str, _Mapped]:
        by_name = {rule.gguf: rule for rule in rules}
        mapped: dict[str, _Mapped] = {}
        for name in self._file.tensors:
            if name in CONFIG_TENSORS:
                continue
            pattern, numbers = _pattern(name)
            rule = next((rule for rule in by_name.values() if pattern in rule.gguf), None)
            if rule is None:
                mapped[name] = self._plain(name)  # the assembler reports it as extra, under its own name
            elif rule.layout == "experts":
                for expert in range(self._file.tensors[name].shape[0]):
                    hf = rule.hf.format(expert=expert, **numbers)
                    mapped[hf] = self._expert(hf, name, expert)
            elif rule.layout == "gate_up":
                gate, up = (part.format(**numbers) for part in rule.gguf)
                if name == gate:
                    mapped[rule.hf.format(**numbers)] = self._gate_up(rule.hf.format(**numbers), gate, up)
            else:
                hf = rule.hf.format(**numbers)
                mapped[hf] = self._one(hf, name, rule)
        return mapped

    def _one(self, hf: str, name: str, rule: Rule) -> _Mapped:
        match rule.layout:
            case "interleaved_heads":
                return self._heads_in_order(hf, name)
            case "norm_plus_one":
                one = self._plain(name, hf)
                return replace(one, read=lambda *rows: np.subtract(one.read(*rows), 1, dtype=np.float32))
            case "transposed":
                one = self._plain(name, hf)
                *lead, a, b = one.info.shape
                info = self._info(hf, name, (*lead, b, a))
                return _Mapped(
                    info,
                    lambda start, stop, within: one.read(start, stop, _swapped(within)).swapaxes(-1, -2),
                    lambda start, stop, within: one.planned(start, stop, _swapped(within)),
                )
            case _:
                return self._plain(name, hf)

    def _info(self, hf: str, name: str, shape: tuple[int, ...]) -> TensorInfo:
        tensor = self._file.tensors[name]
        return TensorInfo(hf, shape, tensor.type.name, tensor.file, can_dequantize(tensor.type))

    def _plain(self, name: str, hf: str | None = None) -> _Mapped:
        info = self._info(hf or name, name, self._file.tensors[name].shape)
        return _Mapped(
            info,
            lambda *rows: self._file.read_rows(name, *rows),
            lambda *rows: [self._file.runs(name, *rows)],
        )

    def _expert(self, hf: str, name: str, expert: int) -> _Mapped:
        """One entry of a stacked tensor [E, rows, ...]."""
        info = self._info(hf, name, self._file.tensors[name].shape[1:])
        return _Mapped(
            info,
            lambda *rows: self._file.read_rows(name, *rows, expert=expert),
            lambda *rows: [self._file.runs(name, *rows, expert=expert)],
        )

    def _heads_in_order(self, hf: str, name: str) -> _Mapped:
        """llama.cpp stores each head's rows as pairs (i, i + H/2) next to each other; Hugging Face as two halves."""
        info = self._info(hf, name, self._file.tensors[name].shape)
        heads = self._heads[name.split(".")[2]]
        width, rest = divmod(info.shape[0], heads)
        if rest or width % 2:
            raise ShapeMismatchError(
                f"{info.file}: tensor {name!r}: found {info.shape[0]} rows, expected an even number for each "
                f"of {heads} heads"
            )

        def heads_of(start: int, stop: int) -> tuple[int, int]:
            return start // width, -(-stop // width)

        def read(start: int, stop: int, within: Box) -> np.ndarray:
            head, last = heads_of(start, stop)
            rows = self._file.read_rows(name, head * width, last * width, within)
            ordered = rows.reshape(last - head, width // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
            return ordered[start - head * width : stop - head * width]

        def planned(start: int, stop: int, within: Box) -> list[Runs]:
            head, last = heads_of(start, stop)
            return [self._file.runs(name, head * width, last * width, within)]

        return _Mapped(info, read, planned)

    def _gate_up(self, hf: str, gate: str, up: str) -> _Mapped:
        """gpt-oss: [E, F, D] and [E, F, D] become [E, D, 2F] with columns interleaved; biases [E, F] become [E, 2F]."""
        if up not in self._file.tensors:
            raise CheckpointError(f"{self._file.path}: tensor {gate!r} has no {up!r} beside it; fetch the file again")
        shape = self._file.tensors[gate].shape
        if self._file.tensors[up].shape != shape:
            raise ShapeMismatchError(
                f"{self._file.path}: tensor {up!r}: found shape {list(self._file.tensors[up].shape)}, expected "
                f"{list(shape)} as {gate!r} has"
            )

        def stored(within: Box) -> Box:
            *wide, (first, last) = within
            return ((first // 2, -(-last // 2)), *wide)

        def read(start: int, stop: int, within: Box) -> np.ndarray:
            pair = (self._file.read_rows(name, start, stop, stored(within)) for name in (gate, up))
            rows = np.stack([np.asarray(part) for part in pair], axis=2)  # [E, F, 2, D]
            both = rows.reshape(stop - start, -1, *rows.shape[3:]).swapaxes(1, -1)
            first, last = within[-1]
            return both[..., first % 2 : first % 2 + last - first]

        def planned(start: int, stop: int, within: Box) -> list[Runs]:
            return [self._file.runs(name, start, stop, stored(within)) for name in (gate, up)]

        return _Mapped(self._info(hf, gate, (shape[0], *shape[2:], 2 * shape[1])), read, planned)


def _swapped(within: Box) -> Box:
    *lead, one, other = within
    return (*lead, other, one)


def _pattern(name: str) -> tuple[str, dict[str, int]]:
    """A tensor's name as the table of names has it, without its layer and expert, and those numbers."""
    match = re.fullmatch(r"blk\.(\d+)\.([a-z_]+)\.(?:(\d+)\.)?(weight|bias)", name)
    if match is None:
        return name, {}
    layer, kind, expert, last = match.groups()
    numbers = {"layer": int(layer)} | ({} if expert is None else {"expert": int(expert)})
    return f"blk.{{layer}}.{kind}.{'' if expert is None else '{expert}.'}{last}", numbers


class GGUFCheckpoint:
    """A model in a GGUF file: metadata gives the configuration and the tokenizer."""

    def __init__(self, path: Location) -> None:
        self.path = path
        self.reads = ReadCount()
        self._file = GGUFFile(path, self.reads)
        tensors = self._file.tensors
        factors = {
            name: [float(x) for x in self._file.read_rows(name, 0, tensors[name].shape[0])]
            for name in sorted(CONFIG_TENSORS & tensors.keys())
            if len(tensors[name].shape) == 1 and can_dequantize(tensors[name].type)
        }
        self.hf_config = config_from_gguf(
            self._file.metadata,
            shapes={name: tensor.shape for name, tensor in tensors.items()},
            rope_factors=factors,
            source=str(path),
        )
        self.reads.clear()  # those factors are no weights

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Every key of the file, with Python values."""
        return self._file.metadata

    @property
    def generation_config(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        ends = [self.hf_config["eos_token_id"]] if "eos_token_id" in self.hf_config else []
        if self._has_tokenizer:
            # The vocabulary tells more: a file names one end, and models have one of a text and one of a turn.
            ends += sorted(self.tokenizer().eos_ids - set(ends))
        if ends:
            found["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        for key in ("bos_token_id", "pad_token_id"):
            if key in self.hf_config:
                found[key] = self.hf_config[key]
        return found

    @property
    def stored_dtype(self) -> jnp.dtype:
        sizes: dict[Kind, int] = {}
        for tensor in self._file.tensors.values():
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.nbytes
        most = max(sizes, key=lambda kind: sizes[kind], default=Kind.F32)
        return jnp.dtype(_PLAIN[most] if most in (Kind.F16, Kind.BF16) else np.float32)

    def load_weights(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        made: Made | None = None,
        keep: bool = False,
        progress: OnBytes | None = None,
    ) -> Weights:
        tensors = GGUFTensors(self._file, self.hf_config)
        return load_named(
            tensors, config, dtype=dtype, source=str(self.path), place=place, made=made, progress=progress
        )

    @property
    def _has_tokenizer(self) -> bool:
        return "tokenizer.ggml.tokens" in self.metadata

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return Tokenizer.from_gguf(self.metadata, source=str(self.path))

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    def copy_tokenizer(self, folder: Path) -> None:
        if self._has_tokenizer:
            self.tokenizer().save(folder)
