"""The random numbers behind a draw, for chosen tokens: a function of a row's key and a token's id alone.

Of tokens with weights w, the largest w / E draws one in proportion to w when each E is exponential noise; -log(E) is
Gumbel noise, and this is its largest log(w) + Gumbel, with one logarithm less. E for token i is that of
`jax.random.gumbel(key, (V,))[i]`, bit for bit, whichever tokens it is asked for.

JAX's partitionable threefry hashes the counter (0, i) for entry i. It is spelled out here (Salmon et al., Parallel
random numbers: as easy as 1, 2, 3, 2011: Threefry-2x32, 20 rounds) because on the CPU jax.random runs it as a loop
that writes the whole array five times: 12 ms for the noise of [32, 49152] against 3 ms.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def exponential(keys: Key[Array, "B"], ids: Int[Array, "#B C"]) -> Float[Array, "B C"]:
    """`exp(-jax.random.gumbel(keys[b], (V,)))[ids[b, c]]`: above 1e-7, below 88."""
    data = jax.random.key_data(keys)
    counter = jnp.broadcast_to(ids.astype(jnp.uint32), (data.shape[0], ids.shape[1]))
    bits = _threefry(data, counter)
    # 23 bits as the mantissa of a number between 1 and 2.
    one = np.float32(1).view(np.uint32)
    uniform = jax.lax.bitcast_convert_type((bits >> np.uint32(9)) | one, jnp.float32) - 1
    smallest = np.finfo(np.float32).tiny
    return -jnp.log(jnp.maximum(smallest, uniform * (1 - smallest) + smallest))


def _threefry(key: UInt32[Array, "B 2"], counter: UInt32[Array, "B C"]) -> UInt32[Array, "B C"]:
    """The two words of the hash of (0, counter), folded into one as jax.random.bits does."""
    words = (key[:, :1], key[:, 1:], key[:, :1] ^ key[:, 1:] ^ _PARITY)
    left = jnp.broadcast_to(words[0], counter.shape)
    right = counter + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            left = left + right
            right = left ^ ((right << np.uint32(rotation)) | (right >> np.uint32(32 - rotation)))
        left = left + words[(group + 1) % 3]
        right = right + words[(group + 2) % 3] + np.uint32(group + 1)
    return left ^ right
