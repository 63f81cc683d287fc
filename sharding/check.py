"""Does a layout fit a model and the devices? If not: why, with the numbers, and what would."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from math import inf, lcm, log2, prod

from jax.typing import DTypeLike

from ..backends.quantized import Rounding
from ..models.config import ModelConfig, MoeConfig
from ..models.decoder import weight_specs
from .arrange import arranged, rounded
from .errors import (
    AxisClashError,
    DevicesError,
    IndivisibleError,
    LayoutError,
    LayoutMemoryError,
    UnsupportedLayoutError,
)
from .footprint import footprint
from .layout import LOGICAL_AXES, Layout
from .placement import MeshPlacement
from .presets import preset, table
from .stages import Stages

_NEAREST = 3
_CACHE_SHARE = 0.1  # of a device's memory must be left for the cache and for what a step holds


@dataclass(frozen=True)
class Devices:
    """What there is: so many devices of so many bytes each (None: not known, or not to be looked at)."""

    count: int
    memory: int | None = None


Roundings = Mapping[str, Rounding]
_NONE: Roundings = {}


def check_layout(
    layout: Layout, config: ModelConfig, devices: Devices, *, dtype: DTypeLike, roundings: Roundings = _NONE
) -> None:
    """
    Args:
        layout, config, devices, dtype: of the question.
        roundings: of the weights that are held as small numbers, by their paths.

    Raises:
        LayoutError: it does not fit; the class says in what respect, the message has the arithmetic and the nearest
            layouts that fit.
    """
    error = problem(layout, config, devices, dtype=dtype, roundings=roundings)
    if error is not None:
        near = [str(other) for other in nearest(layout, config, devices, dtype=dtype, roundings=roundings)]
        advice = f"; nearest that fit: {' or '.join(near)}" if near else "; no layout of these devices fits"
        raise type(error)(f"layout {layout}: {error}{advice}")


def problem(
    layout: Layout, config: ModelConfig, devices: Devices, *, dtype: DTypeLike, roundings: Roundings = _NONE
) -> LayoutError | None:
    """What is wrong with a layout, None if nothing."""
    if layout.num_devices > devices.count:
        product = " x ".join(f"{axis}={size}" for axis, size in layout.mesh)
        return DevicesError(f"{product} takes {layout.num_devices} devices, there are {devices.count}")
    return (
        _clash(layout, config, dtype)
        or _indivisible(layout, config)
        or _not_built(layout, config)
        or _grouped(layout, config, dtype, roundings)
        or (_memory(layout, config, devices.memory, dtype, roundings) if devices.memory is not None else None)
    )


def choose_layout(config: ModelConfig, devices: Devices, *, dtype: DTypeLike, roundings: Roundings = _NONE) -> Layout:
    """The layout for `auto`: each replica as small as the memory allows, as many of them as there are devices for; with
    stages where nothing else fits.

    Raises:
        LayoutMemoryError: nothing fits.
    """
    fitting: list[Layout] = []
    # Stages wait for each other, so a pipeline is taken where nothing else fits.
    for some in (candidates(config, devices), _pipelines(devices)):
        fitting = fitting or [
            each for each in some if problem(each, config, devices, dtype=dtype, roundings=roundings) is None
        ]
    if not fitting:
        whole = _whole(config, dtype, roundings)
        raise LayoutMemoryError(
            f"layout auto: the weights take {_size(whole)}, and no layout of {devices.count} devices"
            f"{f' of {_size(devices.memory)} each' if devices.memory else ''} holds them; use more devices, or a "
            "smaller dtype"
        )
    return min(fitting, key=lambda each: (-each.num_devices, each.replica.num_devices, str(each)))


def nearest(
    layout: Layout, config: ModelConfig, devices: Devices, *, dtype: DTypeLike, roundings: Roundings = _NONE
) -> list[Layout]:
    """The layouts that fit and resemble this one most: in the sizes of their axes, then in the number of devices."""

    def distance(other: Layout) -> tuple[float, int, str]:
        axes = set(layout.sizes) | set(other.sizes)
        steps = sum(abs(log2(layout.sizes.get(axis, 1) / other.sizes.get(axis, 1))) for axis in axes)
        return steps + (layout.preset != other.preset), -other.num_devices, str(other)

    room = inf if devices.memory is None else devices.memory
    share = _whole(config, dtype, roundings) / room  # no layout of fewer devices holds the weights
    found: list[Layout] = []
    pool = {str(each): each for each in (*candidates(config, devices), *_alike(layout, devices))}
    for other in sorted(pool.values(), key=distance):
        if other.num_devices < share:
            continue
        if problem(other, config, devices, dtype=dtype, roundings=roundings) is None:
            found.append(other)
        if len(found) == _NEAREST:
            break
    return found


def candidates(config: ModelConfig, devices: Devices) -> Iterator[Layout]:
    """Every replica, tensor and (of a mixture) expert layout of at most these devices."""
    sizes = range(1, devices.count + 1)
    experts = [moe.num_experts for moe in _mixtures(config)]
    heads = [layer.attention.num_heads for layer in config.layers]
    tensor = [size for size in sizes if not any(n % size for n in heads)]
    expert = [size for size in sizes if experts and not any(n % size for n in experts)]
    for data, size in product(sizes, tensor):
        if data * size <= devices.count:
            yield preset("tensor" if size > 1 else "replica", {"data": data, "tensor": size})
    for data, across, size in product(sizes, expert, tensor):
        if across > 1 and data * across * size <= devices.count:
            yield preset("expert", {"data": data, "expert": across, "tensor": size})


def _pipelines(devices: Devices) -> Iterator[Layout]:
    sizes = range(1, devices.count + 1)
    for data, stages, size in product(sizes, sizes[1:], sizes):
        if data * stages * size <= devices.count:
            yield preset("pipeline", {"data": data, "stage": stages, "tensor": size})


def _alike(layout: Layout, devices: Devices) -> Iterator[Layout]:
    """The same preset over other sizes, powers of two or as they are; each axis that it has splits something."""
    if layout.preset == "custom":
        return
    powers = {2**power for power in range(devices.count.bit_length())}
    axes = ("data", *table(layout.preset).axes)
    kept = set(layout.sizes) - (set() if layout.coupled else {"data"})
    choices = [sorted((powers | {layout.sizes.get(axis, 1)}) - ({1} if axis in kept else set())) for axis in axes]
    for sizes in product(*choices):
        if prod(sizes) <= devices.count:
            yield preset(layout.preset, dict(zip(axes, sizes, strict=True)))


def _clash(layout: Layout, config: ModelConfig, dtype: DTypeLike) -> LayoutError | None:
    for spec in weight_specs(config, dtype).values():
        seen: dict[str, str] = {}
        for logical in spec.axes:
            for axis in layout.axes(logical):
                if axis in seen:
                    return AxisClashError(
                        f"{axis} splits both {seen[axis]} and {logical} of {spec.path} {list(spec.axes)}; give each "
                        "a mesh axis of its own"
                    )
                seen[axis] = logical
    return None


def _indivisible(layout: Layout, config: ModelConfig) -> LayoutError | None:
    for number, layer in enumerate(config.layers):
        attention = layer.attention
        if layout.parts("kv_heads") != layout.parts("heads"):
            return AxisClashError(
                f"heads are split {layout.parts('heads')} ways and kv_heads {layout.parts('kv_heads')} ways; queries "
                "must lie with the keys that they read: give both the same mesh axes"
            )
        split = "heads" if layout.axes("cache_heads") == layout.axes("kv_heads") else "cache_heads"
        parts = layout.parts(split)
        if attention.num_heads % parts:
            return IndivisibleError(_uneven(f"{attention.num_heads} heads (layer {number})", layout, split))
        shared = lcm(attention.num_kv_heads, parts)
        if attention.num_heads % shared:
            return IndivisibleError(
                f"{attention.num_kv_heads} KV heads over {parts} parts make {shared} with copies, which do not divide "
                f"the {attention.num_heads} heads (layer {number})"
            )
        mlp = layer.mlp
        widths = (
            [mlp.expert.dim, *([mlp.shared.dim] if mlp.shared else [])] if isinstance(mlp, MoeConfig) else [mlp.dim]
        )
        for width in widths:
            if width % layout.parts("mlp"):
                return IndivisibleError(_uneven(f"feed-forward width {width} (layer {number})", layout, "mlp"))
        if isinstance(mlp, MoeConfig) and mlp.num_experts % layout.parts("expert"):
            return IndivisibleError(_uneven(f"{mlp.num_experts} experts (layer {number})", layout, "expert"))
    stages = layout.parts("layers")
    held = Stages(config, stages)
    if stages > 1 and (held.count - 1) * held.repeats(held.cut) >= config.segments[held.cut].repeats:
        blocks = " and then ".join(f"{segment.repeats} blocks of {len(segment.block)}" for segment in config.segments)
        return IndivisibleError(
            f"{config.num_layers} layers, that are {blocks}, leave some of {stages} stages without a block"
        )
    if config.embed_dim % layout.parts("embed"):
        return IndivisibleError(_uneven(f"model width {config.embed_dim}", layout, "embed"))
    return None


def _uneven(what: str, layout: Layout, logical: str) -> str:
    axes = " x ".join(f"{axis}={layout.sizes[axis]}" for axis in layout.axes(logical))
    return f"{what} over {axes} do not divide into {layout.parts(logical)} parts"


def _not_built(layout: Layout, config: ModelConfig) -> LayoutError | None:
    mixtures = list(_mixtures(config))
    if "expert" in layout.sizes and not mixtures:
        return UnsupportedLayoutError(f"{config.family} has no experts to split over expert={layout.sizes['expert']}")
    if layout.axes("embed") and config.embed_in_dim is not None:
        return UnsupportedLayoutError("a table of another width than the model's is not split along the width")
    tokens = layout.axes("tokens") + layout.axes("tokens", prefill=True)
    for prefill in (False, True):
        routed = layout.axes("routed", prefill=prefill)
        if routed and not routed == layout.axes("expert") == layout.axes("tokens", prefill=prefill):
            return UnsupportedLayoutError(
                f"routed tokens are split along {', '.join(routed)}; experts and tokens must be along the same axes"
            )
        if routed and layout.axes("embed"):
            return UnsupportedLayoutError("routed tokens have the whole width of the model; leave embed whole")
    for logical in LOGICAL_AXES:
        if "data" in layout.axes(logical) + layout.axes(logical, prefill=True) and logical not in ("mlp", "expert"):
            return UnsupportedLayoutError(f"replicas share feed-forward weights alone; {logical} is split along data")
    if layout.coupled and (layout.axes("routed", prefill=True) or layout.axes("layers") or layout.gathers_weights):
        return UnsupportedLayoutError(
            "replicas that share weights have neither stages, nor routed tokens, nor gathered weights"
        )
    if (error := _attended(layout, config)) is not None:
        return error
    if tokens and layout.axes("layers"):
        return UnsupportedLayoutError("a pipeline keeps the residual stream of a stage whole")
    full = {layer.attention.num_kv_heads for layer in config.layers if layer.attention.qk_norm == "full"}
    if len(full) > 1 and layout.axes("kv_heads"):
        return UnsupportedLayoutError("layers whose whole projections are normalised differ in their KV heads")
    return None


def _attended(layout: Layout, config: ModelConfig) -> LayoutError | None:
    """Whether attention finds keys and values of the tokens that each device has."""
    size, layout = layout.num_devices, replace(layout, prefill_from=0)
    for prefill in (False, True):
        placement = MeshPlacement.of(layout, config, num_tokens=size, decode=not prefill)
        context, exchanged, attended = placement.rules["context"], placement.exchanged, placement.attended
        if context and exchanged:
            return UnsupportedLayoutError("a cache is split along its positions or exchanges its heads, not both")
        kept = [axis for axis in layout.axes("kv_heads") if axis not in layout.axes("cache_heads")]
        if kept or placement.rules["heads"] != placement.rules["kv_heads"]:
            return AxisClashError("heads, kv_heads and cache_heads: each of the axes of one has to split the next")
        if attended and attended not in (context, exchanged):
            return UnsupportedLayoutError(
                f"tokens are split along {', '.join(attended)} where attention starts, keys along "
                f"{', '.join(context + exchanged) or 'nothing'}: split context or cache_heads along the same axes, or "
                "heads along those of tokens"
            )
        if placement.gathered.table and not attended and prefill:
            return UnsupportedLayoutError("weights are gathered for tokens of each device's own: split tokens as well")
        if any(layer.parallel for layer in config.layers) and placement.scattered("heads") != placement.scattered(
            "mlp"
        ):
            return UnsupportedLayoutError("attention and feed-forward of parallel layers start from the same tokens")
    return None


def lying_whole(layout: Layout, config: ModelConfig, dtype: DTypeLike, roundings: Roundings) -> dict[str, Rounding]:
    """Those of which no group lies on several devices."""
    each = roundings.items()
    return {path: one for path, one in each if _grouped(layout, config, dtype, {path: one}) is None}


def _grouped(layout: Layout, config: ModelConfig, dtype: DTypeLike, roundings: Roundings) -> LayoutError | None:
    """Whether numbers lie with their scales."""
    if layout.gathers_weights and any(prod(rounding.groups) > 1 for rounding in roundings.values()):
        return UnsupportedLayoutError("weights with scales for groups are not gathered; round them with one for a row")
    try:
        rounded(arranged(config, layout, dtype), roundings)
    except IndivisibleError as error:
        return error
    return None


def _memory(
    layout: Layout, config: ModelConfig, memory: int, dtype: DTypeLike, roundings: Roundings
) -> LayoutError | None:
    held = footprint(config, layout, dtype, roundings=roundings)
    if held.weights <= memory * (1 - _CACHE_SHARE):
        return None
    copies = f", {_size(held.kv_copies)} of it copies of KV heads" if held.kv_copies else ""
    whole = _whole(config, dtype, roundings)
    return LayoutMemoryError(
        f"a device would hold {_size(held.weights)} of the {_size(whole)} of weights{copies}; it has {_size(memory)}, "
        f"of which a tenth ({_size(int(memory * _CACHE_SHARE))}) is left for the KV cache"
    )


def _whole(config: ModelConfig, dtype: DTypeLike, roundings: Roundings) -> int:
    """Bytes of the weights, each held once."""
    return footprint(config, preset("replica", {}), dtype, roundings=roundings).weights


def _mixtures(config: ModelConfig) -> Iterator[MoeConfig]:
    for layer in config.layers:
        if isinstance(layer.mlp, MoeConfig):
            yield layer.mlp


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"
