"""Bytes that a device needs, of many candidates at once."""

import numpy as np

from .roofline import MOST_WINDOWS, Columns, Floats

_PAGE = 128
"""Positions of a page where a cache must round up; backends choose theirs, and small ones waste less."""


def memory_bytes(
    decode: Columns,
    prefill: Columns,
    rows: Floats,
    tokens: Floats,
    prompts: Floats,
    longest: int,
    weight_bytes: Floats,
    cache_bytes: Floats,
    *,
    phase: str,
) -> Floats:
    """Weights, the cache of every row at its longest, and what the larger step holds beside them.

    Args:
        rows: of a decode step. tokens, prompts: of a prefill step.
        longest: positions of a row.
    """
    held = decode["held"] * weight_bytes
    cached = np.maximum(rows, prompts) if phase != "decode" else rows
    positions = np.ceil(longest / _PAGE) * _PAGE
    per_row = decode["cache"] * positions
    for number in range(MOST_WINDOWS):
        per_row = per_row + decode[f"cached{number}"] * np.minimum(decode[f"cached{number}_length"] + _PAGE, positions)
    cache = per_row * cached * cache_bytes
    return held + cache + temporary_bytes(prefill, tokens if phase != "decode" else rows)


def temporary_bytes(of: Columns, tokens: Floats) -> Floats:
    """What a step holds beside its arguments: the widest activations, twice (an operation's inputs and outputs)."""
    return 2.0 * 2.0 * of["widest"] * tokens
