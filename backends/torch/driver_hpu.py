"""Intel Gaudi, by habana_frameworks: the torch device `hpu`, in lazy mode.

Nothing here has run on a Gaudi; a fake of habana_frameworks tests what is called, in which order and how often.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from ..base import MemoryInfo
from ..errors import UnsupportedError
from .control_flow import Scan
from .names import Module

# Set before habana_frameworks is imported: its own defaults have changed between releases.
ENVIRONMENT = {
    "PT_HPU_LAZY_MODE": "1",  # operations are collected until mark_step
    "PT_HPU_WEIGHT_SHARING": "0",  # weights that several graphs use would be copied to the host and back
    "PT_HPU_ENABLE_LAZY_COLLECTIVES": "true",  # several cards in lazy mode
}


@dataclass(frozen=True)
class HpuDriver:
    """Lazy mode: `mark_step` behind each program; the layers of a step are captured as an HPU graph once per bucket."""

    device: str = "hpu"
    reads_values: bool = False

    def describe(self) -> str:
        return "habana_frameworks, lazy, layers as HPU graphs"

    def compile(self, graph: Module) -> Callable[..., Any]:
        """The graph on the device, with the bodies of its scans captured: shapes of a bucket never change, so the
        first call records and the others replay."""
        wrap = import_module("habana_frameworks.torch").hpu.wrap_in_hpu_graph
        moved = graph.to(self.device)
        for part in [part for part in moved.modules() if isinstance(part, Scan)]:
            part.body = wrap(part.body, disable_tensor_cache=True)
        return moved

    def finish(self) -> None:
        """Has the device begin with what was collected."""
        import_module("habana_frameworks.torch.core").mark_step()

    def memory(self) -> MemoryInfo | None:
        free, total = import_module("habana_frameworks.torch").hpu.mem_get_info()
        return MemoryInfo(total=int(total), free=int(free))


def make() -> HpuDriver:
    """The driver.

    Raises:
        UnsupportedError: habana_frameworks is missing or broken, a variable contradicts, or there is no card.
    """
    if find_spec("habana_frameworks") is None:
        raise UnsupportedError(
            "habana_frameworks is not installed; it comes with Intel's container for Gaudi, and no package index has it"
        )
    for name, value in ENVIRONMENT.items():
        given = os.environ.setdefault(name, value)
        if given.lower() != value:
            raise UnsupportedError(f"{name}={given}: torch:hpu runs with {value}; unset the variable or set it so")
    try:
        frameworks = import_module("habana_frameworks.torch")
        import_module("habana_frameworks.torch.core")
    except (ImportError, RuntimeError, OSError) as error:
        raise UnsupportedError(
            f"habana_frameworks is installed but cannot be imported: {error}; its release, torch's and the driver's "
            "have to be those of one container"
        ) from error
    if not frameworks.hpu.is_available():
        raise UnsupportedError("habana_frameworks finds no Gaudi; look at hl-smi, and at HABANA_VISIBLE_MODULES")
    return HpuDriver()
