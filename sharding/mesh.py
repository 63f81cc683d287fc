"""From a layout to devices."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from .errors import DevicesError
from .layout import Layout


def make_mesh(layout: Layout, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the first devices.

    Args:
        layout: what to lay out.
        devices: None takes all of this process.

    Raises:
        DevicesError: there are fewer.
    """
    devices = jax.devices() if devices is None else devices
    if layout.num_devices > len(devices):
        raise DevicesError(f"layout {layout}: takes {layout.num_devices} devices, there are {len(devices)}")
    sizes = layout.sizes or {"data": 1}
    return Mesh(np.array(devices[: layout.num_devices]).reshape(tuple(sizes.values())), tuple(sizes))
