"""The building blocks of a decoder: parameters with logical axes, einsum projections, norms, embeddings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..backends.base import Backend
from ..backends.rounded_tokens import RoundedTokens
from .config import NormConfig
from .placement import Placement

LOGICAL_AXES: Mapping[str, str] = {
    "D": "embed",
    "I": "embed_in",
    "F": "mlp",
    "N": "heads",
    "K": "kv_heads",
    "H": "head_dim",
    "V": "vocab",
    "E": "expert",
    "M": "router",
    "O": "one",
    "S": "positions",
}
"""What each letter of a weight's shape is called in a layout's rules."""


@dataclass(frozen=True)
class ParamFactory:
    """Makes parameters: `sizes` gives the length of each letter, `stack` a leading layer axis where there is one."""

    rngs: nnx.Rngs
    dtype: DTypeLike
    sizes: Mapping[str, int]
    stack: int | None = None

    def __call__(
        self, letters: str, initializer: jax.nn.initializers.Initializer, *, contracted: int = 0
    ) -> nnx.Param[Array]:
        """A parameter shaped by its letters, e.g. "NHD", that carries its logical axes and, of a matrix, how many of
        the last ones a product sums over."""
        shape = tuple(self.sizes[letter] for letter in letters)
        axes = tuple(LOGICAL_AXES[letter] for letter in letters)
        if self.stack is not None:
            shape, axes = (self.stack, *shape), ("layers", *axes)
        value = initializer(self.rngs.params(), shape, self.dtype)
        return nnx.Param(value, logical=axes, contracted=contracted)

    def sized(self, **sizes: int) -> "ParamFactory":
        """The same factory with more letters, or other lengths for some."""
        return replace(self, sizes={**self.sizes, **sizes})


@dataclass(frozen=True)
class Machine:
    """What runs the maths and where: the two contracts that every layer is called with.

    `rows` counts the first tokens that matter, the others being padding (None: all of them). With `counts_load` the
    cache ends with what each layer's experts have had to do, to be counted further (models.expert_load).
    """

    backend: Backend
    placement: Placement
    rows: Int[Array, ""] | None = None
    counts_load: bool = False


class Einsum(nnx.Module):
    """A projection named by its einsum, e.g. "TD,NHD->TNH"; weights are [out..., in...] as checkpoints store them.

    `residual` marks an output that joins the residual stream; a layout may keep just its own tokens (T_own) of it.
    """

    def __init__(self, equation: str, new: ParamFactory, *, bias: bool = False, residual: bool = False) -> None:
        operands, out = equation.split("->")
        operand, weight = operands.split(",")
        self.equation = equation
        self.contracted = tuple(LOGICAL_AXES[letter] for letter in operand if letter not in out)
        self.residual = residual
        self.weight = new(weight, nnx.initializers.normal(0.02), contracted=len(self.contracted))
        self.bias = new(out.removeprefix("T"), nnx.initializers.zeros) if bias else None

    def __call__(self, x: Float[Array, "T *in"] | RoundedTokens, machine: Machine) -> Float[Array, "T_own *out"]:
        return self._whole(machine.backend.linear(x, self.weight.get_value(), self.equation), machine)

    def _whole(self, y: Float[Array, "T *out"], machine: Machine) -> Float[Array, "T_own *out"]:
        """The projection, of what this device's part of the weight gives."""
        for axis in self.contracted:
            y = machine.placement.reduce(y, axis, scatter=self.residual)
        # After the reduction, so that a split contraction adds the bias once.
        return y if self.bias is None else y + self.bias.get_value()

    @staticmethod
    def each(
        projections: "Sequence[Einsum]", x: Float[Array, "T *in"] | RoundedTokens, machine: Machine
    ) -> tuple[Float[Array, "T_own *out"], ...]:
        """Several projections of one x."""
        weights, equations = [each.weight.get_value() for each in projections], [each.equation for each in projections]
        products = machine.backend.linears(x, weights, equations)
        return tuple(each._whole(y, machine) for each, y in zip(projections, products, strict=True))


