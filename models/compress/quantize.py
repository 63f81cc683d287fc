"""Rounds weights to nearest, one leaf at a time as it is loaded."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from ...backends.base import PyTree
from ...backends.errors import InvalidParameterError, UsageError
from ...backends.quantized import Quantized, Rounding, packed
from ...backends.token_scales import rounded
from ..checkpoints.base import Checkpoint
from ..checkpoints.hf_folder import HFFolder
from ..config import ModelConfig
from ..decoder import WeightSpec, weight_specs
from .rotate import Turn, turn_leaf
from .scheme import BOUNDS, Kind, Scheme

_PARTS = 32
"""Of a leaf that is rounded on one device, one after another."""
_KEPT = frozenset({"router", "one", "positions"})
"""Axes of small matrices that decide much: routers, gates of experts, learned positions."""


@dataclass(frozen=True)
class Quantizer:
    """What a scheme makes of each leaf of a model's weights.

    Args:
        scheme: how matrices are rounded.
        head: whether the matrix that scores the vocabulary is one of them, where it is not the table that is read.
    """

    scheme: Scheme
    head: bool = False

    def __call__(self, spec: WeightSpec, leaf: Float[Array, "..."], turn: Turn | None = None) -> PyTree:
        """The leaf as Quantized, or itself where it is no matrix that the scheme is for; `leaf` is consumed.

        Args:
            turn: what becomes of it before.
        """
        plan = self.plan(spec)
        if plan is None:
            return leaf if turn is None else turn_leaf(turn, leaf)
        kind, groups, activations = plan
        # Under a layout a leaf may have come with copies and padding along the axes that are not summed over.
        end = leaf.ndim - spec.contracted
        groups = (*leaf.shape[:end], *groups[end:])
        whole = len(leaf.sharding.device_set) > 1 or leaf.shape[0] == 1
        made = (to_nearest if whole else _by_parts)(leaf, kind, groups, activations, turn)
        jax.block_until_ready(made)
        leaf.delete()
        return made

    def abstract(self, spec: WeightSpec) -> PyTree:
        """The shapes of what the leaf becomes."""
        leaf, plan = jax.ShapeDtypeStruct(spec.shape, spec.dtype), self.plan(spec)
        return leaf if plan is None else jax.eval_shape(lambda x: to_nearest(x, *plan), leaf)

    def plan(self, spec: WeightSpec) -> tuple[Kind, tuple[int, ...], bool] | None:
        """Type of the numbers, how many groups each axis of the weight has, and whether activations are rounded; None
        for what stays.

        Raises:
            InvalidParameterError: groups do not divide what is summed over.
        """
        if not spec.contracted or not _KEPT.isdisjoint(spec.axes):
            return None
        outer = spec.shape[: len(spec.shape) - spec.contracted]
        if "vocab" in spec.axes:
            kind = self.scheme.kind if self.head and spec.path == "unembedder.table" else self.scheme.tables
            return None if kind is None else (kind, (*outer, 1), self.scheme.activations)
        return self.scheme.kind, (*outer, *self._groups(spec)), self.scheme.activations

    def roundings(self, config: ModelConfig) -> dict[str, Rounding]:
        """What becomes of the leaves of a model that do not stay, by their paths."""
        found: dict[str, Rounding] = {}
        for path, spec in weight_specs(config, jnp.float32).items():
            if (plan := self.plan(spec)) is not None:
                kind, groups, activations = plan
                found[path] = Rounding(kind, groups[len(groups) - spec.contracted :], activations)
        return found

    def _groups(self, spec: WeightSpec) -> tuple[int, ...]:
        """Groups along the axes that are summed over: of the last axis, or of whole entries of the ones before."""
        group, inner = self.scheme.group, spec.shape[len(spec.shape) - spec.contracted :]
        if group is None:
            return (1,) * len(inner)
        if inner[-1] % group == 0:
            return (*inner[:-1], inner[-1] // group)
        if len(inner) == 2 and group % inner[-1] == 0 and inner[0] % (group // inner[-1]) == 0:
            return inner[0] * inner[-1] // group, 1
        shown = " x ".join(map(str, inner))
        raise InvalidParameterError(
            "quantize", self.scheme.name, f"groups that divide the {shown} inputs of {spec.path}, such as NAME:32"
        )


def quantizer(scheme: Scheme, config: ModelConfig, *, head: bool = False) -> Quantizer:
    """What quantises a model's leaves; nothing has been read yet.

    Raises:
        InvalidParameterError: the scheme's groups do not divide a weight of this model.
    """
    made = Quantizer(scheme, head)
    for spec in weight_specs(config, jnp.float32).values():
        made.plan(spec)
    return made


def check_unrounded(checkpoint: Checkpoint) -> None:
    """Declines a checkpoint of numbers that somebody chose already: rounded again they would lose twice.

    Raises:
        UsageError: it is quantised.
    """
    if isinstance(checkpoint, HFFolder) and checkpoint.quantized:
        raise UsageError(
            f"{checkpoint.path} is quantised already ({checkpoint.quantized}), expected weights as they were trained; "
            "use it as it is, or expand it with 'distaff convert' first"
        )


@partial(jax.jit, static_argnums=(1, 2, 3))
def to_nearest(
    weight: Float[Array, "..."], kind: Kind, groups: tuple[int, ...], activations: bool, turn: Turn | None = None
) -> Quantized:
    """Scales that take the largest number of each group to the end of the type, and the nearest numbers; of the turned
    weight where it is to be."""
    dtype = jnp.dtype(weight.dtype)
    if turn is not None:
        weight = turn(weight)
    spread: list[int] = []
    for size, count in zip(weight.shape, groups, strict=True):
        spread += [count, size // count]
    grouped = weight.reshape(spread).astype(jnp.float32)
    within = tuple(range(1, len(spread), 2))
    largest = jnp.abs(grouped).max(axis=within, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1) / BOUNDS[kind]
    values = _numbers(grouped / scale, kind).reshape(weight.shape)
    return Quantized(packed(values) if kind == "int4" else values, scale.reshape(groups), kind, dtype, activations)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _by_parts(
    weight: Float[Array, "..."], kind: Kind, groups: tuple[int, ...], activations: bool, turn: Turn | None = None
) -> Quantized:
    """to_nearest of a part of the first axis at a time: in fp32, and as what comes of it, all would take twice as much
    memory again as the weight."""
    size = -(-weight.shape[0] // _PARTS)
    by_layer = turn is not None and turn.gain is not None and turn.gain.ndim > 1

    def part(each: tuple[Float[Array, "..."], Turn | None]) -> Quantized:
        one, own = jax.tree.map(lambda leaf: leaf[None], each)
        made = to_nearest(one, kind, (1, *groups[1:]), activations, own if by_layer else turn)
        return jax.tree.map(lambda leaf: leaf[0], made)

    return jax.lax.map(part, (weight, turn if by_layer else None), batch_size=size)


def _numbers(x: Float[Array, "..."], kind: Kind) -> Num[Array, "..."]:
    """The nearest numbers of a type; its ends for those beyond. "int4" comes as int8."""
    if kind == "float8_e4m3fn":
        return rounded(x, jnp.dtype(kind))
    bound = BOUNDS[kind]
    return jnp.clip(jnp.round(x), -bound - 0.5, bound - 0.5).astype(jnp.int8)
