"""What a model has to compute and to read: the arithmetic behind MFU and MBU.

Norms, rotations and sampling are left out: they are small, and other programs leave them out too.
"""

from dataclasses import dataclass

from .config import LayerConfig, MlpConfig, ModelConfig, MoeConfig


@dataclass(frozen=True)
class Steps:
    """Steps of the engine, summed.

    Attributes:
        steps: times that the weights are gone through.
        tokens: tokens computed, without padding.
        drawn: tokens whose logits are wanted.
        attended: key positions that the tokens attend to: n * kv - n * (n - 1) / 2 for the last n of kv positions.
        read: key positions that the cache is read at: kv for each row of each step.
    """

    steps: int
    tokens: int
    drawn: int
    attended: int
    read: int


@dataclass(frozen=True)
class Work:
    """Floating-point operations and bytes read from memory."""

    flops: float
    bytes: float


def work_of(config: ModelConfig, steps: Steps, *, weight_bytes: float, kv_bytes: float) -> Work:
    """The least that these steps take on any machine.

    A token costs 2 FLOPs for each weight that it is multiplied with, and 4 * N * H for each position that a layer
    attends to. A step reads every weight that one of its tokens needs once (with experts drawn evenly) and, for each
    layer, the keys and values of each row. A sliding window shortens both, to its length at the mean context.

    Args:
        weight_bytes: bytes of one weight.
        kv_bytes: bytes of one number in the cache.
    """
    if not steps.steps:
        return Work(0.0, 0.0)
    tokens = steps.tokens / steps.steps
    context = steps.attended / max(1, steps.tokens)
    head = config.vocab_size * (config.embed_in_dim or config.embed_dim)
    flops = 2.0 * head * steps.drawn
    weights = float(head)
    cached = 0.0
    for layer in config.layers:
        active, resident = _weights(layer, config.embed_dim, tokens)
        attention = layer.attention
        seen = 1.0 if attention.window is None else min(1.0, attention.window / max(1.0, context))
        flops += 2.0 * active * steps.tokens
        flops += 4.0 * attention.num_heads * attention.head_dim * steps.attended * seen
        weights += resident
        cached += 2.0 * attention.num_kv_heads * attention.head_dim * steps.read * seen
    return Work(flops, steps.steps * weights * weight_bytes + cached * kv_bytes)


def _weights(layer: LayerConfig, width: int, tokens: float) -> tuple[float, float]:
    """Weights of a layer's matrices that one token is multiplied with, and that a step of `tokens` reads."""
    attention = layer.attention
    projected = width * attention.head_dim * 2 * (attention.num_heads + attention.num_kv_heads)
    if not isinstance(layer.mlp, MoeConfig):
        dense = projected + _mlp_weights(layer.mlp, width)
        return dense, dense
    moe = layer.mlp
    expert = _mlp_weights(moe.expert, width)
    common = projected + width * moe.num_experts + (_mlp_weights(moe.shared, width) if moe.shared else 0)
    # Each token takes top_k of the experts: the share that no token takes is (1 - k / E) ** T.
    touched = moe.num_experts * (1 - (1 - moe.top_k / moe.num_experts) ** tokens)
    return common + moe.top_k * expert, common + touched * expert


def _mlp_weights(mlp: MlpConfig, width: int) -> int:
    return width * mlp.dim * (3 if mlp.gated else 2)
