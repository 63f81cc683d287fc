"""What XLA is told for a TPU, from compiler_options.yaml."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import yaml


def compiler_options(generation: str) -> Mapping[str, Any]:
    """Options of every compile for a generation; none where XLA's own are as good."""
    return _table().get(generation, {})


@cache
def _table() -> Mapping[str, Mapping[str, Any]]:
    return yaml.safe_load((files(__package__) / "compiler_options.yaml").read_text())
