"""Trains a student checkpoint to what a teacher expects, measures both, and leaves it only where it is good enough."""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..backends.compile_cache import enable_compile_cache
from ..backends.errors import InvalidParameterError, UnsupportedError, UsageError
from ..models.checkpoints import Checkpoint, cache_dir, fingerprint, open_checkpoint, resolve_model
from ..models.checkpoints.export import text_only
from ..models.checkpoints.saving import new_path, save
from ..models.compress import check_unrounded
from ..models.compress.distill import Agreement, Leaves, Recipe, agreement, layer_pairs, update
from ..models.compress.layers import LayerRuns, restacked
from ..models.compress.packing import Rows, pack
from ..models.compress.sample_text import sample_text
from ..models.compress.training import Checkpoints, Progress, train
from ..models.config import ModelConfig
from ..models.decoder import Weights, WeightSpec, flatten, unflatten, weight_specs
from ..models.families import config_from_hf
from ..sharding.layout import Layout
from ..sharding.mesh import make_mesh
from ..sharding.parsing import parse_layout
from .compress import note
from .evaluate import ON_SAMPLE, Measured, Measurement, text_ids
from .quality import Quality

AXES: Final = ("data", "tensor")
"""Mesh axes that a training is split over."""


@dataclass(frozen=True)
class Trained:
    """How far a training has come: the last step, and how near the student was to the teacher when it was last
    measured (kl, acceptance, greedy)."""

    step: Progress
    held_out: dict[str, float]


@dataclass(frozen=True)
class Distilled:
    """What came out.

    Attributes:
        told: what was done.
        before, after: KL to the teacher in nats, acceptance rate and greedy agreement on the held-out text.
        quality: against the teacher in fp32.
    """

    told: dict[str, Any]
    before: dict[str, float]
    after: dict[str, float]
    quality: Quality


def distill_checkpoint(
    student: str,
    teacher: str,
    destination: Path,
    recipe: Recipe,
    *,
    texts: Sequence[str] | None = None,
    length: int = 256,
    layout: str | None = None,
    dtype: str = "bfloat16",
    measurement: Measurement = ON_SAMPLE,
    measure_every: int = 50,
    save_every: int = 100,
    overwrite: bool = False,
    offline: bool | None = None,
    progress: Callable[[Trained], None] = lambda done: None,
) -> Distilled:
    """Trains a student and writes it as safetensors.

    Until it is done its state is in a folder beside the destination, from which the same call goes on.

    Args:
        texts: to learn from; the calibration sample by default.
        length: tokens of a row that these are packed into.
        layout: of several devices, as parse_layout reads it; of AXES.
        dtype: to write, and to measure in.
        measurement: of the result against the teacher in fp32, nothing is written where it is beyond a limit; its text
            is measured with while it trains, too.
        measure_every, save_every: steps between measurements, and between states on disk.
        progress: called before the first step and behind each.

    Raises:
        DistaffError: any of its kinds; the destination is then untouched.
    """
    mine, theirs = (_open(name, offline) for name in (student, teacher))
    recipe = _checked(recipe, mine, theirs)
    _check_recipe(recipe, length)
    devices = None if layout is None else _mesh(layout, recipe)
    tokenizer = mine.checkpoint.tokenizer()
    measurement.prepare(mine.config, tokenizer)
    longest = min(mine.config.max_positions, theirs.config.max_positions)
    if length > longest:
        raise InvalidParameterError("length", length, f"at most {longest}, the models' own context")
    held_out = pack([text_ids(tokenizer, measurement.text, measurement.max_tokens)], length)
    learned = [sample_text("calibration")] if texts is None else list(texts)
    rows = pack([tokenizer.encode(each) for each in learned], length)
    if len(rows) < recipe.rows:
        raise InvalidParameterError(
            "train", f"{rows.num_tokens} tokens", f"a text of at least {recipe.rows} rows of {length} tokens"
        )
    if destination.exists() and not overwrite:
        raise UsageError(f"{destination}: found it there already, expected a new path; choose another, or --overwrite")
    enable_compile_cache(cache_dir() / "jax")

    models = {"student": fingerprint(mine.checkpoint.path), "teacher": fingerprint(theirs.checkpoint.path)}
    settings = {**models, "length": length, "text": _digest(rows), **asdict(recipe)}
    kept = Checkpoints(_state_folder(destination), json.loads(json.dumps(settings)))
    leaves = flatten(mine.weights(jnp.float32, devices))
    taught = theirs.weights(jnp.dtype(recipe.compute), devices)
    batch = None if devices is None else devices.batch

    def measure(leaves: Leaves) -> dict[str, float]:
        return _measured(mine.runs, theirs.runs, leaves, taught, held_out, recipe)

    before = measure(leaves)
    progress(Trained(Progress(0, recipe.steps, float("nan"), float("nan")), before))
    after = before

    def stepped(done: Progress, leaves: Leaves) -> None:
        nonlocal after
        if done.done % measure_every == 0 or done.done == recipe.steps:
            after = measure(leaves)
        progress(Trained(done, after))

    with new_path(destination, overwrite=overwrite) as folder:
        leaves = train(
            recipe,
            update(recipe, mine.runs, theirs.runs),
            leaves,
            taught,
            rows,
            batch=batch,
            checkpoints=kept,
            every=save_every,
            progress=stepped,
        )
        after = measure(leaves)
        del taught
        hf, described = text_only(mine.checkpoint.hf_config, mine.config)
        weights = restacked(_whole(leaves), mine.runs, mine.config)
        save(
            weights,
            config=described,
            source=mine.checkpoint,
            destination=folder,
            format="safetensors",
            dtype=dtype,
            described=hf,
        )
        del weights, leaves
        quality = measurement.of(Measured(str(folder), dtype=dtype), teacher, offline=offline)
        told = {
            "student": Path(student).name,
            "teacher": Path(teacher).name,
            "steps": recipe.steps,
            "trained_tokens": recipe.steps * recipe.rows * length,
            "text_tokens": rows.num_tokens,
            "kl_before": before["kl"],
            "kl_after": after["kl"],
            "acceptance_before": before["acceptance"],
            "acceptance": after["acceptance"],
            "greedy_agreement": after["greedy"],
        }
        past = _told(mine.checkpoint)
        note(folder, ({"before": past} if past else {}) | told | quality.to_dict())
    shutil.rmtree(kept.folder, ignore_errors=True)
    return Distilled(told, before, after, quality)


