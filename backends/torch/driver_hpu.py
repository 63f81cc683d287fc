"""Intel Gaudi, by habana_frameworks: the torch device `hpu`, in lazy mode.

Nothing here has run on a Gaudi; a fake of habana_frameworks tests what is called, in which order and how often.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..base import MemoryInfo
from ..errors import UnsupportedError
from .attention_static import StaticAttention
from .control_flow import Scan
from .names import Module, Tensor

# Set before habana_frameworks is imported: its own defaults have changed between releases.
ENVIRONMENT = {
    "PT_HPU_LAZY_MODE": "1",  # operations are collected until mark_step
    "PT_HPU_WEIGHT_SHARING": "0",  # weights that several graphs use would be copied to the host and back
    "PT_HPU_ENABLE_LAZY_COLLECTIVES": "true",  # several cards in lazy mode
}
RECIPES = "PT_HPU_RECIPE_CACHE_CONFIG"
"""Where compiled recipes are kept from start to start: folder, whether to empty it, MB."""
_RECIPES_MB = 8192


@dataclass(frozen=True)
class HpuDriver:
    """Lazy mode: `mark_step` behind each program; the layers of a step are captured as an HPU graph once per bucket, in
    its first call."""

    device: str = "hpu"
    reads_values: bool = False
    rehearsals: int = 1

    def collectives(self) -> str:
        import_module("habana_frameworks.torch.distributed.hccl")  # registers it
        return "hccl"

    def describe(self) -> str:
        return "habana_frameworks, lazy, layers as HPU graphs"

    def attention(self) -> Callable[..., Any] | None:
        """FusedSDPA, in releases that have it."""
        try:
            fused = import_module("habana_frameworks.torch.hpex.kernels").FusedSDPA
        except (ImportError, AttributeError):
            return None

        def attend(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, scale: float) -> Tensor:
            return fused.apply(q, k, v, attn_mask, 0.0, False, scale)

        return attend

    def compile(self, graph: Module) -> Callable[..., Any]:
        """The graph on the device, with the layers captured: shapes of a bucket never change, so the first call records
        and the others replay."""
        wrap = import_module("habana_frameworks.torch").hpu.wrap_in_hpu_graph
        moved = graph.to(self.device)
        for part in [part for part in moved.modules() if isinstance(part, Scan) and _has_attention(part)]:
            part.body = wrap(part.body, disable_tensor_cache=True)
        return moved

    def finish(self) -> None:
        """Has the device begin with what was collected."""
        import_module("habana_frameworks.torch.core").mark_step()

    def memory(self) -> MemoryInfo | None:
        free, total = import_module("habana_frameworks.torch").hpu.mem_get_info()
        return MemoryInfo(total=int(total), free=int(free))


def _has_attention(part: Module) -> bool:
    return any(isinstance(inside, StaticAttention) for inside in part.modules())


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
    keep_recipes()
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


def keep_recipes() -> None:
    """Has compiled recipes kept beside what JAX compiles, unless the user says where, or that nothing is kept.

    Raises:
        UnsupportedError: the variable is not what habana_frameworks reads.
    """
    given, beside = os.environ.get(RECIPES), os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if given is None:
        folder = Path(beside).parent if beside else Path.home() / ".cache" / "distaff"
        if beside != "":
            os.environ[RECIPES] = f"{folder / 'hpu-recipes'},false,{_RECIPES_MB}"
        return
    fields = given.split(",")
    if len(fields) not in (3, 4) or fields[1].lower() not in ("true", "false") or not fields[2].isdecimal():
        raise UnsupportedError(
            f"{RECIPES}={given}: expected FOLDER,DELETE,MB such as /var/cache/recipes,false,8192; unset it for a "
            "folder of Distaff's"
        )
