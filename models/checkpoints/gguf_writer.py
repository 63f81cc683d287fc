"""Writes a model as GGUF, in the layout of llama.cpp's own converter."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind

from ...backends.errors import UnsupportedError
from ..config import ModelConfig
from ..decoder import Weights
from .base import Checkpoint, OnBytes
from .export import OutgoingTensor, outgoing_tensors, text_only
from .gguf_metadata import architecture_of, check_readable, gguf_metadata, rope_tensors
from .gguf_names import Rule
from .gguf_tokens import tokenizer_metadata

TYPES: Final = {"float32": Kind.F32, "float16": Kind.F16, "bfloat16": Kind.BF16, "q8_0": Kind.Q8_0}
_FILE_TYPES: Final = {Kind.F32: 0, Kind.F16: 1, Kind.Q8_0: 7, Kind.BF16: 32}  # general.file_type
_EXACT: Final = ("_norm.weight", "ffn_gate_inp.weight", "attn_sinks.weight")  # llama.cpp expects these in float32


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: Kind
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        block, nbytes = gguf.GGML_QUANT_SIZES[self.kind]
        return int(np.prod(self.shape)) // block * nbytes


def write_gguf(
    weights: Weights,
    path: Path,
    *,
    config: ModelConfig,
    source: Checkpoint,
    dtype: str,
    progress: OnBytes | None = None,
) -> None:
    """Write one .gguf file, a tensor in memory at a time.

    Args:
        weights: of `config`.
        path: the file.
        config: the model's configuration.
        source: gives the Hugging Face configuration and the tokenizer.
        dtype: float32, float16, bfloat16 or q8_0, for the matrices; vectors and routers stay float32.
        progress: called with bytes written and their sum.

    Raises:
        UnsupportedError: GGUF has no architecture, no key or no vocabulary for something that the model has.
    """
    hf, config = text_only(source.hf_config, config)
    arch = architecture_of(hf.get("model_type"))
    factors = rope_tensors(config, hf)
    tensors = [_Tensor(name, values.shape, Kind.F32, lambda v=values: v) for name, values in factors.items()]
    tensors += _renamed(outgoing_tensors(weights, config), arch.rules, config, TYPES[dtype])
    metadata = gguf_metadata(config, arch, hf) | tokenizer_metadata(source, config.vocab_size)
    check_readable(config, metadata, {tensor.name: tensor.shape for tensor in tensors}, factors)
    metadata["general.file_type"] = _FILE_TYPES[TYPES[dtype]]
    metadata["general.quantization_version"] = gguf.GGML_QUANT_VERSION
    _write(path, arch.name, metadata, tensors, progress)


def _renamed(outgoing: list[OutgoingTensor], rules: tuple[Rule, ...], config: ModelConfig, kind: Kind) -> list[_Tensor]:
    by_name = {tensor.name: tensor for tensor in outgoing}
    heads = {"q": config.layers[0].attention.num_heads, "k": config.layers[0].attention.num_kv_heads}
    made: list[_Tensor] = []
    for rule in rules:
        if any("{expert}" in name for name in rule.gguf):
            continue  # the layout of old files, which are read and not written
        for layer in range(config.num_layers) if "{layer}" in rule.hf else [None]:
            made += _layer(rule, layer, by_name, heads, kind)
    unknown = by_name.keys() - {name for name in by_name if any(_matches(rule, name) for rule in rules)}
    if unknown:
        raise UnsupportedError(f"--to gguf: tensor {min(unknown)!r}: GGUF has no name for it; convert to safetensors")
    return made


def _matches(rule: Rule, name: str) -> bool:
    parts, pattern = name.split("."), rule.hf.split(".")
    return len(parts) == len(pattern) and all(
        a == b or (b in ("{layer}", "{expert}") and a.isdigit()) for a, b in zip(parts, pattern, strict=True)
    )


def _layer(
    rule: Rule, layer: int | None, tensors: Mapping[str, OutgoingTensor], heads: Mapping[str, int], kind: Kind
) -> list[_Tensor]:
    """The GGUF tensors of one rule in one layer: none where the model has no such tensor."""
    names = [name.format(layer=layer) for name in rule.gguf]
    if rule.layout == "experts":
        parts: list[OutgoingTensor] = []
        while (part := tensors.get(rule.hf.format(layer=layer, expert=len(parts)))) is not None:
            parts.append(part)
        if not parts:
            return []
        return [_typed(names[0], (len(parts), *parts[0].shape), kind, lambda: _stacked(parts))]
    if (name := rule.hf.format(layer=layer)) not in tensors:
        return []
    tensor = tensors[name]
    match rule.layout:
        case "interleaved_heads":
            count = heads[rule.hf.split("_proj")[0][-1]]
            return [_typed(names[0], tensor.shape, kind, lambda: _interleaved(tensor.make(), count))]
        case "norm_plus_one":
            return [_typed(names[0], tensor.shape, kind, lambda: np.add(tensor.make(), 1, dtype=np.float32))]
        case "transposed":
            shape = (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2])
            return [_typed(names[0], shape, kind, lambda: tensor.make().swapaxes(-1, -2))]
        case "gate_up":
            # [E, D, 2F] to two of [E, F, D]; biases [E, 2F] to two of [E, F]
            shape = (tensor.shape[0], tensor.shape[-1] // 2, *tensor.shape[1:-1])
            return [
                _typed(name, shape, kind, lambda part=part: tensor.make()[..., part::2].swapaxes(1, -1))
                for part, name in enumerate(names)
            ]
        case _:
            return [_typed(names[0], tensor.shape, kind, tensor.make)]


def _stacked(parts: list[OutgoingTensor]) -> np.ndarray:
    made = np.empty((len(parts), *parts[0].shape), np.float32)
    for entry, part in zip(made, parts, strict=True):
        entry[...] = part.make()
    return made


def _interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def _typed(name: str, shape: tuple[int, ...], kind: Kind, make: Callable[[], np.ndarray]) -> _Tensor:
    if len(shape) == 1 or name.endswith((*_EXACT, ".bias")):
        kind = Kind.F32
    elif shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = Kind.F16  # rows that no block fits; llama.cpp does the same
    return _Tensor(name, shape, kind, make)


def _write(
    path: Path, arch: str, metadata: Mapping[str, Any], tensors: list[_Tensor], progress: OnBytes | None
) -> None:
    writer = gguf.GGUFWriter(path, arch)
    for key, value in metadata.items():
        if key != "general.architecture":
            _add(writer, key, value)
    for tensor in tensors:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    for tensor in tensors:
        values = np.ascontiguousarray(tensor.make(), dtype=np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            writer.write_tensor_data(gguf.quantize(values, tensor.kind))
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
    writer.close()


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)
