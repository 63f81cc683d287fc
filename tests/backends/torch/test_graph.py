"""Building the graph: what has no rule is named, what is built is one node for each operation of torch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from distaff.backends.errors import UnsupportedError

from .running import lowered


def test_primitives_without_a_rule_are_named_with_the_line_that_uses_them() -> None:
    def step(x: jax.Array) -> jax.Array:
        def body(carry: jax.Array, _: None) -> tuple[jax.Array, None]:
            return jnp.linalg.qr(carry)[0], None

        return lax.scan(body, jnp.fft.fft(x).real, None, length=2)[0]

    with pytest.raises(UnsupportedError) as caught:
        lowered(step, np.eye(4, dtype=np.float32))
    told = str(caught.value).splitlines()
    assert any(line.startswith("  fft, at ") and re.search(r"test_graph.py:\d+ \(step\)", line) for line in told), told
    assert any("qr" in line and re.search(r"test_graph.py:\d+ \(body\)", line) for line in told), told


def test_a_form_that_a_rule_lacks_is_named_too() -> None:
    with pytest.raises(UnsupportedError, match=r"primitive pad with .*test_graph.py:\d+ \(<lambda>\)"):
        lowered(lambda x: lax.pad(x, 0.0, ((0, 0, 1),)), np.ones(3, np.float32))


def test_what_depends_on_constants_alone_is_computed_when_the_graph_is_built() -> None:
    code = lowered(lambda x: x + (jnp.arange(4) * 3 + 1).astype(jnp.float32), np.ones(4, np.float32)).module.code
    assert "mul" not in code and code.count("add") >= 1


def test_what_nobody_reads_is_left_out() -> None:
    code = lowered(lambda x: (jnp.sin(x).sum(), x * 2)[1], np.ones(4, np.float32)).module.code
    assert "sin" not in code
