"""What is asked of habana_frameworks, and in which order: of a fake of it, on the host. Nothing here is a Gaudi."""

import os
import sys
from collections.abc import Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from distaff.backends.errors import UnsupportedError
from distaff.backends.torch import backend as backend_module
from distaff.backends.torch.backend import TorchBackend
from distaff.backends.torch.driver_hpu import ENVIRONMENT, make

from ...golden.harness import GOLDEN, Golden
from .fake_habana import FakeHabana, installed
from .test_engine import engine_of, requests


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHabana]:
    for name in ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    habana = FakeHabana()
    with installed(habana):
        yield habana
    for name in ENVIRONMENT:
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
    def step(x: jax.Array, weights: jax.Array) -> jax.Array:
        return lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    weights = np.random.default_rng(0).normal(size=(5, 4, 4)).astype(np.float32)
    for rows in (2, 2, 8):
        x = np.ones((rows, 4), np.float32)
        program = on_the_host.compile(
            step, (jax.ShapeDtypeStruct(x.shape, x.dtype), jax.ShapeDtypeStruct(weights.shape, x.dtype))
        )
        for _ in range(2):
            np.testing.assert_allclose(np.asarray(program(x, weights)), jax.jit(step)(x, weights), atol=1e-6)
    assert fake.captured == 3 and fake.replayed == 3 * 10 - 3  # five layers, twice, by three programs
    assert fake.events == ["wrap", "mark_step", "mark_step"] * 3


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
