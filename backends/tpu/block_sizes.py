"""Block sizes as data: block_sizes.yaml, read once."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

import yaml

from ..errors import UnsupportedError


def block_sizes(kernel: str, generation: str) -> Mapping[str, int]:
    """The entry of one kernel for one generation.

    Raises:
        UnsupportedError: the kernel has no sizes for this generation.
    """
    section = _table()[kernel]
    if generation not in section:
        raise UnsupportedError(f"TPU generation {generation}, the {kernel} kernel has sizes for {', '.join(section)}")
    return section[generation]


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    return yaml.safe_load((files(__package__) / "block_sizes.yaml").read_text())
