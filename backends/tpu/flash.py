"""Dense flash attention on a TPU: prefill of whole prompts, encoders, and blocks of sequence parallelism."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec
from .flash_kernel import flash_kernel, segment_scratch
from .prefill import check_heads, in_hbm, into_windows, one_of
from .prefill_plan import (
    GENERATIONS,
    LANES,
    SUBLANES,
    PrefillBlocks,
    PrefillPlan,
    fitted,
)


def check_flash(
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    generation: str,
    dtype: DTypeLike = "bfloat16",
) -> None:
    """Declines what the kernel does not have.

    Raises:
        UnsupportedError: names the value and what is supported.
    """
    one_of("generation", generation, GENERATIONS)
    check_heads(num_heads, num_kv_heads, head_dim, dtype)


def flash_plan(
    *, dtype: DTypeLike, kv_dtype: DTypeLike, generation: str, blocks: PrefillBlocks | None, **shape: Any
) -> PrefillPlan:
    """The geometry of one call; `shape` are more fields of PrefillPlan."""
    blocks = blocks or PrefillBlocks.of("flash", generation)
    names: dict[str, Any] = {"dtype": jnp.dtype(dtype).name, "kv_dtype": jnp.dtype(kv_dtype).name}
    return fitted(PrefillPlan(**shape, **names, page=blocks.keys, blocks=blocks), segment_scratch)


def flash_attention(
    q: Float[Array, "*batch T N H"],
    k: Float[Array, "*batch S K H"],
    v: Float[Array, "*batch S K H"],
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    generation: str,
    blocks: PrefillBlocks | None = None,
    causal: bool = True,
    segments: tuple[Int[Array, "*batch T"], Int[Array, "*batch S"]] | None = None,
    return_lse: bool = False,
    interpret: Any = False,
) -> Any:
    """Attention of T queries, the last ones of S positions, for a batch of equally long rows or for one row.

    Args:
        spec: a window means the position itself and those before it, also where attention is not causal.
        sinks: logits of a key per head that takes part in the softmax and carries no value.
        causal: whether a query sees only positions up to its own.
        segments: numbers of queries and of keys; a query sees keys of the same number only.

    Returns:
        The output, zeros where a query sees nothing; with `return_lse` also log-sum-exps of the scores [*batch T N],
        in fp32.

    Raises:
        UnsupportedError: something that the kernel does not have.
    """
    if q.ndim == 3:
        alone = None if segments is None else (segments[0][None], segments[1][None])
        results = flash_attention(
            q[None],
            k[None],
            v[None],
            spec,
            sinks,
            generation=generation,
            blocks=blocks,
            causal=causal,
            segments=alone,
            return_lse=return_lse,
            interpret=interpret,
        )
        return jax.tree.map(lambda x: x[0], results)
    batch, num_queries, num_heads, head_dim = q.shape
    num_keys, num_kv_heads = k.shape[1:3]
    check_flash(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        generation=generation,
        dtype=q.dtype,
    )
    plan = flash_plan(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        dtype=q.dtype,
        kv_dtype=k.dtype,
        spec=spec,
        generation=generation,
        blocks=blocks,
        causal=causal,
        extra_mask=segments is not None,
        sinks=sinks is not None,
        return_lse=return_lse,
    )
    blocks = plan.blocks
    tiles = -(-num_queries // blocks.queries)
    queries_apart = tiles * blocks.queries
    keys_apart = -(-num_keys // blocks.keys) * blocks.keys

    def laid(x: Float[Array, "B S K H"]) -> Float[Array, "rows lanes"]:
        x = x.reshape(batch, num_keys, -1)
        x = jnp.pad(x, ((0, 0), (0, keys_apart - num_keys), (0, plan.lanes - x.shape[-1])))
        return x.reshape(batch * keys_apart, plan.lanes)

    q = jnp.pad(q, ((0, 0), (0, queries_apart - num_queries), (0, 0), (0, 0)))
    tokens = batch * queries_apart
    operands: list[Array] = [
        into_windows(plan, q.reshape(tokens, num_heads, head_dim), tokens),
        laid(k),
        laid(v),
    ]
    specs = [pl.BlockSpec(memory_space=pltpu.HBM)] * 3
    scratch = plan.scratch
    if segments is not None:
        of_queries, of_keys = segments
        of_queries = jnp.pad(of_queries, ((0, 0), (0, queries_apart - num_queries)))
        of_queries = of_queries.reshape(batch, tiles, 1, blocks.queries)
        of_keys = jnp.pad(of_keys, ((0, 0), (0, keys_apart - num_keys))).reshape(-1, 1)
        operands.append(jnp.broadcast_to(of_queries, (batch, tiles, SUBLANES, blocks.queries)).astype(jnp.int32))
        operands.append(jnp.broadcast_to(of_keys, (batch * keys_apart, LANES)).astype(jnp.int32))
        specs += [pl.BlockSpec(memory_space=pltpu.HBM)] * 2
        scratch |= segment_scratch(plan)
    operands = list(map(in_hbm, operands))
    if sinks is not None:
        operands.append(sinks.astype(jnp.float32))
        specs.append(pl.BlockSpec(memory_space=pltpu.SMEM))
    shapes = [pltpu.HBM((tokens, num_heads * plan.out_width), q.dtype)]
    if return_lse:
        shapes.append(pltpu.HBM((batch * tiles, num_heads, blocks.queries), jnp.float32))
    results = pl.pallas_call(
        partial(
            flash_kernel,
            plan=plan,
            num_rows=batch,
            lengths=(num_queries, num_keys),
            apart=(queries_apart, keys_apart),
        ),
        in_specs=specs,
        out_specs=[pl.BlockSpec(memory_space=pltpu.HBM)] * len(shapes),
        out_shape=shapes,
        scratch_shapes=(scratch,),
        interpret=interpret,
        name="flash_attention",
        compiler_params=pltpu.CompilerParams(
            vmem_limit_bytes=blocks.vmem_mib << 20,
            disable_bounds_checks=True,
            disable_semaphore_checks=True,
        ),
    )(*operands)
    out = results[0].reshape(batch, queries_apart, num_heads, plan.out_width)[:, :num_queries, :, :head_dim]
    if not return_lse:
        return out
    lse = jnp.moveaxis(results[1].reshape(batch, tiles, num_heads, blocks.queries), 2, 3)
    return out, lse.reshape(batch, queries_apart, num_heads)[:, :num_queries]
