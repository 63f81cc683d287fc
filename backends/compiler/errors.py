"""What can go wrong when a program is compiled for an accelerator that is not attached."""

import re
from typing import ClassVar

from ..errors import DistaffError, UsageError


class CompilerNotFoundError(DistaffError):
    """The compiler for a kind of accelerator is not installed, or does not load."""


class UnknownTopologyError(UsageError):
    """No compiler knows the topology."""


class CompileError(DistaffError):
    """The compiler did not produce a program.

    Args:
        topology: what it compiled for.
        message: what it said.
    """

    kind: ClassVar[str] = "compiler"

    def __init__(self, topology: str, message: str) -> None:
        super().__init__(f"{topology}: {message}")
        self.topology = topology
        self.message = message


class OutOfMemoryError(CompileError):
    """The program does not fit into the memory of a device (HBM)."""

    kind = "hbm"


class OutOfVmemError(CompileError):
    """A kernel does not fit into the memory beside the processing units (VMEM, SMEM, shared memory)."""

    kind = "vmem"


class KernelRejectedError(CompileError):
    """The compiler of kernels does not accept one."""

    kind = "kernel"


class CompileTimeoutError(CompileError):
    """The compiler took longer than it was given."""

    kind = "timeout"


class CompilerAbortedError(CompileError):
    """The compiler ended its process: a failed check of its own, a signal, no memory left on this machine."""

    kind = "abort"


class SchedulesMissingError(DistaffError):
    """The compiler was loaded before it could be asked to print the schedules of kernels."""


_ON_CHIP = re.compile(r"memory space (vmem|smem|cmem)|vmem|scoped allocation|shared memory", re.IGNORECASE)
_OFF_CHIP = re.compile(r"memory space hbm|\bHBM\b|out of memory|device memory", re.IGNORECASE)


def classify(topology: str, message: str) -> CompileError:
    """The error that a compiler's message means."""
    if "RESOURCE_EXHAUSTED" in message or "Ran out of memory" in message:
        if _ON_CHIP.search(message):
            return OutOfVmemError(topology, message)
        if _OFF_CHIP.search(message):
            return OutOfMemoryError(topology, message)
    if "Mosaic" in message or "pallas" in message.lower():
        return KernelRejectedError(topology, message)
    return CompileError(topology, message)
