"""Writes quantised weights in the layout of the compressed-tensors library, which transformers and vLLM read too."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...backends.errors import InvalidParameterError, UnsupportedError
from ...backends.quantized import Quantized, is_quantized
from ..checkpoints.base import Checkpoint, OnBytes
from ..checkpoints.export import OutgoingTensor, outgoing_tensors, text_only
from ..checkpoints.json_file import write_object
from ..checkpoints.pieces import Piece, pieces_of
from ..checkpoints.safetensors_writer import MAX_SHARD_BYTES, write_safetensors
from ..config import ModelConfig
from ..decoder import Weights, flatten, unflatten, weight_specs
from ..families import family_named
from .quantize import Quantizer
from .scheme import Scheme


def write_quantized(
    weights: Weights,
    scheme: Scheme,
    folder: Path,
    *,
    config: ModelConfig,
    source: Checkpoint,
    described: Mapping[str, Any] | None = None,
    told: Mapping[str, Any],
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: OnBytes | None = None,
) -> None:
    """Fills an existing folder with a checkpoint.

    Args:
        weights: of which some are Quantized by this scheme.
        described: what config.json says, where it is not what the source's does.
        told: what was done, for config.json, under the name `distaff`.

    Raises:
        UnsupportedError: a quantised weight is stored by this family in a way that the format has no words for.
    """
    hf, config = text_only(source.hf_config if described is None else described, config)
    flat = flatten(weights)
    tensors = _tensors(weights, scheme, config)
    write_safetensors(tensors, folder, max_shard_bytes=max_shard_bytes, progress=progress)
    dtype = next(iter(flat.values())).dtype
    ignored = sorted({name.removesuffix(".weight") for name in _plain_matrices(weights, config)})
    named = {"dtype" if "dtype" in hf else "torch_dtype": jnp.dtype(dtype).name}
    write_object(
        folder / "config.json",
        hf | named | {"quantization_config": quantization_config(scheme, ignored), "distaff": dict(told)},
    )
    if source.generation_config:
        write_object(folder / "generation_config.json", source.generation_config)
    source.copy_tokenizer(folder)


def check_writable(made: Quantizer, config: ModelConfig) -> None:
    """Declines a family whose matrices the format has no words for, before anything is read.

    Raises:
        UnsupportedError: names the family and the tensor.
    """
    table, scheme = family_named(config.family).tensors(config), made.scheme
    for spec in weight_specs(config, jnp.float32).values():
        if made.plan(spec) is None:
            continue
        if table[spec.key].view is not None:
            raise UnsupportedError(
                f"scheme {scheme.name}: family {config.family} stores {table[spec.key].name} in an order of its own, "
                "which compressed-tensors cannot say; quantise it while it is loaded instead (--quantize)"
            )
        width = prod(spec.shape[len(spec.shape) - spec.contracted :])
        if _format(scheme) == "pack-quantized" and width % (8 if scheme.kind == "int4" else 4):
            raise UnsupportedError(
                f"scheme {scheme.name}: {table[spec.key].name} has rows of {width} numbers, which do not fill words of "
                "32 bits; quantise it while it is loaded instead (--quantize)"
            )


def check_head(scheme: Scheme, config: ModelConfig) -> None:
    """Raises InvalidParameterError where no matrix of its own scores the vocabulary, or it would not have 8 bits."""
    if config.tied:
        raise InvalidParameterError("head", "given", "a model whose table scores no vocabulary, as behind --rotate")
    if scheme.kind == "int4" or scheme.group is not None:
        raise InvalidParameterError(
            "head", "given", f"a scheme of 8 bits with a scale for each output, not {scheme.name}"
        )


def quantization_config(scheme: Scheme, ignored: list[str]) -> dict[str, Any]:
    """What compressed-tensors calls this scheme."""
    kind = "float" if scheme.kind == "float8_e4m3fn" else "int"
    bits = 4 if scheme.kind == "int4" else 8
    strategy = "channel" if scheme.group is None else "group"
    common = {"num_bits": bits, "type": kind, "symmetric": True}
    weights = {**common, "strategy": strategy, "group_size": scheme.group, "dynamic": False, "observer": "minmax"}
    inputs = {**common, "strategy": "token", "group_size": None, "dynamic": True} if scheme.activations else None
    return {
        "quant_method": "compressed-tensors",
        "format": _format(scheme),
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}},
        "ignore": ignored,
        "kv_cache_scheme": None,
    }


def _format(scheme: Scheme) -> str:
    if scheme.kind == "float8_e4m3fn":
        return "float-quantized"
    return "int-quantized" if scheme.activations else "pack-quantized"


def _tensors(weights: Weights, scheme: Scheme, config: ModelConfig) -> list[OutgoingTensor]:
    flat = flatten(weights)
    groups = _pieces(config)
    outgoing: list[OutgoingTensor] = []
    plain = unflatten({path: leaf for path, leaf in flat.items() if not is_quantized(leaf)})
    floats = {tensor.name: tensor for tensor in outgoing_tensors(plain, config)}
    for name, pieces in groups.items():
        if is_quantized(flat[pieces[0].spec.path]):
            outgoing += _matrix(name, pieces, flat, scheme)
        else:
            outgoing.append(floats[name])
    return outgoing


def _matrix(name: str, pieces: list[Piece], flat: Mapping[str, Any], scheme: Scheme) -> list[OutgoingTensor]:
    first: Quantized = flat[pieces[0].spec.path]

    def rows(leaf: jax.Array, piece: Piece) -> np.ndarray:
        part = np.asarray(leaf[piece.index] if piece.index else leaf)
        return part.reshape(*part.shape[: part.ndim - piece.spec.contracted], -1)

    def joined(which: str) -> np.ndarray:
        ordered = sorted(pieces, key=lambda piece: piece.source.start)
        parts = [rows(getattr(flat[piece.spec.path], which), piece) for piece in ordered]
        return np.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])

    contracted = pieces[0].spec.contracted
    outputs = sum(prod(piece.shape[: len(piece.shape) - contracted]) for piece in pieces)
    bytes_, groups = (prod(leaf.shape[leaf.ndim - contracted :]) for leaf in (first.values, first.scale))
    scales = OutgoingTensor(f"{name}_scale", (outputs, groups), jnp.dtype("float32"), lambda: joined("scale"))
    if _format(scheme) != "pack-quantized":
        return [OutgoingTensor(name, (outputs, bytes_), jnp.dtype(first.kind), lambda: joined("values")), scales]
    shape = (outputs, (2 if first.kind == "int4" else 1) * bytes_)

    def packed() -> np.ndarray:
        numbers = joined("values")
        numbers = numbers if first.kind == "int4" else numbers.view(np.uint8) ^ 128
        return np.ascontiguousarray(numbers).view("<i4")

    return [
        OutgoingTensor(f"{name}_packed", (outputs, bytes_ // 4), jnp.dtype("int32"), packed),
        scales,
        OutgoingTensor(f"{name}_shape", (2,), np.dtype("int64"), lambda: np.asarray(shape, np.int64)),
    ]


def _pieces(config: ModelConfig) -> dict[str, list[Piece]]:
    table = family_named(config.family).tensors(config)
    groups: dict[str, list[Piece]] = {}
    for spec in weight_specs(config, jnp.dtype(jnp.float32)).values():
        for piece in pieces_of(spec, table[spec.key]):
            groups.setdefault(piece.name, []).append(piece)
    return groups


def _plain_matrices(weights: Weights, config: ModelConfig) -> list[str]:
    """Matrices that stay as they were, other than tables that are looked up."""
    flat = flatten(weights)
    names = []
    for name, pieces in _pieces(config).items():
        spec = pieces[0].spec
        if spec.contracted and not is_quantized(flat[spec.path]) and spec.path != "embedder.table":
            names.append(name)
    return names
