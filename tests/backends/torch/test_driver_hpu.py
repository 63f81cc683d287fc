"""What is asked of habana_frameworks, and in which order: of a fake of it, on the host. Nothing here is a Gaudi."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from distaff.backends.base import AttentionSpec, Backend, CacheGroup, RaggedIndex
from distaff.backends.errors import UnsupportedError
from distaff.backends.quantized import Quantized
from distaff.backends.reference import ReferenceBackend
from distaff.backends.torch import backend as backend_module
from distaff.backends.torch import driver_hpu
from distaff.backends.torch.backend import TorchBackend
from distaff.backends.torch.driver_hpu import ENVIRONMENT, RECIPES, make
from distaff.backends.torch.names import torch

from ...golden.harness import GOLDEN, Golden
from .fake_habana import FakeHabana, installed
from .test_engine import engine_of, requests


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHabana]:
    for name in (*ENVIRONMENT, RECIPES):
        monkeypatch.delenv(name, raising=False)
    habana = FakeHabana()
    with installed(habana):
        yield habana
    for name in (*ENVIRONMENT, RECIPES):
        os.environ.pop(name, None)


@pytest.fixture
def on_the_host(fake: FakeHabana, monkeypatch: pytest.MonkeyPatch) -> TorchBackend:
    """The backend of Gaudis, whose device is the host's."""
    driver = replace(make(), device="cpu")
    monkeypatch.setattr(backend_module, "driver_for", lambda device: driver)
    return TorchBackend(name="torch:hpu", device="hpu")


def test_a_step_is_marked_and_layers_are_captured_once_for_each_shape(
    fake: FakeHabana, on_the_host: TorchBackend
) -> None:
    def step(of: Backend, x: Any, weights: Any, cache: Any) -> Any:
        rows = x.shape[0]
        table, starts = jnp.arange(rows, dtype=jnp.int32)[:, None], jnp.arange(rows + 1, dtype=jnp.int32)
        index = RaggedIndex(table, starts, jnp.ones(rows, jnp.int32), 1)

        def layer(state: Any, w: Any) -> Any:
            x, cache, number = state
            q = (x @ w).reshape(rows, 1, 4)
            out, cache = of.ragged_attention(q, q, q * 2, cache, number, index, AttentionSpec(0.5))
            return (out.reshape(rows, 4), cache, number + 1), None

        return lax.scan(layer, (x, cache, jnp.int32(0)), weights)[0][0]

    weights = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    for rows in (2, 2, 8):
        args = np.ones((rows, 4), np.float32), weights, np.zeros((5, rows, 2, 2, 1, 4), np.float32)
        program = on_the_host.compile(partial(step, on_the_host), args)
        for _ in range(2):
            want = jax.jit(partial(step, ReferenceBackend()))(*args)
            np.testing.assert_allclose(np.asarray(program(*args)), want, rtol=1e-5)
    assert fake.captured == 3 and fake.replayed == 3 * 10 - 3  # five layers, twice, by three programs
    told = [event for event in fake.events if event != "capture"]
    assert told == ["memory", "wrap", "mark_step", "mark_step"] * 3


def test_floats_of_8_bits_are_refused_by_name(on_the_host: TorchBackend) -> None:
    weight = Quantized(jnp.ones((2, 4), jnp.float8_e4m3fn), jnp.ones((2, 1)), "float8_e4m3fn", jnp.dtype("float32"))
    with pytest.raises(UnsupportedError, match="weights of float8_e4m3fn, supported are .* int8, int8-weight or int4"):
        on_the_host.prepare_params({"weight": weight})
    with pytest.raises(UnsupportedError, match="kv dtype int8, supported are float32, bfloat16"):
        on_the_host.check([CacheGroup(1, 2, 16)], dtype=jnp.float32, kv_dtype=jnp.int8, page_size=16)


def test_processes_meet_by_hccl_which_is_registered_first(
    on_the_host: TorchBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []

    def imported(name: str) -> Any:
        made.append(name)
        return import_module(name)

    monkeypatch.setattr(driver_hpu, "import_module", imported)
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *args, **more: "store")
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **more: made.append((*args, more)))
    among = on_the_host.among([("data", 2), ("tensor", 2)], 3)
    assert among.ranks is not None and among.ranks.place(("tensor",)) == 1
    among.meet("10.0.0.1", 4000, rank=3, count=4, timeout=5.0)
    assert made[-2] == "habana_frameworks.torch.distributed.hccl"
    limit = timedelta(seconds=50)
    assert made[-1] == ("hccl", {"store": "store", "rank": 3, "world_size": 4, "timeout": limit})


