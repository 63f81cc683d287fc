"""What a step sends under a layout: arithmetic on the layout and the model, nothing is compiled.

tests/sharding/test_collectives.py compares it with what the TPU compiler makes of the same step.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby, pairwise, product
from math import prod

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ..models.compress import Quantizer
from ..models.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, MoeConfig, NormConfig
from ..models.split_logits import MOST_CANDIDATES
from .arrange import arranged, kv_copies, padded_vocab, rounded
from .experts import capacity_of
from .layout import Axes, Layout
from .pipeline import num_parts
from .placement import MeshPlacement
from .stages import Stages

_FP32 = 4
_LANES = 128
_TILE_ROWS = 8
_LEAST_SQUARE = 4


@dataclass(frozen=True)
class Sent:
    """Collectives of a step that are alike.

    Args:
        what: is sent, in words.
        op: as compilers name it: all-reduce, all-gather, reduce-scatter, all-to-all, collective-permute.
        axes: the mesh axes along which devices take part together.
        num_bytes: of one collective, the whole of what is reduced or gathered as one device sees it: the larger of
            what goes in and what comes out.
        count: how many there are in a step.
        when: empty if always; for what sampling needs, the rows' parameters: "greedy", "top-k" (up to 64) or
            "otherwise". A program holds all of them, a step sends one. "cached": where earlier steps have cached a part
            of some row.
        ring: of a permute: the last device sends to the first one too.
    """

    what: str
    op: str
    axes: Axes
    num_bytes: int
    count: int
    when: str = ""
    ring: bool = False

    @property
    def total(self) -> int:
        return self.num_bytes * self.count

    def link_bytes(self, layout: Layout) -> float:
        """What each device sends in a ring: (n - 1) / n of the whole, twice that in an all-reduce; all of it to a
        neighbour. In an all-to-all what is for others, however many links it goes through."""
        size = layout.size(self.axes)
        if self.op == "collective-permute":
            return float(self.total)
        return self.total * (2 if self.op == "all-reduce" else 1) * (size - 1) / size


@dataclass(frozen=True)
class StepShape:
    """The tokens of a step of one replica: `rows` texts, `queries` tokens of each; one token each is a decode step."""

    rows: int
    queries: int = 1

    @property
    def num_tokens(self) -> int:
        return self.rows * self.queries


def predict(
    config: ModelConfig,
    layout: Layout,
    shape: StepShape,
    dtype: DTypeLike,
    *,
    quantizer: Quantizer | None = None,
    chips: tuple[int, ...] = (),
) -> tuple[Sent, ...]:
    """Every collective of a step that tells nothing about prompts, in the order of the first of each kind.

    Args:
        config, layout: that check_layout has accepted.
        dtype: of activations, and of weights that are not rounded.
        quantizer: what rounds weights, if anything does.
        chips: how many stand beside each other along each axis of the slice, where that is known; one number is that
            of GPUs behind a switch.
    """
    counter = _Counter(config, layout, shape, jnp.dtype(dtype), quantizer, chips)
    counts: dict[Sent, int] = {}
    for sent in counter.step():
        counts[sent] = counts.get(sent, 0) + sent.count
    return tuple(replace(sent, count=count) for sent, count in counts.items())


class _Counter:
    """Walks through a step as the decoder does, and notes what is sent."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        shape: StepShape,
        dtype: jnp.dtype,
        quantizer: Quantizer | None,
        chips: tuple[int, ...],
    ) -> None:
        self.config, self.layout, self.width, self.dtype = config, layout, dtype.itemsize, dtype
        self.quantizer, self.chips = quantizer, chips
        decode = shape.queries == 1
        self.placement = MeshPlacement.of(layout, config, num_tokens=shape.num_tokens, decode=decode)
        self.rules = self.placement.rules
        self.rows, self.tokens = shape.rows, shape.num_tokens
        self.own_tokens = self.tokens // layout.size(self.rules["tokens"])
        self.embed = config.embed_dim // layout.parts("embed")

    def step(self) -> Iterator[Sent]:
        config = self.config
        narrow = config.embed_in_dim or self.embed
        yield from self.reduce("embeddings", self.tokens * narrow * self.width, "vocab")
        yield from self.layers()
        if config.final_norm is not None:
            yield from self.norm(config.final_norm, self.own_tokens)
        yield from self.gather("last hidden states", self.tokens * self.embed * self.width, "tokens")
        vocab = padded_vocab(config.vocab_size, self.layout)
        part = self.rows * vocab // self.layout.parts("vocab")
        yield from self.reduce("logits", part * _FP32, "embed")
        yield from self.logits(part, vocab)

    def logits(self, part: int, vocab: int) -> Iterator[Sent]:
        """What sampling needs: one of these, by the parameters of the rows."""
        parts = self.layout.parts("vocab")
        for when, candidates in (("greedy", 1), ("top-k", min(MOST_CANDIDATES, part // self.rows))):
            num_bytes = parts * self.rows * candidates * 2 * _FP32  # with their places
            for sent in self.gather(f"best logits, {when}", num_bytes, "vocab"):
                yield replace(sent, when=when)
        for sent in self.gather("logits", self.rows * vocab * _FP32, "vocab"):
            # Of parts of a single row that are no whole vectors of a TPU's, XLA makes a sum there: each device's part
            # among zeros.
            short = self.rows == 1 and part % _LANES and len(self.chips) != 1
            yield replace(sent, op="all-reduce" if short else sent.op, when="otherwise")

    def layers(self) -> Iterator[Sent]:
        axes = self.rules["layers"]
        stages = self.layout.size(axes)
        if stages == 1:
            for layer in self.config.layers:
                yield from self.layer(layer)
            return
        # Each stage has the same layers in its program, and works in every tick, on a part or for nothing. Those of
        # uneven stages that a stage leaves out are counted too.
        whole, parts = self.tokens, num_parts(self.tokens, stages)
        ticks = parts + stages - 1
        self.tokens = self.own_tokens = whole // parts
        held = Stages(self.config, stages)
        for number, segment in enumerate(self.config.segments):
            for layer in segment.block:
                for sent in self.layer(layer):
                    yield replace(sent, count=sent.count * ticks * held.repeats(number))
        yield Sent("to the next stage", "collective-permute", axes, self.tokens * self.embed * self.width, ticks)
        self.tokens = self.own_tokens = whole
        yield Sent("last stage's outputs", "all-reduce", axes, whole * self.embed * self.width, 1)

    def layer(self, layer: LayerConfig) -> Iterator[Sent]:
        before, after = layer.placement in ("pre", "sandwich"), layer.placement != "pre"
        yield from self.weights(layer)
        attention, mlp = self.attention(layer.attention, layer.norm), self.mlp(layer.mlp)
        for branch in (attention, mlp):
            first = branch is attention or not layer.parallel
            if before and first:
                yield from self.norm(layer.norm, self.own_tokens)
            if first and not (branch is mlp and self.rules["routed"] and isinstance(layer.mlp, MoeConfig)):
                axes = self.placement.scattered("heads" if branch is attention else "mlp")
                tokens = self.own_tokens * self.layout.size(axes)
                if axes:
                    yield Sent("residual stream", "all-gather", axes, tokens * self.embed * self.width, 1)
            yield from branch
            if after and not layer.parallel:
                yield from self.norm(layer.norm, self.own_tokens)

    def weights(self, layer: LayerConfig) -> Iterator[Sent]:
        """What is gathered of a layer's weights, one leaf after the other."""
        gathered = self.placement.gathered
        if not gathered.table:
            return
        one = replace(self.config, layers=(layer,))
        roundings = {} if self.quantizer is None else self.quantizer.roundings(one)
        for path, held in rounded(arranged(one, self.layout, self.dtype), roundings).items():
            if not path.startswith("segments."):
                continue
            # Of rounded weights numbers and scales are: of the axes that a product sums over scales have one entry.
            for leaf in jax.tree.leaves(held):
                if leaf.logical == ("layers", "heads"):
                    continue
                num_bytes = leaf.num_bytes
                for logical, size in zip(leaf.logical, leaf.shape, strict=True):
                    if size > 1 and (axes := gathered[logical]):
                        num_bytes *= self.layout.size(axes)
                        yield Sent(f"weights: {path.split('.', 4)[4]}", "all-gather", axes, num_bytes, 1)

    def attention(self, config: AttentionConfig, norm: NormConfig) -> Iterator[Sent]:
        tokens = self.tokens // self.layout.size(self.placement.attended)
        heads = config.num_heads // self.layout.size(self.rules["heads"])
        kv_heads = config.num_kv_heads * kv_copies(config.num_kv_heads, self.layout)
        kv_heads //= self.layout.size(self.rules["kv_heads"])
        # XLA sends what is ready together as one.
        together = tokens * (heads + 2 * kv_heads) * config.head_dim * self.width
        yield from self.reduce("queries, keys and values", together, "embed")
        if config.qk_norm == "full":
            yield from self.norm(norm, tokens, "heads")
            yield from self.norm(norm, tokens, "kv_heads")
        yield from self.context(tokens, heads, kv_heads, config.head_dim)
        yield from self.exchange(tokens, heads, kv_heads, config.head_dim)
        yield from self.reduce("attention outputs", tokens * self.embed * self.width, "heads", scatter=True)

    def context(self, tokens: int, heads: int, kv_heads: int, head_dim: int) -> Iterator[Sent]:
        """Between devices that share the positions of the KV cache."""
        axes = self.rules["context"]
        size = self.layout.size(axes)
        if not axes:
            return
        if self.placement.attended != axes:
            # The largest scores, then sums and weighted values, of the queries of this device's heads.
            for what, numbers in (("largest scores", 1), ("weighted values", head_dim + 1)):
                yield from self.reduce(what, tokens * heads * numbers * _FP32, "context")
            return

        def hops(what: str, num_bytes: int, count: int, when: str = "") -> Iterator[Sent]:
            yield Sent(what, "collective-permute", axes, num_bytes, count, when, ring=True)

        yield from hops("keys and values", tokens * 2 * kv_heads * head_dim * self.width, size - 1)
        yield from hops("queries past cached keys", tokens * heads * head_dim * self.width, size - 1, "cached")
        yield from hops("what they have seen", tokens * heads * (head_dim + 1) * _FP32, size, "cached")

    def exchange(self, tokens: int, heads: int, kv_heads: int, head_dim: int) -> Iterator[Sent]:
        """Between devices that share the heads of the KV cache and not those of the projections."""
        axes = self.placement.exchanged
        if not axes:
            return
        if self.placement.attended == axes:
            together = tokens * (heads + 2 * kv_heads) * head_dim * self.width
            yield Sent("queries, keys and values", "all-to-all", axes, together, 1)
            yield Sent("heads' outputs", "all-to-all", axes, tokens * heads * head_dim * self.width, 1)
        else:
            yield Sent("heads' outputs", "all-gather", axes, tokens * heads * head_dim * self.width, 1)

    def mlp(self, config: MlpConfig | MoeConfig) -> Iterator[Sent]:
        if isinstance(config, MoeConfig):
            yield from self.moe(config)
            return
        width = config.dim * (2 if config.gated else 1) // self.layout.size(self.rules["mlp"])
        tokens = self.own_tokens * self.layout.size(self.placement.scattered("mlp"))
        yield from self.reduce("feed-forward widths", tokens * width * self.width, "embed")
        yield from self.reduce("feed-forward outputs", tokens * self.embed * self.width, "mlp", scatter=True)

    def moe(self, config: MoeConfig) -> Iterator[Sent]:
        if self.rules["routed"]:
            yield from self.reduce("router", self.own_tokens * config.num_experts * self.width, "embed")
            yield from self.routed(config)
            return
        tokens = self.own_tokens * self.layout.size(self.placement.scattered("mlp"))
        yield from self.reduce("router", tokens * config.num_experts * self.width, "embed")
        assigned = tokens * config.top_k
        yield from self.reduce("experts' widths", assigned * self.expert_width(config) * self.width, "embed")
        yield from self.reduce("experts' outputs", tokens * self.embed * self.width, "expert", "mlp", scatter=True)
        if config.shared is not None:
            yield from self.mlp(config.shared)
            if config.shared_gate:
                yield from self.reduce("shared expert's gate", tokens * self.width, "embed")

    def routed(self, config: MoeConfig) -> Iterator[Sent]:
        """One round of a dispatch; nothing more where as many tokens may be sent as there are."""
        axes = self.rules["routed"]
        parts, top_k = self.layout.size(axes), config.top_k
        capacity = capacity_of(self.own_tokens, top_k, config.num_experts, parts, self.layout.capacity)
        if capacity < self.own_tokens:
            yield Sent("how many rounds", "all-reduce", axes, 4, 1)
        slots = parts * capacity
        yield Sent("numbers and weights of experts", "all-to-all", axes, slots * 2 * top_k * 4, 1)
        yield Sent("tokens to their experts, and back", "all-to-all", axes, slots * self.embed * self.width, 2)
        yield from self.reduce("experts' outputs", self.own_tokens * self.embed * self.width, "mlp")
        if config.shared is not None:
            yield from self.reduce("shared expert's outputs", self.own_tokens * self.embed * self.width, "mlp")

    def expert_width(self, config: MoeConfig) -> int:
        """Of gate and up, of this device's part."""
        return 2 * config.expert.dim // self.layout.size(self.rules["mlp"])

    def norm(self, config: NormConfig, tokens: int, logical: str = "embed") -> Iterator[Sent]:
        for _ in range(2 if config.kind == "layer" else 1):
            yield from self.reduce("norms", tokens * _FP32, logical)

    def reduce(self, what: str, num_bytes: int, *logical: str, scatter: bool = False) -> Iterator[Sent]:
        axes, tokens = self.rules[logical[0]], self.placement.scattered(logical[0]) if scatter else ()
        if len(logical) > 1:  # at once, in the order of the mesh
            along = {axis for each in logical for axis in self.rules[each]}
            axes = tuple(axis for axis in self.layout.sizes if axis in along)
        for summed, group in groupby(tokens, axes.__contains__):
            along = tuple(group)
            if summed:
                # Of what would leave less than a tile's rows on each device XLA makes a sum, and cuts it.
                cut = self.own_tokens < _TILE_ROWS or self.fill_a_square(along)
                yield Sent(what, "all-reduce" if cut else "reduce-scatter", along, num_bytes, 1)
            num_bytes //= self.layout.size(along)
        rest = tuple(axis for axis in axes if axis not in tokens)
        if rest:
            yield Sent(what, "all-reduce", rest, num_bytes, 1)

    def fill_a_square(self, along: Axes) -> bool:
        """Whether the devices along some axes are all of a square slice: XLA sums among them and never scatters.

        Found by compiling for v5e and v6e: so it is on 4x4 and 8x8, whatever the size; not on 2x2, 2x4 and 4x8, nor
        among some of a square's devices, be they a square themselves.
        """
        square = len(self.chips) == 2 and self.chips[0] == self.chips[1] >= _LEAST_SQUARE
        return square and self.layout.size(along) == prod(self.chips)

    def gather(self, what: str, num_bytes: int, logical: str) -> Iterator[Sent]:
        axes = self.rules[logical]
        if axes:
            yield Sent(what, "all-gather", axes, num_bytes, 1)


def neighbours(layout: Layout, axes: Axes, *, ring: bool = False) -> frozenset[frozenset[int]]:
    """Pairs of devices that follow each other along one axis, from the first to the last; of a ring, these two too."""
    pairs: set[frozenset[int]] = set()
    for group in replica_groups(layout, axes):
        devices = sorted(group)
        pairs |= {frozenset(pair) for pair in pairwise([*devices, devices[0]] if ring else devices)}
    return frozenset(pairs)


def replica_groups(layout: Layout, axes: Axes) -> frozenset[frozenset[int]]:
    """Numbers of the devices that take part together in a collective along some axes of the layout's mesh."""
    sizes = dict(layout.mesh)
    groups: dict[tuple[int, ...], set[int]] = {}
    for number, place in enumerate(product(*(range(size) for size in sizes.values()))):
        outside = tuple(at for at, axis in zip(place, sizes, strict=True) if axis not in axes)
        groups.setdefault(outside, set()).add(number)
    assert len(groups) * layout.size(axes) == prod(sizes.values())
    return frozenset(frozenset(group) for group in groups.values())
