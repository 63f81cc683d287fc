"""Dense causal attention: cuDNN's kernel where it has one, else the prefill kernel without its pages."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..base import AttentionSpec
from .chips import GpuChip
from .prefill import dense_prefill_attention

_CUDNN_DTYPES = ("bfloat16", "float16")


@dataclass(frozen=True)
class DenseChoice:
    """`kernel` is "cudnn" or "triton"; `reason` says why not the other."""

    kernel: str
    reason: str


def choose_dense(
    chip: GpuChip, *, attached: bool, dtype: DTypeLike, head_dim: int, spec: AttentionSpec, sinks: bool = False
) -> DenseChoice:
    """The kernel for dense attention: cuDNN's is the fastest on NVIDIA's GPUs and is taken wherever it applies.

    Args:
        chip: where it will run.
        attached: the chip is in this machine. Without it JAX finds no cuDNN to compile for.
        sinks: there are logits of sinks.
    """
    name = jnp.dtype(dtype).name
    widest = 256 if chip.platform == "cuda" and float(chip.capability) >= 9.0 else 128
    obstacles = {
        f"cuDNN is for NVIDIA, this is {chip.name}": chip.platform != "cuda",
        f"cuDNN has {' and '.join(_CUDNN_DTYPES)}, not {name}": name not in _CUDNN_DTYPES,
        f"cuDNN's heads are multiples of 8 up to {widest} wide, not {head_dim}": head_dim % 8 > 0 or head_dim > widest,
        "cuDNN has no soft cap": spec.soft_cap is not None,
        "cuDNN has no sinks": sinks,
        "cuDNN is compiled for where it runs": not attached,
    }
    for reason, holds in obstacles.items():
        if holds:
            return DenseChoice("triton", reason)
    return DenseChoice("cudnn", "it applies, and its schedule is the chip maker's own")


def dense_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    spec: AttentionSpec,
    sinks: Float[Array, "N"] | None = None,
    *,
    chip: GpuChip,
    attached: bool,
    lengths: Int[Array, "B"] | None = None,
    interpret: bool = False,
) -> Float[Array, "B T N H"]:
    """Causal attention of each row to its own first `lengths[b]` tokens (None: all T); zeros at the others."""
    num_rows, row_tokens, _, head_dim = q.shape
    lengths = jnp.full((num_rows,), row_tokens, jnp.int32) if lengths is None else lengths
    choice = choose_dense(chip, attached=attached, dtype=q.dtype, head_dim=head_dim, spec=spec, sinks=sinks is not None)
    if choice.kernel == "triton":
        return dense_prefill_attention(q, k, v, spec, sinks, chip=chip, lengths=lengths, interpret=interpret)[0]
    out = jax.nn.dot_product_attention(
        q,
        k,
        v,
        scale=spec.scale,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if spec.window is None else (spec.window - 1, 0),
        implementation="cudnn",
    )
    inside = jnp.arange(row_tokens) < lengths[:, None]
    return jnp.where(inside[..., None, None], out, 0)
