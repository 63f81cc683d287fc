"""Sampling against numpy, and what the random key depends on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.models.sampling import Purpose, SamplingRows, num_accepted, row_keys, sample


def rows(batch: int, *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
         seeds: np.ndarray | None = None, token_mask: jax.Array | None = None) -> SamplingRows:  # fmt: skip
    words = np.stack([np.zeros(batch), np.arange(batch)], -1) if seeds is None else seeds
    return SamplingRows(
        jnp.full(batch, temperature, jnp.float32), jnp.full(batch, top_k, jnp.int32),
        jnp.full(batch, top_p, jnp.float32), jnp.full(batch, min_p, jnp.float32),
        jnp.asarray(words, jnp.uint32), jnp.zeros(batch, jnp.int32), token_mask,
    )  # fmt: skip


def kept_by_numpy(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Probabilities after top-k, top-p and min-p, one after the other, each on what the last one left."""
    scaled = logits.astype(np.float64) / temperature
    keep = np.ones(len(scaled), bool)
    if top_k:
        keep &= scaled >= np.sort(scaled)[-min(top_k, len(scaled))]

    def probabilities() -> np.ndarray:
        weights = np.where(keep, np.exp(scaled - scaled[keep].max()), 0)
        return weights / weights.sum()

    order = np.argsort(-probabilities(), kind="stable")
    before = np.cumsum(probabilities()[order]) - probabilities()[order]
    outside = order[(before >= top_p) & (np.arange(len(order)) > 0)]
    keep[outside] = False
    keep &= probabilities() >= min_p * probabilities().max()
    return probabilities()


DRAWS = 4096


@pytest.mark.parametrize(
    "params",
    [
        dict(temperature=0.7, top_k=0, top_p=1.0, min_p=0.0),
        dict(temperature=1.0, top_k=3, top_p=1.0, min_p=0.0),
        dict(temperature=1.3, top_k=0, top_p=0.8, min_p=0.0),
        dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.3),
        dict(temperature=1.5, top_k=7, top_p=0.9, min_p=0.1),
        dict(temperature=1.0, top_k=1, top_p=1.0, min_p=0.0),
        dict(temperature=1.0, top_k=0, top_p=1e-6, min_p=0.0),
    ],
)
def test_draws_follow_the_distribution_that_numpy_computes(params: dict[str, float]) -> None:
    logits = np.random.default_rng(3).normal(size=11).astype(np.float32) * 2
    want = kept_by_numpy(logits, **params)  # pyright: ignore[reportArgumentType]
    drawn = sample(jnp.tile(logits, (DRAWS, 1)), rows(DRAWS, **params), jnp.full(DRAWS, 5))  # pyright: ignore
    got = np.bincount(drawn, minlength=11) / DRAWS
    assert not got[want == 0].any()
    # Five standard deviations of a binomial share.
    np.testing.assert_array_less(np.abs(got - want), 5 * np.sqrt(want * (1 - want) / DRAWS) + 1e-9)


def test_temperature_zero_takes_the_best_and_ties_go_to_the_first() -> None:
    logits = jnp.asarray([[0.0, 2.0, 2.0], [3.0, 1.0, 2.0]])
    np.testing.assert_array_equal(sample(logits, rows(2, temperature=0.0), jnp.zeros(2, jnp.int32)), [1, 0])


def test_the_mask_wins_over_everything() -> None:
    mask = jnp.asarray([[False, True, False]])
    for temperature in (0.0, 5.0):
        drawn = sample(
            jnp.asarray([[9.0, 0.0, 9.0]]), rows(1, temperature=temperature, token_mask=mask), jnp.array([0])
        )
        assert drawn.tolist() == [1]


def test_a_row_draws_the_same_alone_and_among_others() -> None:
    logits = jax.random.normal(jax.random.key(0), (8, 50))
    together = sample(logits, rows(8, top_p=0.9), jnp.arange(8))
    for i in range(8):
        seeds = np.array([[0, i]])
        alone = sample(logits[i : i + 1], rows(1, top_p=0.9, seeds=seeds), jnp.array([i]))
        assert alone[0] == together[i]


def test_every_part_of_the_key_changes_it() -> None:
    def key(seed: tuple[int, int], choice: int, position: int, purpose: Purpose) -> tuple[int, ...]:
        seeds, choices, positions = jnp.asarray([seed], jnp.uint32), jnp.asarray([choice]), jnp.asarray([position])
        return tuple(jax.random.key_data(row_keys(seeds, choices, positions, purpose))[0].tolist())

    variants = [
        key((0, 1), 0, 7, Purpose.SAMPLE),
        key((0, 2), 0, 7, Purpose.SAMPLE),
        key((1, 1), 0, 7, Purpose.SAMPLE),
        key((0, 1), 1, 7, Purpose.SAMPLE),
        key((0, 1), 0, 8, Purpose.SAMPLE),
        key((0, 1), 0, 7, Purpose.ACCEPT),
        key((0, 1), 0, 7, Purpose.RESIDUAL),
    ]
    assert len(set(variants)) == len(variants)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.lists(st.integers(0, 2), min_size=6, max_size=6))
@settings(max_examples=50, deadline=None)
def test_accepted_counts_the_leading_guesses_that_were_drawn(candidates: list[int], drawn: list[int]) -> None:
    drawn = drawn[: len(candidates)]
    want = 1
    for guess, real in zip(candidates[1:], drawn, strict=False):
        if guess != real:
            break
        want += 1
    assert num_accepted(jnp.asarray([candidates]), jnp.asarray([drawn])).tolist() == [want]
