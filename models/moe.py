"""Mixture of experts: a router picks some for each token; tokens are sorted by expert and multiplied in groups."""

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
        self.gate = new("EFD", normal)
        self.up = new("EFD", normal)
        self.down = new("EDF", normal)
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
            return y if bias is None else y + bias.get_value()[jnp.minimum(expert, self.count - 1)]

        gate, up = project(x, self.gate, self.gate_bias), project(x, self.up, self.up_bias)
        return project(activate(self.config, gate, up), self.down, None)


class Moe(nnx.Module):
    """Router, experts and, where the family has one, the expert that every token runs."""

    def __init__(self, config: MoeConfig, new: ParamFactory) -> None:
        self.config = config
        sized = new.sized(E=config.num_experts)
        self.router = Einsum("TD,ED->TE", sized, bias=config.router_bias)
        self.correction = sized("E", nnx.initializers.zeros) if config.correction_bias else None
        self.experts = Experts(config, new)
        self.shared = Mlp(config.shared, new) if config.shared is not None else None
        self.shared_gate = Einsum("TD,OD->TO", new.sized(O=1)) if config.shared_gate else None

    def __call__(self, x: Float[Array, "T D"], machine: Machine) -> Float[Array, "T_own D"]:
        placement = machine.placement
        with jax.named_scope("router"):
            logits = placement.gather(self.router(x, machine), "expert", 1)
            correction = None
            if self.correction is not None:
                correction = placement.gather(self.correction.get_value(), "expert", 0)
            weights, experts = route(logits, self.config, correction)
            # Experts that live elsewhere sort behind those that are here.
            local = experts.reshape(-1) - placement.offset("expert", self.experts.count)
            here = (local >= 0) & (local < self.experts.count)
            local = jnp.where(here, local, self.experts.count)
            order = jnp.argsort(local, stable=True)
            group_sizes = jnp.bincount(local, length=self.experts.count + 1)[:-1].astype(jnp.int32)
        with jax.named_scope("experts"):
            rows = self.experts(x[order // self.config.top_k], local[order], group_sizes, machine)
            # Back to the tokens' order, so that each token sums its experts in one fixed order.
            rows = jnp.zeros_like(rows).at[order].set(rows)
            y = placement.reduce(_combine(rows, here, weights), "mlp")
            if self.experts.down_bias is not None:
                # Behind the reduction, so that a split width adds the bias once.
                bias = self.experts.down_bias.get_value()[jnp.minimum(local, self.experts.count - 1)]
                y += _combine(bias, here, weights)
            y = placement.reduce(y.astype(x.dtype), "expert", scatter=True)
        if self.shared is not None:
            shared = self.shared(x, machine)
            if self.shared_gate is not None:
                shared *= jax.nn.sigmoid(self.shared_gate(x, machine))
            y += shared
        return y


def _combine(rows: Float[Array, "R D"], here: Bool[Array, "R"], weights: Float[Array, "T A"]) -> Float[Array, "T D"]:
    """The weighted sum of each token's experts, fp32, over those that are here."""
    rows = jnp.where(here[:, None], rows, 0).reshape(*weights.shape, -1)
    # Not an einsum: XLA:CPU multiplies matrices of one token otherwise than those of several.
    return (rows.astype(jnp.float32) * weights[..., None]).sum(axis=1)
