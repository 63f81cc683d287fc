"""What one device of a layout computes, reads and sends in a step, as coefficients of the step's tokens and rows.

Sizes come from the same tables as the step itself (arrange.arranged, collectives.predict), so that they are exact:
tests/sharding/sweep compares them with compiled programs. What is sent is linear in the tokens; predict is asked at two
sizes and the line between them is kept.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from ...models.compress import rounded_as
from ...models.config import ModelConfig, MoeConfig
from ..arrange import Arranged, arranged
from ..collectives import Sent, StepShape, predict
from ..footprint import cache_numbers
from ..layout import Layout
from ..placement import MeshPlacement
from .links import Links
from .pages import cache_lanes
from .slices import Slice

_DECODE_ROWS = (128, 256)
_PREFILL_TOKENS = (8192, 16384)
"""Sizes that predict is asked at: whole tiles on every device, so that no part is padded."""


@dataclass(frozen=True)
class Line:
    """fixed + each * tokens"""

    fixed: float
    each: float

    @classmethod
    def through(cls, sizes: tuple[int, int], values: tuple[float, float]) -> "Line":
        each = (values[1] - values[0]) / (sizes[1] - sizes[0])
        return cls(values[0] - each * sizes[0], each)


@dataclass(frozen=True)
class Sends:
    """Seconds on the links, at nominal rates, of one step.

    Args:
        activations, weights: by what is sent; gathered weights scale with the width that they are held in.
        between: of both, what goes between slices.
        hops: one after the other, from device to device.
        count: collectives.
        num_bytes: what a device sends, by Sent.link_bytes.
    """

    activations: Line
    weights: float
    between: Line
    hops: float
    count: int
    num_bytes: Line


@dataclass(frozen=True)
class DeviceWork:
    """Of one device in a step of a phase.

    Args:
        linear: FLOPs of matrices for each token of the step.
        head: the same of the unembedding, for each row: 2 for each of its numbers.
        scores: FLOPs for each token and each key that it attends to, of layers that see everything.
        windowed: the same of layers with a window, by its length.
        weights: numbers held in the matrices of the layers (experts aside); experts: those of all experts held.
        share: the fraction of the experts that a token takes.
        cache: numbers of keys and values held for a position, of layers that see everything.
        cache_windows: the same of layers with a window, by its length.
        held: numbers of all weights on the device, with copies and padding.
        second_table: numbers of the table that a turned stream needs beside a tied one.
        sends: over the links.
        stages: of a pipeline; a step goes through them in parts.
        busy: the fraction of its layers' time in which the average stage works (uneven stages).
        replicas: copies of the model that share a batch.
        coupled: tokens of all replicas go through the same feed-forward layers.
        widest: numbers for each token of the largest intermediate activation.
        gathered: numbers of the weights that are gathered and held at once, of the layer with most.
        vocab: logits of a row, as sampling looks at them: of the whole vocabulary.
    """

    linear: float
    head: float
    scores: float
    windowed: tuple[tuple[int, float], ...]
    weights: float
    experts: float
    share: float
    cache: float
    cache_windows: tuple[tuple[int, float], ...]
    held: float
    second_table: float
    sends: Sends
    stages: int
    replicas: int
    coupled: bool
    widest: float
    gathered: float
    vocab: int
    layers: int

    @property
    def routed(self) -> float:
        """The part of `linear` that is of experts."""
        return 2.0 * self.experts * self.share * (self.replicas if self.coupled else 1)


def device_work(config: ModelConfig, layout: Layout, on: Slice, *, decode: bool, dtype: str = "bfloat16") -> DeviceWork:
    """The coefficients of a phase under a layout that check_layout has accepted.

    Args:
        dtype: of activations, and so of what is sent.
    """
    sizes = _DECODE_ROWS if decode else _PREFILL_TOKENS
    placement = MeshPlacement.of(layout, config, num_tokens=sizes[0], decode=decode)
    attended = layout.size(placement.attended)
    own = layout.size(placement.rules["tokens"])
    fed = layout.size(placement.scattered("mlp")) / own
    linear = head = weights = experts = share = 0.0
    leaves = arranged(config, layout, dtype)
    for path, leaf in leaves.items():
        size = float(prod(leaf.part)) * _gathered(leaf, placement, layout)
        if path.startswith("unembedder") or (config.tied and path.startswith("embedder.table")):
            head += 2 * size
        elif not path.startswith("segments."):
            weights += 0 if path.startswith("embedder") else size
        elif ".experts." in path:
            moe = _mixture(config, path)
            experts += size
            share = moe.top_k / moe.num_experts
            linear += 2 * size * share * (layout.replicas if layout.coupled else 1)
        else:
            weights += size
            if len(leaf.part) > 2:  # norms and biases of the width are added, not multiplied with
                tokens = 1 / attended if ".attention." in path else fed
                linear += 2 * size * tokens
    if not decode:
        divided = layout.parts("heads", prefill=True) * attended
    else:
        divided = layout.parts("cache_heads") * layout.parts("context")
    scores, windowed = _scores(config, divided)
    stages = layout.parts("layers")
    cache = dict(cache_numbers(config, layout, lanes=cache_lanes(on.chip.platform)))
    everything = float(cache.pop(None, 0))
    return DeviceWork(
        linear=linear,
        head=head,
        scores=scores / stages,
        windowed=tuple((window, each / stages) for window, each in windowed),
        weights=weights,
        experts=experts,
        share=share,
        cache=everything,
        cache_windows=tuple((window, float(each)) for window, each in cache.items() if window is not None),
        held=sum(float(prod(leaf.part)) for leaf in leaves.values()),
        second_table=float(prod(leaves["embedder.table"].part)) if rounded_as("int8", config).config != config else 0.0,
        sends=_sends(config, layout, on, dtype, decode=decode),
        stages=stages,
        replicas=layout.replicas,
        coupled=layout.coupled,
        widest=_widest(config, layout, placement) / own,
        gathered=_gathered_at_once(leaves, placement, layout, on),
        vocab=config.vocab_size,
        layers=config.num_layers,
    )


def used(sent: Iterable[Sent], *, cached: bool) -> list[Sent]:
    """The collectives of a step whose rows are greedy."""
    when = ("", "greedy", "cached") if cached else ("", "greedy")
    return [each for each in sent if each.when in when]


def _sends(config: ModelConfig, layout: Layout, on: Slice, dtype: str, *, decode: bool) -> Sends:
    links = Links(on, layout)
    sizes = _DECODE_ROWS if decode else _PREFILL_TOKENS
    shapes = [StepShape(size) if decode else StepShape(1, size) for size in sizes]
    first, second = (_sent(config, layout, links, shape, dtype) for shape in shapes)

    def line(name: str) -> Line:
        return Line.through(sizes, (first[_SENT.index(name)], second[_SENT.index(name)]))

    gathered, hops, count = (float(first[_SENT.index(name)]) for name in ("gathered", "hops", "count"))
    return Sends(line("seconds"), gathered, line("between"), hops, round(count), line("num_bytes"))


_SENT = ("seconds", "gathered", "between", "hops", "count", "num_bytes")


def _sent(config: ModelConfig, layout: Layout, links: Links, shape: StepShape, dtype: str) -> NDArray[np.float64]:
    """The figures of _SENT for a whole step. Layers that are alike send the same, so that one of each will do; stages
    of a pipeline have layers of their own."""
    if layout.parts("layers") > 1:
        return _sent_by(config, layout, links, shape, dtype)
    total = base = np.zeros(len(_SENT))
    for layer, number in Counter(config.layers).items():
        one, two = (_sent_by(replace(config, layers=(layer,) * n), layout, links, shape, dtype) for n in (1, 2))
        total, base = total + number * (two - one), 2 * one - two
    return total + base


def _sent_by(config: ModelConfig, layout: Layout, links: Links, shape: StepShape, dtype: str) -> NDArray[np.float64]:
    found = np.zeros(len(_SENT))
    for each in used(predict(config, layout, shape, dtype, chips=links.slice.shape), cached=False):
        cost = links.cost(each.op, each.axes, ring=each.ring)
        seconds = each.total * cost.seconds_per_byte
        weights = each.what.startswith("weights:")
        found += (
            0.0 if weights else seconds,
            seconds if weights else 0.0,
            each.total * cost.dcn_seconds_per_byte,
            each.count * cost.hops,
            each.count,
            each.link_bytes(layout),
        )
    return found


def _gathered(leaf: Arranged, placement: MeshPlacement, layout: Layout) -> int:
    """How many times as large a weight is where it is computed with."""
    return prod(layout.size(placement.gathered[logical]) for logical in leaf.logical)


_ONE_BY_ONE = frozenset({"v4", "v5p", "v6e"})
"""Chips whose compiler gathers one matrix after the other; for the others it has a whole layer before that begins."""


def _gathered_at_once(leaves: Mapping[str, Arranged], placement: MeshPlacement, layout: Layout, on: Slice) -> float:
    """What of a layer's weights is gathered and held at once."""
    together: dict[tuple[str, ...], float] = {}
    for path, leaf in leaves.items():
        times = _gathered(leaf, placement, layout)
        if path.startswith("segments.") and times > 1:
            names = path.split(".", 4)
            held = tuple(names if on.chip.name in _ONE_BY_ONE else names[:4])
            together[held] = together.get(held, 0.0) + times * prod(leaf.part[1:])
    return max(together.values(), default=0.0)


