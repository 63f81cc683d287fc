"""A backend for programs that run a few times: most of such a test is compiling."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distaff.backends.reference import ReferenceBackend


@dataclass(frozen=True)
class QuickReference(ReferenceBackend):
    """The reference's own arithmetic, of which LLVM makes code without optimising it."""

    @property
    def compiler_options(self) -> Mapping[str, Any]:
        return {"xla_backend_optimization_level": 0}
