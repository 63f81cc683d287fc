"""How a layout reaches the decoder: by logical axis names alone.

models/ calls these at the points where a sharded model has to communicate. On one device each is the identity;
sharding/ supplies implementations for meshes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Array, Bool, Float, Int

from ..backends.base import PyTree
from .config import CacheSite, ModelConfig

State = TypeVar("State")

Apply = Callable[[Array, Array, Array], Array]
"""x [R D], experts [R A], weights [R A] -> [R D]: the weighted sum, for each of any R tokens, of those of its experts
that are here. Experts are numbered from the first one that is here."""


@dataclass(frozen=True)
class Held:
    """What is here of a segment.

    Args:
        repeats: of its block.
        sites: where its layers lie in the cache that is here.
        active: which of the repeats are computed here, the others being there to give all devices the same shapes;
            None: all.
    """

    repeats: int
    sites: tuple[CacheSite, ...]
    active: Callable[[Int[Array, ""]], Bool[Array, ""]] | None = None


@runtime_checkable
class Placement(Protocol):
    """One way to lay a model over devices. Implementations are frozen and hashable."""

    def constrain(self, x: Array, *logical: str | None) -> Array:
        """Says how x is laid out, one logical axis (or None) for each dimension.

        The tokens of the residual stream are "tokens", those that attention projects "attended".
        """
        ...

    def reduce(self, x: Array, logical: str, *, scatter: bool = False) -> Array:
        """Sums partial results of a contraction over a logical axis that may be split.

        With `scatter` the result joins the residual stream: a layout that splits the stream along "tokens" may keep
        just its own part (a reduce-scatter), since a `gather` stands before every use of more than that.
        """
        ...

    def gather(self, x: Array, logical: str, axis: int) -> Array:
        """Makes dimension `axis` of x, split along a logical axis, whole on every device.

        Of the residual stream's tokens each branch asks for those that it starts from: "attended", "fed" and, of a
        mixture of experts, "routed" (the others are `dispatch`'s to gather). "tokens" are all of them.
        """
        ...

    def weights(self, layers: State) -> State:
        """The weights of some layers (nnx state, without the axis "layers") as these are computed with."""
        ...

    def offset(self, logical: str, size: int) -> Int[Array, ""] | int:
        """Index of the first entry of this device's part of a logical axis; `size` is the length of the part."""
        ...

    def parts(self, logical: str) -> int:
        """How many parts a logical axis is split into; "replicas" are those that wait for each other in each step."""
        ...

    def dispatch(
        self,
        apply: Apply,
        x: Float[Array, "T D"],
        experts: Int[Array, "T A"],
        weights: Float[Array, "T A"],
        *,
        held: int,
        rows: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "T_own D"], Int[Array, ""] | int]:
        """The weighted sum of each token's experts, wherever they are; it joins the residual stream.

        Args:
            apply: this device's part of the sum.
            experts, weights: of each token; A of them, all different, counted over all devices.
            held: experts that are here.
            rows: as in Machine.

        Returns:
            The sums, and how many tokens had to wait for a device, since it takes only so many at once.
        """
        ...

    @property
    def beside_experts(self) -> "Placement":
        """The placement of what a mixture computes beside its experts, from the same tokens."""
        ...

    def held(self, config: ModelConfig, segment: int) -> Held:
        """What is here of one of config.segments."""
        ...

    def run_layers(self, run: Callable[[State, PyTree], State], state: State, batch: PyTree) -> State:
        """Runs the layers: `run(state, batch)` applies those held here. A pipeline calls it once per microbatch."""
        ...


@dataclass(frozen=True)
class OneDevice:
    """The identity."""

    def constrain(self, x: Array, *logical: str | None) -> Array:
        return x

    def reduce(self, x: Array, logical: str, *, scatter: bool = False) -> Array:
        return x

    def gather(self, x: Array, logical: str, axis: int) -> Array:
        return x

    def weights(self, layers: State) -> State:
        return layers

    def offset(self, logical: str, size: int) -> Int[Array, ""] | int:
        return 0

    def parts(self, logical: str) -> int:
        return 1

    def dispatch(
        self,
        apply: Apply,
        x: Float[Array, "T D"],
        experts: Int[Array, "T A"],
        weights: Float[Array, "T A"],
        *,
        held: int,
        rows: Int[Array, ""] | None,
    ) -> tuple[Float[Array, "T_own D"], Int[Array, ""] | int]:
        y = apply(x, experts - self.offset("expert", held), weights)
        return self.reduce(self.reduce(y, "mlp"), "expert", scatter=True), 0

    @property
    def beside_experts(self) -> Placement:
        return self

    def held(self, config: ModelConfig, segment: int) -> Held:
        return Held(config.segments[segment].repeats, config.cache_sites[segment])

    def run_layers(self, run: Callable[[State, PyTree], State], state: State, batch: PyTree) -> State:
        return run(state, batch)
