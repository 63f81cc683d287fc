"""The loop of a training: which rows each step sees, what is kept of it on disk, and how it goes on from there."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jaxtyping import Int64

from ...backends.errors import UsageError
from ..checkpoints.json_file import read_object, write_object
from ..decoder import Weights
from .distill import Leaves, Recipe, Training, Update
from .packing import Rows

_SETTINGS = "settings.json"


@dataclass(frozen=True)
class Progress:
    """Of a training: steps done of all, and the last one's loss and divergence."""

    done: int
    total: int
    loss: float
    kl: float


def rows_of_step(recipe: Recipe, count: int, step: int) -> Int64[np.ndarray, "rows"]:
    """Which of `count` rows a step sees: every row once in an order of its own, then again in another one.

    It depends on the step's number alone, so that a training that goes on sees what it would have seen.
    """
    places = np.arange(step * recipe.rows, (step + 1) * recipe.rows)
    orders = {int(turn): np.random.default_rng([recipe.seed, int(turn)]).permutation(count) for turn in places // count}
    return np.asarray([orders[int(place // count)][place % count] for place in places], np.int64)


class Checkpoints:
    """Where a training's state is kept: two of them, so that one is whole whenever it is killed."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        """Raises UsageError where another training's state is in the folder."""
        self.folder, self.settings = folder.absolute(), settings
        found = self.folder / _SETTINGS
        if found.is_file():
            known = read_object(found)
            other = sorted(name for name in {*known, *settings} if known.get(name) != settings.get(name))
            if other:
                name = other[0]
                raise UsageError(
                    f"{folder}: holds the state of a training with {name} {known.get(name)!r}, this one has "
                    f"{settings.get(name)!r}; go on with that one, or remove the folder"
                )

    @contextmanager
    def opened(self) -> Iterator[ocp.CheckpointManager]:
        """Orbax's manager of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_object(self.folder / _SETTINGS, self.settings)
        options = ocp.CheckpointManagerOptions(max_to_keep=2, enable_async_checkpointing=False)
        logger = logging.getLogger("absl")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with ocp.CheckpointManager(self.folder, options=options) as manager:
                yield manager
        finally:
            logger.setLevel(level)


def train(
    recipe: Recipe,
    run: Update,
    leaves: dict[str, Any],
    teacher: Weights,
    rows: Rows,
    *,
    batch: Sharding | None = None,
    checkpoints: Checkpoints | None = None,
    every: int = 100,
    progress: Callable[[Progress, Leaves], None] = lambda done, leaves: None,
) -> dict[str, Any]:
    """Trains, from where the last run of it was stopped.

    Args:
        run: what `distill.update` made.
        leaves: the student's, in fp32, where they are to live; consumed.
        teacher: its weights, in the type that is computed in.
        rows: to learn from.
        batch: where each step's rows go.
        checkpoints: where state is kept, every `every` steps and at the end.
        progress: called behind each step, with all of the student's leaves.

    Returns:
        The student's leaves.
    """
    frozen = {path: leaf for path, leaf in leaves.items() if not recipe.trained(path)}
    state = Training.begin(recipe, leaves)
    del leaves
    if isinstance(batch, NamedSharding):  # what the optimizer counts is everywhere
        whole = NamedSharding(batch.mesh, PartitionSpec())
        state = jax.tree.map(lambda leaf: leaf if leaf.ndim else jax.device_put(leaf, whole), state)
    places = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = jax.jit(run, donate_argnums=0, out_shardings=(places, None))
    with checkpoints.opened() if checkpoints is not None else _nothing() as manager:
        if manager is not None and manager.latest_step() is not None:
            state = _restored(manager, state)
        for number in range(int(state.step), recipe.steps):
            chosen = rows_of_step(recipe, len(rows), number)
            tokens, documents = (jax.device_put(x[chosen], batch) for x in (rows.tokens, rows.documents))
            state, report = step(state, frozen, teacher, tokens, documents)
            done = Progress(number + 1, recipe.steps, float(report.loss), float(report.kl))
            if manager is not None and ((number + 1) % every == 0 or number + 1 == recipe.steps):
                manager.save(number + 1, args=ocp.args.PyTreeSave(state), force=True)
            progress(done, {**frozen, **state.leaves})
    return {**frozen, **state.leaves}


def _restored(manager: ocp.CheckpointManager, state: Training) -> Training:
    """The last state on disk, each leaf where `state` has it."""
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state)
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    found: Any = manager.restore(manager.latest_step(), args=ocp.args.PyTreeRestore(wanted, restore_args=arguments))
    return found


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
