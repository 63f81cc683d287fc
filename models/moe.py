"""Mixture of experts: a router picks some for each token; tokens are sorted by expert and multiplied in groups."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from .config import MoeConfig
from .layers import Einsum, Machine, ParamFactory
from .mlp import Mlp, activate


def route(
    logits: Float[Array, "T E"], config: MoeConfig, correction: Float[Array, "E"] | None
) -> tuple[Float[Array, "T top_k"], Int[Array, "T top_k"]]:
    """The weights and the numbers of each token's experts, by config.router, in fp32."""
    logits = logits.astype(jnp.float32)
    match config.router:
        case "topk_softmax":
            best, experts = jax.lax.top_k(logits, config.top_k)
            return jax.nn.softmax(best, axis=-1) * config.scale, experts
        case "softmax":
            scores = jax.nn.softmax(logits, axis=-1)
        case "sigmoid":
            scores = jax.nn.sigmoid(logits)
    choice = scores if correction is None else scores + correction.astype(jnp.float32)
    experts = jax.lax.top_k(choice, config.top_k)[1]
    weights = jnp.take_along_axis(scores, experts, axis=-1)
    if config.normalise:
        weights /= weights.sum(axis=-1, keepdims=True) + 1e-20
    return weights * config.scale, experts


class Experts(nnx.Module):
    """The weights of the experts that are here, one grouped matmul for each of gate, up and down."""

    def __init__(self, config: MoeConfig, new: ParamFactory) -> None:
        self.config = config.expert
        new = new.sized(E=config.num_experts, F=config.expert.dim)
        normal, zeros = nnx.initializers.normal(0.02), nnx.initializers.zeros
        self.gate = new("EFD", normal, contracted=1)
        self.up = new("EFD", normal, contracted=1)
        self.down = new("EDF", normal, contracted=1)
        self.gate_bias = new("EF", zeros) if self.config.bias else None
        self.up_bias = new("EF", zeros) if self.config.bias else None
        self.down_bias = new("ED", zeros) if self.config.bias else None

    @property
    def count(self) -> int:
        """Experts that are here: all of them, or this device's part."""
        return self.gate.get_value().shape[0]

    def __call__(
        self, x: Float[Array, "R D"], expert: Int[Array, "R"], group_sizes: Int[Array, "E"], machine: Machine
    ) -> Float[Array, "R D"]:
        """Applies expert[r] to row r, all but the last bias. Rows are sorted by expert; those behind the last group
        come out arbitrary."""

        def project(x: Array, weight: nnx.Param[Array], bias: nnx.Param[Array] | None) -> Array:
            y = machine.backend.grouped_linear(x, weight.get_value(), group_sizes)
            if weight is not self.down:  # whose parts of the width are summed up with the experts
                y = machine.placement.reduce(y, "embed")
            return y if bias is None else y + bias.get_value()[jnp.minimum(expert, self.count - 1)]

        gate, up = project(x, self.gate, self.gate_bias), project(x, self.up, self.up_bias)
        return project(activate(self.config, gate, up, machine), self.down, None)


class Moe(nnx.Module):
    """Router, experts and, where the family has one, the expert that every token runs."""

    def __init__(self, config: MoeConfig, new: ParamFactory) -> None:
        self.config = config
        # Whole everywhere: it is small, and gathering its scores would take longer than reading it.
        sized = new.sized(M=config.num_experts)
        self.router = Einsum("TD,MD->TM", sized, bias=config.router_bias)
        self.correction = sized("M", nnx.initializers.zeros) if config.correction_bias else None
        self.experts = Experts(config, new)
        self.shared = Mlp(config.shared, new) if config.shared is not None else None
        self.shared_gate = Einsum("TD,OD->TO", new.sized(O=1)) if config.shared_gate else None

    def __call__(
        self, x: Float[Array, "T D"], machine: Machine
    ) -> tuple[Float[Array, "T_own D"], Int[Array, "E_and_1"] | None]:
        """The layer's output, and its load where that is counted: tokens of each expert, and those that had to wait."""
        with jax.named_scope("router"):
            correction = None if self.correction is None else self.correction.get_value()
            weights, experts = route(self.router(x, machine), self.config, correction)
        with jax.named_scope("experts"):
            apply = partial(self._apply, machine)
            held = self.experts.count
            y, late = machine.placement.dispatch(apply, x, experts, weights, held=held, rows=machine.rows)
        if self.shared is not None:
            beside = replace(machine, placement=machine.placement.beside_experts)
            shared = self.shared(x, beside)
            if self.shared_gate is not None:
                gate = jax.nn.sigmoid(self.shared_gate(x, beside))
                shared *= beside.placement.constrain(gate, "tokens", None)
            y += shared
        return y, self._load(experts, late, machine) if machine.counts_load else None

    def _load(
        self, experts: Int[Array, "T top_k"], late: Int[Array, ""] | int, machine: Machine
    ) -> Int[Array, "E_and_1"]:
        """Of the tokens that are here; padding does not count."""
        place = machine.placement.offset("routed", len(experts)) + jnp.arange(len(experts))
        real = True if machine.rows is None else (place < machine.rows)[:, None]
        chosen = jnp.where(real, experts, self.config.num_experts).reshape(-1)
        counts = jnp.bincount(chosen, length=self.config.num_experts + 1).astype(jnp.int32)
        return counts.at[-1].set(late)

    def _apply(
        self, machine: Machine, x: Float[Array, "R D"], local: Int[Array, "R A"], weights: Float[Array, "R A"]
    ) -> Float[Array, "R D"]:
        """The weighted sum of those of each token's experts that are here; what is not numbered among them is not."""
        count = self.experts.count
        here = ((local >= 0) & (local < count)).reshape(-1)
        # Those that live elsewhere sort behind those that are here.
        local = jnp.where(here, local.reshape(-1), count)
        order = jnp.argsort(local, stable=True)
        group_sizes = jnp.bincount(local, length=count + 1)[:-1].astype(jnp.int32)
        rows = self.experts(x[order // weights.shape[1]], local[order], group_sizes, machine)
        # Back to the tokens' order, so that each token sums its experts in one fixed order.
        rows = jnp.zeros_like(rows).at[order].set(rows)
        y = _combine(rows, here, weights)
        if self.experts.down_bias is not None:
            bias = _combine(self.experts.down_bias.get_value()[jnp.minimum(local, count - 1)], here, weights)
            # The parts of a split width are summed up: one of them has the bias.
            y += jnp.where(machine.placement.offset("mlp", 1) == 0, bias, 0)
        return y.astype(x.dtype)


def _combine(
    rows: Float[Array, "R_A D"], here: Bool[Array, "R_A"], weights: Float[Array, "R A"]
) -> Float[Array, "R D"]:
    """The weighted sum of each token's experts, fp32, over those that are here."""
    rows = jnp.where(here[:, None], rows, 0).reshape(*weights.shape, -1)
    # Not an einsum: XLA:CPU multiplies matrices of one token otherwise than those of several.
    return (rows.astype(jnp.float32) * weights[..., None]).sum(axis=1)