class Norm(nnx.Module):
    """RMSNorm (arXiv 1910.07467) or LayerNorm (arXiv 1607.06450) over the letters given, in fp32."""

    def __init__(self, config: NormConfig, letters: str, new: ParamFactory) -> None:
        self.config = config
        self.logical = tuple(LOGICAL_AXES[letter] for letter in letters)
        self.size = math.prod(new.sizes[letter] for letter in letters)
        self.scale = new(letters, nnx.initializers.constant(1.0 - config.offset))
        self.bias = new(letters, nnx.initializers.zeros) if config.bias else None

    def __call__(self, x: Float[Array, "*T"], machine: Machine) -> Float[Array, "*T"]:
        scale = self.scale.get_value()
        if self._plain(machine):
            return machine.backend.rms_norm(x, scale, offset=self.config.offset, epsilon=self.config.eps)
        y = x.astype(jnp.float32)
        if self.config.kind == "layer":
            y -= self._mean(y, machine)
        # Not rsqrt: XLA:CPU approximates that in vectors only, so that its bits depend on the number of tokens.
        y *= jnp.sqrt(1 / (self._mean(jnp.square(y), machine) + self.config.eps))
        y *= scale.astype(jnp.float32) + self.config.offset
        if self.bias is not None:
            y += self.bias.get_value().astype(jnp.float32)
        return y.astype(x.dtype)

    def for_products(
        self, x: Float[Array, "T D"], projections: Sequence[Einsum], machine: Machine
    ) -> Float[Array, "T D"] | RoundedTokens:
        """What these projections, and nothing else, are given of x: already rounded where they would all round it
        alike and the backend does it in one go."""
        if projections and self._plain(machine):
            scale, weights = self.scale.get_value(), [projection.weight.get_value() for projection in projections]
            offset, epsilon = self.config.offset, self.config.eps
            rounded = machine.backend.rounded_norm(x, scale, weights, offset=offset, epsilon=epsilon)
            if rounded is not None:
                return rounded
        return self(x, machine)

    def _plain(self, machine: Machine) -> bool:
        """Whether it is RMSNorm over axes that lie whole on each device: what backends have kernels for."""
        whole = all(machine.placement.parts(axis) == 1 for axis in self.logical)
        return self.config.kind == "rms" and self.bias is None and whole

    def _mean(self, y: Array, machine: Machine) -> Array:
        """The mean over the normalised axes, parts of which may lie on other devices."""
        total = y.sum(tuple(range(-len(self.logical), 0)), keepdims=True)
        for axis in self.logical:
            total = machine.placement.reduce(total, axis)
        return total / self.size


class Embedding(nnx.Module):
    """A [V, D] table, read by token (`__call__`) or scored against (`logits`); the vocabulary may be split."""

    def __init__(self, letters: str, new: ParamFactory) -> None:
        self.letters = letters
        self.table = new(letters, nnx.initializers.normal(0.02), contracted=1)

    def __call__(self, ids: Int[Array, "T"], machine: Machine) -> Float[Array, "T D"]:
        table = self.table.get_value()
        size = table.shape[0]
        local = ids - machine.placement.offset(LOGICAL_AXES[self.letters[0]], size)
        here = (local >= 0) & (local < size)
        rows = machine.backend.embed(table, jnp.where(here, local, 0))
        return machine.placement.reduce(jnp.where(here[:, None], rows, 0), LOGICAL_AXES[self.letters[0]])

    def logits(self, x: Float[Array, "T D"], machine: Machine) -> Float[Array, "T V"]:
        """Scores in fp32, of the part of the vocabulary that is here."""
        row, width = self.letters
        equation = f"T{width},{row}{width}->T{row}"
        logits = machine.backend.linear(x, self.table.get_value(), equation, out_dtype=jnp.float32)
        return machine.placement.reduce(logits, LOGICAL_AXES[width])
