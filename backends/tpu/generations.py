"""Which TPU this is: the names that JAX's devices give themselves."""

from collections.abc import Mapping

import jax

from ..errors import UnsupportedError

# From the longest name to the shortest: "TPU v5 lite" begins like "TPU v5".
_KINDS: Mapping[str, str] = {
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5p": "v5p",
    "TPU v5": "v5p",
    "TPU v4": "v4",
    "TPU7x": "tpu7x",
    "TPU v7": "tpu7x",
}


def generation_of(kind: str) -> str:
    """The generation of a device of this kind, such as "TPU v5 lite".

    Raises:
        UnsupportedError: no kernel was compiled for it.
    """
    for prefix, generation in _KINDS.items():
        if kind.startswith(prefix):
            return generation
    known = ", ".join(dict.fromkeys(_KINDS.values()))
    raise UnsupportedError(f"device {kind!r}: no TPU that the kernels are made for, which are {known}")


def attached_generation() -> str:
    """The generation of the TPU that JAX computes on.

    Raises:
        UnsupportedError: there is none, or not one that the kernels are made for.
    """
    if jax.default_backend() != "tpu":
        raise UnsupportedError(
            f"JAX's default backend is {jax.default_backend()}, not tpu; "
            "with a TPU in the machine, install Distaff with its extra `tpu`"
        )
    return generation_of(jax.devices()[0].device_kind)
