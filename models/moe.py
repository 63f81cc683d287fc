"""Mixture of experts: a router picks top_k experts for each token; tokens are sorted by expert and multiplied grouped."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

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
    """The weights of all experts, one grouped matmul for each of gate, up and down."""

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

    def __call__(
        self, x: Float[Array, "R D"], expert: Int[Array, "R"], group_sizes: Int[Array, "E"], machine: Machine
    ) -> Float[Array, "R D"]:
        """Applies expert[r] to row r; rows are sorted by expert."""

        def project(x: Array, weight: nnx.Param[Array], bias: nnx.Param[Array] | None) -> Array:
            y = machine.backend.grouped_linear(x, weight.get_value(), group_sizes)
            return y if bias is None else y + bias.get_value()[expert]

        gate, up = project(x, self.gate, self.gate_bias), project(x, self.up, self.up_bias)
        hidden = activate(self.config, gate, up)
        down = machine.placement.reduce(machine.backend.grouped_linear(hidden, self.down.get_value(), group_sizes), "mlp")
        return down if self.down_bias is None else down + self.down_bias.get_value()[expert]


class Moe(nnx.Module):
    """Router, experts and, where the family has one, the expert that every token runs."""

    def __init__(self, config: MoeConfig, new: ParamFactory) -> None:
        self.config = config
        sized = new.sized(E=config.num_experts)
        self.router = Einsum("TD,ED->TE", sized, bias=config.router_bias)
        self.correction = sized("E", nnx.initializers.zeros) if config.correction_bias else None
        self.experts = Experts(config, new)
        self.shared = Mlp(config.shared, new) if config.shared is not None else None
        self.shared_gate = Einsum("TD,ED->TE", new.sized(E=1)) if config.shared_gate else None

    def __call__(self, x: Float[Array, "T D"], machine: Machine) -> Float[Array, "T D"]:
        config = self.config
        with jax.named_scope("router"):
            correction = None if self.correction is None else self.correction.get_value()
            weights, experts = route(self.router(x, machine), config, correction)
            flat = experts.reshape(-1)
            order = jnp.argsort(flat, stable=True)
            group_sizes = jnp.bincount(flat, length=config.num_experts).astype(jnp.int32)
        with jax.named_scope("experts"):
            sorted_out = self.experts(x[order // config.top_k], flat[order], group_sizes, machine)
            # Back to the tokens' order, so that each token sums its experts in one fixed order.
            out = jnp.zeros_like(sorted_out).at[order].set(sorted_out).reshape(*experts.shape, -1)
            y = jnp.einsum("TAD,TA->TD", out, weights, precision="highest").astype(x.dtype)
            y = machine.placement.reduce(y, "expert")
        if self.shared is not None:
            shared = self.shared(x, machine)
            if self.shared_gate is not None:
                shared *= jax.nn.sigmoid(self.shared_gate(x, machine))
            y += shared
        return y
