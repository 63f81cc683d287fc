"""A tiny gpt-oss with experts in MXFP4, as published."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file


def write_mxfp4(source: Path, folder: Path, *, exponents: tuple[int, int] = (120, 130), width: int = 64) -> Path:
    """The golden gpt-oss with random experts of a width that blocks of 32 divide."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    config = json.loads((source / "config.json").read_text())
    config |= {"intermediate_size": width, "quantization_config": {"quant_method": "mxfp4"}}
    (folder / "config.json").write_text(json.dumps(config))
    stored = {name: values for file in source.glob("*.safetensors") for name, values in load_file(file).items()}
    inputs, experts = config["hidden_size"], config["num_local_experts"]
    assert inputs % 32 == 0
    for i in range(config["num_hidden_layers"]):
        name = f"model.layers.{i}.mlp.experts."
        for part, rows, columns in (("gate_up_proj", 2 * width, inputs), ("down_proj", inputs, width)):
            del stored[name + part]
            shape = (experts, rows, columns // 32)
            stored[f"{name}{part}_blocks"] = rng.integers(0, 256, (*shape, 16), np.uint8)
            stored[f"{name}{part}_scales"] = rng.integers(*exponents, shape, np.uint8)
        stored[f"{name}gate_up_proj_bias"] = rng.standard_normal((experts, 2 * width), np.float32)
    save_file(stored, folder / "model.safetensors")
    return folder
