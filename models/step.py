"""The pure step: forward, gather, sample, as one function of weights, cache, batch and keys.

Everything that runs a model takes it from here: the runner compiles it, layouts wrap it, the sweep and the
ahead-of-time compiler trace it, the torch adapter lowers it.
"""

from dataclasses import dataclass
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..backends.base import Backend
from ..backends.errors import UnsupportedError
from .config import ModelConfig
from .decoder import Weights, bind
from .kv_cache import KVCache, RaggedBatch
from .layers import Machine
from .placement import OneDevice, Placement
from .sampling import SamplingRows, num_accepted, sample


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepOutput:
    """What a step leaves: the token drawn behind each gathered token, and how many of a row's hold.

    `logits` are those of the gathered tokens, fp32, where the step was asked for them.
    """

    tokens: Int[Array, "B C"]
    num_accepted: Int[Array, "B"]
    logits: Float[Array, "B C V"] | None


@dataclass(frozen=True)
class Step:
    """A model on a backend under a placement; hashable, so that a compiled program can be kept for it."""

    __name__: ClassVar[str] = "step"  # what profiles and dumps call the program

    config: ModelConfig
    backend: Backend
    placement: Placement = OneDevice()
    return_logits: bool = False

    def __call__(
        self, weights: Weights, cache: KVCache, batch: RaggedBatch, rows: SamplingRows
    ) -> tuple[StepOutput, KVCache]:
        """Runs one step; the cache comes back with this step's keys and values written.

        Raises:
            UnsupportedError: the batch names adapters.
        """
        if batch.adapter_ids is not None:
            raise UnsupportedError("adapter_ids: this model holds no adapters; leave the field out")
        machine = Machine(self.backend, self.placement)
        decoder = bind(self.config, weights)
        hidden, cache = decoder(batch, cache, machine)

        num_rows, num_candidates = batch.logit_indices.shape
        gathered = batch.logit_indices.reshape(-1)
        logits = decoder.logits(hidden[gathered], machine)
        with jax.named_scope("sample"):
            logits = machine.placement.gather(logits, "vocab", 1)
            # The token drawn behind position p stands at p + 1.
            positions = batch.positions()[gathered] + 1
            each = jax.tree.map(lambda row: jnp.repeat(row, num_candidates, axis=0), rows)
            drawn = sample(logits, each, positions).reshape(num_rows, num_candidates)
            accepted = num_accepted(batch.tokens[batch.logit_indices], drawn)
        kept = logits.reshape(num_rows, num_candidates, -1) if self.return_logits else None
        return StepOutput(drawn, accepted, kept), cache
