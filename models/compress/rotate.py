"""Turns the residual stream, so that no channel stands out (QuaRot, Ashkboos et al., arXiv 2404.00456; SliceGPT's
computational invariance, arXiv 2401.15024).

RMSNorm without gains does not see an orthogonal Q: with gains moved into the matrices behind norms, what writes to the
stream made Q^T W and what reads it W Q, a model computes what it did. A channel that was twenty times as large as the
others, and so decided the scale of every token, is spread over all of them. Nothing is left to do at run time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from ...backends.base import PyTree
from ...backends.errors import UnsupportedError
from ..config import ModelConfig, NormConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .smaller import describes

_SEED = 0


def check_rotatable(config: ModelConfig) -> None:
    """Raises UnsupportedError where something other than an RMSNorm in front of matrices reads the stream."""
    layers = config.layers
    norms = [config.final_norm, *(layer.norm for layer in layers)]
    if (
        any(layer.placement != "pre" for layer in layers)
        or not all(isinstance(norm, NormConfig) and norm.kind == "rms" and not norm.bias for norm in norms)
        or config.embed_in_dim is not None
        or config.learned_positions is not None
    ):
        raise UnsupportedError(
            f"family {config.family}: a stream can be turned where RMSNorm stands in front of attention and of the "
            "feed-forward, and nothing behind them; leave --rotate out"
        )


def untied(hf: Mapping[str, Any], config: ModelConfig) -> tuple[dict[str, Any], ModelConfig]:
    """What describes the turned model, whose table scores the vocabulary no more.

    Args:
        hf: the configuration that `config` was read from.

    Raises:
        UnsupportedError: the family's configuration has no words for it.
    """
    made, wanted = {**hf, "tie_word_embeddings": False}, replace(config, tied=False)
    if not describes(made, wanted):
        raise UnsupportedError(
            f"family {config.family}: its configuration has no words for a table of its own that scores the "
            "vocabulary, which a turned stream needs; leave --rotate out"
        )
    return made, wanted


def rotated(weights: Weights, config: ModelConfig) -> Weights:
    """The same model with its stream turned, its table being two where it was tied; `weights` is consumed.

    Args:
        weights: in the checkpoint's form, in floating point, of a model that check_rotatable lets pass.
        config: of these.
    """
    flat = flatten(weights)
    weights.clear()
    turn = jnp.asarray(orthogonal(config.embed_dim))
    after = replace(config, tied=False)
    if config.tied:
        flat["unembedder.table"] = flat["embedder.table"]
    read = dict(_readers(after))
    gains = {path: flat[path] for path in set(read.values())}
    made: dict[str, PyTree] = {}
    for path, spec in weight_specs(after, jnp.float32).items():
        leaf = flat.pop(path)
        if path in gains:
            made[path] = jnp.full_like(leaf, 1 - _norm(after, spec).offset)
        elif path in read:
            offset = _norm(after, spec).offset
            made[path] = _read(leaf, _beside(gains[read[path]], spec) + offset, turn)
        elif "embed" in spec.axes:
            made[path] = _written(leaf, turn, spec.axes.index("embed"))
        else:
            made[path] = leaf
    return unflatten(made)


def orthogonal(size: int) -> Float32[np.ndarray, "D D"]:
    """The orthogonal factor of normal numbers, the same ones every time."""
    factor, upper = np.linalg.qr(np.random.default_rng(_SEED).standard_normal((size, size)))
    return (factor * np.sign(np.diag(upper))).astype(np.float32)


def _readers(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The paths of matrices that read the stream, each with that of the norm in front."""
    for path, spec in weight_specs(config, jnp.float32).items():
        if spec.layers is None:
            if path == "unembedder.table":
                yield path, "final_norm.scale"
        elif "embed" in spec.axes[len(spec.axes) - spec.contracted :]:
            parallel = config.layers[spec.layers[0]].parallel
            norm = "mlp_norm" if spec.key.startswith("mlp.") and not parallel else "attention_norm"
            yield path, f"{path.removesuffix(spec.key)}{norm}.scale"


def _norm(config: ModelConfig, spec: WeightSpec) -> NormConfig:
    """The configuration of the norm that a leaf is, or is behind."""
    norm = config.final_norm if spec.layers is None else config.layers[spec.layers[0]].norm
    assert norm is not None
    return norm


def _beside(gain: Float[Array, "*L D"], spec: WeightSpec) -> Float[Array, "..."]:
    """Gains of stacked layers, with axes for the outputs of a stacked matrix."""
    lead = 0 if spec.layers is None else 1
    between = len(spec.shape) - lead - 1
    return gain.astype(jnp.float32).reshape(*gain.shape[:lead], *(1,) * between, gain.shape[-1])


@jax.jit
def _read(leaf: Float[Array, "*out D"], gain: Float[Array, "..."], turn: Float[Array, "D D"]) -> Float[Array, "*out D"]:
    turned = jnp.matmul(leaf.astype(jnp.float32) * gain, turn, precision="highest")
    return turned.astype(leaf.dtype)


def _written(leaf: Float[Array, "..."], turn: Float[Array, "D D"], axis: int) -> Float[Array, "..."]:
    """A leaf whose entries along `axis` are added to the stream."""
    turned = jnp.tensordot(leaf.astype(jnp.float32), turn, axes=(axis, 0), precision="highest")
    return jnp.moveaxis(turned, -1, axis).astype(leaf.dtype)
