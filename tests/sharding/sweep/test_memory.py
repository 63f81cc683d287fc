"""Memory of a device against what the TPU compiler said of the same steps."""

from dataclasses import replace

import numpy as np
import pytest

from distaff.models.config import ModelConfig
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.memory import temporary_bytes
from distaff.sharding.sweep.plan import Placed, score
from distaff.sharding.sweep.request import Workload
from distaff.sharding.sweep.roofline import Columns, Rates
from distaff.sharding.sweep.slices import parse_slice

from ..shipped import shipped
from .asked import request

COMPILED = (
    ("llama-3.1-8b", "v5e:4x4", "tensor=16", 1, 1_075_637_760, 2_899_968),
    ("llama-3.1-8b", "v5e:4x4", "tensor=16", 2, 1_113_430_016, 4_603_904),
    ("llama-3.1-8b", "v5e:4x4", "tensor=16", 4, 1_189_013_504, 6_668_288),
    ("llama-3.1-8b", "v5e:4x4", "tensor=16", 8, 1_340_180_480, 11_321_344),
    ("llama-3.1-8b", "v5e:4x4", "data=2,tensor=8", 8, 2_310_375_424, 11_321_344),
    ("llama-3.1-8b", "v5e:4x4", "data=2,tensor=8", 16, 2_612_709_376, 20_316_160),
    ("llama-3.1-8b", "v5e:4x4", "data=2,tensor=8", 32, 3_217_373_184, 69_992_448),
    ("llama-3.1-8b", "v5e:4x4", "attention-data:data=2,tensor=8", 32, 2_512_729_600, 69_484_544),
    ("llama-3.1-8b", "v5e:4x4", "sequence:sequence=2,tensor=8", 64, 2_382_755_840, 167_919_616),
    ("llama-3.1-70b", "v5e:4x4", "tensor=16", 1, 9_083_883_008, 2_899_968),
)
"""Decode steps with rows of 2,304 positions, compiled by libtpu 0.0.52: model, slice, layout, rows of a replica,
bytes of arguments, of temporaries."""


@pytest.mark.parametrize(("model", "hw", "text", "rows", "arguments", "temporaries"), COMPILED)
def test_the_peak_is_within_5_percent(
    model: str, hw: str, text: str, rows: int, arguments: int, temporaries: int
) -> None:
    """And temporaries, which are no more than 7 % of it, within 15 %."""
    on = parse_slice(hw)
    layout = parse_layout(text, num_devices=on.num_devices)
    asked = request(
        config=shipped(model),
        slices=(on,),
        phase="decode",
        batches=(rows * layout.replicas,),
        workload=Workload.of(2048, 256),
    )
    placed = Placed.of(asked, layout, on)
    (found,) = score(asked, (placed,)).memory
    assert found == pytest.approx(arguments + temporaries, rel=0.05)
    columns, count = Columns.of([placed.decode], [Rates.of(on.chip)]), np.full(1, rows, float)
    (beside,) = temporary_bytes(columns, count, count, np.full(1, 2.0))
    print(f"{found / (arguments + temporaries) - 1:+.2%} of the peak, {beside / temporaries - 1:+.0%} of temporaries")
    assert beside == pytest.approx(temporaries, rel=0.15)


PROMPTS = (
    ("llama-3.1-8b", "v5e:4x4", "tensor=16", 2048, 4_571_136),
    ("llama-3.1-8b", "v5e:4x4", "weight-gathered:tensor=16", 512, 405_880_832),
    ("llama-3.1-8b", "tpu7x:2x2x1", "weight-gathered:tensor=8", 512, 496_484_352),
    ("llama-3.1-8b", "v4:2x2x2", "weight-gathered:tensor=8", 512, 118_390_784),
    ("llama-3.1-8b", "v5p:2x2x2", "weight-gathered:tensor=8", 512, 122_978_304),
    ("llama-3.1-8b", "v6e:2x4", "weight-gathered:tensor=8", 512, 118_259_712),
    ("llama-3.1-70b", "v6e:2x4", "weight-gathered:tensor=8", 512, 474_284_032),
    ("llama-3.1-8b", "v6e:2x4", "replica:data=8", 512, 20_000_000),
    ("llama-3.1-8b", "tpu7x:2x2x1", "tensor-2d:tensor=4,tensor2=2", 512, 29_500_000),
    ("llama-3.1-70b", "v6e:2x4", "tensor=8", 512, 6_000_000),
)
"""Prefill steps of one row, compiled by libtpu 0.0.52: model, slice, layout, tokens, bytes of temporaries."""


@pytest.mark.parametrize(("model", "hw", "text", "tokens", "temporaries"), PROMPTS)
def test_what_prompts_need_is_within_5_percent_of_the_peak(
    model: str, hw: str, text: str, tokens: int, temporaries: int
) -> None:
    on = parse_slice(hw)
    layout = parse_layout(text, num_devices=on.num_devices)
    work = Placed.of(request(config=shipped(model), slices=(on,)), layout, on).prefill
    columns = Columns.of([work], [Rates.of(on.chip)])
    (found,) = temporary_bytes(columns, np.full(1, float(tokens)), np.ones(1), np.full(1, 2.0))
    print(f"{(found - temporaries) / (2 * work.held + temporaries):+.2%} of the peak")
    assert abs(found - temporaries) < 0.05 * (2 * work.held + temporaries)  # weights are most of it


def test_a_turned_stream_takes_a_second_table_where_it_is_tied() -> None:
    """Of int8 with int8 alone; each device holds its part of it."""
    on, tied = parse_slice("v5e:2x2"), replace(shipped("llama-3.1-8b"), tied=True)
    layout = parse_layout("tensor=4", num_devices=4)

    def memory(config: ModelConfig, weights: str, activations: str) -> float:
        asked = request(
            config=config, slices=(on,), phase="decode", batches=(8,), workload=Workload.of(2048, 256),
            weights=(weights,), activations=(activations,),
        )  # fmt: skip
        return float(score(asked, (Placed.of(asked, layout, on),)).memory[0])

    table = tied.vocab_size * tied.embed_dim / 4
    assert memory(tied, "int8", "int8") - memory(tied, "int8", "bf16") == pytest.approx(table)
    own = replace(tied, tied=False)
    assert memory(own, "int8", "int8") == memory(own, "int8", "bf16") == pytest.approx(memory(tied, "int8", "int8"))
    gemma = replace(shipped("gemma-3-27b"), tied=True)
    assert memory(gemma, "int8", "int8") == memory(gemma, "int8", "bf16")
