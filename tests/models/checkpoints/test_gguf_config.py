from typing import Any

import numpy as np
import pytest

from distaff.models.checkpoints.gguf_config import config_from_gguf, llama3_factors
from distaff.models.errors import ConfigError, UnknownArchitectureError
from distaff.models.families import config_from_hf
from distaff.models.rope import RopeConfig, RopeScaling, frequencies


def _config(arch: str = "llama", *, factors: dict[str, list[float]] | None = None, **keys: Any) -> dict[str, Any]:
    """A configuration from the least metadata, with some keys (dots as two underscores) changed; None drops one."""
    metadata: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.embedding_length": 64,
        f"{arch}.feed_forward_length": 96,
        f"{arch}.block_count": 6,
        f"{arch}.context_length": 4096,
        f"{arch}.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
    }
    metadata |= {f"{arch}.{name.replace('__', '.')}": value for name, value in keys.items()}
    metadata = {name: value for name, value in metadata.items() if value is not None}
    shapes = {"token_embd.weight": (100, 64), "output.weight": (100, 64)} | {f"x{i}": (1,) for i in range(70)}
    return config_from_gguf(metadata, shapes=shapes, rope_factors=factors or {}, source="x.gguf")


def test_floats_are_those_that_were_written() -> None:
    assert _config()["rms_norm_eps"] == 1e-5 and _config()["rope_theta"] == 10000.0


def test_the_parameters_behind_llama3_factors_are_found() -> None:
    scaling = {
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    factors = llama3_factors(scaling, 500000.0, 64).astype(np.float32)
    assert factors.min() == 1 and factors.max() == 32 and len(set(factors.tolist())) > 3
    found = _config(factors={"rope_freqs.weight": factors.tolist()}, rope__freq_base=500000.0, attention__key_length=64)
    assert found["rope_scaling"] == {"rope_type": "llama3", **scaling}
    ours = frequencies(RopeConfig(64, 500000.0, RopeScaling("llama3", 32.0, original_positions=8192)))
    np.testing.assert_allclose(frequencies(RopeConfig(64, 500000.0)) / ours, factors, rtol=1e-5)


def test_other_factors_turn_the_same_way() -> None:
    factors = [1.0, 1.5, 2.5, 8.0, 8.0, 8.0, 9.0, 9.0]
    config = config_from_hf(_config(factors={"rope_freqs.weight": factors}))
    rope = config.layers[0].attention.rope
    assert rope is not None and rope.scaling is not None and rope.scaling.attention_factor == 1
    np.testing.assert_allclose(frequencies(RopeConfig(16, 10000.0)) / frequencies(rope), factors, rtol=1e-6)


def test_yarn() -> None:
    found = _config(
        rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=1024,
        rope__scaling__yarn_beta_fast=16.0,
    )  # fmt: skip
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 16.0}
    assert found["rope_scaling"] == expected


@pytest.mark.parametrize(("layers", "scalar"), [(62, 16), (26, 32)])
def test_gemma3_27b_scales_queries_by_its_width(layers: int, scalar: int) -> None:
    found = _config("gemma3", block_count=layers, attention__key_length=32, attention__sliding_window=512)
    assert found["query_pre_attn_scalar"] == scalar and found["model_type"] == "gemma3_text"
    assert found["layer_types"][:6] == ["sliding_attention"] * 5 + ["full_attention"]
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)


def test_gpt_oss_keeps_its_own_yarn() -> None:
    found = _config(
        "gpt-oss", rope__scaling__type="yarn", rope__scaling__factor=32.0, attention__sliding_window=128,
        rope__scaling__original_context_length=4096, expert_count=8, expert_used_count=4, expert_feed_forward_length=32,
    )  # fmt: skip
    assert found["rope_scaling"]["truncate"] is False and found["intermediate_size"] == 32
    assert found["layer_types"][:2] == ["sliding_attention", "full_attention"]


def test_smollm3_leaves_out_every_fourth_rotation() -> None:
    config = config_from_hf(_config("smollm3"))
    assert [layer.attention.rope is None for layer in config.layers] == [False, False, False, True, False, False]


def test_one_number_for_each_layer() -> None:
    assert _config(attention__head_count_kv=[2] * 6)["num_key_value_heads"] == 2
    with pytest.raises(
        ConfigError, match=r"head_count_kv: found \[2, 1\], expected a whole number up to \d+ \(the same"
    ):
        _config(attention__head_count_kv=[2, 1])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            {"context_length": None},
            r"x\.gguf: llama\.context_length: found nothing, expected this key; convert the model",
        ),
        ({"block_count": 73}, r"llama\.block_count: found 73, expected a whole number up to 72"),
        ({"block_count": "six"}, r"llama\.block_count: found six, expected a whole number"),
        ({"attention__head_count": True}, r"llama\.attention\.head_count: found True"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, r"layer_norm_rms_epsilon: found nan, expected a finite"),
        ({"embedding_length": 65}, r"found 65 and 4, expected those of tensor 'token_embd\.weight' \(\[100, 64\]\)"),
        ({"attention__head_count": 0}, r"found 64 and 0, expected those of tensor"),
        ({"rope__scaling__type": "warp"}, r"llama\.rope\.scaling\.type: found 'warp', expected none, linear, yarn, or"),
        ({"rope__scaling__type": "linear"}, r"llama\.rope\.scaling\.factor: found nothing"),
        ({"expert_count": 10**6}, r"llama\.expert_count: found 1000000, expected a whole number up to 8192"),
    ],
)
def test_names_the_key_that_is_wrong(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _config(**keys)


def test_unknown_architectures() -> None:
    with pytest.raises(
        UnknownArchitectureError, match=r"x\.gguf: general\.architecture is 'rwkv', expected one of llama"
    ):
        _config("rwkv")
    with pytest.raises(UnknownArchitectureError, match=r"model_type is 'olmo3'"):
        config_from_hf(_config("olmo2", attention__sliding_window=4096))
