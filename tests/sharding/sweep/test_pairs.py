"""Prefill and decode on chips of their own."""

import pytest

from distaff.sharding.sweep.sweep import plan

from .asked import request


@pytest.mark.slow
def test_prefill_and_decode_apart_move_the_cache() -> None:
    found = plan(request())
    pair = found.pairs[0]
    assert pair["kv_move_bytes"] == 512 * 2 * 2 * 2 * 8 * 128  # tokens, layers, keys and values, heads, width, bf16
    assert pair["ttft_ms_best"] > pair["kv_move_ms"] > 0
