"""Only the very program counts as compiled before, under the same options, by the same compiler."""

from importlib.util import find_spec

import jax
import jax.numpy as jnp
import pytest
from jax.stages import Lowered

from . import compiled_before
from .compiled_before import WANTED, digest
from .test_compile_matrix import name_of, programs

needs_libtpu = pytest.mark.skipif(not find_spec("libtpu"), reason="extra `tpu` is not installed")


def lowered(factor: float) -> Lowered:
    return jax.jit(lambda x: x * factor).lower(jnp.ones(3))


@needs_libtpu
def test_a_digest_is_one_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(lowered(2.0), "v5e:2x2", {"a": 1})
    assert digest(lowered(2.0), "v5e:2x2", {"a": 1}) == first
    others = [digest(lowered(3.0), "v5e:2x2", {"a": 1}), digest(lowered(2.0), "v6e:2x2", {"a": 1})]
    others += [digest(lowered(2.0), "v5e:2x2", {"a": 2}), digest(lowered(2.0), "v5e:2x2", None)]
    monkeypatch.setattr(compiled_before, "libtpu_version", lambda: "another")
    others.append(digest(lowered(2.0), "v5e:2x2", {"a": 1}))
    assert len({first, *others}) == 6


def test_what_is_noted_is_what_ci_compiles_and_the_soak_takes_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WANTED, raising=False)
    wanted = {
        name_of(case, target, drawn, queries)
        for case, target, drawn, in_ci in programs()
        if in_ci
        for queries in (1, 32)
    }
    assert set(compiled_before.compiled_before()) == wanted
    monkeypatch.setenv(WANTED, "1")
    assert not compiled_before.compiled_before()
