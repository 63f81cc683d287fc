"""Whether torch is there, asked without importing it."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from packaging.version import Version

from ..errors import UnsupportedError

_OLDEST = Version("2.6")


def check_torch(device: str) -> None:
    """Looks for what a device needs.

    Raises:
        UnsupportedError: torch is missing, or too old; says what to install.
    """
    extra = "torch-xla" if device == "xla" else "torch"
    if find_spec("torch") is None:
        if device == "hpu":
            raise UnsupportedError(
                "torch is not installed; use Intel's container for Gaudi, whose torch no package index has, or for a "
                "first look: pip install 'distaff[torch]'"
            )
        raise UnsupportedError(f"torch is not installed; install it with: pip install 'distaff[{extra}]'")
    try:
        found = Version(version("torch"))
    except PackageNotFoundError:
        return  # built by hand, without metadata
    if found < _OLDEST:
        raise UnsupportedError(f"torch {found} is too old, expected {_OLDEST} or later: pip install 'distaff[{extra}]'")
