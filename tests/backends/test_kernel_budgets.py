"""Budgets: who may exceed them, and that nobody raises them in silence."""

import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from distaff.backends.errors import UsageError
from distaff.backends.kernel_budgets import (
    FOLDER,
    Budget,
    accept,
    budgets,
    raised_without_reason,
    read_budgets,
)

KEY = ("decode", "B64 ctx4096 page16 bf16")
OTHER = ("flash", "T4096")


def test_three_per_cent_are_allowed() -> None:
    assert Budget(1000).allows(1030) and not Budget(1000).allows(1031)


def test_a_budget_may_allow_less_and_keeps_that(tmp_path: Path) -> None:
    accept("v6e", "1.0", {KEY: 1000}, None, tmp_path)
    path = tmp_path / "v6e.yaml"
    path.write_text(path.read_text().replace("cycles: 1000", "cycles: 1000, growth: 0.01"))
    kept = budgets("v6e", "1.0", tmp_path)[KEY]
    assert kept.allows(1010) and not kept.allows(1011)
    accept("v6e", "1.0", {KEY: 900}, None, tmp_path)
    assert accept("v6e", "1.0", {KEY: 915}, "sinks", tmp_path) == 1
    assert budgets("v6e", "1.0", tmp_path) == {KEY: Budget(915, "sinks", 0.01)}


def test_accepting_and_reading_back(tmp_path: Path) -> None:
    assert accept("v6e", "1.0", {KEY: 1000.4, OTHER: 50}, None, tmp_path) == 2
    assert budgets("v6e", "1.0", tmp_path) == {KEY: Budget(1000), OTHER: Budget(50)}
    assert budgets("v6e", "2.0", tmp_path) == {} == budgets("v5e", "1.0", tmp_path)
    assert (tmp_path / "v6e.yaml").read_text().startswith("# Static cycles")


def test_a_smaller_number_needs_no_reason_and_a_slightly_larger_one_changes_nothing(tmp_path: Path) -> None:
    accept("v6e", "1.0", {KEY: 1000, OTHER: 50}, None, tmp_path)
    assert accept("v6e", "1.0", {KEY: 900}, None, tmp_path) == 1
    assert accept("v6e", "1.0", {KEY: 920}, None, tmp_path) == 0
    assert budgets("v6e", "1.0", tmp_path) == {KEY: Budget(900), OTHER: Budget(50)}


def test_a_larger_number_needs_a_reason_each_time(tmp_path: Path) -> None:
    accept("v6e", "1.0", {KEY: 1000}, None, tmp_path)
    with pytest.raises(UsageError, match=r"decode B64 ctx4096 page16 bf16: 1000 -> 1100; say why with --reason"):
        accept("v6e", "1.0", {KEY: 1100}, None, tmp_path)
    assert accept("v6e", "1.0", {KEY: 1100}, "sinks", tmp_path) == 1
    assert budgets("v6e", "1.0", tmp_path) == {KEY: Budget(1100, "sinks")}
    with pytest.raises(UsageError, match="in new words"):
        accept("v6e", "1.0", {KEY: 1200}, "sinks", tmp_path)


def test_another_compiler_starts_anew_beside_the_first(tmp_path: Path) -> None:
    accept("v6e", "1.0", {KEY: 1000}, None, tmp_path)
    accept("v6e", "2.0", {KEY: 5000}, None, tmp_path)
    assert budgets("v6e", "1.0", tmp_path) == {KEY: Budget(1000)}
    assert budgets("v6e", "2.0", tmp_path) == {KEY: Budget(5000)}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_history_raises_no_budget_without_a_reason(path: Path) -> None:
    versions = [path.read_text(), *committed(path)]
    for new, old in pairwise(versions):
        for libtpu in known(new):
            assert raised_without_reason(read_budgets(old, libtpu), read_budgets(new, libtpu)) == []


def known(text: str) -> list[str]:
    return list(yaml.safe_load(text) or {})


def committed(path: Path) -> list[str]:
    """The last versions of a file in git, newest first; none outside of a checkout."""
    root = FOLDER.parents[1]
    if shutil.which("git") is None or not (root / ".git").exists():
        return []
    log = ["git", "log", "-n", "8", "--format=%H", "--", str(path)]
    commits = subprocess.run(log, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    shown = (
        subprocess.run(
            ["git", "show", f"{commit}:./{path.relative_to(root)}"], cwd=root, capture_output=True, text=True
        )
        for commit in commits
    )
    return [done.stdout for done in shown if done.returncode == 0]
