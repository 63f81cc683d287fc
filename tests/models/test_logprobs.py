"""Log-probabilities against numpy in fp64."""

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.logprobs import MAX_LOGPROBS, token_logprobs


def by_numpy(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("size", [1, 7, 20, 64, 1300, 5003])
def test_chosen_rank_and_most_likely_are_those_of_numpy(size: int) -> None:
    generator = np.random.default_rng(size)
    logits = (generator.normal(size=(12, size)) * 4).astype(np.float32)
    targets = generator.integers(0, size, 12).astype(np.int32)
    targets[:4] = logits[:4].argmax(axis=-1)
    got = token_logprobs(jnp.asarray(logits), jnp.asarray(targets))
    want = by_numpy(logits)
    np.testing.assert_allclose(got.chosen, want[np.arange(12), targets], atol=2e-5)
    above = (logits > logits[np.arange(12), targets][:, None]).sum(axis=-1)
    np.testing.assert_array_equal(got.rank, 1 + above)
    count = min(size, MAX_LOGPROBS)
    order = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    np.testing.assert_array_equal(got.top_ids[:, :count], order)
    np.testing.assert_allclose(got.top[:, :count], np.take_along_axis(want, order, axis=1), atol=2e-5)
    assert (np.asarray(got.top_ids[:, count:]) == -1).all()
    assert (np.asarray(got.top[:, count:]) == -np.inf).all()


def test_of_equals_the_smaller_id_comes_first_and_none_of_them_lowers_a_rank() -> None:
    logits = np.zeros((1, 3000), np.float32)
    logits[0, [2999, 40]] = 3
    got = token_logprobs(jnp.asarray(logits), jnp.asarray([2000]))
    assert got.top_ids[0].tolist() == [40, 2999, *range(18)]
    assert got.rank.tolist() == [3]


def test_ruled_out_tokens_have_no_probability_and_count_for_nothing() -> None:
    logits = np.full((1, 200), -np.inf, np.float32)
    logits[0, :3] = [1, 2, 1]
    got = token_logprobs(jnp.asarray(logits), jnp.asarray([1]))
    np.testing.assert_allclose(got.chosen, by_numpy(logits[:, :3])[:, 1], atol=1e-6)
    assert np.isneginf(got.top[0, 3:]).all() and not np.isnan(got.top).any()


def test_a_very_unlikely_token_keeps_its_logprob() -> None:
    logits = np.zeros((1, 100), np.float32)
    logits[0, 5] = 500
    got = token_logprobs(jnp.asarray(logits), jnp.asarray([6]))
    np.testing.assert_allclose(got.chosen, [-500], rtol=1e-6)
