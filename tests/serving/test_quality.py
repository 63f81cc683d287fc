"""Perplexity and divergence against numpy in float64, and a model against itself."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.errors import InvalidParameterError
from distaff.backends.select import select_backend
from distaff.models.checkpoints import open_checkpoint
from distaff.models.compress import parse_scheme, quantizer
from distaff.serving.quality import Forward, compare, greedy_divergence, windows

from ..golden.harness import GOLDEN, Golden

VOCABULARY = 50


@dataclass(frozen=True)
class Table:
    """Scores out of a table: they depend on the token before alone."""

    scores: np.ndarray
    window: int = 32

    def __call__(self, tokens: Sequence[int]) -> jax.Array:
        padded = [*tokens, *[0] * (self.window - len(tokens))]
        return jnp.asarray(self.scores[padded])


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x.astype(np.float64)).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("bos", [None, 7])
def test_figures_are_those_of_the_formulas(bos: int | None) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, VOCABULARY, 100).tolist()
    ours, theirs = (rng.normal(size=(VOCABULARY, VOCABULARY), scale=2).astype(np.float32) for _ in range(2))
    found = compare(Table(ours), ids, Table(theirs), bos=bos)
    pieces = list(windows(ids, 32, bos))
    before = np.concatenate([piece[:-1] for piece in pieces])
    after = np.concatenate([piece[1:] for piece in pieces])
    q, p = log_softmax(ours)[before], log_softmax(theirs)[before]
    kl = (np.exp(p) * (p - q)).sum(axis=1)
    assert found.tokens == len(after) == (96 if bos is None else 100)
    chosen = np.arange(len(after)), after
    wanted = {
        "perplexity": np.exp(-q[chosen].mean()),
        "reference_perplexity": np.exp(-p[chosen].mean()),
        "mean_kl": kl.mean(),
        "p99_kl": np.quantile(kl, 0.99),
        "max_kl": kl.max(),
        "top1_agreement": (q.argmax(axis=1) == p.argmax(axis=1)).mean(),
    }
    told = {key: value for key, value in found.to_dict().items() if value is not None}
    assert told == pytest.approx({"tokens": len(after), **wanted}, rel=1e-4)


def test_a_short_text_is_refused() -> None:
    table = Table(np.zeros((VOCABULARY, VOCABULARY), np.float32))
    with pytest.raises(InvalidParameterError, match="text is '63 tokens', expected at least 64"):
        compare(table, [1] * 63)


@pytest.mark.slow
def test_a_model_does_not_differ_from_itself_and_a_rounded_one_does() -> None:
    golden, backend = Golden(GOLDEN / "llama31"), select_backend("cpu")
    ids = (golden.tokens * 3)[:100]

    def forward(scheme: str | None, kv_dtype: str) -> Forward:
        made = None if scheme is None else quantizer(parse_scheme(scheme), golden.config)
        weights = open_checkpoint(golden.folder).load_weights(golden.config, dtype=jnp.float32, made=made)
        return Forward(golden.config, weights, backend, kv_dtype=kv_dtype, window=80)

    exact = forward(None, "float32")
    same = compare(forward(None, "float32"), ids, exact)
    assert same.mean_kl == 0 and same.top1_agreement == 1 and same.perplexity == same.reference_perplexity
    rounded = [forward(*each) for each in (("int8-weight", "float32"), ("int8", "int8"))]
    divergences = [compare(each, ids, exact).mean_kl for each in rounded]
    assert divergences[0] is not None and divergences[1] is not None
    assert 0 < divergences[0] < divergences[1] < 0.1
    assert greedy_divergence(exact, exact, ids) == (32, 32)
    alike, most = greedy_divergence(rounded[1], exact, ids, texts=2, most=12)
    starts = [piece[:40] for piece in list(windows(ids, 80, None))[:2]]
    both = [np.asarray([each.greedy(start, most) for start in starts]) for each in (rounded[1], exact)]
    same_until = [int(np.argmax([*row, True])) for row in both[0] != both[1]]
    assert most == 12 and alike == np.mean(same_until)
    assert golden.clear() == 32
    assert exact.greedy(golden.tokens[:48], 32) == golden.tokens[48:80]
