"""What is told about a layout: plain data for tables and JSON."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from jax.typing import DTypeLike

from ..backends.base import PyTree
from ..backends.compiler.report import Collective
from ..backends.quantized import Rounding, is_quantized
from ..models.config import ModelConfig
from .arrange import Arranged, arranged, rounded
from .check import Devices
from .collectives import Sent, StepShape, neighbours, predict, replica_groups
from .footprint import footprint
from .layout import Layout
from .loading import staging_bytes
from .pipeline import bubble
from .stages import Stages

Totals = dict[tuple[str, frozenset[frozenset[int]]], tuple[int, int]]
"""Operation and the devices that take part together -> how many there are, and the bytes of all of them."""

_TOLERANCE = 0.01
"""By how much compiled bytes may differ from predicted ones."""


def layout_report(
    config: ModelConfig,
    layout: Layout,
    dtype: DTypeLike,
    *,
    batch: int,
    tokens: int,
    kv_dtype: DTypeLike | None = None,
    roundings: Mapping[str, Rounding] | None = None,
) -> dict[str, Any]:
    """Where everything lies, and what a decode step of `batch` rows and a prefill step of `tokens` tokens send;
    `roundings` are of the weights that are held as small numbers, by their paths."""
    held = footprint(config, layout, dtype, kv_dtype, roundings=roundings)
    leaves = arranged(config, layout, dtype)
    stages = Stages(config, layout.parts("layers"))
    shapes = {"decode_sends": StepShape(batch), "prefill_sends": StepShape(1, tokens)}
    return {
        "layout": str(layout),
        "devices": layout.num_devices,
        "mesh": dict(layout.mesh),
        "rules": layout.rules.as_dict(),
        "prefill": layout.prefill.as_dict(),
        "tensors": [_tensor(path, leaves[path], kept) for path, kept in rounded(leaves, roundings or {}).items()],
        "weights": held.weights,
        "kv_copies": held.kv_copies,
        "padding": held.padding,
        "staging": staging_bytes(config, layout, dtype),
        "cache_token": held.cache_token,
        "stage_layers": list(stages.loads),
        "decode_bubble": bubble(batch, stages.loads),
        "prefill_bubble": bubble(tokens, stages.loads),
        **{name: _sends(predict(config, layout, shape, dtype), layout) for name, shape in shapes.items()},
    }


def fit_report(config: ModelConfig, layout: Layout, devices: Devices, dtype: DTypeLike) -> dict[str, Any]:
    """What a layout that fits leaves for the KV cache."""
    held = footprint(config, layout, dtype)
    left = None if devices.memory is None else devices.memory - held.weights
    return {
        "layout": str(layout),
        "devices": devices.count,
        "unused": devices.count - layout.num_devices,
        "memory": devices.memory,
        "weights": held.weights,
        "kv_copies": held.kv_copies,
        "padding": held.padding,
        "cache_token": held.cache_token,
        "tokens": None if left is None else left // held.cache_token,
        "compiled": None,
    }


def predicted_totals(sent: Iterable[Sent], layout: Layout) -> Totals:
    return _totals((each.op, _groups(layout, each), each.count, each.num_bytes) for each in sent)


def compiled_totals(found: Iterable[Collective]) -> Totals:
    return _totals(
        (each.op, frozenset(map(frozenset, each.replica_groups)), each.count, each.num_bytes) for each in found
    )


def comparison(layout: Layout, predicted: Sequence[Sent], compiled: Sequence[Collective]) -> dict[str, Any]:
    """What was predicted beside what a compiler made: the same operations, devices and counts, and bytes to 1 %."""
    expected, found = predicted_totals(predicted, layout), compiled_totals(compiled)
    agrees = expected.keys() == found.keys() and all(
        found[key][0] == count and abs(found[key][1] - num_bytes) <= _TOLERANCE * num_bytes
        for key, (count, num_bytes) in expected.items()
    )
    names = {_groups(layout, sent): sent.axes for sent in predicted}

    def rows(totals: Totals) -> list[dict[str, Any]]:
        return [
            {"op": op, "axes": list(names.get(groups, ())), "count": count, "bytes": num_bytes}
            for (op, groups), (count, num_bytes) in totals.items()
        ]

    return {"agrees": agrees, "predicted": rows(expected), "compiled": rows(found)}


def _groups(layout: Layout, sent: Sent) -> frozenset[frozenset[int]]:
    if sent.op == "collective-permute":
        return neighbours(layout, sent.axes, ring=sent.ring)
    return replica_groups(layout, sent.axes)


def _totals(found: Iterable[tuple[str, frozenset[frozenset[int]], int, int]]) -> Totals:
    totals: Totals = {}
    for op, groups, count, num_bytes in found:
        before = totals.get((op, groups), (0, 0))
        totals[op, groups] = before[0] + count, before[1] + count * num_bytes
    return totals


def _tensor(path: str, leaf: Arranged, held: PyTree) -> dict[str, Any]:
    spec = [f"{size}/{'*'.join(axes)}" if axes else str(size) for size, axes in zip(leaf.shape, leaf.axes, strict=True)]
    return {
        "path": path,
        "shape": list(leaf.shape),
        "axes": list(leaf.logical),
        "spec": f"[{', '.join(spec)}]",
        "part": list(leaf.part),
        "held": held.kind if is_quantized(held) else leaf.dtype.name,
        "bytes": sum(each.num_bytes for each in jax.tree.leaves(held)),
    }


def _sends(sent: Sequence[Sent], layout: Layout) -> list[dict[str, Any]]:
    return [
        {
            "what": each.what,
            "op": each.op,
            "axes": list(each.axes),
            "count": each.count,
            "bytes": each.num_bytes,
            "link_bytes": each.link_bytes(layout),
            "when": each.when,
        }
        for each in sent
    ]