def test_the_warm_up_asks_for_memory_and_records_each_bucket_the_smallest_first(
    fake: FakeHabana, on_the_host: TorchBackend
) -> None:
    """After it nothing is recorded: requests find every graph."""
    golden = Golden(GOLDEN / "llama31")
    layers = len(golden.config.layers)
    with engine_of(golden, on_the_host) as engine:
        buckets = sorted(engine._device.buckets, key=lambda bucket: bucket.num_tokens)
        sizes = [bucket.num_tokens for bucket in buckets]
        before = [bucket.kind == "decode" for bucket in buckets]  # a loop over steps is decided first, and turns twice
        fake.events.clear()
        engine.warm_up()
        events = "".join({"memory": "m", "wrap": "w", "capture": "c", "mark_step": "s"}[each] for each in fake.events)
        # Admission and copies hold no layers; for a step memory, a graph of its layers, their recording, its end. What
        # was collected is sent before a loop or a branch is decided, too.
        assert re.sub("s+", "s", events) == "ms" * 2 + "".join(f"mw{'s' * looks}cs" for looks in before)
        recorded = fake.captured
        assert recorded == len(sizes) and recorded + fake.replayed == layers * (len(sizes) + sum(before))
        answers = engine.generate(requests(golden, 4))
        assert len(answers) == 4 and fake.captured == recorded
        assert fake.fused > 0
        programs = engine._device._programs  # pyright: ignore[reportAttributeAccessIssue]
        made = [name.num_tokens for name in programs if not isinstance(name, str)]
        assert made == sizes


def test_a_bucket_that_memory_does_not_hold_is_refused_before_it_is_recorded(
    fake: FakeHabana, on_the_host: TorchBackend
) -> None:
    golden = Golden(GOLDEN / "llama31")
    with engine_of(golden, on_the_host) as engine:
        fake.free = 200_000
        with pytest.raises(
            UnsupportedError, match=r"a step takes 0.2 MiB beside weights and cache, and the device has 0.2 MiB left"
        ):
            engine.warm_up()
        assert fake.captured == 2  # the smaller ones


def test_recipes_are_kept_where_nobody_says_otherwise(fake: FakeHabana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/var/cache/distaff/jax")
    make()
    assert os.environ.pop(RECIPES) == "/var/cache/distaff/hpu-recipes,false,8192"
    for given in ("/elsewhere,False,100", "/elsewhere,true,100,false"):
        monkeypatch.setenv(RECIPES, given)
        make()
        assert os.environ[RECIPES] == given
    monkeypatch.setenv(RECIPES, "/elsewhere")
    with pytest.raises(UnsupportedError, match=rf"{RECIPES}=/elsewhere: expected FOLDER,DELETE,MB"):
        make()
    monkeypatch.delenv(RECIPES)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # nothing is to be kept
    make()
    assert RECIPES not in os.environ


def test_the_engine_gives_the_references_tokens(fake: FakeHabana, on_the_host: TorchBackend) -> None:
    golden = Golden(GOLDEN / "llama31")
    wanted = requests(golden, 3)
    with engine_of(golden, on_the_host) as engine, engine_of(golden, "reference") as reference:
        got, want = (
            [list(answer.token_ids) for answer in each.generate(wanted)]  # pyright: ignore[reportAttributeAccessIssue]
            for each in (engine, reference)
        )
    assert got == want
    assert 0 < fake.captured < fake.replayed


def test_the_environment_is_set_before_the_first_import(fake: FakeHabana) -> None:
    make()
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT


def test_a_variable_that_contradicts_is_named(fake: FakeHabana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PT_HPU_LAZY_MODE", "0")
    with pytest.raises(UnsupportedError, match="PT_HPU_LAZY_MODE=0: torch:hpu runs with 1; unset the variable"):
        make()


def test_a_missing_card_and_missing_software_are_told_apart(fake: FakeHabana) -> None:
    fake.available = False
    with pytest.raises(UnsupportedError, match="finds no Gaudi; look at hl-smi"):
        make()


def test_without_the_software_the_message_says_where_it_comes_from() -> None:
    with pytest.raises(UnsupportedError, match="habana_frameworks is not installed; it comes with Intel's container"):
        make()


def test_software_of_another_release_is_told(fake: FakeHabana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "habana_frameworks.torch.core", None)  # the import fails
    with pytest.raises(UnsupportedError, match=r"cannot be imported: .*; its release, torch's and the driver's"):
        make()


def test_memory_is_the_cards(on_the_host: TorchBackend) -> None:
    assert on_the_host.memory().total == 96 * 2**30 and on_the_host.memory().free == 60 * 2**30
