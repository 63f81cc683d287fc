"""Ragged paged attention for GPUs: the kernels that a step's rows need, as one primitive."""

from jaxtyping import Array, Float, Int

from ..base import AttentionSpec, RaggedIndex
from .chips import GpuChip
from .decode import decode_attention, queries_of_a_tile
from .prefill import prefill_attention

MAX_DECODE_QUERIES = 8
"""Rows with more queries go to the prefill kernel even where the caller bounds them: its tiles hold more."""


def gpu_ragged_attention(
    q: Float[Array, "T N H"],
    k: Float[Array, "T K H"],
    v: Float[Array, "T K H"],
    cache: Float[Array, "L P 2 K page H"],
    layer: Int[Array, ""],
    index: RaggedIndex,
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    chip: GpuChip,
    interpret: bool = False,
    return_lse: bool = False,
) -> tuple[Array, ...]:
    """As Backend.ragged_attention describes, with fp32 softmax; also lse fp32 [T, N] if asked for (-inf at padding).

    Rows with few queries go to the decode kernel, which splits their keys over programs, the others to the prefill
    kernel. Where index.max_query_len says that no row has many, the second one is left out.
    """
    k, v = k.astype(cache.dtype), v.astype(cache.dtype)  # attention sees keys as they are stored
    few = queries_of_a_tile(q.shape[1] // k.shape[1])
    bound = index.max_query_len
    only_decode = bound is not None and bound <= max(few, MAX_DECODE_QUERIES)
    if only_decode and bound is not None:
        few = bound
    out, cache, *lse = decode_attention(
        q,
        k,
        v,
        cache,
        layer,
        index,
        spec,
        sinks,
        chip=chip,
        max_queries=few,
        interpret=interpret,
        return_lse=return_lse,
    )
    if not only_decode:
        out, cache, *lse = prefill_attention(
            q,
            k,
            v,
            cache,
            layer,
            index,
            spec,
            sinks,
            chip=chip,
            out=out,
            lse=lse[0] if lse else None,
            min_queries=few + 1,
            interpret=interpret,
        )
    return out, cache, *lse
