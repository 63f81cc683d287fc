"""A model layer by layer: its weights taken apart and put together again for other layers."""

from collections.abc import Mapping
from dataclasses import fields
from functools import cached_property
from itertools import groupby

import jax.numpy as jnp
import numpy as np

from ..config import ModelConfig, Segment
from ..decoder import Weights, flatten, unflatten, weight_specs

type Key = tuple[str, int]
"""A leaf's path, and the number of a matrix along its first axis (0 where none are stacked)."""

type Entry = tuple[str, int | None]
"""A leaf's key inside its layer and the number of the layer; None for what stands outside of the layers."""

type Entries = dict[Entry, np.ndarray]


class LayerRuns(ModelConfig):
    """The same model cut into runs of equal layers, so that every layer is a step of a loop of its own."""

    @classmethod
    def of(cls, config: ModelConfig) -> "LayerRuns":
        return cls(**{field.name: getattr(config, field.name) for field in fields(config)})

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        found: list[Segment] = []
        for layer, run in groupby(self.layers):
            found.append(Segment((layer,), len(list(run)), sum(segment.repeats for segment in found)))
        return tuple(found)


def places(config: ModelConfig) -> dict[Entry, Key]:
    """Where each entry lies: its leaf's path, and its number along the leaf's first axis."""
    found: dict[Entry, Key] = {}
    for path, spec in weight_specs(config, jnp.float32).items():
        for number, layer in enumerate(spec.layers or (None,)):
            found[spec.key, layer] = path, number
    return found


def unstacked(weights: Weights, config: ModelConfig) -> Entries:
    """Every leaf of every layer, in the type that it is held in."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten(weights).items()}
    return {
        (key, layer): flat[path] if layer is None else flat[path][number]
        for (key, layer), (path, number) in places(config).items()
    }


def stacked(entries: Mapping[Entry, np.ndarray], config: ModelConfig) -> Weights:
    """The weights of a model out of its entries; others are left out."""
    flat = {
        path: jnp.asarray(
            entries[spec.key, None]
            if spec.layers is None
            else np.stack([entries[spec.key, layer] for layer in spec.layers])
        )
        for path, spec in weight_specs(config, jnp.float32).items()
    }
    return unflatten(flat)


def restacked(weights: Weights, old: ModelConfig, new: ModelConfig) -> Weights:
    """The weights of a model for a configuration of the same layers in other blocks."""
    return weights if old.segments == new.segments else stacked(unstacked(weights, old), new)
