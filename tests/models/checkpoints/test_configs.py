import math

import jax.numpy as jnp
import pytest

from distaff.models.checkpoints import shipped_configs
from distaff.models.checkpoints.json_file import read_object
from distaff.models.decoder import weight_specs
from distaff.models.families import config_from_hf

# Numbers of parameters as published; models/configs/README.md has the sources.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "qwen3-30b-a3b": 30_532_122_624,
    "gemma-3-27b": 27_009_346_304,
    "gpt-oss-20b": 20_914_757_184,
    "palm-62b": 62_500_000_000,
    "palm-540b": 540_350_000_000,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_has_the_published_number_of_parameters(name: str) -> None:
    config = config_from_hf(read_object(shipped_configs()[name]), source=name)
    found = sum(math.prod(spec.shape) for spec in weight_specs(config, jnp.dtype(jnp.bfloat16)).values())
    exact = not name.startswith("palm")  # the paper gives two digits behind the point
    assert found == PUBLISHED[name] if exact else math.isclose(found, PUBLISHED[name], rel_tol=1e-4)


def test_every_shipped_configuration_is_counted() -> None:
    assert set(shipped_configs()) == set(PUBLISHED)
