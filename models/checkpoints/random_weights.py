"""`random:NAME`: a model of the right shape without a checkpoint, for benchmarks and planning."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...backends.errors import UsageError
from ..config import ModelConfig
from ..decoder import Weights, flatten, init_weights, unflatten, weight_specs
from ..errors import ModelNotFoundError, TokenizerError
from ..tokenizer import Tokenizer
from .base import Made, OnBytes, Place, first_device, loading_order
from .hf_folder import copy_tokenizer_files
from .json_file import read_object
from .shards import placed_as

PREFIX: Final = "random:"
_CONFIGS: Final = Path(__file__).parents[1] / "configs"


def shipped_configs() -> dict[str, Path]:
    """Configurations that come with Distaff, by name."""
    return {path.stem: path for path in sorted(_CONFIGS.glob("*.json"))}


def random_config_path(name: str) -> tuple[Path, int]:
    """The config.json and the seed that `random:NAME[?seed=N]` means.

    Raises:
        ModelNotFoundError: no shipped configuration, folder or config.json of that name.
        UsageError: the seed is not a whole number.
    """
    target, _, query = name.removeprefix(PREFIX).partition("?")
    match = re.fullmatch(r"(?:seed=(\d{1,9}))?", query)
    if match is None:
        raise UsageError(f"--model {name}: found {query!r} behind the ?, expected seed=N with N below 1000000000")
    seed = int(match[1] or 0)
    shipped = shipped_configs()
    path = shipped.get(target) or Path(target).expanduser()
    if path.is_dir():
        path /= "config.json"
    if not path.is_file() or path.suffix != ".json":
        raise ModelNotFoundError(
            f"--model {name}: found no configuration {target!r}, expected a folder with config.json, a .json file, or "
            f"one of {', '.join(shipped)}"
        )
    return path, seed


class RandomCheckpoint:
    """A configuration with random weights. It has a tokenizer only where a folder beside config.json has one."""

    def __init__(self, name: str) -> None:
        self._config_path, self.seed = random_config_path(name)
        self.path = Path(name)
        self.hf_config = read_object(self._config_path)

    @property
    def generation_config(self) -> dict[str, Any]:
        found = self.hf_config.get("eos_token_id")
        return {} if found is None else {"eos_token_id": found}

    @property
    def stored_dtype(self) -> jnp.dtype:
        name = self.hf_config.get("torch_dtype") or self.hf_config.get("dtype")
        return jnp.dtype(name if name in ("float32", "float16", "bfloat16") else "float32")

    def load_weights(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        made: Made | None = None,
        keep: Collection[str] = (),
        progress: OnBytes | None = None,
    ) -> Weights:
        weights = self._made(config, jnp.dtype(dtype), place or first_device)
        if progress is not None:
            total = sum(leaf.nbytes for leaf in flatten(weights).values())
            progress(total, total)
        if made is None:
            return weights
        flat = flatten(weights)
        for spec in loading_order(weight_specs(config, dtype).values()):
            flat[spec.path] = made(spec, flat[spec.path])
        return unflatten(flat)

    def _made(self, config: ModelConfig, dtype: jnp.dtype, place: Place) -> Weights:
        placed = {path: placed_as(spec, place(spec)) for path, spec in weight_specs(config, dtype).items()}

        def make() -> Weights:
            made = flatten(init_weights(config, seed=self.seed, dtype=dtype))
            return unflatten({path: placed[path].arrange(leaf) for path, leaf in made.items()})

        return jax.jit(make, out_shardings=unflatten({path: each.sharding for path, each in placed.items()}))()

    def tokenizer(self) -> Tokenizer:
        if self._config_path.parent == _CONFIGS:
            raise TokenizerError(
                f"{self.path}: a shipped configuration has no tokenizer; give token ids, or a folder "
                "with tokenizer.json"
            )
        return Tokenizer.from_folder(self._config_path.parent)

    def copy_tokenizer(self, folder: Path) -> None:
        if self._config_path.parent != _CONFIGS:
            copy_tokenizer_files(self._config_path.parent, folder)
