"""Describes GPUs that are not attached to the compilers that JAX has for them."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from .errors import CompilerNotFoundError, UnknownTopologyError
from .rocm import load_rocm, rocm_version

_CUDA_PLUGIN = "jax-cuda12-plugin"
_DEVICES_PER_HOST = 8


def gpu_compiler_version(platform: str) -> str:
    """Version of the plugin that compiles for a platform, "cuda" or "rocm".

    Raises:
        CompilerNotFoundError: it is not installed.
    """
    if platform == "rocm":
        return rocm_version()
    try:
        return version(_CUDA_PLUGIN)
    except PackageNotFoundError as error:
        raise CompilerNotFoundError(
            "the compiler for NVIDIA GPUs is not installed: pip install 'distaff[aot-cuda]' "
            f"(or the package {_CUDA_PLUGIN} of the same version as jax)"
        ) from error


def gpu_devices(name: str, platform: str, target: str, count: int) -> Sequence[Any]:
    """`count` devices of the chip that a target (XLA's description of it) describes; beyond 8 they fill hosts of 8.

    Raises:
        UnknownTopologyError: the count fills no hosts.
        CompilerNotFoundError: the compiler is not installed, or was not loaded.
    """
    gpu_compiler_version(platform)
    if count > _DEVICES_PER_HOST and count % _DEVICES_PER_HOST:
        raise UnknownTopologyError(f"{name}:{count}: more than {_DEVICES_PER_HOST} devices come in full hosts of them")
    hosts = -(-count // _DEVICES_PER_HOST)
    if platform == "rocm":
        load_rocm()
    else:
        jax.local_devices(backend="cpu")  # its plugin registers itself when JAX looks for devices
    try:
        described = topologies.get_topology_desc(
            platform=platform,
            topology_name=name,
            topology=f"1x{hosts}x{count // hosts}",
            target_config=target,
        )
    except NotImplementedError as error:
        raise CompilerNotFoundError(
            f"JAX did not load {_CUDA_PLUGIN}: it does so without a GPU where JAX_PLATFORMS=cpu is set before "
            "JAX starts, as `distaff` and compile_report do"
        ) from error
    except JaxRuntimeError as error:
        raise UnknownTopologyError(f"{name}:{count} is not known to the compiler ({error})") from error
    return list(described.devices)
