"""Candidates: which there are, what they cost, how many a second, and in which order."""

import time
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from distaff.backends.hardware import chip
from distaff.sharding.check import Devices, problem
from distaff.sharding.collectives import StepShape, predict
from distaff.sharding.footprint import footprint
from distaff.sharding.parsing import parse_layout
from distaff.sharding.sweep.efficiency import DEFAULT, NOMINAL, Efficiencies
from distaff.sharding.sweep.errors import NothingFitsError, SweepError
from distaff.sharding.sweep.explain import advice, counterfactuals, one, only, shares
from distaff.sharding.sweep.links import Links, Side, torus_cost
from distaff.sharding.sweep.plan import Placed, place, score
from distaff.sharding.sweep.rank import front, order
from distaff.sharding.sweep.request import SweepRequest, Targets, Workload, parse_range
from distaff.sharding.sweep.rows import rows_of
from distaff.sharding.sweep.slices import Slice, parse_slice
from distaff.sharding.sweep.space import layouts
from distaff.sharding.sweep.store import load, save
from distaff.sharding.sweep.sweep import plan
from distaff.sharding.sweep.work import device_work, used

from ..shipped import shipped

BF16 = jnp.dtype(jnp.bfloat16)
LLAMA = shipped("llama-3.1-8b")
SMALL = replace(LLAMA, layers=LLAMA.layers[:2])
V5E = parse_slice("v5e:2x2")


def request(**fields: object) -> SweepRequest:
    given: dict[str, object] = {
        "model": "small", "config": SMALL, "slices": (V5E,), "workload": Workload.of(512, 64), "batches": (1, 8, 64),
    }  # fmt: skip
    return SweepRequest(**{**given, **fields})  # pyright: ignore[reportArgumentType]


def test_every_layout_of_a_slice_is_there_once_and_fits_the_model() -> None:
    found = layouts(SMALL, 8, ("data", "tensor", "tensor2", "stage", "sequence", "expert"))
    assert len({(each.mesh, each.rules, each.prefill) for each in found}) == len(found)
    assert all(each.num_devices == 8 and problem(each, SMALL, Devices(8), dtype=BF16) is None for each in found)
    names = {str(each) for each in found}
    assert {"tensor=8", "data=2,tensor=4", "tensor-2d:tensor=4,tensor2=2", "pipeline:stage=2,tensor=4"} <= names
    assert {each.preset for each in layouts(SMALL, 8, ("data",))} == {"replica", "attention-data"}


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
    assert work.weights == pytest.approx(8.03e9 - table, rel=0.001)
    assert work.scores == 4 * 32 * 128 * 32
    assert work.sends.count == 0


def test_of_a_mixture_a_step_reads_the_experts_that_it_needs() -> None:
    config = shipped("qwen3-30b-a3b")
    work = device_work(config, parse_layout("data=1", num_devices=1), parse_slice("v5e:1x1"), decode=True)
    assert work.share == 8 / 128
    assert work.experts == pytest.approx(48 * 128 * 3 * 768 * 2048)
    active = work.linear + work.head
    assert active == pytest.approx(2 * (3.35e9 - 151936 * 2048), rel=0.02)  # "A3B", the embeddings left out


def test_links_of_a_torus() -> None:
    """A ring sends both ways, a line one way; a second axis has links of its own; an all-reduce is two gathers."""
    rate = 5e10
    ring, line = Side(16, 1, True), Side(4, 1, False)
    assert torus_cost("all-gather", [ring], rate).seconds_per_byte == 1 / (2 * rate)
    assert torus_cost("all-gather", [line], rate).seconds_per_byte == pytest.approx(3 / 4 / rate)
    assert torus_cost("all-reduce", [ring, ring], rate).seconds_per_byte == 2 / (4 * rate)
    assert torus_cost("all-to-all", [ring], rate).seconds_per_byte == 16 / 4 / (2 * rate)
    assert (torus_cost("all-gather", [ring], rate).hops, torus_cost("all-reduce", [line], rate).hops) == (8, 6)


