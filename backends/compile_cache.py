"""JAX's persistent compilation cache, on unless somebody has decided otherwise."""

import os
from pathlib import Path

import jax

_MIN_COMPILE_SECONDS = 0.3
_MAX_BYTES = 2**32


def enable_compile_cache() -> None:
    """Keeps compiled programs in the user's cache folder; JAX_COMPILATION_CACHE_DIR (empty: none) goes before."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.config.jax_compilation_cache_dir is not None:
        return
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(Path(base) / "distaff" / "jax"))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_COMPILE_SECONDS)
