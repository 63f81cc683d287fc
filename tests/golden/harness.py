"""Runs Distaff's step on the golden checkpoints of this folder (made by make.py) and compares logits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Final

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import held_weights
from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights, bind, flatten, unflatten, weight_specs
from distaff.models.families import config_from_hf
from distaff.models.kv_cache import KVCache, RaggedBatch, allocate_cache
from distaff.models.layers import Machine
from distaff.models.placement import OneDevice
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch, StepOutput

GOLDEN: Final = Path(os.environ.get("DISTAFF_GOLDEN") or Path(__file__).parent)
"""Where the cases are: those of the repository, or those that `scripts/test --oracle` has just made anew."""

FOREIGN: Final = Path(__file__).parent / "foreign"
"""Checkpoints that other libraries quantised (made by make_foreign.py)."""

CASES: Final = tuple(sorted(path.parent.name for path in GOLDEN.glob("*/expected.npz")))

FP32_BOUND: Final = 1e-4
"""Largest difference of a logit from the oracle in fp32; logits have a standard deviation of at least 1."""

BF16_RATIO: Final = 1.25
"""Bound in bf16: root mean square error of the logits, relative to the oracle's own error in bf16 (one for each case).

bf16 keeps 8 bits, so whatever is stored is off by up to 0.4 %. How much of that reaches the logits depends on the model
(its depth, its norms, tokens that change experts), and the oracle's own error measures it. Distaff rounds less often
(norms, rotations and accumulators are fp32), so it stays near the oracle's error or below.
"""

ROUNDED_RATIO: Final = 1.25
"""Bound where activations are rounded to 8 bits: root mean square of what that changes of the logits, relative to what
it changes of them in the format's own library. Scales of tokens differ (the largest number of one is 127 here, 127.5 in
compressed-tensors), so single numbers are rounded to others."""

MIN_GAP: Final = 0.02
"""Tokens are compared up to the first position where the oracle's two best logits are closer than this."""

MAX_TOKENS: Final = 80
PAGE_SIZE: Final = 16
# Pages out of order, so that nothing passes that reads the cache as if it were contiguous.
PAGES: Final = (3, 0, 5, 1, 4)


@dataclass(frozen=True)
class Golden:
    """One case: its checkpoint and what `transformers` computes with it."""

    folder: Path

    @cached_property
    def tokens(self) -> list[int]:
        """Prompt, then the oracle's greedy continuation."""
        return self._expected["tokens"].tolist()

    @cached_property
    def prompt_len(self) -> int:
        return int(self._expected["prompt_len"])

    @cached_property
    def logits(self) -> np.ndarray:
        """fp32 logits [T, V] behind each of `tokens`."""
        return self._expected["logits"]

    @cached_property
    def config(self) -> ModelConfig:
        checkpoint = open_checkpoint(self.folder)
        return config_from_hf(checkpoint.hf_config, source=str(self.folder / "config.json"))

    def weights(self, dtype: DTypeLike = jnp.float32) -> Weights:
        return open_checkpoint(self.folder).load_weights(self.config, dtype=jnp.dtype(dtype))

    def stored_weights(self) -> Weights:
        """In fp32 but for those that stay as the checkpoint stores them, by default."""
        checkpoint = open_checkpoint(self.folder)
        held = held_weights(None, checkpoint, self.config)
        return checkpoint.load_weights(self.config, dtype=jnp.float32, keep=held.roundings)

    @cached_property
    def bf16_error(self) -> float:
        """Root mean square of what the oracle's logits change by when it computes in bfloat16 itself."""
        return float(self._expected["bf16_error"])

    @cached_property
    def own(self) -> np.ndarray | None:
        """Logits of a library whose products round activations too; None where it expands weights alone."""
        return self._expected.get("own")

    def clear(self) -> int:
        """How many greedy decisions come before the first close one."""
        top = np.sort(self.logits[self.prompt_len - 1 : -1], axis=-1)
        close = np.flatnonzero(top[:, -1] - top[:, -2] < MIN_GAP)
        return int(close[0]) if len(close) else len(top)

    @cached_property
    def _expected(self) -> dict[str, np.ndarray]:
        with np.load(self.folder / "expected.npz") as file:
            return dict(file)


