"""What pruning is asked for, and what of it does not go together with a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import jax.numpy as jnp
import numpy as np

from ...backends.errors import InvalidParameterError, UnsupportedError
from ..config import MlpConfig, ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .calibrate import Inputs, Key
from .masks import NOfM, magnitude, wanda
from .sparsegpt import sparsegpt

METHODS: Final = ("magnitude", "wanda", "sparsegpt")
PATTERNS: Final = ("unstructured", "2:4", "4:8", "heads", "query-heads", "channels", "layers")
STRUCTURED: Final = PATTERNS[3:]
"""What leaves a smaller model."""

_KEPT = frozenset({"router", "one"})
"""Axes of small matrices that decide much: routers, gates of experts."""


@dataclass(frozen=True)
class Pruning:
    """What is to go.

    Args:
        pattern: single weights (`unstructured`); N of every M inputs (`2:4`); key and value heads with their query
            heads (`heads`); query heads of each of those (`query-heads`); channels of feed-forward layers; layers.
        method: how it is chosen; None for layers, which are chosen by what they do to their inputs.
        sparsity: the share that goes.
    """

    pattern: str
    method: str | None
    sparsity: float

    @property
    def structured(self) -> bool:
        return self.pattern in STRUCTURED

    @property
    def n_of_m(self) -> NOfM | None:
        if ":" not in self.pattern:
            return None
        count, size = self.pattern.split(":")
        return int(count), int(size)

    @property
    def reads(self) -> bool:
        """Whether it takes a text."""
        return self.method != "magnitude"

    def told(self) -> dict[str, Any]:
        """For people and files."""
        return {"pattern": self.pattern, "method": self.method or "angular", "sparsity": self.sparsity}


def parse_pruning(pattern: str, method: str | None, sparsity: float | None) -> Pruning:
    """What three options say.

    Raises:
        InvalidParameterError: a name that does not exist, a share that is none, or what does not go together.
    """
    if pattern not in PATTERNS:
        raise InvalidParameterError("pattern", pattern, f"one of {', '.join(PATTERNS)}")
    if method is not None and method not in METHODS:
        raise InvalidParameterError("method", method, f"one of {', '.join(METHODS)}")
    if pattern == "layers" and method is not None:
        raise InvalidParameterError("method", method, "none: layers are chosen by the angle they turn their inputs by")
    fixed = {"2:4": 0.5, "4:8": 0.5}.get(pattern)
    if fixed is not None and sparsity not in (None, fixed):
        raise InvalidParameterError("sparsity", sparsity, f"none with pattern {pattern}, which leaves {fixed}")
    share = sparsity if fixed is None else fixed
    if share is None or not 0 < share < 1:
        raise InvalidParameterError("sparsity", share, f"the share of {_meant(pattern)} to remove, between 0 and 1")
    return Pruning(pattern, method or (None if pattern == "layers" else "wanda"), share)


def check_pruning(pruning: Pruning, config: ModelConfig) -> None:
    """Declines what a model does not allow, before anything is read.

    Raises:
        UnsupportedError: the family has parts that this cannot prune.
        InvalidParameterError: inputs that do not divide into groups; a share that leaves all, or none.
    """
    experts = any(not isinstance(layer.mlp, MlpConfig) for layer in config.layers)
    if pruning.structured:
        if pruning.pattern == "channels" and experts:
            raise UnsupportedError(
                f"pattern channels: family {config.family} has experts, whose channels are not pruned; prune heads, "
                "layers or single weights"
            )
        if "heads" in pruning.pattern and any(layer.attention.qk_norm == "full" for layer in config.layers):
            raise UnsupportedError(
                f"pattern {pruning.pattern}: family {config.family} normalises queries over all heads, so that none "
                "can go without changing the others; prune channels, layers or single weights"
            )
        for layer in range(config.num_layers):
            counted(pruning, config, layer)
        return
    if experts and pruning.method != "magnitude":
        raise UnsupportedError(
            f"method {pruning.method}: family {config.family} has experts, whose inputs are not observed; use magnitude"
        )
    if (group := pruning.n_of_m) is not None:
        for spec in pruned_specs(config):
            width = _width(spec)
            if width % group[1]:
                raise InvalidParameterError(
                    "pattern", pruning.pattern, f"inputs in groups of {group[1]}: {spec.path} has {width}"
                )


def counted(pruning: Pruning, config: ModelConfig, layer: int) -> tuple[int, int]:
    """How many heads, channels or layers go, and of how many; those of one layer, where there are any.

    Raises:
        InvalidParameterError: none would go, or none stay.
    """
    attention, mlp = config.layers[layer].attention, config.layers[layer].mlp
    total = {
        "heads": attention.num_kv_heads,
        "query-heads": attention.num_heads // attention.num_kv_heads,
        "channels": mlp.dim if isinstance(mlp, MlpConfig) else 0,
        "layers": config.num_layers,
    }[pruning.pattern]
    gone = round(pruning.sparsity * total)
    if not 0 < gone < total:
        raise InvalidParameterError(
            "sparsity", pruning.sparsity, f"a share of the {total} {_meant(pruning.pattern)} that leaves some, not all"
        )
    return gone, total


def pruned_specs(config: ModelConfig) -> list[WeightSpec]:
    """The matrices of layers: what single weights are taken out of."""
    specs = weight_specs(config, jnp.float32).values()
    return [spec for spec in specs if spec.contracted and spec.layers is not None and _KEPT.isdisjoint(spec.axes)]


def sparse(weights: Weights, config: ModelConfig, pruning: Pruning, inputs: Mapping[Key, Inputs]) -> Weights:
    """The weights with zeros in their matrices.

    Args:
        weights: in floating point.
        pruning: one that is not structured, and that check_pruning lets pass.
        inputs: what `calibrate` found; nothing for magnitude.
    """
    flat = dict(flatten(weights))
    for spec in pruned_specs(config):
        leaf = np.asarray(flat[spec.path], np.float32)
        made = [_matrices(matrix, spec, pruning, inputs.get((spec.path, number))) for number, matrix in enumerate(leaf)]
        flat[spec.path] = jnp.asarray(np.stack(made), flat[spec.path].dtype)
    return unflatten(flat)


def zeros(weights: Weights, config: ModelConfig) -> float:
    """The share of zeros in the matrices of layers."""
    flat, specs = flatten(weights), pruned_specs(config)
    nothing = sum(int(np.count_nonzero(np.asarray(flat[spec.path]) == 0)) for spec in specs)
    return nothing / sum(prod(spec.shape) for spec in specs)


def _matrices(leaf: np.ndarray, spec: WeightSpec, pruning: Pruning, inputs: Inputs | None) -> np.ndarray:
    """One layer's leaf; each expert's matrix by itself."""
    count = leaf.shape[0] if "expert" in spec.axes else 1
    made: list[np.ndarray] = []
    for matrix in leaf.reshape(count, -1, _width(spec)):
        if pruning.method == "magnitude":
            made.append(magnitude(matrix, pruning.sparsity, pruning.n_of_m))
        else:
            assert inputs is not None
            choose = wanda if pruning.method == "wanda" else sparsegpt
            made.append(choose(matrix, inputs.products, pruning.sparsity, pruning.n_of_m))
    return np.stack(made).reshape(leaf.shape)


def _width(spec: WeightSpec) -> int:
    return prod(spec.shape[len(spec.shape) - spec.contracted :])


def _meant(pattern: str) -> str:
    return {"heads": "key and value heads", "query-heads": "query heads of each of these"}.get(
        pattern, pattern if pattern in STRUCTURED else "weights"
    )


def kept_numbers(scores: Sequence[float] | np.ndarray, gone: int) -> np.ndarray:
    """Which stay, in order, when as many as `gone` of the lowest scores go."""
    order = np.argsort(np.asarray(scores), kind="stable")
    return np.sort(order[gone:])
