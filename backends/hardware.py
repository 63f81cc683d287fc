"""Figures of chips, from hardware.yaml: what their makers say, each with the page that says so."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from math import isnan, nan
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import yaml

from .errors import InvalidParameterError, UnsupportedError

ALIASES = {"v7x": "tpu7x"}


@dataclass(frozen=True)
class Source:
    """Where a figure was read: a page, and the month."""

    page: str
    read: str


@dataclass(frozen=True)
class Chip:
    """One chip. hardware.yaml says what each figure is; None (nan of clocks) is a figure that nobody published."""

    name: str
    maker: str
    platform: str
    devices_per_chip: int
    flops: Mapping[str, float]
    hbm_bytes: int
    hbm_bytes_per_second: float
    clock_hertz: float = nan
    matrix_units: int | None = None
    matrix_unit_edge: int | None = None
    matrix_unit_rows: int | None = None
    device_usable_bytes: int | None = None
    vmem_bytes: int | None = None
    on_chip_bytes: int | None = None
    fabric: Literal["torus", "switch", "mesh"] | None = None
    torus_axes: int | None = None
    node_chips: int | None = None
    links: int | None = None
    link_bytes_per_second: float | None = None
    dcn_bytes_per_second: float | None = None
    watts: float | None = None
    dollars_per_hour: float | None = None
    sources: Mapping[str, Source] = field(default_factory=dict, hash=False)
    """Of each figure, by its name."""

    def as_dict(self) -> dict[str, Any]:
        """Every figure as JSON has it, without its source."""
        found = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "sources"}
        return found | {"flops": dict(self.flops), "clock_hertz": None if isnan(self.clock_hertz) else self.clock_hertz}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> "Chip":
        """Reads what as_dict gave."""
        return cls(**{**row, "clock_hertz": nan if row["clock_hertz"] is None else row["clock_hertz"]})

    def device_flops(self, dtype: str = "bfloat16") -> float:
        """Peak FLOP/s of one JAX device in a dtype; those without units of their own run as bfloat16. nan: unknown."""
        return self.flops.get(dtype, self.flops.get("bfloat16", nan)) / self.devices_per_chip

    @property
    def device_hbm_bytes(self) -> int:
        return self.hbm_bytes // self.devices_per_chip

    @property
    def device_program_bytes(self) -> int:
        """What programs may take of a device's memory."""
        return self.device_usable_bytes or self.device_hbm_bytes

    @property
    def device_hbm_bytes_per_second(self) -> float:
        return self.hbm_bytes_per_second / self.devices_per_chip


@cache
def chips() -> Mapping[str, Chip]:
    """Every chip in the table, by name."""
    return _read((files(__package__) / "hardware.yaml").read_text("utf-8"), {})


def chip(name: str, table: Mapping[str, Chip] | None = None) -> Chip:
    """The chip of that name or alias.

    Args:
        table: None is the one that comes with Distaff.

    Raises:
        UnsupportedError: the table does not have it.
    """
    table = chips() if table is None else table
    found = table.get(ALIASES.get(name, name))
    if found is None:
        raise UnsupportedError(f"chip {name!r} is not in the hardware table, which has {', '.join(table)}")
    return found


def read_chips(path: Path) -> Mapping[str, Chip]:
    """The table with what a file of the same form adds: new chips, or some figures of known ones.

    Raises:
        InvalidParameterError: the file cannot be read, or is not of that form.
    """
    try:
        return _read(path.read_text("utf-8"), chips())
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, AttributeError, KeyError) as error:
        raise InvalidParameterError(
            "the file of chips", str(path), f"YAML of the form of backends/hardware.yaml ({error})"
        ) from error


def with_figures(table: Mapping[str, Chip], given: Iterable[str], *, figure: str | None = None) -> Mapping[str, Chip]:
    """The table with figures given as text.

    Args:
        given: CHIP.FIGURE=NUMBER each; CHIP=NUMBER where `figure` says which.

    Raises:
        UnsupportedError: an unknown chip.
        InvalidParameterError: another form, an unknown figure, no number.
    """
    changed = dict(table)
    for text in given:
        place, _, number = text.partition("=")
        name, _, own = place.partition(".")
        own = figure or own
        row = chip(name, changed)
        try:
            value = float(number)
            known = own in _FIGURES and value > 0
        except ValueError:
            value, known = nan, False
        if not known:
            form = "CHIP=DOLLARS" if figure else f"CHIP.FIGURE=NUMBER, FIGURE one of {', '.join(_FIGURES)}"
            raise InvalidParameterError("a figure of a chip", text, form)
        given_value: Any = {**row.flops, "bfloat16": value} if own == "flops" else value
        sources = {**row.sources, own: Source("given by the user", "")}
        changed[row.name] = replace(row, **{own: given_value, "sources": MappingProxyType(sources)})
    return changed


def xla_target(name: str) -> str | None:
    """XLA's description of a GPU, in protobuf text, with which it compiles for one that is not attached."""
    target = files(__package__) / "targets" / f"{name}.txtpb"
    return target.read_text("utf-8") if target.is_file() else None


_FIGURES = tuple(
    each.name for each in fields(Chip) if each.name not in ("name", "maker", "platform", "fabric", "sources")
)


def _read(text: str, known: Mapping[str, Chip]) -> Mapping[str, Chip]:
    read: dict[str, Any] = yaml.safe_load(text)
    pages = {name: Source(str(each["page"]), str(each["read"])) for name, each in (read.get("sources") or {}).items()}
    table = dict(known)
    for name, row in read["chips"].items():
        row = dict(row)
        sources = {each: pages[page] for page, names in (row.pop("from", None) or {}).items() for each in names}
        if row.get("clock_hertz", 0) is None:
            row["clock_hertz"] = nan
        if name in known:
            sources = {**known[name].sources, **sources}
            table[name] = replace(known[name], **row, sources=MappingProxyType(sources))
        else:
            table[name] = Chip(name=name, **row, sources=MappingProxyType(sources))
    return MappingProxyType(table)
