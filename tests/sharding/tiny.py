"""Models small enough for eight virtual devices."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp

from distaff.models.config import ModelConfig
from distaff.models.decoder import Weights, init_weights
from distaff.models.families import config_from_hf

GOLDEN = Path(__file__).parent.parent / "golden"

EVEN: dict[str, dict[str, object]] = {
    # Sizes that four devices and two stages can split; vocabularies (97, 99) stay odd.
    "llama31": {"num_attention_heads": 8, "head_dim": 8, "num_hidden_layers": 4},
    "qwen3_moe": {"num_attention_heads": 8, "num_local_experts": 4, "moe_intermediate_size": 16},
    "gemma3": {"num_attention_heads": 4, "num_hidden_layers": 6, "layer_types": None},
    "gpt_oss": {"num_attention_heads": 8, "num_local_experts": 4, "num_hidden_layers": 4, "layer_types": None,
                "intermediate_size": 16},
    "olmo2": {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32},
    "smollm2": {},
}  # fmt: skip


def tiny(case: str) -> tuple[ModelConfig, Weights]:
    """A golden family's configuration, and random weights whose logits differ clearly."""
    config = config_from_hf({**json.loads((GOLDEN / case / "config.json").read_text()), **EVEN[case]})
    return config, jax.tree.map(lambda w: w * 4, init_weights(config, seed=0, dtype=jnp.float32))
