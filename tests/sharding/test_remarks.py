"""What is said of layouts that fit: devices that are left, and KV heads that are held several times."""

import jax.numpy as jnp
import pytest

from distaff.sharding.check import Devices
from distaff.sharding.collectives import StepShape, predict
from distaff.sharding.footprint import footprint
from distaff.sharding.parsing import parse_layout
from distaff.sharding.remarks import remarks_on

from .shipped import shipped

BF16 = jnp.dtype(jnp.bfloat16)


def remarks(model: str, text: str, devices: int = 16) -> tuple[str, ...]:
    return remarks_on(parse_layout(text, num_devices=devices), shipped(model), Devices(devices), dtype=BF16)


def test_copies_of_kv_heads_are_told_with_their_price_and_what_has_none() -> None:
    # 32 layers of k and v [8, 128, 4096] are 512 MiB, of which a sixteenth is there once more; a head is 256 numbers.
    assert remarks("llama-3.1-8b", "tensor=16") == (
        "layout tensor=16: 8 KV heads over tensor=16: each is held 2 times, 0.03 GiB of weights and 8 KiB of each "
        "token's cache more on each device; sequence:sequence=2,tensor=8 holds each once",
    )
    once = footprint(shipped("llama-3.1-8b"), parse_layout("sequence=2,tensor=8", num_devices=16), BF16)
    assert once.cache_token == 8 * 1024 and once.kv_copies == 0


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("stage=2,tensor=16", "sequence+pipeline:stage=2,sequence=2,tensor=8 holds"),
        ("attention-ff:tensor=16,tensor2=2", "sequence+attention-ff:sequence=2,tensor=8,tensor2=2 holds"),
        ("sequence-alltoall:sequence=4,tensor=4", None),
        ("data=2,tensor=8", None),
    ],
)
def test_a_layout_without_copies_is_one_that_can_be_run(text: str, better: str | None) -> None:
    said = remarks("llama-3.1-70b", text, 32)
    copied = [each for each in said if "KV heads" in each]
    assert bool(copied) == (text != "data=2,tensor=8")
    if better is not None:
        assert better in copied[0]
        other = parse_layout(better.split()[0], num_devices=32)
        assert other.num_devices == 32 and predict(shipped("llama-3.1-70b"), other, StepShape(32), BF16)


def test_devices_that_are_left_are_told() -> None:
    assert remarks("llama-3.1-8b", "tensor=4", 9) == (
        "layout tensor=4 uses the first 4 of 9 devices; 2 of it, each on devices of its own, would use 8",
    )
    assert remarks("llama-3.1-8b", "tensor=8", 9) == ("layout tensor=8 uses the first 8 of 9 devices",)
    assert remarks("llama-3.1-8b", "tensor=8", 8) == ()
