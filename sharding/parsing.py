"""Layouts as text: `data=2,tensor=4`, `expert:expert=4,tensor=2`, the name of a preset, or a YAML file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .errors import LayoutSyntaxError
from .layout import MESH_AXES, Layout, Rules
from .presets import PRESETS, preset, table

_FORMS = "data=2,tensor=4; a preset; PRESET:axis=size,... or PRESET+PRESET:axis=size,...; a .yaml file; or auto"
_BY_AXIS = {"sequence": "sequence", "stage": "pipeline", "expert": "expert"}
"""Whose table is meant where sizes come without a preset: the product of those whose axes are there."""


def parse_layout(text: str, *, num_devices: int) -> Layout:
    """Reads a layout.

    Args:
        text: one of the forms above, "auto" aside (choose_layout has it).
        num_devices: what a preset without sizes is spread over.

    Raises:
        LayoutSyntaxError: it is none of them.
    """
    if text.endswith((".yaml", ".yml")):
        return _from_file(Path(text))
    name, colon, sizes_text = text.partition(":")
    if not colon and "=" in name:
        name, sizes_text = "", name
    if name and not set(name.split("+")) <= set(PRESETS):
        raise LayoutSyntaxError(f"layout {text!r}: expected {_FORMS}. Presets are {', '.join(PRESETS)}")
    if "+" in name and not sizes_text:
        raise LayoutSyntaxError(f"layout {text!r}: give a size for each axis, as in {name}:{_example(name)}")
    sizes = _sizes(text, sizes_text) if sizes_text else _spread(name, num_devices)
    if not name:
        named = [kind for axis, kind in _BY_AXIS.items() if axis in sizes]
        if "tensor2" in sizes:
            width, wider = ("+".join([*named, each]) for each in ("tensor-2d", "attention-ff"))
            raise LayoutSyntaxError(
                f"layout {text!r}: say what tensor2 splits: {width}:{sizes_text} (the width of the model) or "
                f"{wider}:{sizes_text} (feed-forward and vocabulary)"
            )
        name = "+".join(named) or ("tensor" if "tensor" in sizes else "replica")
    built = preset(name, sizes)
    _check_axes(text, built, ("data", *table(name).axes))
    return built


def layout_yaml(layout: Layout) -> str:
    """The layout as the YAML file that gives it."""
    tables = {"rules": layout.rules, "prefill": layout.prefill}
    written = {name: rules.as_dict() for name, rules in tables.items()}
    kept: dict[str, Any] = {"mesh": dict(layout.mesh), **{k: v for k, v in written.items() if v}}
    if layout.capacity is not None:
        kept["capacity"] = layout.capacity
    if layout.prefill_from:
        kept["prefill_from"] = layout.prefill_from
    return yaml.safe_dump(kept, sort_keys=False, default_flow_style=None)


def _example(name: str) -> str:
    return ",".join(f"{axis}=2" for axis in table(name).axes)


def _spread(name: str, num_devices: int) -> dict[str, int]:
    axes = PRESETS[name].axes
    if name == "attention-data":
        return {"data": num_devices}
    if len(axes) < 2 or name in ("expert", "pipeline", "sequence", "sequence-alltoall"):
        return {axes[0] if axes else "data": num_devices}
    second = 2 ** (num_devices.bit_length() // 2 - 1) if num_devices > 1 else 1
    while num_devices % second:
        second //= 2
    return {axes[0]: num_devices // second, axes[1]: second}


def _sizes(text: str, sizes: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in sizes.split(","):
        axis, equals, size = part.strip().partition("=")
        if not equals or not size.isdecimal():
            raise LayoutSyntaxError(f"layout {text!r}: {part!r} is no axis=size; expected {_FORMS}")
        if axis in found:
            raise LayoutSyntaxError(f"layout {text!r}: {axis} is given twice")
        found[axis] = int(size)
    return found


def _check_axes(text: str, layout: Layout, used: tuple[str, ...]) -> None:
    """An axis that nothing is split over would have no effect."""
    for axis, size in layout.mesh:
        if axis not in used:
            raise LayoutSyntaxError(
                f"layout {text!r}: nothing is split over {axis}={size}; this table uses {', '.join(used)}"
            )


def _from_file(path: Path) -> Layout:
    try:
        read: Any = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LayoutSyntaxError(f"layout {str(path)!r} cannot be read: {error}") from error
    known = {"mesh", "rules", "prefill", "capacity", "prefill_from"}
    if not isinstance(read, Mapping) or not set(read) <= known or not _is_table(read.get("mesh"), int):
        raise LayoutSyntaxError(
            f"layout {str(path)!r}: expected `mesh:` with a size for each axis ({', '.join(MESH_AXES)}), then `rules:` "
            "and perhaps `prefill:` with a list of mesh axes for each logical axis, `capacity:` and `prefill_from:`"
        )
    tables: list[Rules] = []
    for name in ("rules", "prefill"):
        table = read.get(name) or {}
        if not _is_table(table, list):
            raise LayoutSyntaxError(f"layout {str(path)!r}: {name} has a list of mesh axes for each logical axis")
        ordered = {logical: tuple(map(str, axes)) for logical, axes in table.items()}
        tables.append(Rules(tuple(ordered.items())))
    capacity = read.get("capacity")
    if capacity is not None and (isinstance(capacity, bool) or not isinstance(capacity, int | float)):
        raise LayoutSyntaxError(f"layout {str(path)!r}: capacity {capacity!r}, expected a number, or nothing")
    least = read.get("prefill_from", 0)
    if isinstance(least, bool) or not isinstance(least, int):
        raise LayoutSyntaxError(f"layout {str(path)!r}: prefill_from {least!r}, expected a number of tokens")
    layout = Layout.of("custom", read["mesh"], tables[0], tables[1], capacity, least)
    used = [axis for rules in tables for _, axes in rules.table for axis in axes]
    _check_axes(str(path), layout, ("data", *dict.fromkeys(used)))
    return layout


def _is_table(given: Any, kind: type) -> bool:
    if not isinstance(given, Mapping):
        return False
    return all(isinstance(k, str) and isinstance(v, kind) and not isinstance(v, bool) for k, v in given.items())