def test_a_mesh_lies_on_hosts_of_two_by_two() -> None:
    """As libtpu numbers devices: the first four are a block; the fourth of each host are two chips apart."""
    assert [place[2:] for place in parse_slice("v5e:4x4").coordinates[:6]] == [
        (0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (3, 0)
    ]  # fmt: skip
    links = Links(parse_slice("v5e:4x4"), parse_layout("data=4,tensor=4", num_devices=16))
    rate = chip("v5e").link_bytes_per_second
    assert rate is not None
    assert links.cost("all-gather", ("tensor",)).seconds_per_byte == pytest.approx(3 / 4 / (2 * rate))
    assert links.cost("all-gather", ("data",)).seconds_per_byte == pytest.approx(3 / 4 / (2 * rate / 2))


def test_wrapping_is_for_whole_axes() -> None:
    assert parse_slice("v5e:16x16").wraps(0) and not parse_slice("v5e:8x16").wraps(0)
    assert parse_slice("v5e:8x16").wraps(1)
    assert parse_slice("v5p:4x4x4").wraps(2) and not parse_slice("v5p:2x4x4").wraps(2)


def test_what_goes_between_slices_takes_the_network_of_each_chip() -> None:
    on = parse_slice("v5e:2x2*2")
    links = Links(on, parse_layout("data=2,tensor=4", num_devices=8))
    assert links.cost("all-gather", ("tensor",)).dcn_seconds_per_byte == 0
    assert links.cost("all-gather", ("data",)).dcn_seconds_per_byte == pytest.approx(0.5 / 3.125e9)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5e:3x5", "no v5e slice is 3 chips long"),
        ("v5e:2x2x2", "v5e slices have 2 axes"),
        ("v4:4", "v4 slices have 3 axes, such as 2x2x4"),
        ("h100:16", "links join 8 h100"),
        ("h100:4*2", "only TPUs come in slices"),
        ("v6e", "name chips and how they stand"),
        ("v5e:0x4", "no chips"),
    ],
)
def test_impossible_topologies_are_refused(text: str, says: str) -> None:
    with pytest.raises(SweepError, match=says.replace("(", "\\(")):
        parse_slice(text)


@pytest.mark.soak  # it measures a time
def test_twenty_thousand_candidates_a_second() -> None:
    many = request(
        batches=tuple(range(4, 1604, 4)), chunks=(512, 2048, 8192), weights=("bf16", "int8"), kv=("bf16", "int8")
    )
    placed = place(many)
    began = time.perf_counter()
    scores = score(many, placed)
    assert len(scores) > 20_000
    assert len(scores) / (time.perf_counter() - began) > 20_000


@pytest.mark.slow
def test_low_best_and_high_are_in_this_order() -> None:
    scores = score(request(weights=("bf16", "int8")))
    for low, best, high in (scores.ttft, scores.tpot):
        assert (low <= best).all() and (best <= high).all()
    low, best, high = scores.throughput
    assert (low >= best).all() and (best >= high).all()


def test_the_front_is_what_nothing_beats() -> None:
    low, high = np.array([1.0, 2.0, 2.0, 3.0, 4.0]), np.array([1.0, 3.0, 2.0, 3.0, 5.0])
    assert front(low, high, np.ones(5, bool)).tolist() == [True, True, False, False, True]
    assert front(low, high, np.array([True, False, True, True, False])).tolist() == [True, False, True, True, False]


@pytest.mark.slow
def test_the_order_follows_the_objective_and_the_targets() -> None:
    scores = score(request(targets=Targets(tpot=2e-3)))
    first = {objective: order(scores, objective)[0] for objective in ("latency", "throughput", "cost")}
    fitting = np.flatnonzero(scores.fits)
    assert scores.tpot[1][first["latency"]] == scores.tpot[1][fitting].min()
    kept = fitting[scores.tpot[1][fitting] <= 2e-3]
    assert scores.per_chip[first["throughput"]] == scores.per_chip[kept].max()
    assert first["cost"] == first["throughput"]  # one kind of chip: the same


