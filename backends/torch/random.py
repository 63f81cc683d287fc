"""Random bits as JAX's threefry2x32 makes them (Salmon et al. 2011), bit for bit.

Every word is a uint32 that an int32 carries: sums wrap alike. A key is the last axis of an array of such words.
"""

import math
import operator

import jax

from ..errors import UnsupportedError
from .names import Value, torch
from .rules import Equation, Rule, shifted_right, widen

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA


def threefry(key: tuple[Value, Value], count: tuple[Value, Value]) -> tuple[Value, Value]:
    """The hash of two words under a key of two words."""
    schedule = (*key, key[0] ^ key[1] ^ _PARITY)
    x, y = count[0] + schedule[0], count[1] + schedule[1]
    for turn in range(5):
        for by in _ROTATIONS[turn % 2]:
            x = x + y
            y = ((y << by) | (shifted_right(y, 32 - by) & ((1 << by) - 1))) ^ x
        x = x + schedule[(turn + 1) % 3]
        y = y + schedule[(turn + 2) % 3] + (turn + 1)
    return x, y


def _words(key: Value) -> tuple[Value, Value]:
    return operator.getitem(key, (..., 0)), operator.getitem(key, (..., 1))


def _check() -> None:
    """Raises:
    UnsupportedError: keys count in another way.
    """
    if not jax.config.jax_threefry_partitionable:
        raise UnsupportedError(
            "jax_threefry_partitionable is off: torch backends draw the bits of JAX's default; leave it on"
        )


def _hash(eqn: Equation, *words: Value) -> tuple[Value, Value]:
    key, other, x, y = words
    return threefry((key, other), (x, y))


def _counted(eqn: Equation, keys: Value, shape: tuple[int, ...]) -> tuple[Value, Value]:
    """The hash of 0, 1, ... in the order of `shape`, under each of the keys: [keys..., shape...]."""
    _check()
    first, second = (word.reshape([*eqn.ins[0].shape[:-1], *[1] * len(shape)]) for word in _words(keys))
    low = torch.arange(math.prod(shape), device=eqn.device).to(torch.int32).reshape(shape)
    return threefry((first, second), (torch.zeros_like(low), low))


def _bits(eqn: Equation, keys: Value) -> Value:
    width = eqn.params["bit_width"]
    if width == 64:
        return NotImplemented
    first, second = _counted(eqn, keys, tuple(eqn.params["shape"]))
    return (first ^ second).to(eqn.dtype())


def _split(eqn: Equation, keys: Value) -> Value:
    return torch.stack(_counted(eqn, keys, tuple(eqn.params["shape"])), dim=-1)


def _fold_in(eqn: Equation, keys: Value, data: Value) -> Value:
    _check()
    data = widen(data, eqn.ins[1]).to(torch.int32)
    return torch.stack(threefry(_words(keys), (torch.zeros_like(data), data)), dim=-1)


def _seed(eqn: Equation, seeds: Value) -> Value:
    _check()
    low = widen(seeds, eqn.ins[0]).to(torch.int32)
    return torch.stack((torch.zeros_like(low), low), dim=-1)


RULES: dict[str, Rule] = {
    "threefry2x32": Rule(_hash),
    "random_bits": Rule(_bits, keys=True),
    "random_split": Rule(_split, keys=True),
    "random_fold_in": Rule(_fold_in, keys=True),
    "random_seed": Rule(_seed, keys=True),
}
