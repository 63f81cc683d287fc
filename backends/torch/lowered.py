"""What lowering gives: a program as a torch.fx graph; and what those who build parts of it ask of the builder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .alias_analysis import Ownership
from .flat_jaxpr import Atom, FlatJaxpr
from .names import Module, Value
from .ranks import Ranks


@dataclass(frozen=True)
class Target:
    """What a graph is built for: torch's name of the device, whether the host can look at its numbers for free, what
    computes attention there (None: torch's own), what is called before a number is read, so that a device that
    collects operations has begun with all of them (None: nothing), and the processes that run it together (None: this
    one alone)."""

    device: str = "cpu"
    reads_values: bool = True
    attention: Callable[..., Any] | None = None
    cut: Callable[[], None] | None = None
    ranks: Ranks | None = None


@dataclass(frozen=True)
class Lowered:
    """A program as a module that takes and gives tensors.

    `writes` are the inputs that it writes into; `views` tell of each result the inputs whose memory it may look at, and
    SHARED where it may look at what another result sees, too, or nobody may write. `scratch` is an estimate of the
    bytes that a run takes beside what it is given.
    """

    module: Module
    program: FlatJaxpr
    writes: frozenset[int]
    views: tuple[frozenset[int], ...]
    scratch: int


@runtime_checkable
class GraphBuilder(Protocol):
    """What builds one graph.

    `bodies` are the programs inside its operations, by number; `known` says what may be written.
    """

    program: FlatJaxpr
    target: Target
    bodies: dict[int, Any]
    known: Ownership

    def value(self, atom: Atom) -> Value: ...

    def fresh(self, value: Value) -> Value: ...

    def call_module(self, module: Module, values: Sequence[Value]) -> Any: ...
