"""Rotary position embedding (arXiv 2104.09864) of heads, in plain jax.numpy."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def rotate(x: Float[Array, "T N H"], cos: Float[Array, "T R"], sin: Float[Array, "T R"]) -> Float[Array, "T N H"]:
    """Rotates the first 2 R entries of each head: entry i pairs with entry i + R."""
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half].astype(jnp.float32), x[..., half : 2 * half].astype(jnp.float32)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
    return jnp.concatenate([turned, x[..., 2 * half :]], axis=-1)
