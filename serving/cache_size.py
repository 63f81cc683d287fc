"""How many pages the KV cache gets: from memory, shared among groups by what a sequence needs of each."""

import math
from collections.abc import Sequence

import jax
from jax.typing import DTypeLike

from ..backends.base import Backend, CacheGroup
from .errors import CacheTooSmallError

_SHARE, _SHARE_OF_HOST, _SHARE_FOR_ONE = 0.9, 0.25, 0.5
"""Parts of the free memory that the cache takes unless told otherwise: of an accelerator's, of the host's, and of the
host's where less does not hold one text."""

_STEPS, _STEPS_OF_HOST = 64, 4
"""Sizes between one power of two and the next. What is free differs at every start, most of all on a host, and each
size is another program: a few sizes are found in the compilation cache again."""


def pages_per_sequence(groups: Sequence[CacheGroup], *, page_size: int, max_len: int, chunk: int) -> tuple[int, ...]:
    """Most pages that one sequence holds of each group: all of its text, or a window and the chunk that is read."""
    pages = []
    for group in groups:
        positions = max_len if group.window is None else min(max_len, group.window + chunk + page_size)
        pages.append(-(-positions // page_size))
    return tuple(pages)


def page_bytes(group: CacheGroup, backend: Backend, *, page_size: int, dtype: DTypeLike) -> int:
    """Bytes that a page of this group takes, in all of its layers."""
    page = jax.eval_shape(lambda: backend.allocate_cache(group, num_pages=1, page_size=page_size, dtype=dtype))
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(page))


def cache_pages(
    groups: Sequence[CacheGroup],
    backend: Backend,
    *,
    page_size: int,
    dtype: DTypeLike,
    max_batch: int,
    max_len: int,
    chunk: int,
    memory: int | None,
) -> tuple[int, ...]:
    """Pages for each group.

    Args:
        max_batch, max_len: sequences at once and tokens in each; no more pages are given than they can fill.
        chunk: most prompt tokens in a step.
        memory: bytes for the cache; None takes a share of what is free, rounded down to one of a few sizes, and more
            of it for the first sequence.

    Raises:
        CacheTooSmallError: not one sequence of max_len fits.
    """
    each = pages_per_sequence(groups, page_size=page_size, max_len=max_len, chunk=chunk)
    sizes = [page_bytes(group, backend, page_size=page_size, dtype=dtype) for group in groups]
    needed = sum(pages * size for pages, size in zip(each, sizes, strict=True))
    steps = None
    if memory is None:
        free = backend.memory()
        share = int(free.free * (_SHARE_OF_HOST if free.shared else _SHARE))
        memory = max(share, min(needed, int(free.free * _SHARE_FOR_ONE)))
        steps = _STEPS_OF_HOST if free.shared else _STEPS
    sequences = min(memory / needed, max_batch)
    if sequences < 1:
        raise CacheTooSmallError(
            f"kv_memory: {_size(memory)} hold {int(max_len * sequences)} of the {max_len} tokens that a text may have, "
            f"which take {_size(needed)}; give at least that, or a context of fewer tokens"
        )
    if steps is not None and sequences < max_batch:
        sequences = _rounded_down(sequences, steps)
    return tuple(int(pages * sequences) for pages in each)


def _rounded_down(value: float, steps: int) -> float:
    """To a power of two and a multiple of a part of it: 1, 1.25, 1.5, 1.75, 2, 2.5, ... with four steps."""
    step = 2.0 ** math.floor(math.log2(value)) / steps
    return math.floor(value / step) * step


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
