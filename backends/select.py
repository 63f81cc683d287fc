"""Chooses a backend by name, or the first candidate that does not decline."""

from collections.abc import Callable

from .base import Backend
from .errors import UnsupportedError
from .reference import ReferenceBackend


def _tpu() -> Backend:
    from .tpu.generations import attached_generation

    attached_generation()  # declines before a second goes into importing kernels
    from .tpu.backend import TpuBackend

    return TpuBackend()


def _gpu() -> Backend:
    from .gpu.chips import attached_chip

    attached_chip()
    from .gpu.backend import GpuBackend

    return GpuBackend()


def _cpu() -> Backend:
    try:
        from .cpu.backend import CpuBackend
    except ImportError as error:
        raise UnsupportedError(f"its kernels need llvmlite: {error}") from error
    return CpuBackend()


def _torch(device: str) -> Callable[[], Backend]:
    def build() -> Backend:
        from .torch.installed import check_torch

        check_torch(device)
        try:
            from .torch.backend import TorchBackend
        except (ImportError, OSError) as error:  # a library that torch wants is not there, or another one's
            raise UnsupportedError(f"torch is installed but cannot be imported, install it anew: {error}") from error
        return TorchBackend(name=f"torch:{device}", device=device)

    return build


CANDIDATES: dict[str, Callable[[], Backend]] = {
    "tpu": _tpu,
    "gpu": _gpu,
    "cpu": _cpu,
    "reference": ReferenceBackend,
    **{f"torch:{device}": _torch(device) for device in ("cpu", "xla", "hpu")},
}
"""Constructors in the order that `auto` tries them; each raises UnsupportedError with its reason to decline."""


def select_backend(name: str = "auto") -> Backend:
    """Returns the backend called `name`, or with "auto" the first one that accepts this machine.

    Raises:
        UnsupportedError: the name is unknown, or every candidate declined (all reasons are listed).
    """
    if name != "auto":
        if name not in CANDIDATES:
            raise UnsupportedError(f"backend {name!r}: unknown, expected auto or one of {', '.join(CANDIDATES)}")
        return CANDIDATES[name]()
    reasons: list[str] = []
    for candidate, build in CANDIDATES.items():
        try:
            return build()
        except UnsupportedError as error:
            reasons.append(f"{candidate}: {error}")
    raise UnsupportedError("every backend declined:\n  " + "\n  ".join(reasons))
