"""Moves scales of input channels out of matrices into what makes these inputs, so that rounding hurts less.

A matrix W of inputs x is the same as W diag(s) of inputs x / s. The division is folded into the norm in front, or into
the outputs of the matrix in front. SmoothQuant (Xiao et al., arXiv 2211.10438) has s = max|x|^a / max|w|^(1-a), so that
activations lose their outliers; AWQ (Lin et al., arXiv 2306.00978) s = mean|x|^a, here by root mean squares. For both,
each place gets the a with the smallest error of its outputs on a text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...backends.errors import UnsupportedError
from ...backends.quantized import dequantized
from ..config import LayerConfig, MlpConfig, ModelConfig
from .calibrate import Inputs, rounded_inputs
from .quantize import to_nearest
from .scheme import Kind

type Leaves = dict[str, Float[np.ndarray, "..."]]
"""Of one layer, by their keys."""
type Rounded = Callable[[Float[np.ndarray, "N K"]], Float[np.ndarray, "N K"]]
"""What becomes of a matrix."""

_LEAST = 1e-5
_STEPS = 20
"""How many exponents are tried."""


@dataclass(frozen=True)
class Tied:
    """Inputs [heads of keys, `heads` of each, `width`], of which those of one head of keys share their scales."""

    heads: int
    width: int

    def largest(self, x: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
        """In place of each number the largest of those that share a scale."""
        grouped = x.reshape(-1, self.heads, self.width)
        return np.broadcast_to(grouped.max(axis=1, keepdims=True), grouped.shape).reshape(-1)

    def first(self, x: Float[np.ndarray, "K"]) -> Float[np.ndarray, "outputs"]:
        """One of the equal numbers for each output of the source."""
        return x.reshape(-1, self.heads, self.width)[:, 0].reshape(-1)


type Choose = Callable[[Sequence[Float[np.ndarray, "_ K"]], Inputs, Tied | None], Float[np.ndarray, "K"]]
"""Finds the scales s of inputs that several matrices share."""


@dataclass(frozen=True)
class Fold:
    """Matrices that share their inputs, and where the division of these goes.

    Args:
        matrices: their leaves.
        norm: the norm in front, None where it is a matrix.
        offset: of that norm's scale.
        source: the matrix in front, whose outputs (and bias) are divided.
        tied: the inputs that share an output of the source; None: each has its own.
    """

    matrices: tuple[str, ...]
    norm: str | None = None
    offset: float = 0.0
    source: str | None = None
    tied: Tied | None = None


def check_smooth(config: ModelConfig) -> None:
    """Raises UnsupportedError where a family has no norm right in front of its matrices, or experts."""
    for layer in config.layers:
        list(layer_folds(config, layer))


def layer_folds(config: ModelConfig, layer: LayerConfig) -> Iterator[Fold]:
    """Every place of a layer where scales can be moved, in the order of the layer."""
    if layer.placement not in ("pre", "sandwich") or layer.parallel or not isinstance(layer.mlp, MlpConfig):
        raise UnsupportedError(
            f"family {config.family}: AWQ and SmoothQuant are for layers with a norm in front of attention and of a "
            "dense feed-forward; use gptq or rtn"
        )
    names = [f"attention.{name}.weight" for name in "qkv"]
    yield Fold(tuple(names), "attention_norm.scale", layer.norm.offset)
    # Attention is a weighted sum of values: what divides these divides it.
    attention = layer.attention
    tied = Tied(attention.num_heads // attention.num_kv_heads, attention.head_dim)
    yield Fold(("attention.o.weight",), source="attention.v.weight", tied=tied)
    first = ("gate", "up") if layer.mlp.gated else ("up",)
    yield Fold(tuple(f"mlp.{name}.weight" for name in first), "mlp_norm.scale", layer.norm.offset)
    if layer.mlp.gated and layer.mlp.activation != "swigluoai":
        # What goes down is a product with `up`, so that dividing up's outputs divides it.
        yield Fold(("mlp.down.weight",), source="mlp.up.weight")


def smooth(
    leaves: Leaves, config: ModelConfig, layer: LayerConfig, seen: Mapping[str, Inputs], choose: Choose
) -> tuple[Leaves, dict[str, Inputs]]:
    """The same layer with scales moved, as `choose` says, and what goes into its matrices then.

    Args:
        leaves: in fp32; what is changed is copied.
        seen: what goes into the matrices as they are.
    """
    made, inputs = dict(leaves), dict(seen)
    for fold in layer_folds(config, layer):
        matrices, found = [made[name] for name in fold.matrices], inputs[fold.matrices[0]]
        width = len(found.largest)
        scales = choose([matrix.reshape(-1, width) for matrix in matrices], found, fold.tied)
        for name, matrix in zip(fold.matrices, matrices, strict=True):
            made[name] = (matrix.reshape(-1, width) * scales).reshape(matrix.shape)
        divided = found.scaled(scales)
        inputs |= dict.fromkeys(fold.matrices, divided)
        if fold.norm is not None:
            made[fold.norm] = (made[fold.norm] + fold.offset) / scales - fold.offset
            _divide(made, fold.norm.removesuffix("scale") + "bias", scales)
        if fold.source is not None:
            outputs = scales if fold.tied is None else fold.tied.first(scales)
            _divide(made, fold.source, outputs)
            _divide(made, fold.source.removesuffix("weight") + "bias", outputs)
    return made, inputs


def _divide(leaves: Leaves, name: str, scales: Float[np.ndarray, "N"]) -> None:
    """Outputs of a matrix or of a bias, if there is one."""
    if (leaf := leaves.get(name)) is not None:
        outer = leaf.reshape(len(scales), -1) if name.endswith("weight") else leaf.reshape(len(scales), 1)
        leaves[name] = (outer / scales[:, None]).reshape(leaf.shape)


def smoothquant_scales(
    matrices: Sequence[Float[np.ndarray, "_ K"]], seen: Inputs, strength: float, tied: Tied | None = None
) -> Float[np.ndarray, "K"]:
    """The published formula."""
    inputs, weights = seen.largest, np.max([np.abs(matrix).max(axis=0) for matrix in matrices], axis=0)
    if tied is not None:
        inputs, weights = tied.largest(inputs), tied.largest(weights)
    return np.maximum(inputs, _LEAST) ** strength / np.maximum(weights, _LEAST) ** (1 - strength)


def smoothquant(kind: Kind) -> Choose:
    """The formula's scales, or those of activations alone, of the strength after which rounded products of a sample
    differ least from what they were; each matrix counts by the size of its outputs."""

    def choose(matrices: Sequence[Float[np.ndarray, "_ K"]], seen: Inputs, tied: Tied | None) -> Float[np.ndarray, "K"]:
        x = np.concatenate(seen.rows)
        inputs = seen.largest if tied is None else tied.largest(seen.largest)
        best, least = (
            np.ones(x.shape[1], np.float32),
            _rounding_cost(x, tuple(matrices), np.ones(x.shape[1], np.float32), kind),
        )
        for step in range(1, _STEPS, 2):
            strength = step / _STEPS
            for scales in (
                smoothquant_scales(matrices, seen, strength, tied),
                np.maximum(inputs, _LEAST) ** strength,
            ):
                scales = _centred(scales)
                if (cost := _rounding_cost(x, tuple(matrices), scales, kind)) < least:
                    best, least = scales, cost
        return best

    return choose


def awq(rounded: Rounded) -> Choose:
    """Scales after which `rounded` changes the outputs least."""

    def choose(matrices: Sequence[Float[np.ndarray, "_ K"]], seen: Inputs, tied: Tied | None) -> Float[np.ndarray, "K"]:
        size = np.sqrt(np.maximum(np.diag(seen.products) / max(seen.tokens, 1), _LEAST**2))
        if tied is not None:
            size = tied.largest(size)
        best, least = np.ones(len(size), np.float32), np.inf
        for step in range(_STEPS):
            scales = _centred(np.maximum(size ** (step / _STEPS), 1e-4))
            cost = 0.0
            for matrix in matrices:
                change = rounded(matrix * scales) / scales - matrix
                cost += float(np.vdot(change @ seen.products, change))
            if cost < least:
                best, least = scales, cost
        return best

    return choose


def _centred(scales: Float[np.ndarray, "K"]) -> Float[np.ndarray, "K"]:
    """With one in the middle, so that nothing becomes large that was small."""
    return (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)


def _rounding_cost(
    x: Float[np.ndarray, "T K"],
    matrices: tuple[Float[np.ndarray, "_ K"], ...],
    scales: Float[np.ndarray, "K"],
    kind: Kind,
) -> float:
    return float(_cost(x, matrices, scales, kind))


@partial(jax.jit, static_argnums=3)
def _cost(
    x: Float[Array, "T K"], matrices: tuple[Float[Array, "_ K"], ...], scales: Float[Array, "K"], kind: Kind
) -> Float[Array, ""]:
    """The sum over matrices of the share of the outputs that rounding both sides changes, squared."""
    divided, total = rounded_inputs(x / scales, kind), jnp.zeros(())
    for matrix in matrices:
        made = dequantized(to_nearest(matrix * scales, kind, (matrix.shape[0], 1), True))
        wanted = x @ matrix.T
        total += jnp.square(divided @ made.T - wanted).sum() / jnp.maximum(jnp.square(wanted).sum(), _LEAST)
    return total
