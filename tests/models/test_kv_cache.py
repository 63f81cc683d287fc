"""Pages as things to copy, keep and bring back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.base import CacheGroup
from distaff.backends.select import select_backend
from distaff.models.kv_cache import KVCache, copy_pages, read_pages, write_pages

GROUPS = (CacheGroup(3, 2, 8), CacheGroup(2, 1, 4, window=8))


@pytest.fixture(params=["reference", "cpu"])
def cache(request: pytest.FixtureRequest) -> KVCache:
    """Two groups, six and four pages, every number another one."""
    backend = select_backend(request.param)
    sizes = zip(GROUPS, (6, 4), strict=True)
    empty = tuple(backend.allocate_cache(g, num_pages=n, page_size=16, dtype=jnp.float32) for g, n in sizes)
    return jax.tree.map(lambda leaf: jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape), empty)


def test_pages_survive_a_round_trip_through_another_cache(cache: KVCache) -> None:
    ids = (jnp.array([4, 1]), jnp.array([3]))
    kept = jax.device_get(read_pages(cache, ids))
    other = jax.tree.map(jnp.zeros_like, cache)
    there = write_pages(other, (jnp.array([0, 5]), jnp.array([2])), kept)
    back = write_pages(other, ids, read_pages(there, (jnp.array([0, 5]), jnp.array([2]))))
    for g, (before, after) in enumerate(zip(cache, back, strict=True)):
        np.testing.assert_array_equal(np.asarray(after)[:, ids[g]], np.asarray(before)[:, ids[g]])
        others = np.delete(np.asarray(after), np.asarray(ids[g]), axis=1)
        assert not others.any()


def test_a_copy_changes_its_targets_alone(cache: KVCache) -> None:
    copied = copy_pages(cache, (jnp.array([2, 0]), jnp.array([1, 0])), (jnp.array([5, 6]), jnp.array([4, 3])))
    full, window = (np.asarray(group) for group in cache)
    np.testing.assert_array_equal(copied[0][:, :5], full[:, :5])
    np.testing.assert_array_equal(copied[0][:, 5], full[:, 2])
    np.testing.assert_array_equal(copied[1][:, :3], window[:, :3])
    np.testing.assert_array_equal(copied[1][:, 3], window[:, 0])
