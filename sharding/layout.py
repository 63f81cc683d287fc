"""A layout is data: the shape of a mesh, and one table that maps logical axes to mesh axes."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

from .errors import LayoutSyntaxError

MESH_AXES = ("data", "stage", "sequence", "expert", "tensor", "tensor2")
"""Axes of a mesh, the slowest first: devices that are neighbours along `tensor2` have neighbouring numbers."""

LOGICAL_AXES: Mapping[str, str] = MappingProxyType(
    {
        "layers": "layers, and so the KV cache: stages of a pipeline",
        "context": "positions of the KV cache, of each page the same share",
        "heads": "query heads",
        "kv_heads": "key and value heads, and so the KV cache",
        "cache_heads": "heads of the KV cache, where not as kv_heads: attention exchanges heads for tokens",
        "mlp": "width of a feed-forward layer, and of each expert",
        "expert": "experts of a mixture",
        "vocab": "tokens of the embedding table and of the logits",
        "embed": "width of the model",
        "tokens": "tokens of the residual stream, between the layers",
        "routed": "tokens of a mixture: each is sent to the devices of its experts, which otherwise have all tokens",
    }
)
"""What a table may split, and what that is."""

Axes = tuple[str, ...]

GATHERED = ("heads", "kv_heads", "mlp", "expert")
"""What steps with prompts may split along fewer axes than it is stored."""


@dataclass(frozen=True)
class Rules:
    """Logical axis -> the mesh axes that split it, the slowest first; what is not named is whole everywhere."""

    table: tuple[tuple[str, Axes], ...] = ()

    @classmethod
    def of(cls, **table: Axes) -> "Rules":
        """A table in the order of LOGICAL_AXES."""
        return cls(tuple((name, tuple(table[name])) for name in LOGICAL_AXES if name in table))

    def __contains__(self, logical: object) -> bool:
        return logical in dict(self.table)

    def __getitem__(self, logical: str) -> Axes:
        return dict(self.table).get(logical, ())

    def as_dict(self) -> dict[str, list[str]]:
        """For JSON and YAML."""
        return {logical: list(axes) for logical, axes in self.table}

    def updated(self, **table: Axes) -> "Rules":
        """These with some entries replaced."""
        return Rules.of(**{**dict(self.table), **table})


@dataclass(frozen=True)
class Layout:
    """A mesh and what lives where on it.

    Args:
        preset: the preset, or the product of some, whose table this is, or "custom".
        mesh: sizes of the mesh's axes, in the order of MESH_AXES, those of one device left out.
        rules: where weights, KV cache and activations are split.
        prefill: what steps with prompts split otherwise. Weights are stored once, as `rules` say: where prefill splits
            them along fewer axes, each layer's are gathered along the others when it is computed.
        capacity: of routed tokens, how many a device sends to each other one at once, as a multiple of what it would
            send if experts were chosen evenly; what is left goes in further rounds. None: as many as there can be.
        prefill_from: the tokens of a step from which on `prefill` holds; smaller steps are split as decode steps are.
    """

    preset: str
    mesh: tuple[tuple[str, int], ...]
    rules: Rules
    prefill: Rules = Rules()
    capacity: float | None = None
    prefill_from: int = 0

    @classmethod
    def of(
        cls,
        preset: str,
        sizes: Mapping[str, int],
        rules: Rules,
        prefill: Rules | None = None,
        capacity: float | None = None,
        prefill_from: int = 0,
    ) -> "Layout":
        """A layout from sizes in any order.

        Raises:
            LayoutSyntaxError: an axis, logical or of the mesh, that does not exist; a size below 1; weights that
                prefill would split otherwise; a capacity of nothing; fewer than no tokens.
        """
        prefill = prefill or Rules()
        for name, size in sizes.items():
            if name not in MESH_AXES:
                raise LayoutSyntaxError(f"layout: no mesh axis is named {name!r}, expected {', '.join(MESH_AXES)}")
            if size < 1:
                raise LayoutSyntaxError(f"layout: {name}={size}, expected a whole number from 1")
        for logical, axes in (*rules.table, *prefill.table):
            unknown = [axis for axis in axes if axis not in MESH_AXES]
            if logical not in LOGICAL_AXES or unknown:
                raise LayoutSyntaxError(
                    f"layout: the rule {logical}: {list(axes)} names {unknown[0] if unknown else logical!r}; logical "
                    f"axes are {', '.join(LOGICAL_AXES)}, mesh axes {', '.join(MESH_AXES)}"
                )
        if capacity is not None and capacity <= 0:
            raise LayoutSyntaxError(f"layout: capacity {capacity}, expected a number above 0")
        if prefill_from < 0:
            raise LayoutSyntaxError(f"layout: prefill_from {prefill_from}, expected a number of tokens")
        for logical, axes in prefill.table:
            if logical not in (*GATHERED, "tokens", "routed"):
                raise LayoutSyntaxError(f"layout: prefill splits {logical} otherwise, and it is stored once")
            if logical in GATHERED and not set(axes) <= set(rules[logical]):
                raise LayoutSyntaxError(
                    f"layout: prefill splits {logical} along {list(axes)}; weights are stored once, along "
                    f"{list(rules[logical])}, and can be gathered along some of these alone"
                )
        mesh = tuple((axis, sizes[axis]) for axis in MESH_AXES if sizes.get(axis, 1) > 1)
        return cls(preset, mesh, rules, prefill, capacity, prefill_from)

    def __str__(self) -> str:
        """As `parse_layout` reads it; custom tables print their mesh alone."""
        sizes = ",".join(f"{axis}={size}" for axis, size in self.mesh) or "data=1"
        return sizes if self.preset in ("tensor", "custom") else f"{self.preset}:{sizes}"

    @property
    def sizes(self) -> Mapping[str, int]:
        """Sizes of the mesh's axes, without those of one device."""
        return MappingProxyType(dict(self.mesh))

    @property
    def num_devices(self) -> int:
        return prod(self.sizes.values())

    @property
    def replicas(self) -> int:
        """Copies of the model that work on different requests."""
        return self.sizes.get("data", 1)

    @property
    def replica(self) -> "Layout":
        """The layout of one copy."""
        return replace(self, mesh=tuple((axis, size) for axis, size in self.mesh if axis != "data"))

    def axes(self, logical: str, *, prefill: bool = False) -> Axes:
        """The mesh axes of more than one device that split a logical axis."""
        table = self.prefill if prefill and logical in self.prefill else self.rules
        if logical == "cache_heads" and logical not in table:
            logical, table = "kv_heads", self.rules
        return tuple(axis for axis in table[logical] if axis in self.sizes)

    @property
    def coupled(self) -> bool:
        """Whether replicas share weights, so that they can step together alone."""
        return any("data" in self.axes(logical) for logical in LOGICAL_AXES)

    @property
    def in_step(self) -> bool:
        """Whether replicas of one program all have to be there for each step: they share weights, or have stages, and
        what stages send takes every device of the program."""
        return self.coupled or (self.replicas > 1 and bool(self.axes("layers")))

    @property
    def gathers_weights(self) -> bool:
        """Whether weights are gathered in steps with prompts."""
        return any(self.axes(logical) != self.axes(logical, prefill=True) for logical in GATHERED)

    def parts(self, logical: str, *, prefill: bool = False) -> int:
        """How many parts a logical axis is split into."""
        return self.size(self.axes(logical, prefill=prefill))

    def size(self, axes: Iterable[str]) -> int:
        """Devices along some mesh axes."""
        return prod(self.sizes.get(axis, 1) for axis in axes)