@dataclass(frozen=True)
class _Model:
    """A checkpoint of which nothing but the description was read."""

    name: str
    checkpoint: Checkpoint
    config: ModelConfig
    runs: LayerRuns

    def weights(self, dtype: jnp.dtype | Any, devices: "_Devices | None") -> Weights:
        """Its weights layer by layer, where they are to live."""
        made = restacked(self.checkpoint.load_weights(self.config, dtype=dtype), self.config, self.runs)
        if devices is None:
            return made
        specs = weight_specs(self.runs, dtype)
        return unflatten({path: devices.put(specs[path], leaf) for path, leaf in flatten(made).items()})


@dataclass(frozen=True)
class _Devices:
    """A layout on devices."""

    layout: Layout
    mesh: jax.sharding.Mesh

    @property
    def batch(self) -> Sharding:
        """Rows on the replicas."""
        return NamedSharding(self.mesh, PartitionSpec("data" if "data" in self.layout.sizes else None))

    def put(self, spec: WeightSpec, leaf: jax.Array) -> jax.Array:
        """A leaf where the layout has it; what does not divide is whole everywhere."""
        split = [
            axes if axes and size % self.layout.size(axes) == 0 else None
            for size, axes in zip(spec.shape, (self.layout.axes(name) for name in spec.axes), strict=True)
        ]
        return jax.device_put(leaf, NamedSharding(self.mesh, PartitionSpec(*split)))


def _mesh(text: str, recipe: Recipe) -> _Devices:
    layout = parse_layout(text, num_devices=len(jax.devices()))
    for axis in layout.sizes:
        if axis not in AXES:
            raise UnsupportedError(f"layout {text!r}: a training is split over {' and '.join(AXES)}, not over {axis}")
    at_once = recipe.rows // recipe.accumulate
    if at_once % layout.replicas:
        raise InvalidParameterError("layout", text, f"replicas that divide the {at_once} rows computed at once")
    return _Devices(layout, make_mesh(layout))


