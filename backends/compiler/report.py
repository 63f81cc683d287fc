"""What the compiler of an accelerator says about a program: plain data, written to JSON and read back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MemoryReport:
    """Bytes on one device. `aliased` is the part of the outputs that lies in donated arguments."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int = 0
    generated_code: int = 0


@dataclass(frozen=True)
class Collective:
    """What devices send each other at one place of the program.

    Args:
        op: the HLO opcode without -start or -done: "all-reduce", "collective-permute", "send", ...
        replica_groups: devices that take part together; pairs (source, target) for collective-permute; empty where
            the program names none.
        num_bytes: the whole of what is reduced, gathered or moved, as one device sees it: the larger of its operands
            and its results.
        count: how often it runs in one run of the program.
        between_slices: it leaves the slice (over the data-centre network); `transfer` says what for: "all-reduce".
        name: of the instruction.
    """

    op: str
    replica_groups: tuple[tuple[int, ...], ...]
    num_bytes: int
    count: int
    between_slices: bool = False
    transfer: str = ""
    name: str = ""


@dataclass(frozen=True)
class OperationCost:
    """An operation of XLA's own (most are fusions) with the cycles that XLA expects of one run."""

    name: str
    cycles: int
    count: int


@dataclass(frozen=True)
class LoopReport:
    """A loop of a kernel, without the loops inside it.

    Args:
        bundles: cycles of one run of the body.
        trips: how often the body runs each time the loop is reached.
        known: the compiler says so; otherwise it comes from the caller's KernelWork, or is 1.
        cycles: all in all, in one call of the kernel.
        slots: fraction of each functional unit's capacity that the body occupies.
        dma_bytes: bytes of each copy that the body starts; None where the size depends on data.
    """

    start: int
    end: int
    depth: int
    bundles: int
    trips: float
    known: bool
    cycles: float
    slots: Mapping[str, float]
    dma_bytes: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class RegionReport:
    """Code of a kernel that a branch can skip; `weight` is the fraction of the times in which it runs."""

    start: int
    end: int
    weight: float


@dataclass(frozen=True)
class KernelReport:
    """A hand-written (Mosaic) kernel of a TPU's program.

    Args:
        calls: how often one run of the program calls it.
        bundles: length of its code, in cycles.
        cycles: static cycles of one call, loops included; nothing waits for memory in them.
        slots: fraction of each functional unit's capacity occupied over those cycles; `matmul` is the occupancy of
            the matrix units.
        spill_stores: slots of the whole call that store registers for want of registers; `spill_fills` load them back.
        vmem_bytes: vector memory that it takes; None if the compiler does not say.
        hbm_bytes: bytes to and from HBM in one call, as its KernelWork has them (None: no such figure).
        flops: as its KernelWork has them.
        compute_seconds: cycles at the clock of the generation; `hbm_seconds`: bytes at its specified bandwidth.
    """

    name: str
    calls: int
    bundles: int
    cycles: float
    slots: Mapping[str, float]
    spill_stores: float
    spill_fills: float
    vmem_bytes: int | None
    loops: tuple[LoopReport, ...]
    regions: tuple[RegionReport, ...]
    compute_seconds: float
    hbm_bytes: int | None = None
    flops: int | None = None
    hbm_seconds: float | None = None

    @property
    def mxu_busy(self) -> float:
        """Fraction of the cycles in which a matrix unit works, averaged over the matrix units."""
        return self.slots["matmul"]

    @property
    def seconds(self) -> float:
        """The longer of computing and moving bytes: the least that one call can take."""
        return max(self.compute_seconds, self.hbm_seconds or 0.0)

    @property
    def hot_loop(self) -> LoopReport | None:
        """The loop with most cycles."""
        return max(self.loops, key=lambda loop: loop.cycles, default=None)


@dataclass(frozen=True)
class GpuKernelReport:
    """A hand-written (Triton or Mosaic) kernel of a GPU's program, by the name that `pallas_call` gave it.

    `calls` in one run of the program; bytes and FLOPs of one call are those of its KernelWork.
    """

    name: str
    calls: int
    hbm_bytes: int | None = None
    flops: int | None = None


@dataclass(frozen=True)
class CompileReport:
    """A program, compiled for one device (or for each device of a mesh) of a topology.

    Figures are of one device and one run. Where nothing but a compiler can have measured, they are called static:
    they hold for `compiler` and were not timed on a chip.

    Args:
        compiler: name and version.
        num_devices: of the mesh that it was compiled for.
        flops: of matrix multiplications and convolutions, loops included, plus those of kernels with a KernelWork.
        hbm_bytes: moved to and from HBM by XLA's operations, loops included, plus those of kernels with a KernelWork.
        estimated_cycles: sum over XLA's own operations, loops included, the costliest branch of each conditional;
            kernels, collectives and asynchronous copies are not in it. None where the compiler estimates none.
        least_cycles: the same with the cheapest branches: greedy sampling where a step can do more.
        operations: the costliest of those operations, in whatever branch.
        unknown_loops: loops of the program whose trip count it does not say: counted once.
    """

    topology: str
    compiler: str
    compile_seconds: float
    num_devices: int
    memory: MemoryReport
    flops: int
    hbm_bytes: int
    estimated_cycles: int | None
    least_cycles: int | None = None
    operations: tuple[OperationCost, ...] = ()
    collectives: tuple[Collective, ...] = ()
    kernels: tuple[KernelReport, ...] = ()
    gpu_kernels: tuple[GpuKernelReport, ...] = ()
    unknown_loops: int = 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "CompileReport":
        """Reads what to_dict wrote, through JSON or not."""
        return cls(
            **{
                **fields,
                "memory": MemoryReport(**fields["memory"]),
                "operations": tuple(OperationCost(**operation) for operation in fields["operations"]),
                "collectives": tuple(_collective(collective) for collective in fields["collectives"]),
                "kernels": tuple(_kernel(kernel) for kernel in fields["kernels"]),
                "gpu_kernels": tuple(GpuKernelReport(**kernel) for kernel in fields["gpu_kernels"]),
            }
        )


def _collective(fields: Mapping[str, Any]) -> Collective:
    return Collective(**{**fields, "replica_groups": tuple(tuple(group) for group in fields["replica_groups"])})


def _kernel(fields: Mapping[str, Any]) -> KernelReport:
    loops = tuple(LoopReport(**{**loop, "dma_bytes": tuple(loop["dma_bytes"])}) for loop in fields["loops"])
    regions = tuple(RegionReport(**region) for region in fields["regions"])
    return KernelReport(**{**fields, "loops": loops, "regions": regions})
