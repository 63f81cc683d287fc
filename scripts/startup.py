"""What the process needs before JAX is imported."""

import os
from importlib.util import find_spec
from pathlib import Path

_GOOGLE = "0x1ae0"  # PCI vendor


def prepare_devices() -> None:
    """Keep libtpu and JAX's CUDA plugin, where they are installed for their compilers alone, from looking for devices
    and complaining on stderr."""
    compilers = find_spec("libtpu") or find_spec("jax_cuda12_plugin")
    if "JAX_PLATFORMS" not in os.environ and compilers and not (has_tpu() or has_gpu()):
        os.environ["JAX_PLATFORMS"] = "cpu"


def has_tpu() -> bool:
    """Is a TPU attached, as far as the kernel says?"""
    if any(Path("/dev").glob("accel[0-9]*")) or any(Path("/dev/vfio").glob("[0-9]*")):
        return True
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(vendor.read_text().strip() == _GOOGLE for vendor in vendors if vendor.is_file())


def has_gpu() -> bool:
    """Is a GPU attached, as far as the kernel says?"""
    return any(Path(device).exists() for device in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd"))
