"""What the adapter asks of a torch device."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from ..base import MemoryInfo
from .names import Module


@runtime_checkable
class Driver(Protocol):
    """One kind of torch device."""

    @property
    def device(self) -> str:
        """torch's name for it."""
        ...

    @property
    def reads_values(self) -> bool:
        """Whether the host can look at numbers for free, so that lengths need no padding."""
        ...

    @property
    def rehearsals(self) -> int:
        """First calls of a program in which the device still compiles or records."""
        ...

    def attention(self) -> Callable[..., Any] | None:
        """What computes attention in one call, as torch's scaled_dot_product_attention does; None: that one."""
        ...

    def collectives(self) -> str | None:
        """torch.distributed's name of what processes with such a device each tell each other by; None: of nothing."""
        ...

    def describe(self) -> str:
        """What runs graphs, for people."""
        ...

    def compile(self, graph: Module) -> Callable[..., Any]:
        """What runs a graph on the device, for tensors of always the same shapes."""
        ...

    def finish(self) -> None:
        """Lets a device begin with what was asked of it; called after each program."""
        ...

    def memory(self) -> MemoryInfo | None:
        """Bytes of the device; None where it shares the host's."""
        ...
