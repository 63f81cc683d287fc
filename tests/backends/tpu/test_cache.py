"""The layout of pages: whole vector registers, nothing between heads, tiles as small as copies allow."""

import jax.numpy as jnp
import pytest

from distaff.backends.base import CacheGroup
from distaff.backends.tpu.cache import ScaledPages, allocate_tpu_cache, num_lanes, pages_of, tile_rows


@pytest.mark.parametrize(("heads", "width", "lanes"), [(8, 128, 1024), (3, 64, 256), (1, 80, 128), (8, 80, 640)])
def test_a_row_is_all_heads_in_whole_registers(heads: int, width: int, lanes: int) -> None:
    assert num_lanes(heads, width) == lanes
    pages = allocate_tpu_cache(CacheGroup(2, heads, width), num_pages=3, page_size=16, dtype="bfloat16")
    assert pages.shape == (2, 3, 32, lanes) and pages.dtype == jnp.bfloat16 and not pages.any()


@pytest.mark.parametrize(("dtype", "rows"), [("float32", 8), ("bfloat16", 16), ("int8", 32), ("float8_e4m3fn", 32)])
def test_a_tile_is_eight_rows_of_words(dtype: str, rows: int) -> None:
    assert tile_rows(dtype) == rows


def test_scales_go_with_their_pages() -> None:
    pages = allocate_tpu_cache(CacheGroup(1, 2, 64), num_pages=2, page_size=16, dtype="int8")
    assert pages_of(pages) is pages
    assert pages_of(ScaledPages(pages, jnp.ones((1, 2, 2)))) is pages
