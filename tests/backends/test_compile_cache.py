"""Compiled programs are kept, unless somebody has said otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys; sys.path[:0] = {path!r}
from pathlib import Path
import jax, jax.numpy as jnp
from distaff.backends.compile_cache import enable_compile_cache
enable_compile_cache(Path({folder!r}))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(jax.config.jax_compilation_cache_dir)
"""


@pytest.mark.parametrize(("chosen", "kept"), [(None, "ours"), ("elsewhere", "elsewhere"), ("", None)])
def test_where_programs_are_kept(tmp_path: Path, chosen: str | None, kept: str | None) -> None:
    environment = {"PATH": "/usr/bin", "JAX_PLATFORMS": "cpu", "HOME": str(tmp_path)}
    if chosen is not None:
        environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / chosen) if chosen else ""
    path = [str(Path(entry).resolve()) for entry in sys.path if entry]
    code = CODE.format(path=path, folder=str(tmp_path / "ours"))
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, cwd=tmp_path)
    found = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert bool(found) == (kept is not None)
    assert kept is None or all((tmp_path / kept) in file.parents for file in found)
