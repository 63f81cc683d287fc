"""Row state and batch of a step over a few texts, as the engine would make them."""

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from distaff.models.row_state import RowState, SamplingRows
from distaff.models.step import StepBatch


def row_state(texts: Sequence[Sequence[int]], vocab_size: int, *, max_len: int = 64, **fields: object) -> RowState:
    """Text i in slot i; `fields` are sampling parameters, one value for all or one for each."""
    history = np.zeros((len(texts), max_len), np.int32)
    for row, text in zip(history, texts, strict=True):
        row[: len(text)] = text
    rows = SamplingRows.empty(len(texts), vocab_size)
    given = {name: np.broadcast_to(getattr(rows, name).dtype.type(value), getattr(rows, name).shape)
             for name, value in fields.items()}  # fmt: skip
    return RowState(jnp.asarray(history), replace(rows, **given))


def step_batch(
    spans: Sequence[tuple[int, int]], tables: Sequence[Sequence[int]], *, num_groups: int, num_steps: int = 1
) -> StepBatch:
    """Row i, in slot i, computes the positions spans[i] = (start, end); its pages are tables[i]."""
    lens = [end - start for start, end in spans]
    return StepBatch(
        slots=jnp.arange(len(spans), dtype=jnp.int32),
        query_starts=jnp.asarray([0, *np.cumsum(lens)], jnp.int32),
        kv_lens=jnp.asarray([end for _, end in spans], jnp.int32),
        page_tables=(jnp.asarray(tables, jnp.int32),) * num_groups,
        draws=jnp.ones(len(spans), jnp.bool_),
        num_steps=jnp.asarray(num_steps, jnp.int32),
    )
