"""The GPUs that kernels and compiler options are chosen for: attached, or named to be compiled for."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import jax
import yaml

from ..errors import UnsupportedError

_MIN_CAPABILITY = 8.0  # of NVIDIA: the first with bfloat16 in its tensor cores
_DEFAULT_SHARED_MEMORY = 101376


@dataclass(frozen=True)
class GpuChip:
    """What a choice for a GPU depends on; see chips.yaml. `platform` is "cuda" or "rocm"."""

    name: str
    platform: str
    capability: str
    cores: int
    shared_memory: int


def chip_named(name: str) -> GpuChip:
    """The GPU that chips.yaml calls by this name, attached or not.

    Raises:
        UnsupportedError: there is none.
    """
    if name not in _chips():
        raise UnsupportedError(f"backend gpu: chip {name!r}, expected one of {', '.join(_chips())}")
    return _chips()[name][0]


def attached_chip() -> GpuChip:
    """The GPU that JAX computes on.

    Raises:
        UnsupportedError: there is none, or the kernels need a newer one.
    """
    platform = jax.default_backend()
    if platform not in ("gpu", "cuda", "rocm"):
        raise UnsupportedError(
            f"JAX's default backend is {platform}, not a GPU; "
            "with one in the machine, install Distaff with its extra `cuda`"
        )
    chip = chip_of(jax.devices()[0])
    if chip.platform == "cuda" and float(chip.capability) < _MIN_CAPABILITY:
        raise UnsupportedError(
            f"{chip.name} has compute capability {chip.capability}, the kernels need {_MIN_CAPABILITY} or later"
        )
    return chip


def chip_of(device: Any) -> GpuChip:
    """The entry of chips.yaml for a JAX device, or what the device says of itself."""
    for chip, kinds in _chips().values():
        if any(device.device_kind.startswith(kind) for kind in kinds):
            return chip
    capability = str(device.compute_capability)
    return GpuChip(
        name=device.device_kind,
        platform="rocm" if capability.startswith("gfx") else "cuda",
        capability=capability,
        cores=int(device.core_count),
        shared_memory=int(getattr(device, "shared_memory_per_block_optin", _DEFAULT_SHARED_MEMORY)),
    )


@cache
def _chips() -> dict[str, tuple[GpuChip, tuple[str, ...]]]:
    table = yaml.safe_load(files(__package__).joinpath("chips.yaml").read_text())
    return {
        name: (GpuChip(name=name, **{key: value for key, value in row.items() if key != "kinds"}), tuple(row["kinds"]))
        for name, row in table.items()
    }
