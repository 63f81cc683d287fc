"""Which layouts a slice can have: every preset with every split of its devices that the model allows."""

from collections.abc import Iterator

from ...models.config import ModelConfig
from ..check import Devices, problem
from ..layout import Layout
from ..presets import PRESETS, preset

_NEEDS = {
    "replica": (),
    "tensor-2d": ("tensor", "tensor2"),
    "attention-ff": ("tensor2",),
    "sequence": ("sequence",),
    "sequence-alltoall": ("sequence",),
    "attention-data": ("data",),
    "pipeline": ("stage",),
    "expert": ("expert",),
}
"""Axes without which a preset is the same as another one; `tensor` where nothing is said."""


def layouts(config: ModelConfig, num_devices: int, axes: tuple[str, ...], dtype: str = "bfloat16") -> list[Layout]:
    """Every layout of exactly these devices; whether it fits into memory is not looked at."""
    found: dict[str, Layout] = {}
    for name, known in PRESETS.items():
        usable = [axis for axis in ("data", *known.axes) if axis in axes]
        for sizes in _splits(usable, num_devices):
            if any(sizes.get(axis, 1) < 2 for axis in _NEEDS.get(name, ("tensor",))):
                continue
            layout = preset(name, sizes)
            if problem(layout, config, Devices(num_devices), dtype=dtype) is None:
                found.setdefault(str(layout), layout)
    return list(found.values())


def _splits(axes: list[str], devices: int) -> Iterator[dict[str, int]]:
    """Sizes of some axes, whose product is the number of devices."""
    if not axes:
        if devices == 1:
            yield {}
        return
    for size in range(1, devices + 1):
        if devices % size == 0:
            for rest in _splits(axes[1:], devices // size):
                yield {axes[0]: size, **rest}
