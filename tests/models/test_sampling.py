"""A whole draw against numpy: same noise, same token, whatever path it takes and whoever its neighbours are."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.models.logprobs import token_logprobs
from distaff.models.row_state import RowState, SamplingRows
from distaff.models.sampling import Purpose, draw, num_accepted, row_keys

from .sampling_oracle import Row, adjusted, oracle, stack, take

# One block; several; more than those that a top-k is looked for in. No multiple of a block's 64.
SIZES = [5, 300, 5003]
LENGTH = 24

draw_jit = jax.jit(draw)


def tokens_of(
    logits: np.ndarray, rows: SamplingRows, history: np.ndarray, positions: np.ndarray, **kwargs: object
) -> list[int]:
    """The draws, of eight rows at least (the last one again and again), so that few programs serve all tests."""
    count = len(logits)
    within = np.minimum(np.arange(max(count, 8)), count - 1)
    rows, history, logits, positions = jax.tree.map(
        lambda x: jnp.asarray(x)[within], (rows, history, logits, positions)
    )
    slots = jnp.arange(len(within), dtype=jnp.int32)
    return draw_jit(logits, RowState(jnp.asarray(history), rows), slots, positions, **kwargs)[0].tolist()[:count]


def normal(size: int, count: int, *, seed: int = 0, scale: float = 2) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(count, size)) * scale).astype(np.float32)


def seeds_of(seed: int) -> list[int]:
    return [seed & 0xFFFFFFFF, seed >> 32]


# One feature each, strong enough to show on logits of a standard deviation of 2 (or far less: flat).
FEATURES: dict[str, Row] = {
    "temperature": dict(temperature=1.5),
    "top_k": dict(temperature=2.0, top_k=3),
    "top_k beyond the candidates": dict(temperature=2.0, top_k=90),
    "top_k beyond the vocabulary": dict(temperature=2.0, top_k=100_000),
    "top_p": dict(temperature=1.5, top_p=0.7),
    "top_p tiny": dict(temperature=2.0, top_p=1e-6),
    "top_k and top_p": dict(temperature=2.0, top_k=40, top_p=0.6),
    "min_p": dict(temperature=1.5, min_p=0.4),
    "min_p low": dict(temperature=1.5, min_p=1e-4),
    "typical_p": dict(temperature=1.0, typical_p=0.4),
    "top_k and typical_p": dict(temperature=1.5, top_k=30, typical_p=0.5),
    "all cuts": dict(temperature=1.3, top_k=50, typical_p=0.8, top_p=0.8, min_p=0.05),
    "repetition_penalty": dict(repetition_penalty=3.0),
    "presence_penalty": dict(presence_penalty=9.0, prompt_lens=2),
    "frequency_penalty": dict(frequency_penalty=5.0, prompt_lens=2),
    "bias": dict(bias_ids=[1, 4], bias=[30.0, 31.0]),
    "bad_words": dict(bad_words=[[4], [2, 1]]),
    "min_lens": dict(min_lens=LENGTH, stop_ids=[0, 1, 2]),
    "allowed": dict(restricted=True, allowed=[0b11010]),
    "everything": dict(
        temperature=0.8, top_k=60, typical_p=0.9, top_p=0.9, min_p=0.02, repetition_penalty=1.2, presence_penalty=0.5,
        frequency_penalty=0.2, prompt_lens=3, bias_ids=[3], bias=[1.0], bad_words=[[4]], min_lens=9, stop_ids=[2],
    ),
}  # fmt: skip


@pytest.mark.parametrize("size", [*(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[:2]), SIZES[2]])
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("scale", [0.3, 4.0])
def test_each_parameter_draws_the_token_that_numpy_draws(size: int, feature: str, scale: float) -> None:
    count = 8
    logits = normal(size, count, seed=size, scale=scale)
    rows = stack([{**FEATURES[feature], "seeds": [i, 5]} for i in range(count)], size)
    history = np.random.default_rng(1).integers(0, min(size, 40), (count, LENGTH)).astype(np.int32)
    positions = np.arange(count, dtype=np.int32) + 3
    got = tokens_of(logits, rows, history, positions)
    for i in range(count):
        assert got[i] in oracle(logits[i], take(rows, i), history[i], int(positions[i])), i


CHANGES_NOTHING = {"top_k beyond the vocabulary", "min_p low", "top_k beyond the candidates"}


@pytest.mark.parametrize("feature", sorted(FEATURES.keys() - CHANGES_NOTHING))
def test_each_parameter_changes_the_tokens(feature: str) -> None:
    size, count = 300, 8
    logits = normal(size, count)
    logits[:, :5] += 5  # what the features name is likely
    history = np.tile(np.arange(4, dtype=np.int32), (count, LENGTH // 4))
    positions = np.full(count, 8, np.int32)

    def tokens(row: Row) -> list[int]:
        return tokens_of(logits, stack([{**row, "seeds": [i, 0]} for i in range(count)], size), history, positions)

    row = FEATURES[feature]
    only_temperature = {} if feature == "temperature" else {"temperature": row.get("temperature", 0)}
    assert tokens(row) != tokens(only_temperature)


@st.composite
def any_row(draw: st.DrawFn, size: int) -> Row:
    """Parameters of a row, most of them off most of the time."""

    def maybe(name: str, values: st.SearchStrategy) -> dict[str, object]:
        return {name: draw(values)} if draw(st.integers(0, 2)) == 0 else {}

    def between(low: float, high: float) -> st.SearchStrategy[float]:
        return st.floats(low, high).map(lambda x: float(np.float32(x)))

    token = st.integers(0, min(size, 40) - 1)
    row: dict[str, object] = {"seeds": seeds_of(draw(st.integers(0, 2**64 - 1))), "choices": draw(st.integers(0, 3))}
    row |= {"temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 3.0]))}
    row |= maybe("top_k", st.sampled_from([1, 2, 5, 40, 64, 65, 100, 1000, 100_000]))
    row |= maybe("top_p", between(0.01, 0.999))
    row |= maybe("min_p", between(1e-6, 1))
    row |= maybe("typical_p", between(0.05, 0.99))
    row |= maybe("repetition_penalty", between(0.5, 2))
    row |= maybe("presence_penalty", between(-2, 2))
    row |= maybe("frequency_penalty", between(-2, 2))
    row |= maybe("prompt_lens", st.integers(0, LENGTH))
    row |= maybe("min_lens", st.integers(0, LENGTH))
    row |= {"stop_ids": draw(st.lists(token, max_size=4))}
    row |= maybe("bad_words", st.lists(st.lists(token, min_size=1, max_size=3), max_size=3))
    row |= maybe("bias_ids", st.lists(token, min_size=1, max_size=4, unique=True))
    row |= {"bias": [1.5, -2.0, 4.0, 9.0]}
    if draw(st.integers(0, 3)) == 0:
        row |= {"restricted": True, "allowed": [draw(st.integers(0, 2**5 - 1))]}
    return row


@pytest.mark.slow
@given(st.data())
@settings(max_examples=30)
def test_any_mix_of_rows_draws_what_numpy_draws_and_each_row_what_it_draws_alone(data: st.DataObject) -> None:
    check_any_mix(data, data.draw(st.sampled_from(SIZES[1:])))


@pytest.mark.slow
@given(st.data())
@settings(max_examples=300)
def test_any_mix_of_rows_at_length(data: st.DataObject) -> None:
    check_any_mix(data, data.draw(st.sampled_from(SIZES)))


def check_any_mix(data: st.DataObject, size: int) -> None:
    count = 9  # more than one group of the rows that get a look of their own at the vocabulary
    seed = data.draw(st.integers(0, 99))
    scale = data.draw(st.sampled_from([0.1, 1.0, 6.0]))
    logits = normal(size, count, seed=seed, scale=scale)
    if data.draw(st.booleans()):
        logits = np.round(logits * 2) / 2  # ties
    if data.draw(st.booleans()):
        logits[:, ::3] = -np.inf
    generator = np.random.default_rng(seed)
    history = generator.integers(0, min(size, 8), (count, LENGTH)).astype(np.int32)
    positions = generator.integers(0, LENGTH, count).astype(np.int32)
    rows = stack([data.draw(any_row(size)) for _ in range(count)], size)
    together = tokens_of(logits, rows, history, positions)
    for i in range(count):
        # Of tied tokens (a bias may tie some) at the end of a top-p or typical-p cut, numpy's sort keeps some and ours
        # all.
        row, position = take(rows, i), int(positions[i])
        left = adjusted(logits[i], row, history[i], position)
        left = left[left > -np.inf]
        tied = len(np.unique(left)) < len(left) and (row.top_p < 1 or row.typical_p < 1)
        if not tied:
            assert together[i] in oracle(logits[i], row, history[i], position), i
    for i in data.draw(st.permutations(range(count)))[:2]:
        one = slice(i, i + 1)
        alone = tokens_of(logits[one], jax.tree.map(lambda x: x[one], rows), history[one], positions[one])  # noqa: B023
        assert alone == together[i : i + 1]


@pytest.mark.parametrize("size", [pytest.param(11, marks=pytest.mark.slow), 5003])
@pytest.mark.parametrize(
    "row",
    [dict(temperature=0.7), dict(temperature=1.0, top_p=0.8), dict(temperature=1.3, top_k=4, min_p=0.1),
     dict(temperature=1.0, typical_p=0.6)],
)  # fmt: skip
def test_draws_follow_the_distribution(size: int, row: Row) -> None:
    """A chi-square test with fixed seeds: eleven tokens, beside which a large vocabulary's others do not count."""
    count = 4096
    logits = np.full(size, -30, np.float32)
    likely = np.random.default_rng(3).permutation(size)[:11]
    logits[likely] = normal(11, 1, seed=5)[0]
    rows = jax.tree.map(lambda field: np.repeat(field, count, axis=0), stack([row], size))
    rows = replace(rows, choices=np.arange(count, dtype=np.int32))
    history = np.zeros((count, 1), np.int32)
    drawn = np.asarray(tokens_of(np.tile(logits, (count, 1)), rows, history, np.zeros(count, np.int32)))
    shares = np.exp(logits[likely].astype(np.float64) / float(row["temperature"]))  # pyright: ignore
    kept = np.isin(likely, drawn)
    shares = shares[kept] / shares[kept].sum()
    got = np.array([(drawn == token).sum() for token in likely[kept]])
    assert got.sum() == count
    statistic = ((got - count * shares) ** 2 / (count * shares)).sum()
    # The 99.9th percentile of a chi-square distribution (Wilson and Hilferty 1931).
    freedom = max(int(kept.sum()) - 1, 1)
    assert statistic < freedom * (1 - 2 / (9 * freedom) + 3.09 * np.sqrt(2 / (9 * freedom))) ** 3


