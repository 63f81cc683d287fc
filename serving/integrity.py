"""What must hold between any two plans. Cheap enough for an idle engine, run after every step in tests."""

from collections import Counter
from typing import TYPE_CHECKING

from .page_pool import IntegrityError, check
from .prefix_cache import NO_PAGE
from .sequence import Sequence, Status

if TYPE_CHECKING:
    from .scheduler import Scheduler


def check_scheduler(scheduler: "Scheduler") -> None:
    """Compares sequences, slots, pages and the prefix tree with each other.

    Every page has as many holders as the sequences and the tree know of; a page that a sequence may still write is
    its own; window pages are gone behind the window and there inside it; slots are unique; lengths agree.

    Raises:
        IntegrityError: something contradicts.
    """
    roster, tables = scheduler.roster, scheduler.tables
    running = roster.running
    for status, sequences in (
        (Status.WAITING, roster.waiting),
        (Status.RUNNING, running),
        (Status.DRAINING, roster.draining),
    ):
        check(len(set(sequences)) == len(sequences), f"a sequence is {status} twice")
        for sequence in sequences:
            if sequence.status is not status or (sequence.slot is not None) != (status is Status.RUNNING):
                raise IntegrityError(f"{sequence} is listed as {status}")
            _check_lengths(sequence)
    ranks = [sequence.rank for sequence in roster.waiting]
    check(ranks == sorted(ranks), "the queue is out of order")
    slots = [sequence.slot for sequence in running] + roster.free_slots
    check(sorted(slots, key=lambda s: -1 if s is None else s) == list(range(roster.num_slots)), "slots leak")
    for sequence in roster.waiting:
        if sequence.pages or sequence.num_computed:
            raise IntegrityError(f"{sequence} waits, but has pages or counts positions as computed")

    holders = [Counter[int](tables.cache.held(g)) for g in range(len(tables.num_pages))]
    for sequence in (*running, *roster.draining):
        for g, pages in enumerate(sequence.pages):
            holders[g].update(page for page in pages if page != NO_PAGE)
    tables.cache.check_integrity()
    for pool, expected in zip(tables.cache.pools, holders, strict=True):
        pool.check_integrity(expected)
    for sequence in running:
        for g, window in enumerate(tables.windows):
            _check_pages(sequence, g, window, tables.page_size, holders[g])


def _check_lengths(sequence: Sequence) -> None:
    read, drawn, computed = len(sequence.tokens), sequence.num_drawn, sequence.num_computed
    if not sequence.prompt_len <= read <= drawn <= sequence.max_len:
        raise IntegrityError(f"sequence {sequence.order}: {read} tokens read, {drawn} drawn of {sequence.max_len}")
    if not (sequence.status is Status.RUNNING) <= computed <= drawn:
        raise IntegrityError(f"sequence {sequence.order}, {sequence.status}: {computed} of {drawn} tokens computed")


def _check_pages(sequence: Sequence, group: int, window: int | None, page_size: int, holders: Counter[int]) -> None:
    pages, freed, computed = sequence.pages[group], sequence.num_freed[group], sequence.num_computed
    problem = None
    if not len(pages) * page_size == sequence.capacity >= computed:
        problem = "pages do not reach"
    elif any(page != NO_PAGE for page in pages[:freed]) or NO_PAGE in pages[freed:]:
        problem = "a freed page is listed, or a page is missing"
    elif freed > (0 if window is None else max(0, computed - window + 1) // page_size):
        problem = "a page inside the window is freed"
    elif any(holders[page] != 1 for page in pages[computed // page_size :]):
        problem = "a page that will be written has other holders"
    if problem:
        raise IntegrityError(f"sequence {sequence.order}, group {group}: {problem}: {pages} at position {computed}")