class Text:
    """One text on a model: feeds tokens, keeps the cache, returns the logits behind each token."""

    def __init__(self, config: ModelConfig, weights: Weights, dtype: DTypeLike = jnp.float32) -> None:
        self.config = config
        self.weights = weights
        self.length = 0
        pages = [len(PAGES) + 1] * len(config.cache_groups)
        empty = jax.eval_shape(
            lambda: allocate_cache(config, _MACHINE.backend, num_pages=pages, page_size=PAGE_SIZE, dtype=dtype)
        )
        # Positions that were never written must not matter.
        self.cache: KVCache = jax.tree.map(lambda leaf: np.full(leaf.shape, np.nan, leaf.dtype), empty)

    def feed(self, tokens: Sequence[int]) -> np.ndarray:
        """Appends tokens; returns fp32 logits [T, V]. One program does for any number of them up to MAX_TOKENS."""
        logits, self.cache = _forward(self.config, self.weights, self.cache, self._batch(tokens, MAX_TOKENS))
        self.length += len(tokens)
        return np.asarray(logits)[: len(tokens)]

    def step(self, token: int) -> tuple[np.ndarray, int]:
        """Appends one token by the step that serving runs: logits [V] behind it, and the next token, greedily."""
        ragged = self._batch([token], 1)
        state = RowState.empty(1, MAX_TOKENS + 1, self.config.vocab_size)
        state.history[0, self.length] = token
        zero = jnp.zeros(1, jnp.int32)
        batch = StepBatch(
            zero, ragged.query_starts, ragged.kv_lens, ragged.page_tables, jnp.ones(1, jnp.bool_), jnp.int32(1)
        )
        step = Step(self.config, _MACHINE.backend, _MACHINE.placement, return_logits=True)
        output, self.cache = _step(step, self.weights, self.cache, state, batch)
        self.length += 1
        assert output.logits is not None
        return np.asarray(output.logits)[0, 0], int(output.tokens[0, 0])

    def _batch(self, tokens: Sequence[int], width: int) -> RaggedBatch:
        groups = len(self.cache)
        batch = RaggedBatch.single(tokens, self.length, num_tokens=width, num_pages=len(PAGES), num_groups=groups)
        return replace(batch, page_tables=(jnp.asarray([PAGES], jnp.int32),) * groups)


_MACHINE: Final = Machine(ReferenceBackend(), OneDevice())

# Hundreds of programs are compiled and each runs a few times: LLVM's optimisations would take most of the time, and
# sampling, which has tests of its own, half of the rest.
_FAST_COMPILE: Final = {"xla_backend_optimization_level": "0"}


@partial(jax.jit, static_argnums=0, compiler_options=_FAST_COMPILE)
def _forward(
    config: ModelConfig, weights: Weights, cache: KVCache, batch: RaggedBatch
) -> tuple[Float[Array, "T V"], KVCache]:
    decoder = bind(config, weights)
    hidden, cache = decoder(batch, cache, _MACHINE)
    return decoder.logits(hidden, _MACHINE), cache


@partial(jax.jit, static_argnums=0, compiler_options=_FAST_COMPILE)
def _step(
    step: Step, weights: Weights, cache: KVCache, state: RowState, batch: StepBatch
) -> tuple[StepOutput, KVCache]:
    output, cache, _ = step(weights, cache, state, batch)
    return output, cache


def restacked(weights: Weights, old: ModelConfig, new: ModelConfig) -> Weights:
    """The same weights for a configuration whose layers repeat in other blocks; leaves of no use to it are dropped."""
    single: dict[tuple[str, int], np.ndarray] = {}
    flat = flatten(weights)
    for path, leaf in flat.items():
        if path.startswith("segments."):
            _, segment, _, position, key = path.split(".", 4)
            for entry, number in zip(
                np.asarray(leaf), old.segments[int(segment)].layer_ids[int(position)], strict=True
            ):
                single[key, number] = entry
    specs = weight_specs(new, jnp.float32)
    return unflatten(
        {
            path: flat[path] if spec.layers is None else np.stack([single[spec.key, i] for i in spec.layers])
            for path, spec in specs.items()
        }
    )