def _mixture(config: ModelConfig, path: str) -> MoeConfig:
    _, segment, _, position, *_ = path.split(".")
    mlp = config.segments[int(segment)].block[int(position)].mlp
    assert isinstance(mlp, MoeConfig)
    return mlp


def _scores(config: ModelConfig, divided: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """4 N H FLOPs for each token and key, summed over layers, by window."""
    found: dict[int | None, float] = {}
    for layer in config.layers:
        attention = layer.attention
        each = 4.0 * attention.num_heads * attention.head_dim / divided
        found[attention.window] = found.get(attention.window, 0.0) + each
    whole = found.pop(None, 0.0)
    return whole, tuple((window, each) for window, each in found.items() if window is not None)


def _widest(config: ModelConfig, layout: Layout, placement: MeshPlacement) -> float:
    """Numbers for each token of the widest activations that live at once: the residual stream, and gate and up."""
    widest = 0.0
    for layer in config.layers[:1]:
        mlp = layer.mlp
        if isinstance(mlp, MoeConfig):
            inner = 2.0 * mlp.expert.dim * mlp.top_k / layout.size(placement.rules["mlp"])
        else:
            inner = (2.0 if mlp.gated else 1.0) * mlp.dim / layout.size(placement.rules["mlp"])
        widest = max(widest, inner)
    return 2 * config.embed_dim / layout.parts("embed") + widest
