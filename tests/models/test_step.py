"""The pure step on a golden checkpoint: what a row gets must not depend on how it is batched, cut or guessed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.reference import ReferenceBackend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.families import config_from_hf
from distaff.models.kv_cache import KVCache, RaggedBatch, allocate_cache
from distaff.models.sampling import SamplingRows
from distaff.models.step import Step, StepOutput

GOLDEN = Path(__file__).parent.parent / "golden"
BACKEND = ReferenceBackend()
PAGE, PAGES = 16, 4


class Model:
    """A golden model with windows of two kinds, and its step."""

    def __init__(self, case: str) -> None:
        checkpoint = open_checkpoint(GOLDEN / case)
        self.config = config_from_hf(checkpoint.hf_config)
        self.weights = checkpoint.load_weights(self.config, dtype=jnp.float32)
        self.step = jax.jit(Step(self.config, BACKEND, return_logits=True))

    def cache(self, rows: int) -> KVCache:
        pages = [rows * PAGES] * len(self.config.cache_groups)
        return allocate_cache(self.config, BACKEND, num_pages=pages, page_size=PAGE, dtype=jnp.float32)

    def run(
        self, cache: KVCache, texts: Sequence[Sequence[int]], starts: Sequence[int], *, gather: int = 1,
        padding: int = 0, temperature: float = 0.0, **changes: Any,
    ) -> tuple[StepOutput, KVCache]:  # fmt: skip
        """Appends a text to each row; row b owns pages [4 b, 4 b + 4)."""
        lens, rows = [len(text) for text in texts], len(texts)
        ends = np.cumsum([0, *lens])
        table = np.arange(rows * PAGES).reshape(rows, PAGES)
        batch = RaggedBatch(
            jnp.asarray([*np.concatenate(texts), *[0] * padding], jnp.int32),
            jnp.asarray(ends, jnp.int32),
            jnp.asarray(np.asarray(starts) + lens, jnp.int32),
            (jnp.asarray(table, jnp.int32),) * len(self.config.cache_groups),
            jnp.asarray([[end - gather + i for i in range(gather)] for end in ends[1:]], jnp.int32),
            **changes,
        )
        sampling = SamplingRows(
            jnp.full(rows, temperature, jnp.float32), jnp.zeros(rows, jnp.int32), jnp.ones(rows), jnp.zeros(rows),
            jnp.asarray([[1, 2]] * rows, jnp.uint32), jnp.zeros(rows, jnp.int32),
        )  # fmt: skip
        return self.step(self.weights, cache, batch, sampling)


@pytest.fixture(scope="module", params=["gemma2", "gpt_oss"])
def model(request: pytest.FixtureRequest) -> Model:
    return Model(request.param)


def texts(model: Model, *lens: int) -> list[list[int]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, model.config.vocab_size, n).tolist() for n in lens]


def test_a_row_among_ragged_neighbours_gets_the_logits_it_gets_alone(model: Model) -> None:
    many = texts(model, 5, 1, 23)
    together, _ = model.run(model.cache(3), many, [0, 0, 0], padding=3, temperature=1.0)
    assert together.logits is not None and float(together.logits.std()) > 0.5
    for i, text in enumerate(many):
        alone, _ = model.run(model.cache(1), [text], [0], temperature=1.0)
        assert alone.logits is not None
        np.testing.assert_allclose(together.logits[i], alone.logits[0], atol=1e-4)
        assert together.tokens[i] == alone.tokens[0]


@pytest.mark.parametrize("cuts", [[1] * 20, [7, 13], [19, 1]])
def test_a_prompt_in_pieces_gives_the_logits_of_the_whole(model: Model, cuts: list[int]) -> None:
    (text,) = texts(model, 20)
    whole, _ = model.run(model.cache(1), [text], [0], gather=1)
    cache, start, pieces = model.cache(1), 0, None
    for cut in cuts:
        pieces, cache = model.run(cache, [text[start : start + cut]], [start])
        start += cut
    assert pieces is not None and pieces.logits is not None and whole.logits is not None
    np.testing.assert_allclose(pieces.logits, whole.logits, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_right_guesses_are_accepted_and_wrong_ones_end_the_run(model: Model, temperature: float) -> None:
    """Verifying k guesses in one step gives the tokens that k + 1 single steps give."""
    (text,) = texts(model, 9)
    output, cache = model.run(model.cache(1), [text], [0], temperature=temperature)
    drawn = [int(output.tokens[0, 0])]
    for position in range(9, 12):
        output, cache = model.run(cache, [drawn[-1:]], [position], temperature=temperature)
        drawn.append(int(output.tokens[0, 0]))
    start = len(text) - 1
    _, cache = model.run(model.cache(1), [text[:-1]], [0])
    good, _ = model.run(cache, [[text[-1], *drawn[:3]]], [start], gather=4, temperature=temperature)
    assert good.tokens[0].tolist() == drawn and int(good.num_accepted[0]) == 4
    wrong = (drawn[1] + 1) % model.config.vocab_size
    bad, _ = model.run(cache, [[text[-1], drawn[0], wrong, drawn[2]]], [start], gather=4, temperature=temperature)
    assert int(bad.num_accepted[0]) == 2 and bad.tokens[0, :2].tolist() == drawn[:2]


def test_adapters_are_refused_until_a_model_holds_some(model: Model) -> None:
    with pytest.raises(UnsupportedError, match="adapter_ids"):
        model.run(model.cache(1), [[1]], [0], adapter_ids=jnp.zeros(1, jnp.int32))
