"""Backends of which a layout has a process for each device."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .base import Backend


@runtime_checkable
class OfProcesses(Protocol):
    """A process has one device and holds its part alone; JAX has no part in what processes tell each other."""

    def among(self, sizes: Sequence[tuple[str, int]], rank: int) -> "Backend":
        """One of the processes of a mesh.

        Args:
            sizes: of the mesh's axes, the slowest first.
            rank: this process' number among them.

        Raises:
            UnsupportedError: such devices cannot tell each other anything.
        """
        ...

    def meet(self, host: str, port: int, *, rank: int, count: int, timeout: float) -> None:
        """Finds the other processes; returns once all have called it.

        Args:
            host, port: where process 0 listens; nobody else does yet.
            rank, count: this process' number, and how many there are.
            timeout: seconds to wait for the others.

        Raises:
            UnsupportedError: they were not found.
        """
        ...
