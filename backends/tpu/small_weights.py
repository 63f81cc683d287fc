"""Numbers of a layer, such as scales, in a loop over layers: side by side in one array, as XLA cuts each array's layer
out by an operation of its own, which costs some 2,100 cycles however small it is."""

from collections import defaultdict
from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from ..base import Carry, PyTree

_MOST = 2**16
"""Numbers of a layer's part that is small; matrices are more."""


def with_joined_numbers(
    loop: Callable[..., Carry],
    body: Callable[[Carry, PyTree, Int[Array, ""]], Carry],
    carry: Carry,
    stacked: PyTree,
    length: int,
) -> Carry:
    """`loop(body, carry, stacked, length)`, in which small leaves of one type are one leaf."""
    leaves, structure = jax.tree.flatten(stacked)
    kinds: dict[jnp.dtype, list[int]] = defaultdict(list)
    for place, leaf in enumerate(leaves):
        if prod(leaf.shape[1:]) <= _MOST and jnp.issubdtype(leaf.dtype, jnp.floating):
            kinds[leaf.dtype].append(place)
    groups = [places for places in kinds.values() if len(places) > 1]
    inside = {place for places in groups for place in places}
    joined = [jnp.concatenate([leaves[place].reshape(length, -1) for place in places], axis=1) for places in groups]
    rest = [None if place in inside else leaf for place, leaf in enumerate(leaves)]

    def one_layer(carry: Carry, parts: tuple[list[Array], list[Array | None]], layer: Int[Array, ""]) -> Carry:
        found = list(parts[1])
        for places, numbers in zip(groups, parts[0], strict=True):
            start = 0
            for place in places:
                shape = leaves[place].shape[1:]
                found[place] = numbers[start : start + prod(shape)].reshape(shape)
                start += prod(shape)
        return body(carry, jax.tree.unflatten(structure, found), layer)

    return loop(one_layer, carry, (joined, rest), length)
