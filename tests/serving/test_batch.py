"""Plans as arrays."""

import numpy as np

from distaff.serving.batch import BatchBuilder
from distaff.serving.plan import Bucket, Plan, PlannedRow
from distaff.serving.sequence import Sequence
from distaff.serving.types import Request

MIXED = Bucket(16, 4, "mixed")


def sequence(slot: int, pages: list[list[int]]) -> Sequence:
    made = Sequence.of(Request((1, 2, 3)), 0, max_len=32, order=slot, arrival=0.0)
    made.slot, made.pages = slot, pages
    return made


def plan(*rows: PlannedRow, admitted: tuple[Sequence, ...] = (), num_steps: int = 1) -> Plan:
    return Plan(rows, MIXED, num_steps, admitted, ([], []))


def test_rows_come_first_and_the_rest_is_empty() -> None:
    a, b = sequence(2, [[5, 6], [7]]), sequence(0, [[1], [3]])
    batch = BatchBuilder(8, (4, 4)).build(plan(PlannedRow(a, 19, 1, True), PlannedRow(b, 0, 7, False), admitted=(a, b)))
    assert batch.slots.tolist() == [2, 0, 8, 8]
    assert batch.query_starts.tolist() == [0, 1, 8, 8, 8]
    assert batch.kv_lens.tolist() == [20, 7, 0, 0]
    assert batch.draws.tolist() == [True, False, False, False]
    first, second = (table[:2].tolist() for table in batch.page_tables)
    assert first == [[5, 6, 0, 0], [1, 0, 0, 0]] and second == [[7, 0, 0, 0], [3, 0, 0, 0]]


def test_tables_follow_pages_that_are_added_freed_and_given_up() -> None:
    builder, a = BatchBuilder(2, (4,)), sequence(1, [[5]])
    builder.build(plan(PlannedRow(a, 0, 3, True), admitted=(a,)))
    a.pages[0].append(9)
    (table,) = builder.build(plan(PlannedRow(a, 16, 1, True))).page_tables
    assert table[0].tolist() == [5, 9, 0, 0]
    a.pages[0][0] = -1  # behind the window: nobody reads it
    (table,) = builder.build(plan(PlannedRow(a, 17, 1, True))).page_tables
    assert table[0, 1] == 9 and np.asarray(table).min() >= 0
    a.pages = [[7, 8, 2]]  # preempted, and admitted again
    (table,) = builder.build(plan(PlannedRow(a, 0, 3, True), admitted=(a,))).page_tables
    assert table[0].tolist() == [7, 8, 2, 0]
    other = sequence(1, [[4]])
    (table,) = builder.build(plan(PlannedRow(other, 0, 3, True), admitted=(other,))).page_tables
    assert table[0, 0] == 4
