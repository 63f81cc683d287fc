"""JAX's persistent compilation cache, on unless somebody has decided otherwise."""

import os
from pathlib import Path

import jax

_MIN_COMPILE_SECONDS = 0.3
_MAX_BYTES = 2**32


def compile_cache_dir(folder: Path) -> Path | None:
    """Where compiled programs are kept: JAX_COMPILATION_CACHE_DIR (None if that is empty), else `folder`."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder))
    return Path(chosen) if chosen else None


def enable_compile_cache(folder: Path) -> None:
    """Keeps compiled programs in `folder`, unless the environment or the program has set up JAX's cache itself."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir is not None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
