"""The host, by torch's own operators, one after the other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..base import MemoryInfo
from .names import Module, torch


@dataclass(frozen=True)
class CpuDriver:
    """Runs the graph as it is: each node is a call of a kernel of torch's."""

    device: str = "cpu"
    reads_values: bool = True
    rehearsals: int = 0

    def collectives(self) -> str:
        return "gloo"

    def describe(self) -> str:
        return f"torch {torch.__version__}, eager"

    def compile(self, graph: Module) -> Callable[..., Any]:
        return graph

    def attention(self) -> None:
        return None

    def finish(self) -> None:
        """Nothing is put off here."""

    def memory(self) -> MemoryInfo | None:
        return None


def make() -> CpuDriver:
    """The driver."""
    return CpuDriver()
