"""Where weights come from in a checkpoint, as data that serves loading and saving alike."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorSource:
    """The checkpoint tensor behind one leaf of the weights.

    Args:
        name: the tensor's name, with `{layer}` and `{expert}` to fill. With `{expert}` each entry of the leaf's
            expert axis is a tensor of its own; without, rows run over the leaf's first axis behind the layers.
        start: first row taken, where one tensor holds several leaves (Phi-3's qkv_proj).
        rows: number of rows taken, None for all.
        view: a numpy view of a block of rows whose elements, in C order, are the leaf's. Assigning to the view
            writes the tensor, so one table loads and saves.
    """

    name: str
    start: int = 0
    rows: int | None = None
    view: Callable[[np.ndarray], np.ndarray] | None = None


def sources(names: Mapping[str, str | TensorSource]) -> dict[str, TensorSource]:
    """Plain names as sources of whole tensors."""
    return {key: TensorSource(name) if isinstance(name, str) else name for key, name in names.items()}


_BLOCK = "model.layers.{layer}."

LLAMA_NAMES: Mapping[str, str] = {
    "embedder.table": "model.embed_tokens.weight",
    "unembedder.table": "lm_head.weight",
    "final_norm.scale": "model.norm.weight",
    "attention_norm.scale": _BLOCK + "input_layernorm.weight",
    "mlp_norm.scale": _BLOCK + "post_attention_layernorm.weight",
    **{f"attention.{x}.weight": f"{_BLOCK}self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"attention.{x}.bias": f"{_BLOCK}self_attn.{x}_proj.bias" for x in "qkvo"},
    **{f"attention.{x}_norm.scale": f"{_BLOCK}self_attn.{x}_norm.weight" for x in "qk"},
    **{f"mlp.{x}.weight": f"{_BLOCK}mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"mlp.{x}.bias": f"{_BLOCK}mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
    "mlp.router.weight": _BLOCK + "mlp.gate.weight",
    **{f"mlp.experts.{x}": f"{_BLOCK}mlp.experts.{{expert}}.{x}_proj.weight" for x in ("gate", "up", "down")},
}
"""Names that most families share; a family's table adds to them or replaces some."""