def test_a_refused_logit_of_zero_is_out() -> None:
    """The next float above zero is one that processors take for zero: of three tokens, top-p 0.7 leaves two."""
    count = 4096
    rows = stack([dict(temperature=1.0, top_p=0.7)], 3)
    rows = jax.tree.map(lambda field: np.repeat(field, count, axis=0), rows)
    rows = replace(rows, choices=np.arange(count, dtype=np.int32))
    logits = np.tile(np.array([1, 0, -1], np.float32), (count, 1))
    drawn = np.asarray(tokens_of(logits, rows, np.zeros((count, 1), np.int32), np.zeros(count, np.int32)))
    assert set(drawn) == {0, 1}
    assert abs((drawn == 1).mean() - 1 / (1 + np.e)) < 0.03


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_empty_rows_change_nothing_and_do_no_harm(size: int) -> None:
    rows = stack([{**FEATURES["all cuts"], "seeds": [i, 0], "num_logprobs": 3} for i in range(3)], size)
    state = RowState(jnp.zeros((3, LENGTH), jnp.int32), jax.tree.map(jnp.asarray, rows))
    logits = jnp.asarray(normal(size, 5))
    slots, positions = jnp.asarray([3, 1, 3, 0, 3]), jnp.asarray([0, 4, -5, 4, 10_000])
    some, logprobs = draw_jit(logits.at[0].set(jnp.nan), state, slots, positions)
    alone, alone_logprobs = draw_jit(logits[jnp.asarray([1, 3])], state, slots[jnp.asarray([1, 3])], jnp.full(2, 4))
    assert some[jnp.asarray([1, 3])].tolist() == alone.tolist()
    np.testing.assert_array_equal(logprobs.top_ids[jnp.asarray([1, 3])], alone_logprobs.top_ids)
    # With nobody there, nothing is computed for them.
    nobody = draw_jit(logits, state, jnp.full(5, 3), positions)
    assert nobody[0].tolist() == logits.argmax(axis=-1).tolist()
    assert not nobody[1].chosen.any()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_a_draw_from_nothing_sensible_ends(size: int, value: float) -> None:
    for feature in ("temperature", "top_p", "all cuts", "min_p", "typical_p"):
        for logits in (np.full((2, size), value, np.float32), normal(size, 2)):
            logits[0, 1] = value
            rows = stack([FEATURES[feature], FEATURES[feature]], size)
            tokens = tokens_of(logits, rows, np.zeros((2, LENGTH), np.int32), np.zeros(2, np.int32))
            assert all(0 <= token < size for token in tokens)


