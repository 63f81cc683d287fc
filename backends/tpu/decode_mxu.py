"""The two products of one step: scores of one block of keys, and the values of an earlier block.

Both classes do the same work on the same references. What `step` leaves behind is complete after the next `collect`,
which also leaves the matrix units empty.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .cache import LANES
from .decode_shape import MXU, DecodeShape

Ref = Any
Load = Callable[[int, int, int], jax.Array]
"""(first position, number of positions, chunk) -> [positions, lanes] of a block's keys or values."""

_BY_ROWS = (((1,), (1,)), ((), ()))
_BY_COLUMNS = (((1,), (0,)), ((), ()))


def apart(ref: Ref, emulate: bool) -> Ref:
    """A part of a buffer in VMEM that nothing stores to in the turn that loads it, which the compiler cannot know."""
    return ref if emulate else pltpu.annotate(ref, no_hazard_no_deps=True)


def _joined(parts: jax.Array, shape: DecodeShape) -> jax.Array:
    """Sums of products of high and of low parts, as one."""
    high = parts[: shape.rows].astype(jnp.float32)
    if not shape.split:
        return high
    return high * shape.low_weight + parts[shape.rows : 2 * shape.rows].astype(jnp.float32)


@dataclass(frozen=True)
class CompilerMatmul:
    """Products that the compiler schedules: keys and values are both what the matrix unit holds.

    Args:
        products: [chunks, rows, lanes], fp32; probabilities times values.
        widen: whether keys and values become what they are multiplied with.
    """

    shape: DecodeShape
    products: Ref
    widen: bool

    def collect(self, scores: Ref) -> tuple[list[jax.Array], Callable[[int], jax.Array]]:
        """The last step's products by chunk, and what gives its scores [rows, block] of a chunk."""
        return [self.products[chunk] for chunk in range(self.shape.num_chunks)], lambda chunk: scores[chunk]

    def prepare(self, raw: Ref, slot: Any) -> None:
        """Nothing: queries are used as they came."""

    @property
    def pauses(self) -> int:
        """How often `step` pauses."""
        return 2 * self.shape.num_chunks

    def step(
        self,
        queries: Ref,
        slot: Any,
        keys: Load,
        weights: Ref,
        values: Load,
        scores: Ref,
        pause: Callable[[], None],
    ) -> None:
        """Scores of `queries` [chunks, rows, lanes] with `keys`, and `weights` [chunks, rows, block] with `values`.

        The scores go to `scores`, the products to where `collect` finds them. `pause` is called where other work may be
        put between.
        """
        shape = self.shape
        for chunk in range(shape.num_chunks):
            width = shape.chunk_span(chunk)[1]
            found = self._dot(queries[chunk, :, :width], keys(0, shape.block, chunk), _BY_ROWS)
            scores[chunk] = _joined(found, shape)
            pause()
        for chunk in range(shape.num_chunks):
            width = shape.chunk_span(chunk)[1]
            found = self._dot(weights[chunk], values(0, shape.block, chunk), _BY_COLUMNS)
            self.products[chunk, :, :width] = _joined(found, shape)
            pause()

    def _dot(self, a: jax.Array, b: jax.Array, dimensions: Any) -> jax.Array:
        precision = jax.lax.Precision.HIGHEST if self.shape.matmul_dtype == "float32" else None
        b = b.astype(a.dtype) if self.widen else b
        return jax.lax.dot_general(
            a, b, dimensions, precision=precision, preferred_element_type=self.shape.accumulator_dtype
        )


@dataclass(frozen=True)
class Units:
    """The two matrix units of a tpu7x core. Their accumulators and what they hold start empty."""

    accumulators: Sequence[Sequence[Ref]]

    def push(self, unit: int, register: int, matrix: jax.Array) -> None:
        pltpu.matmul_push_rhs(matrix, register, unit)

    def multiply(self, unit: int, accumulator: int, rows: jax.Array, register: int) -> None:
        pltpu.matmul_acc_lhs(self.accumulators[unit][accumulator], rows, load_staged_rhs=register)

    def pop(self, unit: int, accumulator: int) -> jax.Array:
        return pltpu.matmul_pop(self.accumulators[unit][accumulator])

    @staticmethod
    def scratch(shape: DecodeShape) -> list[Any]:
        rows = [MXU, MXU] + [shape.matmul_rows] * shape.num_chunks
        return [pltpu.ACC(unit)((count, MXU), jnp.float32) for unit in (0, 1) for count in rows]


@dataclass(frozen=True)
class EmulatedUnits:
    """The same in plain memory, for interpret mode: what JAX documents that push, multiply and pop do."""

    accumulators: Sequence[Sequence[Ref]]
    registers: Ref

    def push(self, unit: int, register: int, matrix: jax.Array) -> None:
        self.registers[unit, register] = matrix.astype(jnp.float32)

    def multiply(self, unit: int, accumulator: int, rows: jax.Array, register: int) -> None:
        found = jnp.dot(rows.astype(jnp.float32), self.registers[unit, register], precision="highest")
        self.registers[unit, register] = jnp.full((MXU, MXU), jnp.nan, jnp.float32)  # it must be pushed again
        self.accumulators[unit][accumulator][...] += found

    def pop(self, unit: int, accumulator: int) -> jax.Array:
        found = self.accumulators[unit][accumulator][...]
        self.accumulators[unit][accumulator][...] = jnp.zeros_like(found)
        return found

    @staticmethod
    def scratch(shape: DecodeShape) -> list[Any]:
        rows = [MXU, MXU] + [shape.matmul_rows] * shape.num_chunks
        accumulators = [pltpu.VMEM((count, MXU), jnp.float32) for _ in (0, 1) for count in rows]
        return [*accumulators, pltpu.VMEM((2, 2, MXU, MXU), jnp.float32)]


