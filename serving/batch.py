"""From a plan to the arrays of one step."""

from collections.abc import Sequence as Items
from typing import Any

import numpy as np

from ..models.step import StepBatch
from .plan import Plan
from .sequence import Sequence


class BatchBuilder:
    """Fills StepBatch arrays; keeps each slot's page tables, so that a step only writes the pages that are new.

    Args:
        num_slots: R, rows that can run at once.
        num_pages: entries of a page table, for each cache group.
    """

    def __init__(self, num_slots: int, num_pages: Items[int]) -> None:
        self._num_slots = num_slots
        self._tables = [np.zeros((num_slots, pages), np.int32) for pages in num_pages]
        self._filled = [[0] * num_slots for _ in num_pages]

    def build(self, plan: Plan) -> StepBatch:
        """Arrays of the plan's bucket: its rows first, empty ones behind them."""
        for sequence in plan.admitted:
            for filled in self._filled:
                filled[_slot(sequence)] = 0
        bucket, rows = plan.bucket, plan.rows
        slots = np.full(bucket.num_rows, self._num_slots, np.int32)
        kv_lens = np.zeros(bucket.num_rows, np.int32)
        draws = np.zeros(bucket.num_rows, np.bool_)
        starts = np.empty(bucket.num_rows + 1, np.int32)
        count = len(rows)
        slots[:count] = [_slot(row.sequence) for row in rows]
        kv_lens[:count] = [row.start + row.num_tokens for row in rows]
        draws[:count] = [row.draws for row in rows]
        starts[0] = 0
        starts[1 : count + 1] = np.cumsum([row.num_tokens for row in rows])
        starts[count + 1 :] = starts[count]
        tables = tuple(self._table(group, plan, slots) for group in range(len(self._tables)))
        arrays: Any = (slots, starts, kv_lens, tables, draws, np.asarray(plan.num_steps, np.int32))
        return StepBatch(*arrays)

    def _table(self, group: int, plan: Plan, slots: np.ndarray) -> np.ndarray:
        table, filled = self._tables[group], self._filled[group]
        for row in plan.rows:
            slot, pages = _slot(row.sequence), row.sequence.pages[group]
            if filled[slot] != len(pages):
                table[slot, filled[slot] : len(pages)] = pages[filled[slot] :]
                filled[slot] = len(pages)
        taken = table[np.minimum(slots, self._num_slots - 1)]
        # Freed pages of a window stand in the table as -1; nothing attends to them, but a gather needs a page.
        return np.maximum(taken, 0, out=taken)


def _slot(sequence: Sequence) -> int:
    slot = sequence.slot
    assert slot is not None, "a planned sequence has no slot"
    return slot
