"""What rounded weights take, and what rounding them takes."""

import json
import subprocess
import sys
from math import prod
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from distaff.models.checkpoints import shipped_configs
from distaff.models.compress import parse_scheme, quantizer
from distaff.models.decoder import weight_specs
from distaff.models.families import config_from_hf


@pytest.mark.parametrize("scheme", ["int8", "int8-weight", "int8-weight:128", "int4", "int4:128", "fp8"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_linear_weights_shrink_as_far_as_they_should(model: str, scheme: str) -> None:
    """Scales included, in bytes of what is held against bfloat16."""

    config = config_from_hf(json.loads(shipped_configs()[model].read_text()), source=model)
    made, specs = quantizer(parse_scheme(scheme), config), weight_specs(config, jnp.bfloat16)

    def held(path: str) -> int:
        return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(made.abstract(specs[path])))

    linear = [path for path, spec in specs.items() if spec.contracted and "vocab" not in spec.axes]
    plain = {path: 2 * prod(spec.shape) for path, spec in specs.items()}
    ratio = sum(map(held, linear)) / sum(plain[path] for path in linear)
    print(f"{model} {scheme}: linear weights {ratio:.4f}, all {sum(map(held, specs)) / sum(plain.values()):.4f}")
    assert ratio <= (0.30 if scheme.startswith("int4") else 0.53)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_rounding_takes_less_than_the_model_and_a_layer(scheme: str) -> None:
    command = [sys.executable, "-m", f"{__package__ or 'tests.models.compress'}.quantise_peak", scheme]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    most, whole, rounded = map(int, printed.split())
    layer = 2 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    print(f"{most / 1e6:.0f} MB, in bfloat16 {whole / 1e6:.0f}, rounded {rounded / 1e6:.0f}")
    assert rounded < most < whole + layer
