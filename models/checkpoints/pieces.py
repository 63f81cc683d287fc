"""Which tensors of a checkpoint a leaf of the weights is made of, and what shape these tensors have."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations, product
from math import prod

import numpy as np

from ..decoder import WeightSpec
from ..families.sources import TensorSource


@dataclass(frozen=True)
class Piece:
    """The part of a leaf that one named tensor fills: entries `index` of its leading axes (layer, expert)."""

    spec: WeightSpec
    source: TensorSource
    name: str
    index: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the part."""
        return self.spec.shape[len(self.index) :]


def pieces_of(spec: WeightSpec, source: TensorSource) -> Iterator[Piece]:
    """Every named tensor that goes into a leaf."""
    layers = [None] if spec.layers is None else list(spec.layers)
    lead = 0 if spec.layers is None else 1
    experts = range(spec.shape[lead]) if "{expert}" in source.name else [None]
    for (i, layer), expert in product(enumerate(layers), experts):
        index = (() if layer is None else (i,)) + (() if expert is None else (expert,))
        yield Piece(spec, source, source.name.format(layer=layer, expert=expert), index)


def tensor_shape(pieces: list[Piece]) -> tuple[int, ...]:
    """The shape of the tensor that these pieces fill together.

    Heads and their width are one axis in every checkpoint. Where a view rearranges axes, the arrangement is found by
    trying: its views must have the pieces' shapes and cover it.
    """
    piece = pieces[0]
    shape = _merged(piece)
    if piece.source.view is None:
        ends = [p.source.start + (_merged(p)[0] if p.source.rows is None else p.source.rows) for p in pieces]
        return (max(ends), *shape[1:])
    count = sum(prod(p.shape) for p in pieces)
    factor = count // prod(shape)
    for order in permutations(range(len(shape))):
        for axis in range(len(shape)):
            candidate = [shape[i] for i in order]
            candidate[axis] *= factor
            if all(_fits(p, tuple(candidate)) for p in pieces):
                return tuple(candidate)
    raise AssertionError(f"{piece.name}: no arrangement of {shape} fits the family's view")


def _fits(piece: Piece, candidate: tuple[int, ...]) -> bool:
    stand_in = np.broadcast_to(np.zeros((), np.bool_), candidate)
    assert piece.source.view is not None
    try:
        viewed = piece.source.view(stand_in).shape
    except ValueError:
        return False
    return merges(viewed, piece.shape)


def _merged(piece: Piece) -> tuple[int, ...]:
    axes = piece.spec.axes[len(piece.index) :]
    shape: list[int] = []
    for axis, size in zip(axes, piece.shape, strict=True):
        if axis == "head_dim" and shape:
            shape[-1] *= size
        else:
            shape.append(size)
    return tuple(shape)


def merges(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether one of two shapes comes of the other by multiplying neighbours."""
    cuts = [{prod(shape[:i]) for i in range(len(shape) + 1)} for shape in (one, other)]
    return prod(one) == prod(other) and (cuts[0] <= cuts[1] or cuts[1] <= cuts[0])
