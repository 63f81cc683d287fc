"""Turns the residual stream, so that no channel stands out (QuaRot, Ashkboos et al., arXiv 2404.00456; SliceGPT's
computational invariance, arXiv 2401.15024).

RMSNorm without gains does not see an orthogonal Q: with gains moved into the matrices behind norms, what writes to the
stream made Q^T W and what reads it W Q, a model computes what it did. A channel that was twenty times as large as the
others, and so decided the scale of every token, is spread over all of them. Nothing is left to do at run time.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from ...backends.base import PyTree
from ...backends.errors import UnsupportedError
from ..config import ModelConfig, NormConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .smaller import describes
from .turn import turned

_HEAD, _LAST_NORM = "unembedder.table", "final_norm.scale"


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


@partial(jax.tree_util.register_dataclass, data_fields=["gain"], meta_fields=["axis"])
@dataclass(frozen=True)
class Turn:
    """What becomes of a leaf that reads the stream or writes to it.

    Args:
        gain: of the norm in front of a matrix that reads; where layers are stacked, a row for each.
        axis: along which entries are those of the stream, counted from the end.
    """

    gain: Float32[Array, "*L D"] | None
    axis: int

    def __call__(self, leaf: Float[Array, "..."]) -> Float32[Array, "..."]:
        """The leaf in fp32, for whatever type it is rounded to."""
        leaf = jnp.moveaxis(leaf.astype(jnp.float32), self.axis, -1)
        if self.gain is not None:
            *lead, size = self.gain.shape
            leaf = leaf * self.gain.reshape(*lead, *(1,) * (leaf.ndim - len(lead) - 1), size)
        return jnp.moveaxis(turned(leaf), -1, self.axis)


class Turns:
    """How each leaf is turned, once the gains of norms were seen.

    Args:
        config: of the turned model, whose vocabulary is scored by a table of its own.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._norms = dict(_readers(config))
        self._gains: dict[str, Float32[Array, "*L D"]] = {}

    def see(self, spec: WeightSpec, leaf: Float[Array, "..."]) -> Float[Array, "..."] | None:
        """Of a norm whose gains move into the matrices behind it, gains that do nothing; None for any other leaf."""
        if spec.path not in self._norms.values():
            return None
        offset = _norm(self._config, spec).offset
        self._gains[spec.path] = leaf.astype(jnp.float32) + offset
        return jnp.full_like(leaf, 1 - offset)

    def of(self, spec: WeightSpec) -> Turn | None:
        """None for a leaf that has nothing to do with the stream."""
        if "embed" not in spec.axes:
            return None
        norm = self._norms.get(spec.path)
        return Turn(None if norm is None else self._gains[norm], spec.axes.index("embed") - len(spec.axes))

    @property
    def last_gain(self) -> Float32[Array, "D"]:
        """Of the norm behind the last layer."""
        return self._gains[_LAST_NORM]


def rotated(weights: Weights, config: ModelConfig) -> Weights:
    """The same model with its stream turned, its table being two where it was tied; `weights` is consumed.

    Args:
        weights: in the checkpoint's form, in floating point, of a model that check_rotatable lets pass.
        config: of these.
    """
    flat = flatten(weights)
    weights.clear()
    after = replace(config, tied=False)
    if config.tied:
        flat[_HEAD] = flat["embedder.table"]
    specs, turns = weight_specs(after, jnp.float32), Turns(after)
    made: dict[str, PyTree] = {}
    for path, spec in specs.items():
        made[path] = turns.see(spec, flat[path])
    for path, spec in specs.items():
        leaf = flat.pop(path)
        if made[path] is None:
            turn = turns.of(spec)
            made[path] = leaf if turn is None else turn_leaf(turn, leaf)
    return unflatten(made)


@jax.jit
def turn_leaf(turn: Turn, leaf: Float[Array, "..."]) -> Float[Array, "..."]:
    """A leaf that stays in its type."""
    return turn(leaf).astype(leaf.dtype)


def _readers(config: ModelConfig) -> Iterator[tuple[str, str]]:
    """The paths of matrices that read the stream, each with that of the norm in front."""
    for path, spec in weight_specs(config, jnp.float32).items():
        if spec.layers is None:
            if path == _HEAD:
                yield path, _LAST_NORM
        elif "embed" in spec.axes[len(spec.axes) - spec.contracted :]:
            parallel = config.layers[spec.layers[0]].parallel
            norm = "mlp_norm" if spec.key.startswith("mlp.") and not parallel else "attention_norm"
            yield path, f"{path.removesuffix(spec.key)}{norm}.scale"


def _norm(config: ModelConfig, spec: WeightSpec) -> NormConfig:
    """The configuration of the norm that a leaf is."""
    norm = config.final_norm if spec.layers is None else config.layers[spec.layers[0]].norm
    assert norm is not None
    return norm
