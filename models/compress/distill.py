"""Distillation (Hinton et al., arXiv 1503.02531): a student learns what a teacher expects at every place of a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from ...backends.base import PyTree
from ..decoder import Weights, unflatten
from .forward import Read, read
from .layers import LayerRuns
from .packing import PADDING

type Leaves = Mapping[str, Float[Array, "..."]]
"""Weights by their paths."""


@dataclass(frozen=True)
class Recipe:
    """How a student is trained.

    Args:
        steps: updates of its weights.
        rows: texts' rows that each update sees.
        accumulate: parts that these are computed in, one after the other; divides them.
        learning_rate: the highest; it rises to that from 0 over `warmup` of all steps, and falls along a cosine to a
            tenth of it.
        temperature: that both models' logits are divided by.
        hidden: how much the difference of hidden states counts beside the divergence.
        layer_map: pairs of layers, the student's and the teacher's, whose outputs are to be the same.
        decay: of weights, as AdamW has it; norms and biases have none.
        clip: largest norm of a step's gradient.
        compute: type that both models compute in; the student's weights and what Adam knows of them are fp32.
        remember: keep what derivatives take rather than compute it twice.
        frozen: parts of the model that stay as they are: "embedder" and the like.
        seed: of the order of rows.
    """

    steps: int
    rows: int = 8
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: float = 0.05
    temperature: float = 1.0
    hidden: float = 0.0
    layer_map: tuple[tuple[int, int], ...] = ()
    decay: float = 0.0
    clip: float = 1.0
    compute: str = "float32"
    remember: bool = True
    frozen: tuple[str, ...] = ()
    seed: int = 0

    def schedule(self) -> optax.Schedule:
        """The learning rate of each step."""
        warmup = min(max(round(self.warmup * self.steps), 1), self.steps)
        return optax.warmup_cosine_decay_schedule(
            0.0, self.learning_rate, warmup, max(self.steps, warmup + 1), 0.1 * self.learning_rate
        )

    def optimizer(self) -> optax.GradientTransformation:
        def matrices(leaves: Leaves) -> dict[str, bool]:
            return {path: path.endswith(("weight", "table", "gate", "up", "down")) for path in leaves}

        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            # The schedule counts from 0: its first step would change nothing.
            optax.adamw(lambda count: self.schedule()(count + 1), b2=0.95, weight_decay=self.decay, mask=matrices),
        )

    def trained(self, path: str) -> bool:
        """Whether a leaf changes."""
        return path.split(".")[0] not in self.frozen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Training:
    """What a step changes: the leaves that are trained, in fp32, and what the optimizer knows of them."""

    leaves: dict[str, Any]
    optimizer: PyTree
    step: Any

    @classmethod
    def begin(cls, recipe: Recipe, leaves: dict[str, Any]) -> "Training":
        trained = {path: leaf for path, leaf in leaves.items() if recipe.trained(path)}
        return cls(trained, recipe.optimizer().init(trained), jnp.int32(0))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepReport:
    """Of one update: the mean loss over its tokens and the divergence in it, in nats, and the gradient's norm."""

    loss: Float[Array, ""]
    kl: Float[Array, ""]
    gradient: Float[Array, ""]


type Update = Callable[[Training, Leaves, Weights, Int[Array, "B S"], Int[Array, "B S"]], tuple[Training, StepReport]]
"""State, frozen leaves of the student, the teacher, tokens, documents."""


def divergence(student: Float[Array, "*T V"], teacher: Float[Array, "*T V"], temperature: float) -> Float[Array, "*T"]:
    """KL(teacher || student) at a temperature, times its square so that gradients keep their size."""
    p, q = (jax.nn.log_softmax(logits / temperature, axis=-1) for logits in (teacher, student))
    return temperature**2 * (jnp.exp(p) * (p - q)).sum(axis=-1)


def apart(
    student: Float[Array, "L B S D"],
    teacher: Float[Array, "L2 B S D"],
    layer_map: tuple[tuple[int, int], ...],
) -> Float[Array, "B S"]:
    """The mean, over pairs of layers, of |student - teacher|^2 / |teacher|^2 at each token, behind these layers."""
    mine, theirs = (jnp.asarray([pair[i] for pair in layer_map]) + 1 for i in (0, 1))
    wanted = teacher[theirs].astype(jnp.float32)
    error = jnp.square(student[mine].astype(jnp.float32) - wanted).sum(axis=-1)
    return (error / jnp.maximum(jnp.square(wanted).sum(axis=-1), 1e-6)).mean(axis=0)


