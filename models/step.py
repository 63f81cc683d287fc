"""The pure step: forward, gather, sample, next token, as one function of weights, cache, row state and batch.

Everything that runs a model takes it from here: the runner compiles it, layouts wrap it, the sweep and the
ahead-of-time compiler trace it, the torch adapter lowers it.

Tokens live on the device: a step reads its inputs from the history of each row's slot and writes what it draws behind
them, so the next step can be dispatched before anybody has looked at the tokens of this one.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, no_type_check

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..backends.base import Backend
from ..backends.errors import UnsupportedError
from .config import ModelConfig
from .decoder import Decoder, Weights, bind
from .expert_load import taken_load, with_load
from .kv_cache import KVCache, RaggedBatch
from .layers import Machine
from .logprobs import TokenLogprobs, token_logprobs
from .placement import OneDevice, Placement
from .row_state import RowState
from .sampling import draw, num_accepted, take_best
from .split_logits import gather_logits


@no_type_check  # JAX rebuilds it around tracers, shapes and shardings
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepBatch:
    """What the host says about one step: B rows with any number of tokens each, packed into T.

    Row b is the text in slot `slots[b]` (num_slots where the row is empty, as the last ones may be) and owns the tokens
    `query_starts[b] : query_starts[b + 1]`: the last of its first `kv_lens[b]` positions. `draws` tells the rows whose
    tokens end the known text, so that the token behind them is drawn and kept. `num_steps` counts the steps to run
    before the host looks (rows of one token each only). `token_mask` allows tokens, all where None.
    """

    slots: Int[Array, "B"]
    query_starts: Int[Array, "B+1"]
    kv_lens: Int[Array, "B"]
    page_tables: tuple[Int[Array, "B pages"], ...]
    draws: Bool[Array, "B"]
    num_steps: Int[Array, ""]
    token_mask: Bool[Array, "B V"] | None = None
    adapter_ids: Int[Array, "B"] | None = None


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptOutput:
    """What is told about each token of the prompt, and about the text as a whole.

    `logprobs` are of the token that follows each of the T tokens in its text. `hidden_sum` and `hidden_last` pool the
    hidden states behind the last norm over this step's tokens of each row, in fp32.
    """

    logprobs: TokenLogprobs
    hidden_sum: Float[Array, "B D"]
    hidden_last: Float[Array, "B D"]


@no_type_check
@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepOutput:
    """What a step leaves.

    `tokens` are those drawn behind each of a row's last C tokens, for each of the steps (-1 for steps left out since
    all rows had ended); `num_accepted` of the C hold. `logits` [B, C, V] where the step was asked for them, and so
    `expert_load`: how many tokens chose each expert of each layer, and how many of them had to wait for a further round
    of a dispatch.
    """

    tokens: Int[Array, "B C_or_steps"]
    num_accepted: Int[Array, "B"]
    logprobs: TokenLogprobs
    prompt: PromptOutput | None
    logits: Float[Array, "B C V"] | None
    expert_load: Int[Array, "1 L E_and_1"] | None = None


type Loop = tuple[Int[Array, ""], Bool[Array, "B"], tuple[Int[Array, "B K"], TokenLogprobs], KVCache, RowState]
"""Steps done, rows that have ended, what was drawn, cache and state."""


@dataclass(frozen=True)
class Step:
    """A model on a backend under a placement; hashable, so that a compiled program can be kept for it.

    Args:
        num_tokens: T, what the tokens of all rows are padded to.
        decode: each row has one token, and up to max_steps steps run in one call.
        num_candidates: C; the last C tokens of each row are verified (1: just continued).
        prompt: also report on every token of the prompt.
        return_logits: also return the logits.
        expert_load: also count the load of experts.
        greedy: take the most likely tokens, whatever rows ask for: most of a compile is drawing all others.
    """

    __name__: ClassVar[str] = "step"  # what profiles and dumps call the program

    config: ModelConfig
    backend: Backend
    placement: Placement = OneDevice()
    num_tokens: int = 1
    decode: bool = False
    max_steps: int = 1
    num_candidates: int = 1
    prompt: bool = False
    return_logits: bool = False
    expert_load: bool = False
    greedy: bool = False

    def __call__(
        self, weights: Weights, cache: KVCache, state: RowState, batch: StepBatch
    ) -> tuple[StepOutput, KVCache, RowState]:
        """Runs the step; cache and state come back with what it wrote.

        Raises:
            UnsupportedError: the batch names adapters; the load of experts is asked of a pipeline.
        """
        if batch.adapter_ids is not None:
            raise UnsupportedError("adapter_ids: this model holds no adapters; leave the field out")
        # Replicas that all have to be there for each step run one of them, with rows or without.
        run = self._loop if self.decode and self.placement.parts("replicas") == 1 else self._once
        decoder = bind(self.config, weights)
        if not self.expert_load:
            return run(decoder, cache, state, batch)
        if self.placement.parts("layers") > 1:
            raise UnsupportedError("expert_load: a pipeline does not count it; leave it out, or use another layout")
        output, cache, state = run(decoder, with_load(self.config, cache), state, batch)
        cache, load = taken_load(self.config, cache)
        # Where tokens are routed, each device has counted its own.
        return replace(output, expert_load=self.placement.reduce(load, "routed")[None]), cache, state

    def _once(
        self, decoder: Decoder, cache: KVCache, state: RowState, batch: StepBatch
    ) -> tuple[StepOutput, KVCache, RowState]:
        ragged = self._read(state, batch)
        # A pipeline cuts the batch: there are no first rows then.
        whole = self.placement.parts("layers") == 1
        count = batch.query_starts[-1] if whole else None
        backend = self.backend
        if count is not None and self.placement.parts("tokens") == 1:
            backend = backend.with_rows(count)
        hidden, cache = decoder(ragged, cache, Machine(backend, self.placement, count, self.expert_load))

        num_rows, num_candidates = ragged.logit_indices.shape
        used = (batch.slots < state.history.shape[0]).sum() * num_candidates
        machine = Machine(self.backend.with_rows(used), self.placement)
        gathered = ragged.logit_indices.reshape(-1)
        logits = decoder.logits(hidden[gathered], machine)
        # The token drawn behind position p stands at p + 1.
        positions = ragged.positions()[gathered] + 1
        slots = jnp.repeat(batch.slots, num_candidates)
        mask = None if batch.token_mask is None else jnp.repeat(batch.token_mask, num_candidates, axis=0)
        with jax.named_scope("sample"):
            if self.return_logits:
                logits = machine.placement.gather(logits, "vocab", 1)
            else:
                size = self.config.vocab_size
                logits = gather_logits(logits, machine.placement, size, state, slots, positions, mask)
            drawn, logprobs = take_best(logits) if self.greedy else draw(logits, state, slots, positions, mask)
        per_row = lambda x: x.reshape(num_rows, num_candidates, *x.shape[1:])  # noqa: E731
        drawn = per_row(drawn)
        accepted = num_accepted(ragged.tokens[ragged.logit_indices], drawn)

        prompt = self._prompt(decoder, hidden, ragged, state, batch) if self.prompt else None
        kept = jnp.where(batch.draws, batch.slots, state.history.shape[0])
        history = state.history.at[kept[:, None], per_row(positions)].set(drawn, mode="drop")
        output = StepOutput(
            drawn, accepted, jax.tree.map(per_row, logprobs), prompt, per_row(logits) if self.return_logits else None
        )
        return output, cache, RowState(history, state.rows)

    def _loop(
        self, decoder: Decoder, cache: KVCache, state: RowState, batch: StepBatch
    ) -> tuple[StepOutput, KVCache, RowState]:
        """Decodes `num_steps` tokens of each row, or until every row has drawn a stop token."""
        num_rows, num_slots = batch.slots.shape[0], state.history.shape[0]
        empty = batch.slots >= num_slots
        stop_ids = state.rows.stop_ids[jnp.minimum(batch.slots, num_slots - 1)]

        def advance(carry: Loop) -> Loop:
            i, ended, columns, cache, state = carry
            now = replace(batch, kv_lens=jnp.where(empty, 0, batch.kv_lens + i))
            output, cache, state = self._once(decoder, cache, state, now)
            ended |= (output.tokens == stop_ids).any(axis=-1)
            columns = jax.tree.map(
                lambda column, new: jax.lax.dynamic_update_slice_in_dim(column, new, i, axis=1),
                columns,
                (output.tokens, output.logprobs),
            )
            return i + 1, ended, columns, cache, state

        def more(carry: Loop) -> Bool[Array, ""]:
            return (carry[0] < batch.num_steps) & ~carry[1].all()

        one, _, _ = jax.eval_shape(lambda: self._once(decoder, cache, state, batch))
        columns = jax.tree.map(
            lambda leaf: jnp.full((num_rows, self.max_steps, *leaf.shape[2:]), -1, leaf.dtype),
            (one.tokens, one.logprobs),
        )
        carry = (jnp.int32(0), empty, columns, cache, state)
        _, _, (tokens, logprobs), cache, state = jax.lax.while_loop(more, advance, carry)
        return StepOutput(tokens, jnp.ones(num_rows, jnp.int32), logprobs, None, None), cache, state

    def _read(self, state: RowState, batch: StepBatch) -> RaggedBatch:
        """The batch that the decoder takes: tokens out of the history, and where logits are wanted."""
        last = batch.query_starts[1:, None] - self.num_candidates + jnp.arange(self.num_candidates)
        ragged = RaggedBatch(
            tokens=jnp.zeros(self.num_tokens, jnp.int32),
            query_starts=batch.query_starts,
            kv_lens=batch.kv_lens,
            page_tables=batch.page_tables,
            logit_indices=jnp.clip(last, 0, self.num_tokens - 1),
            adapter_ids=batch.adapter_ids,
            max_query_len=1 if self.decode else None,
        )
        rows = ragged.rows()
        slots = jnp.where(rows < batch.slots.shape[0], batch.slots[jnp.minimum(rows, batch.slots.shape[0] - 1)], -1)
        tokens = state.history.at[slots, ragged.positions()].get(mode="fill", fill_value=0, wrap_negative_indices=False)
        return replace(ragged, tokens=tokens)

    def _prompt(
        self,
        decoder: Decoder,
        hidden: Float[Array, "T D"],
        ragged: RaggedBatch,
        state: RowState,
        batch: StepBatch,
    ) -> PromptOutput:
        with jax.named_scope("prompt"):
            machine = Machine(self.backend, self.placement)
            logits = machine.placement.gather(decoder.logits(hidden, machine), "vocab", 1)
            num_rows = batch.slots.shape[0]
            rows, inside = ragged.rows(), jnp.minimum(ragged.rows(), num_rows - 1)
            following = state.history.at[batch.slots[inside], ragged.positions() + 1].get(mode="fill", fill_value=0)
            pooled = hidden.astype(jnp.float32)
            return PromptOutput(
                token_logprobs(logits, following),
                jax.ops.segment_sum(pooled, rows, num_segments=num_rows + 1)[:num_rows],
                pooled[jnp.clip(batch.query_starts[1:] - 1, 0, self.num_tokens - 1)],
            )
