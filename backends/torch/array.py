"""Arrays that live on a torch device, as the engine passes them from call to call."""

from typing import Any

import jax
import numpy as np

from .dtypes import from_numpy, to_numpy, torch_dtype
from .names import Tensor, torch


class DeviceArray:
    """A tensor, and the type that JAX gives to what it carries.

    numpy reads it (`np.asarray`), and JAX's trees see a leaf with `shape` and `dtype`.
    """

    def __init__(self, tensor: Tensor, dtype: Any) -> None:
        self._tensor: Tensor | None = tensor
        self.dtype = np.dtype(dtype)
        self.shape: tuple[int, ...] = tuple(tensor.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def tensor(self) -> Tensor:
        """What holds the numbers.

        Raises:
            RuntimeError: a program has consumed it.
        """
        if self._tensor is None:
            raise RuntimeError(f"this array ({self.dtype}{list(self.shape)}) was donated to a program")
        return self._tensor

    def delete(self) -> None:
        """Lets go of the memory."""
        self._tensor = None

    def is_deleted(self) -> bool:
        return self._tensor is None

    def block_until_ready(self) -> "DeviceArray":
        """Waits for the device: one number cannot be read before all of them are there."""
        if self.tensor.device.type != "cpu" and self.size:
            self.tensor.reshape(-1)[:1].cpu()
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = to_numpy(self.tensor, self.dtype)
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}{list(self.shape)})"


def to_tensor(leaf: Any, device: str) -> Tensor:
    """A leaf of a program's arguments as a tensor on the device.

    JAX's arrays on the host are handed over by dlpack, writable numpy arrays share their memory; both without a copy
    where the device is the host.
    """
    if isinstance(leaf, DeviceArray):
        return leaf.tensor
    if isinstance(leaf, jax.Array):
        return _from_jax(leaf).to(device)
    return from_numpy(np.asarray(leaf)).to(device)


def _from_jax(array: jax.Array) -> Tensor:
    # What dlpack or torch cannot carry: other processors' memory, keys, empty arrays, floats of 8 bits.
    on_host = all(device.platform == "cpu" for device in array.devices()) and array.size > 0
    on_host = on_host and not array.dtype.name.startswith("float8")
    if not on_host or len(array.devices()) != 1:
        return from_numpy(np.asarray(array))
    tensor = torch.from_dlpack(array)
    wanted = torch_dtype(array.dtype)
    return tensor if tensor.dtype == wanted else tensor.view(wanted)
