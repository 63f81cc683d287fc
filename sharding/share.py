"""Which positions of a KV cache a device holds, where several hold each page: equal runs of positions of every page.

So pages mean the same everywhere, and any text is spread evenly.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int


@dataclass(frozen=True)
class Share:
    """Number `device` of `shares` runs of `run` positions in each page."""

    device: Int[Array, ""]
    run: int
    shares: int

    @property
    def page(self) -> int:
        return self.run * self.shares

    def positions(self, first_page: Int[Array, ""] | int, num_pages: int) -> Int[Array, "S"]:
        """Of what it holds of so many pages of a text, from number `first_page` on."""
        page, inside = jnp.divmod(jnp.arange(num_pages * self.run), self.run)
        return (first_page + page) * self.page + self.device * self.run + inside

    def holds(self, position: Int[Array, "T"]) -> Array:
        return position % self.page // self.run == self.device

    def before(self, position: Int[Array, "B"]) -> Int[Array, "B"]:
        """How many positions below this one it holds."""
        whole, inside = jnp.divmod(position, self.page)
        return whole * self.run + jnp.clip(inside - self.device * self.run, 0, self.run)
