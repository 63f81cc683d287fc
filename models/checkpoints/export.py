"""Weights of the decoder as tensors under Hugging Face names: the assembler's table, read the other way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..config import ModelConfig
from ..decoder import Weights, flatten, weight_specs
from ..families import family_named
from .pieces import Piece, pieces_of, tensor_shape


@dataclass(frozen=True)
class OutgoingTensor:
    """A tensor to be written. `make` builds it when its turn comes."""

    name: str
    shape: tuple[int, ...]
    dtype: jnp.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def outgoing_tensors(weights: Weights, config: ModelConfig, dtype: jnp.dtype | None = None) -> list[OutgoingTensor]:
    """Every tensor of a checkpoint, layer by layer, none of them built yet.

    Args:
        weights: the decoder's, or some of them.
        config: what they belong to.
        dtype: to convert to; as the weights are by default.
    """
    flat: Mapping[str, jax.Array] = flatten(weights)
    table = family_named(config.family).tensors(config)
    groups: dict[str, list[Piece]] = {}
    for path, spec in weight_specs(config, jnp.dtype(jnp.float32)).items():
        if path not in flat:
            continue
        for piece in pieces_of(spec, table[spec.key]):
            groups.setdefault(piece.name, []).append(piece)
    return [_outgoing(name, pieces, flat, dtype) for name, pieces in groups.items()]


def text_only(hf_config: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """A configuration that describes what is written: the language model alone, unquantised."""
    hf = dict(hf_config)
    if config.family == "gemma3_multimodal":
        hf = {**hf["text_config"], "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
        config = replace(config, family="gemma3")
    hf.pop("quantization_config", None)
    return hf, config


def _outgoing(name: str, pieces: list[Piece], flat: Mapping[str, jax.Array], dtype: jnp.dtype | None) -> OutgoingTensor:
    shape = tensor_shape(pieces)
    target = jnp.dtype(dtype or flat[pieces[0].spec.path].dtype)

    def make() -> np.ndarray:
        tensor = np.empty(shape, target)
        for piece in pieces:
            source = piece.source
            rows = tensor[source.start : None if source.rows is None else source.start + source.rows]
            view = rows if source.view is None else source.view(rows)
            with np.errstate(over="ignore", invalid="ignore"):
                view[...] = _part(flat[piece.spec.path], piece.index).reshape(view.shape)
        return tensor

    return OutgoingTensor(name, shape, target, make)


def _part(leaf: jax.Array, index: tuple[int, ...]) -> np.ndarray:
    if (
        leaf.is_fully_addressable
        and {device.platform for device in leaf.devices()} == {"cpu"}
        and len(leaf.devices()) == 1
    ):
        return np.asarray(leaf)[index]  # no copy
    return np.asarray(leaf[index])  # one part leaves the device, not the whole leaf
