"""The worked examples of Austin et al., How to Scale Your Model (2025): inference of LLaMA-3-70B and LLaMA-2-13B."""

from dataclasses import replace

import numpy as np
import pytest

from distaff.backends.hardware import Chip, chip
from distaff.models.config import ModelConfig
from distaff.models.families import config_from_hf
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.efficiency import DEFAULT, NOMINAL
from distaff.sharding.sweep.errors import NothingFitsError
from distaff.sharding.sweep.links import Side, torus_cost
from distaff.sharding.sweep.plan import Placed, score
from distaff.sharding.sweep.request import SweepRequest, Workload
from distaff.sharding.sweep.roofline import Columns, Rates, Split, Steps, step_seconds
from distaff.sharding.sweep.slices import Slice, parse_slice
from distaff.sharding.sweep.sweep import plan
from distaff.sharding.sweep.work import DeviceWork, device_work

from ..shipped import shipped

LLAMA_70B = shipped("llama-3.1-70b")
LLAMA_13B = config_from_hf(
    {
        "model_type": "llama",
        "vocab_size": 32000,
        "hidden_size": 5120,
        "intermediate_size": 13824,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 40,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e4,
        "hidden_act": "silu",
    }
)
BOOK = replace(chip("v5e"), hbm_bytes_per_second=8.2e11, link_bytes_per_second=4.5e10, flops={"bfloat16": 1.97e14})
"""The book's figures of v5e."""


def together(count: int) -> Chip:
    """One device as fast as `count`: the book divides work evenly, whatever the number of heads."""
    return replace(
        BOOK,
        hbm_bytes_per_second=count * BOOK.hbm_bytes_per_second,
        flops={"bfloat16": count * 1.97e14},
    )


def whole(config: ModelConfig, *, decode: bool = True) -> DeviceWork:
    return device_work(config, parse_layout("data=1", num_devices=1), parse_slice("v5e:1x1"), decode=decode)


def step(
    config: ModelConfig, chips: int, rows: int, context: int, *, width: float, cache: float = 2.0, decode: bool = True
) -> Split:
    rates = Rates(together(chips).device_flops(), together(chips).device_flops(), together(chips).hbm_bytes_per_second)
    tokens = rows if decode else context
    ones = np.ones(1)
    steps = Steps(
        tokens=tokens * ones, rows=(rows if decode else 1) * ones, keys=context * ones, read=rows * context * ones,
        weight_bytes=width * ones, cache_bytes=cache * ones, narrow=np.zeros(1, bool),
    )  # fmt: skip
    return step_seconds(Columns.of([whole(config, decode=decode)], [rates]), steps, NOMINAL)


def test_a_token_of_the_cache_has_160_kb_in_int8() -> None:
    assert whole(LLAMA_70B).cache == 163_840


@pytest.mark.parametrize(("hw", "book"), [("v5e:2x4", 17e-3)])
def test_a_step_of_70b_takes_17_ms_on_eight_chips(hw: str, book: float) -> None:
    """32 rows of 8,192 positions, weights and cache in int8: 112 GB are read by 8 chips."""
    on = replace(parse_slice(hw), chip=replace(BOOK, hbm_bytes_per_second=8.1e11))
    layout = parse_layout("tensor=8", num_devices=8)
    work = Workload(8192 - 0.5, 1, 8192)
    request = SweepRequest("70b", LLAMA_70B, (on,), work, "decode", (32,), (2048,), ("int8",), ("bf16",), ("int8",))
    scores = score(request, (Placed.of(request, layout, on),))
    read = scores.decode.weights[0] * DEFAULT.best.hbm + scores.decode.cache[0] * DEFAULT.best.hbm
    assert read == pytest.approx(book, rel=0.03)
    assert scores.memory[0] * 8 == pytest.approx(112e9, rel=0.02)


def test_a_step_of_70b_takes_8_5_ms_on_sixteen_chips() -> None:
    found = step(LLAMA_70B, 16, 32, 8192, width=1, cache=1)
    assert (found.weights + found.cache)[0] * 8.2 / 8.1 == pytest.approx(8.5e-3, rel=0.03)


