"""What a device computes, reads and sends: coefficients against the tables that the step itself is made of."""

import jax.numpy as jnp
import pytest

from distaff.models import costs
from distaff.models.costs import work_of
from distaff.sharding.collectives import StepShape, predict
from distaff.sharding.footprint import footprint
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.efficiency import NOMINAL
from distaff.sharding.sweep.roofline import Columns, Rates, Steps, step_seconds
from distaff.sharding.sweep.slices import parse_slice
from distaff.sharding.sweep.work import device_work, used

from ..shipped import shipped
from .asked import LLAMA, SMALL, V5E

BF16 = jnp.dtype(jnp.bfloat16)


@pytest.mark.parametrize(
    "text", ["tensor=4", "tensor-2d:tensor=2,tensor2=2", "sequence=2,tensor=2", "stage=2,tensor=2"]
)
@pytest.mark.parametrize("decode", [True, False])
def test_coefficients_give_what_is_predicted_of_a_step(text: str, decode: bool) -> None:
    """Bytes on the links of other sizes than those that the lines were drawn through, within 1 %."""
    layout = parse_layout(text, num_devices=4)
    work = device_work(SMALL, layout, V5E, decode=decode)
    tokens = 64 if decode else 4096
    shape = StepShape(tokens) if decode else StepShape(1, tokens)
    sent = used(predict(SMALL, layout, shape, BF16), cached=False)
    line = work.sends.num_bytes
    assert line.fixed + line.each * tokens == pytest.approx(sum(each.link_bytes(layout) for each in sent), rel=0.01)
    assert work.sends.count == sum(each.count for each in sent)


@pytest.mark.parametrize("text", ["tensor=4", "data=2,tensor=2", "attention-ff:tensor=2,tensor2=2"])
def test_memory_is_that_of_the_footprint(text: str) -> None:
    layout = parse_layout(text, num_devices=4)
    work = device_work(LLAMA, layout, V5E, decode=True)
    held = footprint(LLAMA, layout, BF16)
    assert work.held * 2 == held.weights
    assert work.cache * 2 == held.cache_token


def test_a_step_on_one_device_computes_and_reads_what_the_model_has() -> None:
    work = device_work(LLAMA, parse_layout("data=1", num_devices=1), parse_slice("v5e:1x1"), decode=True)
    table = 128256 * 4096
    assert work.linear + work.head == pytest.approx(2 * (8.03e9 - table), rel=0.001)
    assert work.weights + work.head / 2 == pytest.approx(8.03e9 - table, rel=0.001)
    assert work.scores == 4 * 32 * 128 * 32
    assert work.sends.count == 0


def test_of_a_mixture_a_step_reads_the_experts_that_it_needs() -> None:
    config = shipped("qwen3-30b-a3b")
    work = device_work(config, parse_layout("data=1", num_devices=1), parse_slice("v5e:1x1"), decode=True)
    assert work.share == 8 / 128
    assert work.experts == pytest.approx(48 * 128 * 3 * 768 * 2048)
    active = work.linear + work.head
    assert active == pytest.approx(2 * (3.35e9 - 151936 * 2048), rel=0.02)  # "A3B", the embeddings left out


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b", "gemma-3-27b"])
@pytest.mark.parametrize("context", [512, 8192])
def test_a_step_on_one_device_is_that_of_models_costs(model: str, context: int) -> None:
    """FLOPs and bytes, which models/costs.py counts from the configuration alone; mixtures and windows among them."""
    config, rows = shipped(model), 8
    work = device_work(config, parse_layout("data=1", num_devices=1), parse_slice("v5e:1x1"), decode=True)
    step = Steps.one(
        tokens=rows, rows=rows, keys=context, read=rows * context, weight_bytes=2.0, cache_bytes=2.0
    )  # fmt: skip
    split = step_seconds(Columns.of([work], [Rates(1.0, 1.0, 1.0)]), step, NOMINAL)
    wanted = work_of(config, costs.Steps(1, rows, rows, rows * context, rows * context), weight_bytes=2.0, kv_bytes=2.0)
    assert (split.maths + split.scores)[0] == pytest.approx(wanted.flops, rel=0.005)
    assert (split.weights + split.cache)[0] == pytest.approx(wanted.bytes, rel=0.005)


def test_what_is_sent_is_that_of_the_chips_as_they_stand() -> None:
    """On a whole 4x4 slice the compiler sums where it scatters on others: twice the bytes."""
    layout = parse_layout("tensor-scatter:tensor=16", num_devices=16)
    square, flat = (device_work(SMALL, layout, parse_slice(on), decode=False) for on in ("v5e:4x4", "v5e:2x8"))
    for work, chips in ((square, (4, 4)), (flat, (2, 8))):
        sent = used(predict(SMALL, layout, StepShape(1, 4096), BF16, chips=chips), cached=False)
        line = work.sends.num_bytes
        assert line.fixed + line.each * 4096 == pytest.approx(sum(each.link_bytes(layout) for each in sent), rel=0.01)
    assert square.sends.num_bytes.each > 1.2 * flat.sends.num_bytes.each
