"""What compilers say when they refuse a program (libtpu 0.0.52, XLA for GPUs of JAX 0.12), and what that means."""

import pytest

from distaff.backends.compiler.errors import (
    CompileError,
    KernelRejectedError,
    OutOfMemoryError,
    OutOfVmemError,
    classify,
)


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space vmem. Used 256.00M "
            "of 127.94M vmem. Exceeded vmem capacity by 128.06M.",
            OutOfVmemError,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating on stack for %flash.1. Scoped "
            "allocation with size 72.15M and limit 63.94M exceeded scoped vmem limit by 8.21M.",
            OutOfVmemError,
        ),
        ("RESOURCE_EXHAUSTED: Shared memory size limit exceeded: requested 98304, available: 65536", OutOfVmemError),
        (
            "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (24.00G) exceeds available HBM (15.75G). HLO module: jit__lambda.",
            OutOfMemoryError,
        ),
        ("INTERNAL: Mosaic failed to compile TPU kernel: unsupported shape cast", KernelRejectedError),
        ("INVALID_ARGUMENT: No such compile option: 'xla_no_such_thing'", CompileError),
    ],
)
def test_messages_are_understood(message: str, kind: type[CompileError]) -> None:
    error = classify("v6e:2x2", message)
    assert type(error) is kind
    assert (error.topology, error.message) == ("v6e:2x2", message)
    assert str(error) == f"v6e:2x2: {message}"
