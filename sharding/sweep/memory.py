"""Bytes that a device needs, of many candidates at once."""

import numpy as np

from .roofline import MOST_WINDOWS, Bools, Columns, Floats


def memory_bytes(
    decode: Columns,
    prefill: Columns,
    rows: Floats,
    tokens: Floats,
    prompts: Floats,
    longest: int,
    page: Floats,
    weight_bytes: Floats,
    cache_bytes: Floats,
    turned: Bools,
    *,
    phase: str,
) -> Floats:
    """Weights, the cache of every row at its longest, and what the larger step holds beside them.

    Args:
        rows: of a decode step. tokens, prompts: of a prefill step.
        longest: positions of a row, which fill whole pages of `page` positions.
        turned: where the stream is turned before weights are rounded, if the model allows.
    """
    held = (decode["held"] + decode["second_table"] * turned) * weight_bytes
    cached = np.maximum(rows, prompts) if phase != "decode" else rows
    positions = np.ceil(longest / page) * page
    per_row = decode["cache"] * positions
    for number in range(MOST_WINDOWS):
        per_row = per_row + decode[f"cached{number}"] * np.minimum(decode[f"cached{number}_length"] + page, positions)
    cache = per_row * cached * cache_bytes
    temporaries = temporary_bytes(decode, rows, rows, weight_bytes)
    if phase != "decode":
        temporaries = np.maximum(temporaries, temporary_bytes(prefill, tokens, prompts, weight_bytes))
    return held + cache + temporaries


_FIXED = 1.6e6
_LOGITS = 2.5
_MANY_LOGITS, _KEPT = 6.0, 30e6
"""Copies of the logits of a decode step and bytes beside them, and copies where there are many, less what stays out of
HBM: fitted to programs of the TPU compiler (tests/sharding/sweep/test_memory.py has them)."""
_ACTIVATIONS_KEPT = 20e6
"""Bytes of the widest activations that stay out of HBM: with these the peaks of 33 prefill steps of 512 tokens on three
generations, and of one of 2,048, are within 2 %."""


def temporary_bytes(of: Columns, tokens: Floats, rows: Floats, weight_bytes: Floats) -> Floats:
    """What a step holds beside its arguments: logits of the rows that draw, of the whole vocabulary in fp32, the widest
    activations, and weights that it gathers."""
    logits = 4.0 * of["vocab"] * rows
    drawing = np.maximum(_LOGITS * logits, _MANY_LOGITS * logits - _KEPT)
    activations = np.maximum(2.0 * of["widest"] * tokens - _ACTIVATIONS_KEPT, 0.0)
    return _FIXED + drawing + activations + of["gathered"] * weight_bytes
