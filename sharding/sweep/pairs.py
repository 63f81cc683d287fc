"""Prefill and decode on chips of their own: which layouts, how many of each, and what moving the cache costs."""

from dataclasses import replace

import numpy as np

from ..footprint import cache_numbers
from ..presets import preset
from .plan import Placed, Scores, score
from .request import WIDTHS, SweepRequest
from .rows import Row, layout_table

_MOST = 24
"""Layouts of each phase that are combined with each other."""


def pairs_of(request: SweepRequest, placed: tuple[Placed, ...], *, most: int) -> list[Row]:
    """Pairs by tokens each second for each chip; those that meet the targets first.

    A prompt's keys and values go from the chips that computed them to those that decode: over the data-centre network,
    every chip of both sides at its rate. Decoding waits for them. Where that rate is unknown there are no pairs.
    """
    if request.phase != "both" or any(on.chip.dcn_bytes_per_second is None for on in request.slices):
        return []
    first = score(replace(request, phase="prefill", batches=(max(request.batches),)), placed)
    second = score(replace(request, phase="decode"), placed)
    left = _best(first, first.ttft[1], request.targets.ttft)
    right = _best(second, second.tpot[1], request.targets.tpot)
    work = request.workload
    found: list[Row] = []
    for a in left:
        for b in right:
            if first.kv[a] != second.kv[b]:
                continue
            here, there = first.placed[first.layout[a]], second.placed[second.layout[b]]
            moved = _cache_bytes(second, b)
            move = moved / min(_replica_rate(here), _replica_rate(there))
            prompts = first.throughput[1][a] / work.isl  # each second
            answers = second.throughput[1][b] / work.osl
            # So many slices for prefill as keep one for decoding busy.
            share = answers / prompts
            chips = here.slice.num_chips * share + there.slice.num_chips
            ttft, tpot = first.ttft[1][a] + move, second.tpot[1][b]
            targets = request.targets
            found.append(
                {
                    "prefill_hw": here.slice.name,
                    "prefill_layout": str(here.layout),
                    "prefill_chunk": int(first.chunk[a]),
                    "decode_hw": there.slice.name,
                    "decode_layout": str(there.layout),
                    "batch": int(second.batch[b]),
                    "weights": request.weights[second.weights[b]],
                    "kv": request.kv[second.kv[b]],
                    "prefill_slices_per_decode_slice": float(share),
                    "kv_move_ms": float(move * 1e3),
                    "kv_move_bytes": int(moved),
                    "ttft_ms_best": float(ttft * 1e3),
                    "tpot_ms_best": float(tpot * 1e3),
                    "tokens_per_second_per_chip": float(answers * work.osl / chips),
                    "meets_targets": bool(
                        (targets.ttft is None or ttft <= targets.ttft)
                        and (targets.tpot is None or tpot <= targets.tpot)
                    ),
                    "prefill_table": layout_table(here.layout),
                    "decode_table": layout_table(there.layout),
                    "evidence": "analytic",
                }
            )
    found.sort(key=lambda row: (not row["meets_targets"], -row["tokens_per_second_per_chip"]))
    return found[:most]


def _best(scores: Scores, wait: np.ndarray, target: float | None) -> list[int]:
    """The best of each layout: within the target if it can be, then by tokens for each chip."""
    late = wait > target if target is not None else np.zeros(len(scores), bool)
    ordered = np.lexsort((-scores.per_chip, late, ~scores.fits))
    seen: set[int] = set()
    found: list[int] = []
    for number in ordered.tolist():
        layout = int(scores.layout[number])
        if scores.fits[number] and layout not in seen and np.isfinite(wait[number]):
            seen.add(layout)
            found.append(number)
    return found[:_MOST]


def _replica_rate(placed: Placed) -> float:
    """Bytes each second between the chips of one replica and the data-centre network."""
    return placed.slice.num_chips / placed.layout.replicas * (placed.slice.chip.dcn_bytes_per_second or 0.0)


def _cache_bytes(scores: Scores, number: int) -> float:
    """Of a prompt, on all devices of a replica, copies left out; layers with a window have it alone."""
    width, isl = WIDTHS[scores.request.kv[scores.kv[number]]], scores.request.workload.isl
    whole = cache_numbers(scores.request.config, preset("replica", {}))
    return width * sum(each * (isl if window is None else min(window, isl)) for window, each in whole.items())
