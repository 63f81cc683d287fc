"""JAX's types in torch.

torch computes little with unsigned integers of 16 and 32 bits, so these are carried as the same bits in the signed
type: sums, products, shifts to the left and logic come out the same. What does not (comparisons, division, conversions,
shifts to the right) has rules of its own in `elementwise` and `conversions`. A random key is two such words on a last
axis.
"""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from ..errors import UnsupportedError
from .names import DType, Tensor, torch

_TORCH: dict[str, DType] = {
    "bool": torch.bool,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint16": torch.int16,
    "uint32": torch.int32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "float8_e5m2": torch.float8_e5m2,
}
_CARRIED = {"uint16": np.dtype(np.int16), "uint32": np.dtype(np.int32)}
_VIEWED = {
    "bfloat16": np.dtype(np.int16),
    "float8_e4m3fn": np.dtype(np.uint8),
    "float8_e5m2": np.dtype(np.uint8),
}  # types that torch and numpy do not share


def is_key(dtype: Any) -> bool:
    """Whether it is the type of random keys.

    Raises:
        UnsupportedError: it is, but of keys whose bits no rule draws.
    """
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return False
    if str(dtype) != "key<fry>":
        raise UnsupportedError(f"random keys of type {dtype}: torch backends draw the bits of threefry2x32 alone")
    return True


def is_carried(dtype: Any) -> bool:
    """Whether it is an unsigned type whose bits a signed type carries."""
    return str(dtype) in _CARRIED


def torch_dtype(dtype: Any) -> DType:
    """The type of the tensor that carries an array of JAX.

    Raises:
        UnsupportedError: torch has nothing for it.
    """
    if is_key(dtype):
        return torch.int32
    name = np.dtype(dtype).name
    if name not in _TORCH:
        raise UnsupportedError(f"type {name}: torch backends carry {', '.join(_TORCH)}")
    return _TORCH[name]


def scalar(value: Any, dtype: Any) -> bool | int | float:
    """A literal of a jaxpr as the number that its tensor would hold."""
    array = np.asarray(value)
    if str(dtype) in _CARRIED:
        array = array.astype(np.dtype(dtype)).view(_CARRIED[str(dtype)])
    if array.dtype.kind in "biu":
        return array.item()
    return float(array)


def from_numpy(array: np.ndarray) -> Tensor:
    """The array as a tensor on the host; memory that may be written is shared, any other is copied."""
    name, wanted = array.dtype.name, torch_dtype(array.dtype)
    carrier = _CARRIED.get(name) or _VIEWED.get(name)
    if not array.flags.c_contiguous or not array.flags.writeable:
        array = np.array(array, order="C")
    if carrier is not None:
        array = array.view(carrier)
    tensor = torch.from_numpy(array)
    return tensor.view(wanted) if name in _VIEWED else tensor


def to_numpy(tensor: Tensor, dtype: Any) -> np.ndarray:
    """The numbers of a tensor that carries an array of `dtype`; shares memory with a tensor of the host."""
    tensor = tensor.detach().cpu().contiguous()
    name = np.dtype(dtype).name
    if name in _VIEWED:
        whole = torch.int16 if _VIEWED[name].itemsize == 2 else torch.uint8
        return tensor.view(whole).numpy().view(getattr(ml_dtypes, name))
    array = tensor.numpy()
    return array.view(np.dtype(dtype)) if name in _CARRIED else array
