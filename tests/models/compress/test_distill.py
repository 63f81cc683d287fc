"""The loss against numpy, updates against optax's own on one whole batch, and trainings that are stopped."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from distaff.backends.errors import UsageError
from distaff.models.compress.distill import Recipe, Training, agreement, apart, divergence, layer_pairs, update
from distaff.models.compress.forward import read
from distaff.models.compress.layers import LayerRuns, restacked
from distaff.models.compress.packing import PADDING, pack
from distaff.models.compress.prune_structure import shortened
from distaff.models.compress.training import Checkpoints, Progress, rows_of_step, train
from distaff.models.decoder import Weights, flatten, unflatten

from ...golden.harness import GOLDEN, Golden


class Pair:
    """A teacher of three layers, and a student of the first and the last of them."""

    def __init__(self) -> None:
        golden = Golden(GOLDEN / "llama31")
        self.teacher = LayerRuns.of(golden.config)
        self.taught = restacked(golden.weights(), golden.config, self.teacher)
        made, small = shortened(golden.weights(), golden.config, [0, 2])
        self.student = LayerRuns.of(small)
        self._leaves = flatten(restacked(made, small, self.student))
        self.rows = pack([golden.tokens[:30], golden.tokens[30:47], golden.tokens[10:22]] * 3, 20)

    def leaves(self) -> dict[str, Any]:
        """Of the student, as copies that may be consumed."""
        return {path: jnp.array(leaf, copy=True) for path, leaf in self._leaves.items()}

    def run(self, recipe: Recipe, **given: Any) -> tuple[dict[str, Any], list[Progress]]:
        seen: list[Progress] = []
        rows = given.pop("rows", self.rows)
        run = update(recipe, self.student, self.teacher)
        leaves = train(
            recipe, run, self.leaves(), self.taught, rows, progress=lambda done, _: seen.append(done), **given
        )
        return leaves, seen


@cache
def pair() -> Pair:
    return Pair()


def numpy_kl(student: np.ndarray, teacher: np.ndarray, temperature: float) -> np.ndarray:
    p, q = (scipy.special.softmax(x.astype(np.float64) / temperature, axis=-1) for x in (teacher, student))
    return temperature**2 * scipy.special.rel_entr(p, q).sum(axis=-1)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_divergence_is_scipys_and_its_slope_is_known(temperature: float) -> None:
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(5, 40)).astype(np.float32) * 3 for _ in range(2))
    found = divergence(jnp.asarray(student), jnp.asarray(teacher), temperature)
    np.testing.assert_allclose(found, numpy_kl(student, teacher, temperature), rtol=1e-4, atol=1e-5)
    optaxs = temperature**2 * optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(student / temperature), jax.nn.log_softmax(teacher / temperature)
    )
    np.testing.assert_allclose(found, optaxs, rtol=1e-4, atol=1e-5)
    slope = jax.grad(lambda x: divergence(x, jnp.asarray(teacher), temperature).sum())(jnp.asarray(student))
    p, q = (scipy.special.softmax(x / temperature, axis=-1) for x in (teacher, student))
    np.testing.assert_allclose(slope, temperature * (q - p), atol=1e-5)


def test_agreement_counts_tokens_that_are_real() -> None:
    it = pair()
    tokens, documents = (jnp.asarray(x[-2:]) for x in (it.rows.tokens, it.rows.documents))
    assert (np.asarray(documents) == PADDING).any()
    leaves = it.leaves()
    found = agreement(it.student, it.teacher, leaves, it.taught, tokens, documents, "float32")
    mine = np.asarray(read(it.student, unflatten(leaves), tokens, documents).logits)
    theirs = np.asarray(read(it.teacher, it.taught, tokens, documents).logits)
    real = np.asarray(documents) != PADDING
    p, q = (scipy.special.softmax(x, axis=-1)[real] for x in (theirs, mine))
    means = found.means()
    assert means["acceptance"] == pytest.approx(np.minimum(p, q).sum(axis=-1).mean(), rel=1e-4)
    assert means["greedy"] == pytest.approx((p.argmax(axis=-1) == q.argmax(axis=-1)).mean())
    assert means["kl"] == pytest.approx(numpy_kl(mine, theirs, 1.0)[real].mean(), rel=1e-4)
    same = agreement(it.teacher, it.teacher, flatten(it.taught), it.taught, tokens, documents, "float32").means()
    assert same == {"kl": pytest.approx(0, abs=1e-6), "acceptance": pytest.approx(1, abs=1e-5), "greedy": 1.0}


def test_an_update_is_adam_on_the_mean_over_all_tokens() -> None:
    """By an optimizer of its own, on the loss written out; in parts and in one it is the same."""
    it = pair()
    recipe = Recipe(steps=4, rows=4, temperature=2.0, hidden=0.3, layer_map=((0, 0), (1, 2)), learning_rate=0.01)
    tokens, documents = (x[:4] for x in (it.rows.tokens, it.rows.documents))
    documents = np.where(np.arange(20) < np.asarray([[20], [9], [3], [20]]), documents, PADDING)
    real = documents != PADDING
    wanted = read(it.teacher, it.taught, jnp.asarray(tokens), jnp.asarray(documents))

    def loss(leaves: dict[str, Any]) -> jax.Array:
        found = read(it.student, unflatten(leaves), jnp.asarray(tokens), jnp.asarray(documents))
        kl = divergence(found.logits, wanted.logits, 2.0)
        far = sum(
            jnp.square(found.hidden[own + 1] - wanted.hidden[other + 1]).sum(axis=-1)
            / jnp.square(wanted.hidden[other + 1]).sum(axis=-1)
            for own, other in recipe.layer_map
        )
        return jnp.where(real, kl + 0.3 * far / 2, 0).sum() / real.sum()

    first, slopes = jax.value_and_grad(loss)(it.leaves())
    norm = np.sqrt(sum(float(np.square(x).sum()) for x in jax.tree.leaves(slopes)))
    for parts in (1, 2):
        run = jax.jit(update(replace(recipe, accumulate=parts), it.student, it.teacher))
        state, report = run(Training.begin(recipe, it.leaves()), {}, it.taught, tokens, documents)
        assert float(report.loss) == pytest.approx(float(first), rel=1e-5)
        assert float(report.gradient) == pytest.approx(norm, rel=1e-3)
        for path, leaf in it.leaves().items():
            # The first update of Adam is the learning rate (here a warm-up of one step) by the slope's sign.
            slope = np.asarray(slopes[path]) / max(norm, 1.0)
            step = slope / (np.abs(slope) + 1e-8)
            clear = np.abs(slope) > 1e-6
            moved = (np.asarray(leaf) - np.asarray(state.leaves[path])) / 0.01
            np.testing.assert_allclose(moved[clear], step[clear], atol=0.02, err_msg=path)


def test_hidden_states_are_compared_by_the_map() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = rng.normal(size=(3, 2, 4, 8)).astype(np.float32), rng.normal(size=(5, 2, 4, 8)).astype(np.float32)
    found = apart(jnp.asarray(mine), jnp.asarray(theirs), ((0, 1), (1, 3)))
    wanted = [
        np.square(mine[a] - theirs[b]).sum(axis=-1) / np.square(theirs[b]).sum(axis=-1) for a, b in ((1, 2), (2, 4))
    ]
    np.testing.assert_allclose(found, np.mean(wanted, axis=0), rtol=1e-5)


def test_a_training_comes_nearer_and_frozen_leaves_stay() -> None:
    it = pair()
    leaves, seen = it.run(Recipe(steps=30, rows=4, learning_rate=0.01, frozen=("embedder",), decay=0.01))
    assert seen[-1].kl < 0.3 * seen[0].kl and [each.done for each in seen] == list(range(1, 31))
    before = it.leaves()
    np.testing.assert_array_equal(leaves["embedder.table"], before["embedder.table"])
    assert not np.array_equal(leaves["final_norm.scale"], before["final_norm.scale"])
    assert leaves.keys() == before.keys()


@pytest.mark.slow
def test_bf16_learns_with_master_weights_in_fp32() -> None:
    it = pair()
    taught: Weights = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), it.taught)
    recipe = Recipe(steps=30, rows=4, learning_rate=0.01, compute="bfloat16")
    seen: list[float] = []
    leaves = train(
        recipe,
        update(recipe, it.student, it.teacher),
        it.leaves(),
        taught,
        it.rows,
        progress=lambda done, _: seen.append(done.kl),
    )
    assert seen[-1] < 0.35 * seen[0]
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype("float32")}


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_goes_on_as_if_it_had_not_been(tmp_path: Path, at: int) -> None:
    """It is killed behind step `at`; its state is kept every second step."""
    it = pair()
    recipe = Recipe(steps=6, rows=4, learning_rate=0.01, seed=3)
    wanted, losses = it.run(recipe)
    settings = {"student": "a", "steps": 6}

    def die(done: Progress, _: object) -> None:
        if done.done == at:
            raise Killed

    run = update(recipe, it.student, it.teacher)
    with pytest.raises(Killed):
        train(
            recipe,
            run,
            it.leaves(),
            it.taught,
            it.rows,
            checkpoints=Checkpoints(tmp_path / "state", settings),
            every=2,
            progress=die,
        )
    found, rest = it.run(recipe, checkpoints=Checkpoints(tmp_path / "state", settings), every=2)
    assert [each.done for each in rest] == list(range(at // 2 * 2 + 1, 7))
    assert [each.loss for each in rest] == [each.loss for each in losses[at // 2 * 2 :]]
    for path, leaf in wanted.items():
        np.testing.assert_array_equal(found[path], leaf)
    with pytest.raises(UsageError, match="a training with steps 6, this one has 7"):
        Checkpoints(tmp_path / "state", {"student": "a", "steps": 7})


def test_layers_are_paired_by_what_comes_behind_them() -> None:
    """Layer 1's output goes into what was layer 4; of six layers, without any that were removed, into each second."""
    assert layer_pairs(4, 6, [2, 3]) == ((0, 0), (1, 3), (2, 4), (3, 5))
    assert layer_pairs(2, 3, [2]) == ((0, 0), (1, 2))
    assert layer_pairs(3, 6) == layer_pairs(3, 6, [1, 2]) == ((0, 1), (1, 3), (2, 5))
    assert layer_pairs(3, 3) == ((0, 0), (1, 1), (2, 2))


def test_every_row_is_seen_once_in_each_turn() -> None:
    recipe = Recipe(steps=10, rows=3)
    seen = np.concatenate([rows_of_step(recipe, 7, step) for step in range(7)])
    for turn in range(3):
        assert sorted(seen[7 * turn : 7 * turn + 7]) == list(range(7))
    assert list(seen[:7]) != list(seen[7:14])
    assert list(rows_of_step(replace(recipe, seed=1), 7, 0)) != list(seen[:3])


def test_the_rate_rises_and_falls_along_a_cosine() -> None:
    recipe = Recipe(steps=100, learning_rate=2.0, warmup=0.1)
    rate = recipe.schedule()
    assert [float(jnp.asarray(rate(step))) for step in (0, 5, 10)] == pytest.approx([0, 1, 2])
    half = 0.2 + (2 - 0.2) * 0.5
    assert [float(jnp.asarray(rate(step))) for step in (55, 100)] == pytest.approx([half, 0.2], rel=1e-4)
