"""What a checkpoint stores as small numbers, told before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp

from ...backends.quantized import Rounding
from ..config import ModelConfig
from .assemble import leaf_plans
from .base import Checkpoint
from .gguf import GGUFCheckpoint
from .hf_folder import HFFolder


@dataclass(frozen=True)
class Stored:
    """Weights that are stored as small numbers.

    Args:
        roundings: of those that products take so, by their paths: `load_weights` with `keep` gives them as Quantized.
        expanded: why the others come as the floats that they stand for, by their paths.
        by_default: whether the format is meant to be multiplied as it is stored.
    """

    roundings: Mapping[str, Rounding]
    expanded: Mapping[str, str]
    by_default: bool


def stored_numbers(checkpoint: Checkpoint, config: ModelConfig) -> Stored:
    """Of whatever checkpoint."""
    keeper = checkpoint.keeper if isinstance(checkpoint, HFFolder | GGUFCheckpoint) else None
    by_default = isinstance(checkpoint, HFFolder)
    if keeper is None:
        return Stored({}, {}, by_default)
    plans = leaf_plans(keeper.tensors, config, dtype=jnp.float32, source=str(checkpoint.path))
    found = {plan.spec.path: keeper.rounding(plan.spec, plan.pieces[0].source) for plan in plans}
    return Stored(
        {path: each for path, each in found.items() if isinstance(each, Rounding)},
        {path: each for path, each in found.items() if isinstance(each, str)},
        by_default,
    )
