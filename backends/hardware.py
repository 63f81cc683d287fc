"""Figures of chips, from hardware.yaml: what their makers say, with date and source."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from .errors import UnsupportedError

ALIASES = {"v7x": "tpu7x"}


@dataclass(frozen=True)
class Chip:
    """One chip. hardware.yaml says what each figure is; None is a figure that nobody published."""

    name: str
    maker: str
    platform: str
    devices_per_chip: int
    clock_hertz: float
    flops: Mapping[str, float]
    hbm_bytes: int
    hbm_bytes_per_second: float
    as_of: str
    sources: tuple[str, ...]
    matrix_units: int | None = None
    matrix_unit_edge: int | None = None
    matrix_unit_rows: int | None = None
    vmem_bytes: int | None = None
    links: int | None = None
    link_bytes_per_second: float | None = None
    watts: float | None = None
    dollars_per_hour: float | None = None

    def device_flops(self, dtype: str = "bfloat16") -> float:
        """Peak FLOP/s of one JAX device in a dtype; those without units of their own run as bfloat16."""
        return self.flops.get(dtype, self.flops["bfloat16"]) / self.devices_per_chip

    @property
    def device_hbm_bytes(self) -> int:
        return self.hbm_bytes // self.devices_per_chip

    @property
    def device_hbm_bytes_per_second(self) -> float:
        return self.hbm_bytes_per_second / self.devices_per_chip


@cache
def chips() -> Mapping[str, Chip]:
    """Every chip in the table, by name."""
    table: dict[str, dict[str, Any]] = yaml.safe_load((files(__package__) / "hardware.yaml").read_text("utf-8"))
    return {
        name: Chip(**{**row, "name": name, "sources": tuple(row["sources"]), "as_of": str(row["as_of"])})
        for name, row in table.items()
    }


def chip(name: str) -> Chip:
    """The chip of that name or alias.

    Raises:
        UnsupportedError: the table does not have it.
    """
    found = chips().get(ALIASES.get(name, name))
    if found is None:
        raise UnsupportedError(f"chip {name!r} is not in the hardware table, which has {', '.join(chips())}")
    return found


def xla_target(name: str) -> str | None:
    """XLA's description of a GPU, in protobuf text, with which it compiles for one that is not attached."""
    target = files(__package__) / "targets" / f"{name}.txtpb"
    return target.read_text("utf-8") if target.is_file() else None
