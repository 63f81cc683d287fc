"""Leaves of quantised checkpoints as they are stored: small numbers and scales, not the floats that they stand for."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import jax

from ...backends.quantized import HALF_BYTES, Quantized, Rounding
from ..decoder import WeightSpec
from ..families.sources import TensorSource
from .assemble import Keep, LeafPlan, read_alike
from .base import NamedTensors, Place
from .pieces import Piece, pieces_of
from .region import Entry
from .shards import boxes_of, place_leaf, placed_as


@dataclass(frozen=True)
class Form:
    """How the numbers of a matrix [*rows, K] are held; see Rounding.

    Args:
        kind: of the numbers.
        groups: with a scale in each row.
        scales, minima: types of scales and minima; None: there are no minima.
    """

    kind: str
    groups: int
    scales: str = "float32"
    minima: str | None = None


@runtime_checkable
class StoredNumbers(Protocol):
    """Tensors some of which are stored as small numbers and scales."""

    def form(self, name: str) -> Form | str | None:
        """How a tensor's numbers are held, or why they cannot be; None for one that is stored as floats."""
        ...

    def parts(self, form: Form, part: str) -> NamedTensors:
        """What Quantized calls `part`, of the tensors of that form: under their names, shaped as they are but for the
        axis of a row, which is as long as what is held of it."""
        ...


@dataclass(frozen=True)
class Keeper:
    """Makes leaves of a checkpoint's own numbers where products are computed with these.

    Args:
        tensors: the checkpoint's, with floats under their names.
        stored: what they are made of.
        activations: whether activations are to be rounded too.
    """

    tensors: NamedTensors
    stored: StoredNumbers
    activations: bool = False

    def of(self, keep: Collection[str]) -> Keep:
        """Makes leaves of those paths."""
        return lambda spec, *rest: self.leaf(spec, *rest) if spec.path in keep else None

    def leaf(self, spec: WeightSpec, source: TensorSource, place: Place) -> Quantized | None:
        """The leaf; None where it has to be made of the floats that its numbers stand for."""
        found, rounding = self._form(spec, source), self.rounding(spec, source)
        if not isinstance(found, Form) or not isinstance(rounding, Rounding):
            return None
        plans: dict[str, LeafPlan] = {}
        for name, part in rounding.parts(spec.shape).items():
            each = replace(spec, path=f"{spec.path}.{name}", shape=part.shape, dtype=part.dtype)
            plans[name] = LeafPlan(self.stored.parts(found, name), each, tuple(pieces_of(each, source)))
        parts = _one_by_one(plans, place) if self.tensors.local else _together(plans, place)
        return rounding.held(parts, spec.dtype)

    def rounding(self, spec: WeightSpec, source: TensorSource) -> Rounding | str | None:
        """What `leaf` makes of a leaf, before a weight is read, or why it makes nothing of numbers that there are."""
        form = self._form(spec, source)
        if not isinstance(form, Form):
            return form
        inner = _groups(spec.shape[len(spec.shape) - spec.contracted :], form.groups)
        if inner is None:
            return f"{form.groups} groups of an input of several axes"
        return Rounding(form.kind, inner, self.activations, form.scales, form.minima)

    def _form(self, spec: WeightSpec, source: TensorSource) -> Form | str | None:
        """That of all the tensors of a leaf."""
        if not spec.contracted:
            return None
        pieces = list(pieces_of(spec, source))
        forms = {self.stored.form(piece.name) for piece in pieces}
        if forms == {None}:
            return None
        if len(forms) > 1:
            return "its layers are stored in several ways"
        (form,) = forms
        if not isinstance(form, Form):
            return form
        if source.view is not None and not self._rows_whole(spec, pieces[0]):
            return "its inputs are in another order"
        if form.kind in HALF_BYTES and spec.shape[-1] % 2:
            return "a byte would lie on two axes"
        return form

    def _rows_whole(self, spec: WeightSpec, piece: Piece) -> bool:
        """Whether a family's view leaves what is summed over as it is."""
        info = self.tensors.infos[piece.name]
        entry = Entry.of(piece, info)
        size = info.shape[entry.axes[-1]]
        return spec.contracted == 1 and (entry.shape[-1], entry.steps[-1], entry.first[entry.axes[-1]]) == (size, 1, 0)


def _one_by_one(plans: Mapping[str, LeafPlan], place: Place) -> dict[str, jax.Array]:
    return {name: place_leaf(plan.spec, place(plan.spec), plan.read, together=False) for name, plan in plans.items()}


def _together(plans: Mapping[str, LeafPlan], place: Place) -> dict[str, jax.Array]:
    """A piece of all parts at a time: blocks of GGUF hold numbers, scales and minima, and come once."""
    placed = {name: placed_as(plan.spec, place(plan.spec)) for name, plan in plans.items()}
    read = read_alike([(plan, list(boxes_of(plan.spec, placed[name]))) for name, plan in plans.items()])
    found = dict(zip(plans, read, strict=True))
    return {
        name: place_leaf(plan.spec, placed[name], lambda _, name=name: found[name], together=True)
        for name, plan in plans.items()
    }


def _groups(inner: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """How `count` groups of one row lie on the axes that are summed over; None where they cut between these."""
    if count == 1 or len(inner) == 1:
        return (1,) * (len(inner) - 1) + (count,)
    if len(inner) == 2 and count % inner[0] == 0:
        return inner[0], count // inner[0]
    if len(inner) == 2 and inner[0] % count == 0:
        return count, 1
    return None