def with_units(shape: DecodeShape, emulate: bool, body: Callable[[Any], None]) -> None:
    """Runs `body` with matrix units to itself."""
    kind = EmulatedUnits if emulate else Units

    def run(*refs: Ref) -> None:
        count = 2 + shape.num_chunks
        accumulators, rest = (refs[:count], refs[count : 2 * count]), refs[2 * count :]
        if emulate:
            for ref in refs[: 2 * count]:
                ref[...] = jnp.zeros(ref.shape, ref.dtype)
        body(kind(accumulators, *rest))

    pl.run_scoped(run, *kind.scratch(shape))


@dataclass(frozen=True)
class HandMatmul:
    """Products on matrix units driven by hand: queries and values are what they hold; keys stream past the queries.

    Each unit takes half of a block. It alternates: 256 keys of one chunk past that chunk's queries, then that many
    probabilities past a chunk's 256 values. While it multiplies one it takes in what the other needs, so pushing
    costs nothing, and keys move at the unit's full depth.

    Args:
        queries: [2, chunks, 256, 256]: by parity of the block, a column per row of a chunk, in all chunks'
            own columns.
    """

    shape: DecodeShape
    queries: Ref
    units: Any

    @property
    def _groups(self) -> int:
        """Groups of 256 keys that a unit handles."""
        return self.shape.block // (2 * MXU)

    def _pop_scores(self, unit: int, group: int) -> list[jax.Array]:
        """Scores [rows, 256] of a group of keys, by chunk."""
        found = self.units.pop(unit, group % 2)[:, :LANES].T
        starts = [chunk * self.shape.chunk_columns for chunk in range(self.shape.num_chunks)]
        return [_joined(found[start : start + self.shape.chunk_columns], self.shape) for start in starts]

    def collect(self, scores: Ref) -> tuple[list[jax.Array], Callable[[int], jax.Array]]:
        """As CompilerMatmul.collect. The scores of each unit's last group come straight from it."""
        late = [self._pop_scores(unit, self._groups - 1) for unit in (0, 1)]
        found = [[self.units.pop(unit, 2 + chunk) for chunk in range(self.shape.num_chunks)] for unit in (0, 1)]
        products = [_joined(first + second, self.shape) for first, second in zip(*found, strict=True)]

        def of_chunk(chunk: int) -> jax.Array:
            parts = []
            for unit in (0, 1):
                for group in range(self._groups - 1):
                    parts.append(scores[chunk, :, pl.ds((unit * self._groups + group) * MXU, MXU)])
                parts.append(late[unit][chunk])
            return jnp.concatenate(parts, axis=1)

        return products, of_chunk

    def prepare(self, raw: Ref, slot: Any) -> None:
        """Turns queries [chunks, rows, 256], in bf16, into columns, for the step of this slot."""
        count = self.shape.chunk_columns
        for chunk in range(self.shape.num_chunks):
            before = chunk * count
            parts = [raw[chunk][:count], jnp.zeros((LANES - before - count, MXU), raw.dtype)]
            if before:
                parts.insert(0, jnp.zeros((before, MXU), raw.dtype))
            columns = jnp.concatenate([part for part in parts if part.shape[0]], axis=0).T
            self.queries[slot, chunk, :, :LANES] = columns.astype(self.shape.matmul_dtype)

    @property
    def pauses(self) -> int:
        return self._groups * self.shape.num_chunks

    def step(
        self,
        queries: Ref,
        slot: Any,
        keys: Load,
        weights: Ref,
        values: Load,
        scores: Ref,
        pause: Callable[[], None],
    ) -> None:
        """As CompilerMatmul.step, with the queries that `prepare` left in this slot."""
        shape, units = self.shape, self.units
        columns = apart(self.queries.at[slot], isinstance(units, EmulatedUnits))
        turns = [(group, chunk) for group in range(self._groups) for chunk in range(shape.num_chunks)]
        for unit in (0, 1):
            units.push(unit, 0, columns[0])
        for turn, (group, chunk) in enumerate(turns):
            for unit in (0, 1):
                first = (unit * self._groups + group) * MXU
                units.push(unit, 1, values(first, MXU, chunk).astype(shape.matmul_dtype))
                units.multiply(unit, group % 2, keys(first, MXU, chunk).astype(shape.matmul_dtype), 0)
            for unit in (0, 1):
                first = (unit * self._groups + group) * MXU
                if turn + 1 < len(turns):
                    units.push(unit, 0, columns[turns[turn + 1][1]])
                units.multiply(unit, 2 + chunk, weights[chunk, :, first : first + MXU], 1)
            # A result takes long to leave a unit, so scores are taken a turn or two after they are complete.
            done = turn + 1 - min(2, shape.num_chunks)
            if done % shape.num_chunks == 0 and 0 < done <= (self._groups - 1) * shape.num_chunks:
                group = done // shape.num_chunks - 1
                for unit in (0, 1):
                    first = (unit * self._groups + group) * MXU
                    for of, found in enumerate(self._pop_scores(unit, group)):
                        scores[of, :, first : first + MXU] = found
            pause()
