"""What every checkpoint offers, whatever its format, and the named tensors that some formats are made of."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Shaped

from ..config import ModelConfig
from ..decoder import Weights, WeightSpec
from .byte_files import Location
from .runs import Box, Runs

if TYPE_CHECKING:
    from ..tokenizer import Tokenizer

type Place = Callable[[WeightSpec], jax.sharding.Sharding | Placed]
"""Where a leaf lives. Called once per leaf, before any byte of it is read."""

type Made = Callable[[WeightSpec, jax.Array], Any]
"""What becomes of each leaf as soon as it is there, such as a quantised one. It may delete the leaf. Called in
loading_order."""

type OnBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) as work goes on."""


@dataclass(frozen=True)
class Placed:
    """Where a leaf lives that is held with copies of its entries, or with zeros behind them.

    Args:
        sharding: of the leaf with copies and zeros.
        shape: of the leaf with copies and zeros.
        copies: how often each entry is held along each axis, beside itself.
    """

    sharding: jax.sharding.Sharding
    shape: tuple[int, ...]
    copies: tuple[int, ...]

    def arrange(self, leaf: Shaped[jax.Array, "..."]) -> Shaped[jax.Array, "..."]:
        """The leaf with its copies and zeros."""
        for axis, (size, copies) in enumerate(zip(self.shape, self.copies, strict=True)):
            if copies > 1:
                leaf = jnp.repeat(leaf, copies, axis=axis)
            if leaf.shape[axis] < size:
                leaf = jnp.pad(leaf, [(0, size - n if i == axis else 0) for i, n in enumerate(leaf.shape)])
        return leaf


def first_device(_: WeightSpec) -> jax.sharding.Sharding:
    """The default Place: everything whole, on the first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def loading_order(specs: Iterable[WeightSpec]) -> list[WeightSpec]:
    """Gains and biases first, since what becomes of matrices may depend on them; then the largest, while there is most
    room for it beside what becomes of it."""
    return sorted(specs, key=lambda spec: (spec.contracted > 0, -prod(spec.shape)))


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, before it is read."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # as the file calls it: "BF16", "Q4_1"
    file: Location
    readable: bool = True  # False: the type has no conversion to floating point


@runtime_checkable
class NamedTensors(Protocol):
    """Tensors under their Hugging Face names, readable a few rows at a time.

    A row is an entry of the first axis. Shapes and types are known without reading, and reading a block of rows, or a
    part of each of them, reads its own bytes and needs memory for that block alone.
    """

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """Every tensor, by name."""
        ...

    @property
    def local(self) -> bool:
        """Whether they are on this machine, so that many small reads cost little."""
        ...

    def read_rows(self, name: str, start: int, stop: int, within: Box = ()) -> np.ndarray:
        """Rows start..stop of a tensor, in a floating-point type.

        Args:
            name: of the tensor.
            start, stop: rows.
            within: start and stop along every further axis; () for all of them.
        """
        ...

    def planned(self, name: str, start: int, stop: int, within: Box = ()) -> list[Runs]:
        """The byte ranges that `read_rows` would ask its files for. Reads nothing."""
        ...


@runtime_checkable
class Checkpoint(Protocol):
    """A model on disk: configuration, weights, tokenizer."""

    @property
    def path(self) -> Location:
        """The folder or file that was opened."""
        ...

    @property
    def hf_config(self) -> dict[str, Any]:
        """The configuration under the names of a Hugging Face config.json."""
        ...

    @property
    def generation_config(self) -> dict[str, Any]:
        """eos_token_id and the like; empty when the checkpoint says nothing."""
        ...

    @property
    def stored_dtype(self) -> jnp.dtype:
        """The type that keeps what is stored: that of most bytes, float32 where weights are quantised."""
        ...

    def load_weights(
        self,
        config: ModelConfig,
        *,
        dtype: DTypeLike,
        place: Place | None = None,
        made: Made | None = None,
        keep: Collection[str] = (),
        progress: OnBytes | None = None,
    ) -> Weights:
        """Every weight in `dtype`, each where `place` says, or what `made` makes of it.

        Matrices that are stored as small numbers and scales come as what they stand for, those of the paths `keep` as
        Quantized (stored_numbers says which can).

        Raises:
            MissingTensorError, ExtraTensorError, ShapeMismatchError: the tensors do not fit `config`.
            UnsupportedQuantizationError: a tensor is stored in a type that cannot be read.
            CorruptCheckpointError: the file is damaged.
        """
        ...

    def tokenizer(self) -> "Tokenizer":
        """The checkpoint's tokenizer.

        Raises:
            TokenizerError: it has none, or it is damaged.
        """
        ...

    def copy_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files into a folder, in the form `transformers` reads; nothing where there is none."""
        ...
