"""What becomes of stored numbers, by what was asked."""

from pathlib import Path

import pytest

from distaff.backends.errors import InvalidParameterError, UsageError
from distaff.models.checkpoints import convert, open_checkpoint
from distaff.models.compress import held_weights
from distaff.models.families import config_from_hf

from ...golden.harness import GOLDEN
from ..checkpoints.mxfp4_folder import write_mxfp4


def test_gpt_oss_stays_unless_it_is_to_be_expanded(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_mxfp4(GOLDEN / "gpt_oss", tmp_path / "model"))
    config = config_from_hf(checkpoint.hf_config)
    asked = {quantize: held_weights(quantize, checkpoint, config) for quantize in (None, "stored", "none")}
    assert asked[None] == asked["stored"] and asked["stored"].keep
    assert {each.kind for each in asked["stored"].roundings.values()} == {"float4_e2m1fn"}
    assert not asked["none"].keep and not asked["none"].roundings
    with pytest.raises(UsageError, match=r"is quantised already \(mxfp4\)"):
        held_weights("int8", checkpoint, config)


def test_gguf_is_expanded_unless_it_is_to_stay(tmp_path: Path) -> None:
    convert(str(GOLDEN / "llama31"), tmp_path / "made.gguf", to="gguf", dtype="q8_0")
    checkpoint = open_checkpoint(tmp_path / "made.gguf")
    config = config_from_hf(checkpoint.hf_config)
    plain, stays = held_weights(None, checkpoint, config), held_weights("stored", checkpoint, config)
    assert not plain.keep and plain == held_weights("none", checkpoint, config)
    assert stays.keep and stays.roundings and not stays.remarks
    assert held_weights("int8", checkpoint, config).made is not None


@pytest.mark.parametrize(
    ("quantize", "error", "message"),
    [
        ("stored", UsageError, r"quantize 'stored': .* as it is stored \(its weights are floats\); leave the option"),
        ("int3", InvalidParameterError, "quantize is 'int3', expected one of int8, .*, stored, none"),
    ],
)
def test_what_cannot_be_is_refused_by_name(quantize: str, error: type[Exception], message: str) -> None:
    checkpoint = open_checkpoint(GOLDEN / "llama31")
    with pytest.raises(error, match=message):
        held_weights(quantize, checkpoint, config_from_hf(checkpoint.hf_config))
