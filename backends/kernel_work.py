"""What a kernel does on given lengths, in figures that a static cost model and a test can compare.

The compiler's dumps say how many cycles a loop body takes, not how often it runs when the count depends on data. Each
kernel's module says that in plain Python, and a test counts the same in interpret mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class KernelWork:
    """The work of one call of one kernel.

    Args:
        trips: how often each loop body runs per run of the loop around it, averaged over the call. Keys are the loops'
            places in the compiled program: ordinals in the order in which they start there, outer loops first.
        conditions: the fraction of the runs of the code around it in which a conditional region is entered; keys are
            the regions' ordinals in the same order. A region that is not named is always entered.
        counts: how often each named body runs in the whole call; what the test in interpret mode counts.
        hbm_bytes: bytes moved between HBM and VMEM.
        flops: floating-point operations that the result needs: those of masked or padded positions do not count.
    """

    trips: Mapping[int, float] = field(default_factory=dict)
    conditions: Mapping[int, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    hbm_bytes: int = 0
    flops: int = 0
