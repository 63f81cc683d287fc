"""A text on its way through a model, one layer at a time: what goes into each matrix, and what comes out behind."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ...backends.base import PyTree
from ...backends.quantized import Quantized, dequantized, is_quantized, round_tokens
from ...backends.rounded_tokens import RoundedTokens
from ..config import CacheSite, ModelConfig
from ..decoder import Layer, Weights, bind, flatten, shared_positions
from ..layers import Machine, ParamFactory
from ..placement import OneDevice
from .forward import Packed, Rows
from .layers import Key, places

_SAMPLE = 512
"""Tokens whose inputs are kept as they are; the same share of every window."""


@dataclass
class Inputs:
    """Of one matrix [N, K]: sums over all tokens that it was multiplied with.

    Attributes:
        products: x^T x, [K, K].
        largest: of |x|, [K].
        tokens: how many.
        rows: of some of these tokens; none where only sums are asked for.
    """

    products: Float[np.ndarray, "K K"]
    largest: Float[np.ndarray, "K"]
    tokens: int
    rows: list[Float[np.ndarray, "_ K"]] = field(default_factory=list)

    @classmethod
    def none(cls, width: int) -> "Inputs":
        return cls(np.zeros((width, width), np.float32), np.zeros(width, np.float32), 0)

    def add(self, products: Float[np.ndarray, "K K"], largest: Float[np.ndarray, "K"], tokens: int) -> None:
        self.products += products
        np.maximum(self.largest, largest, out=self.largest)
        self.tokens += tokens

    def scaled(self, scales: Float[np.ndarray, "K"]) -> "Inputs":
        """Of inputs that were divided by these."""
        return Inputs(
            self.products / np.outer(scales, scales),
            self.largest / scales,
            self.tokens,
            [rows / scales for rows in self.rows],
        )


class Passage:
    """The windows of a text between two layers of a model.

    Args:
        weights: whatever stands outside of the layers, in the checkpoint's form.
        windows: token ids, each read from nothing.
        samples: whether to keep the inputs of some tokens as they are.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, windows: Sequence[Sequence[int]], *, samples: bool = False
    ) -> None:
        self.config = config
        self._take = max(1, sum(map(len, windows)) // _SAMPLE) if samples else 0
        self._streams = [_embedded(config, weights, jnp.asarray(window, jnp.int32)) for window in windows]

    def watch(self, number: int, leaves: Mapping[str, PyTree], *, goes_on: bool = False) -> dict[str, list[Inputs]]:
        """What goes into each matrix of the layer that comes next, by its key; of experts a list, of others one.

        Args:
            leaves: of that layer, by their keys.
            goes_on: whether the windows are behind the layer then.
        """
        found: dict[str, list[Inputs]] = {}
        for place, stream in enumerate(self._streams):
            behind, seen = self._run(number, leaves, stream, watched=True)
            for each in seen:
                _add(found, each, self._take)
            if goes_on:
                self._streams[place] = behind
        return found

    def go_on(self, number: int, leaves: Mapping[str, PyTree]) -> None:
        """Puts the windows behind the layer that comes next."""
        self._streams = [self._run(number, leaves, stream, watched=False)[0] for stream in self._streams]

    def _run(
        self, number: int, leaves: Mapping[str, PyTree], stream: Float[Array, "T D"], *, watched: bool
    ) -> tuple[Float[Array, "T D"], list["_Seen"]]:
        layers = self.config.layers
        return _through(self.config, layers.index(layers[number]), watched, dict(leaves), stream)


def calibrate(
    config: ModelConfig,
    weights: Weights,
    windows: Sequence[Sequence[int]],
    *,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Key, Inputs]:
    """Inputs of every projection of every layer, experts left out, over some texts.

    Args:
        weights: in the checkpoint's form, in floating point.
        windows: token ids, each read from nothing.
        progress: called with layers read and their number.
    """
    passage, flat = Passage(config, weights, windows), flatten(weights)
    found: dict[Key, Inputs] = {}
    for layer, entries in enumerate(layer_paths(config)):
        leaves = {key: flat[path][number] for key, (path, number) in entries.items()}
        for key, inputs in passage.watch(layer, leaves, goes_on=True).items():
            if len(inputs) == 1:
                found[entries[key]] = inputs[0]
        progress(layer + 1, config.num_layers)
    return found


def layer_paths(config: ModelConfig) -> list[dict[str, Key]]:
    """Of every layer: where the leaf of each key lies."""
    found: list[dict[str, Key]] = [{} for _ in config.layers]
    for (key, layer), where in places(config).items():
        if layer is not None:
            found[layer][key] = where
    return found


@partial(jax.tree_util.register_dataclass, data_fields=["x", "products", "largest", "sizes"], meta_fields=["keys"])
@dataclass(frozen=True)
class _Seen:
    """One input, and the matrices that it went into. Of experts x alone, sorted by expert, and rows of each."""

    keys: tuple[str, ...]
    x: Float[Array, "T K"]
    products: Float[Array, "K K"] | None
    largest: Float[Array, "K"] | None
    sizes: Int[Array, "E"] | None


@dataclass(frozen=True)
class _Tagged:
    """A weight that tells which it is."""

    value: PyTree
    key: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


@dataclass(frozen=True)
class _Watching(Rows):
    """Remembers what is multiplied with each matrix."""

    into: dict[int, tuple[Array, Int[Array, "E"] | None, list[str]]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        assert not isinstance(x, RoundedTokens)  # which no norm or gate of this backend makes
        self._remember(x, weight.key, None)
        return super().linear(x, weight.value, equation, out_dtype=out_dtype)

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        self._remember(x, weight.key, group_sizes)
        return super().grouped_linear(x, weight.value, group_sizes)

    def _remember(self, x: Array, key: str, sizes: Int[Array, "E"] | None) -> None:
        # x is held, so that its id is nobody else's.
        self.into.setdefault(id(x), (x, sizes, []))[2].append(key)

    def inputs(self) -> list[_Seen]:
        found: list[_Seen] = []
        for x, sizes, keys in self.into.values():
            rows = x.reshape(len(x), -1).astype(jnp.float32)
            if sizes is not None:
                found.append(_Seen(tuple(keys), rows, None, None, sizes))
                continue
            products = jnp.einsum("TK,TJ->KJ", rows, rows, precision="highest")
            found.append(_Seen(tuple(keys), rows, products, jnp.abs(rows).max(axis=0), None))
        return found


def rounded_inputs(x: Float[Array, "T K"], kind: str) -> Float[Array, "T K"]:
    """What rounded activations stand for."""
    tokens = round_tokens(x, kind)
    return tokens.numbers.astype(jnp.float32) * tokens.scale[:, None]


@dataclass(frozen=True)
class _Expanded(Rows):
    """Multiplies what rounded numbers stand for, in fp32: XLA:CPU takes a hundred times as long for whole numbers."""

    def linear(
        self,
        x: Float[Array, "T *in"] | RoundedTokens,
        weight: PyTree,
        equation: str,
        *,
        out_dtype: DTypeLike | None = None,
    ) -> Float[Array, "T *out"]:
        assert not isinstance(x, RoundedTokens)  # which no norm or gate of this backend makes
        if is_quantized(weight):
            x, weight = self._expanded(x.reshape(len(x), -1), weight)
            weight = weight.reshape(*weight.shape[: len(equation.split("->")[1]) - 1], -1)
        return super().linear(x, weight, equation, out_dtype=out_dtype)

    def grouped_linear(
        self, x: Float[Array, "R I"], weight: PyTree, group_sizes: Int[Array, "E"]
    ) -> Float[Array, "R O"]:
        if is_quantized(weight):
            x, weight = self._expanded(x, weight)
        return super().grouped_linear(x, weight, group_sizes)

    def _expanded(self, x: Float[Array, "T K"], weight: Quantized) -> tuple[Array, Array]:
        rows = rounded_inputs(x, weight.kind) if weight.activations else x
        return rows, dequantized(weight, jnp.float32)


@partial(jax.jit, static_argnums=0)
def _embedded(config: ModelConfig, weights: Weights, tokens: Int[Array, "T"]) -> Float[Array, "T D"]:
    documents = jnp.zeros((1, len(tokens)), jnp.int32)
    machine = Machine(Rows(documents=documents), OneDevice())
    batch = Packed.of(tokens[None], documents, len(config.cache_groups))
    return bind(config, weights).embed(batch, machine).astype(jnp.float32)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _through(
    config: ModelConfig, number: int, watched: bool, leaves: dict[str, PyTree], x: Float[Array, "T D"]
) -> tuple[Float[Array, "T D"], list[_Seen]]:
    """One window through one layer, in fp32."""
    documents = jnp.zeros((1, len(x)), jnp.int32)
    backend = _Watching(documents=documents) if watched else _Expanded(documents=documents)
    machine = Machine(backend, OneDevice())
    positions = shared_positions(config, Packed.of(documents, documents, len(config.cache_groups)), machine)
    leaves = {key: leaf if is_quantized(leaf) else leaf.astype(jnp.float32) for key, leaf in leaves.items()}
    if watched:
        leaves = {key: _Tagged(leaf, key) if key.endswith(_MATRICES) else leaf for key, leaf in leaves.items()}
    layer = _bound(config, number, leaves)
    behind, _ = layer((x, (jnp.zeros(()),)), CacheSite(0, 0, 0), jnp.int32(0), positions, machine)
    return behind, backend.inputs() if isinstance(backend, _Watching) else []


_MATRICES = (".weight", "experts.gate", "experts.up", "experts.down")


def _bound(config: ModelConfig, number: int, leaves: Mapping[str, PyTree]) -> Layer:
    graph, state = nnx.split(_abstract(config, number))
    filled = [(path, variable.replace(leaves[".".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(filled))


@lru_cache(maxsize=64)
def _abstract(config: ModelConfig, number: int) -> Layer:
    def made() -> Layer:
        new = ParamFactory(nnx.Rngs(0), jnp.float32, {"D": config.embed_dim})
        return Layer(config.layers[number], config.residual_scale, new)

    return nnx.eval_shape(made)


def _add(found: dict[str, list[Inputs]], seen: _Seen, take: int) -> None:
    width = seen.x.shape[1]
    first = found.get(seen.keys[0])
    if first is None:
        first = [Inputs.none(width) for _ in range(1 if seen.sizes is None else len(seen.sizes))]
        found |= dict.fromkeys(seen.keys, first)
    if seen.sizes is None:
        first[0].add(np.asarray(seen.products), np.asarray(seen.largest), len(seen.x))
        if take:
            first[0].rows.append(np.asarray(seen.x[::take]))
        return
    rows, start = np.asarray(seen.x), 0
    for inputs, size in zip(first, np.asarray(seen.sizes), strict=True):
        own = rows[start : start + size]
        inputs.add(own.T @ own, np.abs(own).max(axis=0, initial=0), len(own))
        start += size
