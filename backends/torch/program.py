"""A compiled step on a torch device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..base import PyTree
from .array import DeviceArray, to_tensor
from .names import Module, torch


class TorchProgram:
    """Called with arrays of exactly the abstract arguments that it was compiled for.

    Args:
        run: what the device's compiler made of the graph.
        graph: the graph as a module.
        abstract_args, out: shapes and types that go in and come out.
        donated: the leaves among the arguments that are consumed.
        unread: those that nobody looks at, of whatever shape.
        device: where arguments go.
        finish: called after each run; lets a device that collects work begin with it.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        graph: Module,
        abstract_args: Sequence[PyTree],
        out: PyTree,
        *,
        donated: frozenset[int],
        unread: frozenset[int],
        device: str,
        finish: Callable[[], None],
    ) -> None:
        self._run, self._graph, self._finish = run, graph, finish
        leaves, self._given = jax.tree.flatten(tuple(abstract_args))
        self._shapes = [(tuple(leaf.shape), leaf.dtype) for leaf in leaves]
        results, self._made = jax.tree.flatten(out)
        self._types = [leaf.dtype for leaf in results]
        self._donated, self._unread, self._device = donated, unread, device

    def __call__(self, *args: PyTree) -> PyTree:
        leaves, given = jax.tree.flatten(args)
        if given != self._given:
            raise TypeError(f"this program takes {self._given}, not {given}")
        for place, (leaf, (shape, dtype)) in enumerate(zip(leaves, self._shapes, strict=True)):
            if place not in self._unread and (leaf.shape != shape or leaf.dtype != dtype):
                raise TypeError(f"this program takes {dtype}{list(shape)}, not {leaf.dtype}{list(leaf.shape)}")
        with torch.no_grad():  # torch_xla has no inference mode
            tensors = [to_tensor(leaf, self._device) for leaf in leaves]
            for place in self._donated:
                if isinstance(leaves[place], DeviceArray):
                    leaves[place].delete()
                elif isinstance(leaves[place], jax.Array):  # others may hold it, and JAX's arrays do not change
                    tensors[place] = tensors[place].clone()
            results = self._run(*tensors)
        self._finish()
        arrays = [DeviceArray(tensor, dtype) for tensor, dtype in zip(results, self._types, strict=True)]
        return jax.tree.unflatten(self._made, arrays)

    def as_text(self) -> str:
        """The Python that torch.fx makes of the graph."""
        return self._graph.code

    def memory_analysis(self) -> None:
        """Nothing: torch does not tell before it runs."""
        return None

    @property
    def graph(self) -> Module:
        """The graph as a torch.fx.GraphModule."""
        return self._graph
