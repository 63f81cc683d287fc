"""torch, and names for its types.

It is imported by name: type checkers run where torch is not installed, and would take this folder for it.
"""

from importlib import import_module
from typing import Any

torch: Any = import_module("torch")
fx: Any = import_module("torch.fx")

Tensor = Any
"""A torch.Tensor."""

DType = Any
"""A torch.dtype."""

Value = Any
"""What a rule is given and gives: an fx proxy, a tensor that is known when the graph is built, or a Python number."""

Module = Any
"""A torch.nn.Module."""
