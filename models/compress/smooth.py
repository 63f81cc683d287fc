"""Moves scales of input channels out of matrices into what makes these inputs, so that rounding hurts less.

A matrix W of inputs x is the same as W diag(s) of inputs x / s. The division is folded into the norm in front, or into
the outputs of the matrix in front. SmoothQuant (Xiao et al., arXiv 2211.10438) chooses s = max|x|^a / max|w|^(1-a), so
that activations lose their outliers; AWQ (Lin et al., arXiv 2306.00978) searches s = mean|x|^a for the a with the
smallest error of the outputs, here by root mean squares.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ...backends.errors import UnsupportedError
from ..config import LayerConfig, MlpConfig, ModelConfig
from .calibrate import Inputs, Key

type Flat = dict[str, Float[np.ndarray, "..."]]
type Choose = Callable[[Sequence[Float[np.ndarray, "_ K"]], Inputs], Float[np.ndarray, "K"]]
"""The scales s of inputs that several matrices share."""

_LEAST = 1e-5


@dataclass(frozen=True)
class Fold:
    """Matrices that share their inputs, and where the division of these goes.

    Args:
        matrices: their leaves.
        norm: the norm in front, None where it is a matrix.
        offset: of that norm's scale.
        source: the matrix in front, whose outputs (and bias) are divided.
    """

    matrices: tuple[str, ...]
    norm: str | None = None
    offset: float = 0.0
    source: str | None = None


def folds(config: ModelConfig) -> Iterator[Fold]:
    """Every place of a model's layers where scales can be moved.

    Raises:
        UnsupportedError: the family has no norm right in front of its matrices, or experts.
    """
    for number, segment in enumerate(config.segments):
        for position, layer in enumerate(segment.block):
            yield from _layer_folds(config, f"segments.{number}.layers.{position}", layer)


def _layer_folds(config: ModelConfig, path: str, layer: LayerConfig) -> Iterator[Fold]:
    if layer.placement not in ("pre", "sandwich") or layer.parallel or not isinstance(layer.mlp, MlpConfig):
        raise UnsupportedError(
            f"family {config.family}: AWQ and SmoothQuant are for layers with a norm in front of attention and of a "
            "dense feed-forward; use gptq or rtn"
        )
    names = [f"{path}.attention.{name}.weight" for name in "qkv"]
    yield Fold(tuple(names), f"{path}.attention_norm.scale", layer.norm.offset)
    first = ("gate", "up") if layer.mlp.gated else ("up",)
    yield Fold(tuple(f"{path}.mlp.{name}.weight" for name in first), f"{path}.mlp_norm.scale", layer.norm.offset)
    if layer.mlp.gated and layer.mlp.activation != "swigluoai":
        # What goes down is a product with `up`, so that dividing up's outputs divides it.
        yield Fold((f"{path}.mlp.down.weight",), source=f"{path}.mlp.up.weight")


def smooth(flat: Flat, config: ModelConfig, inputs: Mapping[Key, Inputs], choose: Choose) -> Flat:
    """The same model with scales moved, as `choose` says; what is changed is copied."""
    made = dict(flat)
    for fold in folds(config):
        old = [made[name] for name in fold.matrices]
        new, norm = [leaf.copy() for leaf in old], None if fold.norm is None else made[fold.norm].copy()
        bias_name = None if fold.norm is None else fold.norm.removesuffix("scale") + "bias"
        bias = made[bias_name].copy() if bias_name in made else None
        source = None if fold.source is None else made[fold.source].copy()
        source_bias_name = None if fold.source is None else fold.source.removesuffix("weight") + "bias"
        source_bias = made[source_bias_name].copy() if source_bias_name in made else None
        for layer in range(len(old[0])):
            seen = inputs[fold.matrices[0], layer]
            width = len(seen.largest)
            scales = choose([leaf[layer].reshape(-1, width) for leaf in old], seen)
            for leaf in new:
                leaf[layer] = (leaf[layer].reshape(-1, width) * scales).reshape(leaf[layer].shape)
            if norm is not None:
                norm[layer] = (norm[layer] + fold.offset) / scales - fold.offset
            for leaf in (bias, source_bias):
                if leaf is not None:
                    leaf[layer] /= scales
            if source is not None:
                source[layer] /= scales[:, None]
        made |= dict(zip(fold.matrices, new, strict=True))
        for name, leaf in (
            (fold.norm, norm),
            (bias_name, bias),
            (fold.source, source),
            (source_bias_name, source_bias),
        ):
            if name is not None and leaf is not None:
                made[name] = leaf
    return made


def smoothquant(strength: float = 0.5) -> Choose:
    """Scales that share the difficulty between activations and weights."""

    def choose(matrices: Sequence[Float[np.ndarray, "_ K"]], seen: Inputs) -> Float[np.ndarray, "K"]:
        largest = np.max([np.abs(matrix).max(axis=0) for matrix in matrices], axis=0)
        scales = np.maximum(seen.largest, _LEAST) ** strength / np.maximum(largest, _LEAST) ** (1 - strength)
        return np.maximum(scales, _LEAST)

    return choose


def awq(rounded: Callable[[Float[np.ndarray, "N K"]], Float[np.ndarray, "N K"]], steps: int = 20) -> Choose:
    """Scales after which `rounded` changes the outputs least."""

    def choose(matrices: Sequence[Float[np.ndarray, "_ K"]], seen: Inputs) -> Float[np.ndarray, "K"]:
        size = np.sqrt(np.maximum(np.diag(seen.products) / max(seen.tokens, 1), _LEAST**2))
        best, least = np.ones(len(size), np.float32), np.inf
        for step in range(steps):
            scales = np.maximum(size ** (step / steps), 1e-4)
            scales /= np.sqrt(scales.max() * scales.min())
            error = 0.0
            for matrix in matrices:
                change = rounded(matrix * scales) / scales - matrix
                error += float(np.einsum("NK,KJ,NJ->", change, seen.products, change, optimize=True))
            if error < least:
                best, least = scales.astype(np.float32), error
        return best

    return choose