def test_the_lowest_temperature_is_greedy() -> None:
    logits = normal(300, 4)
    rows = stack([dict(temperature=1e-38)] * 4, 300)
    tokens = tokens_of(logits, rows, np.zeros((4, LENGTH), np.int32), np.zeros(4, np.int32))
    assert tokens == logits.argmax(axis=-1).tolist()


def test_logprobs_are_of_the_raw_logits_and_of_the_token_drawn() -> None:
    size = 300
    logits = normal(size, 8)
    rows = stack([{**FEATURES["everything"], "num_logprobs": n} for n in (-1, 0, 5, 20) * 2], size)
    state = RowState(jnp.zeros((8, LENGTH), jnp.int32), jax.tree.map(jnp.asarray, rows))
    tokens, logprobs = draw_jit(jnp.asarray(logits), state, jnp.arange(8), jnp.full(8, 8))
    want = token_logprobs(jnp.asarray(logits), tokens)
    jax.tree.map(np.testing.assert_array_equal, logprobs, want)


def test_slots_pick_the_rows() -> None:
    size = 300
    rows = stack([dict(temperature=1.0, seeds=[i, 0]) for i in range(8)], size)
    state = RowState(jnp.zeros((8, LENGTH), jnp.int32), jax.tree.map(jnp.asarray, rows))
    logits = jnp.tile(jnp.asarray(normal(size, 1)), (8, 1))
    straight = draw_jit(logits, state, jnp.arange(8), jnp.zeros(8, jnp.int32))[0]
    slots = jnp.asarray([5, 0, 3, 3, 1, 2, 7, 6])
    assert draw_jit(logits, state, slots, jnp.zeros(8, jnp.int32))[0].tolist() == straight[slots].tolist()


@pytest.mark.parametrize("feature", ["temperature", "top_k", "all cuts", "allowed"])
def test_a_mask_wins_over_everything(feature: str) -> None:
    size, count = 300, 8
    mask = np.zeros((count, size), bool)
    mask[:, [1, 3, 200]] = True
    logits = normal(size, count)
    logits[:, 7] = 50
    row = FEATURES[feature]
    if feature == "allowed":
        row = {**row, "allowed": [0, 1, 0, 1, 1]}  # the first bits of ten words: tokens 1, 3 and 4
    rows = stack([row] * count, size)
    tokens = tokens_of(
        logits, rows, np.zeros((count, LENGTH), np.int32), np.zeros(count, np.int32), token_mask=jnp.asarray(mask)
    )
    assert set(tokens) <= {1, 3, 200}


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
@settings(max_examples=50)
def test_accepted_counts_the_leading_guesses_that_were_drawn(candidates: list[int], drawn: list[int]) -> None:
    drawn = drawn[: len(candidates)]
    want = 1
    for guess, real in zip(candidates[1:], drawn, strict=False):
        if guess != real:
            break
        want += 1
    assert num_accepted(jnp.asarray([candidates]), jnp.asarray([drawn])).tolist() == [want]
