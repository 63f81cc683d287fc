"""Devices that torch_xla reaches (PJRT): its CPU device here, others by their plugins.

torch_xla 2.9 is the last that was announced; what follows it is one more file beside this one.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

from ..base import MemoryInfo
from ..errors import UnsupportedError
from .names import Module

_PLATFORM = "PJRT_DEVICE"
_TORCH, _TORCH_XLA = "2.9", "2.9.0"


@dataclass(frozen=True)
class XlaDriver:
    """Lazy tensors: a program's operations are collected, and compiled as one when something is read or it ends."""

    platform: str
    device: str = "xla"
    reads_values: bool = False

    def describe(self) -> str:
        return f"torch_xla {version('torch_xla')}, lazy, on {self.platform}"

    def compile(self, graph: Module) -> Callable[..., Any]:
        return graph.to(self.device)

    def finish(self) -> None:
        """Sends what was collected to the device; does not wait for it."""
        import_module("torch_xla").sync()

    def memory(self) -> MemoryInfo | None:
        if self.platform == "CPU":
            return None
        info = import_module("torch_xla.core.xla_model").get_memory_info(self.device)
        total = int(info["bytes_limit"])
        return MemoryInfo(total=total, free=total - int(info["bytes_used"]))


def make() -> XlaDriver:
    """The driver.

    Raises:
        UnsupportedError: torch_xla is missing, does not fit torch, or finds no device.
    """
    if find_spec("torch_xla") is None:
        raise UnsupportedError("torch_xla is not installed; install it with: pip install 'distaff[torch-xla]'")
    torch, torch_xla = version("torch").split("+")[0], version("torch_xla")
    if torch_xla == _TORCH_XLA and not torch.startswith(_TORCH + "."):
        raise UnsupportedError(
            f"torch {torch} with torch_xla {torch_xla}: that one is built for torch {_TORCH}; install both with: "
            "pip install 'distaff[torch-xla]'"
        )
    os.environ.setdefault(_PLATFORM, "CPU")
    platform = os.environ[_PLATFORM]
    try:
        import_module("torch_xla").device()
    except (ImportError, RuntimeError) as error:
        raise UnsupportedError(f"torch_xla finds no device for {_PLATFORM}={platform}: {error}") from error
    return XlaDriver(platform)
