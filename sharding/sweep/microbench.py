"""What the devices at hand reach: matrices, memory and sums, measured alone, never by the layouts that are compared."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ...backends.hardware import Chip
from .efficiency import Efficiencies, Efficiency

_EDGE = 768
_STREAM = 1 << 23
_SUMS = (1 << 10, 1 << 20)
_ROUNDS = 5


@dataclass(frozen=True)
class Reached:
    """Of one device while all of them work: FLOP/s and bytes read each second; of a sum over all of them: seconds of a
    small one, and bytes each second that a device sends in a large one."""

    flops: float
    bytes_per_second: float
    sum_seconds: float
    sent_per_second: float

    def chip(self, count: int, memory: int) -> Chip:
        """The devices as chips of a node in which any two are linked at the full rate."""
        return Chip(
            name="here",
            maker="measured",
            platform=jax.default_backend(),
            devices_per_chip=1,
            flops={"bfloat16": self.flops},
            hbm_bytes=memory,
            hbm_bytes_per_second=self.bytes_per_second,
            fabric="switch",
            node_chips=count,
            links=1,
            link_bytes_per_second=self.sent_per_second,
        )

    @property
    def efficiencies(self) -> Efficiencies:
        """All of these rates; a sum of small arrays takes two hops."""
        best = Efficiency(hop_seconds=self.sum_seconds / 2)
        return Efficiencies(
            Efficiency(overlap=1.0), best, Efficiency(0.5, 0.5, 0.5, self.sum_seconds), "microbenchmarks"
        )


def measure(devices: int) -> Reached:
    """Measures the first devices of this process, all at once, in float32."""
    mesh = Mesh(np.array(jax.devices()[:devices]), ("device",))
    split, whole = PartitionSpec("device"), PartitionSpec()

    def on_each(function: Callable[..., Any], out: PartitionSpec) -> Callable[..., Any]:
        return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=split, out_specs=out, check_vma=False))

    def placed(*shape: int) -> jax.Array:
        return jax.device_put(np.ones((devices, *shape), np.float32), NamedSharding(mesh, split))

    # Batches of 8 rows, as decode has, for memory: a matrix is read once and hardly computed with.
    square, rows = placed(_EDGE, _EDGE), placed(_STREAM // 1024, 1024)
    maths = _seconds(on_each(lambda x: x[0] @ x[0], split), square)
    reads = _seconds(on_each(lambda x: jnp.ones((8, 1024), jnp.float32) @ x[0].T, split), rows)
    small, large = (_seconds(on_each(lambda x: jax.lax.psum(x, "device"), whole), placed(size // 4)) for size in _SUMS)
    sent = 2 * (devices - 1) / devices * (_SUMS[1] - _SUMS[0])
    return Reached(
        flops=2 * _EDGE**3 / maths,
        bytes_per_second=_STREAM * 4 / reads,
        sum_seconds=small,
        sent_per_second=sent / max(large - small, 1e-9) if devices > 1 else 1e12,
    )


def _seconds(function: Callable[..., Any], argument: jax.Array) -> float:
    """The median of several runs, the first one left out."""
    jax.block_until_ready(function(argument))
    times: list[float] = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(function(argument))
        times.append(time.perf_counter() - began)
    return median(times)
