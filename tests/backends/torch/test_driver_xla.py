"""torch_xla's CPU device: random bits, and a family's logits against `transformers`; nothing compiles twice."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from distaff.backends.errors import UnsupportedError
from distaff.backends.select import select_backend
from distaff.backends.torch import driver_xla

from ...golden.harness import FP32_BOUND, GOLDEN, Golden
from . import test_families
from .test_engine import engine_of, requests, tokens_of

pytestmark = pytest.mark.filterwarnings("ignore")  # torch_xla's own


def test_bits_are_jaxs() -> None:
    """torch_xla divides where a signed number is shifted to the right, and rounds towards 0."""
    backend = select_backend("torch:xla")
    seeds = np.asarray([5, 2**32 - 7], np.uint32)

    def bits(seeds: jax.Array) -> jax.Array:
        return jax.random.bits(jax.random.wrap_key_data(seeds, impl="threefry2x32"), (100,))

    np.testing.assert_array_equal(backend.get(backend.compile(bits, (seeds,))(seeds)), bits(jax.numpy.asarray(seeds)))


def test_logits_of_a_family_and_the_number_of_compilations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_families, "BACKEND", select_backend("torch:xla"))
    golden = Golden(GOLDEN / "llama31")
    text, end = test_families.TorchText(golden), len(golden.tokens) - 6
    found = [text.feed(golden.tokens[start:stop]) for start, stop in ((0, 17), (17, end))]
    found += [text.feed([token], width=1) for token in golden.tokens[end : end + 2]]  # the second compiles once more
    metrics = importlib.import_module("torch_xla.debug.metrics")
    before = metrics.counter_value("UncachedCompile")
    found += [text.feed([token], width=1) for token in golden.tokens[end + 2 :]]
    assert metrics.counter_value("UncachedCompile") == before
    assert np.abs(np.concatenate(found) - golden.logits).max() <= FP32_BOUND


@pytest.mark.parametrize(
    "case", ["llama31", *(pytest.param(case, marks=pytest.mark.slow) for case in ("gemma2", "gpt_oss", "qwen3_moe"))]
)
def test_the_engine_gives_the_references_tokens_and_ends_compiling(case: str) -> None:
    """What a branch that no request took before leads to is compiled when one does: the third round takes none. How
    many decode steps a call has does not hang on the time here, so that all rounds are the same calls."""
    golden, counter = Golden(GOLDEN / case), importlib.import_module("torch_xla.debug.metrics").counter_value
    wanted = requests(golden, 3)
    with engine_of(golden, select_backend("torch:xla"), target_burst=600.0) as engine:
        engine.warm_up()
        compiled, got = [counter("UncachedCompile")], []
        for _ in range(3):
            got = [list(answer.token_ids) for answer in engine.generate(wanted)]  # pyright: ignore[reportAttributeAccessIssue]
            compiled.append(counter("UncachedCompile"))
        print(f"{case}: {compiled} programs behind the warm-up and each round")
    assert compiled[-1] == compiled[-2]
    assert got == tokens_of(golden, "reference", wanted)


def test_weights_spread_over_four_devices_give_the_same_tokens() -> None:
    """torch_xla's SPMD, by the table of a layout; in a process of its own, since it is for all of one."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.backends.torch.spmd_program"]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["tokens"] == told["want"] and told["query"] == "{devices=[1,4,1,1]0,1,2,3}"


@pytest.mark.parametrize(("torch", "torch_xla"), [("2.13.0", "2.9.0"), ("2.9.1", "2.8.1")])
def test_versions_that_do_not_fit_are_refused(torch: str, torch_xla: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_xla, "version", lambda name: {"torch": f"{torch}+cpu", "torch_xla": torch_xla}[name])
    wanted = re.escape(f"torch {torch} with torch_xla {torch_xla}: that one is built for torch {torch_xla[:3]};")
    with pytest.raises(UnsupportedError, match=wanted):
        driver_xla.make()


def test_a_device_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def device() -> None:
        raise RuntimeError("no such client")

    monkeypatch.setattr(importlib.import_module("torch_xla"), "device", device)
    monkeypatch.setenv("PJRT_DEVICE", "TPU")
    with pytest.raises(UnsupportedError, match=r"finds no device \(PJRT_DEVICE is TPU; .*\): no such client"):
        driver_xla.make()


def test_without_torch_xla_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_xla, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"torch_xla is not installed; .*distaff\[torch-xla\]"):
        driver_xla.make()
