"""Weights of experts in a loop over layers: kept whole, as a kernel's operand that a scan slices is copied first."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..base import Carry, PyTree

_EXPERTS = "experts"
_MATRICES = {"gate", "up", "down"}


@dataclass(frozen=True)
class ExpertLayer:
    """One layer of a stack of matrices, which stays where it is; to anyone but the kernel it is the slice."""

    stack: Float[Array, "L E O I"]
    layer: Int[Array, ""]

    def __jax_array__(self) -> Float[Array, "E O I"]:
        return self.stack[self.layer]

    def __getitem__(self, expert: Int[Array, ""]) -> Float[Array, "O I"]:
        return self.stack[self.layer, expert]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stack.shape[1:]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> DTypeLike:
        return self.stack.dtype


def with_whole_experts(
    loop: Callable[..., Carry],
    body: Callable[[Carry, PyTree, Int[Array, ""]], Carry],
    carry: Carry,
    stacked: PyTree,
    length: int,
) -> Carry:
    """`loop(body, carry, stacked, length)`, whose body finds an ExpertLayer in place of each matrix of experts."""
    paths, structure = jax.tree_util.tree_flatten_with_path(stacked)
    whole = [leaf if _of_experts(path, leaf) else None for path, leaf in paths]
    scanned = [leaf if kept is None else None for (_, leaf), kept in zip(paths, whole, strict=True)]

    def one_layer(carry: Carry, small: list[Array | None], layer: Int[Array, ""]) -> Carry:
        leaves = [part if kept is None else ExpertLayer(kept, layer) for part, kept in zip(small, whole, strict=True)]
        return body(carry, jax.tree.unflatten(structure, leaves), layer)

    return loop(one_layer, carry, scanned, length)


def _of_experts(path: tuple[Any, ...], leaf: Any) -> bool:
    names = {getattr(part, "key", getattr(part, "name", None)) for part in path}
    return _EXPERTS in names and not _MATRICES.isdisjoint(names) and leaf.ndim == 4
