"""Pages are handed out once, counted, and come back."""

import pytest

from distaff.serving.page_pool import IntegrityError, PagePool


def test_every_page_is_handed_out_once() -> None:
    pool = PagePool(3)
    assert sorted(page for page in (pool.alloc() for _ in range(3)) if page is not None) == [0, 1, 2]
    assert pool.num_free == 0 and pool.alloc() is None


def test_a_page_is_free_when_its_last_holder_lets_go() -> None:
    pool = PagePool(2)
    page = pool.alloc()
    assert page is not None
    assert pool.retain(page) == 2
    assert pool.release(page) == 1 and pool.num_free == 1
    assert pool.release(page) == 0 and pool.num_free == 2
    assert pool.alloc() == page, "the page used last is still in the caches"


def test_a_free_page_is_neither_retained_nor_released() -> None:
    pool = PagePool(2)
    page = pool.alloc()
    assert page is not None
    pool.release(page)
    with pytest.raises(IntegrityError, match="released but free"):
        pool.release(page)
    with pytest.raises(IntegrityError, match="retained but free"):
        pool.retain(page)
    with pytest.raises(IntegrityError, match="page -1"):
        pool.release(-1)


def test_integrity_names_the_page_that_is_miscounted() -> None:
    pool = PagePool(4)
    first, second = pool.alloc(), pool.alloc()
    assert first is not None and second is not None
    pool.retain(second)
    pool.check_integrity({first: 1, second: 2})
    with pytest.raises(IntegrityError, match=rf"\({second}, 2, 1\)"):
        pool.check_integrity({first: 1, second: 1})
    with pytest.raises(IntegrityError, match=rf"\({second}, 2, 0\)"):
        pool.check_integrity({first: 1})
