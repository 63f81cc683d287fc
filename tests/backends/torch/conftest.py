"""Tests of the torch adapter. Those that need torch are collected where torch and torch_xla are installed: in
`.venv-torch`, which `scripts/test --torch` makes, and in which it runs them."""

from importlib.util import find_spec
from pathlib import Path

WITHOUT_TORCH = {"test_installed.py"}

collect_ignore: list[str] = []
if any(find_spec(name) is None for name in ("torch", "torch_xla")):
    collect_ignore = [path.name for path in Path(__file__).parent.glob("test_*.py") if path.name not in WITHOUT_TORCH]
