"""Which shapes are compiled."""

import pytest

from distaff.serving.buckets import plan_buckets

SIZES = (1, 8, 16, 32, 64, 128, 256, 512)


@pytest.mark.parametrize(("max_batch", "max_step_tokens"), [(1, 512), (8, 64), (32, 512), (64, 512), (256, 64), (3, 5)])
def test_every_step_finds_a_bucket_and_there_are_few(max_batch: int, max_step_tokens: int) -> None:
    buckets = plan_buckets(SIZES, max_batch=max_batch, max_step_tokens=max_step_tokens)
    by_kind = {kind: [b for b in buckets if b.kind == kind] for kind in ("decode", "mixed", "prompt")}
    assert len(buckets) <= 11 and len(set(buckets)) == len(buckets)
    assert all(b.num_tokens == b.num_rows for b in by_kind["decode"])
    assert max(b.num_rows for b in by_kind["decode"]) == max_batch
    assert max(b.num_tokens for b in by_kind["mixed"]) == max(max_batch, max_step_tokens)
    for bucket in by_kind["mixed"] + by_kind["prompt"]:
        assert bucket.num_rows == min(bucket.num_tokens, max_batch)


def test_the_smallest_comes_first_so_that_serving_can_start() -> None:
    first, *_ = plan_buckets(SIZES, max_batch=32, max_step_tokens=512)
    assert (first.num_tokens, first.kind) == (1, "decode")


def test_one_size_means_one_size() -> None:
    buckets = plan_buckets(SIZES, max_batch=8, max_step_tokens=64, one_size=True)
    assert {(b.num_tokens, b.num_rows) for b in buckets} == {(64, 8)}
    assert {b.kind for b in buckets} == {"mixed", "prompt"}
