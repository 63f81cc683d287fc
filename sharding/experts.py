"""Tokens sent to the devices of their experts: all-to-all dispatch in buffers of a static size, nothing is dropped.

Each device routes its own tokens and sends each of them once to every device that holds some of its experts, with their
numbers and weights. That device sends the weighted sum over its experts back, so a token's part of the answer is as
wide as the token, however many experts it has there. A buffer holds `capacity` tokens for each pair of devices: as many
as a device has tokens can never overflow. With fewer, what does not fit goes in further rounds, until every device of
the group is done.
"""

from math import ceil, comb

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..models.placement import Apply
from .layout import Axes


def share_sent(top_k: int, num_experts: int, parts: int) -> float:
    """The fraction of its tokens that a device sends to each of `parts` devices, if experts are chosen evenly: those
    that have one of their top_k among num_experts / parts of them."""
    elsewhere = num_experts - num_experts // parts
    return 1 - comb(elsewhere, top_k) / comb(num_experts, top_k)


def capacity_of(num_tokens: int, top_k: int, num_experts: int, parts: int, factor: float | None) -> int:
    """Tokens that a device sends to each other one in a round.

    Args:
        num_tokens: of one device.
        factor: times what is sent if experts are chosen evenly; None: as many as there can ever be.
    """
    if factor is None:
        return num_tokens
    return min(num_tokens, ceil(factor * num_tokens * share_sent(top_k, num_experts, parts)))


def dispatch(
    apply: Apply,
    x: Float[Array, "T D"],
    experts: Int[Array, "T A"],
    weights: Float[Array, "T A"],
    real: Bool[Array, "T"],
    *,
    axes: Axes,
    parts: int,
    held: int,
    capacity: int,
) -> tuple[Float[Array, "T D"], Int[Array, ""]]:
    """The weighted sum of each token's experts; inside shard_map.

    Args:
        apply: as Placement.dispatch has it.
        x, experts, weights: of this device's tokens; experts are counted over all devices.
        real: tokens that matter; the others are sent nowhere and get zeros.
        axes, parts: mesh axes of the experts, devices along them.
        held: experts on each device.
        capacity: tokens for each device in a round.

    Returns:
        The sums, and how many copies of tokens found no place in the first round.
    """
    num_tokens, width = x.shape
    device = jnp.arange(parts)
    wanted = ((experts // held)[:, None, :] == device[None, :, None]).any(-1) & real[:, None]  # [T parts]
    place = jnp.cumsum(wanted, axis=0, dtype=jnp.int32) - 1  # in the queue to each device
    queue = jnp.argsort(~wanted.T, axis=1, stable=True)  # [parts T]: those that are sent first
    counts = wanted.sum(axis=0, dtype=jnp.int32)
    rounds = -(-num_tokens // capacity)
    queue = jnp.pad(queue, ((0, 0), (0, rounds * capacity - num_tokens)))

    def exchange(y: Array) -> Array:
        """[parts capacity ...]: what lies for each device here <-> what lies for this one there."""
        return jax.lax.all_to_all(y, axes, 0, 0, tiled=True)

    def one_round(number: Int[Array, ""] | int) -> Float[Array, "T D"]:
        first = number * capacity
        token = jax.lax.dynamic_slice_in_dim(queue, first, capacity, axis=1)
        used = first + jnp.arange(capacity) < counts[:, None]
        local = jnp.where(used[..., None], experts[token] - (device * held)[:, None, None], -1)
        how = jnp.concatenate([local, jax.lax.bitcast_convert_type(weights[token], jnp.int32)], axis=-1)
        tokens, how = exchange(x[token]), exchange(how)
        local, factors = jnp.split(how.reshape(parts * capacity, -1), 2, axis=1)
        y = apply(tokens.reshape(-1, width), local, jax.lax.bitcast_convert_type(factors, jnp.float32))
        back = exchange(y.reshape(parts, capacity, width))
        # A token takes its parts from where it stood in each queue, so that they add up in one order.
        inside = wanted & (place >= first) & (place < first + capacity)
        parts_of = back[device[None], jnp.clip(place - first, 0, capacity - 1)]
        return jnp.where(inside[..., None], parts_of, 0).astype(jnp.float32).sum(axis=1)

    late = jnp.maximum(counts - capacity, 0).sum()
    if rounds == 1:
        return one_round(0).astype(x.dtype), late
    needed = jax.lax.pmax((counts.max() + capacity - 1) // capacity, axes)

    def advance(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        number, total = carry
        return number + 1, total + one_round(number)

    start = (jnp.int32(0), jnp.zeros(x.shape, jnp.float32))
    _, total = jax.lax.while_loop(lambda carry: carry[0] < needed, advance, start)
    return total.astype(x.dtype), late
