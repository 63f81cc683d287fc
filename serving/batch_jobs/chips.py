"""Which chips a job runs on, and what the hardware table says of them."""

import jax

from ...backends.errors import UnsupportedError
from ...backends.hardware import Chip, chips
from ...backends.tpu.generations import generation_of
from ...sharding.backend import ShardedBackend
from ..limits import MachineLimits, measure_limits
from .loaded import Loaded


def attached_chip() -> Chip | None:
    """The chip that JAX computes on, if the table has it."""
    device = jax.devices()[0]
    if device.platform == "tpu":
        try:
            return chips().get(generation_of(device.device_kind))
        except UnsupportedError:
            return None
    kind = device.device_kind.lower().replace(" ", "")
    return next((chip for name, chip in chips().items() if device.platform != "cpu" and name in kind), None)


def num_chips(llm: Loaded, chip: Chip | None) -> int:
    """Chips in use; a host's CPU is one."""
    devices = 1
    if isinstance(llm.backend, ShardedBackend):
        devices = llm.backend.layout.num_devices * len(getattr(llm.engine, "engines", (None,)))
        if chip is None and jax.devices()[0].platform == "cpu":
            devices = 1
    return max(1, devices // (1 if chip is None else chip.devices_per_chip))


def limits_of(llm: Loaded, chip: Chip | None, dtype: str) -> MachineLimits:
    """Bytes and FLOPs a second of all chips together: by their makers' figures, else measured."""
    if chip is None:
        return measure_limits(llm.backend, dtype)
    count = num_chips(llm, chip)
    return MachineLimits(chip.hbm_bytes_per_second * count, chip.flops["bfloat16"] * count)
