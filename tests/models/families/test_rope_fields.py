"""Context lengths and rotations as published configurations write them."""

from typing import Any

import numpy as np
import pytest

from distaff.models.families.fields import Fields
from distaff.models.families.rope_fields import context_length, read_rope
from distaff.models.rope import RopeConfig, frequencies

LLAMA31 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
QWEN25_YARN = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}


def fields(**values: Any) -> Fields:
    return Fields(values, "config.json")


@pytest.mark.parametrize(
    ("scaling", "trained", "context"),
    [
        (None, 2048, 2048),
        ({"type": "linear", "factor": 4}, 4096, 16384),  # Vicuna 16k
        ({"type": "dynamic", "factor": 2.0}, 4096, 8192),
        (LLAMA31, 131072, 131072),  # the file gives the stretched length
        (QWEN25_YARN, 32768, 131072),  # as Qwen's model card says to add it
        ({"type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}, 131072, 131072),  # gpt-oss
        ({"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}, 131072, 131072),  # Phi-3 128k
    ],
)
def test_the_context_is_stretched_where_the_file_gives_the_original(
    scaling: dict[str, Any] | None, trained: int, context: int
) -> None:
    assert context_length(fields(max_position_embeddings=trained, rope_scaling=scaling)) == context


def test_both_spellings_of_the_same_settings_are_the_same_rotation() -> None:
    old = fields(max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=LLAMA31)
    new = fields(max_position_embeddings=131072, rope_parameters=LLAMA31 | {"rope_theta": 500000.0})
    assert read_rope(old, 128) == read_rope(new, 128)


def test_a_type_of_layer_reads_its_own_entry() -> None:
    nested = fields(rope_parameters={"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}})
    assert read_rope(nested, 8).theta == 1e6
    assert read_rope(nested, 8, layer_type="sliding_attention").theta == 1e4


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    settings = fields(max_position_embeddings=131072, rope_theta=500000.0, rope_scaling=LLAMA31)
    plain, scaled = frequencies(RopeConfig(128, 500000.0)), frequencies(read_rope(settings, 128))
    waves = 2 * np.pi / plain
    np.testing.assert_allclose(scaled[waves < 8192 / 4], plain[waves < 8192 / 4])
    np.testing.assert_allclose(scaled[waves > 8192], plain[waves > 8192] / 8)
    between = (waves >= 8192 / 4) & (waves <= 8192)
    assert between.any() and ((scaled < plain) & (scaled > plain / 8))[between].all()


def test_yarn_takes_the_published_attention_factor() -> None:
    """arXiv 2309.00071: 0.1 ln(s) + 1, unless the file gives one."""
    settings = fields(max_position_embeddings=32768, rope_scaling=QWEN25_YARN)
    scaling = read_rope(settings, 128).scaling
    assert scaling is not None and scaling.attention_factor == pytest.approx(1.1386294361)
    given = fields(max_position_embeddings=32768, rope_scaling=QWEN25_YARN | {"attention_factor": 0.5})
    scaling = read_rope(given, 128).scaling
    assert scaling is not None and scaling.attention_factor == 0.5
