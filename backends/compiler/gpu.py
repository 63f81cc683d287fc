"""Describes GPUs that are not attached to the compilers that JAX has for them."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
from jax.errors import JaxRuntimeError
from jax.experimental import topologies

from .errors import CompilerNotFoundError, UnknownTopologyError

_PLUGINS = {"cuda": "jax-cuda12-plugin"}
_DEVICES_PER_HOST = 8


def gpu_compiler_version(platform: str) -> str:
    """Version of the plugin that compiles for a platform, "cuda" or "rocm".

    Raises:
        CompilerNotFoundError: it is not installed, or there is none that works without its GPU.
    """
    plugin = _PLUGINS.get(platform)
    if plugin is None:
        raise CompilerNotFoundError(
            "compiling for ROCm needs AMD's own libraries (libamdhip64.so.7, librocblas.so.5 and ten more, which no "
            "package index has) and JAX's plugin refuses to load without a GPU: compile on a machine with one"
        )
    try:
        return version(plugin)
    except PackageNotFoundError as error:
        raise CompilerNotFoundError(
            f"the compiler for NVIDIA GPUs is not installed: pip install 'distaff[aot-cuda]' (or the package {plugin}, "
            "of the same version as jax)"
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
    jax.local_devices(backend="cpu")  # plugins register themselves when JAX looks for devices
    try:
        described = topologies.get_topology_desc(
            platform=platform,
            topology_name=name,
            topology=f"1x{hosts}x{count // hosts}",
            target_config=target,
        )
    except NotImplementedError as error:
        raise CompilerNotFoundError(
            f"JAX did not load {_PLUGINS[platform]}: it does so without a GPU where JAX_PLATFORMS=cpu is set before "
            "JAX starts, as `distaff` and compile_report do"
        ) from error
    except JaxRuntimeError as error:
        raise UnknownTopologyError(f"{name}:{count} is not known to the compiler ({error})") from error
    return list(described.devices)
