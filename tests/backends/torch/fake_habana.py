"""A stand-in for habana_frameworks on the host: counts what is asked of it, and captures graphs by shape."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

from distaff.backends.torch.names import torch


@dataclass
class FakeHabana:
    """What was asked: `events` in their order, graphs `captured` and `replayed`, calls of attention `fused`.

    `free` is what is told of the memory.
    """

    available: bool = True
    free: int = 60 * 2**30
    events: list[str] = field(default_factory=list)
    captured: int = 0
    replayed: int = 0
    fused: int = 0

    def is_available(self) -> bool:
        return self.available

    def mem_get_info(self) -> tuple[int, int]:
        self.events.append("memory")
        return self.free, 96 * 2**30

    def mark_step(self) -> None:
        self.events.append("mark_step")

    def attend(self, q: Any, k: Any, v: Any, mask: Any, dropout: float, causal: bool, scale: float) -> Any:
        assert dropout == 0 and not causal and q.dim() == 4
        self.fused += 1
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)

    def wrap_in_hpu_graph(self, module: Any, *, disable_tensor_cache: bool) -> Any:
        assert disable_tensor_cache
        self.events.append("wrap")
        return _Captured(module, self)


class _Captured(torch.nn.Module):
    def __init__(self, module: Any, fake: FakeHabana) -> None:
        super().__init__()
        self.module, self.fake, self.shapes = module, fake, set[Any]()

    def forward(self, *args: Any) -> Any:
        shapes = tuple((tuple(arg.shape), arg.dtype) for arg in args)
        if shapes in self.shapes:
            self.fake.replayed += 1
        else:
            self.shapes.add(shapes)
            self.fake.captured += 1
            self.fake.events.append("capture")
        return self.module(*args)


@contextmanager
def installed(fake: FakeHabana) -> Iterator[None]:
    """While it lasts, habana_frameworks can be imported and is the fake."""
    parts = {
        name: ModuleType(name)
        for name in (
            "habana_frameworks", "habana_frameworks.torch", "habana_frameworks.torch.core",
            "habana_frameworks.torch.hpex", "habana_frameworks.torch.hpex.kernels",
            "habana_frameworks.torch.distributed", "habana_frameworks.torch.distributed.hccl",
        )
    }  # fmt: skip
    for name, module in parts.items():
        module.__spec__ = ModuleSpec(name, None)
    parts["habana_frameworks.torch"].hpu = fake  # pyright: ignore[reportAttributeAccessIssue]
    parts["habana_frameworks.torch.core"].mark_step = fake.mark_step  # pyright: ignore[reportAttributeAccessIssue]
    kernels: Any = parts["habana_frameworks.torch.hpex.kernels"]
    kernels.FusedSDPA = SimpleNamespace(apply=fake.attend)
    sys.modules.update(parts)
    try:
        yield
    finally:
        for name in parts:
            del sys.modules[name]
