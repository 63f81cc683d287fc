"""The pure step on a golden checkpoint: what a row gets must not depend on how it is batched, cut or guessed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.decoder import Weights
from distaff.models.families import config_from_hf
from distaff.models.kv_cache import KVCache, allocate_cache
from distaff.models.row_state import RowState
from distaff.models.step import Step, StepBatch, StepOutput

from .step_inputs import row_state, step_batch

GOLDEN = Path(__file__).parent.parent / "golden"
BACKEND = ReferenceBackend()
PAGE, PAGES, MAX_TOKENS, MAX_STEPS = 16, 4, 32, 8


class Model:
    """A golden model with windows of two kinds; row b of a step owns pages [4 b, 4 b + 4)."""

    def __init__(self, case: str) -> None:
        checkpoint = open_checkpoint(GOLDEN / case)
        self.config = config_from_hf(checkpoint.hf_config)
        self.weights = checkpoint.load_weights(self.config, dtype=jnp.float32)

    def cache(self, rows: int) -> KVCache:
        pages = [rows * PAGES] * len(self.config.cache_groups)
        return allocate_cache(self.config, BACKEND, num_pages=pages, page_size=PAGE, dtype=jnp.float32)

    def state(self, texts: Sequence[Sequence[int]], **fields: object) -> RowState:
        return row_state(texts, self.config.vocab_size, max_len=PAGE * PAGES, seeds=[1, 2], **fields)

    def run(
        self, cache: KVCache, state: RowState, spans: Sequence[tuple[int, int]], *, gather: int = 1,
        num_steps: int = 1, decode: bool = False, prompt: bool = False, **changes: Any,
    ) -> tuple[StepOutput, KVCache, RowState]:  # fmt: skip
        """Computes positions spans[b] of each row, in steps of one padded size."""
        tables = np.arange(len(spans) * PAGES).reshape(-1, PAGES).tolist()
        batch = step_batch(spans, tables, num_groups=len(self.config.cache_groups), num_steps=num_steps)
        step = Step(
            self.config, BACKEND, num_tokens=len(spans) if decode else MAX_TOKENS, decode=decode,
            max_steps=MAX_STEPS if decode else 1, num_candidates=gather, prompt=prompt, return_logits=not decode,
        )  # fmt: skip
        return _run(step, self.weights, cache, state, replace(batch, **changes))


@partial(jax.jit, static_argnums=0, compiler_options={"xla_backend_optimization_level": "0"})
def _run(
    step: Step, weights: Weights, cache: KVCache, state: RowState, batch: StepBatch
) -> tuple[StepOutput, KVCache, RowState]:
    return step(weights, cache, state, batch)


@pytest.fixture(scope="module", params=[pytest.param("gemma2", marks=pytest.mark.slow), "gpt_oss"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def texts(model: Model, *lens: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, model.config.vocab_size, n).tolist() for n in lens]


def test_a_row_among_ragged_neighbours_gets_the_logits_it_gets_alone(model: Model) -> None:
    many = texts(model, 5, 1, 23)
    spans = [(0, len(text)) for text in many]
    together, *_ = model.run(model.cache(3), model.state(many, temperature=1.0), spans)
    assert together.logits is not None and float(together.logits.std()) > 0.5
    for i, text in enumerate(many):
        alone, *_ = model.run(model.cache(1), model.state([text], temperature=1.0), [(0, len(text))])
        assert alone.logits is not None
        np.testing.assert_allclose(together.logits[i], alone.logits[0], atol=1e-4)
        assert together.tokens[i] == alone.tokens[0]


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 13], [19, 1]])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(model: Model, cuts: list[int]) -> None:
    (text,) = texts(model, 20)
    state = model.state([text])
    whole, *_ = model.run(model.cache(1), state, [(0, 20)])
    cache, start, pieces = model.cache(1), 0, None
    for cut in cuts:
        pieces, cache, _ = model.run(cache, state, [(start, start + cut)])
        start += cut
    assert pieces is not None and pieces.logits is not None and whole.logits is not None
    np.testing.assert_allclose(pieces.logits, whole.logits, atol=1e-4)


def draw_one_by_one(model: Model, text: list[int], count: int, **fields: object) -> list[int]:
    """Tokens drawn in single steps, each of which reads from the state what the last one left there."""
    state, cache, start, drawn = model.state([text], **fields), model.cache(1), 0, []
    for position in range(len(text), len(text) + count):
        output, cache, state = model.run(cache, state, [(start, position)])
        start = position
        drawn.append(int(output.tokens[0, 0]))
    assert state.history[0, : len(text) + count].tolist() == text + drawn
    return drawn


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 1.0])
def test_right_guesses_are_accepted_and_wrong_ones_end_the_run(model: Model, temperature: float) -> None:
    """Verifying k guesses in one step gives the tokens that k + 1 single steps give."""
    (text,) = texts(model, 9)
    drawn = draw_one_by_one(model, text, 4, temperature=temperature)
    _, cache, _ = model.run(model.cache(1), model.state([text]), [(0, 8)])
    right = model.state([text + drawn[:3]], temperature=temperature)
    good, *_ = model.run(cache, right, [(8, 12)], gather=4)
    assert good.tokens[0].tolist() == drawn and int(good.num_accepted[0]) == 4
    guess = (drawn[1] + 1) % model.config.vocab_size
    wrong = model.state([[*text, drawn[0], guess, drawn[2]]], temperature=temperature)
    bad, *_ = model.run(cache, wrong, [(8, 12)], gather=4)
    assert int(bad.num_accepted[0]) == 2 and bad.tokens[0, :2].tolist() == drawn[:2]


@pytest.mark.slow
def test_many_steps_in_one_call_draw_what_single_steps_draw(model: Model) -> None:
    many = texts(model, 9, 4, 17)
    fields = dict(temperature=1.0, num_logprobs=2)
    alone = [draw_one_by_one(model, text, 5, **fields) for text in many]
    first, cache, state = model.run(model.cache(3), model.state(many, **fields), [(0, len(text)) for text in many])
    spans = [(len(text), len(text) + 1) for text in many]
    rest, _, state = model.run(cache, state, spans, decode=True, num_steps=4)
    assert np.concatenate([first.tokens, rest.tokens[:, :4]], axis=1).tolist() == alone
    assert (rest.tokens[:, 4:] == -1).all() and (rest.logprobs.chosen[:, :4] < 0).all()
    for row, text, drawn in zip(state.history, many, alone, strict=True):
        assert row[: len(text) + 5].tolist() == text + drawn


def test_the_loop_ends_when_every_row_has_drawn_a_stop_token(model: Model) -> None:
    many = texts(model, 9, 4)
    alone = [draw_one_by_one(model, text, 5, temperature=4.0) for text in many]
    stops = np.full((2, 64), -1)
    ends = [next(i for i in (3, 2, 1) if drawn.index(drawn[i]) == i) for drawn in alone]
    stops[:, 0] = [drawn[end] for drawn, end in zip(alone, ends, strict=True)]
    state = model.state(many, temperature=4.0)
    state = replace(state, rows=replace(state.rows, stop_ids=stops.astype(np.int32)))
    _, cache, state = model.run(model.cache(2), state, [(0, len(text)) for text in many])
    spans = [(len(text), len(text) + 1) for text in many]
    output, *_ = model.run(cache, state, spans, decode=True, num_steps=MAX_STEPS)
    ran = max(ends)
    assert output.tokens[:, :ran].tolist() == [drawn[1 : ran + 1] for drawn in alone]
    assert (output.tokens[:, ran:] == -1).all()


def test_rows_that_do_not_draw_keep_their_text(model: Model) -> None:
    many = texts(model, 9, 4)
    state = model.state(many)
    draws = jnp.array([True, False])
    output, _, after = model.run(model.cache(2), state, [(0, 9), (0, 3)], draws=draws)
    assert after.history[0, 9] == output.tokens[0, 0]
    np.testing.assert_array_equal(after.history[1], state.history[1])


@pytest.mark.slow
def test_a_prompt_is_scored_and_pooled_token_by_token(model: Model) -> None:
    """Against the logits of the same positions, computed one prefix at a time."""
    many = texts(model, 6, 4)
    output, *_ = model.run(model.cache(2), model.state(many), [(0, 6), (0, 4)], prompt=True)
    assert output.prompt is not None
    chosen, at = output.prompt.logprobs, 0
    for row, text in enumerate(many):
        for end in range(1, len(text)):
            alone, *_ = model.run(model.cache(1), model.state([text]), [(0, end)])
            assert alone.logits is not None
            expected = jax.nn.log_softmax(alone.logits[0, 0])
            np.testing.assert_allclose(chosen.chosen[at], expected[text[end]], atol=1e-4)
            assert chosen.top_ids[at, 0] == expected.argmax()
            at += 1
        at += 1
        parts = [
            model.run(model.cache(1), model.state([text]), [(0, end)], prompt=True)[0].prompt
            for end in range(1, len(text) + 1)
        ]
        last = np.stack([part.hidden_last[0] for part in parts if part is not None])
        np.testing.assert_allclose(output.prompt.hidden_last[row], last[-1], atol=1e-4)
        np.testing.assert_allclose(output.prompt.hidden_sum[row], last.sum(axis=0), atol=1e-3)


def test_adapters_are_refused_until_a_model_holds_some(model: Model) -> None:
    with pytest.raises(UnsupportedError, match="adapter_ids"):
        model.run(model.cache(1), model.state([[1]]), [(0, 1)], adapter_ids=jnp.zeros(1, jnp.int32))
