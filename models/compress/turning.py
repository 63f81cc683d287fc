"""Turns the stream while weights are loaded, in fp32, before they are rounded."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32

from ...backends.base import PyTree
from ...backends.errors import UnsupportedError
from ..config import ModelConfig
from ..decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from .quantize import Quantizer
from .rotate import Turns, check_rotatable
from .scheme import Scheme
from .turn import turned_back


def is_turned(scheme: Scheme, config: ModelConfig) -> bool:
    """Whether weights that are rounded as they are loaded are turned before: where a token has one scale for numbers
    of even steps, so that its largest channel decides it, and the family allows."""
    if not (scheme.activations and scheme.kind == "int8"):
        return False
    try:
        check_rotatable(config)
    except UnsupportedError:
        return False
    return True


class Turning:
    """What becomes of each leaf, one after the other: turned, then rounded. Gains come before matrices.

    Args:
        made: what rounds.
        config: of the model as it is stored.
    """

    def __init__(self, made: Quantizer, config: ModelConfig) -> None:
        after = replace(config, tied=False)
        self._made, self._tied = made, config.tied
        self._specs, self._turns = weight_specs(after, jnp.float32), Turns(after)
        self._head: PyTree = None

    def __call__(self, spec: WeightSpec, leaf: Float[Array, "..."]) -> PyTree:
        """A leaf as it is held; `leaf` is consumed."""
        plain = self._turns.see(spec, leaf)
        if plain is not None:
            return plain
        if self._tied and spec.path == "embedder.table":
            head = self._specs["unembedder.table"]
            self._head = self._made(head, jnp.copy(leaf), self._turns.of(head))
        return self._made(spec, leaf, self._turns.of(spec))

    def whole(self, weights: Weights) -> Weights:
        """With the table that scores the vocabulary, which reads another stream than the other one writes."""
        flat = flatten(weights)
        if self._tied:
            flat["unembedder.table"] = self._head
        return unflatten({path: flat[path] for path in self._specs})

    def back(self) -> "Back":
        """What hidden states become, in every process."""
        gain = self._turns.last_gain
        if isinstance(gain.sharding, NamedSharding):
            gain = jax.device_put(gain, NamedSharding(gain.sharding.mesh, PartitionSpec()))
        return Back(np.asarray(gain))


@dataclass(frozen=True)
class Back:
    """Takes hidden states behind the last norm of a turned model to those of the model as it was stored.

    Args:
        gain: which the norm had.
    """

    gain: Float32[np.ndarray, "D"]

    def __call__(self, hidden: Float[np.ndarray, "*rows D"]) -> Float32[np.ndarray, "*rows D"]:
        return turned_back(hidden) * self.gain
