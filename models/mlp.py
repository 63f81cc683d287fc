"""Feed-forward layers: gated (arXiv 2002.05202) and plain."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ..backends.rounded_tokens import RoundedTokens
from .config import Activation, MlpConfig
from .layers import Einsum, Machine, ParamFactory

_SWIGLUOAI_ALPHA = 1.702

_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


def activate(
    config: MlpConfig, gate: Float[Array, "T F"], up: Float[Array, "T F"] | None, machine: Machine
) -> Float[Array, "T F"]:
    """`act(gate) * up`, or `act(gate)` in a plain layer.

    gpt-oss's `swigluoai` clamps both at config.limit, uses a sigmoid of slope 1.702 and adds one to `up`.
    """
    if config.activation == "swigluoai":
        assert up is not None
        gate = jnp.minimum(gate, config.limit)
        up = jnp.clip(up, -config.limit, config.limit)
        return (up + 1) * gate * jax.nn.sigmoid(_SWIGLUOAI_ALPHA * gate)
    if config.activation == "silu" and up is not None:
        return machine.backend.silu_gate(gate, up)
    activated = _ACTIVATIONS[config.activation](gate)
    return activated if up is None else activated * up


class Mlp(nnx.Module):
    """`down(act(gate x) * up x)`, or `down(act(up x))` where it is not gated."""

    def __init__(self, config: MlpConfig, new: ParamFactory) -> None:
        self.config = config
        new = new.sized(F=config.dim)
        self.gate = Einsum("TD,FD->TF", new, bias=config.bias) if config.gated else None
        self.up = Einsum("TD,FD->TF", new, bias=config.bias)
        self.down = Einsum("TF,DF->TD", new, bias=config.bias, residual=True)

    @property
    def inputs(self) -> list[Einsum]:
        """What x is multiplied with."""
        return [self.up] if self.gate is None else [self.gate, self.up]

    def __call__(self, x: Float[Array, "T D"] | RoundedTokens, machine: Machine) -> Float[Array, "T_own D"]:
        if self.gate is None:
            return self.down(activate(self.config, self.up(x, machine), None, machine), machine)
        gate, up = Einsum.each(self.inputs, x, machine)
        rounded = None
        if self.config.activation == "silu":
            rounded = machine.backend.rounded_gate(gate, up, self.down.weight.get_value())
        return self.down(activate(self.config, gate, up, machine) if rounded is None else rounded, machine)
