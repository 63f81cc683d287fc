"""Checkpoints of the size of large models, in files that are holes but for their headers."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from distaff.models.checkpoints import shipped_configs


def sparse_model(folder: Path, name: str, num_files: int) -> Path:
    """A shipped Llama or Qwen3 mixture in bfloat16 as safetensors with an index, under the names that the hub has."""
    config: dict[str, Any] = json.loads(shipped_configs()[name].read_text())
    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim", width // config["num_attention_heads"])
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    experts = config.get("num_experts")
    shapes: dict[str, list[int]] = {"model.embed_tokens.weight": [vocab, width]}
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": [queries, width],
            f"{layer}self_attn.o_proj.weight": [width, queries],
        }
        shapes |= {f"{layer}self_attn.{x}_proj.weight": [keys, width] for x in "kv"}
        blocks = [f"{layer}mlp."]
        if experts is not None:
            inner = config["moe_intermediate_size"]
            blocks = [f"{layer}mlp.experts.{n}." for n in range(experts)]
            shapes |= {f"{layer}mlp.gate.weight": [experts, width]}
            shapes |= {f"{layer}self_attn.{x}_norm.weight": [head] for x in "qk"}
        for block in blocks:
            shapes |= {f"{block}{x}_proj.weight": [inner, width] for x in ("gate", "up")}
            shapes |= {f"{block}down_proj.weight": [width, inner]}
        shapes |= {f"{layer}{x}_layernorm.weight": [width] for x in ("input", "post_attention")}
    shapes |= {"model.norm.weight": [width], "lm_head.weight": [vocab, width]}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names = list(shapes)
    weight_map: dict[str, str] = {}
    for number in range(num_files):
        file = f"model-{number + 1:05}-of-{num_files:05}.safetensors"
        held = names[number * len(names) // num_files : (number + 1) * len(names) // num_files]
        at, header = 0, dict[str, object]()
        for each in held:
            size = 2 * prod(shapes[each])
            header[each] = {"dtype": "BF16", "shape": shapes[each], "data_offsets": [at, at + size]}
            at += size
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as stream:
            stream.write(struct.pack("<Q", len(text)) + text)
            stream.truncate(8 + len(text) + at)
        weight_map |= dict.fromkeys(held, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