@pytest.mark.parametrize(
    ("weights", "slice_"),
    [
        pytest.param("bf16", "4x4", marks=pytest.mark.slow),
        pytest.param("int8", "2x4", marks=pytest.mark.slow),
        ("int4", "2x2"),
    ],
)
def test_the_smallest_slice_that_holds_70b(weights: str, slice_: str) -> None:
    request = SweepRequest(
        "70b", LLAMA_70B, (Slice(chip("v5e"), (1, 1)),), Workload.of(64, 64), "decode", (1,), weights=(weights,),
    )  # fmt: skip
    with pytest.raises(NothingFitsError, match=f"the smallest v5e slice that fits is v5e:{slice_}"):
        plan(request)


def test_memory_that_is_read_whole_takes_19_ms_and_gives_a_quarter_of_a_request() -> None:
    """43 caches of 8,192 positions beside the weights fill 16 chips of 16 GB; answers have 512 tokens."""
    found = step(LLAMA_70B, 16, 43, 8192, width=2)
    assert found.total[0] == pytest.approx(19.5e-3, rel=0.03)
    assert 43 / (found.total[0] * 512) / 16 == pytest.approx(0.27, rel=0.03)


def test_a_prompt_of_8192_tokens_takes_0_91_s_and_three_servers_feed_one() -> None:
    """At 40 % of the peak of 16 chips, without attention's scores; decode serves 32 rows of 512 tokens."""
    prompt = step(LLAMA_70B, 16, 1, 8192, width=2, decode=False).maths[0] / 0.4
    assert prompt == pytest.approx(0.91, rel=0.03)
    decode = 0.019 * 512 / 32  # as the book rounds it
    assert prompt / decode == pytest.approx(2.99, rel=0.03)


def test_one_matrix_on_a_4x8_slice() -> None:
    """[64, 8192] by [8192, 28672] over 32 chips: gathered in 11 us over one axis, read in 18, multiplied in 4.8."""
    gather = torus_cost("all-gather", [Side(8, 1, True)], 4.5e10).seconds_per_byte * 2 * 64 * 8192
    assert gather == pytest.approx(11.7e-6, rel=0.03)
    share = 8192 * 28672 / 32
    assert 2 * share / 8.2e11 == pytest.approx(18.1e-6, rel=0.03)
    assert 2 * 64 * share / 1.97e14 == pytest.approx(4.8e-6, rel=0.03)


def test_an_all_gather_over_four_chips() -> None:
    """bf16[2048, 8192]: 377 us in a ring, 560 without the link from the last to the first; a profile had 680."""
    size = 2 * 2048 * 8192
    ring, line = (torus_cost("all-gather", [Side(4, 1, wraps)], 4.5e10).seconds_per_byte for wraps in (True, False))
    assert ring * size == pytest.approx(377e-6, rel=0.03)
    assert line * size == pytest.approx(560e-6, rel=0.03)
    best, nominal = DEFAULT.best, chip("v5e").link_bytes_per_second
    assert nominal is not None
    guess = torus_cost("all-gather", [Side(4, 1, False)], nominal).seconds_per_byte * size / best.links
    assert guess + 3 * best.hop_seconds == pytest.approx(680e-6, rel=0.03)


@pytest.mark.parametrize(
    ("rows", "book"), [(1, 4.98), (8, 12.13), (16, 20.30), (32, 36.65), (64, 69.33), (240, 249.09)]
)
def test_steps_of_13b_on_eight_chips(rows: int, book: float) -> None:
    found = step(LLAMA_13B, 8, rows, 8192, width=2)
    assert found.total[0] * 1e3 == pytest.approx(book, rel=0.03)


@pytest.mark.parametrize(("rows", "book"), [(1, 4.17), (8, 5.60), (16, 7.23), (32, 10.50), (64, 17.04), (240, 52.99)])
def test_steps_of_13b_with_a_fifth_of_the_cache(rows: int, book: float) -> None:
    found = step(LLAMA_13B, 8, rows, 8192, width=2, cache=2 / 5)
    assert found.total[0] * 1e3 == pytest.approx(book, rel=0.03)
