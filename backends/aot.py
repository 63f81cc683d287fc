"""Compiles for an accelerator that is not attached, with the compiler that will serve it there."""

from collections.abc import Callable, Sequence

from .base import Program, PyTree
from .compiler.lowering import compile_lowered, lower, make_mesh


def compile_ahead(
    function: Callable[..., PyTree], abstract_args: Sequence[PyTree], topology: str, *, donate: Sequence[int] = ()
) -> Program:
    """Compiles a function for the first device of a topology, in this process.

    Args:
        function: what to compile.
        abstract_args: arguments; only shapes and types are read.
        topology: such as "v6e:2x2".
        donate: numbers of the arguments that the call consumes.

    Raises:
        UnknownTopologyError: no compiler knows the topology.
        CompilerNotFoundError: the compiler is not installed.
        CompileError: the compiler refuses the program; the class says what for.
    """
    return compile_lowered(lower(function, abstract_args, make_mesh(topology), donate=donate), topology)
