"""What is said of a layout that fits, but not as well as it might."""

from jax.typing import DTypeLike

from ..models.config import ModelConfig
from .arrange import kv_copies
from .check import Devices, problem
from .footprint import footprint
from .layout import Layout
from .presets import preset


def remarks_on(layout: Layout, config: ModelConfig, devices: Devices, *, dtype: DTypeLike) -> tuple[str, ...]:
    """Of a layout that check_layout has accepted; none if it uses all devices and holds each KV head once."""
    said = (unused_text(layout, devices.count), copies_text(layout, config, devices, dtype=dtype))
    return tuple(text for text in said if text is not None)


def unused_text(layout: Layout, count: int) -> str | None:
    """Of a layout that leaves some of `count` devices unused."""
    if layout.num_devices >= count:
        return None
    used = f"layout {layout} uses the first {layout.num_devices} of {count} devices"
    copies = count // layout.num_devices
    if copies < 2:
        return used
    return f"{used}; {copies} of it, each on devices of its own, would use {copies * layout.num_devices}"


def copies_text(layout: Layout, config: ModelConfig, devices: Devices, *, dtype: DTypeLike) -> str | None:
    """Of a layout that holds KV heads several times: what that costs, and one of as many devices that does not."""
    heads = {layer.attention.num_kv_heads for layer in config.layers}
    fewest = max(heads, key=lambda number: kv_copies(number, layout))
    times = kv_copies(fewest, layout)
    if times == 1:
        return None
    held = footprint(config, layout, dtype)
    axes = " x ".join(f"{axis}={layout.sizes[axis]}" for axis in layout.axes("cache_heads"))
    weights, cache = held.kv_copies / 2**30, held.cache_token * (times - 1) / times / 1024
    once = _without_copies(layout, config, devices, times, dtype)
    return (
        f"layout {layout}: {fewest} KV heads over {axes}: each is held {times} times, {weights:.2f} GiB of weights and "
        f"{cache:g} KiB of each token's cache more on each device"
        + (f"; {once} holds each once" if once is not None else "")
    )


def _without_copies(
    layout: Layout, config: ModelConfig, devices: Devices, times: int, dtype: DTypeLike
) -> Layout | None:
    """Positions are split where heads do not suffice."""
    sizes, names = dict(layout.sizes), [name for name in layout.preset.split("+") if name not in ("tensor", "replica")]
    if layout.preset == "custom" or "sequence" in sizes or sizes.get("tensor", 1) % times:
        return None
    sizes |= {"tensor": sizes["tensor"] // times, "sequence": times}
    other = preset("+".join(["sequence", *names]), sizes)
    fits = problem(other, config, devices, dtype=dtype) is None
    return other if fits and all(kv_copies(group.num_kv_heads, other) == 1 for group in config.cache_groups) else None