def layer_pairs(student: int, teacher: int, removed: Sequence[int] = ()) -> tuple[tuple[int, int], ...]:
    """Layers of two models whose outputs mean the same.

    Args:
        student, teacher: how many layers they have.
        removed: those of the teacher that the student is without, where it is the rest: each layer then puts out what
            its next one has come to expect. Otherwise layers are spread evenly.
    """
    kept = [layer for layer in range(teacher) if layer not in removed]
    if removed and len(kept) == student:
        return tuple(enumerate([*(layer - 1 for layer in kept[1:]), teacher - 1]))
    return tuple((layer, (layer + 1) * teacher // student - 1) for layer in range(student))


def update(recipe: Recipe, student: LayerRuns, teacher: LayerRuns) -> Update:
    """One update of a student, to be compiled.

    The loss is the mean over all tokens of all parts, whatever each of them has of padding.
    """
    compute = jnp.dtype(recipe.compute)

    def losses(
        leaves: Leaves, frozen: Leaves, wanted: Read, tokens: Int[Array, "B S"], documents: Int[Array, "B S"]
    ) -> tuple[Float[Array, ""], Float[Array, ""]]:
        weights = unflatten({path: leaf.astype(compute) for path, leaf in {**frozen, **leaves}.items()})
        found = read(student, weights, tokens, documents, remember=recipe.remember)
        real = documents != PADDING
        kl = jnp.where(real, divergence(found.logits, wanted.logits, recipe.temperature), 0).sum()
        loss = kl
        if recipe.hidden:
            distance = apart(found.hidden, wanted.hidden, recipe.layer_map)
            loss += recipe.hidden * jnp.where(real, distance, 0).sum()
        return loss, kl

    def run(
        training: Training, frozen: Leaves, teacher_weights: Weights, tokens: Array, documents: Array
    ) -> tuple[Training, StepReport]:
        real = jnp.maximum((documents != PADDING).sum(), 1)

        def part(carry: PyTree, now: tuple[Array, Array]) -> tuple[PyTree, None]:
            wanted = jax.lax.stop_gradient(read(teacher, teacher_weights, *now))
            (loss, kl), slopes = jax.value_and_grad(losses, has_aux=True)(training.leaves, frozen, wanted, *now)
            return jax.tree.map(jnp.add, carry, (loss, kl, slopes)), None

        def turns(x: Int[Array, "B S"]) -> Int[Array, "parts B_part S"]:
            # Rows go to the parts in turn, so that devices that hold neighbouring rows have some of each part.
            return jnp.swapaxes(x.reshape(-1, recipe.accumulate, x.shape[1]), 0, 1)

        nothing = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, training.leaves))
        if recipe.accumulate == 1:
            (loss, kl, slopes), _ = part(nothing, (tokens, documents))
        else:
            (loss, kl, slopes), _ = jax.lax.scan(part, nothing, (turns(tokens), turns(documents)))
        slopes = jax.tree.map(lambda slope: slope / real, slopes)
        optimizer = recipe.optimizer()
        changes, state = optimizer.update(slopes, training.optimizer, training.leaves)
        leaves: Any = optax.apply_updates(training.leaves, changes)
        report = StepReport(loss / real, kl / real, optax.tree.norm(slopes))
        return Training(leaves, state, training.step + 1), report

    return run


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Agreement:
    """Sums over tokens of how near a student is to a teacher.

    Attributes:
        tokens: how many.
        kl: KL(teacher || student) in nats.
        acceptance: of min(p_student, p_teacher) over the vocabulary: the share of the student's drafts that speculative
            sampling would accept (Leviathan et al., arXiv 2211.17192).
        greedy: tokens for which both find the same next one the most likely.
    """

    tokens: Any
    kl: Any
    acceptance: Any
    greedy: Any

    def means(self) -> dict[str, float]:
        """Each of them for a token."""
        return {name: float(getattr(self, name) / self.tokens) for name in ("kl", "acceptance", "greedy")}


@partial(jax.jit, static_argnums=(0, 1, 6))
def agreement(
    student: LayerRuns,
    teacher: LayerRuns,
    weights: Leaves,
    teacher_weights: Weights,
    tokens: Int[Array, "B S"],
    documents: Int[Array, "B S"],
    compute: DTypeLike,
) -> Agreement:
    """How near a student is to a teacher on some rows."""
    own = unflatten({path: leaf.astype(compute) for path, leaf in weights.items()})
    mine = read(student, own, tokens, documents).logits
    theirs = read(teacher, teacher_weights, tokens, documents).logits
    real = documents != PADDING
    p, q = jax.nn.softmax(theirs, axis=-1), jax.nn.softmax(mine, axis=-1)

    def total(each: Float[Array, "B S"] | Bool[Array, "B S"]) -> Float[Array, ""]:
        return jnp.where(real, each, 0).astype(jnp.float32).sum()

    return Agreement(
        real.sum().astype(jnp.float32),
        total(divergence(mine, theirs, 1.0)),
        total(jnp.minimum(p, q).sum(axis=-1)),
        total(mine.argmax(axis=-1) == theirs.argmax(axis=-1)),
    )
