"""Sampling by numpy: which token a row draws from the noise that the device uses."""

from collections.abc import Mapping
from dataclasses import fields, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from distaff.models.row_state import SamplingRows
from distaff.models.sampling import Purpose, row_keys
from distaff.models.vocabulary_blocks import BLOCK

Row = Mapping[str, object]


def stack(rows: list[Row], size: int) -> SamplingRows:
    """Rows whose named fields are set; a list is filled up with the padding that is there."""
    table = SamplingRows.empty(len(rows), size)
    for i, row in enumerate(rows):
        for name, value in row.items():
            field = getattr(table, name)
            if name == "bad_words":
                for j, word in enumerate(value):  # pyright: ignore[reportArgumentType]
                    field[i, j, -len(word) :] = word
            elif isinstance(value, list):
                field[i, : len(value)] = value
            else:
                field[i] = value
    return table


def adjusted(
    logits: np.ndarray, row: SamplingRows, history: np.ndarray, position: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """Logits of a row behind refusals, penalties and bias, in fp64."""
    size = len(logits)
    x = logits.astype(np.float64)
    text = history[:position].tolist()

    def without(banned: set[int]) -> np.ndarray:
        masked = np.where(np.isin(np.arange(size), sorted(banned)), -np.inf, x)
        return masked if (masked > -np.inf).any() else x

    banned = set() if mask is None else set(np.flatnonzero(~mask).tolist())
    if row.restricted:
        words = len(row.allowed)
        banned |= {v for v in range(size) if not int(row.allowed[v % words]) >> v // words & 1}
    x = without(banned)
    words = [[int(v) for v in word if v >= 0] for word in row.bad_words]
    x = without({w[-1] for w in words if w and len(text) >= len(w) - 1 and text[len(text) - len(w) + 1 :] == w[:-1]})
    if position < row.min_lens:
        x = without({int(v) for v in row.stop_ids if v >= 0})
    for token in set(text):
        x[token] = x[token] / row.repetition_penalty if x[token] > 0 else x[token] * row.repetition_penalty
    answer = text[int(row.prompt_lens) :]
    for token in set(answer):
        x[token] -= row.presence_penalty + row.frequency_penalty * answer.count(token)
    for token, bias in zip(row.bias_ids, row.bias, strict=True):
        if token >= 0:
            x[token] += bias
    return x


def by_numpy(logits: np.ndarray, row: SamplingRows, history: np.ndarray, position: int, mask: np.ndarray | None) -> int:
    """The token of a row (fields without their first axis), computed the long way round in fp64."""
    size = len(logits)
    x = adjusted(logits, row, history, position, mask)
    if row.temperature == 0:
        return int(x.argmax())

    x, refusals = x / row.temperature, -1
    keep = x > -np.inf

    def shares() -> np.ndarray:
        weights = np.where(keep, np.exp(x - x[keep].max()), 0)
        return weights / weights.sum()

    def covering(order: np.ndarray, mass: float) -> np.ndarray:
        """The first of `order` whose shares reach `mass`."""
        total = np.cumsum(shares()[order])
        return order[: int((total < mass).sum()) + 1]

    if row.top_k > 0:
        keep &= x >= np.sort(x[keep])[-min(int(row.top_k), keep.sum())]
    if row.typical_p < 1:
        with np.errstate(divide="ignore", invalid="ignore"):
            surprise = -np.log(shares())
            entropy = np.nansum(shares() * surprise)
        keep &= np.isin(np.arange(size), covering(np.argsort(np.abs(surprise - entropy), kind="stable"), row.typical_p))  # pyright: ignore
    reachable = keep.copy()
    if row.top_p < 1:
        keep &= np.isin(np.arange(size), covering(np.argsort(-shares(), kind="stable"), row.top_p))  # pyright: ignore
    likely = np.exp(x - x[reachable].max()) >= min(row.min_p, 1)
    key = row_keys(
        jnp.asarray(row.seeds)[None], jnp.asarray(row.choices)[None], jnp.asarray([position]), Purpose.SAMPLE
    )[0]
    block = np.arange(size) // BLOCK
    num_blocks = block[-1] + 1
    while True:  # a block by its weight, then a token of it; one that has to go takes all below it with it
        refusals += 1
        blocks, tokens = map(np.asarray, gumbel(key, refusals, num_blocks))
        weights = np.where(reachable, np.exp(x - x[reachable].max()), 0)
        with np.errstate(divide="ignore"):
            chosen = (np.log(np.bincount(block, weights)) + blocks).argmax()
        token = int(np.where(reachable & (block == chosen), x + tokens.reshape(-1)[:size], -np.inf).argmax())
        if keep[token] and likely[token]:
            return token
        reachable &= (x > x[token]) & likely


@partial(jax.jit, static_argnums=2)
def gumbel(key: jax.Array, count: int, num_blocks: int) -> tuple[jax.Array, jax.Array]:
    """The noise of blocks, and that of tokens in each of them."""
    first, second = jax.random.split(jax.random.fold_in(key, count))
    within = jax.vmap(lambda block: jax.random.gumbel(jax.random.fold_in(second, block), (BLOCK,)))
    return jax.random.gumbel(first, (num_blocks,)), within(jnp.arange(num_blocks))


def take(rows: SamplingRows, i: int) -> SamplingRows:
    return SamplingRows(**{field.name: np.asarray(getattr(rows, field.name))[i] for field in fields(rows)})


def oracle(logits: np.ndarray, row: SamplingRows, history: np.ndarray, position: int,
           mask: np.ndarray | None = None) -> set[int]:  # fmt: skip
    """The tokens that are right: where a cut falls between two sums that fp32 cannot tell apart, either is."""
    nudged = [
        replace(row, top_p=row.top_p * (1 + by), typical_p=row.typical_p * (1 + by), min_p=row.min_p * (1 + by))
        for by in (0.0, 1e-5, -1e-5)
    ]
    return {by_numpy(logits, each, history, position, mask) for each in nudged}
