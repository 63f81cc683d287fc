"""Penalties against numpy, token by token."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.models.penalties import penalise, uses_penalties
from distaff.models.row_state import SamplingRows

SIZE, LENGTH = 50, 700


def rows(**fields: object) -> SamplingRows:
    count = len(next(iter(fields.values())))  # pyright: ignore[reportArgumentType]
    arrays = {name: np.asarray(value, getattr(SamplingRows.empty(1, 1), name).dtype) for name, value in fields.items()}
    return jax.tree.map(jnp.asarray, replace(SamplingRows.empty(count, SIZE), **arrays))


def by_numpy(logits: np.ndarray, text: np.ndarray, prompt_len: int, repetition: float, presence: float,
             frequency: float) -> np.ndarray:  # fmt: skip
    logits = logits.astype(np.float64)
    for token in set(text.tolist()):
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    answer = text[prompt_len:].tolist()
    for token in set(answer):
        logits[token] -= presence + frequency * answer.count(token)
    return logits


def test_penalties_are_those_of_numpy_at_every_length() -> None:
    generator = np.random.default_rng(0)
    positions = np.array([0, 1, 5, 255, 256, 257, 600, LENGTH, 30, 30], np.int32)
    prompt_lens = np.array([0, 1, 2, 100, 256, 1, 599, 3, 30, 40], np.int32)
    count = len(positions)
    settings = dict(
        repetition_penalty=generator.uniform(0.5, 2, count), presence_penalty=generator.normal(size=count),
        frequency_penalty=generator.normal(size=count),
    )  # fmt: skip
    logits = generator.normal(size=(count, SIZE)).astype(np.float32)
    logits[:, 7] = -np.inf
    history = generator.integers(0, 20, (count, LENGTH)).astype(np.int32)
    history[:, -1] = 49
    each = rows(prompt_lens=prompt_lens, **settings)
    got = penalise(jnp.asarray(logits), each, jnp.asarray(history), jnp.asarray(positions))
    for i in range(count):
        values = [float(value[i]) for value in settings.values()]
        want = by_numpy(logits[i], history[i, : positions[i]], int(prompt_lens[i]), *values)
        np.testing.assert_allclose(got[i], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "on_prompt", "on_answer", "twice"),
    [
        ("repetition_penalty", 2.0, 0.5, 0.5, 0.5),
        ("presence_penalty", 0.25, 1.0, 0.75, 0.75),
        ("frequency_penalty", 0.25, 1.0, 0.75, 0.5),
    ],
)
def test_each_counts_what_it_should(field: str, value: float, on_prompt: float, on_answer: float, twice: float) -> None:
    history = jnp.asarray([[0, 0, 1, 2, 2, 9, 9]])  # prompt 0 0, answer 1 2 2; 9 is beyond the position
    each = rows(prompt_lens=[2], **{field: [value]})
    got = penalise(jnp.ones((1, SIZE)), each, history, jnp.asarray([5]))
    assert got[0, :3].tolist() == [on_prompt, on_answer, twice]
    assert (np.asarray(got[0, 3:]) == 1).all()


def test_a_negative_logit_is_multiplied() -> None:
    got = penalise(-jnp.ones((1, SIZE)), rows(repetition_penalty=[2.0]), jnp.asarray([[3]]), jnp.asarray([1]))
    assert got[0, 3] == -2 and got[0, 4] == -1


def test_uses_penalties_says_which_rows_change() -> None:
    each = rows(repetition_penalty=[1, 2, 1, 1], presence_penalty=[0, 0, -1, 0], frequency_penalty=[0, 0, 0, 0.1])
    assert uses_penalties(each).tolist() == [False, True, True, True]