@pytest.mark.slow
def test_without_a_price_or_a_power_what_needs_them_is_refused() -> None:
    cheap = Slice(replace(chip("v5e"), dollars_per_hour=None), (2, 2))
    for objective, flag in (("cost", "--price CHIP=DOLLARS"), ("energy", "--set CHIP.watts=N")):
        with pytest.raises(SweepError, match=f"of v5e is not known; give it with {flag}"):
            plan(request(slices=(cheap,), objective=objective))


@pytest.mark.slow
def test_a_model_that_is_too_large_says_by_how_much_and_what_would_do() -> None:
    with pytest.raises(
        NothingFitsError, match=r"needs at least .* GiB too little; the smallest v5e slice that fits is v5e:2x2"
    ):
        plan(request(config=LLAMA, slices=(parse_slice("v5e:1x1"),), batches=(1,), workload=Workload.of(16384, 64)))


@pytest.mark.slow
def test_prefill_and_decode_apart_move_the_cache() -> None:
    found = plan(request())
    pair = found.pairs[0]
    assert pair["kv_move_bytes"] == 512 * 2 * 2 * 2 * 8 * 128  # tokens, layers, keys and values, heads, width, bf16
    assert pair["ttft_ms_best"] > pair["kv_move_ms"] > 0


def test_a_row_is_explained_by_changing_one_thing() -> None:
    asked = request(phase="decode")
    layout = parse_layout("tensor=4", num_devices=4)
    row = one(only(asked, rows_of(score(asked), [0])[0], layout, V5E), layout, V5E)
    changes = {each["change"]: each for each in counterfactuals(asked, row, layout, V5E)}
    assert changes["twice the memory bandwidth"]["tpot_ms_best"] < row["tpot_ms_best"]
    assert changes["twice the batch"]["tokens_per_second_per_chip"] > row["tokens_per_second_per_chip"]
    assert sum(shares(row["decode_ms"]).values()) == pytest.approx(1, abs=0.02)
    fastest = min(changes.values(), key=lambda each: each["tpot_ms_best"])
    assert advice(row, list(changes.values()), "decode").startswith(
        f"{fastest['change']} would save most of each token"
    )


def test_a_sweep_is_kept_in_a_folder(tmp_path: Path) -> None:
    import pyarrow.parquet as parquet

    found = plan(request())
    written = save(found, tmp_path)
    assert [path.name for path in written] == ["sweep.json", "rows.csv", "rows.parquet"]
    again = load(tmp_path)
    assert again.rows == found.rows and again.row(found.rows[0]["id"][:6]) == found.rows[0]
    table = parquet.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == [row["id"] for row in found.rows]
    assert table[0]["decode_ms.weights"] == found.rows[0]["decode_ms"]["weights"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1:64", (1, 2, 4, 8, 16, 32, 64)), ("1:48", (1, 2, 4, 8, 16, 32, 48)), ("24", (24,)), ("8,12", (8, 12))],
)
def test_ranges_are_powers_of_two(text: str, numbers: tuple[int, ...]) -> None:
    assert parse_range("--batch", text) == numbers


@pytest.mark.parametrize("text", ["", "0", "a", "8:4", "1:x", "-3"])
def test_other_ranges_are_refused(text: str) -> None:
    with pytest.raises(SweepError, match="--batch"):
        parse_range("--batch", text)


def test_a_layout_of_one_device_needs_no_efficiency_of_links() -> None:
    slow = Efficiencies(NOMINAL, replace(DEFAULT.best, links=0.01), DEFAULT.high)
    layout, on = parse_layout("data=1", num_devices=1), parse_slice("v6e:1x1")
    works = [device_work(SMALL, layout, on, decode=decode) for decode in (True, False)]
    placed = (Placed(on, layout, works[0], works[1]),)
    fast, same = (score(request(slices=(on,), efficiencies=at), placed).tpot[1] for at in (DEFAULT, slow))
    assert (fast == same).all()
