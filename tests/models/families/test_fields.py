"""A configuration that cannot be is refused with the file, the field, what was found and what would do."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distaff.backends.errors import DistaffError
from distaff.models.errors import ConfigError, UnknownArchitectureError
from distaff.models.families import config_from_hf

GOLDEN = Path(__file__).parents[2] / "golden"


def config(case: str) -> dict[str, Any]:
    return json.loads((GOLDEN / case / "config.json").read_text())


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("llama2", {"hidden_size": None}, "hidden_size is missing, expected a value"),
        ("llama2", {"hidden_size": "big"}, "hidden_size is 'big', expected a whole number from 1"),
        ("llama2", {"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ("llama2", {"num_attention_heads": 5, "num_key_value_heads": 5}, "hidden_size is 36, expected a multiple of 5"),
        ("llama2", {"num_key_value_heads": 2}, "num_key_value_heads is 2, expected a divisor of 3"),
        ("llama2", {"rms_norm_eps": -1}, "rms_norm_eps is -1, expected a number above 0"),
        ("llama2", {"rms_norm_eps": float("nan")}, "rms_norm_eps is nan, expected a number"),
        ("llama2", {"hidden_act": "snake"}, "hidden_act is 'snake', expected one of silu"),
        ("llama2", {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes', expected true or false"),
        ("llama2", {"rope_scaling": {"type": "spiral"}}, "rope_scaling: rope_type is 'spiral', expected default"),
        ("llama2", {"rope_scaling": {"type": "linear"}}, "rope_scaling: factor is missing"),
        ("llama2", {"rope_scaling": [4]}, r"rope_scaling is \[4\], expected a table"),
        (
            "phi3_longrope",
            {"rope_scaling": {"type": "longrope", "long_factor": [1]}},
            r"rope_scaling: long_factor is \[1\], expected a list of 6 numbers",
        ),
        (
            "phi3",
            {"partial_rotary_factor": 0.1, "rope_parameters": {}},
            "rope_parameters: partial_rotary_factor is 0.1",
        ),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types is .*expected 8 entries"),
        ("smollm3", {"no_rope_layers": [1]}, r"no_rope_layers is \[1\], expected 5 entries"),
        ("glm4_moe", {"n_group": 4}, "n_group is 4, expected 1"),
        ("cohere", {"use_qk_norm": True}, "use_qk_norm is True, expected false"),
        ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window is True, expected false"),
    ],
)
def test_a_bad_field_is_named(case: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^some/config\.json: {message}"):
        config_from_hf(config(case) | changes, source="some/config.json")


@pytest.mark.parametrize("model_type", [None, "mamba", 7, ["llama"]])
def test_an_unknown_architecture_lists_the_known_ones(model_type: object) -> None:
    with pytest.raises(UnknownArchitectureError, match=r"model_type is .*expected one of cohere, .*qwen3_moe"):
        config_from_hf({"model_type": model_type})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(path.parent.name for path in GOLDEN.glob("*/config.json"))), st.data())
@settings(max_examples=600)
def test_whatever_a_field_holds_only_typed_errors_come_out(case: str, data: st.DataObject) -> None:
    hf = config(case)
    field = data.draw(st.sampled_from(sorted(hf)))
    with suppress(DistaffError):
        config_from_hf(hf | {field: data.draw(JSON)})
