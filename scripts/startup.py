"""What the process needs before JAX is imported."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from ..backends.errors import InvalidParameterError, UsageError

if TYPE_CHECKING:
    from ..serving import LLM
    from ..sharding.multihost import Hosts

_GOOGLE = "0x1ae0"  # PCI vendor


def prepare_devices(num_virtual: int | None = None) -> None:
    """Keep libtpu and JAX's CUDA plugin, where they are installed for their compilers alone, from looking for devices
    and complaining on stderr.

    Args:
        num_virtual: devices that the CPU shall be; None leaves that as it is.
    """
    if num_virtual is not None:
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={num_virtual}".strip()
    compilers = find_spec("libtpu") or find_spec("jax_cuda12_plugin")
    if "JAX_PLATFORMS" not in os.environ and compilers and not (has_tpu() or has_gpu()):
        os.environ["JAX_PLATFORMS"] = "cpu"


def prepare_layout(layout: str | None, devices: int | None) -> None:
    """The same for a command with --layout and --devices.

    Raises:
        UsageError: devices without a layout, which nothing would be put on.
    """
    if devices is not None and layout is None:
        raise UsageError(f"--devices {devices} needs --layout, which says what goes where: --layout auto, for instance")
    prepare_devices(devices)


def read_hosts(
    hosts: str | None,
    coordinator: str | None,
    num_hosts: int | None,
    host: int | None,
    timeout: float | None,
    layout: str | None,
) -> "Hosts | None":
    """The hosts that --hosts, --coordinator, --num-hosts, --host and --host-timeout name; None where none of them is
    given.

    Raises:
        UsageError: some are missing, or there is no layout.
        InvalidParameterError: one of them is out of range.
    """
    given = {"--coordinator": coordinator, "--num-hosts": num_hosts, "--host": host}
    if hosts is None and timeout is None and all(value is None for value in given.values()):
        return None
    if hosts not in (None, "auto"):
        raise InvalidParameterError("--hosts", hosts, "auto, or --coordinator, --num-hosts and --host instead")
    if layout is None:
        raise UsageError("several hosts need --layout, which says what goes where: --layout auto, for instance")
    from ..sharding.multihost import DEFAULT_TIMEOUT, Hosts
    from ..sharding.multihost_detect import detect_hosts

    seconds = DEFAULT_TIMEOUT if timeout is None else timeout
    if hosts == "auto":
        return detect_hosts(coordinator=coordinator, count=num_hosts, index=host, timeout=seconds)
    missing = [flag for flag, value in given.items() if value is None]
    if coordinator is None or num_hosts is None or host is None:
        raise UsageError(f"several hosts: {', '.join(missing)} missing; give it, or --hosts auto")
    return Hosts(coordinator, num_hosts, host, seconds)


def keep_stdout() -> None:
    """Leaves stdout to Python: what libraries write there (JAX's collectives of the CPU do) goes to stderr."""
    sys.stdout.flush()
    ours = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(ours, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)


def print_remarks(llm: "LLM", layout: str | None) -> None:
    """Say on stderr which weights were expanded, and what a layout might do better: devices that it leaves, KV heads
    that it holds several times."""
    for text in llm.remarks:
        sys.stderr.write(f"warning: {text}\n")
    if layout is None:
        return
    from ..sharding.backend import ShardedBackend

    if isinstance(llm.backend, ShardedBackend):
        for text in llm.backend.remarks:
            sys.stderr.write(f"warning: {text}\n")


def has_tpu() -> bool:
    """Is a TPU attached, as far as the kernel says?"""
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return True
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors if vendor.is_file())


def has_gpu() -> bool:
    """Is a GPU attached, as far as the kernel says?"""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
