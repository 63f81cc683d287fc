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


@dataclass(frozen=True)
class XlaDriver:
    """Lazy tensors: a program's operations are collected, and compiled as one when something is read or it ends."""

    platform: str
    device: str = "xla"
    reads_values: bool = False
    rehearsals: int = 2  # what the first call leaves on the device has another form than what was put there

    def collectives(self) -> None:
        """torch_xla has its own way to several devices, SPMD in one process."""
        return None

    def describe(self) -> str:
        return f"torch_xla {version('torch_xla')}, lazy, on {self.platform}"

    def compile(self, graph: Module) -> Callable[..., Any]:
        return graph.to(self.device)

    def attention(self) -> None:
        return None

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
    wanted = ".".join(torch_xla.split(".")[:2])  # both have the same numbers
    if torch.split(".")[:2] != wanted.split("."):
        raise UnsupportedError(
            f"torch {torch} with torch_xla {torch_xla}: that one is built for torch {wanted}; install both with: "
            "pip install 'distaff[torch-xla]'"
        )
    try:
        import_module("torch_xla").device()
    except (ImportError, RuntimeError) as error:
        given = os.environ.get("PJRT_DEVICE", "not set")
        raise UnsupportedError(
            f"torch_xla finds no device (PJRT_DEVICE is {given}; CPU, TPU or CUDA name one): {error}"
        ) from error
    return XlaDriver(import_module("torch_xla.runtime").device_type())
