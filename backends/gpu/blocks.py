"""Block sizes of the kernels, from block_sizes.yaml."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jax.numpy as jnp
import yaml
from jax.typing import DTypeLike

from .chips import GpuChip

MAX_HEAD_DIM = 256
"""The widest head that there are block sizes for."""
_CONDITIONS = ("max_head_dim", "itemsize", "uncapped")


@dataclass(frozen=True)
class DecodeBlocks:
    """`keys` positions at once, in programs of `warps` warps; `stages` blocks in flight."""

    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class PrefillBlocks:
    """As DecodeBlocks; `rows` queries times heads of a group in a tile."""

    rows: int
    keys: int
    warps: int
    stages: int


def decode_blocks(chip: GpuChip, head_dim: int, dtype: DTypeLike) -> DecodeBlocks:
    return DecodeBlocks(**_sizes("decode", chip.capability, head_dim, dtype))


def prefill_blocks(chip: GpuChip, head_dim: int, dtype: DTypeLike, *, capped: bool = False) -> PrefillBlocks:
    """`capped` says whether scores have a soft cap."""
    return PrefillBlocks(**_sizes("prefill", chip.capability, head_dim, dtype, capped=capped))


def dense_blocks(chip: GpuChip, head_dim: int, dtype: DTypeLike, *, capped: bool = False) -> PrefillBlocks:
    """As prefill_blocks, for attention without pages."""
    return PrefillBlocks(**_sizes("dense", chip.capability, head_dim, dtype, capped=capped, instead="prefill"))


def _sizes(
    kernel: str,
    capability: str,
    head_dim: int,
    dtype: DTypeLike,
    *,
    capped: bool = False,
    instead: str | None = None,
) -> dict[str, int]:
    """Of a kernel, or of the one `instead` where the table has none for it."""
    table, itemsize = _table()[kernel], jnp.dtype(dtype).itemsize
    for row in table.get(capability, table.get("default", [])):
        fits = head_dim <= row["max_head_dim"] and itemsize <= row["itemsize"]
        if fits and not (capped and row.get("uncapped")):
            return {name: value for name, value in row.items() if name not in _CONDITIONS}
    if instead is not None:
        return _sizes(instead, capability, head_dim, dtype, capped=capped)
    raise ValueError(f"{kernel}: no block sizes for heads of width {head_dim} in {itemsize} bytes")


@cache
def _table() -> dict[str, Any]:
    return yaml.safe_load(files(__package__).joinpath("block_sizes.yaml").read_text())