def _open(name: str, offline: bool | None) -> _Model:
    checkpoint = open_checkpoint(resolve_model(name, offline=offline))
    config = config_from_hf(checkpoint.hf_config, source=str(checkpoint.path))
    return _Model(name, checkpoint, config, LayerRuns.of(config))


def _checked(recipe: Recipe, student: _Model, teacher: _Model) -> Recipe:
    """The recipe, with a layer map where hidden states count and none was given.

    Raises:
        UsageError: these two cannot learn from each other.
    """
    check_unrounded(student.checkpoint)
    sample = sample_text("held_out")
    if student.config.vocab_size != teacher.config.vocab_size or student.checkpoint.tokenizer().encode(
        sample
    ) != teacher.checkpoint.tokenizer().encode(sample):
        raise UsageError(
            f"{student.name}: its tokens are others than those of {teacher.name}, expected one tokenizer; a student "
            "learns from a model of its own family"
        )
    if not recipe.hidden:
        if recipe.layer_map:
            raise UsageError("--layer-map pairs hidden states, which count nothing here; give --hidden-weight too")
        return recipe
    if student.config.embed_dim != teacher.config.embed_dim:
        raise UsageError(
            f"{student.name}: its hidden states have {student.config.embed_dim} numbers, those of {teacher.name} "
            f"{teacher.config.embed_dim}; leave --hidden-weight out"
        )
    mine, theirs = student.config.num_layers, teacher.config.num_layers
    removed = _told(student.checkpoint).get("removed", [])
    pairs = recipe.layer_map or layer_pairs(mine, theirs, removed)
    for own, other in pairs:
        if not (0 <= own < mine and 0 <= other < theirs):
            raise InvalidParameterError(
                "layer_map", f"{own}:{other}", f"layers below {mine} of the student and below {theirs} of the teacher"
            )
    return replace(recipe, layer_map=pairs)


def _check_recipe(recipe: Recipe, length: int) -> None:
    """Raises InvalidParameterError where a number is out of range."""
    for field, given, good, expected in (
        ("steps", recipe.steps, recipe.steps > 0, "at least 1"),
        ("rows", recipe.rows, recipe.rows > 0, "at least 1"),
        ("length", length, length > 1, "at least 2"),
        ("learning_rate", recipe.learning_rate, recipe.learning_rate > 0, "a number above 0"),
        ("temperature", recipe.temperature, recipe.temperature > 0, "a number above 0"),
        ("warmup", recipe.warmup, 0 <= recipe.warmup < 1, "a share of the steps, from 0 to below 1"),
        ("hidden_weight", recipe.hidden, recipe.hidden >= 0, "a number from 0"),
        (
            "accumulate",
            recipe.accumulate,
            recipe.accumulate > 0 and recipe.rows % recipe.accumulate == 0,
            f"a divisor of the {recipe.rows} rows",
        ),
    ):
        if not good:
            raise InvalidParameterError(field, given, expected)


def _measured(
    student: LayerRuns, teacher: LayerRuns, leaves: Leaves, taught: Weights, rows: Rows, recipe: Recipe
) -> dict[str, float]:
    """How near a student is to its teacher; whole parts of the rows alone, or all where there are fewer."""
    size, total = min(recipe.rows // recipe.accumulate, len(rows)), None
    for first in range(0, len(rows) - size + 1, size):
        part = [jnp.asarray(x[first : first + size]) for x in (rows.tokens, rows.documents)]
        found = agreement(student, teacher, leaves, taught, *part, recipe.compute)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    assert isinstance(total, Agreement)
    return total.means()


def _whole(leaves: Leaves) -> Weights:
    """On one device."""
    return unflatten({path: jax.device_put(jax.device_get(leaf)) for path, leaf in leaves.items()})


def _told(checkpoint: Checkpoint) -> dict[str, Any]:
    """What was done to a checkpoint before."""
    told = checkpoint.hf_config.get("distaff")
    return told if isinstance(told, dict) else {}


def _state_folder(destination: Path) -> Path:
    return destination.with_name(f"{destination.name}.training")


def _digest(rows: Rows) -> str:
    return hashlib.sha256(rows.tokens.tobytes() + rows.documents.tobytes()).hexdigest()[:16]
