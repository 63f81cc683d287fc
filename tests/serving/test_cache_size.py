"""How memory becomes pages."""

from dataclasses import dataclass

import pytest

from distaff.backends.base import CacheGroup, MemoryInfo
from distaff.backends.reference import ReferenceBackend
from distaff.serving import CacheTooSmallError
from distaff.serving.cache_size import cache_pages, page_bytes

FULL, WINDOW = CacheGroup(2, 3, 8), CacheGroup(4, 3, 8, window=32)
PAGE = 2 * 3 * 8 * 16 * 4  # keys and values of 16 positions, 3 heads of 8, in fp32


@dataclass(frozen=True)
class Machine(ReferenceBackend):
    """A backend with so much memory."""

    free: int = 2**20
    shared: bool = False

    def memory(self) -> MemoryInfo:
        return MemoryInfo(2 * self.free, self.free, self.shared)


def pages(memory: int | None, backend: Machine = Machine(), **changes: int) -> tuple[int, ...]:
    sizes = {"max_batch": 100, "max_len": 256, "chunk": 64, **changes}
    return cache_pages((FULL, WINDOW), backend, page_size=16, dtype="float32", memory=memory, **sizes)


def test_a_page_takes_what_all_its_layers_take() -> None:
    assert [page_bytes(g, Machine(), page_size=16, dtype="float32") for g in (FULL, WINDOW)] == [2 * PAGE, 4 * PAGE]
    assert page_bytes(FULL, Machine(), page_size=16, dtype="bfloat16") == PAGE


def test_groups_get_pages_as_a_sequence_needs_them() -> None:
    # 16 pages of a text of 256, and 7 for a window of 32, a chunk of 64 and a page's rounding
    one = (16 * 2 + 7 * 4) * PAGE
    assert pages(one) == (16, 7)
    assert pages(one * 5 // 2) == (40, 17)


def test_no_more_is_given_than_the_batch_can_fill() -> None:
    assert pages(2**40, max_batch=3) == (48, 21)


@pytest.mark.parametrize(("shared", "share", "lost"), [(False, 0.9, 1 / 64), (True, 0.25, 1 / 4)])
def test_by_default_a_share_of_what_is_free_is_taken(shared: bool, share: float, lost: float) -> None:
    for free in (3 * 10**6, 5 * 10**6, 8 * 10**6, 9 * 10**6):
        given, most = pages(None, Machine(free=free, shared=shared)), pages(int(free * share))
        assert all((1 - lost) * b - 1 <= a <= b for a, b in zip(given, most, strict=True))
    assert pages(None, Machine(free=10**10, shared=shared)) == pages(10**10)  # as many as the batch can fill


def test_the_first_text_may_take_half_of_what_a_host_has_free() -> None:
    one = (16 * 2 + 7 * 4) * PAGE
    assert pages(None, Machine(free=2 * one, shared=True)) == (16, 7)
    with pytest.raises(CacheTooSmallError, match="hold 255 of the 256 tokens"):
        pages(None, Machine(free=2 * one - 2, shared=True))


def test_two_starts_of_a_machine_that_others_use_have_the_same_programs() -> None:
    sizes = {pages(None, Machine(free=9 * 10**6 + 10_000 * n, shared=True)) for n in range(50)}
    assert len(sizes) <= 2  # free memory changes by 5 %
    assert len({pages(None, Machine(free=free, shared=True)) for free in range(4 * 10**6, 32 * 10**6, 10**5)}) <= 13


def test_a_share_that_holds_one_text_holds_it_rounded() -> None:
    one = (16 * 2 + 7 * 4) * PAGE
    assert pages(None, Machine(free=4 * one, shared=True)) == (16, 7)


def test_a_cache_for_less_than_one_text_is_refused_with_the_numbers() -> None:
    with pytest.raises(CacheTooSmallError, match=r"kv_memory: 0.1 MiB hold 128 of the 256 tokens.*take 0.2 MiB"):
        pages((16 * 2 + 7 * 4) * PAGE // 2 + 1)
