"""Static cycles that each kernel was accepted with: a file for each generation in budgets/.

A file maps libtpu versions (another compiler makes other schedules) to kernels, shapes and their cycles. A kernel may
grow by GROWTH before a test fails, or by its own `growth` where a bar is nearer; to raise a budget, one has to write
why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from .errors import UsageError

GROWTH = 0.03
"""By how much of its budget a kernel may exceed it, where the budget does not say."""

FOLDER = Path(str(files(__package__))) / "budgets"
_HEAD = """\
# Static cycles that kernels were accepted with on {generation}: libtpu version -> kernel -> shape -> cycles.
# Written by `distaff bench kernels --accept`; a test fails where a kernel takes {growth:.0%} more, or more than a
# `growth` of its own, without which it could pass its bar. A number may only be raised with a `reason`.
"""


@dataclass(frozen=True)
class Budget:
    """Cycles of one call; `reason` says why they were once raised, `growth` by how much they may be exceeded."""

    cycles: int
    reason: str | None = None
    growth: float = GROWTH

    @property
    def most(self) -> float:
        """Cycles of a kernel that just keeps to it."""
        return self.cycles * (1 + self.growth)

    def allows(self, cycles: float) -> bool:
        """Whether a kernel with these cycles still keeps to it."""
        return cycles <= self.most


Budgets = Mapping[tuple[str, str], Budget]
"""By kernel and shape, in the words of the report."""


def read_budgets(text: str, libtpu: str) -> Budgets:
    """The budgets of one file for one compiler; none if the file does not know it."""
    table: Mapping[str, Any] = (yaml.safe_load(text) or {}).get(libtpu) or {}
    return {
        (kernel, shape): Budget(int(entry["cycles"]), entry.get("reason"), float(entry.get("growth", GROWTH)))
        for kernel, shapes in table.items()
        for shape, entry in shapes.items()
    }


def budgets(generation: str, libtpu: str, folder: Path = FOLDER) -> Budgets:
    """The accepted cycles on a generation, by one compiler."""
    path = folder / f"{generation}.yaml"
    return read_budgets(path.read_text(), libtpu) if path.exists() else {}


def raised_without_reason(old: Budgets, new: Budgets) -> list[str]:
    """Kernels whose budget grew although the new entry does not say why, or says the same as before."""
    return [
        f"{kernel} {shape}: {old[kernel, shape].cycles} -> {budget.cycles}"
        for (kernel, shape), budget in new.items()
        if (kernel, shape) in old
        and budget.cycles > old[kernel, shape].cycles
        and (not budget.reason or budget.reason == old[kernel, shape].reason)
    ]


def accept(
    generation: str, libtpu: str, cycles: Mapping[tuple[str, str], float], reason: str | None, folder: Path = FOLDER
) -> int:
    """Records cycles as budgets, and returns how many changed. Those that are kept to within GROWTH stay as they are.

    Raises:
        UsageError: a budget would grow and there is no reason.
    """
    old = budgets(generation, libtpu, folder)
    new = dict(old)
    for key, value in cycles.items():
        before = old.get(key)
        if before is None:
            new[key] = Budget(round(value))
        elif value < before.cycles:
            new[key] = replace(before, cycles=round(value))
        elif not before.allows(value):
            new[key] = replace(before, cycles=round(value), reason=reason)
    grown = raised_without_reason(old, new)
    if grown:
        raise UsageError(f"these would grow on {generation}: {'; '.join(grown)}; say why with --reason, in new words")
    changed = sum(old.get(key) != budget for key, budget in new.items())
    if changed:
        _write(folder / f"{generation}.yaml", generation, libtpu, new)
    return changed


def _write(path: Path, generation: str, libtpu: str, new: Budgets) -> None:
    table: dict[str, Any] = (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}
    entries: dict[str, dict[str, Any]] = {}
    for (kernel, shape), budget in sorted(new.items()):
        entry: dict[str, Any] = {"cycles": budget.cycles}
        if budget.reason:
            entry["reason"] = budget.reason
        if budget.growth != GROWTH:
            entry["growth"] = budget.growth
        entries.setdefault(kernel, {})[shape] = entry
    table[libtpu] = entries
    head = _HEAD.format(generation=generation, growth=GROWTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + yaml.safe_dump(table, sort_keys=False, width=120, default_flow_style=None))
